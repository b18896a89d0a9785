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

/// How often something happened lately, exact to a sixtieth of the window that is looked at.
#[derive(Clone, Debug)]
pub struct Recent {
    slice: Nanos,
    counts: [u64; SLICES],
    /// The slice of the last look, by number.
    last: u64,
}

const SLICES: usize = 60;

impl Recent {
    /// Nothing has happened.
    pub fn new(window: Nanos) -> Self {
        Self {
            slice: (window / SLICES as u64).max(1),
            counts: [0; SLICES],
            last: 0,
        }
    }

    /// Counts one.
    pub fn count(&mut self, now: Nanos) {
        self.go_to(now);
        self.counts[self.last as usize % SLICES] += 1;
    }

    /// How many there were within the window.
    pub fn total(&mut self, now: Nanos) -> u64 {
        self.go_to(now);
        self.counts.iter().sum()
    }

    fn go_to(&mut self, now: Nanos) {
        let slice = now / self.slice;
        let passed = slice.saturating_sub(self.last).min(SLICES as u64);
        for past in 0..passed {
            self.counts[(slice - past) as usize % SLICES] = 0;
        }
        self.last = self.last.max(slice);
    }
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

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// What is counted is what happened within the window, up to a slice more or less.
        #[test]
        fn counts_what_happened_lately(steps in proptest::collection::vec((0..400u64, any::<bool>()), 1..100)) {
            let mut recent = Recent::new(600);
            let (mut now, mut happened) = (0, Vec::new());
            for (pause, happens) in steps {
                now += pause;
                if happens {
                    happened.push(now);
                    recent.count(now);
                }
                let within = |window: u64| happened.iter().filter(|at| now - **at < window).count() as u64;
                let total = recent.total(now);
                prop_assert!(within(590) <= total && total <= within(601), "{total}");
            }
        }
    }
}
