//! Random stories: a rule, a unit with its duty, and readings on a coarse grid, so that ties are common.

/// A small generator of random numbers (splitmix64).
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    pub(crate) fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    Range { low: Option<f64>, high: Option<f64>, hysteresis: f64 },
    State { is: f64 },
    Silence,
}

/// One rule on one sensor of one unit. All times are whole milliseconds.
#[derive(Clone, Debug)]
pub(crate) struct Story {
    pub(crate) kind: Kind,
    pub(crate) for_ms: i64,
    pub(crate) keep_firing_for_ms: i64,
    pub(crate) max_gap_ms: i64,
    pub(crate) is_registered: bool,
    /// Whether the unit is on duty from an instant on; before the first it is. Only for registered units.
    pub(crate) duty: Vec<(i64, bool)>,
    /// Time and value of accepted readings in order; a failed probe has none.
    pub(crate) readings: Vec<(i64, Option<f64>)>,
    pub(crate) now: i64,
}

impl Story {
    pub(crate) fn random(random: &mut Random) -> Self {
        let kind = match random.below(10) {
            0..6 => {
                let (low, high) = random.pick(&[(None, Some(10.0)), (Some(0.0), Some(10.0)), (Some(0.0), None)]);
                Kind::Range { low, high, hysteresis: random.pick(&[0.0, 0.5, 5.0]) }
            }
            6..8 => Kind::State { is: 11.0 },
            _ => Kind::Silence,
        };
        let is_registered = random.below(2) == 0;
        let mut duty = Vec::new();
        if is_registered && random.below(2) == 0 {
            let mut at = 0;
            for change in 0..=random.below(4) {
                at += random.pick(&[5, 10, 20, 35, 60]);
                duty.push((at, change % 2 == 1));
            }
        }
        let values = [-1.0, 0.0, 0.2, 0.5, 5.0, 9.5, 9.7, 10.0, 10.000_001, 10.000_000_1, 11.0, 11.0, 12.0, 12.0];
        let mut readings = Vec::new();
        let mut at = random.pick(&[0, 0, 5, 25]);
        let mut value = Some(random.pick(&values));
        for _ in 0..random.below(25) {
            // Values come in runs, or nothing would ever hold for long.
            if random.below(3) == 0 {
                value = if random.below(5) == 0 { None } else { Some(random.pick(&values)) };
            }
            readings.push((at, value));
            at += random.pick(&[1, 2, 5, 5, 5, 5, 10, 10, 15, 30]);
        }
        let newest = readings.last().map_or(0, |(at, _)| *at);
        Self {
            kind,
            for_ms: random.pick(&[0, 0, 5, 10, 10, 15, 20]),
            keep_firing_for_ms: random.pick(&[0, 0, 5, 10, 15]),
            max_gap_ms: random.pick(&[5, 7, 10, 10, 20]),
            is_registered,
            duty,
            readings,
            now: newest + random.pick(&[-5, 0, 0, 1, 5, 10, 20, 50]),
        }
    }
}
