//! Latencies, as histograms of two significant digits that are made when first
//! needed: ten thousand quiet lanes cost a pointer each.

use hdrhistogram::Histogram;

use super::clock::Nanos;

/// A distribution of times.
///
/// The last few are kept as they came and counted together: a histogram is spread over
/// many lines of the cache, and a thousand lanes in turn would miss them with every event.
#[derive(Default)]
pub struct Latencies {
    /// Nanoseconds. Single precision is more than the histogram keeps.
    recent: [f32; RECENT],
    length: u32,
    histogram: Option<Box<Histogram<u32>>>,
}

/// With its length, one line of the cache.
const RECENT: usize = 15;

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
        if self.length as usize == RECENT {
            self.count();
        }
        self.recent[self.length as usize] = time as f32;
        self.length += 1;
    }

    #[cold]
    fn count(&mut self) {
        let histogram = self.histogram.get_or_insert_with(Self::empty);
        for time in &self.recent[..self.length as usize] {
            let recorded = histogram.record(*time as u64);
            debug_assert!(
                recorded.is_ok(),
                "a histogram that resizes itself holds every u64"
            );
        }
        self.length = 0;
    }

    #[cold]
    fn empty() -> Box<Histogram<u32>> {
        let mut histogram = Histogram::new(2).expect("two digits are within hdrhistogram's range");
        histogram.auto(true);
        Box::new(histogram)
    }

    /// What was recorded so far.
    pub fn percentiles(&mut self) -> Percentiles {
        if self.length > 0 {
            self.count();
        }
        let Some(histogram) = &self.histogram else {
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
