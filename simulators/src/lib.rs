//! Simulated cold-chain fleets: what real sensors would have published, by a seed.
//!
//! Shares no code with the rules and codecs that judge it, so that neither can hide the other's mistakes.
//! The modules in reading order: where units stand, what they are, what happens to them, how warm that makes them,
//! what they publish.

mod chance;
mod configuration;
mod disturbance;
mod equipment;
mod fleet;
mod payload;
mod places;
mod thermal;
mod unit;

pub use fleet::{Fleet, FleetOptions, Message};
pub use places::{League, league_by_code};
pub use unit::{SensorInfo, UnitInfo, UnitKind};
