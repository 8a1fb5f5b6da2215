//! Server-sent events: transitions of alerts and, on request, readings.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::response::sse::{Event, KeepAlive, Sse};
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast::{self, error::RecvError};
use tokio::sync::mpsc;
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use super::problem::Problem;
use super::request::Params;
use super::{Shared, WebMetrics};
use crate::alert::{Alert, Time};
use crate::pipeline::{ReadingEvent, StreamEvent};

/// How often a quiet stream says that it is still there.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How many events may wait for one listener's network, beside those that wait for his turn.
const EVENTS_WAITING_MAX: usize = 64;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct StreamParams {
    readings: bool,
}

/// A reading as the stream tells it.
#[derive(Serialize)]
struct ReadingJson<'a> {
    operator: &'a str,
    unit: &'a str,
    sensor: &'a str,
    kind: &'static str,
    event_time: Time,
    value: Option<f64>,
}

/// How many events a listener has missed because he was too slow.
#[derive(Serialize)]
struct LaggedJson {
    events_dropped: u64,
}

pub(crate) async fn listen(
    State(app): Shared,
    Params(params): Params<StreamParams>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, Problem> {
    let (sender, receiver) = mpsc::channel(EVENTS_WAITING_MAX);
    let listener = Listener {
        transitions: app.options.shared.events.subscribe(),
        readings: params.readings.then(|| app.options.shared.readings.subscribe()),
        to: sender,
        metrics: app.metrics.clone(),
    };
    tokio::spawn(listener.run(app.stop.clone()));
    Ok(Sse::new(ReceiverStream::new(receiver)).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)))
}

/// Carries events to one listener, and ends when he goes or the daemon does.
struct Listener {
    transitions: broadcast::Receiver<Arc<StreamEvent>>,
    readings: Option<broadcast::Receiver<Arc<ReadingEvent>>>,
    to: mpsc::Sender<Result<Event, Infallible>>,
    metrics: WebMetrics,
}

impl Listener {
    async fn run(mut self, stop: CancellationToken) {
        self.metrics.stream_listeners.inc();
        loop {
            let received = tokio::select! {
                () = stop.cancelled() => break,
                () = self.to.closed() => break,
                transition = self.transitions.recv() => transition.map(|event| transition_event(&event)),
                reading = next_reading(&mut self.readings) => reading.map(|event| reading_event(&event)),
            };
            let event = match received {
                Ok(event) => event,
                Err(RecvError::Lagged(events_dropped)) => {
                    self.metrics.stream_events_dropped.inc_by(events_dropped);
                    json_event("lagged", &LaggedJson { events_dropped })
                }
                Err(RecvError::Closed) => break,
            };
            tokio::select! {
                () = stop.cancelled() => break,
                sent = self.to.send(Ok(event)) => if sent.is_err() { break },
            }
        }
        self.metrics.stream_listeners.dec();
    }
}

/// Returns the next reading; never anything where none are asked for.
async fn next_reading(
    readings: &mut Option<broadcast::Receiver<Arc<ReadingEvent>>>,
) -> Result<Arc<ReadingEvent>, RecvError> {
    match readings {
        Some(readings) => readings.recv().await,
        None => std::future::pending().await,
    }
}

fn transition_event(event: &StreamEvent) -> Event {
    match event {
        StreamEvent::Transition(alert) => alert_event("transition", alert),
        StreamEvent::PendingEnded(alert) => alert_event("pending_ended", alert),
    }
}

fn alert_event(name: &str, alert: &Alert) -> Event {
    let id = format!("{}.{}.{}.{}", alert.id, alert.revision, alert.state.as_str(), alert.handling.as_str());
    json_event(name, alert).id(id)
}

fn reading_event(event: &ReadingEvent) -> Event {
    let reading = ReadingJson {
        operator: event.unit.operator.as_str(),
        unit: event.unit.unit.as_str(),
        sensor: &event.sensor,
        kind: event.kind.as_str(),
        event_time: Time(event.reading.event_time),
        value: event.reading.value,
    };
    json_event("reading", &reading)
}

fn json_event(name: &str, data: &impl Serialize) -> Event {
    Event::default().event(name).json_data(data).expect("what is shown has only string keys")
}

#[cfg(test)]
mod tests {
    use axum::response::IntoResponse;
    use serde_json::json;

    use super::*;

    fn alert() -> Alert {
        let time = "2026-11-23T10:00:00.000Z";
        let alert = json!({
            "id": "0a", "revision": 1, "state": "firing", "handling": "open", "severity": "critical", "rule": "r",
            "rule_version": "v", "rule_kind": "range", "operator": "op1", "operator_code": null, "site": null,
            "unit": "u1", "unit_kind": null, "sensor": "t1", "jurisdiction": null, "category": null, "profile": null,
            "consignments": [], "origin": "field", "started_at": time, "fired_at": time, "resolved_at": null,
            "detected_at": time, "limit_low": null, "limit_high": null, "extreme": null, "last_value": null,
            "mean_kinetic_temperature": null, "latitude": null, "longitude": null, "excursion_s": 0.0,
            "unmonitored_s": 0.0, "late": false, "amendments": [], "message": { "en": "", "zh": "" },
        });
        serde_json::from_value(alert).unwrap()
    }

    #[tokio::test]
    async fn a_listener_that_is_too_slow_is_told_how_much_he_has_missed() {
        let (events, transitions) = broadcast::channel(2);
        let alert = alert();
        for revision in 1..=5 {
            let event = StreamEvent::Transition(Alert { revision, ..alert.clone() });
            events.send(Arc::new(event)).expect("there is a receiver");
        }
        drop(events);
        let metrics = WebMetrics::register(&prometheus::Registry::new()).unwrap();
        let (to, receiver) = mpsc::channel(8);
        let listener = Listener { transitions, readings: None, to, metrics: metrics.clone() };
        listener.run(CancellationToken::new()).await;
        let response = Sse::new(ReceiverStream::new(receiver)).into_response();
        let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
        let told = std::str::from_utf8(&body).unwrap();
        assert!(told.starts_with("event: lagged\ndata: {\"events_dropped\":3}\n\n"), "{told}");
        let ids: Vec<&str> = told.lines().filter_map(|line| line.strip_prefix("id: ")).collect();
        assert_eq!(ids, [format!("{}.4.firing.open", alert.id), format!("{}.5.firing.open", alert.id)]);
        assert_eq!((metrics.stream_events_dropped.get(), metrics.stream_listeners.get()), (3, 0));
    }
}
