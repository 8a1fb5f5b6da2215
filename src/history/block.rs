//! The block: up to a few hours of one series in about three bytes per reading.
//!
//! ```text
//! version u8 | readings varint | start_ms zigzag varint | reading … | CRC-32C of all before, u32 little-endian
//! reading:  surprise zigzag varint   (not for the first; step to the reading before, less the expected step)
//!           1 + zigzag(mantissa − mantissa before) varint      where exponent and quality stay as they are
//!           0, value                                           else
//! value:    tag u8 | quality u8 where bit 4 of the tag is set | mantissa zigzag varint, or 8 bytes, or nothing
//! ```
//!
//! A value is kept as `mantissa / 10^exponent` where that gives the same 64 bits again, which is so for whatever came
//! as a decimal text of usual length; else (also for −0.0) as its bits. The low half of a tag says which: 0 to 6 is an
//! exponent, [`TAG_FAILED`] a failed probe, [`TAG_BITS`] the bits of an `f64`. Within a block the exponent only grows.
//!
//! The readings are a stream that is only ever appended to, so the open block of a series *is* its encoding, and
//! writing it out costs a copy.

use frostline_core::model::{Quality, Reading, Timestamp};

/// The version this program writes, and the only one it reads.
const VERSION: u8 = 1;
const CHECKSUM_BYTES: usize = 4;
/// The most bytes one reading takes: two varints, the escape, the tag and the quality.
const READING_BYTES_MAX: usize = 10 + 1 + 1 + 1 + 10;

const TAG_FAILED: u8 = 14;
const TAG_BITS: u8 = 15;
const TAG_QUALITY_FOLLOWS: u8 = 0x10;

const POWERS_OF_TEN: [f64; 7] = [1.0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6];
/// Beyond this not every whole number has an `f64` of its own.
const MANTISSA_MAX: f64 = 9_007_199_254_740_992.0;
/// How far one odd step (a gap of days) may move what is expected of the next.
const EXPECTED_STEP_CHANGE_MAX_MS: i64 = 4_096;

/// What is wrong with bytes that should be a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Damage {
    /// Fewer bytes than the smallest block has, or a reading cut short.
    #[error("it is cut short")]
    CutShort,
    /// The bytes are not those that were written.
    #[error("its checksum does not match")]
    Checksum,
    /// Written by a later version.
    #[error("its format version {0} is unknown")]
    Version(u8),
    /// The checksum fits, but the content makes no sense.
    #[error("its content makes no sense: {0}")]
    Content(&'static str),
}

/// The readings of one series that still grow, already encoded.
#[derive(Debug, Clone, Default)]
pub(crate) struct OpenBlock {
    bytes: Vec<u8>,
    context: Context,
    start_ms: i64,
    readings: u32,
}

/// A finished block as it goes into the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SealedBlock {
    pub(crate) start_ms: i64,
    pub(crate) end_ms: i64,
    pub(crate) readings: u32,
    pub(crate) data: Box<[u8]>,
}

/// What writer and reader of a block both remember of the readings so far.
#[derive(Debug, Clone, Default)]
struct Context {
    event_ms: i64,
    expected_step_ms: i64,
    mantissa: i64,
    exponent: u8,
    quality: u8,
}

impl Context {
    /// Learns from a step. A running mean halves the noise of jittered senders compared with the step before alone.
    fn learn_step(&mut self, step_ms: i64, surprise_ms: i64) {
        self.event_ms = self.event_ms.wrapping_add(step_ms);
        self.expected_step_ms = if self.expected_step_ms == 0 {
            step_ms
        } else {
            let change_ms = (surprise_ms >> 3).clamp(-EXPECTED_STEP_CHANGE_MAX_MS, EXPECTED_STEP_CHANGE_MAX_MS);
            self.expected_step_ms.wrapping_add(change_ms)
        };
    }
}

