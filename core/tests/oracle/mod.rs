//! A second implementation of the rules, obvious and slow: it steps through every millisecond.

pub(crate) mod stories;

use stories::{Kind, Story};

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Episode {
    pub(crate) started_at: i64,
    pub(crate) fired_at: i64,
    pub(crate) resolved_at: Option<i64>,
    pub(crate) extreme: Option<f64>,
}

/// Which of the awkward cases a story had.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Coverage {
    pub(crate) tie_at_for: bool,
    pub(crate) null_while_pending: bool,
    pub(crate) gap_while_firing: bool,
    pub(crate) duty_end_while_firing: bool,
    pub(crate) band_while_firing: bool,
}

fn rounded(value: f64) -> f64 {
    (value * 1e6).round()
}

fn is_on_duty(story: &Story, at: i64) -> bool {
    story.duty.iter().rev().find(|(from, _)| *from <= at).is_none_or(|(_, on)| *on)
}

fn is_out(kind: Kind, value: f64) -> bool {
    match kind {
        Kind::Range { low, high, .. } => {
            low.is_some_and(|low| rounded(value) < rounded(low))
                || high.is_some_and(|high| rounded(value) > rounded(high))
        }
        Kind::State { is } => rounded(value) == rounded(is),
        Kind::Silence => unreachable!(),
    }
}

fn is_clear(kind: Kind, value: f64) -> bool {
    match kind {
        Kind::Range { low, high, hysteresis } => {
            low.is_none_or(|low| rounded(low) + rounded(hysteresis) <= rounded(value))
                && high.is_none_or(|high| rounded(value) <= rounded(high) - rounded(hysteresis))
        }
        Kind::State { .. } => !is_out(kind, value),
        Kind::Silence => unreachable!(),
    }
}

fn distance_outside(kind: Kind, value: f64) -> f64 {
    let Kind::Range { low, high, .. } = kind else { unreachable!() };
    let below = low.map_or(f64::NEG_INFINITY, |low| rounded(low) - rounded(value));
    let above = high.map_or(f64::NEG_INFINITY, |high| rounded(value) - rounded(high));
    below.max(above)
}

/// Returns the episodes of a story.
pub(crate) fn judge(story: &Story, coverage: &mut Coverage) -> Vec<Episode> {
    match story.kind {
        Kind::Silence => judge_silence(story),
        Kind::Range { .. } | Kind::State { .. } => judge_band(story, coverage),
    }
}

/// Returns the reading that holds throughout the millisecond from `at` on.
fn held(story: &Story, at: i64) -> Option<f64> {
    let index = story.readings.iter().rposition(|(time, _)| *time <= at)?;
    let (time, value) = story.readings[index];
    let is_newest = index + 1 == story.readings.len();
    let is_over = at >= time + story.max_gap_ms || is_newest && at >= story.now;
    let was_on_duty_throughout = (time..=at).all(|instant| is_on_duty(story, instant));
    value.filter(|_| !is_over && was_on_duty_throughout)
}

