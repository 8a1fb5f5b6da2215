//! One server that takes line protocol over the InfluxDB 2 write route, and what its replies mean for us.

use std::time::Duration;

use ::influxdb2::api::buckets::ListBucketsRequest;
use ::influxdb2::api::organization::ListOrganizationRequest;
use ::influxdb2::api::write::TimestampPrecision;
use ::influxdb2::models::PostBucketRequest;
use ::influxdb2::{Client, ClientBuilder, RequestError};
use reqwest::header::{CONTENT_ENCODING, HeaderMap, HeaderValue};

use super::{Settings, SinkError};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);

/// What became of a write, by what the sink does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reply {
    /// Taken: go on.
    Done,
    /// At least one line is not acceptable, and never will be: find it.
    Refused { reason: String, dropped: Option<usize> },
    /// Too much at once: halve it.
    TooLarge(String),
    /// Not allowed, or not there: a person must mend it, keep the data.
    Denied(String),
    /// Alive and asking for patience.
    Busy(String),
    /// Not known whether anything was kept; where the connection was lost, the server may have died with what it had.
    Failed { reason: String, is_lost: bool },
}

impl Reply {
    pub(super) fn as_label(&self) -> &'static str {
        match self {
            Self::Done => "written",
            Self::Refused { .. } => "refused",
            Self::TooLarge(_) => "too_large",
            Self::Denied(_) => "denied",
            Self::Busy(_) => "busy",
            Self::Failed { .. } => "failed",
        }
    }
}

/// Which run of the server we talk to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Run {
    /// It tells when it was started.
    StartedAt(String),
    /// It answers and does not tell.
    Unknown,
    /// It does not answer in time.
    Late(String),
    /// It cannot be reached, and may have died.
    Unreachable(String),
}

pub(super) struct Server {
    /// Sends bodies that are compressed already.
    writer: Client,
    /// Asks about buckets and organizations.
    client: Client,
    /// Asks for what the `influxdb2` crate does not know about.
    http: reqwest::Client,
    metrics_url: reqwest::Url,
    org: String,
    bucket: String,
}

impl Server {
    pub(super) fn new(settings: &Settings) -> Result<Self, SinkError> {
        let url = settings.base_url()?;
        let compressed = HeaderMap::from_iter([(CONTENT_ENCODING, HeaderValue::from_static("gzip"))]);
        let build =
            |builder| ClientBuilder::with_builder(builder, url.as_str(), &settings.org, &settings.token).build();
        Ok(Self {
            writer: build(http_builder().default_headers(compressed)).map_err(SinkError::Client)?,
            client: build(http_builder()).map_err(SinkError::Client)?,
            http: http_builder().build().map_err(SinkError::Http)?,
            metrics_url: url.join("/metrics").map_err(|error| SinkError::url(&settings.url, &error))?,
            org: settings.org.clone(),
            bucket: settings.bucket.clone(),
        })
    }

    /// Writes lines that are compressed already.
    pub(super) async fn write(&self, compressed: Vec<u8>) -> Reply {
        let precision = TimestampPrecision::Milliseconds;
        match self.writer.write_line_protocol_with_precision(&self.org, &self.bucket, compressed, precision).await {
            Ok(()) => Reply::Done,
            Err(error) => classify(error),
        }
    }

    /// Asks when the server was started, as InfluxDB and VictoriaMetrics show it among their metrics.
    pub(super) async fn run(&self) -> Run {
        let reply = match self.http.get(self.metrics_url.clone()).send().await {
            Ok(reply) => reply,
            Err(error) => return unanswered(&error),
        };
        if !reply.status().is_success() {
            return Run::Unknown;
        }
        match reply.text().await {
            Ok(text) => find_start(&text).map_or(Run::Unknown, |start| Run::StartedAt(start.to_owned())),
            Err(error) => unanswered(&error),
        }
    }

    /// Says what answers, or why nothing useful does.
    pub(super) async fn examine(&self) -> Result<String, String> {
        let name = match self.client.health().await {
            Ok(health) => [Some(health.name), health.version].into_iter().flatten().collect::<Vec<_>>().join(" "),
            // VictoriaMetrics says a plain OK here, which the client takes for a broken answer.
            Err(RequestError::ReqwestProcessing { source }) if !source.is_decode() => return Err(root_cause(&source)),
            Err(_) => "a server without a health report".to_owned(),
        };
        if matches!(self.client.is_onboarding_allowed().await, Ok(true)) {
            return Err(format!("{name} has not been set up yet: it has no organization, bucket or token"));
        }
        Ok(name)
    }

    /// Creates the bucket where the server has buckets, ours is missing and we may; returns whether it did.
    ///
    /// Servers without buckets, and tokens that may only write, are no error: the write itself will tell.
    pub(super) async fn ensure_bucket(&self) -> bool {
        match self.create_missing_bucket().await {
            Ok(created) => {
                if created {
                    tracing::info!(bucket = self.bucket, org = self.org, "created the bucket");
                }
                created
            }
            Err(error) => {
                tracing::debug!(bucket = self.bucket, %error, "cannot look after the bucket, leaving it to the server");
                false
            }
        }
    }

