// The page of Frostline: units, alerts, the accounting line and one unit's chart, live.
// Names come from devices and files: data enters the document as text only, never as markup.
"use strict";

// Texts: [English, Chinese].
const texts = {
  subtitle: ["Cold chain, watched", "冷链监测"],
  timeZone: ["Time zone", "时区"],
  units: ["Units", "储运单元"],
  unit: ["Unit", "单元"],
  state: ["State", "状态"],
  goods: ["Goods", "货品"],
  temperature: ["Temperature", "温度"],
  limits: ["Limits", "限值"],
  humidity: ["Humidity", "湿度"],
  lastSeen: ["Last seen", "最近上报"],
  alerts: ["Alerts", "预警"],
  close: ["Close", "关闭"],
  search: ["Search units", "搜索单元"],
  connecting: ["connecting", "正在连接"],
  live: ["live", "实时"],
  lost: ["connection lost, retrying", "连接已断开，正在重试"],
  noAnswer: ["The server does not answer as expected: ", "服务器响应异常："],
  noUnits: ["No unit has been heard from yet.", "尚未收到任何单元的数据。"],
  noMatch: ["No unit matches the search.", "没有符合搜索条件的单元。"],
  moreUnits: ["more units; search to narrow the list", "个单元未显示，请搜索以缩小范围"],
  noAlerts: ["No alerts.", "没有预警。"],
  noFiring: ["No alert is firing.", "当前没有预警。"],
  noReadings: ["No readings in this time.", "该时段没有读数。"],
  loading: ["Loading …", "加载中……"],
  all: ["All", "全部"],
  firingOnly: ["Firing", "进行中"],
  tileFiring: ["alerts firing", "进行中的预警"],
  tileStored: ["readings stored", "已存读数"],
  compliant: ["within limits", "合规"],
  excursion: ["excursion", "超限"],
  pending: ["pending", "待确认"],
  unmonitored: ["unmonitored", "无数据"],
  off_duty: ["off duty", "未监管"],
  firing: ["firing", "进行中"],
  resolved: ["resolved", "已恢复"],
  retracted: ["retracted", "已撤回"],
  notice: ["notice", "提示"],
  warning: ["warning", "警告"],
  critical: ["critical", "严重"],
  exercise: ["exercise", "演练"],
  amended: ["amended", "已修订"],
  since: ["since", "始于"],
  lasted: ["lasted", "持续"],
  extreme: ["worst", "极值"],
  allowed: ["within limits", "限值范围"],
  inThisTime: ["In this time on duty: ", "该时段在监："],
  notOnDuty: ["Not on duty with a profile in this time.", "该时段不在监，或无品类限值。"],
  clockAhead: ["The device's clock is ahead by", "设备时钟超前"],
  episode: ["alert", "预警时段"],
  received: ["received", "接收"],
  stored: ["stored", "入库"],
  duplicate: ["duplicate", "重复"],
  dead_lettered: ["dead-lettered", "死信"],
  in_flight: ["in flight", "处理中"],
  asOf: ["Data as of", "数据截至"],
  never: ["never", "从未"],
  day: ["d", "天"],
  hour: ["h", "小时"],
  minute: ["min", "分"],
  second: ["s", "秒"],
  door: ["Door", "门"],
  power: ["Power", "电源"],
  compressor: ["Compressor", "压缩机"],
  battery: ["Battery", "电量"],
  setpoint: ["Set point", "设定温度"],
  defrost: ["Defrost", "除霜"],
  storage: ["storage", "储存"],
  transport: ["transport", "运输"],
  dairy: ["dairy", "乳品"],
  food: ["food", "食品"],
  food_import: ["imported food", "进口食品"],
  infant_formula: ["infant formula", "婴幼儿配方食品"],
  produce: ["produce", "果蔬"],
  vaccine: ["vaccine", "疫苗"],
  drug: ["drugs", "药品"],
  device: ["medical devices", "医疗器械"],
  blood: ["blood", "血液"],
};

// GB/T 2260, the first four digits.
const leagues = {
  1501: ["Hohhot", "呼和浩特"], 1502: ["Baotou", "包头"], 1503: ["Wuhai", "乌海"], 1504: ["Chifeng", "赤峰"],
  1505: ["Tongliao", "通辽"], 1506: ["Ordos", "鄂尔多斯"], 1507: ["Hulunbuir", "呼伦贝尔"],
  1508: ["Bayannur", "巴彦淖尔"], 1509: ["Ulanqab", "乌兰察布"], 1522: ["Hinggan", "兴安盟"],
  1525: ["Xilingol", "锡林郭勒盟"], 1529: ["Alxa", "阿拉善盟"],
};

