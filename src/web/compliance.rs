//! For how long units were compliant, by who and what they are.

use std::collections::{BTreeMap, BTreeSet};

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use frostline_core::accounting::Account;
use frostline_core::model::{Timestamp, Unit, UnitKey};
use serde::{Deserialize, Serialize};

use super::Shared;
use super::problem::Problem;
use super::request::{Params, instant, page_length, unknown_cursor};
use super::units::parse_cursor;
use crate::alert::Time;
use crate::compliance::{ComplianceError, UnitSums};
use crate::history::{DAY_MS, day_of, day_start};

/// How many whole days are shown where no start is asked for.
const DEFAULT_DAYS: i64 = 30;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ComplianceParams {
    by: By,
    #[serde(default, deserialize_with = "instant")]
    from: Option<Timestamp>,
    #[serde(default, deserialize_with = "instant")]
    to: Option<Timestamp>,
    operator: Option<String>,
    unit: Option<String>,
    jurisdiction: Option<String>,
    category: Option<String>,
    limit: Option<usize>,
    cursor: Option<String>,
}

/// What is added up in one item.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum By {
    Jurisdiction,
    Category,
    Operator,
    Unit,
    Sensor,
}

/// The answer: a page that also says which period it is about.
#[derive(Debug, Serialize)]
pub(crate) struct ComplianceJson {
    by: By,
    from: Time,
    /// What was asked for, or *now* where that had not come yet.
    to: Time,
    items: Vec<Item>,
    next: Option<String>,
}

/// Whom or what an item is about; what does not belong to it is left out.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct Group {
    /// The group's name: that which `by` asks for, `operator/unit`, or `sensor/kind`; null where it has none.
    key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    operator: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    unit: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sensor: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
}

#[derive(Debug, Serialize)]
struct Item {
    #[serde(flatten)]
    group: Group,
    /// How many units are in it.
    units: usize,
    compliant_s: f64,
    excursion_s: f64,
    unmonitored_s: f64,
    on_duty_s: f64,
    /// `compliant_s` ÷ `on_duty_s`; null where nothing was on duty.
    share_compliant: Option<f64>,
    /// The share of alerts disposed of; null while nothing records disposals.
    disposal_rate: Option<f64>,
}

impl Item {
    fn new(group: Group, units: usize, account: Account) -> Self {
        let seconds = |duration_ms: i64| duration_ms as f64 / 1_000.0;
        let on_duty_ms = account.on_duty_ms();
        Self {
            group,
            units,
            compliant_s: seconds(account.compliant_ms),
            excursion_s: seconds(account.excursion_ms),
            unmonitored_s: seconds(account.unmonitored_ms),
            on_duty_s: seconds(on_duty_ms),
            share_compliant: (on_duty_ms > 0).then(|| account.compliant_ms as f64 / on_duty_ms as f64),
            disposal_rate: None,
        }
    }
}

impl ComplianceParams {
    fn wants(&self, unit: &Unit) -> bool {
        let code = unit.jurisdiction.as_deref();
        self.operator.as_deref().is_none_or(|operator| operator == unit.key.operator.as_str())
            && self.unit.as_deref().is_none_or(|name| name == unit.key.unit.as_str())
            && self.jurisdiction.as_deref().is_none_or(|prefix| code.is_some_and(|code| code.starts_with(prefix)))
    }

    /// Returns the period asked for: by default the last whole days.
    fn period(&self, now: Timestamp) -> Result<(Timestamp, Timestamp), Problem> {
        let today = day_start(day_of(now));
        let default_to = if self.from.is_some_and(|from| today <= from) { now } else { today };
        let to = self.to.unwrap_or(default_to);
        let from = self.from.unwrap_or(to.plus_millis(-DEFAULT_DAYS * DAY_MS));
        if from >= to {
            return Err(Problem::bad_request(format!("`from` is {from}; an instant before `to`, {to}, is expected")));
        }
        Ok((from, to))
    }
}