impl OpenBlock {
    /// Appends a reading, which must be newer than the last one.
    pub(crate) fn push(&mut self, reading: &Reading) {
        debug_assert!(self.is_empty() || self.end_ms() < reading.event_time.as_millis(), "readings only go forward");
        // A vector's own doubling would waste half of what 100,000 open blocks take.
        if self.bytes.capacity() - self.bytes.len() < READING_BYTES_MAX {
            self.bytes.reserve_exact(READING_BYTES_MAX + self.bytes.len() / 4);
        }
        let event_ms = reading.event_time.as_millis();
        if self.is_empty() {
            self.start_ms = event_ms;
            self.context.event_ms = event_ms;
        } else {
            let step_ms = event_ms.wrapping_sub(self.context.event_ms);
            let surprise_ms = step_ms.wrapping_sub(self.context.expected_step_ms);
            put_varint(&mut self.bytes, zigzag(surprise_ms));
            self.context.learn_step(step_ms, surprise_ms);
        }
        self.push_value(reading.value, reading.quality.bits());
        self.readings += 1;
    }

    fn push_value(&mut self, value: Option<f64>, quality: u8) {
        let context = &mut self.context;
        let scaled = value.and_then(|value| scale(value, context.exponent));
        match scaled {
            Some((exponent, mantissa)) if exponent == context.exponent && quality == context.quality => {
                put_varint(&mut self.bytes, 1 + zigzag(mantissa - context.mantissa));
            }
            _ => {
                self.bytes.push(0);
                put_value(&mut self.bytes, value, scaled, (quality != context.quality).then_some(quality));
            }
        }
        if let Some((exponent, mantissa)) = scaled {
            (context.exponent, context.mantissa) = (exponent, mantissa);
        }
        context.quality = quality;
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.readings == 0
    }

    pub(crate) fn readings(&self) -> u32 {
        self.readings
    }

    pub(crate) fn start_ms(&self) -> i64 {
        self.start_ms
    }

    pub(crate) fn end_ms(&self) -> i64 {
        self.context.event_ms
    }

    /// Returns the readings so far, oldest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = Reading> + '_ {
        Readings::new(&self.bytes, self.readings, self.start_ms)
            .map(|reading| reading.expect("an open block holds what push wrote"))
    }

    /// Returns the block as it goes into the file.
    pub(crate) fn seal(&self) -> SealedBlock {
        let mut data = Vec::with_capacity(self.bytes.len() + 20);
        data.push(VERSION);
        put_varint(&mut data, u64::from(self.readings));
        put_varint(&mut data, zigzag(self.start_ms));
        data.extend_from_slice(&self.bytes);
        data.extend_from_slice(&crc32c::crc32c(&data).to_le_bytes());
        SealedBlock {
            start_ms: self.start_ms,
            end_ms: self.end_ms(),
            readings: self.readings,
            data: data.into_boxed_slice(),
        }
    }
}

/// Returns readings (oldest first, no two at one millisecond) in blocks of about the same size, none above `readings_max`.
pub(crate) fn seal_all(readings: &[Reading], readings_max: usize) -> impl Iterator<Item = SealedBlock> + '_ {
    let blocks = readings.len().div_ceil(readings_max).max(1);
    readings.chunks(readings.len().div_ceil(blocks).max(1)).map(|chunk| {
        let mut block = OpenBlock::default();
        chunk.iter().for_each(|reading| block.push(reading));
        block.seal()
    })
}

/// Returns the readings of a sealed block, oldest first.
pub(crate) fn decode(data: &[u8]) -> Result<Vec<Reading>, Damage> {
    let readings = open(data)?;
    let mut decoded: Vec<Reading> = Vec::with_capacity(readings.remaining.min(data.len() as u32) as usize);
    for reading in readings {
        let reading = reading?;
        if decoded.last().is_some_and(|last| last.event_time >= reading.event_time) {
            return Err(Damage::Content("its readings do not go forward"));
        }
        decoded.push(reading);
    }
    Ok(decoded)
}

/// Returns the reading of a sealed block at one millisecond.
pub(crate) fn find(data: &[u8], event_time: Timestamp) -> Result<Option<Reading>, Damage> {
    for reading in open(data)? {
        let reading = reading?;
        if reading.event_time >= event_time {
            return Ok((reading.event_time == event_time).then_some(reading));
        }
    }
    Ok(None)
}

fn open(data: &[u8]) -> Result<Readings<'_>, Damage> {
    let (content, checksum) = data.split_last_chunk::<CHECKSUM_BYTES>().ok_or(Damage::CutShort)?;
    if crc32c::crc32c(content) != u32::from_le_bytes(*checksum) {
        return Err(Damage::Checksum);
    }
    let (&version, mut rest) = content.split_first().ok_or(Damage::CutShort)?;
    if version != VERSION {
        return Err(Damage::Version(version));
    }
    let readings = u32::try_from(take_varint(&mut rest)?).map_err(|_| Damage::Content("too many readings"))?;
    let start_ms = unzigzag(take_varint(&mut rest)?);
    Ok(Readings::new(rest, readings, start_ms))
}