const MINUTE_MS = 60_000;
const HOUR_MS = 60 * MINUTE_MS;
const STALE_AFTER_MS = 10 * MINUTE_MS;
const UNITS_SHOWN_MAX = 500;
const ALERTS_SHOWN_MAX = 200;
const PAGES_MAX = 50;
const ALERT_PAGES_MAX = 5; // newest first: older ones are for the API
const READINGS_STREAM_UNITS_MAX = 200;
const POLL_EVERY_MS = 5_000;
const DRAW_EVERY_MS = 400;
const RETRY_AFTER_MS = 3_000;
const SPANS = [["1 h", HOUR_MS], ["6 h", 6 * HOUR_MS], ["24 h", 24 * HOUR_MS], ["7 d", 168 * HOUR_MS]];
const HIDDEN_KINDS = ["latitude", "longitude"];

const byId = (id) => document.getElementById(id);

const model = {
  units: new Map(), // "operator/unit" -> unit as the API gives it
  alerts: new Map(), // id -> alert
  pendingUnits: new Set(), // keys of units with a pending alert
  accounting: null,
  newestMs: 0, // the largest event time seen: the fleet's own now
  chosen: null, // key of the unit in the detail panel
  kind: "temperature",
  spanMs: 6 * HOUR_MS,
  series: null, // [{sensor, points: [{t, value, min, max}]}]
  seriesStepMs: MINUTE_MS,
  seriesProblem: null,
  seriesRange: null, // [fromMs, toMs]
  compliance: null, // of the chosen unit in the chart's time
  firingOnly: false,
  loaded: false,
  problem: null,
  connection: "connecting",
};

const remembered = (key, fallback) => {
  try { return localStorage.getItem(key) ?? fallback; } catch { return fallback; }
};
const remember = (key, value) => {
  // A browser may forbid storage; the choice then lasts as long as the page.
  try { localStorage.setItem(key, value); } catch { return; }
};

let language = remembered("frostline.language", navigator.language.startsWith("zh") ? "zh" : "en");
let zone = remembered("frostline.zone", "Asia/Shanghai");

const pick = (pair) => pair[language === "zh" ? 1 : 0];
// A word without a translation is shown as it came.
const say = (key) => (Object.hasOwn(texts, key) ? pick(texts[key]) : String(key ?? ""));

// Small helpers for the document

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

