/// A small generator of pseudo-random numbers (SplitMix64): the same seed and stream always give the same sequence.
#[derive(Debug, Clone)]
pub(crate) struct Chance(u64);

impl Chance {
    /// Returns the generator of one stream of a seed; streams do not depend on each other, so that a unit behaves the
    /// same however many others there are.
    pub(crate) fn new(seed: u64, stream: u64) -> Self {
        let mut chance = Self(seed ^ stream.wrapping_mul(0xD6E8_FEB8_6659_FD93));
        // Neighbouring seeds start far apart only after one turn.
        chance.0 = chance.bits();
        chance
    }

    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// Returns a number from 0 up to, not including, 1.
    pub(crate) fn fraction(&mut self) -> f64 {
        // 53 bits are all that a double holds.
        (self.bits() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Returns a number between two bounds.
    pub(crate) fn between(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.fraction()
    }

    /// Returns a whole number between two bounds, both included.
    pub(crate) fn whole_between(&mut self, low: i64, high: i64) -> i64 {
        low + (self.fraction() * (high - low + 1) as f64) as i64
    }

    /// Returns an approximately normal number with mean 0 and deviation 1 (twelve uniform ones added up).
    pub(crate) fn normal(&mut self) -> f64 {
        (0..12).map(|_| self.fraction()).sum::<f64>() - 6.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_to_their_bounds_and_fill_them() {
        let mut chance = Chance::new(7, 1);
        let drawn: Vec<i64> = (0..1_000).map(|_| chance.whole_between(3, 6)).collect();
        assert!(drawn.iter().all(|number| (3..=6).contains(number)));
        for expected in 3..=6 {
            assert!(drawn.contains(&expected), "{expected} never came");
        }
        let mean = (0..10_000).map(|_| chance.normal()).sum::<f64>() / 10_000.0;
        assert!(mean.abs() < 0.05, "mean {mean}");
    }

    #[test]
    fn neighbouring_seeds_and_streams_differ() {
        let first = |seed, stream| Chance::new(seed, stream).bits();
        let all = [first(0, 0), first(0, 1), first(1, 0), first(1, 1), first(2, 1)];
        for (index, one) in all.iter().enumerate() {
            assert!(!all[index + 1..].contains(one));
        }
    }
}
