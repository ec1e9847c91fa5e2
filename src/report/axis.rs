//! The axes of a chart: the position of each value, and of the ticks.

/// The approximate width of a character in the labels, and the space between two labels.
const CHARACTER: f64 = 8.5;
const SPACE: f64 = 8.0;
/// Values are shown on a logarithmic axis if the ratio of the largest to the median is at least this.
const SPIKE: f64 = 20.0;
/// The widest range of a logarithmic axis.
const WIDEST: f64 = 1e6;

/// An axis: maps values to positions, and has ticks.
pub(super) struct Axis {
    values: [f64; 2],
    places: [f64; 2],
    /// The values that have a grid line and a label.
    pub(super) ticks: Vec<f64>,
    /// Whether the axis is logarithmic: equal distances are equal ratios.
    pub(super) is_log: bool,
}

impl Axis {
    /// An axis that includes all values and ends on ticks.
    pub(super) fn over(values: impl Iterator<Item = f64>, places: [f64; 2]) -> Self {
        let [mut low, mut high] = ends(values);
        if low > high {
            [low, high] = [0.0, 1.0];
        }
        if high - low < 1e-12 * high.abs().max(1e-12) {
            [low, high] = [low - 0.5, high + 0.5];
        }
        let rough = (high - low) / 5.0;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|s| *s >= rough).unwrap_or(power);
        let [first, last] = [(low / step).floor(), (high / step).ceil()];
        let ticks: Vec<f64> = (0..=(last - first) as usize).map(|i| (first + i as f64) * step).collect();
        Self { values: [first * step, last * step], places, ticks, is_log: false }
    }

    /// An axis that ends where the values end. Both ends have labels.
    pub(super) fn between(values: impl Iterator<Item = f64> + Clone, places: [f64; 2]) -> Self {
        let wide = Self::over(values.clone(), places);
        let is_counted = values.clone().all(|value| value.fract() == 0.0);
        match ends(values) {
            [low, high] if low < high => {
                let mut axis = Self { values: [low, high], places, ticks: vec![], is_log: false };
                let width = |value: f64| super::chart::short(value).len() as f64 * CHARACTER;
                let is_free = |tick: f64, end: f64| {
                    (axis.place(tick) - axis.place(end)).abs() > (width(tick) + width(end)) / 2.0 + SPACE
                };
                // Integers such as steps get no fractional ticks.
                let is_tick = |tick: &f64| {
                    (low..=high).contains(tick)
                        && (!is_counted || tick.fract() == 0.0)
                        && is_free(*tick, low)
                        && is_free(*tick, high)
                };
                let between = wide.ticks.into_iter().filter(is_tick);
                axis.ticks = [low].into_iter().chain(between).chain([high]).collect();
                axis
            }
            _ => wide,
        }
    }

    /// A logarithmic axis that includes all positive values and ends on powers of ten. Values below them lie at its
    /// lower end.
    pub(super) fn log_over(values: impl Iterator<Item = f64>, places: [f64; 2]) -> Self {
        let [low, high] = ends(values.filter(|value| *value > 0.0));
        let first = low.max(high / WIDEST).log10().floor();
        let last = high.log10().ceil().max(first + 1.0);
        let powers = (0..=(last - first) as usize).map(|i| 10f64.powf(first + i as f64));
        let ticks = match last - first > 2.0 {
            true => powers.collect(),
            false => powers.flat_map(|p| [p, 2.0 * p, 5.0 * p]).filter(|tick| *tick <= 10f64.powf(last)).collect(),
        };
        Self { values: [10f64.powf(first), 10f64.powf(last)], places, ticks, is_log: true }
    }

    /// Whether single values are so far above the others that a linear axis would flatten the others into a line.
    pub(super) fn has_spikes(values: impl Iterator<Item = f64>) -> bool {
        let mut sorted: Vec<f64> = values.filter(|value| value.is_finite()).collect();
        sorted.sort_by(f64::total_cmp);
        let (Some(low), Some(high)) = (sorted.first(), sorted.last()) else { return false };
        let median = sorted[sorted.len() / 2];
        *low >= 0.0 && median > 0.0 && *high > SPIKE * median
    }

    /// Whether the axis has a position for a value; a logarithmic axis has none for values that aren't positive.
    pub(super) fn has_place(&self, value: f64) -> bool {
        value.is_finite() && (!self.is_log || value > 0.0)
    }

    /// The position of a value.
    pub(super) fn place(&self, value: f64) -> f64 {
        let [from, to] = self.values;
        let share = match self.is_log {
            true => (value.max(from) / from).ln() / (to / from).ln(),
            false => (value - from) / (to - from),
        };
        self.places[0] + share * (self.places[1] - self.places[0])
    }
}

