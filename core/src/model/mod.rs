//! The nouns: instants, names, series and readings, and the registry of units, sensors, profiles and consignments.

mod name;
mod reading;
mod registry;
mod timestamp;

pub use name::{Name, NameError};
pub use reading::{Kind, Quality, Reading, SeriesKey, UnitKey};
pub use registry::{Consignment, Limits, Monitor, Operator, Profile, Registry, Sensor, Unit, UnitFacts, UnitKind};
pub use timestamp::{Timestamp, TimestampError};
