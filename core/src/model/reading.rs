use std::fmt;

use super::{Name, Timestamp};

/// What a series measures. The discriminants are stored on disk: never renumber them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Kind {
    /// °C.
    Temperature = 0,
    /// Relative humidity, %RH.
    Humidity = 1,
    /// 1 open, 0 closed.
    Door = 2,
    /// 1 present, 0 absent.
    Power = 3,
    /// 1 running, 0 standing.
    Compressor = 4,
    /// Charge in percent.
    Battery = 5,
    /// °C that the plant is told to keep.
    Setpoint = 6,
    /// 1 while defrosting.
    Defrost = 7,
    /// Degrees north.
    Latitude = 8,
    /// Degrees east.
    Longitude = 9,
}

impl Kind {
    /// Every kind, in the order of the discriminants.
    pub const ALL: [Self; 10] = [
        Self::Temperature,
        Self::Humidity,
        Self::Door,
        Self::Power,
        Self::Compressor,
        Self::Battery,
        Self::Setpoint,
        Self::Defrost,
        Self::Latitude,
        Self::Longitude,
    ];

    /// Returns the word used in payloads, files and as a measurement: `temperature`, `humidity`, ….
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Temperature => "temperature",
            Self::Humidity => "humidity",
            Self::Door => "door",
            Self::Power => "power",
            Self::Compressor => "compressor",
            Self::Battery => "battery",
            Self::Setpoint => "setpoint",
            Self::Defrost => "defrost",
            Self::Latitude => "latitude",
            Self::Longitude => "longitude",
        }
    }

    /// Returns the kind with this word, if there is one.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == word)
    }

    /// Returns the kind with this discriminant, if there is one.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.get(usize::from(code)).copied()
    }

    /// Returns whether a value lies in the physically possible span; outside it a reading is dead-lettered as `range`.
    ///
    /// −100 to 200 °C, 0 to 105 %RH, 0 to 100 % battery, and 0 or 1 for what can only be on or off.
    pub fn is_possible(self, value: f64) -> bool {
        match self {
            Self::Temperature | Self::Setpoint => (-100.0..=200.0).contains(&value),
            Self::Humidity => (0.0..=105.0).contains(&value),
            Self::Battery => (0.0..=100.0).contains(&value),
            Self::Door | Self::Power | Self::Compressor | Self::Defrost => value == 0.0 || value == 1.0,
            Self::Latitude | Self::Longitude => value.is_finite(),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One monitored space of one operator.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnitKey {
    /// The enterprise responsible.
    pub operator: Name,
    /// The storage or transport unit.
    pub unit: Name,
}

/// What identifies a series: one kind of one sensor of one unit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SeriesKey {
    /// The unit that the sensor sits in.
    pub unit: UnitKey,
    /// The probe; 1 to 64 characters without control characters.
    pub sensor: Box<str>,
    /// What it measures.
    pub kind: Kind,
}

/// One accepted value of a series at one millisecond.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reading {
    /// When the sensor measured.
    pub event_time: Timestamp,
    /// °C, %RH, percent, degrees or 0/1 by the kind; `None` says that the probe failed.
    pub value: Option<f64>,
    /// How the value came to be.
    pub quality: Quality,
}

impl Reading {
    /// Returns whether both say the same, to the 1e-6 that values are compared at.
    pub fn has_same_value(&self, other: &Self) -> bool {
        let micro = |reading: &Self| reading.value.map(|value| (value * 1e6).round());
        micro(self) == micro(other)
    }
}

/// Flags about a reading; stored on disk as one byte.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Quality(u8);

impl Quality {
    /// Nothing to remark.
    pub const GOOD: Self = Self(0);
    /// The payload had no time; the instant of arrival stands in for it.
    pub const SERVER_TIME: Self = Self(1);
    /// The value was a sensor's way of saying that it has none (85.0, −127); it was replaced by "failed".
    pub const SENTINEL: Self = Self(2);

    /// Returns the byte stored on disk.
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// Takes the byte stored on disk.
    pub const fn from_bits(bits: u8) -> Self {
        Self(bits)
    }

    /// Returns both sets of flags together.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Returns whether every flag of `other` is set.
    pub const fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}
