use crate::chance::Chance;

/// The numbers of a first-order model: how fast each temperature follows the ones around it.
///
/// ```text
/// d air   = leak·(surroundings − air) + door·(surroundings − air) + goods_to_air·(goods − air) − cooling + heating + defrost
/// d goods = air_to_goods·(air − goods)
/// d probe = probe·(air − probe)
/// ```
#[derive(Debug, Clone, Copy)]
pub(crate) struct Thermal {
    /// Through the walls.
    pub(crate) leak_per_min: f64,
    /// Through the open door.
    pub(crate) door_per_min: f64,
    /// The goods hold the air where they are: the reason why a failure of cooling shows slowly.
    pub(crate) goods_to_air_per_min: f64,
    pub(crate) air_to_goods_per_min: f64,
    pub(crate) cooling_celsius_per_min: f64,
    pub(crate) heating_celsius_per_min: f64,
    pub(crate) defrost_celsius_per_min: f64,
    /// How fast a housed probe follows the air.
    pub(crate) probe_per_min: f64,
    /// Between the thermostat's switching on and off.
    pub(crate) dead_band_celsius: f64,
}

/// What acts on a unit during one minute.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Conditions {
    pub(crate) surroundings_celsius: f64,
    pub(crate) door_open: bool,
    pub(crate) defrosting: bool,
    pub(crate) can_cool: bool,
    pub(crate) can_heat: bool,
}

/// The temperatures of one unit and what its thermostat is doing.
#[derive(Debug)]
pub(crate) struct Climate {
    thermal: Thermal,
    setpoint_celsius: f64,
    air_celsius: f64,
    goods_celsius: f64,
    probe_celsius: f64,
    cooling: bool,
    heating: bool,
}

impl Climate {
    /// Starts a unit in good order, somewhere in its thermostat's cycle.
    pub(crate) fn new(thermal: Thermal, setpoint_celsius: f64, chance: &mut Chance) -> Self {
        let offset = thermal.dead_band_celsius * chance.between(-0.4, 0.4);
        Self {
            thermal,
            setpoint_celsius,
            air_celsius: setpoint_celsius + offset,
            goods_celsius: setpoint_celsius,
            probe_celsius: setpoint_celsius + offset,
            cooling: false,
            heating: false,
        }
    }

    /// Returns what a probe in the air shows.
    pub(crate) const fn probe_celsius(&self) -> f64 {
        self.probe_celsius
    }

    /// Lets one minute pass.
    pub(crate) fn advance(&mut self, conditions: Conditions) {
        const STEPS_PER_MINUTE: u32 = 6;
        for _ in 0..STEPS_PER_MINUTE {
            self.switch(conditions);
            self.advance_by(conditions, 1.0 / f64::from(STEPS_PER_MINUTE));
        }
    }

    fn switch(&mut self, conditions: Conditions) {
        let error = self.air_celsius - self.setpoint_celsius;
        let half_band = self.thermal.dead_band_celsius / 2.0;
        let may_cool = conditions.can_cool && !conditions.defrosting;
        self.cooling = may_cool && if self.cooling { error > -half_band } else { error > half_band };
        self.heating = conditions.can_heat && if self.heating { error < 0.0 } else { error < -half_band };
    }

    fn advance_by(&mut self, conditions: Conditions, minutes: f64) {
        let Thermal { leak_per_min, door_per_min, goods_to_air_per_min, .. } = self.thermal;
        let exchange_per_min = leak_per_min + if conditions.door_open { door_per_min } else { 0.0 };
        let mut air_celsius_per_min = exchange_per_min * (conditions.surroundings_celsius - self.air_celsius)
            + goods_to_air_per_min * (self.goods_celsius - self.air_celsius);
        if self.cooling {
            air_celsius_per_min -= self.thermal.cooling_celsius_per_min;
        }
        if self.heating {
            air_celsius_per_min += self.thermal.heating_celsius_per_min;
        }
        if conditions.defrosting {
            air_celsius_per_min += self.thermal.defrost_celsius_per_min;
        }
        let goods_celsius_per_min = self.thermal.air_to_goods_per_min * (self.air_celsius - self.goods_celsius);
        let probe_celsius_per_min = self.thermal.probe_per_min * (self.air_celsius - self.probe_celsius);
        self.air_celsius += air_celsius_per_min * minutes;
        self.goods_celsius += goods_celsius_per_min * minutes;
        self.probe_celsius += probe_celsius_per_min * minutes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::equipment::Equipment;

    const IN_ORDER: Conditions =
        Conditions { surroundings_celsius: 30.0, door_open: false, defrosting: false, can_cool: true, can_heat: true };

    fn truck() -> Climate {
        Climate::new(Equipment::Truck.thermal(), 4.0, &mut Chance::new(1, 1))
    }

    #[test]
    fn a_truck_in_order_stays_near_its_setpoint_in_heat_and_frost() {
        for surroundings_celsius in [30.0, -25.0] {
            let mut climate = truck();
            for minute in 0..600 {
                climate.advance(Conditions { surroundings_celsius, ..IN_ORDER });
                let shown = climate.probe_celsius();
                assert!((2.5..5.5).contains(&shown), "{shown} °C at minute {minute} in {surroundings_celsius} °C");
            }
        }
    }

    #[test]
    fn lost_cooling_warms_the_air_by_one_or_two_degrees_in_twenty_minutes_and_then_slowly() {
        let mut climate = truck();
        climate.air_celsius = 4.0;
        let mut shown = Vec::new();
        for _ in 0..240 {
            climate.advance(Conditions { can_cool: false, ..IN_ORDER });
            shown.push(climate.air_celsius);
        }
        assert!((5.0..6.7).contains(&shown[19]), "{} °C after 20 min", shown[19]);
        assert!((6.0..8.0).contains(&shown[239]), "{} °C after 4 h", shown[239]);
        assert!(climate.goods_celsius < 5.0, "the goods follow slowly, they are at {} °C", climate.goods_celsius);
    }

    #[test]
    fn an_open_door_gives_a_large_short_peak_and_leaves_the_goods_cold() {
        let mut climate = truck();
        for _ in 0..5 {
            climate.advance(Conditions { door_open: true, ..IN_ORDER });
        }
        let peak = climate.air_celsius;
        assert!(peak > 6.0, "{peak} °C");
        for _ in 0..15 {
            climate.advance(IN_ORDER);
        }
        assert!(climate.air_celsius < 5.5, "{} °C a quarter of an hour later", climate.air_celsius);
        assert!((climate.goods_celsius - 4.0).abs() < 0.1);
    }
}