function makeSvg(tag, attributes, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

// Writes only what changed, so that a selection or a screen reader is not disturbed.
function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function setClass(element, className) {
  if (element.className !== className) element.className = className;
}

// Figures and times

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
const fixed = (value, decimals) => (isNumber(value) ? value.toFixed(decimals) : "–");
const millis = (time) => (time ? Date.parse(time) : NaN);

const formatters = new Map();
function formatTime(ms, options) {
  if (!Number.isFinite(ms)) return say("never");
  const key = zone + JSON.stringify(options);
  if (!formatters.has(key)) {
    formatters.set(key, new Intl.DateTimeFormat("en-CA", { timeZone: zone, hourCycle: "h23", ...options }));
  }
  return formatters.get(key).format(ms).replace(",", "");
}
const CLOCK = { hour: "2-digit", minute: "2-digit", second: "2-digit" };
const SHORT_CLOCK = { hour: "2-digit", minute: "2-digit" };
const SHORT_DAY = { month: "2-digit", day: "2-digit" };
const FULL = { year: "numeric", month: "2-digit", day: "2-digit", ...CLOCK };

// Today's times without the date, others with it.
function shortTime(ms) {
  const day = (at) => formatTime(at, SHORT_DAY);
  return formatTime(ms, Number.isFinite(ms) && day(ms) !== day(model.newestMs) ? { ...SHORT_DAY, ...SHORT_CLOCK } : CLOCK);
}

function duration(ms) {
  const seconds = Math.max(0, Math.round(ms / 1000));
  const parts = [
    [Math.floor(seconds / 86_400), "day"], [Math.floor(seconds / 3_600) % 24, "hour"],
    [Math.floor(seconds / 60) % 60, "minute"], [seconds % 60, "second"],
  ];
  const first = parts.findIndex(([count]) => count > 0);
  if (first < 0) return `0 ${say("second")}`;
  return parts.slice(first, first + 2).filter(([count]) => count > 0).map(([count, unit]) => `${count} ${say(unit)}`).join(" ");
}

const unitOfMeasure = (kind) =>
  ({ temperature: "°C", setpoint: "°C", humidity: "%RH", battery: "%" })[kind] ?? "";

function limitsText(low, high) {
  if (isNumber(low) && isNumber(high)) return `${fixed(low, 1)} … ${fixed(high, 1)} °C`;
  if (isNumber(high)) return `≤ ${fixed(high, 1)} °C`;
  if (isNumber(low)) return `≥ ${fixed(low, 1)} °C`;
  return "–";
}

const placeOf = (unit) => {
  const league = leagues[String(unit.jurisdiction ?? "").slice(0, 4)];
  return league ? pick(league) : unit.jurisdiction ?? "";
};

const keyOf = (item) => `${item.operator}/${item.unit}`;

const tone = (state) =>
  ({ compliant: "ok", excursion: "bad", firing: "bad", pending: "pending" })[state] ?? "gone";

// How far outside its limits a value is; negative inside.
function outside(value, low, high) {
  return Math.max(isNumber(low) ? low - value : -Infinity, isNumber(high) ? value - high : -Infinity);
}

// Of several probes the one that is worst off stands for the unit.
function leadingReading(unit, kind) {
  const readings = (unit.sensors ?? []).filter((sensor) => sensor.kind === kind && isNumber(sensor.value));
  if (readings.length === 0) return null;
  const how = (reading) => outside(reading.value, unit.limit_low, unit.limit_high);
  return kind === "temperature" ? readings.reduce((worst, next) => (how(next) > how(worst) ? next : worst)) : readings[0];
}

const noteTime = (ms) => {
  if (Number.isFinite(ms) && ms > model.newestMs) model.newestMs = ms;
};

// Fetching

async function get(path) {
  const response = await fetch(path, { headers: { accept: "application/json" } });
  if (!response.ok) throw new Error(`${path.split("?")[0]}: HTTP ${response.status}`);
  return response.json();
}

async function getAll(path, pagesMax = PAGES_MAX) {
  const items = [];
  let cursor = null;
  for (let page = 0; page < pagesMax; page += 1) {
    const separator = path.includes("?") ? "&" : "?";
    const body = await get(cursor === null ? path : `${path}${separator}cursor=${encodeURIComponent(cursor)}`);
    items.push(...body.items);
    if (body.next === null || body.next === undefined) break;
    cursor = body.next;
  }
  return items;
}

async function loadUnits() {
  const items = await getAll("/api/v1/units");
  model.units = new Map(items.map((unit) => [keyOf(unit), unit]));
  for (const unit of items) noteTime(millis(unit.last_seen));
}

async function loadAlerts() {
  const items = await getAll("/api/v1/alerts", ALERT_PAGES_MAX);
  model.alerts = new Map(items.map((alert) => [alert.id, alert]));
}

async function loadAccounting() {
  model.accounting = await get("/api/v1/accounting");
}

// Runs loaders side by side; what fails is named on the page, and the rest is shown all the same.
async function load(loaders) {
  const results = await Promise.allSettled(loaders.map((loader) => loader()));
  const failed = results.find((result) => result.status === "rejected");
  model.problem = failed ? String(failed.reason?.message ?? failed.reason) : null;
  model.loaded ||= !failed;
  draw();
}

let seriesRequest = 0;
async function loadSeries() {
  const unit = model.units.get(model.chosen);
  if (!unit) return;
  seriesRequest += 1;
  const request = seriesRequest;
  const toMs = model.newestMs || Date.now();
  const fromMs = toMs - model.spanMs;
  const sensors = (unit.sensors ?? []).filter((sensor) => sensor.kind === model.kind).map((sensor) => sensor.sensor);
  const stepMs = Math.ceil(model.spanMs / 360 / MINUTE_MS) * MINUTE_MS;
  const query = (sensor) => {
    const parameters = new URLSearchParams({
      operator: unit.operator, unit: unit.unit, sensor, kind: model.kind,
      from: new Date(fromMs).toISOString(), to: new Date(toMs + 1).toISOString(),
    });
    if (stepMs > MINUTE_MS) parameters.set("step", `${stepMs / 1000}s`);
    return `/api/v1/series?${parameters}`;
  };
  const accounts = new URLSearchParams({
    by: "unit", operator: unit.operator, unit: unit.unit,
    from: new Date(fromMs).toISOString(), to: new Date(toMs).toISOString(),
  });
  try {
    // The chart can do without the account.
    const compliance = get(`/api/v1/compliance?${accounts}`).catch(() => null);
    const all = await Promise.all(sensors.map((sensor) => getAll(query(sensor))));
    const account = (await compliance)?.items[0] ?? null;
    if (request !== seriesRequest) return;
    model.compliance = account;
    model.series = sensors.map((sensor, index) => ({ sensor, points: all[index].map(pointOf) }));
    model.seriesRange = [fromMs, toMs];
    model.seriesStepMs = stepMs;
    model.seriesProblem = null;
  } catch (error) {
    if (request !== seriesRequest) return;
    model.seriesProblem = say("noAnswer") + String(error?.message ?? error);
  }
  drawChart();
  drawCompliance();
}

function pointOf(item) {
  if (item.start !== undefined) return { t: millis(item.start), value: item.mean, min: item.min, max: item.max };
  return { t: millis(item.event_time), value: item.value, min: item.value, max: item.value };
}

// Live

let stream = null;
function connect() {
  const withReadings = model.units.size <= READINGS_STREAM_UNITS_MAX;
  stream = new EventSource(withReadings ? "/api/v1/stream?readings=true" : "/api/v1/stream");
  stream.addEventListener("open", () => {
    model.connection = "live";
    load([loadUnits, loadAlerts, loadAccounting]);
  });
  stream.addEventListener("error", () => {
    model.connection = "lost";
    // The browser retries by itself, except after an answer that is no stream.
    if (stream.readyState === EventSource.CLOSED) setTimeout(connect, RETRY_AFTER_MS);
    draw();
  });
  stream.addEventListener("transition", (event) => {
    const alert = JSON.parse(event.data);
    model.alerts.set(alert.id, alert);
    noteTime(millis(alert.resolved_at ?? alert.fired_at ?? alert.started_at));
    drawSoon();
  });
  stream.addEventListener("reading", (event) => {
    take(JSON.parse(event.data));
    drawSoon();
  });
}

function take(reading) {
  const unit = model.units.get(keyOf(reading));
  if (!unit) return; // The next poll brings it.
  const timeMs = millis(reading.event_time);
  noteTime(timeMs);
  if (!(timeMs < millis(unit.last_seen))) unit.last_seen = reading.event_time;
  unit.sensors ??= [];
  const known = unit.sensors.find((sensor) => sensor.sensor === reading.sensor && sensor.kind === reading.kind);
  if (!known) unit.sensors.push({ ...reading });
  else if (!(timeMs < millis(known.event_time))) Object.assign(known, { value: reading.value, event_time: reading.event_time });
}

// Drawing

let drawPlanned = false;
function drawSoon() {
  if (drawPlanned) return;
  drawPlanned = true;
  setTimeout(() => { drawPlanned = false; draw(); }, DRAW_EVERY_MS);
}

function draw() {
  const waiting = [...model.alerts.values()].filter((alert) => alert.state === "pending");
  model.pendingUnits = new Set(waiting.map(keyOf));
  chooseFirst();
  drawConnection();
  drawProblem();
  drawTiles();
  drawUnits();
  drawAlerts();
  drawDetailHead();
  drawCompliance();
  drawFooter();
}

function drawStatic() {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const element of document.querySelectorAll("[data-text]")) setText(element, say(element.dataset.text));
  byId("search").placeholder = say("search");
  byId("search").setAttribute("aria-label", say("search"));
  setText(byId("language"), language === "zh" ? "English" : "中文");
  drawSegments(byId("alert-filter"), [["all", false], ["firingOnly", true]], model.firingOnly, say, (firingOnly) => {
    model.firingOnly = firingOnly;
    drawStatic();
    draw();
  });
}

