//! The running daemon as commands see it: its HTTP interface.

use anyhow::{Context as _, bail};
use reqwest::{Client, RequestBuilder, StatusCode, Url};
use serde_json::Value;

use super::{Context, Misused};

/// How long an answer is waited for.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(30);

/// Speaks to one daemon.
pub(crate) struct Daemon {
    client: Client,
    base: Url,
}

impl Daemon {
    /// Prepares to speak to the daemon at `url`, or without one to that of the configuration.
    pub(crate) fn new(url: Option<&str>, context: &Context) -> anyhow::Result<Self> {
        let base = match url {
            Some(url) => url.to_owned(),
            None => {
                let mut listen = context.load()?.settings.http_listen;
                // What listens everywhere is reached at home.
                if listen.ip().is_unspecified() {
                    listen.set_ip(if listen.is_ipv4() {
                        [127, 0, 0, 1].into()
                    } else {
                        std::net::Ipv6Addr::LOCALHOST.into()
                    });
                }
                format!("http://{listen}")
            }
        };
        let base =
            Url::parse(&base).with_context(|| format!("`{base}` is not an address such as http://127.0.0.1:8080"))?;
        if base.cannot_be_a_base() {
            bail!("`{base}` is not an address such as http://127.0.0.1:8080");
        }
        Ok(Self { client: client()?, base })
    }

    /// Asks for what is at `path`, whose parts may hold any characters.
    pub(crate) async fn get(&self, path: &[&str], parameters: &[(&str, String)]) -> anyhow::Result<Value> {
        self.send(self.client.get(self.url(path)).query(parameters)).await
    }

    /// Asks the daemon to do what is at `path`.
    pub(crate) async fn post(&self, path: &[&str]) -> anyhow::Result<Value> {
        self.send(self.client.post(self.url(path)).json(&serde_json::json!({}))).await
    }

    fn url(&self, path: &[&str]) -> Url {
        let mut url = self.base.clone();
        url.path_segments_mut().expect("it was checked to be a base").pop_if_empty().extend(["api", "v1"]).extend(path);
        url
    }

    async fn send(&self, request: RequestBuilder) -> anyhow::Result<Value> {
        let response = request
            .send()
            .await
            .with_context(|| format!("the daemon does not answer at {}; is it running?", self.base))?;
        let status = response.status();
        let body =
            response.text().await.with_context(|| format!("the daemon at {} broke off its answer", self.base))?;
        if status == StatusCode::BAD_REQUEST {
            return Err(Misused(refusal(status, &body)).into());
        }
        if !status.is_success() {
            bail!("{}", refusal(status, &body));
        }
        serde_json::from_str(&body).with_context(|| format!("what answers at {} is not this daemon", self.base))
    }
}

/// Returns a client that goes straight to the daemon: a proxy to the internet would not know the way.
fn client() -> reqwest::Result<Client> {
    Client::builder().timeout(PATIENCE).no_proxy().build()
}

/// Returns what an answer that is none says: a problem document's detail, or else its status.
fn refusal(status: StatusCode, body: &str) -> String {
    let document: Option<Value> = serde_json::from_str(body).ok();
    let detail = document.as_ref().and_then(|document| document.get("detail")).and_then(Value::as_str);
    detail.map_or_else(|| format!("the daemon answers {status}"), str::to_owned)
}
