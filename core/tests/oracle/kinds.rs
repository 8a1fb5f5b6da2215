//! The kinds of rules, one function each.

use std::collections::BTreeSet;

use frostline_core::model::{Limits, SeriesKey};
use frostline_core::rules::{Condition, LimitSource, SilenceScope, Suspension, Window};

use super::band::{Band, Class, Piece};
use super::view::{Seen, View, known_ms};
use super::{Coverage, Episode, rounded};

type Judged = Vec<(Option<Box<str>>, Vec<Episode>)>;

/// Returns the episodes of one version of a rule in one unit, by sensor.
pub(super) fn judge(view: &View<'_>, coverage: &mut Coverage) -> Judged {
    match view.rule.condition {
        Condition::Silence { scope: SilenceScope::Unit } => return vec![(None, unit_silence(view, coverage))],
        Condition::Silence { scope: SilenceScope::Sensor } => return sensor_silences(view, coverage),
        Condition::Disagreement { .. } => return vec![(None, disagreement(view, coverage))],
        _ => {}
    }
    let mut judged = Vec::new();
    for series in view.series_of(view.rule.quantity) {
        if !view.takes_sensor(&series.sensor) {
            continue;
        }
        let seen = view.seen(series);
        let episodes = match view.rule.condition {
            Condition::Range { suspend_while, .. } => range(view, series, &seen, suspend_while, coverage),
            Condition::State { is, .. } => state(view, series, &seen, is, coverage),
            Condition::Rate { per_ms, rise, fall, .. } => rate(view, series, &seen, per_ms, (rise, fall), coverage),
            Condition::MeanKineticTemperature { .. } => mean_kinetic_temperature(view, series, &seen, coverage),
            Condition::Cumulative { limits, window, budget_ms } => {
                cumulative(view, series, &seen, limits, window, budget_ms, coverage)
            }
            Condition::Cadence { .. } => cadence(view, series, &seen, coverage),
            Condition::Stuck { min_readings } => stuck(view, series, &seen, min_readings, coverage),
            Condition::Silence { .. } | Condition::Disagreement { .. } => unreachable!("judged above"),
        };
        judged.push((Some(series.sensor.clone()), episodes));
    }
    judged
}

fn is_outside(limits: Limits, value: f64) -> bool {
    limits.low.is_some_and(|low| rounded(value) < rounded(low))
        || limits.high.is_some_and(|high| rounded(value) > rounded(high))
}

fn is_within_by(limits: Limits, hysteresis: f64, value: f64) -> bool {
    limits.low.is_none_or(|low| rounded(low) + rounded(hysteresis) <= rounded(value))
        && limits.high.is_none_or(|high| rounded(value) <= rounded(high) - rounded(hysteresis))
}

fn distance_outside(limits: Limits, value: f64) -> i64 {
    let below = limits.low.map_or(i64::MIN, |low| rounded(low) - rounded(value));
    let above = limits.high.map_or(i64::MIN, |high| rounded(value) - rounded(high));
    below.max(above)
}

fn class_of(is_out: bool, is_clear: bool) -> Class {
    if is_out {
        Class::Out
    } else if is_clear {
        Class::Clear
    } else {
        Class::Neither
    }
}

/// Makes a piece of each reading by its value; a failed probe stays one.
fn pieces(seen: &[Seen], of_value: impl Fn(&Seen, f64) -> Piece) -> Vec<Piece> {
    let piece = |reading: &Seen| {
        let null = Piece {
            time: reading.time,
            known_until: reading.time,
            class: Class::Null,
            fires_at_once: false,
            outside: None,
        };
        reading.value.map_or(null, |value| of_value(reading, value))
    };
    seen.iter().map(piece).collect()
}

fn piece(reading: &Seen, class: Class, outside: Option<(i64, f64)>) -> Piece {
    Piece { time: reading.time, known_until: reading.known_until, class, fires_at_once: false, outside }
}

fn judge_band(view: &View<'_>, series: &[&SeriesKey], pieces: &[Piece], coverage: &mut Coverage) -> Vec<Episode> {
    let keep_firing_for_ms = view.rule.keep_firing_for_ms();
    Band { view, pieces, suspended: &[], keep_firing_for_ms, end: view.end(series) }.judge(coverage)
}

