use std::collections::BTreeMap;

use super::{Name, Timestamp, UnitKey};

/// What kind of space a unit is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum UnitKind {
    /// A cold room or a fridge.
    Storage,
    /// A reefer truck or a box.
    Transport,
}

impl UnitKind {
    /// Returns the word used in files: `storage` or `transport`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Storage => "storage",
            Self::Transport => "transport",
        }
    }

    /// Returns the kind with this word, if there is one.
    pub fn from_word(word: &str) -> Option<Self> {
        [Self::Storage, Self::Transport].into_iter().find(|kind| kind.as_str() == word)
    }
}

/// When a registered unit is on duty, so that its readings count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Monitor {
    /// At every instant.
    Always,
    /// While a consignment is in it.
    Loaded,
    /// Never.
    Off,
}

impl Monitor {
    /// Returns the word used in files: `always`, `loaded` or `off`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Always => "always",
            Self::Loaded => "loaded",
            Self::Off => "off",
        }
    }

    /// Returns the setting with this word, if there is one.
    pub fn from_word(word: &str) -> Option<Self> {
        [Self::Always, Self::Loaded, Self::Off].into_iter().find(|monitor| monitor.as_str() == word)
    }

    /// Returns what holds for a unit of this kind where nothing is said.
    pub const fn default_of(kind: UnitKind) -> Self {
        match kind {
            UnitKind::Storage => Self::Always,
            UnitKind::Transport => Self::Loaded,
        }
    }
}

/// A lowest and a highest good value; a missing one does not restrict.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Limits {
    /// The lowest good value.
    pub low: Option<f64>,
    /// The highest good value.
    pub high: Option<f64>,
}

/// The limits for one category of goods, with the standard that they come from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Profile {
    /// What units and consignments name it by.
    pub id: Box<str>,
    /// The name in Chinese.
    pub name_zh: String,
    /// The name in English.
    pub name_en: String,
    /// What kind of goods: `food`, `dairy`, `drug`, ….
    pub category: Box<str>,
    /// Temperature limits, °C.
    pub temperature: Limits,
    /// Temperature limits in a transport unit, each used instead of the one above where given, °C.
    pub transport_temperature: Limits,
    /// Humidity limits, %RH.
    pub humidity: Limits,
    /// Whether humidity outside its limits is told in statistics only.
    pub humidity_advisory: bool,
    /// The longest permitted spacing of records in storage.
    pub record_storage_ms: Option<i64>,
    /// The longest permitted spacing of records in transport.
    pub record_transport_ms: Option<i64>,
    /// The longest permitted spacing of records while outside the limits.
    pub record_excursion_ms: Option<i64>,
    /// How many people must be told of an excursion at least.
    pub notify_at_least: Option<u32>,
    /// Whether a loss of power must be told.
    pub power_alarm: bool,
    /// For how long records must be kept, as written.
    pub retention: Option<String>,
    /// Where the figures come from.
    pub source: String,
    /// Whether somebody has compared the figures with the text of the standard.
    pub verified: bool,
}

impl Profile {
    /// Returns the temperature limits in a transport unit, °C.
    pub fn temperature_in_transport(&self) -> Limits {
        Limits {
            low: self.transport_temperature.low.or(self.temperature.low),
            high: self.transport_temperature.high.or(self.temperature.high),
        }
    }
}

/// The enterprise responsible for units.
#[derive(Clone, Debug, PartialEq)]
pub struct Operator {
    /// The name in topics.
    pub id: Name,
    /// The name for people.
    pub name: String,
    /// The unified social credit code.
    pub code: Option<String>,
}

/// One registered storage or transport unit.
#[derive(Clone, Debug, PartialEq)]
pub struct Unit {
    /// Operator and unit.
    pub key: UnitKey,
    /// Storage or transport.
    pub kind: UnitKind,
    /// The place that it belongs to.
    pub site: Option<String>,
    /// The GB/T 2260 division code that it is registered in.
    pub jurisdiction: Option<Box<str>>,
    /// The profile of what it usually holds.
    pub profile: Option<Box<str>>,
    /// From which instant each setting holds, in order; before the first, the default of the kind does.
    pub monitor: Vec<(Timestamp, Monitor)>,
    /// Anything else that its operator wants to say about it.
    pub labels: BTreeMap<String, String>,
}