function drawConnection() {
  const place = byId("connection");
  setText(place, say(model.connection));
  setClass(place, `connection ${model.connection}`);
}

function drawProblem() {
  const place = byId("problem");
  // While the connection is lost, that is the problem; its consequences need not be told.
  const shown = model.problem !== null && model.connection !== "lost";
  place.hidden = !shown && model.connection !== "lost";
  setText(place, shown ? say("noAnswer") + model.problem : say("lost"));
}

function stateOf(unit) {
  if (unit.state !== "compliant") return unit.state;
  return model.pendingUnits.has(keyOf(unit)) ? "pending" : unit.state;
}

const firing = () => [...model.alerts.values()].filter((alert) => alert.state === "firing");

function drawTiles() {
  const counts = { compliant: 0, excursion: 0, unmonitored: 0 };
  for (const unit of model.units.values()) {
    if (Object.hasOwn(counts, unit.state)) counts[unit.state] += 1;
  }
  const tiles = [
    [counts.compliant, say("compliant"), "ok"],
    [counts.excursion, say("excursion"), "bad"],
    [counts.unmonitored, say("unmonitored"), "gone"],
    [firing().length, say("tileFiring"), "bad"],
    [model.accounting?.stored ?? 0, say("tileStored"), "info"],
  ];
  const place = byId("tiles");
  while (place.children.length < tiles.length) {
    const tile = make("div");
    tile.append(make("strong"), make("span"));
    place.append(tile);
  }
  tiles.forEach(([count, label, kind], index) => {
    const tile = place.children[index];
    setClass(tile, `tile ${kind}${count > 0 ? " some" : ""}`);
    setText(tile.children[0], model.loaded ? count.toLocaleString("en") : "–");
    setText(tile.children[1], label);
  });
}

function drawUnits() {
  const wanted = byId("search").value.trim().toLowerCase();
  const matches = [...model.units.values()].filter((unit) =>
    [unit.unit, unit.operator, unit.site, unit.category, say(unit.category), placeOf(unit), say(stateOf(unit))]
      .some((text) => String(text ?? "").toLowerCase().includes(wanted)));
  const shown = matches.slice(0, UNITS_SHOWN_MAX);
  const body = byId("units");
  while (body.children.length > shown.length) body.lastElementChild.remove();
  while (body.children.length < shown.length) body.append(makeUnitRow());
  shown.forEach((unit, index) => fillUnitRow(body.children[index], unit));

  const note = byId("units-note");
  const hidden = matches.length - shown.length;
  note.hidden = !(shown.length === 0 || hidden > 0);
  if (hidden > 0) setText(note, `${hidden} ${say("moreUnits")}`);
  else if (!model.loaded) setText(note, say("loading"));
  else setText(note, say(model.units.size === 0 ? "noUnits" : "noMatch"));
}