    async fn create_missing_bucket(&self) -> Result<bool, RequestError> {
        let request = ListBucketsRequest {
            name: Some(self.bucket.clone()),
            org: Some(self.org.clone()),
            ..ListBucketsRequest::default()
        };
        match self.client.list_buckets(Some(request)).await {
            Ok(found) if !found.buckets.is_empty() => return Ok(false),
            // InfluxDB says 404 for a name that it does not know.
            Err(error) if !matches!(&error, RequestError::Http { status, .. } if status.as_u16() == 404) => {
                return Err(error);
            }
            _ => {}
        }
        let request = ListOrganizationRequest { org: Some(self.org.clone()), ..ListOrganizationRequest::default() };
        let organizations = self.client.list_organizations(request).await?;
        let Some(org_id) = organizations.orgs.into_iter().find_map(|org| org.id) else { return Ok(false) };
        self.client.create_bucket(Some(PostBucketRequest::new(org_id, self.bucket.clone()))).await?;
        Ok(true)
    }
}

fn http_builder() -> reqwest::ClientBuilder {
    reqwest::Client::builder().connect_timeout(CONNECT_TIMEOUT).timeout(REQUEST_TIMEOUT).pool_idle_timeout(IDLE_TIMEOUT)
}

fn unanswered(error: &reqwest::Error) -> Run {
    if error.is_timeout() { Run::Late(root_cause(error)) } else { Run::Unreachable(root_cause(error)) }
}

fn classify(error: RequestError) -> Reply {
    let (status, text) = match error {
        RequestError::Http { status, text } => (status, text),
        RequestError::ReqwestProcessing { source } => {
            return Reply::Failed { reason: root_cause(&source), is_lost: !source.is_timeout() };
        }
        other => return Reply::Failed { reason: root_cause(&other), is_lost: true },
    };
    let reason = format!("{}: {}", status.as_u16(), server_message(&text));
    match status.as_u16() {
        400 | 422 => Reply::Refused { reason, dropped: dropped_count(&text) },
        413 => Reply::TooLarge(reason),
        429 => Reply::Busy(reason),
        408 | 500..=599 => Reply::Failed { reason, is_lost: false },
        // 401, 403 and 404, but also a success that is not 204: whoever answers so is not the database we were told of.
        _ => Reply::Denied(reason),
    }
}

/// Returns the innermost message (`connection refused`); the outer ones only say that a request failed.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

/// Returns the `message` of a JSON error, or the text itself, cut to a length that can be stored and read.
fn server_message(text: &str) -> String {
    #[derive(serde::Deserialize)]
    struct ErrorBody {
        message: String,
    }
    let message = serde_json::from_str::<ErrorBody>(text).map_or_else(|_| text.trim().to_owned(), |body| body.message);
    message.chars().take(500).collect()
}

/// Returns how many points a partial write left out, where the server says so (`… dropped=3`).
fn dropped_count(text: &str) -> Option<usize> {
    let digits = text.rsplit_once("dropped=")?.1;
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    digits[..end].parse().ok()
}

/// Finds the instant of the start in a page of metrics.
fn find_start(metrics: &str) -> Option<&str> {
    metrics.lines().find_map(|line| {
        let (name, value) = line.split_once(' ')?;
        matches!(name, "process_start_time_seconds" | "vm_app_start_timestamp").then(|| value.trim())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn http(status: u16, text: &str) -> Reply {
        classify(RequestError::Http { status: reqwest::StatusCode::from_u16(status).unwrap(), text: text.to_owned() })
    }

    #[test]
    fn every_status_says_what_to_do_next() {
        for (status, expected) in [
            (400, "refused"),
            (422, "refused"),
            (200, "denied"),
            (302, "denied"),
            (401, "denied"),
            (403, "denied"),
            (404, "denied"),
            (405, "denied"),
            (408, "failed"),
            (413, "too_large"),
            (429, "busy"),
            (500, "failed"),
            (502, "failed"),
            (503, "failed"),
        ] {
            assert_eq!(http(status, "").as_label(), expected, "{status}");
        }
    }

    #[test]
    fn the_servers_own_words_are_kept() {
        let body = r#"{"code":"unprocessable entity","message":"failure writing points to database: partial write: points beyond retention policy dropped=17"}"#;
        let Reply::Refused { reason, dropped } = http(422, body) else { panic!("not refused") };
        assert_eq!(
            reason,
            "422: failure writing points to database: partial write: points beyond retention policy dropped=17"
        );
        assert_eq!(dropped, Some(17));
        assert_eq!(http(404, "no route\n"), Reply::Denied("404: no route".to_owned()));
        assert_eq!(dropped_count("dropped=many"), None);
    }

    #[test]
    fn the_start_is_found_among_the_metrics_of_either_server() {
        let influxdb = "# HELP process_start_time_seconds x\nprocess_start_time_seconds 1.79547243127e+09\n";
        assert_eq!(find_start(influxdb), Some("1.79547243127e+09"));
        assert_eq!(find_start("vm_app_uptime_seconds 0\nvm_app_start_timestamp 1795472431\n"), Some("1795472431"));
        assert_eq!(find_start("go_threads 9\n"), None);
    }
}
