//! The configuration: one file per section; serde shapes, validation, conversion into core types.

mod problem;
mod units;

pub use problem::{Problem, line_of};
pub use units::{parse_duration_ms, parse_size};