function makeUnitRow() {
  const row = make("tr");
  const cell = (className, ...children) => {
    const made = make("td", className);
    made.append(...children);
    row.append(made);
  };
  cell("cell-state", make("span", "badge"));
  cell("cell-unit", make("button", "unit-name"), make("span", "small"));
  cell("cell-goods", make("span"), make("span", "small"));
  cell("cell-temperature number", make("span"));
  const gauge = make("span", "gauge");
  gauge.append(make("i"), make("b"));
  cell("cell-limits", make("span"), gauge);
  cell("cell-humidity number", make("span"));
  cell("cell-seen number", make("span"));
  row.querySelector("button").type = "button";
  // A click on the button bubbles up to the row.
  row.addEventListener("click", () => choose(row.dataset.key, true));
  return row;
}

function fillUnitRow(row, unit) {
  const key = keyOf(unit);
  const [state, name, goods, temperature, limits, humidity, seen] = row.children;
  if (row.dataset.key !== key) row.dataset.key = key;
  setClass(row, key === model.chosen ? "chosen" : "");

  const now = stateOf(unit);
  setText(state.firstElementChild, say(now));
  setClass(state.firstElementChild, `badge ${tone(now)}`);
  setText(name.children[0], unit.unit);
  setText(name.children[1], [placeOf(unit), unit.operator].filter(Boolean).join(" · "));
  setText(goods.children[0], say(unit.category ?? "–"));
  setText(goods.children[1], say(unit.kind ?? ""));

  const reading = leadingReading(unit, "temperature");
  const isOut = reading !== null && outside(reading.value, unit.limit_low, unit.limit_high) > 0;
  setText(temperature.firstElementChild, reading === null ? "–" : `${fixed(reading.value, 1)} °C`);
  setClass(temperature.firstElementChild, isOut ? "warm" : "");
  setText(limits.firstElementChild, limitsText(unit.limit_low, unit.limit_high));
  fillGauge(limits.lastElementChild, reading?.value, unit.limit_low, unit.limit_high);
  const damp = leadingReading(unit, "humidity");
  setText(humidity.firstElementChild, damp === null ? "–" : `${fixed(damp.value, 0)} %`);

  const seenMs = millis(unit.last_seen);
  setText(seen.firstElementChild, shortTime(seenMs));
  setClass(seen.firstElementChild, model.newestMs - seenMs > STALE_AFTER_MS ? "stale" : "");
}

// Where the value stands between the limits, with as much room outside as inside.
function fillGauge(gauge, value, low, high) {
  gauge.hidden = !isNumber(value) || (!isNumber(low) && !isNumber(high));
  if (gauge.hidden) return;
  const width = isNumber(low) && isNumber(high) ? high - low : 6;
  const from = (isNumber(low) ? low : high - width) - width / 2;
  const to = (isNumber(high) ? high : low + width) + width / 2;
  const percent = (at) => Math.min(100, Math.max(0, (100 * (at - from)) / (to - from)));
  const [band, mark] = gauge.children;
  band.style.left = `${isNumber(low) ? percent(low) : 0}%`;
  band.style.right = `${isNumber(high) ? 100 - percent(high) : 0}%`;
  // No edge where there is no limit.
  band.style.borderLeftWidth = isNumber(low) ? "" : "0";
  band.style.borderRightWidth = isNumber(high) ? "" : "0";
  mark.style.left = `${percent(value)}%`;
}

const alertTimeMs = (alert) => millis(alert.fired_at ?? alert.started_at);

function drawAlerts() {
  const shown = [...model.alerts.values()]
    .filter((alert) => (model.firingOnly ? alert.state === "firing" : alert.state !== "pending"))
    .sort((one, other) => alertTimeMs(other) - alertTimeMs(one) || (one.id < other.id ? -1 : 1))
    .slice(0, ALERTS_SHOWN_MAX);
  const list = byId("alerts");
  while (list.children.length > shown.length) list.lastElementChild.remove();
  while (list.children.length < shown.length) list.append(makeAlertItem());
  shown.forEach((alert, index) => fillAlertItem(list.children[index], alert));
  const note = byId("alerts-note");
  note.hidden = shown.length > 0;
  setText(note, say(!model.loaded ? "loading" : model.firingOnly ? "noFiring" : "noAlerts"));
}

function makeAlertItem() {
  const item = make("li");
  const top = make("div", "alert-top");
  top.append(make("span", "badge"), make("span"));
  const title = make("button", "alert-title");
  title.type = "button";
  item.append(top, title, make("span", "small"), make("span", "small"));
  item.addEventListener("click", () => choose(item.dataset.key, true));
  return item;
}

function fillAlertItem(item, alert) {
  item.dataset.key = keyOf(alert);
  setClass(item, [alert.state, alert.severity].filter((word) => /^[a-z]+$/.test(word)).join(" "));
  const [top, title, what, when] = item.children;
  setText(top.children[0], say(alert.state));
  setClass(top.children[0], `badge ${alert.state === "resolved" ? "ok" : tone(alert.state)}`);
  const marks = [say(alert.severity)];
  if (alert.revision > 1) marks.push(say("amended"));
  if (alert.origin === "exercise") marks.push(say("exercise"));
  setText(top.children[1], marks.join(" · "));
  setText(title, alert.message?.[language] ?? alert.message?.en ?? alert.rule);

  const facts = [[alert.unit, alert.sensor].filter(Boolean).join(" ")];
  if (isNumber(alert.extreme)) facts.push(`${say("extreme")} ${fixed(alert.extreme, 1)}`);
  setText(what, facts.join(" · "));
  const startMs = millis(alert.started_at);
  const endMs = millis(alert.resolved_at);
  setText(when, Number.isFinite(endMs)
    ? `${shortTime(startMs)} – ${shortTime(endMs)} · ${say("lasted")} ${duration(endMs - startMs)}`
    : `${say("since")} ${shortTime(startMs)}`);
}