/// The lowest and the highest finite value.
fn ends(values: impl Iterator<Item = f64>) -> [f64; 2] {
    values
        .filter(|v| v.is_finite())
        .fold([f64::INFINITY, f64::NEG_INFINITY], |[low, high], v| [low.min(v), high.max(v)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_axis_ends_on_ticks_around_its_values() {
        let axis = Axis::over([3.0, 47.0].into_iter(), [0.0, 100.0]);
        assert_eq!(axis.ticks, [0.0, 10.0, 20.0, 30.0, 40.0, 50.0]);
        assert_eq!([axis.place(0.0), axis.place(25.0), axis.place(50.0)], [0.0, 50.0, 100.0]);
        let middle = Axis::over([2.0].into_iter(), [0.0, 1.0]).place(2.0);
        assert!((middle - 0.5).abs() < 1e-9, "one value lies at {middle}, not in the middle");
        assert!(Axis::over([].into_iter(), [0.0, 1.0]).place(0.5).is_finite());
        let tight = Axis::between([3.0, 47.0].into_iter(), [0.0, 100.0]);
        assert_eq!(tight.ticks, [3.0, 20.0, 30.0, 47.0], "no tick lies outside, and both ends have labels");
        assert_eq!([tight.place(3.0), tight.place(25.0), tight.place(47.0)], [0.0, 50.0, 100.0]);
        assert_eq!(Axis::between([3.0, 47.0].into_iter(), [0.0, 400.0]).ticks, [3.0, 10.0, 20.0, 30.0, 40.0, 47.0]);
        assert_eq!(Axis::between([1.0, 97.0].into_iter(), [0.0, 400.0]).ticks, [1.0, 20.0, 40.0, 60.0, 80.0, 97.0]);
        assert_eq!(Axis::between([1.0, 2.0].into_iter(), [0.0, 400.0]).ticks, [1.0, 2.0], "steps have no parts");
        assert_eq!(Axis::between([2.0].into_iter(), [0.0, 1.0]).place(2.0), middle);
    }

    #[test]
    fn spikes_make_an_axis_logarithmic() {
        let calm = || (0..100).map(|i| 2.0 + f64::from(i % 7) / 10.0);
        assert!(!Axis::has_spikes(calm()));
        assert!(Axis::has_spikes(calm().chain([1000.0])));
        assert!(!Axis::has_spikes(calm().chain([1000.0, -1.0])), "there is no logarithm of it");
        assert!(!Axis::has_spikes([0.0, 0.0, 5.0].into_iter()) && !Axis::has_spikes([].into_iter()));
        let axis = Axis::log_over(calm().chain([1000.0, 0.0]), [0.0, 300.0]);
        assert_eq!(axis.ticks, [1.0, 10.0, 100.0, 1000.0]);
        let places = [1.0, 10.0, 1000.0, 0.0].map(|value| axis.place(value).round());
        assert_eq!(places, [0.0, 100.0, 300.0, 0.0]);
        assert_eq!([1e-9, 0.0, -1.0, f64::NAN].map(|value| axis.has_place(value)), [true, false, false, false]);
        assert_eq!(Axis::log_over([3.0, 90.0].into_iter(), [0.0, 1.0]).ticks, [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0]);
    }
}
