//! `routes.toml`: which topics are subscribed to, and what their payloads look like.

use std::path::Path;

use frostline_core::codec::native::Native;
use frostline_core::codec::{Codec, Route, default_routes, topic};
use serde::Deserialize;
use toml::Spanned;

use super::problem::Problem;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    route: Vec<RouteShape>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RouteShape {
    filter: Spanned<String>,
    codec: Spanned<String>,
    /// Values that say "the probe has failed", such as 85.0 or -127.
    #[serde(default)]
    sentinels: Vec<f64>,
}

/// Reads the routes from the text of `routes.toml`; where it is absent the product's own topic is the only route.
pub(super) fn parse(file: &Path, text: Option<&str>, problems: &mut Vec<Problem>) -> Vec<Route> {
    let Some(text) = text else {
        return default_routes();
    };
    let shape: File = match toml::from_str(text) {
        Ok(shape) => shape,
        Err(error) => {
            problems.push(Problem::from_toml(file, text, &error));
            return Vec::new();
        }
    };
    let mut routes: Vec<Route> = Vec::new();
    for route in shape.route {
        let filter = route.filter.get_ref().as_str();
        if !topic::is_valid_filter(filter) {
            let message = format!("`{filter}` is not an MQTT topic filter");
            problems.push(Problem::at(file, text, Some(route.filter.span()), "route.filter", message));
        } else if routes.iter().any(|other| &*other.filter == filter) {
            let message = format!("`{filter}` is routed twice");
            problems.push(Problem::at(file, text, Some(route.filter.span()), "route.filter", message));
        } else if route.codec.get_ref() != "native" {
            let message =
                format!("expected `native`, the one codec of this version, found `{}`", route.codec.get_ref());
            problems.push(Problem::at(file, text, Some(route.codec.span()), "route.codec", message));
        } else {
            let codec = Codec::Native(Native { sentinels: route.sentinels.into() });
            routes.push(Route { filter: filter.into(), codec });
        }
    }
    routes
}
