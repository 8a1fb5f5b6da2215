//! From readings to episodes: rules, what they are bound to, and the engine that judges.
//!
//! Read in this order: [`rule`](Rule) and [`selector`](Selector) (what is asked for), [`era`](Era) (which rules held
//! when), `binding` (what that means for one unit at each instant), `band` (the state machine of most kinds), the kinds
//! in files of their own names, `slot` (what is asked of every kind), [`engine`](Engine) (all series of all units, and
//! time), [`book`](EpisodeBook) (transitions as episodes), [`amendment`] (how what was told becomes what is true).
//!
//! All arithmetic that decides anything is in whole numbers: milliseconds, and values in millionths. Two values are
//! equal where they are so after rounding to 1e-6, and no sum depends on the order of its terms.

pub mod amendment;
mod band;
mod binding;
mod book;
mod cadence;
mod cumulative;
mod disagreement;
mod engine;
mod episode;
mod era;
mod mean_kinetic_temperature;
mod rate;
mod rule;
mod selector;
mod silence;
mod slot;
mod snapshot;
mod stuck;
mod suspension;

pub use binding::{holding_time_ms, limits_in_force};
pub use book::{EpisodeBook, JudgedEpisode, Point, judge_unit, judge_unit_in_steps};
pub use engine::{Engine, FiringEpisode, PendingEpisode, SeriesId, Subject, Timeliness};
pub use episode::{Change, Episode, Resolution, RetractionReason, RuleIndex, Transition, episode_id};
pub use era::Era;
pub use rule::{
    Condition, LimitSource, Message, Rule, RuleError, Severity, SilenceScope, Suspension, Window, leaves_limits_alone,
    leaves_something_clear, micro,
};
pub use selector::{Selector, glob_matches};
pub use snapshot::RestoreError;
