use crate::chance::Chance;
use crate::equipment::Equipment;

/// What goes wrong, or just happens, at a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    DoorOpen,
    Defrost,
    PowerLost,
    CompressorStopped,
    /// A truck's heater fails, or a box is left in the yard: in winter the goods drift towards freezing.
    Exposed,
    /// No signal; what was measured is sent when it comes back.
    RadioGap,
    ProbeFailed,
}

/// A shortest and a longest time, in minutes.
type Minutes = (i64, i64);

/// A cause that comes and goes: gaps and lengths are drawn evenly between their bounds.
#[derive(Debug)]
pub(crate) struct Disturbance {
    pub(crate) cause: Cause,
    gap_min: Minutes,
    length_min: Minutes,
    starts_at_min: i64,
    ends_at_min: i64,
}

impl Disturbance {
    /// Plans the first occurrence at or after minute `quiet_min`.
    fn new(cause: Cause, gap_min: Minutes, length_min: Minutes, quiet_min: i64, chance: &mut Chance) -> Self {
        let mut planned = Self { cause, gap_min, length_min, starts_at_min: 0, ends_at_min: 0 };
        // Anywhere in the first gap: a fleet that has always been there, not one that was switched on together.
        planned.starts_at_min = quiet_min + chance.whole_between(1, gap_min.1);
        planned.ends_at_min = planned.starts_at_min + chance.whole_between(length_min.0, length_min.1);
        planned
    }

    /// Returns whether it holds during this minute; minutes are asked for in order.
    pub(crate) fn holds_at(&mut self, minute: i64, chance: &mut Chance) -> bool {
        if minute >= self.ends_at_min {
            self.starts_at_min = self.ends_at_min + chance.whole_between(self.gap_min.0, self.gap_min.1);
            self.ends_at_min = self.starts_at_min + chance.whole_between(self.length_min.0, self.length_min.1);
        }
        minute >= self.starts_at_min
    }
}

/// Returns everything that can happen to this kind of unit, none of it before minute `quiet_min`.
pub(crate) fn disturbances(equipment: Equipment, quiet_min: i64, chance: &mut Chance) -> Vec<Disturbance> {
    const HOUR: i64 = 60;
    const DAY: i64 = 24 * HOUR;
    let table: &[(Cause, Minutes, Minutes)] = match equipment {
        Equipment::ColdRoom => &[
            (Cause::DoorOpen, (15, 60), (1, 2)),
            (Cause::Defrost, (5 * HOUR, 8 * HOUR), (15, 25)),
            (Cause::PowerLost, (DAY, 4 * DAY), (8, 60)),
            (Cause::CompressorStopped, (DAY, 5 * DAY), (HOUR, 3 * HOUR)),
            (Cause::RadioGap, (DAY, 4 * DAY), (10, 45)),
            (Cause::ProbeFailed, (2 * DAY, 8 * DAY), (5, 30)),
        ],
        Equipment::Fridge => &[
            (Cause::DoorOpen, (20, 120), (1, 1)),
            (Cause::Defrost, (8 * HOUR, 12 * HOUR), (15, 20)),
            (Cause::PowerLost, (DAY, 4 * DAY), (8, 60)),
            (Cause::CompressorStopped, (DAY, 5 * DAY), (HOUR, 3 * HOUR)),
            (Cause::RadioGap, (DAY, 4 * DAY), (10, 45)),
            (Cause::ProbeFailed, (2 * DAY, 8 * DAY), (5, 30)),
        ],
        Equipment::Truck => &[
            (Cause::DoorOpen, (60, 180), (2, 5)),
            (Cause::Defrost, (3 * HOUR, 6 * HOUR), (10, 20)),
            (Cause::CompressorStopped, (DAY, 4 * DAY), (HOUR, 3 * HOUR)),
            (Cause::Exposed, (10 * HOUR, 2 * DAY), (2 * HOUR, 5 * HOUR)),
            (Cause::RadioGap, (5 * HOUR, DAY), (10, 3 * HOUR)),
            (Cause::ProbeFailed, (2 * DAY, 8 * DAY), (5, 30)),
        ],
        Equipment::Box => &[
            (Cause::DoorOpen, (2 * HOUR, 6 * HOUR), (1, 2)),
            (Cause::Exposed, (10 * HOUR, 2 * DAY), (2 * HOUR, 5 * HOUR)),
            (Cause::RadioGap, (8 * HOUR, DAY), (10, 2 * HOUR)),
            (Cause::ProbeFailed, (2 * DAY, 8 * DAY), (5, 30)),
        ],
    };
    table
        .iter()
        .map(|&(cause, gap_min, length_min)| Disturbance::new(cause, gap_min, length_min, quiet_min, chance))
        .collect()
}