fn judge_band(story: &Story, coverage: &mut Coverage) -> Vec<Episode> {
    #[derive(Clone, Copy)]
    enum State {
        Inactive,
        Pending { since: i64 },
        Firing { since: i64, fired_at: i64, clear_since: Option<i64> },
    }
    let kind = story.kind;
    let newest = story.readings.last().map_or(0, |(time, _)| *time);
    let known = |from: i64, to: i64| (from..to).filter(|at| held(story, *at).is_some()).count() as i64;
    let extreme = |from: i64, to: i64| {
        matches!(kind, Kind::Range { .. }).then(|| {
            let counted = story.readings.iter().filter(|(time, _)| from <= *time && (*time < to || *time == from));
            let values = counted.filter(|(time, _)| is_on_duty(story, *time)).filter_map(|(_, value)| *value);
            values.reduce(|a, b| if distance_outside(kind, b) > distance_outside(kind, a) { b } else { a }).unwrap()
        })
    };
    let mut episodes = Vec::new();
    let mut state = State::Inactive;
    for at in 0..=story.now.max(newest) {
        let reading = story.readings.iter().find(|(time, _)| *time == at);
        let mut reach = |state: &mut State, episodes: &mut Vec<Episode>| {
            if let State::Pending { since } = *state
                && known(since, at) >= story.for_ms
            {
                coverage.tie_at_for |= story.for_ms > 0 && reading.is_some();
                *state = State::Firing { since, fired_at: at, clear_since: None };
            }
            if let State::Firing { since, fired_at, clear_since: Some(clear_since) } = *state
                && known(clear_since, at) >= story.keep_firing_for_ms
            {
                let (resolved_at, extreme) = (Some(clear_since), extreme(since, clear_since));
                episodes.push(Episode { started_at: since, fired_at, resolved_at, extreme });
                *state = State::Inactive;
            }
        };
        // What was held up to this instant counts before anything else at it.
        reach(&mut state, &mut episodes);
        if !is_on_duty(story, at) {
            if let State::Firing { since, fired_at, .. } = state {
                coverage.duty_end_while_firing = true;
                let (resolved_at, extreme) = (Some(at), extreme(since, at));
                episodes.push(Episode { started_at: since, fired_at, resolved_at, extreme });
            }
            state = State::Inactive;
            continue;
        }
        coverage.gap_while_firing |=
            matches!(state, State::Firing { .. }) && at < story.now.min(newest) && held(story, at).is_none();
        coverage.null_while_pending |=
            matches!(state, State::Pending { .. }) && reading.is_some_and(|(_, value)| value.is_none());
        let Some((_, Some(value))) = reading else { continue };
        state = match state {
            State::Inactive if is_out(kind, *value) => State::Pending { since: at },
            State::Inactive => State::Inactive,
            State::Pending { since } if is_out(kind, *value) => State::Pending { since },
            State::Pending { .. } => State::Inactive,
            State::Firing { since, fired_at, clear_since } => {
                coverage.band_while_firing |= !is_clear(kind, *value) && !is_out(kind, *value);
                let clear_since = is_clear(kind, *value).then(|| clear_since.unwrap_or(at));
                State::Firing { since, fired_at, clear_since }
            }
        };
        reach(&mut state, &mut episodes);
    }
    if let State::Firing { since, fired_at, .. } = state {
        let extreme = extreme(since, i64::MAX);
        episodes.push(Episode { started_at: since, fired_at, resolved_at: None, extreme });
    }
    episodes
}

fn judge_silence(story: &Story) -> Vec<Episode> {
    // The unit has one sensor, registered with it at the first instant of the story's recording.
    let registered_at = story.readings.first().map_or(0, |(time, _)| *time);
    let last_sign_of_life = story.readings.iter().rev().find(|(_, value)| value.is_some()).map_or(0, |(time, _)| *time);
    let end = story.now.max(last_sign_of_life) + 1;
    let is_silent = |at: i64| {
        let alive = story.readings.iter().rev().find(|(time, value)| value.is_some() && *time <= at);
        let alive = alive.map(|(time, _)| *time).or(story.is_registered.then_some(registered_at));
        let Some(alive) = alive.filter(|_| is_on_duty(story, at)) else { return false };
        let mut duty_start = at;
        while duty_start > alive && is_on_duty(story, duty_start - 1) {
            duty_start -= 1;
        }
        at >= alive.max(duty_start) + story.max_gap_ms
    };
    let mut episodes = Vec::new();
    let mut at = 0;
    while at < end {
        if !is_silent(at) {
            at += 1;
            continue;
        }
        let started_at = at;
        // One ends at the reading or the end of duty after it, even if the next begins at that very instant.
        while at < end && is_silent(at) {
            at += 1;
        }
        let resolved_at = (at < end).then_some(at);
        if resolved_at.unwrap_or(story.now) - started_at >= story.for_ms {
            episodes.push(Episode { started_at, fired_at: started_at + story.for_ms, resolved_at, extreme: None });
        }
    }
    episodes
}