pub(crate) async fn read(
    State(app): Shared,
    Params(params): Params<ComplianceParams>,
) -> Result<Json<ComplianceJson>, Problem> {
    if params.by == By::Sensor {
        if params.operator.is_none() || params.unit.is_none() {
            return Err(Problem::bad_request("`by=sensor` is about one unit: give `operator` and `unit`"));
        }
        if params.category.is_some() {
            return Err(Problem::bad_request("sensors are not told apart by `category`"));
        }
    } else if params.by != By::Unit && (params.limit.is_some() || params.cursor.is_some()) {
        return Err(Problem::bad_request("only `by=unit` has pages"));
    }
    let limit = page_length(params.limit, 1_000, 10_000)?;
    let after = match &params.cursor {
        Some(text) => Some(parse_cursor(text).ok_or_else(|| unknown_cursor(text))?),
        None => None,
    };
    let (from, to) = params.period(app.compliance.now().await?)?;
    let registry = &app.options.judgement.registry;
    let wanted = registry.units.values().filter(|unit| params.wants(unit)).map(|unit| unit.key.clone());
    let mut wanted: Vec<UnitKey> = wanted.filter(|key| after.as_ref().is_none_or(|after| key > after)).collect();
    let mut next = None;
    if params.by == By::Unit && wanted.len() > limit {
        wanted.truncate(limit);
        next = wanted.last().map(|last| format!("{}/{}", last.operator, last.unit));
    }
    if params.by == By::Sensor && wanted.is_empty() {
        return Err(Problem::not_found("there is no such unit registered"));
    }
    let accounts = app.compliance.accounts(wanted, from, to, params.by == By::Sensor).await?;
    let mut groups: BTreeMap<Group, (BTreeSet<&UnitKey>, Account)> = BTreeMap::new();
    for (key, sums) in &accounts.units {
        let unit = registry.units.get(key).expect("only registered units are asked for");
        for (group, account) in items_of(&params, unit, sums) {
            let (units, sum) = groups.entry(group).or_default();
            units.insert(key);
            *sum += account;
        }
    }
    let items = groups.into_iter().map(|(group, (units, account))| Item::new(group, units.len(), account)).collect();
    Ok(Json(ComplianceJson { by: params.by, from: Time(accounts.from), to: Time(accounts.to), items, next }))
}

/// Returns which groups a unit's time goes to.
fn items_of(params: &ComplianceParams, unit: &Unit, sums: &UnitSums) -> Vec<(Group, Account)> {
    let key = |text: &str| Group { key: Some(text.to_owned()), ..Group::default() };
    let wanted = sums
        .by_category
        .iter()
        .filter(|(category, _)| params.category.as_deref().is_none_or(|wanted| wanted == &***category));
    let group = match params.by {
        By::Category => return wanted.map(|(category, account)| (key(category), *account)).collect(),
        By::Sensor => {
            let by_series = sums.by_series.iter().map(|((sensor, kind), account)| {
                let group = key(&format!("{sensor}/{kind}"));
                (Group { sensor: Some(sensor.to_string()), kind: Some(kind.as_str()), ..group }, *account)
            });
            return by_series.collect();
        }
        By::Jurisdiction => Group { key: unit.jurisdiction.as_deref().map(str::to_owned), ..Group::default() },
        By::Operator => key(unit.key.operator.as_str()),
        By::Unit => {
            let (operator, name) = (unit.key.operator.to_string(), unit.key.unit.to_string());
            Group { operator: Some(operator.clone()), unit: Some(name.clone()), ..key(&format!("{operator}/{name}")) }
        }
    };
    let mut total = Account::default();
    wanted.for_each(|(_, account)| total += *account);
    vec![(group, total)]
}

impl From<ComplianceError> for Problem {
    fn from(error: ComplianceError) -> Self {
        match error {
            ComplianceError::NoAnswer(error) => error.into(),
            ComplianceError::TooMuch { .. } => Self::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string()),
            error => Self::from_failure(&error),
        }
    }
}
