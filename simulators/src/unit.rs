use std::ops::Range;

use crate::chance::Chance;
use crate::disturbance::{Cause, Disturbance, disturbances};
use crate::equipment::{Equipment, Template};
use crate::fleet::Message;
use crate::payload::{self, Measured, Sample, Value, to_hundredths};
use crate::places::{LEAGUES, League};
use crate::thermal::{Climate, Conditions};

/// Whether a unit stands or moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnitKind {
    /// A cold room or a fridge.
    Storage,
    /// A reefer truck or a box.
    Transport,
}

impl UnitKind {
    /// Returns the word used in files: `storage` or `transport`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Storage => "storage",
            Self::Transport => "transport",
        }
    }
}

/// One unit of the fleet, as its operator would describe it.
#[derive(Debug)]
pub struct UnitInfo {
    /// The id of the enterprise that runs it.
    pub operator: &'static str,
    /// Its own id, as in topics.
    pub unit: String,
    /// Whether it stands or moves.
    pub kind: UnitKind,
    /// Where it is registered.
    pub league: &'static League,
    /// The id of the profile with the limits of its goods.
    pub profile: &'static str,
    /// The place it belongs to.
    pub site: String,
    /// Its probes.
    pub sensors: Vec<SensorInfo>,
}

/// One probe and one thing that it measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SensorInfo {
    /// `t1`, `h1`, ….
    pub sensor: &'static str,
    /// `temperature`, `humidity`, ….
    pub kind: &'static str,
    /// Where in the unit it sits.
    pub placement: &'static str,
}

const MINUTE_MS: i64 = 60_000;
/// A broker publishes the last will when nothing came for one and a half times a keep-alive of a minute.
const LAST_WILL_AFTER_MIN: usize = 1;
/// A device keeps its uploads small: two hours at a time.
const BACKLOG_SAMPLES_MAX: usize = 120;

/// A unit, what is happening to it, and what it has not been able to send.
#[derive(Debug)]
pub(crate) struct SimulatedUnit {
    pub(crate) info: UnitInfo,
    equipment: Equipment,
    chance: Chance,
    disturbances: Vec<Disturbance>,
    /// Minutes during which the unit is loaded through an open door with the plant switched off.
    careless_loading: Range<i64>,
    climate: Climate,
    /// How much warmer this unit's hall is than the usual 20 °C.
    hall_offset_celsius: f64,
    humidity_target_percent: f64,
    humidity_percent: f64,
    battery_percent: f64,
    /// The other end of a truck's line.
    destination: &'static League,
    /// Where within each minute this unit measures.
    phase_ms: i64,
    telemetry_topic: String,
    status_topic: String,
    next_seq: u64,
    announced: bool,
    /// Samples since the signal was lost, oldest first.
    unsent: Vec<Sample>,
    /// The last message sent: after a gap it is sent again, because its acknowledgement may have been lost.
    last_sent: Option<Vec<u8>>,
}

impl SimulatedUnit {
    /// Builds the unit with this index; where `careless_loading` is not empty, nothing else happens to it before.
    pub(crate) fn new(
        seed: u64,
        index: usize,
        template: &'static Template,
        round: usize,
        careless: Range<i64>,
    ) -> Self {
        let mut chance = Chance::new(seed, index as u64 + 1);
        let league = &LEAGUES[template.league];
        let unit = format!("{}-{}-{round}", league.slug(), template.name);
        let quiet_min = if careless.is_empty() { 0 } else { careless.end + 10 };
        let topic = |last: &str| format!("coldchain/v1/{}/{unit}/{last}", template.operator.id);
        Self {
            telemetry_topic: topic("telemetry"),
            status_topic: topic("status"),
            info: UnitInfo {
                operator: template.operator.id,
                kind: template.equipment.unit_kind(),
                league,
                profile: template.goods.profile,
                site: format!("{} {}", league.en, template.operator.site),
                sensors: sensors(template.equipment),
                unit,
            },
            equipment: template.equipment,
            disturbances: disturbances(template.equipment, quiet_min, &mut chance),
            careless_loading: careless,
            climate: Climate::new(template.equipment.thermal(), template.goods.setpoint_celsius, &mut chance),
            hall_offset_celsius: chance.between(-2.0, 2.0),
            humidity_target_percent: template.goods.humidity_percent,
            humidity_percent: template.goods.humidity_percent + chance.between(-2.0, 2.0),
            battery_percent: chance.between(60.0, 100.0),
            destination: &LEAGUES[(template.league + 1) % LEAGUES.len()],
            phase_ms: chance.whole_between(0, MINUTE_MS - 1),
            next_seq: 1,
            announced: false,
            unsent: Vec::new(),
            last_sent: None,
            chance,
        }
    }

