//! Histograms with the buckets of Envoy's (circllhist: two significant decimal digits), so that quantiles
//! and sums come out as an operator of Envoy knows them.
//!
//! Recording is one addition to an atomic. Memory is taken with the first value.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

/// Powers of ten above the values 0 to 9 that have buckets of their own; larger values count as the largest.
const DECADES: u64 = 7;
/// Buckets per power of ten: 10 to 99.
const PER_DECADE: u64 = 90;
/// One for each of 0 to 9, then 90 for each power of ten.
const BUCKETS: usize = (10 + DECADES * PER_DECADE) as usize;

/// The quantiles that `/stats` shows, in percent.
pub const QUANTILES: [f64; 10] = [0.0, 25.0, 50.0, 75.0, 90.0, 95.0, 99.0, 99.5, 99.9, 100.0];

/// Upper bounds of the buckets that `/stats/prometheus` shows, Envoy's defaults.
pub const BOUNDS: [f64; 19] = [
    0.5, 1.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1e3, 2.5e3, 5e3, 1e4, 3e4, 6e4, 3e5, 6e5, 1.8e6,
    3.6e6,
];

type Counts = Box<[u64]>;

/// Values of one kind, mostly milliseconds.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: OnceLock<Box<[AtomicU64]>>,
    /// Counts as of the two latest flushes: the difference is the latest complete interval.
    flushed: Mutex<[Option<Counts>; 2]>,
}

impl Histogram {
    /// Records a value.
    pub fn record(&self, value: u64) {
        let buckets = self.buckets.get_or_init(|| (0..BUCKETS).map(|_| AtomicU64::new(0)).collect());
        buckets[index(value)].fetch_add(1, Ordering::Relaxed);
    }

    /// Records a time in whole milliseconds.
    pub fn record_ms(&self, time: std::time::Duration) {
        self.record(u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
    }

    /// Ends an interval (Envoy: `stats_flush_interval`).
    pub(super) fn flush(&self) {
        let Some(now) = self.counts() else { return };
        let mut flushed = self.flushed.lock().unwrap_or_else(PoisonError::into_inner);
        flushed[0] = flushed[1].take();
        flushed[1] = Some(now);
    }

    /// All values since the start.
    pub fn cumulative(&self) -> Summary {
        Summary { counts: self.counts().unwrap_or_default() }
    }

    /// The values of the latest complete interval; before the first one ended, all values.
    pub fn interval(&self) -> Summary {
        let flushed = self.flushed.lock().unwrap_or_else(PoisonError::into_inner);
        let counts = match &*flushed {
            [_, None] => return self.cumulative(),
            [None, Some(all)] => all.clone(),
            [Some(before), Some(after)] => {
                after.iter().zip(before.iter()).map(|(after, before)| after - before).collect()
            }
        };
        Summary { counts }
    }

    fn counts(&self) -> Option<Counts> {
        Some(self.buckets.get()?.iter().map(|bucket| bucket.load(Ordering::Relaxed)).collect())
    }
}

/// The bucket of a value.
fn index(value: u64) -> usize {
    if value < 10 {
        return value as usize;
    }
    let mut decade = u64::from(value.ilog10()) - 1;
    let mut digits = value / 10u64.pow(decade as u32);
    if decade >= DECADES {
        (decade, digits) = (DECADES - 1, 99);
    }
    (10 + decade * PER_DECADE + digits - 10) as usize
}

/// Lower bound and width of a bucket. The values 1 to 9 have width 0.1: circllhist keeps two digits.
fn bounds(index: usize) -> (f64, f64) {
    match index {
        0 => (0.0, 0.0),
        1..10 => (index as f64, 0.1),
        _ => {
            let decade = (index - 10) / PER_DECADE as usize;
            let digits = (index - 10) % PER_DECADE as usize + 10;
            let width = 10f64.powi(decade as i32);
            (digits as f64 * width, width)
        }
    }
}

/// Values counted by bucket.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Summary {
    counts: Counts,
}

