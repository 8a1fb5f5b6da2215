//! The web page: three files inside the program, nothing from anywhere else.

use axum::Router;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::get;

const INDEX: &str = include_str!("assets/index.html");
const SCRIPT: &str = include_str!("assets/app.js");
const STYLE: &str = include_str!("assets/style.css");

/// Names in the data come from devices; should one ever reach the document as markup, the browser still runs nothing.
const CONTENT_SECURITY_POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; \
    connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Returns the routes of the page: `/` and what it loads from `/assets/`.
pub(super) fn routes<S: Clone + Send + Sync + 'static>() -> Router<S> {
    Router::new()
        .route("/", get(|| async { file("text/html; charset=utf-8", INDEX) }))
        .route("/assets/app.js", get(|| async { file("text/javascript; charset=utf-8", SCRIPT) }))
        .route("/assets/style.css", get(|| async { file("text/css; charset=utf-8", STYLE) }))
}

fn file(content_type: &'static str, content: &'static str) -> Response {
    let headers = [
        (header::CONTENT_TYPE, content_type),
        // Asked for again each time: a new version of the program must not meet an old script.
        (header::CACHE_CONTROL, "no-cache"),
        (header::CONTENT_SECURITY_POLICY, CONTENT_SECURITY_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
    ];
    (headers, content).into_response()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// Every text that stands between `before` and `after`.
    fn all_between<'a>(text: &'a str, before: &str, after: &str) -> BTreeSet<&'a str> {
        text.split(before).skip(1).filter_map(|rest| rest.split(after).next()).collect()
    }

    #[tokio::test]
    async fn a_browser_gets_the_page_and_everything_that_it_names() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let server = tokio::spawn(async move { axum::serve(listener, routes::<()>()).await });
        let mut paths: BTreeSet<&str> = all_between(INDEX, "href=\"", "\"");
        paths.extend(all_between(INDEX, "src=\"", "\""));
        paths.retain(|path| !path.starts_with("data:"));
        assert_eq!(paths.len(), 2);
        paths.insert("/");
        for path in paths {
            let response = reqwest::get(format!("http://{address}{path}")).await.unwrap();
            assert_eq!(response.status().as_u16(), 200, "{path}");
            assert!(response.headers()["content-security-policy"].to_str().unwrap().starts_with("default-src 'none'"));
            let expected = match path {
                "/" => "text/html",
                _ if path.ends_with(".js") => "text/javascript",
                _ => "text/css",
            };
            assert!(response.headers()["content-type"].to_str().unwrap().starts_with(expected), "{path}");
        }
        server.abort();
    }

    #[test]
    fn the_page_loads_nothing_from_outside_and_never_takes_data_for_markup() {
        for text in [INDEX, SCRIPT, STYLE] {
            let outside = text.replace("http://www.w3.org/2000/svg", "");
            assert!(!outside.contains("http://") && !outside.contains("https://") && !outside.contains("@import"));
        }
        for unsafe_way in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"] {
            assert!(!SCRIPT.contains(unsafe_way), "{unsafe_way}");
        }
        // What the policy forbids would silently not work.
        assert!(!INDEX.contains("style=\"") && !INDEX.contains("onclick") && !INDEX.contains("<style"));
    }

    #[test]
    fn every_place_that_the_script_writes_to_is_in_the_page_and_every_text_has_two_languages() {
        let ids = all_between(INDEX, " id=\"", "\"");
        for id in all_between(SCRIPT, "byId(\"", "\"") {
            assert!(ids.contains(id), "no element has the id {id}");
        }
        let texts = SCRIPT.split("const texts = {").nth(1).unwrap().split("\n};").next().unwrap();
        let keys: BTreeSet<&str> =
            texts.lines().filter_map(|line| line.trim().split_once(": [")).map(|l| l.0).collect();
        assert!(keys.len() > 50);
        for line in texts.lines().filter(|line| !line.is_empty()) {
            assert_eq!(line.matches('"').count(), 4, "not two texts: {line}");
        }
        let mut used = all_between(INDEX, "data-text=\"", "\"");
        used.extend(all_between(SCRIPT, "say(\"", "\""));
        for key in used {
            assert!(keys.contains(key), "no text for {key}");
        }
    }
}
