//! What units are: their goods, their machines, and the twenty-four that a fleet is made of.

use crate::thermal::Thermal;
use crate::unit::UnitKind;

/// An enterprise (invented, with well-formed codes).
#[derive(Debug)]
pub(crate) struct Operator {
    pub(crate) id: &'static str,
    pub(crate) name: &'static str,
    /// Unified social credit code.
    pub(crate) code: &'static str,
    /// What its sites are called.
    pub(crate) site: &'static str,
}

/// Goods, and the temperature they are kept at.
#[derive(Debug)]
pub(crate) struct Goods {
    /// The id of the profile that holds their limits.
    pub(crate) profile: &'static str,
    pub(crate) setpoint_celsius: f64,
    pub(crate) humidity_percent: f64,
}

/// The kind of machine that keeps them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Equipment {
    ColdRoom,
    Fridge,
    Truck,
    /// A passive box: phase-change packs hold it, in both directions, while they last.
    Box,
}

/// One kind of unit of the fleet.
#[derive(Debug)]
pub(crate) struct Template {
    /// Index into the leagues.
    pub(crate) league: usize,
    pub(crate) operator: &'static Operator,
    pub(crate) name: &'static str,
    pub(crate) equipment: Equipment,
    pub(crate) goods: &'static Goods,
}

impl Equipment {
    pub(crate) const fn unit_kind(self) -> UnitKind {
        match self {
            Self::ColdRoom | Self::Fridge => UnitKind::Storage,
            Self::Truck | Self::Box => UnitKind::Transport,
        }
    }

    /// Rooms and trucks are long enough to be warmer at one end, so they have a second probe there.
    pub(crate) const fn probes(self) -> usize {
        match self {
            Self::ColdRoom | Self::Truck => 2,
            Self::Fridge | Self::Box => 1,
        }
    }

    pub(crate) const fn has_mains(self) -> bool {
        !matches!(self, Self::Box)
    }

    /// Returns the numbers of the first-order model; see [`Thermal`].
    ///
    /// Chosen so that five minutes of open door warm the air by several degrees and lost cooling by one or two within
    /// the first twenty minutes, as loaded rooms and trailers behave.
    pub(crate) const fn thermal(self) -> Thermal {
        match self {
            Self::ColdRoom => Thermal {
                leak_per_min: 0.008,
                door_per_min: 0.12,
                goods_to_air_per_min: 0.10,
                air_to_goods_per_min: 0.000_5,
                cooling_celsius_per_min: 0.9,
                heating_celsius_per_min: 0.0,
                defrost_celsius_per_min: 0.25,
                probe_per_min: 0.30,
                dead_band_celsius: 1.5,
            },
            Self::Fridge => Thermal {
                leak_per_min: 0.012,
                door_per_min: 0.20,
                goods_to_air_per_min: 0.08,
                air_to_goods_per_min: 0.003,
                cooling_celsius_per_min: 0.8,
                heating_celsius_per_min: 0.0,
                defrost_celsius_per_min: 0.10,
                probe_per_min: 0.25,
                dead_band_celsius: 1.5,
            },
            Self::Truck => Thermal {
                leak_per_min: 0.012,
                door_per_min: 0.06,
                goods_to_air_per_min: 0.12,
                air_to_goods_per_min: 0.000_6,
                cooling_celsius_per_min: 0.9,
                heating_celsius_per_min: 0.7,
                defrost_celsius_per_min: 0.25,
                probe_per_min: 0.30,
                dead_band_celsius: 1.6,
            },
            Self::Box => Thermal {
                leak_per_min: 0.010,
                door_per_min: 0.08,
                goods_to_air_per_min: 0.05,
                air_to_goods_per_min: 0.008,
                cooling_celsius_per_min: 0.3,
                heating_celsius_per_min: 0.3,
                defrost_celsius_per_min: 0.0,
                probe_per_min: 0.25,
                dead_band_celsius: 0.6,
            },
        }
    }
}

impl Template {
    /// Returns whether a forgotten door with the plant switched off carries this unit past its upper limit within
    /// minutes, whatever the season: a heated hall around it, and goods much colder than the hall.
    pub(crate) fn warms_fast(&self) -> bool {
        self.equipment.unit_kind() == UnitKind::Storage && self.goods.setpoint_celsius < 8.0
    }
}

pub(crate) static OPERATORS: [Operator; 4] = [DAIRY, MEAT, CDC, PRODUCE];

