//! The MQTT source and publisher against a broker whose every packet is written by the test.

#[path = "../support/scripted_broker.rs"]
mod scripted_broker;

mod guards;
mod harness;
mod publishing;
mod session;
