/// One of Inner Mongolia's twelve leagues and cities.
#[derive(Debug, PartialEq)]
pub struct League {
    /// Its GB/T 2260 division code: `150100`.
    pub code: &'static str,
    /// Its Chinese name.
    pub zh: &'static str,
    /// Its English name.
    pub en: &'static str,
    /// Its seat, degrees north.
    pub latitude: f64,
    /// Its seat, degrees east.
    pub longitude: f64,
    /// Mean of the year, °C.
    pub(crate) yearly_mean_celsius: f64,
    /// How far July lies above that mean and January below it, °C.
    pub(crate) yearly_swing_celsius: f64,
}

impl League {
    /// Returns the name as it stands in unit identifiers.
    pub fn slug(&self) -> String {
        self.en.to_ascii_lowercase()
    }

    /// Returns the temperature outside: a yearly and a daily wave.
    pub(crate) fn outside_celsius(&self, time_ms: i64) -> f64 {
        const DAY_MS: f64 = 86_400_000.0;
        // Warmest in the middle of July (day 196) and at three in the afternoon, which is 07:00 UTC.
        let days = time_ms as f64 / DAY_MS;
        let yearly = (std::f64::consts::TAU * (days - 196.0) / 365.2425).cos();
        let daily = (std::f64::consts::TAU * (days - 7.0 / 24.0)).cos();
        self.yearly_mean_celsius + self.yearly_swing_celsius * yearly + DAILY_SWING_CELSIUS * daily
    }
}

const DAILY_SWING_CELSIUS: f64 = 6.0;

#[rustfmt::skip]
pub(crate) static LEAGUES: [League; 12] = [
    league("150100", "呼和浩特", "Hohhot", 40.84, 111.75, 6.2, 17.5),
    league("150200", "包头", "Baotou", 40.66, 109.84, 7.0, 17.5),
    league("150300", "乌海", "Wuhai", 39.66, 106.79, 9.5, 17.0),
    league("150400", "赤峰", "Chifeng", 42.26, 118.89, 7.0, 17.5),
    league("150500", "通辽", "Tongliao", 43.65, 122.24, 6.5, 18.5),
    league("150600", "鄂尔多斯", "Ordos", 39.61, 109.78, 6.5, 16.0),
    league("150700", "呼伦贝尔", "Hulunbuir", 49.21, 119.77, -3.0, 24.0),
    league("150800", "巴彦淖尔", "Bayannur", 40.74, 107.39, 7.5, 17.5),
    league("150900", "乌兰察布", "Ulanqab", 40.99, 113.13, 4.5, 17.0),
    league("152200", "兴安盟", "Hinggan", 46.08, 122.09, 5.0, 19.0),
    league("152500", "锡林郭勒盟", "Xilingol", 43.93, 116.05, 2.5, 20.5),
    league("152900", "阿拉善盟", "Alxa", 38.85, 105.73, 8.5, 16.5),
];

const fn league(
    code: &'static str,
    zh: &'static str,
    en: &'static str,
    latitude: f64,
    longitude: f64,
    yearly_mean_celsius: f64,
    yearly_swing_celsius: f64,
) -> League {
    League { code, zh, en, latitude, longitude, yearly_mean_celsius, yearly_swing_celsius }
}

/// Returns the league or city with this GB/T 2260 division code.
pub fn league_by_code(code: &str) -> Option<&'static League> {
    LEAGUES.iter().find(|league| league.code == code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hohhot_freezes_in_january_and_is_warm_in_july() {
        let january_ms = 1_768_446_000_000; // 2026-01-15T03:00:00Z
        let july_ms = 1_784_098_800_000; // 2026-07-15T07:00:00Z
        assert!((-20.0..-5.0).contains(&LEAGUES[0].outside_celsius(january_ms)));
        assert!((22.0..32.0).contains(&LEAGUES[0].outside_celsius(july_ms)));
    }
}