function drawFooter() {
  const line = byId("accounting");
  const account = model.accounting;
  if (account) {
    const term = (key) => `${say(key)} ${Number(account[key]).toLocaleString("en")}`;
    const sum = account.stored + account.duplicate + account.dead_lettered + account.in_flight;
    const terms = ["stored", "duplicate", "dead_lettered", "in_flight"].map(term).join(" + ");
    setText(line, `${term("received")} ${account.received === sum ? "=" : "≠"} ${terms}`);
    setClass(line, account.received === sum ? "accounting" : "accounting broken");
  }
  setText(byId("as-of"), model.newestMs > 0 ? `${say("asOf")} ${formatTime(model.newestMs, FULL)} (${zone})` : "");
}

// One unit

function chooseFirst() {
  if (model.chosen !== null || model.units.size === 0 || !matchMedia("(min-width: 1081px)").matches) return;
  const units = [...model.units.values()];
  choose(keyOf(units.find((unit) => unit.state === "excursion") ?? units[0]), false);
}

function choose(key, byHand) {
  if (!model.units.has(key)) return;
  model.chosen = key;
  model.kind = "temperature";
  model.series = null;
  model.compliance = null;
  byId("detail").hidden = false;
  drawUnits();
  drawDetailHead();
  drawChart();
  drawCompliance();
  loadSeries();
  if (byHand) byId("detail").scrollIntoView({ block: "nearest" });
}

function drawSegments(place, choices, current, label, onChoice) {
  const hadFocus = place.contains(document.activeElement);
  place.replaceChildren(...choices.map(([name, value]) => {
    const button = make("button", "", label(name));
    button.type = "button";
    button.setAttribute("aria-pressed", String(value === current));
    button.addEventListener("click", () => onChoice(value));
    return button;
  }));
  if (hadFocus) place.querySelector('[aria-pressed="true"]')?.focus();
}

let headShown = "";
function drawDetailHead() {
  const unit = model.units.get(model.chosen);
  if (!unit) return;
  setText(byId("detail-title"), unit.unit);
  const facts = [unit.site, placeOf(unit), unit.operator, say(unit.kind ?? ""), say(unit.category ?? "")];
  setText(byId("detail-subtitle"), facts.filter(Boolean).join(" · "));
  const kinds = [...new Set((unit.sensors ?? []).map((sensor) => sensor.kind))].filter((kind) => !HIDDEN_KINDS.includes(kind));
  // Rebuilt only when something changed: a button must not vanish under a finger.
  const head = JSON.stringify([language, model.chosen, kinds, model.kind, model.spanMs]);
  if (head === headShown) return;
  headShown = head;
  drawSegments(byId("kinds"), kinds.map((kind) => [kind, kind]), model.kind, say, (kind) => {
    model.kind = kind;
    model.series = null;
    drawDetailHead();
    drawChart();
    loadSeries();
  });
  drawSegments(byId("spans"), SPANS, model.spanMs, (name) => name, (spanMs) => {
    model.spanMs = spanMs;
    drawDetailHead();
    loadSeries();
  });
}

// What became of the chart's time, and whether the device's clock can be trusted.
function drawCompliance() {
  const unit = model.units.get(model.chosen);
  const parts = [];
  if (model.compliance?.on_duty_s > 0) {
    const share = (state) => `${say(state)} ${(100 * model.compliance[`${state}_s`] / model.compliance.on_duty_s).toFixed(1)} %`;
    parts.push(say("inThisTime") + ["compliant", "excursion", "unmonitored"].map(share).join(" · "));
  } else if (model.compliance) {
    parts.push(say("notOnDuty"));
  }
  if (unit?.clock?.ahead) parts.push(`${say("clockAhead")} ${duration(unit.clock.skew_s * 1000)}`);
  byId("compliance").hidden = parts.length === 0;
  setText(byId("compliance"), parts.join(" "));
}