    /// Lets minute number `minute`, which begins at `minute_ms`, pass and appends what the unit publishes in it.
    pub(crate) fn step(&mut self, minute: i64, minute_ms: i64, messages: &mut Vec<Message>) {
        let time_ms = minute_ms + self.phase_ms;
        let now = self.happening(minute);
        let has = |cause| now.contains(&cause);
        let careless = self.careless_loading.contains(&minute);
        let door_open = careless || has(Cause::DoorOpen);
        let power = !has(Cause::PowerLost);
        let surroundings_celsius = self.surroundings_celsius(time_ms, has(Cause::Exposed));
        let plant = power && !careless;
        self.climate.advance(Conditions {
            surroundings_celsius,
            door_open,
            defrosting: plant && has(Cause::Defrost),
            can_cool: plant && !has(Cause::CompressorStopped) && !self.packs_are_spent(has(Cause::Exposed)),
            can_heat: plant && !has(Cause::Exposed),
        });
        self.let_humidity_follow(door_open, plant && has(Cause::Defrost));
        self.let_battery_follow(power);
        let readings = self.measure(minute, door_open, power, has(Cause::ProbeFailed));
        self.publish(Sample { time_ms, readings }, !has(Cause::RadioGap), messages);
    }

    fn happening(&mut self, minute: i64) -> Vec<Cause> {
        let chance = &mut self.chance;
        self.disturbances
            .iter_mut()
            .filter_map(|disturbance| disturbance.holds_at(minute, chance).then_some(disturbance.cause))
            .collect()
    }

    /// Halls are heated; trucks meet the weather, and so does a box left in the yard.
    fn surroundings_celsius(&self, time_ms: i64, exposed: bool) -> f64 {
        match self.equipment {
            Equipment::ColdRoom | Equipment::Fridge => 20.0 + self.hall_offset_celsius,
            Equipment::Box if !exposed => 16.0 + self.hall_offset_celsius,
            Equipment::Box | Equipment::Truck => self.info.league.outside_celsius(time_ms) + self.hall_offset_celsius,
        }
    }

    /// The packs of a box hold it in a cabin, not in frost or heat.
    fn packs_are_spent(&self, exposed: bool) -> bool {
        self.equipment == Equipment::Box && exposed
    }

    fn let_humidity_follow(&mut self, door_open: bool, defrosting: bool) {
        let target = match (door_open, defrosting) {
            (true, _) => 55.0,
            (false, true) => (self.humidity_target_percent + 6.0).min(99.0),
            (false, false) => self.humidity_target_percent,
        };
        self.humidity_percent += 0.12 * (target - self.humidity_percent) + 0.15 * self.chance.normal();
        self.humidity_percent = self.humidity_percent.clamp(5.0, 99.5);
    }

    fn let_battery_follow(&mut self, power: bool) {
        if self.equipment.has_mains() && power {
            self.battery_percent = (self.battery_percent + 0.5).min(100.0);
        } else {
            // A box runs for two weeks; somebody changes the battery at a fifth.
            self.battery_percent -= 0.005;
            if self.battery_percent < 20.0 {
                self.battery_percent = 100.0;
            }
        }
    }