fn range(
    view: &View<'_>,
    series: &SeriesKey,
    seen: &[Seen],
    suspend_while: Option<Suspension>,
    coverage: &mut Coverage,
) -> Vec<Episode> {
    let Condition::Range { limits, hysteresis, keep_firing_for_ms, never_below, never_above, .. } = view.rule.condition
    else {
        unreachable!("the rule is a range");
    };
    let mut has_crossed_limits = false;
    let mut has_advisory = false;
    let pieces = pieces(seen, |reading, value| {
        let limits = match limits {
            LimitSource::Fixed(limits) => Some(limits),
            LimitSource::Profile => view.profile_limits(view.rule.quantity, reading.time),
        };
        let Some(limits) = limits else { return piece(reading, Class::Neither, None) };
        let never = Limits { low: never_below, high: never_above };
        let fires_at_once = is_outside(never, value);
        let is_out = fires_at_once || is_outside(limits, value);
        let class = class_of(is_out, is_within_by(limits, hysteresis, value));
        Piece { fires_at_once, ..piece(reading, class, Some((distance_outside(limits, value), value))) }
    });
    for reading in seen.iter().filter(|reading| reading.value.is_some()) {
        let limits = view.profile_limits(view.rule.quantity, reading.time);
        has_crossed_limits |= limits.is_some_and(|l| l.low.zip(l.high).is_some_and(|(low, high)| low > high));
        has_advisory |= limits.is_none() && view.earliest_loading(reading.time).is_some();
    }
    let by_profile = limits == LimitSource::Profile;
    coverage.note("goods whose limits exclude each other", by_profile && has_crossed_limits);
    coverage.note("goods without limits for the quantity", by_profile && has_advisory);

    let mut looked_at = vec![series];
    let mut suspended = Vec::new();
    if let Some(suspension) = suspend_while {
        looked_at.extend(view.series_of(suspension.quantity));
        suspended = suspensions(view, suspension, view.end(&looked_at), coverage);
    }
    let end = view.end(&looked_at);
    Band { view, pieces: &pieces, suspended: &suspended, keep_firing_for_ms, end }.judge(coverage)
}

/// Returns the stretches in which a rule is suspended.
fn suspensions(view: &View<'_>, suspension: Suspension, end: i64, coverage: &mut Coverage) -> Vec<(i64, i64)> {
    let now = view.world.now;
    let mut stretches = Vec::new();
    for series in view.series_of(suspension.quantity) {
        for reading in view.seen(series) {
            if reading.value.is_some_and(|value| rounded(value) == rounded(suspension.is)) {
                // Up to now, whether it goes on holding does not matter yet; beyond now it does not.
                let hold_end = if end > now { reading.known_until } else { reading.holds_until };
                stretches.push((reading.time, hold_end + suspension.plus_ms));
            }
        }
    }
    stretches.sort_unstable();
    let mut occurrences: Vec<(i64, i64)> = Vec::new();
    for (from, to) in stretches {
        match occurrences.last_mut() {
            Some((_, last_to)) if from <= *last_to => {
                coverage.note("suspensions merged into one", true);
                coverage.note("suspensions that only touch", from == *last_to);
                *last_to = to.max(*last_to);
            }
            _ => occurrences.push((from, to)),
        }
    }
    for (from, to) in &mut occurrences {
        coverage.note("a suspension cut off by `at_most`", *to > *from + suspension.at_most_ms);
        *to = (*to).min(*from + suspension.at_most_ms);
    }
    occurrences
}

fn state(view: &View<'_>, series: &SeriesKey, seen: &[Seen], is: f64, coverage: &mut Coverage) -> Vec<Episode> {
    let pieces = pieces(seen, |reading, value| {
        let is_out = rounded(value) == rounded(is);
        piece(reading, class_of(is_out, true), None)
    });
    judge_band(view, &[series], &pieces, coverage)
}

fn rate(
    view: &View<'_>,
    series: &SeriesKey,
    seen: &[Seen],
    per_ms: i64,
    (rise, fall): (Option<f64>, Option<f64>),
    coverage: &mut Coverage,
) -> Vec<Episode> {
    let pieces = pieces(seen, |reading, value| {
        let window = seen.iter().filter(|other| reading.time - per_ms <= other.time && other.time <= reading.time);
        let values: Vec<i64> = window.filter_map(|other| other.value).map(rounded).collect();
        let lowest = values.iter().min().expect("the reading itself is among them");
        let highest = values.iter().max().expect("the reading itself is among them");
        let risen = rise.map(|rise| (rounded(value) - lowest, rounded(rise)));
        let fallen = fall.map(|fall| (highest - rounded(value), rounded(fall)));
        let is_out = [risen, fallen].into_iter().flatten().any(|(difference, limit)| difference >= limit);
        let largest = [risen, fallen].into_iter().flatten().map(|(difference, _)| difference).max();
        piece(reading, class_of(is_out, true), largest.map(|largest| (largest, largest as f64 / 1e6)))
    });
    let has_edge = seen.iter().any(|a| a.value.is_some() && seen.iter().any(|b| a.time + per_ms == b.time));
    coverage.note("a reading at the edge of a window", has_edge);
    let is_out = pieces.iter().any(|piece| piece.class == Class::Out);
    coverage.note("a rate in both directions", rise.is_some() && fall.is_some() && is_out);
    judge_band(view, &[series], &pieces, coverage)
}

