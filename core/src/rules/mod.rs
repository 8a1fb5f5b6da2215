//! From readings to episodes: rules, what they are bound to, and the engine that judges.
//!
//! Read in this order: [`rule`](Rule) and [`selector`](Selector) (what is asked for), `binding` (what that means for one
//! unit at each instant), `band` and `silence` (the state machines of the kinds), [`engine`](Engine) (all series of
//! all units, and time), [`amendment`] (how what was told becomes what is true).
//!
//! All arithmetic that decides anything is in whole numbers: milliseconds, and values in millionths. Two values are
//! equal where they are so after rounding to 1e-6, and no sum depends on the order of its terms.

pub mod amendment;
mod band;
mod binding;
mod engine;
mod episode;
mod rule;
mod selector;
mod silence;
mod snapshot;

pub use binding::{holding_time_ms, limits_in_force};
pub use engine::{Engine, FiringEpisode, PendingEpisode, SeriesId, Subject};
pub use episode::{Change, Episode, Resolution, RetractionReason, RuleIndex, Transition, episode_id};
pub use rule::{
    Condition, LimitSource, Message, Rule, RuleError, Severity, SilenceScope, leaves_something_clear, micro,
};
pub use selector::{Selector, glob_matches};
pub use snapshot::RestoreError;