impl Unit {
    /// Returns the monitoring in force at an instant.
    pub fn monitor_at(&self, at: Timestamp) -> Monitor {
        let in_force = self.monitor.iter().rev().find(|(from, _)| *from <= at);
        in_force.map_or(Monitor::default_of(self.kind), |(_, monitor)| *monitor)
    }
}

/// One registered probe.
#[derive(Clone, Debug, PartialEq)]
pub struct Sensor {
    /// The unit that it sits in.
    pub unit: UnitKey,
    /// The name in payloads.
    pub id: Box<str>,
    /// Where in the unit it hangs.
    pub placement: Option<String>,
    /// How long a reading of it holds at most.
    pub max_gap_ms: Option<i64>,
    /// When its calibration runs out, as written.
    pub calibration_due: Option<String>,
}

/// Goods in a unit for an interval.
#[derive(Clone, Debug, PartialEq)]
pub struct Consignment {
    /// What people name it by.
    pub id: Box<str>,
    /// The unit that they are in.
    pub unit: UnitKey,
    /// The profile that holds for them; without one, the unit's does.
    pub profile: Option<Box<str>>,
    /// The lot or trace code.
    pub lot: Option<String>,
    /// The instant of loading.
    pub from: Timestamp,
    /// The instant of unloading, if it has come.
    pub to: Option<Timestamp>,
}

impl Consignment {
    /// Returns whether the goods are in the unit at an instant: from loading until just before unloading.
    pub fn is_in_force(&self, at: Timestamp) -> bool {
        self.from <= at && self.to.is_none_or(|to| at < to)
    }
}

/// Everything that is registered: who, what and where.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Registry {
    /// Operators by name.
    pub operators: BTreeMap<Name, Operator>,
    /// Units by operator and name.
    pub units: BTreeMap<UnitKey, Unit>,
    /// Sensors by unit, then by name.
    pub sensors: BTreeMap<UnitKey, BTreeMap<Box<str>, Sensor>>,
    /// Consignments by unit, in the order given.
    pub consignments: BTreeMap<UnitKey, Vec<Consignment>>,
    /// Profiles by id.
    pub profiles: BTreeMap<Box<str>, Profile>,
}

impl Registry {
    /// Returns the registered sensor with this name, if there is one.
    pub fn sensor(&self, unit: &UnitKey, sensor: &str) -> Option<&Sensor> {
        self.sensors.get(unit)?.get(sensor)
    }

    /// Returns what is known about one unit.
    pub fn facts<'a>(&'a self, unit: &'a UnitKey) -> UnitFacts<'a> {
        UnitFacts { unit, undated: self, dated: self }
    }

    /// Returns the consignments in a unit at an instant.
    pub fn consignments_at(&self, unit: &UnitKey, at: Timestamp) -> impl Iterator<Item = &Consignment> {
        self.consignments.get(unit).into_iter().flatten().filter(move |consignment| consignment.is_in_force(at))
    }

    /// Returns the profiles in force in a unit at an instant: those of its consignments, without any the unit's own.
    pub fn profiles_at<'a>(&'a self, unit: &'a UnitKey, at: Timestamp) -> Vec<&'a Profile> {
        self.facts(unit).profiles_at(at)
    }

    /// Returns whether a unit's readings count at an instant; an unregistered unit's always do.
    pub fn is_on_duty(&self, unit: &UnitKey, at: Timestamp) -> bool {
        self.facts(unit).is_on_duty(at)
    }