fn mean_kinetic_temperature(
    view: &View<'_>,
    series: &SeriesKey,
    seen: &[Seen],
    coverage: &mut Coverage,
) -> Vec<Episode> {
    let Condition::MeanKineticTemperature { window, high, hysteresis, delta_h, min_known_ms, .. } = view.rule.condition
    else {
        unreachable!("the rule is a mean kinetic temperature");
    };
    // In J/mol and J/(mol·K).
    let activation_kelvin = delta_h * 1000.0 / 8.3144;
    let pieces = pieces(seen, |reading, _| {
        let t = reading.time;
        if !view.applies(t) {
            // It counts for a mean later on, and is itself not judged.
            return Piece { known_until: t, ..piece(reading, Class::Null, None) };
        }
        let (from, least_tenths) = match window {
            Window::Rolling(window_ms) => (t - window_ms, min_known_ms.map_or(window_ms, |known_ms| 10 * known_ms)),
            Window::Consignment => {
                let loaded_at = view.earliest_loading(t).expect("without goods the rule does not apply");
                (loaded_at, min_known_ms.map_or(t - loaded_at, |known_ms| 10 * known_ms))
            }
        };
        let (mut weight, mut sum) = (0, 0.0);
        for held in seen {
            let Some(celsius) = held.value else { continue };
            let held_ms = known_ms(&[*held], from, t, |_| true);
            weight += held_ms;
            sum += held_ms as f64 * (-activation_kelvin / (celsius + 273.15)).exp();
        }
        if weight == 0 || 10 * weight < least_tenths {
            return piece(reading, Class::Neither, None);
        }
        let kelvin = activation_kelvin / -(sum / weight as f64).ln();
        let celsius = ((kelvin - 273.15) * 1000.0).round() / 1000.0;
        let limits = Limits { low: None, high: Some(high) };
        let class = class_of(is_outside(limits, celsius), is_within_by(limits, hysteresis, celsius));
        piece(reading, class, Some((distance_outside(limits, celsius), celsius)))
    });
    let episodes = judge_band(view, &[series], &pieces, coverage);
    let is_unknown = |piece: &Piece| piece.class == Class::Neither && piece.outside.is_none();
    let is_within = |at: i64, episode: &Episode| episode.fired_at < at && episode.resolved_at.is_none_or(|to| at < to);
    coverage.note(
        "an unknown mean while firing",
        pieces.iter().filter(|piece| is_unknown(piece)).any(|p| episodes.iter().any(|e| is_within(p.time, e))),
    );
    episodes
}

fn disagreement(view: &View<'_>, coverage: &mut Coverage) -> Vec<Episode> {
    let Condition::Disagreement { limit, hysteresis, .. } = view.rule.condition else {
        unreachable!("the rule is a disagreement");
    };
    let mut series = view.series_of(view.rule.quantity);
    series.retain(|series| view.takes_sensor(&series.sensor));
    let seen: Vec<Vec<Seen>> = series.iter().map(|series| view.seen(series)).collect();
    let now = view.world.now;
    let mut last_count = 0;
    let mut last_distance = None;
    // The distance is a step function; to repeat a step changes nothing, so there is one for every millisecond.
    let mut pieces = Vec::new();
    for at in 0..=view.end(&series) {
        let holding: Vec<&Seen> = seen.iter().flatten().filter(|reading| reading.holds_at(at, now)).collect();
        let is_known = holding.iter().filter(|reading| at < reading.known_until).count() >= 2;
        let values = || holding.iter().filter_map(|reading| reading.value);
        let distance = match (values().reduce(f64::max), values().reduce(f64::min)) {
            (Some(highest), Some(lowest)) if holding.len() >= 2 => Some(rounded(highest) - rounded(lowest)),
            _ => None,
        };
        let a_hold_ended = holding.len() < last_count && distance.is_some() && distance != last_distance;
        coverage.note("a distance changed by the end of a hold", a_hold_ended);
        (last_count, last_distance) = (holding.len(), distance);
        let limits = Limits { low: None, high: Some(limit) };
        let class = distance.map_or(Class::Null, |distance| {
            let distance = distance as f64 / 1e6;
            class_of(is_outside(limits, distance), is_within_by(limits, hysteresis, distance))
        });
        pieces.push(Piece {
            time: at,
            known_until: if is_known && distance.is_some() { at + 1 } else { at },
            class,
            fires_at_once: false,
            outside: distance.map(|distance| (distance - rounded(limit), distance as f64 / 1e6)),
        });
    }
    let keep_firing_for_ms = view.rule.keep_firing_for_ms();
    Band { view, pieces: &pieces, suspended: &[], keep_firing_for_ms, end: view.end(&series) }.judge(coverage)
}

