//! Frostline: a cold-chain sensor ingestion pipeline.
//!
//! The modules in reading order, which is the order in which a reading meets them.

pub mod config;

pub mod ingest;

pub mod journal;

pub mod pipeline;

pub mod alert;
pub mod history;
pub mod ledger;

pub mod compliance;

pub mod notify;
pub mod series;
pub mod web;

pub mod backtest;
pub mod comparison;
pub mod episode_file;
pub mod export;
pub mod recording;
pub mod stored_readings;
pub mod story;

pub mod app;
pub mod cli;
pub mod clock;
pub mod crash_point;
#[cfg(feature = "demo")]
pub mod demo;
pub mod health;
pub mod lifecycle;
