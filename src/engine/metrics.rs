//! Latencies, as histograms of two significant digits that are made when first
//! needed: ten thousand quiet lanes cost a pointer each.

use hdrhistogram::Histogram;

use super::clock::Nanos;

/// A distribution of times.
#[derive(Default)]
pub struct Latencies(Option<Box<Histogram<u32>>>);

/// Percentiles of a distribution of times, in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Percentiles {
    /// How many times were recorded.
    pub count: u64,
    /// Half are at most this.
    pub p50: Nanos,
    /// Nine of ten are at most this.
    pub p90: Nanos,
    /// Ninety-nine of a hundred are at most this.
    pub p99: Nanos,
    /// All are at most this.
    pub max: Nanos,
}

impl Latencies {
    /// Counts one time.
    #[inline]
    pub fn record(&mut self, time: Nanos) {
        let histogram = self.0.get_or_insert_with(Self::empty);
        let recorded = histogram.record(time);
        debug_assert!(
            recorded.is_ok(),
            "a histogram that resizes itself holds every u64"
        );
    }

    #[cold]
    fn empty() -> Box<Histogram<u32>> {
        let mut histogram = Histogram::new(2).expect("two digits are within hdrhistogram's range");
        histogram.auto(true);
        Box::new(histogram)
    }

    /// What was recorded so far.
    pub fn percentiles(&self) -> Percentiles {
        let Some(histogram) = &self.0 else {
            return Percentiles::default();
        };
        Percentiles {
            count: histogram.len(),
            p50: histogram.value_at_quantile(0.50),
            p90: histogram.value_at_quantile(0.90),
            p99: histogram.value_at_quantile(0.99),
            max: histogram.max(),
        }
    }
}