fn cumulative(
    view: &View<'_>,
    series: &SeriesKey,
    seen: &[Seen],
    limits: Limits,
    window: Window,
    budget_ms: i64,
    coverage: &mut Coverage,
) -> Vec<Episode> {
    let is_out = |reading: &Seen| reading.value.is_some_and(|value| is_outside(limits, value));
    let window_start = |facts_at: i64, at: i64| match window {
        Window::Rolling(window_ms) => at - window_ms,
        Window::Consignment => view.earliest_loading(facts_at).unwrap_or(at),
    };
    let out_ms = |facts_at: i64, at: i64| known_ms(seen, window_start(facts_at, at), at, is_out);
    // Whether right after an instant the budget is not used up any more: an out millisecond leaves the window, and none
    // comes in. At the last instant there is no after yet.
    let falls_after = |at: i64, end: i64| match window {
        Window::Rolling(_) => at < end && out_ms(at, at + 1) < budget_ms,
        Window::Consignment => false,
    };
    let episode = |started_at: i64, resolved_at: Option<i64>| Episode {
        started_at,
        fired_at: started_at,
        resolved_at,
        extreme: None,
        excursion_and_unmonitored_ms: None,
    };
    let end = view.end(&[series]);
    let mut episodes = Vec::new();
    let mut firing: Option<i64> = None;
    for at in 0..=end {
        if at > 0 && view.applies(at - 1) && firing.is_none() && out_ms(at - 1, at) >= budget_ms {
            firing = Some(at);
        }
        if view.until == Some(at) || !view.applies(at) {
            coverage.note("the end of duty while firing", firing.is_some() && view.until != Some(at));
            coverage.note("a budget reached at the end of duty", firing == Some(at));
            episodes.extend(firing.take().map(|started_at| episode(started_at, Some(at))));
            continue;
        }
        let now_ms = out_ms(at, at);
        if firing.is_none() && now_ms >= budget_ms {
            coverage.note("a budget still used up when duty begins", at > 0 && !view.applies(at - 1));
            firing = Some(at);
        }
        if firing.is_some() && (now_ms < budget_ms || falls_after(at, end)) {
            coverage.note("goods unloaded while others stay, and the budget with them", now_ms < budget_ms);
            coverage.note("an episode of no length", firing == Some(at));
            episodes.extend(firing.take().map(|started_at| episode(started_at, Some(at))));
        }
        coverage
            .note("a budget used up exactly and no more", firing.is_some_and(|from| from < at && now_ms == budget_ms));
    }
    episodes.extend(firing.map(|started_at| episode(started_at, None)));
    episodes
}

