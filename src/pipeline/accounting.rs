//! Totals that survive restarts, scraped as one snapshot.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use frostline_core::codec::DeadLetterReason;
use prometheus::core::{Collector, Desc};
use prometheus::proto;

use crate::ledger::CounterKey;

/// Readings taken in, by route.
pub(crate) const RECEIVED: &str = "readings_received";
/// Readings in the history, by route.
pub(crate) const STORED: &str = "readings_stored";
/// Readings that were there already, by route.
pub(crate) const DUPLICATE: &str = "readings_duplicate";
/// Readings that could not be used, by route.
pub(crate) const DEAD_LETTERED: &str = "readings_dead_lettered";
/// Dead letters, by reason.
pub(crate) const DEAD_LETTERS: &str = "dead_letters";
/// Dead letters dropped because their quota was full.
pub(crate) const DEAD_LETTERS_EVICTED: &str = "dead_letters_evicted";
/// Readings older than the newest of their series.
pub(crate) const LATE: &str = "readings_late";
/// Readings that were given their time of arrival.
pub(crate) const SERVER_TIME: &str = "readings_server_time";
/// Messages missing between two sequence numbers.
pub(crate) const SEQUENCE_GAPS: &str = "sequence_gaps";
/// Messages with a sequence number that had come already.
pub(crate) const SEQUENCE_REPEATS: &str = "sequence_repeats";
/// Messages with a `seq` that is not an unsigned integer.
pub(crate) const SEQUENCE_INVALID: &str = "sequence_invalid";
/// Messages that are no readings and no errors either, by reason.
pub(crate) const MESSAGES_IGNORED: &str = "messages_ignored";
/// Times that a device's clock was found to have been set.
pub(crate) const CLOCK_JUMPS: &str = "clock_jumps";
/// Units whose late readings were judged.
pub(crate) const REJUDGED_UNITS: &str = "rejudged_units";
/// Readings judged once more for that.
pub(crate) const REJUDGED_READINGS: &str = "rejudged_readings";
/// Revisions of alerts that had been told, by reason.
pub(crate) const AMENDMENTS: &str = "amendments";
/// Transitions told, by state.
pub(crate) const ALERTS_TOLD: &str = "alerts_told";

/// Every total: its name, the name of its label (none for a plain one), and what it counts.
const TOTALS: [(&str, Option<&str>, &str); 17] = [
    (RECEIVED, Some("route"), "Readings decoded; a message that cannot be decoded counts as one"),
    (STORED, Some("route"), "Readings accepted into the history"),
    (DUPLICATE, Some("route"), "Readings equal to one already accepted for their series and millisecond"),
    (DEAD_LETTERED, Some("route"), "Readings that could not be used and are in the dead letters"),
    (DEAD_LETTERS, Some("reason"), "Dead letters written"),
    (DEAD_LETTERS_EVICTED, None, "Dead letters dropped because their quota was full"),
    (LATE, None, "Readings accepted that are older than the newest of their series"),
    (SERVER_TIME, None, "Readings without a time, which were given their time of arrival"),
    (SEQUENCE_GAPS, None, "Messages missing between two sequence numbers of a unit"),
    (SEQUENCE_REPEATS, None, "Messages with a sequence number that their unit had used before"),
    (SEQUENCE_INVALID, None, "Messages whose sequence number is not an unsigned integer"),
    (MESSAGES_IGNORED, Some("reason"), "Messages that are neither readings nor errors"),
    (CLOCK_JUMPS, None, "Times that the clock of a unit's device was found to have been set by more than a minute"),
    (REJUDGED_UNITS, None, "Times that a unit was judged again because of what came late"),
    (REJUDGED_READINGS, None, "Readings judged once more for that"),
    (AMENDMENTS, Some("reason"), "Revisions of alerts after they had been told"),
    (ALERTS_TOLD, Some("state"), "Transitions of alerts told"),
];

/// Totals by name and label.
pub type Totals = BTreeMap<(String, String), u64>;

/// The accounting terms of one route, or of all together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Terms {
    /// Readings decoded; a message that cannot be decoded counts as one.
    pub received: u64,
    /// Readings in the history.
    pub stored: u64,
    /// Readings that were there already.
    pub duplicate: u64,
    /// Readings that could not be used.
    pub dead_lettered: u64,
    /// Readings received and not yet any of these.
    pub in_flight: u64,
}

impl std::iter::Sum for Terms {
    fn sum<I: Iterator<Item = Self>>(terms: I) -> Self {
        terms.fold(Self::default(), |a, b| Self {
            received: a.received + b.received,
            stored: a.stored + b.stored,
            duplicate: a.duplicate + b.duplicate,
            dead_lettered: a.dead_lettered + b.dead_lettered,
            in_flight: a.in_flight + b.in_flight,
        })
    }
}

/// The totals as of the ledger's last commit; clones share them.
#[derive(Debug, Clone, Default)]
pub struct Accounting {
    totals: Arc<Mutex<Totals>>,
    /// How many units' clocks are ahead; unlike the totals it may fall again.
    units_clock_ahead: Arc<AtomicU64>,
    /// How many units wait to be judged again.
    units_dirty: Arc<AtomicU64>,
}

