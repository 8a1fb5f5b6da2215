//! The nouns: instants, names, series and readings.

mod name;
mod reading;
mod timestamp;

pub use name::{Name, NameError};
pub use reading::{Kind, Quality, Reading, SeriesKey, UnitKey};
pub use timestamp::{Timestamp, TimestampError};
