use crate::chance::Chance;
use crate::configuration;
use crate::equipment::TEMPLATES;
use crate::unit::{SimulatedUnit, UnitInfo};

/// What a fleet is made from; equal options give equal bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FleetOptions {
    /// How many units.
    pub units: usize,
    /// Decides everything that happens.
    pub seed: u64,
    /// When the simulation begins, milliseconds since 1970.
    pub start_ms: i64,
}

/// One MQTT message as a device publishes it, with QoS 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Where to.
    pub topic: String,
    /// What.
    pub payload: Vec<u8>,
    /// Whether the broker keeps it for later subscribers.
    pub retain: bool,
    /// When the device publishes it, in simulated time, milliseconds since 1970.
    pub simulated_time_ms: i64,
}

/// A simulated fleet at home in Inner Mongolia: each unit reports every simulated minute.
///
/// Within the first 30 minutes at least one unit is too warm for more than ten: by construction, since one careless
/// loading is put there; the seed decides where and when.
#[derive(Debug)]
pub struct Fleet {
    units: Vec<SimulatedUnit>,
    start_ms: i64,
    next_minute: i64,
}

impl Fleet {
    /// Builds the fleet, standing at its first minute.
    pub fn new(options: FleetOptions) -> Self {
        let mut chance = Chance::new(options.seed, 0);
        let template_of = |index: usize| &TEMPLATES[index % TEMPLATES.len()];
        let fast: Vec<usize> = (0..options.units).filter(|index| template_of(*index).warms_fast()).collect();
        let careless_index = (!fast.is_empty()).then(|| fast[chance.whole_between(0, fast.len() as i64 - 1) as usize]);
        let careless_from = chance.whole_between(2, 5);
        let units = (0..options.units)
            .map(|index| {
                let careless = if Some(index) == careless_index { careless_from..careless_from + 22 } else { 0..0 };
                let round = index / TEMPLATES.len() + 1;
                SimulatedUnit::new(options.seed, index, template_of(index), round, careless)
            })
            .collect();
        Self { units, start_ms: options.start_ms, next_minute: 0 }
    }

    /// Returns the units, in a fixed order.
    pub fn units(&self) -> impl ExactSizeIterator<Item = &UnitInfo> + Clone {
        self.units.iter().map(|unit| &unit.info)
    }

    /// Returns the instant up to which the fleet has been simulated, milliseconds since 1970.
    pub fn simulated_time_ms(&self) -> i64 {
        self.start_ms + self.next_minute * 60_000
    }

    /// Lets the next minute pass and returns everything published in it, in order.
    pub fn step(&mut self) -> Vec<Message> {
        let minute_ms = self.simulated_time_ms();
        let mut messages = Vec::with_capacity(self.units.len() + 8);
        for unit in &mut self.units {
            unit.step(self.next_minute, minute_ms, &mut messages);
        }
        self.next_minute += 1;
        // Stable: what one device publishes at one instant stays in its order.
        messages.sort_by_key(|message| message.simulated_time_ms);
        messages
    }

    /// Returns the fleet's registry, the content of a `fleet.toml`.
    pub fn registry_toml(&self) -> String {
        configuration::registry_toml(self.units())
    }

    /// Returns rules for this fleet, the content of a `rules.toml`.
    pub fn rules_toml(&self) -> String {
        configuration::RULES.to_owned()
    }
}