/// Steps through the silence of a sensor or of a unit, given since when there has been no sign of life and how long
/// one would have held.
fn silence(
    view: &View<'_>,
    newest: i64,
    last_sign_of_life: impl Fn(i64) -> Option<i64>,
    max_gap_ms: impl Fn(i64) -> i64,
    coverage: &mut Coverage,
) -> Vec<Episode> {
    let end = newest.max(view.world.now);
    // A silence has no reading at which `where` could be looked at, so it is that at the last one, or where duty or the
    // version began since; and it ends where that stops.
    let is_silent = |at: i64| {
        if view.until.is_some_and(|until| at >= until) {
            return false;
        }
        let Some(alive_at) = last_sign_of_life(at) else { return false };
        let mut since = view.from.map_or(alive_at, |from| alive_at.max(from));
        let mut duty_start = at;
        while duty_start > since && view.is_on_duty(duty_start - 1) {
            duty_start -= 1;
        }
        since = since.max(duty_start);
        at >= since + max_gap_ms(since) && (since..=at).all(|instant| view.applies(instant))
    };
    let mut episodes = Vec::new();
    let mut at = 0;
    while at <= end {
        if !is_silent(at) {
            at += 1;
            continue;
        }
        let started_at = at;
        while at <= end && is_silent(at) {
            at += 1;
        }
        let resolved_at = (at <= end).then_some(at);
        let known_ms = resolved_at.unwrap_or(view.world.now) - started_at;
        coverage.note("a silence as long as `for` exactly", view.rule.for_ms > 0 && known_ms == view.rule.for_ms);
        if known_ms >= view.rule.for_ms {
            coverage.note("a silence that ended", resolved_at.is_some());
            episodes.push(Episode {
                started_at,
                fired_at: started_at + view.rule.for_ms,
                resolved_at,
                extreme: None,
                excursion_and_unmonitored_ms: None,
            });
        }
    }
    episodes
}

/// Returns when a sensor was registered, if it is at an instant.
fn registered_at(view: &View<'_>, sensor: &str, at: i64) -> Option<i64> {
    let has = |registry: &frostline_core::model::Registry| {
        registry.sensors.get(view.unit).is_some_and(|sensors| sensors.contains_key(sensor))
    };
    let first = view.world.eras.iter().find(|era| has(&era.registry))?;
    (first.loaded_at <= at && has(&view.world.era_at(at).registry)).then_some(first.loaded_at)
}

fn registered_sensors(view: &View<'_>) -> BTreeSet<Box<str>> {
    let all = view.world.eras.iter().filter_map(|era| era.registry.sensors.get(view.unit));
    all.flat_map(|sensors| sensors.keys().cloned()).collect()
}

fn sensor_silences(view: &View<'_>, coverage: &mut Coverage) -> Judged {
    let series = view.series_of(view.rule.quantity);
    let of_other_kinds: BTreeSet<&str> = view
        .world
        .readings
        .keys()
        .filter(|s| s.unit == *view.unit && s.kind != view.rule.quantity)
        .map(|s| &*s.sensor)
        .collect();
    let mut sensors = registered_sensors(view);
    // A sensor that measures something else is not expected to measure this, too.
    sensors.retain(|sensor| !of_other_kinds.contains(&**sensor));
    sensors.extend(series.iter().map(|series| series.sensor.clone()));
    sensors.retain(|sensor| view.takes_sensor(sensor));
    let mut judged = Vec::new();
    for sensor in sensors {
        let key = series.iter().find(|series| series.sensor == sensor);
        let readings = key.map_or(&[][..], |key| &view.world.readings[*key]);
        let alive: Vec<i64> = readings
            .iter()
            .filter(|(time, value)| value.is_some() && view.is_on_duty(*time))
            .map(|(time, _)| *time)
            .collect();
        let newest = alive.last().copied().unwrap_or(0);
        let episodes = silence(
            view,
            newest,
            |at| alive.iter().rev().copied().find(|time| *time <= at).or_else(|| registered_at(view, &sensor, at)),
            |at| view.max_gap_ms(Some(&sensor), at),
            coverage,
        );
        let before_any = |e: &Episode| alive.first().is_none_or(|first| e.started_at < *first);
        coverage.note("a sensor registered and never seen", episodes.iter().any(before_any));
        judged.push((Some(sensor), episodes));
    }
    judged
}

fn unit_silence(view: &View<'_>, coverage: &mut Coverage) -> Vec<Episode> {
    // Any reading of any kind counts, a failed probe's too: it shows that the link is up.
    let in_unit = view.world.readings.iter().filter(|(series, _)| series.unit == *view.unit);
    let mut signs: Vec<(i64, &str)> =
        in_unit.flat_map(|(series, readings)| readings.iter().map(|(time, _)| (*time, &*series.sensor))).collect();
    signs.sort_unstable();
    let newest = signs.last().map_or(0, |(time, _)| *time);
    let sensors = registered_sensors(view);
    silence(
        view,
        newest,
        |at| {
            let last = signs.iter().rev().map(|(time, _)| *time).find(|time| *time <= at);
            last.or_else(|| sensors.iter().filter_map(|sensor| registered_at(view, sensor, at)).min())
        },
        // It is no one sensor's, so no sensor's figure is taken.
        |at| view.max_gap_ms(None, at),
        coverage,
    )
}

