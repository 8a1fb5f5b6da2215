//! Frostline: a cold-chain sensor ingestion pipeline.
//!
//! The modules in reading order, which is the order in which a reading meets them.

pub mod clock;
pub mod config;
pub mod health;
pub mod history;
pub mod ingest;
pub mod journal;
pub mod series;