impl Accounting {
    /// Returns the totals of one moment.
    pub fn totals(&self) -> Totals {
        self.lock().clone()
    }

    /// Returns the accounting terms over all routes.
    pub fn terms(&self) -> Terms {
        self.routes().into_values().sum()
    }

    /// Returns the accounting terms of each route, all of one moment.
    pub fn routes(&self) -> BTreeMap<String, Terms> {
        terms_by_route(&self.totals())
    }

    pub(crate) fn replace(&self, mut totals: Totals) {
        for reason in DeadLetterReason::ALL {
            totals.entry((DEAD_LETTERS.to_owned(), reason.as_str().to_owned())).or_default();
        }
        *self.lock() = totals;
    }

    /// Shows every term of these routes from now on, also while it is zero: what is absent cannot be added up.
    pub(crate) fn show_routes<'a>(&self, routes: impl Iterator<Item = &'a str>) {
        let mut totals = self.lock();
        routes.for_each(|route| show_terms(&mut totals, route));
    }

    pub(crate) fn add(&self, growth: &BTreeMap<CounterKey, u64>) {
        let mut totals = self.lock();
        for ((name, label), value) in growth {
            if *name == RECEIVED {
                show_terms(&mut totals, label);
            }
            *totals.entry(((*name).to_owned(), label.clone())).or_default() += value;
        }
    }

    pub(crate) fn show_units_clock_ahead(&self, units: usize) {
        self.units_clock_ahead.store(units as u64, Ordering::Relaxed);
    }

    pub(crate) fn show_units_dirty(&self, units: usize) {
        self.units_dirty.store(units as u64, Ordering::Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, Totals> {
        self.totals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn show_terms(totals: &mut Totals, route: &str) {
    for name in [RECEIVED, STORED, DUPLICATE, DEAD_LETTERED] {
        totals.entry((name.to_owned(), route.to_owned())).or_default();
    }
}

fn terms_by_route(totals: &Totals) -> BTreeMap<String, Terms> {
    let get = |name: &str, route: &str| totals.get(&(name.to_owned(), route.to_owned())).copied().unwrap_or(0);
    let routes = totals.keys().filter(|(name, _)| name == RECEIVED).map(|(_, route)| {
        let received = get(RECEIVED, route);
        let (stored, duplicate, dead_lettered) = (get(STORED, route), get(DUPLICATE, route), get(DEAD_LETTERED, route));
        let in_flight = received.saturating_sub(stored + duplicate + dead_lettered);
        (route.clone(), Terms { received, stored, duplicate, dead_lettered, in_flight })
    });
    routes.collect()
}

/// Shows the totals to Prometheus: one lock, so one scrape sees one commit.
impl Collector for Accounting {
    fn desc(&self) -> Vec<&Desc> {
        Vec::new()
    }

    fn collect(&self) -> Vec<proto::MetricFamily> {
        let totals = self.totals();
        let mut families: Vec<proto::MetricFamily> =
            TOTALS.iter().map(|(name, label, help)| total_family(&totals, name, *label, help)).collect();
        let mut in_flight = family("frostline_readings_in_flight", "Readings received and not yet accounted for", true);
        for (route, terms) in terms_by_route(&totals) {
            in_flight.mut_metric().push(sample(Some(("route", &route)), terms.in_flight, true));
        }
        families.push(in_flight);
        let mut ahead = family("frostline_units_clock_ahead", "Units whose device's clock is ahead", true);
        ahead.mut_metric().push(sample(None, self.units_clock_ahead.load(Ordering::Relaxed), true));
        families.push(ahead);
        let mut dirty = family("frostline_units_dirty", "Units with late readings that are still to be judged", true);
        dirty.mut_metric().push(sample(None, self.units_dirty.load(Ordering::Relaxed), true));
        families.push(dirty);
        families.retain(|family| !family.get_metric().is_empty());
        families
    }
}

fn total_family(totals: &Totals, name: &str, label: Option<&str>, help: &str) -> proto::MetricFamily {
    let mut family = family(&format!("frostline_{name}_total"), help, false);
    for ((other, value_of_label), value) in totals {
        if other == name {
            family.mut_metric().push(sample(label.map(|label| (label, value_of_label.as_str())), *value, false));
        }
    }
    if label.is_none() && family.get_metric().is_empty() {
        family.mut_metric().push(sample(None, 0, false));
    }
    family
}

fn family(name: &str, help: &str, gauge: bool) -> proto::MetricFamily {
    let mut family = proto::MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(if gauge { proto::MetricType::GAUGE } else { proto::MetricType::COUNTER });
    family
}

fn sample(label: Option<(&str, &str)>, value: u64, gauge: bool) -> proto::Metric {
    let mut metric = proto::Metric::default();
    if let Some((name, text)) = label {
        let mut pair = proto::LabelPair::default();
        pair.set_name(name.to_owned());
        pair.set_value(text.to_owned());
        metric.set_label(vec![pair]);
    }
    if gauge {
        let mut gauge = proto::Gauge::default();
        gauge.set_value(value as f64);
        metric.set_gauge(gauge);
    } else {
        let mut counter = proto::Counter::default();
        counter.set_value(value as f64);
        metric.set_counter(counter);
    }
    metric
}
