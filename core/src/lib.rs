//! The pure core of Frostline: what a reading is, what a message says, and what a rule concludes.
//!
//! Nothing here asks for the time of day, touches a disk or a network, or draws a random number: *now* and every
//! message arrive as arguments. That makes the same accepted readings give the same episodes, whoever drives.
//!
//! Read in this order: [`model`] (the nouns), [`codec`] (bytes to readings), [`rules`] (readings to episodes), [`accounting`]
//! (readings to time that was good, bad or unknown).

pub mod accounting;
pub mod codec;
pub mod model;
pub mod rules;

mod hex;

pub use hex::hex;