function drawChart() {
  const place = byId("chart");
  const unit = model.units.get(model.chosen);
  if (!unit) return;
  const series = model.series?.map((one) => ({ ...one, points: one.points.filter((point) => Number.isFinite(point.t)) }));
  const values = series?.flatMap((one) => one.points).filter((point) => isNumber(point.value)) ?? [];
  if (values.length === 0) {
    place.replaceChildren(make("p", "note", model.seriesProblem ?? say(model.series === null ? "loading" : "noReadings")));
    byId("legend").replaceChildren();
    return;
  }

  const size = { width: Math.max(280, place.clientWidth - 24), height: 240, left: 44, right: 8, top: 10, bottom: 22 };
  const [fromMs, toMs] = model.seriesRange;
  const [low, high] = model.kind === "temperature" ? [unit.limit_low, unit.limit_high] : [null, null];
  const [bottom, top] = verticalRange(values, low, high);
  const x = (ms) => size.left + ((ms - fromMs) / (toMs - fromMs)) * (size.width - size.left - size.right);
  const y = (value) => size.top + ((top - value) / (top - bottom)) * (size.height - size.top - size.bottom);
  const yInside = (value) => Math.min(size.height - size.bottom, Math.max(size.top, y(value)));

  const svg = makeSvg("svg", { viewBox: `0 0 ${size.width} ${size.height}`, role: "img", "aria-label": `${unit.unit}: ${say(model.kind)}` });
  if (isNumber(low) || isNumber(high)) {
    const upper = yInside(isNumber(high) ? high : top);
    const lower = yInside(isNumber(low) ? low : bottom);
    svg.append(makeSvg("rect", { class: "allowed", x: size.left, y: upper, width: size.width - size.left - size.right, height: lower - upper }));
  }
  const episodes = [...model.alerts.values()].filter((alert) =>
    keyOf(alert) === model.chosen && ["firing", "resolved"].includes(alert.state) &&
    millis(alert.started_at) < toMs && !(millis(alert.resolved_at) < fromMs));
  for (const alert of episodes) {
    const startX = x(Math.max(fromMs, millis(alert.started_at)));
    const endX = x(Math.min(toMs, alert.resolved_at ? millis(alert.resolved_at) : toMs));
    svg.append(makeSvg("rect", { class: "episode", x: startX, y: size.top, width: Math.max(1, endX - startX), height: size.height - size.top - size.bottom }));
  }
  for (const value of ticks(bottom, top, 5)) {
    svg.append(makeSvg("line", { class: "grid", x1: size.left, x2: size.width - size.right, y1: y(value), y2: y(value) }));
    svg.append(makeSvg("text", { x: size.left - 6, y: y(value) + 4, "text-anchor": "end" }, String(Number(value.toFixed(2)))));
  }
  for (const ms of timeTicks(fromMs, toMs, size.width < 500 ? 3 : 6)) {
    const label = formatTime(ms, model.spanMs > 24 * HOUR_MS ? SHORT_DAY : SHORT_CLOCK);
    svg.append(makeSvg("line", { class: "grid", x1: x(ms), x2: x(ms), y1: size.height - size.bottom, y2: size.height - size.bottom + 4 }));
    svg.append(makeSvg("text", { x: x(ms), y: size.height - 4, "text-anchor": "middle" }, label));
  }
  for (const limit of [low, high].filter(isNumber)) {
    if (limit > bottom && limit < top) svg.append(makeSvg("line", { class: "limit", x1: size.left, x2: size.width - size.right, y1: y(limit), y2: y(limit) }));
  }
  const gapMs = Math.max(3 * model.seriesStepMs, STALE_AFTER_MS);
  const steps = ["door", "power", "compressor", "defrost"].includes(model.kind);
  series.forEach((one, index) => {
    const color = `s${(index % 4) + 1}`;
    for (const run of runs(one.points, gapMs)) {
      if (run.some((point) => point.max > point.min)) {
        const upper = run.map((point) => `${x(point.t)},${y(point.max)}`);
        const lower = run.map((point) => `${x(point.t)},${y(point.min)}`).reverse();
        svg.append(makeSvg("polygon", { class: `spread ${color}`, points: [...upper, ...lower].join(" ") }));
      }
      const path = run.map((point, at) =>
        at === 0 ? `M${x(point.t)} ${y(point.value)}` : steps ? `H${x(point.t)}V${y(point.value)}` : `L${x(point.t)} ${y(point.value)}`);
      // A lone reading is a dot: a line of no length with round ends.
      svg.append(makeSvg("path", { class: `trace ${color}`, d: path.join("") + (run.length === 1 ? "h0.01" : "") }));
    }
  });

  const cross = makeSvg("line", { class: "cross", y1: size.top, y2: size.height - size.bottom, visibility: "hidden" });
  svg.append(cross);
  const tip = make("div", "tip");
  tip.hidden = true;
  const hide = () => { tip.hidden = true; cross.setAttribute("visibility", "hidden"); };
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect();
    const atX = ((event.clientX - box.left) / box.width) * size.width;
    const atMs = fromMs + ((atX - size.left) / (size.width - size.left - size.right)) * (toMs - fromMs);
    const near = series.map((one) => [one.sensor, nearest(one.points, atMs)]).filter(([, point]) => point && Math.abs(point.t - atMs) <= gapMs);
    if (near.length === 0) return hide();
    const shownMs = near[0][1].t;
    cross.setAttribute("x1", x(shownMs));
    cross.setAttribute("x2", x(shownMs));
    cross.setAttribute("visibility", "visible");
    tip.replaceChildren(make("div", "", formatTime(shownMs, FULL)), ...near.map(([sensor, point]) => make("div", "", `${sensor}: ${pointText(point)}`)));
    tip.hidden = false;
    const left = x(shownMs) * (box.width / size.width) + 24;
    tip.style.left = left + tip.offsetWidth > box.width ? `${Math.max(0, left - tip.offsetWidth - 24)}px` : `${left}px`;
  });
  svg.addEventListener("pointerleave", hide);
  place.replaceChildren(svg, tip);
  drawLegend(series, isNumber(low) || isNumber(high), episodes.length > 0);
}