const DAIRY: Operator =
    Operator {
        id: "caoyuan-dairy", name: "草原乳业 Caoyuan Dairy", code: "91150100MA0TEXT048", site: "dairy centre"
    };
const MEAT: Operator = Operator {
    id: "beijiang-meat",
    name: "北疆肉业合作社 Beijiang Meat Cooperative",
    code: "N2152500MF0TEXT37U",
    site: "meat store",
};
const CDC: Operator = Operator {
    id: "regional-cdc",
    name: "区域疾控中心 Regional Centre for Disease Control",
    code: "12150000MB0TEXT59Y",
    site: "vaccine point",
};
const PRODUCE: Operator = Operator {
    id: "hetao-produce",
    name: "河套果蔬 Hetao Produce",
    code: "91150800MA0TEXT202",
    site: "produce market",
};

const FRESH_MILK: Goods = goods("pasteurised_milk", 4.0, 72.0);
const YOGHURT: Goods = goods("fermented_milk", 4.0, 72.0);
const RAW_MILK: Goods = goods("raw_milk", 2.0, 75.0);
const FROZEN_LAMB: Goods = goods("frozen_meat", -21.5, 88.0);
const FRESH_BEEF: Goods = goods("chilled_meat", 1.5, 84.0);
const VACCINE: Goods = goods("vaccine_2_8", 5.0, 55.0);
const VEGETABLES: Goods = goods("leafy_vegetables", 2.5, 93.0);
const POTATOES: Goods = goods("potato_ware", 5.5, 90.0);
const TOMATOES: Goods = goods("tomato_ripe", 10.5, 88.0);

const fn goods(profile: &'static str, setpoint_celsius: f64, humidity_percent: f64) -> Goods {
    Goods { profile, setpoint_celsius, humidity_percent }
}

/// The fleet: two units in each league, every line of goods in storage and on the road.
///
/// The first must warm fast, so that a fleet of one has something to show too.
pub(crate) static TEMPLATES: [Template; 24] = {
    use Equipment::{Box, ColdRoom, Fridge, Truck};
    [
        template(0, &DAIRY, "milk-room", ColdRoom, &FRESH_MILK),
        template(0, &CDC, "vaccine-fridge", Fridge, &VACCINE),
        template(1, &DAIRY, "yoghurt-room", ColdRoom, &YOGHURT),
        template(1, &CDC, "vaccine-box", Box, &VACCINE),
        template(2, &PRODUCE, "tomato-room", ColdRoom, &TOMATOES),
        template(2, &CDC, "vaccine-fridge", Fridge, &VACCINE),
        template(3, &MEAT, "lamb-room", ColdRoom, &FROZEN_LAMB),
        template(3, &PRODUCE, "vegetable-truck", Truck, &VEGETABLES),
        template(4, &MEAT, "beef-room", ColdRoom, &FRESH_BEEF),
        template(4, &DAIRY, "milk-tanker", Truck, &RAW_MILK),
        template(5, &PRODUCE, "potato-room", ColdRoom, &POTATOES),
        template(5, &CDC, "vaccine-box", Box, &VACCINE),
        template(6, &DAIRY, "milk-tanker", Truck, &RAW_MILK),
        template(6, &MEAT, "lamb-truck", Truck, &FROZEN_LAMB),
        template(7, &PRODUCE, "vegetable-room", ColdRoom, &VEGETABLES),
        template(7, &PRODUCE, "tomato-truck", Truck, &TOMATOES),
        template(8, &PRODUCE, "potato-room", ColdRoom, &POTATOES),
        template(8, &DAIRY, "milk-room", ColdRoom, &RAW_MILK),
        template(9, &MEAT, "beef-truck", Truck, &FRESH_BEEF),
        template(9, &CDC, "vaccine-fridge", Fridge, &VACCINE),
        template(10, &MEAT, "lamb-room", ColdRoom, &FROZEN_LAMB),
        template(10, &CDC, "vaccine-truck", Truck, &VACCINE),
        template(11, &DAIRY, "camel-milk-room", ColdRoom, &YOGHURT),
        template(11, &MEAT, "lamb-truck", Truck, &FROZEN_LAMB),
    ]
};

const fn template(
    league: usize,
    operator: &'static Operator,
    name: &'static str,
    equipment: Equipment,
    goods: &'static Goods,
) -> Template {
    Template { league, operator, name, equipment, goods }
}
