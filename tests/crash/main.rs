//! What the promise is worth: the daemon, its broker and its database are killed under load, and afterwards what was
//! published is compared with what is stored.
//!
//! The daemon is the real program in a process of its own; mosquitto, VictoriaMetrics and InfluxDB 2 are the real ones.
//! Whatever is random comes from a printed seed: `FROSTLINE_SEED=17` repeats it. `FROSTLINE_SOAK_HOURS=8` has the random
//! kills go on for so long, and `FROSTLINE_WEEK_SPACING_S=60` makes the fleet's week one of a reading a minute.

mod daemon;
mod dead_letters;
mod faults;
mod kills;
mod load;
mod power;
mod publisher;
mod scene;
#[path = "../support/scripted_broker.rs"]
#[expect(dead_code, reason = "the helpers are for other tests too")]
mod scripted_broker;
#[path = "../support/servers.rs"]
#[expect(dead_code, reason = "the helpers are for other tests too")]
mod servers;
mod usual_settings;
mod week;