    /// Returns the earliest instant for which this registry says something else about the goods in a unit, or when it is
    /// monitored, than `other` does; `None` where they agree.
    pub fn first_dated_difference(&self, other: &Self, unit: &UnitKey) -> Option<Timestamp> {
        let goods = |registry: &'_ Self| registry.consignments.get(unit).cloned().unwrap_or_default();
        let monitor =
            |registry: &'_ Self| registry.units.get(unit).map(|unit| unit.monitor.clone()).unwrap_or_default();
        let differs_from = |a: &Self, b: &Self| {
            let (goods_b, monitor_b) = (goods(b), monitor(b));
            let goods = goods(a).into_iter().filter(move |of_a| !goods_b.contains(of_a)).map(|of_a| of_a.from);
            goods
                .chain(monitor(a).into_iter().filter(move |of_a| !monitor_b.contains(of_a)).map(|(from, _)| from))
                .min()
        };
        differs_from(self, other).into_iter().chain(differs_from(other, self)).min()
    }

    /// Returns the instants at which duty, goods or profile of a unit may change, in order, each once.
    pub fn changes_of(&self, unit: &UnitKey) -> Vec<Timestamp> {
        let of_monitor = self.units.get(unit).into_iter().flat_map(|unit| unit.monitor.iter().map(|(from, _)| *from));
        let of_goods = self.consignments.get(unit).into_iter().flatten();
        let of_goods = of_goods.flat_map(|consignment| [Some(consignment.from), consignment.to]).flatten();
        let mut instants: Vec<_> = of_monitor.chain(of_goods).collect();
        instants.sort_unstable();
        instants.dedup();
        instants
    }
}

/// What is known about one unit while one configuration is in force.
///
/// Goods and monitoring are dated: the newest registry tells them for all time, also what was entered late. Everything
/// else holds as the configuration in force says it.
#[derive(Clone, Copy, Debug)]
pub struct UnitFacts<'a> {
    /// Operator and unit.
    pub unit: &'a UnitKey,
    /// The registry of the configuration in force.
    pub undated: &'a Registry,
    /// The newest registry that has the unit.
    pub dated: &'a Registry,
}

impl<'a> UnitFacts<'a> {
    /// Returns the unit as it is registered, if it is.
    pub fn registered(&self) -> Option<&'a Unit> {
        self.undated.units.get(self.unit)
    }

    /// Returns whether it is storage or transport, where that is known.
    pub fn kind(&self) -> Option<UnitKind> {
        self.registered().map(|unit| unit.kind)
    }

    /// Returns the consignments in the unit at an instant.
    pub fn consignments_at(&self, at: Timestamp) -> impl Iterator<Item = &'a Consignment> {
        let consignments = self.dated.consignments.get(self.unit).into_iter().flatten();
        consignments.filter(move |consignment| consignment.is_in_force(at))
    }

    /// Returns the profiles in force at an instant: those of the consignments, without any the unit's own.
    pub fn profiles_at(&self, at: Timestamp) -> Vec<&'a Profile> {
        // A profile may have been entered together with goods that are older than it.
        let profile = |id: &str| self.undated.profiles.get(id).or_else(|| self.dated.profiles.get(id));
        let of_goods: Vec<_> =
            self.consignments_at(at).filter_map(|consignment| profile(consignment.profile.as_deref()?)).collect();
        if !of_goods.is_empty() {
            return of_goods;
        }
        self.registered().and_then(|unit| profile(unit.profile.as_deref()?)).into_iter().collect()
    }

    /// Returns whether readings count at an instant; those of an unregistered unit always do.
    pub fn is_on_duty(&self, at: Timestamp) -> bool {
        let Some(registered) = self.registered() else { return true };
        // What is said without a date holds as long as the configuration that says it.
        let is_dated = |(from, _): &&(Timestamp, Monitor)| *from > Timestamp::MIN;
        let dated = self.dated.units.get(self.unit).into_iter().flat_map(|unit| &unit.monitor);
        let dated = dated.rev().find(|entry| is_dated(entry) && entry.0 <= at);
        let undated = registered.monitor.iter().find(|entry| !is_dated(entry));
        let monitor = dated.or(undated).map_or(Monitor::default_of(registered.kind), |(_, monitor)| *monitor);
        match monitor {
            Monitor::Always => true,
            Monitor::Loaded => self.consignments_at(at).next().is_some(),
            Monitor::Off => false,
        }
    }
}