fn cadence(view: &View<'_>, series: &SeriesKey, seen: &[Seen], coverage: &mut Coverage) -> Vec<Episode> {
    let Condition::Cadence { every_ms, every_out_ms, share, window_ms } = view.rule.condition else {
        unreachable!("the rule is a cadence");
    };
    let made: Vec<&Seen> = seen.iter().filter(|reading| reading.value.is_some()).collect();
    let Some(first) = made.first().map(|reading| reading.time) else { return Vec::new() };
    let is_out_at = |at: i64| {
        let last = made.iter().rev().find(|reading| reading.time <= at).expect("windows begin after the first");
        let limits = view.profile_limits(series.kind, last.time);
        last.value.zip(limits).is_some_and(|(value, limits)| is_outside(limits, value))
    };
    let fails = |start: i64, end: i64| {
        let made = made.iter().filter(|reading| start <= reading.time && reading.time < end).count() as i128;
        let out_ms = (start..end).filter(|at| every_out_ms.is_some() && is_out_at(*at)).count() as i128;
        let in_ms = i128::from(end - start) - out_ms;
        let (every, every_out) = (i128::from(every_ms), i128::from(every_out_ms.unwrap_or(1)));
        // made < share × (in ÷ every + out ÷ every_out), in whole numbers.
        let share_micro = i128::from(rounded(share));
        made * 1_000_000 * every * every_out < share_micro * (in_ms * every_out + out_ms * every)
    };
    let mut episodes = Vec::new();
    // The start of the first failed window in a row.
    let mut firing: Option<i64> = None;
    let episode = |started_at: i64, resolved_at: Option<i64>| Episode {
        started_at,
        fired_at: started_at + window_ms,
        resolved_at,
        extreme: None,
        excursion_and_unmonitored_ms: None,
    };
    for at in 0..=view.end(&[series]) {
        let start = at - window_ms;
        if at % window_ms == 0 && start >= first && at <= view.world.now {
            if (start..at).all(|instant| view.applies(instant)) {
                if fails(start, at) {
                    coverage.note("a second failed window in a row", firing.is_some());
                    firing = firing.or(Some(start));
                } else {
                    coverage.note("a failed window and then a kept one", firing.is_some());
                    episodes.extend(firing.take().map(|started_at| episode(started_at, Some(start))));
                }
            } else {
                coverage.note("a window that is not judged", true);
            }
        }
        if view.until == Some(at) || !view.applies(at) {
            coverage.note("the end of duty while firing", firing.is_some() && view.until != Some(at));
            episodes.extend(firing.take().map(|started_at| episode(started_at, Some(at))));
        }
    }
    episodes.extend(firing.map(|started_at| episode(started_at, None)));
    episodes
}

fn stuck(
    view: &View<'_>,
    series: &SeriesKey,
    seen: &[Seen],
    min_readings: u32,
    coverage: &mut Coverage,
) -> Vec<Episode> {
    struct Run {
        value: i64,
        first: i64,
        readings: u32,
        fired_at: Option<i64>,
        nulls: u32,
    }
    let mut episodes = Vec::new();
    let mut run: Option<Run> = None;
    let mut finish = |run: Option<Run>, resolved_at: Option<i64>| {
        let Some(Run { first: started_at, fired_at: Some(fired_at), .. }) = run else { return };
        episodes.push(Episode { started_at, fired_at, resolved_at, extreme: None, excursion_and_unmonitored_ms: None });
    };
    for at in 0..=view.end(&[series]) {
        if view.until == Some(at) || !view.applies(at) {
            finish(run.take(), Some(at));
            continue;
        }
        let Some(reading) = seen.iter().find(|reading| reading.time == at) else { continue };
        let Some(value) = reading.value.map(rounded) else {
            run.iter_mut().for_each(|run| run.nulls += 1);
            continue;
        };
        if run.as_ref().is_some_and(|run| run.value != value) {
            finish(run.take(), Some(at));
        }
        let run = run.get_or_insert(Run { value, first: at, readings: 0, fired_at: None, nulls: 0 });
        run.readings += 1;
        if run.fired_at.is_none() && at - run.first >= view.rule.for_ms && run.readings >= min_readings {
            coverage.note("stuck across a null", run.nulls > 0);
            coverage.note("stuck for `for` exactly", at - run.first == view.rule.for_ms && run.first < at);
            run.fired_at = Some(at);
        }
    }
    finish(run, None);
    episodes
}