function drawLegend(series, hasLimits, hasEpisodes) {
  const entries = series.map((one, index) => {
    const last = one.points.findLast((point) => isNumber(point.value));
    return make("span", `s${(index % 4) + 1}`, last ? `${one.sensor}: ${pointText({ value: last.value })}` : one.sensor);
  });
  if (hasLimits) entries.push(make("span", "allowed", say("allowed")));
  if (hasEpisodes) entries.push(make("span", "episode", say("episode")));
  byId("legend").replaceChildren(...entries);
}

function pointText(point) {
  const unit = unitOfMeasure(model.kind);
  const main = `${isNumber(point.value) ? Number(point.value.toFixed(2)) : "–"} ${unit}`.trim();
  return point.max > point.min ? `${main} (${fixed(point.min, 1)} … ${fixed(point.max, 1)})` : main;
}

// Both limits stay in sight where the values come near them.
function verticalRange(values, low, high) {
  let bottom = Math.min(...values.map((point) => point.min ?? point.value));
  let top = Math.max(...values.map((point) => point.max ?? point.value));
  const near = Math.max(4, 2 * (top - bottom));
  if (isNumber(low) && bottom - low < near) bottom = Math.min(bottom, low);
  if (isNumber(high) && high - top < near) top = Math.max(top, high);
  const room = Math.max(0.5, (top - bottom) * 0.08);
  return [bottom - room, top + room];
}

function ticks(from, to, about) {
  const raw = (to - from) / about;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= raw);
  const found = [];
  for (let value = Math.ceil(from / step) * step; value <= to; value += step) found.push(value);
  return found;
}

// Whole hours and days of China's clock, eight hours ahead of UTC.
function timeTicks(fromMs, toMs, about) {
  const sizes = [5, 10, 15, 30, 60, 120, 180, 360, 720, 1440, 2880].map((minutes) => minutes * MINUTE_MS);
  const step = sizes.find((size) => (toMs - fromMs) / size <= about) ?? sizes.at(-1);
  const shift = 8 * HOUR_MS;
  const found = [];
  for (let ms = Math.ceil((fromMs + shift) / step) * step - shift; ms <= toMs; ms += step) found.push(ms);
  return found;
}

// Splits where a probe failed or nothing came for long: a line drawn there would claim what nobody measured.
function runs(points, gapMs) {
  const found = [];
  let run = [];
  for (const point of points) {
    if (run.length > 0 && (!isNumber(point.value) || point.t - run.at(-1).t > gapMs)) {
      found.push(run);
      run = [];
    }
    if (isNumber(point.value)) run.push(point);
  }
  if (run.length > 0) found.push(run);
  return found;
}

function nearest(points, ms) {
  let best = null;
  for (const point of points) {
    if (best === null || Math.abs(point.t - ms) < Math.abs(best.t - ms)) best = point;
  }
  return best;
}

// Start

function offerZones() {
  const own = Intl.DateTimeFormat().resolvedOptions().timeZone;
  const zones = [...new Set(["Asia/Shanghai", own, "UTC"])];
  if (!zones.includes(zone)) zone = "Asia/Shanghai";
  byId("zone").replaceChildren(...zones.map((name) => {
    const option = make("option", "", name);
    option.value = name;
    option.selected = name === zone;
    return option;
  }));
}

function start() {
  offerZones();
  drawStatic();
  draw();
  byId("zone").addEventListener("change", (event) => {
    zone = event.target.value;
    remember("frostline.zone", zone);
    draw();
    drawChart();
  });
  byId("language").addEventListener("click", () => {
    language = language === "zh" ? "en" : "zh";
    remember("frostline.language", language);
    drawStatic();
    draw();
    drawChart();
  });
  byId("search").addEventListener("input", drawUnits);
  byId("detail-close").addEventListener("click", () => {
    // Not null: the page must not open another by itself.
    model.chosen = "";
    byId("detail").hidden = true;
    drawUnits();
  });
  addEventListener("resize", drawChart);
  load([loadUnits, loadAlerts, loadAccounting]).then(connect);
  setInterval(() => {
    if (document.hidden || model.connection === "lost") return;
    // Alerts too: one that was pending and came to nothing ends without a transition.
    load([loadUnits, loadAlerts, loadAccounting]);
    // Not while somebody is reading a value off the chart.
    if (!byId("chart").matches(":hover")) loadSeries();
  }, POLL_EVERY_MS);
}

start();
