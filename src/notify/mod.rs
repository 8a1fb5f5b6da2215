//! Telling people and machines; every channel takes its work from the outbox only.

pub mod mqtt;
