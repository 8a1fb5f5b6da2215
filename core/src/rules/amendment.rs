//! How episodes that were told become the episodes that are true.
//!
//! After readings or goods that were known late, the episodes of a rule and series are worked out again. Each new one
//! claims at most one of the old ones, so that an alert keeps its id, and people their handling of it, while its figures
//! are mended. What nobody claims is retracted.

use super::Episode;

/// An episode as the ledger knows it, retracted ones included.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OldEpisode {
    /// What it was last said to be.
    pub episode: Episode,
    /// Whether it was last said not to be one.
    pub is_retracted: bool,
}

/// What to do about one old or new episode. Numbers are places in the lists given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amendment {
    /// The old one stands as it is.
    Unchanged {
        /// The old episode.
        old: usize,
        /// The new one, which says the same.
        new: usize,
    },
    /// The old one gets a revision; it is an episode again if it was retracted.
    Revised {
        /// The old episode.
        old: usize,
        /// What it is now.
        new: usize,
    },
    /// Nothing like it was known.
    Added {
        /// The new episode.
        new: usize,
    },
    /// It was not one.
    Retracted {
        /// The old episode.
        old: usize,
        /// The new episode that touches it, claimed by another old one.
        merged_into: Option<usize>,
    },
}

/// Returns what makes the old episodes of one rule and series into the new ones.
///
/// `old` is in the order in which they became known, `new` in the order of their starts. Each new one takes the
/// earliest-known old one that nobody has taken and that shares an instant with it, both ends included.
pub fn reconcile(old: &[OldEpisode], new: &[Episode]) -> Vec<Amendment> {
    let mut is_claimed = vec![false; old.len()];
    let mut amendments = Vec::new();
    for (number, episode) in new.iter().enumerate() {
        let claim = (0..old.len()).find(|index| !is_claimed[*index] && touches(&old[*index].episode, episode));
        amendments.push(match claim {
            Some(index) => {
                is_claimed[index] = true;
                let stands = !old[index].is_retracted && old[index].episode == *episode;
                if stands {
                    Amendment::Unchanged { old: index, new: number }
                } else {
                    Amendment::Revised { old: index, new: number }
                }
            }
            None => Amendment::Added { new: number },
        });
    }
    for (index, left_over) in old.iter().enumerate() {
        if !is_claimed[index] && !left_over.is_retracted {
            let merged_into = new.iter().position(|episode| touches(&left_over.episode, episode));
            amendments.push(Amendment::Retracted { old: index, merged_into });
        }
    }
    amendments
}

/// Returns whether two episodes share an instant; one that is firing has no end yet.
fn touches(a: &Episode, b: &Episode) -> bool {
    let begins_before_end_of = |a: &Episode, b: &Episode| b.resolved_at.is_none_or(|end| a.started_at <= end);
    begins_before_end_of(a, b) && begins_before_end_of(b, a)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Timestamp;

    fn episode(start: i64, end: Option<i64>) -> Episode {
        let start = Timestamp::from_millis(start);
        Episode { resolved_at: end.map(Timestamp::from_millis), ..Episode::new(start, start) }
    }

    fn told(start: i64, end: Option<i64>) -> OldEpisode {
        OldEpisode { episode: episode(start, end), is_retracted: false }
    }

    #[test]
    fn the_same_again_stays_and_a_moved_end_is_a_revision() {
        let new = [episode(0, Some(10)), episode(20, Some(35)), episode(50, None)];
        assert_eq!(
            reconcile(&[told(0, Some(10)), told(20, Some(30))], &new),
            [
                Amendment::Unchanged { old: 0, new: 0 },
                Amendment::Revised { old: 1, new: 1 },
                Amendment::Added { new: 2 }
            ]
        );
    }

    #[test]
    fn one_episode_in_place_of_two_takes_the_one_known_first_and_names_itself_to_the_other() {
        let old = [told(20, Some(30)), told(0, Some(10))];
        assert_eq!(
            reconcile(&old, &[episode(0, Some(30))]),
            [Amendment::Revised { old: 0, new: 0 }, Amendment::Retracted { old: 1, merged_into: Some(0) }]
        );
    }

    #[test]
    fn touching_at_one_instant_is_enough_and_a_gap_of_one_is_too_much() {
        assert_eq!(reconcile(&[told(0, Some(10))], &[episode(10, None)]), [Amendment::Revised { old: 0, new: 0 }]);
        assert_eq!(
            reconcile(&[told(0, Some(10))], &[episode(11, None)]),
            [Amendment::Added { new: 0 }, Amendment::Retracted { old: 0, merged_into: None }]
        );
    }

    #[test]
    fn a_retracted_episode_revives_when_it_is_claimed_and_otherwise_rests() {
        let old = [OldEpisode { is_retracted: true, ..told(0, Some(10)) }];
        assert_eq!(reconcile(&old, &[episode(0, Some(10))]), [Amendment::Revised { old: 0, new: 0 }]);
        assert_eq!(reconcile(&old, &[]), []);
    }
}