    fn measure(&mut self, minute: i64, door_open: bool, power: bool, probe_failed: bool) -> Vec<Measured> {
        const WARM_END_CELSIUS: f64 = 0.35;
        const NOISE_CELSIUS: f64 = 0.03;
        let inside_celsius = self.climate.probe_celsius();
        let (latitude, longitude) = self.position(minute);
        let mut readings = Vec::with_capacity(self.info.sensors.len());
        for &SensorInfo { sensor, kind, .. } in &self.info.sensors {
            let (value, unit) = match (kind, sensor) {
                ("temperature", "t1") if probe_failed => (Value::Failed, Some("Cel")),
                ("temperature", sensor) => {
                    let end = if sensor == "t2" { WARM_END_CELSIUS } else { 0.0 };
                    let shown = inside_celsius + end + NOISE_CELSIUS * self.chance.normal();
                    (Value::Number(to_hundredths(shown)), Some("Cel"))
                }
                ("humidity", _) => (Value::Number(to_hundredths(self.humidity_percent)), Some("%RH")),
                ("door", _) => (Value::Switch(door_open), None),
                ("power", _) => (Value::Switch(power), None),
                ("battery", _) => (Value::Number(to_hundredths(self.battery_percent)), Some("%")),
                ("latitude", _) => (Value::Number(latitude), None),
                ("longitude", _) => (Value::Number(longitude), None),
                (kind, _) => unreachable!("no unit has a probe for {kind}"),
            };
            readings.push(Measured { sensor, kind, value, unit });
        }
        readings
    }

    /// Returns where a truck is on its line between home and the neighbouring league, to a ten-thousandth of a degree.
    fn position(&self, minute: i64) -> (f64, f64) {
        const KILOMETRES_PER_MINUTE: f64 = 1.1;
        const KILOMETRES_PER_DEGREE: f64 = 111.2;
        let (home, away) = (self.info.league, self.destination);
        let north = away.latitude - home.latitude;
        let east = away.longitude - home.longitude;
        let eastward_share = home.latitude.to_radians().cos();
        let line_km = KILOMETRES_PER_DEGREE * (north * north + east * east * eastward_share * eastward_share).sqrt();
        let legs = minute as f64 * KILOMETRES_PER_MINUTE / line_km;
        let share = if legs % 2.0 < 1.0 { legs % 1.0 } else { 1.0 - legs % 1.0 };
        let to_grid = |degrees: f64| (degrees * 10_000.0).round() / 10_000.0;
        (to_grid(home.latitude + north * share), to_grid(home.longitude + east * share))
    }

    fn publish(&mut self, sample: Sample, signal: bool, messages: &mut Vec<Message>) {
        let time_ms = sample.time_ms;
        if !signal {
            self.unsent.push(sample);
            if self.announced && self.unsent.len() > LAST_WILL_AFTER_MIN {
                self.announced = false;
                messages.push(self.status(false, time_ms));
            }
            return;
        }
        if !self.announced {
            self.announced = true;
            messages.push(self.status(true, time_ms));
        }
        if !self.unsent.is_empty() {
            if let Some(payload) = self.last_sent.take() {
                messages.push(self.telemetry(payload, time_ms));
            }
            let unsent = std::mem::take(&mut self.unsent);
            for samples in unsent.chunks(BACKLOG_SAMPLES_MAX) {
                let payload = payload::backlog(self.take_seq(), samples);
                messages.push(self.telemetry(payload, time_ms));
            }
        }
        let payload = payload::telemetry(self.take_seq(), &sample);
        self.last_sent = Some(payload.clone());
        messages.push(self.telemetry(payload, time_ms));
    }

    fn take_seq(&mut self) -> u64 {
        let seq = self.next_seq;
        self.next_seq += 1;
        seq
    }

    fn telemetry(&self, payload: Vec<u8>, simulated_time_ms: i64) -> Message {
        Message { topic: self.telemetry_topic.clone(), payload, retain: false, simulated_time_ms }
    }

    fn status(&self, online: bool, simulated_time_ms: i64) -> Message {
        let payload = payload::status(online, simulated_time_ms);
        Message { topic: self.status_topic.clone(), payload, retain: true, simulated_time_ms }
    }
}

fn sensors(equipment: Equipment) -> Vec<SensorInfo> {
    let sensor = |sensor, kind, placement| SensorInfo { sensor, kind, placement };
    let mut sensors = vec![sensor("t1", "temperature", "return air")];
    if equipment.probes() == 2 {
        sensors.push(sensor("t2", "temperature", "warm end"));
    }
    sensors.push(sensor("h1", "humidity", "return air"));
    sensors.push(sensor("d1", "door", "door"));
    if equipment.has_mains() {
        sensors.push(sensor("p1", "power", "plant"));
    }
    if equipment.unit_kind() == UnitKind::Transport {
        sensors.push(sensor("b1", "battery", "gateway"));
    }
    if equipment == Equipment::Truck {
        sensors.push(sensor("g1", "latitude", "roof"));
        sensors.push(sensor("g1", "longitude", "roof"));
    }
    sensors
}