/// Reads the stream of readings of a block.
struct Readings<'a> {
    rest: &'a [u8],
    remaining: u32,
    is_first: bool,
    context: Context,
}

impl<'a> Readings<'a> {
    fn new(rest: &'a [u8], readings: u32, start_ms: i64) -> Self {
        let context = Context { event_ms: start_ms, ..Context::default() };
        Self { rest, remaining: readings, is_first: true, context }
    }

    fn take(&mut self) -> Result<Reading, Damage> {
        let context = &mut self.context;
        if self.is_first {
            self.is_first = false;
        } else {
            let surprise_ms = unzigzag(take_varint(&mut self.rest)?);
            context.learn_step(context.expected_step_ms.wrapping_add(surprise_ms), surprise_ms);
        }
        let value = match take_varint(&mut self.rest)? {
            0 => {
                let (value, quality) = take_value(&mut self.rest)?;
                context.quality = quality.unwrap_or(context.quality);
                if let Value::Scaled { exponent, mantissa } = value {
                    (context.exponent, context.mantissa) = (exponent, mantissa);
                }
                value
            }
            change => {
                context.mantissa = context.mantissa.wrapping_add(unzigzag(change - 1));
                Value::Scaled { exponent: context.exponent, mantissa: context.mantissa }
            }
        };
        Ok(Reading {
            event_time: Timestamp::from_millis(context.event_ms),
            value: value.to_option(),
            quality: Quality::from_bits(context.quality),
        })
    }
}

impl Iterator for Readings<'_> {
    type Item = Result<Reading, Damage>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.remaining == 0 {
            let trailing = !std::mem::take(&mut self.rest).is_empty();
            return trailing.then_some(Err(Damage::Content("bytes follow its last reading")));
        }
        self.remaining -= 1;
        let reading = self.take();
        if reading.is_err() {
            (self.remaining, self.rest) = (0, &[]);
        }
        Some(reading)
    }
}

/// A value as it stands in the bytes.
pub(crate) enum Value {
    Failed,
    Bits(f64),
    Scaled { exponent: u8, mantissa: i64 },
}

impl Value {
    pub(crate) fn to_option(&self) -> Option<f64> {
        match *self {
            Self::Failed => None,
            Self::Bits(value) => Some(value),
            Self::Scaled { exponent, mantissa } => Some(mantissa as f64 / POWERS_OF_TEN[usize::from(exponent)]),
        }
    }
}

/// Returns the least exponent from `exponent_min` on, and the mantissa, that give back exactly these bits.
pub(crate) fn scale(value: f64, exponent_min: u8) -> Option<(u8, i64)> {
    (exponent_min..).zip(&POWERS_OF_TEN[usize::from(exponent_min)..]).find_map(|(exponent, power)| {
        let product = (value * power).round();
        if product.is_nan() || product.abs() > MANTISSA_MAX {
            return None;
        }
        let mantissa = product as i64;
        (mantissa as f64 / power).to_bits().eq(&value.to_bits()).then_some((exponent, mantissa))
    })
}

/// Appends a value whose scaled form the caller knows, if it has one.
pub(crate) fn put_value(bytes: &mut Vec<u8>, value: Option<f64>, scaled: Option<(u8, i64)>, quality: Option<u8>) {
    let kind = match (value, scaled) {
        (None, _) => TAG_FAILED,
        (Some(_), Some((exponent, _))) => exponent,
        (Some(_), None) => TAG_BITS,
    };
    bytes.push(kind | if quality.is_some() { TAG_QUALITY_FOLLOWS } else { 0 });
    bytes.extend(quality);
    match (value, scaled) {
        (None, _) => {}
        (Some(_), Some((_, mantissa))) => put_varint(bytes, zigzag(mantissa)),
        (Some(value), None) => bytes.extend_from_slice(&value.to_bits().to_le_bytes()),
    }
}