impl Summary {
    /// How many values.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The sum of all values, each taken as the middle (harmonic, as circllhist does) of its bucket.
    pub fn sum(&self) -> f64 {
        self.occupied()
            .map(|(index, count)| {
                let (low, width) = bounds(index);
                let high = low + width;
                if high == 0.0 { 0.0 } else { count as f64 * (2.0 * low * high / (low + high)) }
            })
            // Of nothing a sum would be -0.
            .fold(0.0, |sum, part| sum + part)
    }

    /// The value below which `percent` of the values lie; `None` without values.
    pub fn quantile(&self, percent: f64) -> Option<f64> {
        let total = self.count();
        let target = total as f64 * percent / 100.0;
        let mut before = 0;
        for (index, count) in self.occupied() {
            if (before + count) as f64 >= target {
                let (low, width) = bounds(index);
                let rank = (target - before as f64).ceil().max(1.0);
                return Some(low + width * rank / (count + 1) as f64);
            }
            before += count;
        }
        None
    }

    /// How many values lie in buckets that begin at or below `bound`.
    pub fn count_to(&self, bound: f64) -> u64 {
        self.occupied().filter(|(index, _)| bounds(*index).0 <= bound).map(|(_, count)| count).sum()
    }

    fn occupied(&self) -> impl Iterator<Item = (usize, u64)> {
        self.counts.iter().copied().enumerate().filter(|(_, count)| *count > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: &[u64]) -> Summary {
        let histogram = Histogram::default();
        values.iter().for_each(|value| histogram.record(*value));
        histogram.cumulative()
    }

    #[test]
    fn quantiles_are_those_that_envoy_shows_for_the_same_values() {
        // Envoy 1.40: P50(1.0428…) and so on for six connections accepted one at a time.
        let ones = of(&[1; 6]);
        let shown: Vec<_> = QUANTILES.iter().map(|q| ones.quantile(*q).unwrap()).collect();
        let expected = [1.0142857, 1.0285714, 1.0428571, 1.0714286, 1.0857143];
        for (shown, expected) in shown.iter().zip(expected) {
            assert!((shown - expected).abs() < 1e-6, "{shown} {expected}");
        }
        let mixed = of(&[0, 0, 0, 1, 42, 43]);
        assert_eq!(mixed.quantile(50.0), Some(0.0));
        assert_eq!(mixed.quantile(75.0), Some(42.5));
        assert_eq!(mixed.quantile(100.0), Some(43.5));
        assert_eq!(of(&[]).quantile(50.0), None);
    }

    #[test]
    fn the_sum_is_envoys() {
        assert!((of(&[1, 42, 43]).sum() - 87.035_989_568_241_09).abs() < 1e-12);
        assert_eq!(of(&[0]).sum(), 0.0);
    }

    #[test]
    fn values_land_in_the_bucket_of_their_first_two_digits() {
        for (value, low) in
            [(0, 0.0), (9, 9.0), (10, 10.0), (99, 99.0), (100, 100.0), (109, 100.0), (12_345, 12_000.0)]
        {
            assert_eq!(bounds(index(value)).0, low, "{value}");
        }
        assert_eq!(index(u64::MAX), BUCKETS - 1);
        assert_eq!(of(&[1, 42, 43]).count_to(1.0), 1);
        assert_eq!(of(&[1, 42, 43]).count_to(42.0), 2);
    }

    #[test]
    fn an_interval_holds_only_what_came_since_the_flush_before() {
        let histogram = Histogram::default();
        histogram.record(7);
        assert_eq!(histogram.interval().count(), 1);
        histogram.flush();
        histogram.record(9);
        histogram.record(9);
        histogram.flush();
        assert_eq!(histogram.interval(), of(&[9, 9]));
        histogram.flush();
        assert_eq!(histogram.interval().count(), 0);
        assert_eq!(histogram.cumulative(), of(&[7, 9, 9]));
    }
}
