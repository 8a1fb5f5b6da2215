use crate::model::{Profile, Timestamp, UnitFacts, UnitKind};

/// Where a rule applies: every key that is given must match, and one whose value is not known does not.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Selector {
    /// Storage or transport.
    pub unit_kind: Option<UnitKind>,
    /// The operator's name.
    pub operator: Option<String>,
    /// How the unit's division code begins.
    pub jurisdiction: Option<String>,
    /// The categories of which a profile in force has one.
    pub category: Option<Vec<String>>,
    /// Globs over the names of profiles, of which one in force fits one.
    pub profile: Option<Vec<String>>,
    /// A glob over the unit's name.
    pub unit: Option<String>,
    /// A glob over the sensor's name.
    pub sensor: Option<String>,
    /// Whether a consignment is in the unit.
    pub loaded: Option<bool>,
}

impl Selector {
    /// Returns whether the rule concerns a unit at an instant, by what is known of the unit then.
    pub fn matches_unit(&self, facts: &UnitFacts<'_>, at: Timestamp) -> bool {
        let unit = facts.registered();
        let jurisdiction = unit.and_then(|unit| unit.jurisdiction.as_deref());
        let has_prefix = |prefix: &String| jurisdiction.is_some_and(|code| code.starts_with(prefix.as_str()));
        self.operator.as_ref().is_none_or(|operator| operator == facts.unit.operator.as_str())
            && self.unit.as_ref().is_none_or(|glob| glob_matches(glob, facts.unit.unit.as_str()))
            && self.unit_kind.is_none_or(|kind| unit.is_some_and(|unit| unit.kind == kind))
            && self.jurisdiction.as_ref().is_none_or(has_prefix)
            && self.loaded.is_none_or(|wanted| unit.is_some() && facts.consignments_at(at).next().is_some() == wanted)
            && (self.category.is_none() && self.profile.is_none()
                || facts.profiles_at(at).into_iter().any(|profile| self.matches_profile(profile)))
    }

    /// Returns whether a profile is one that the rule is about.
    pub fn matches_profile(&self, profile: &Profile) -> bool {
        self.category.as_ref().is_none_or(|wanted| wanted.iter().any(|word| **word == *profile.category))
            && self.profile.as_ref().is_none_or(|globs| globs.iter().any(|glob| glob_matches(glob, &profile.id)))
    }

    /// Returns whether the rule concerns a sensor of a unit that it concerns.
    pub fn matches_sensor(&self, sensor: &str) -> bool {
        self.sensor.as_ref().is_none_or(|glob| glob_matches(glob, sensor))
    }
}

/// Returns whether `text` fits `glob`, in which `*` stands for any characters and `?` for one.
pub fn glob_matches(glob: &str, text: &str) -> bool {
    let glob: Vec<char> = glob.chars().collect();
    let text: Vec<char> = text.chars().collect();
    // Where to go on when the characters since the last `*` do not fit: the `*` then takes one more of the text.
    let mut retry: Option<(usize, usize)> = None;
    let (mut g, mut t) = (0, 0);
    while t < text.len() {
        match glob.get(g) {
            Some('*') => {
                retry = Some((g + 1, t));
                g += 1;
            }
            Some(&c) if c == '?' || c == text[t] => {
                g += 1;
                t += 1;
            }
            _ => match retry {
                Some((after_star, taken)) => {
                    retry = Some((after_star, taken + 1));
                    (g, t) = (after_star, taken + 1);
                }
                None => return false,
            },
        }
    }
    glob[g..].iter().all(|c| *c == '*')
}

#[cfg(test)]
mod tests {
    use super::glob_matches;

    #[test]
    fn a_glob_fits_what_its_stars_and_question_marks_allow() {
        for (glob, text) in
            [("u*", "u1"), ("*", ""), ("?1", "t1"), ("a*b*c", "a-xb-b-c"), ("t1", "t1"), ("*室*", "冷室1")]
        {
            assert!(glob_matches(glob, text), "{glob} should fit {text}");
        }
        for (glob, text) in [("u*", "t1"), ("?", ""), ("t1", "t10"), ("a*b", "a-b-c"), ("", "x"), ("?1", "tt1")] {
            assert!(!glob_matches(glob, text), "{glob} should not fit {text}");
        }
    }
}