/// Takes a value and, where it is given, the quality from the front of `rest`.
pub(crate) fn take_value(rest: &mut &[u8]) -> Result<(Value, Option<u8>), Damage> {
    let tag = take_byte(rest)?;
    let quality = if tag & TAG_QUALITY_FOLLOWS == 0 { None } else { Some(take_byte(rest)?) };
    let value = match tag & !TAG_QUALITY_FOLLOWS {
        TAG_FAILED => Value::Failed,
        TAG_BITS => {
            let (bits, after) = rest.split_first_chunk::<8>().ok_or(Damage::CutShort)?;
            *rest = after;
            Value::Bits(f64::from_bits(u64::from_le_bytes(*bits)))
        }
        exponent if usize::from(exponent) < POWERS_OF_TEN.len() => {
            Value::Scaled { exponent, mantissa: unzigzag(take_varint(rest)?) }
        }
        _ => return Err(Damage::Content("unknown kind of value")),
    };
    Ok((value, quality))
}

fn take_byte(rest: &mut &[u8]) -> Result<u8, Damage> {
    let (&byte, after) = rest.split_first().ok_or(Damage::CutShort)?;
    *rest = after;
    Ok(byte)
}

/// Appends a number in as few bytes as it needs, seven bits in each.
pub(crate) fn put_varint(bytes: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

/// Takes a number written by [`put_varint`] from the front of `rest`.
pub(crate) fn take_varint(rest: &mut &[u8]) -> Result<u64, Damage> {
    let mut number = 0;
    for shift in (0..64).step_by(7) {
        let byte = take_byte(rest)?;
        let bits = u64::from(byte & 0x7f);
        if bits << shift >> shift != bits {
            return Err(Damage::Content("a number is too large"));
        }
        number |= bits << shift;
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(Damage::Content("a number is too long"))
}

/// Maps numbers near zero, of either sign, to small ones.
pub(crate) fn zigzag(number: i64) -> u64 {
    ((number << 1) ^ (number >> 63)) as u64
}

/// Undoes [`zigzag`].
pub(crate) fn unzigzag(number: u64) -> i64 {
    (number >> 1) as i64 ^ -((number & 1) as i64)
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use expect_test::expect_file;
    use proptest::prelude::*;

    use super::*;

    fn reading(event_ms: i64, value: Option<f64>, quality: u8) -> Reading {
        Reading { event_time: Timestamp::from_millis(event_ms), value, quality: Quality::from_bits(quality) }
    }

    fn seal(readings: &[Reading]) -> SealedBlock {
        let mut blocks = seal_all(readings, readings.len());
        let block = blocks.next().unwrap();
        assert!(blocks.next().is_none());
        block
    }

    /// Equal to the last bit: `==` takes −0.0 for 0.0.
    fn bits(reading: &Reading) -> (i64, Option<u64>, u8) {
        (reading.event_time.as_millis(), reading.value.map(f64::to_bits), reading.quality.bits())
    }

    #[test]
    fn the_format_stays_as_it_is() {
        let readings = [
            reading(1_795_427_999_123, Some(-18.42), 0),
            reading(1_795_428_059_131, Some(-18.4), 0),
            reading(1_795_428_119_098, Some(-18.0), 0),
            reading(1_795_428_179_100, None, 2),
            reading(1_795_428_239_123, Some(-17.95), 0),
            reading(1_795_428_299_000, Some(-17.905), 0),
            reading(1_795_428_300_000, Some(-0.0), 1),
            reading(1_795_428_400_000, Some(0.1 + 0.2), 1),
            reading(1_795_687_600_000, Some(21.0), 1),
        ];
        let data = seal(&readings).data;
        let mut text = String::new();
        for line in data.chunks(16) {
            line.iter().for_each(|byte| write!(text, "{byte:02x} ").unwrap());
            text.push('\n');
        }
        expect_file!["golden/block-1.txt"].assert_eq(&text);
        assert_eq!(decode(&data).unwrap(), readings);
    }

    #[test]
    fn a_value_of_two_decimals_and_a_jittered_minute_take_three_bytes() {
        let mut block = OpenBlock::default();
        let mut random = 1_u64;
        for minute in 0..100 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let (jitter_ms, hundredths) = ((random >> 33) % 2_000, (random >> 45) % 60);
            let event_ms = 1_795_427_999_123 + minute * 60_000 + jitter_ms as i64;
            block.push(&reading(event_ms, Some((-1_842 + hundredths as i64) as f64 / 100.0), 0));
        }
        assert!(block.bytes.len() <= 310, "{} bytes", block.bytes.len());
    }

    #[test]
    fn a_gap_of_days_spoils_no_reading_after_it() {
        let mut block = OpenBlock::default();
        for minute in 0..50 {
            block.push(&reading(minute * 60_000, Some(4.5), 0));
        }
        let before = block.bytes.len();
        for minute in 5_000..5_050 {
            block.push(&reading(minute * 60_000, Some(4.5), 0));
        }
        assert!(block.bytes.len() - before <= 50 * 3 + 4, "{} bytes", block.bytes.len() - before);
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_found() {
        let readings: Vec<_> = (0..20).map(|n| reading(n * 30_000, Some(n as f64 / 10.0), 0)).collect();
        let data = seal(&readings).data;
        for at in 0..data.len() * 8 {
            let mut damaged = data.clone();
            damaged[at / 8] ^= 1 << (at % 8);
            assert_eq!(decode(&damaged), Err(Damage::Checksum), "bit {at}");
        }
        for length in 0..data.len() {
            assert!(decode(&data[..length]).is_err(), "{length} bytes");
        }
    }

    #[test]
    fn a_later_version_is_named() {
        let mut data = seal(&[reading(0, Some(1.0), 0)]).data.into_vec();
        data.truncate(data.len() - CHECKSUM_BYTES);
        data[0] = 2;
        data.extend_from_slice(&crc32c::crc32c(&data).to_le_bytes());
        assert_eq!(decode(&data), Err(Damage::Version(2)));
    }

    fn any_value() -> impl Strategy<Value = Option<f64>> {
        prop_oneof![
            6 => (-20_000..20_000_i64).prop_map(|hundredths| Some(hundredths as f64 / 100.0)),
            1 => (-20_000_000..20_000_000_i64).prop_map(|n| Some(n as f64 / 1e5)),
            1 => any::<u64>().prop_map(|bits| Some(f64::from_bits(bits))),
            1 => prop::sample::select(vec![-0.0, 0.0, f64::MIN_POSITIVE / 4.0, f64::MAX, f64::MIN, 1e15, 9e15, 0.1 + 0.2])
                .prop_map(Some),
            1 => Just(None),
        ]
    }

    proptest! {
        #[test]
        fn what_is_pushed_comes_back_bit_for_bit(
            start_ms in prop_oneof![Just(1_795_427_999_123_i64), any::<i64>()],
            points in prop::collection::vec(
                (prop_oneof![9 => 1..120_000_i64, 1 => 1..i64::MAX], any_value(), prop_oneof![9 => Just(0_u8), 1 => any::<u8>()]),
                1..300,
            ),
        ) {
            let mut event_ms = start_ms;
            let mut readings = vec![];
            for (step_ms, value, quality) in points {
                readings.push(reading(event_ms, value, quality));
                let Some(next_ms) = event_ms.checked_add(step_ms) else { break };
                event_ms = next_ms;
            }
            let block = seal(&readings);
            prop_assert_eq!((block.start_ms, block.end_ms), (start_ms, readings.last().unwrap().event_time.as_millis()));
            let decoded = decode(&block.data).unwrap();
            prop_assert_eq!(decoded.iter().map(bits).collect::<Vec<_>>(), readings.iter().map(bits).collect::<Vec<_>>());
            for expected in &readings {
                let found = find(&block.data, expected.event_time).unwrap();
                prop_assert_eq!(found.as_ref().map(bits), Some(bits(expected)));
            }
        }

        #[test]
        fn bytes_that_pass_the_checksum_by_accident_never_panic(mut data in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Some(first) = data.first_mut() {
                *first = VERSION;
            }
            data.extend_from_slice(&crc32c::crc32c(&data).to_le_bytes());
            if let Ok(readings) = decode(&data) {
                prop_assert!(readings.is_sorted_by(|earlier, later| earlier.event_time < later.event_time));
            }
        }

        #[test]
        fn splitting_keeps_every_reading_and_the_limit(readings in 0..700_i64, readings_max in 1..200_usize) {
            let readings: Vec<_> = (0..readings).map(|n| reading(n, Some(n as f64), 0)).collect();
            let blocks: Vec<_> = seal_all(&readings, readings_max).collect();
            prop_assert!(blocks.iter().all(|block| block.readings as usize <= readings_max));
            let together: Vec<_> = blocks.iter().flat_map(|block| decode(&block.data).unwrap()).collect();
            prop_assert_eq!(together, readings);
        }
    }
}
