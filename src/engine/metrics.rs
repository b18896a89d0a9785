//! Latencies, as histograms of two significant digits that are made when first
//! needed: ten thousand quiet lanes cost a pointer each.

use hdrhistogram::Histogram;

use super::clock::Nanos;

/// A distribution of times.
///
/// Times are kept for a while and counted together: a histogram is spread over many lines of
/// the cache, and a thousand lanes in turn would miss them with every event.
#[derive(Default)]
#[repr(C)]
pub struct Latencies {
    length: u16,
    /// See [`shorten`].
    recent: [u16; RECENT],
    older: Option<Box<Older>>,
}

/// What is not so recent.
struct Older {
    uncounted: Vec<u16>,
    histogram: Histogram<u32>,
}

/// With their length, half a line of the cache.
const RECENT: usize = 15;
/// So many at least are counted together, of a lane that is as busy as that.
const TOGETHER: usize = 64 * RECENT;

/// Nanoseconds as a floating point number of eight significant bits, the others cut off. That is just
/// what tells one bucket of a histogram of two digits from the next: nothing is lost.
#[inline]
fn shorten(time: Nanos) -> u16 {
    ((time as f32).to_bits() >> 16) as u16
}

fn lengthen(short: u16) -> Nanos {
    f32::from_bits(u32::from(short) << 16) as Nanos
}

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
            self.age();
        }
        self.recent[self.length as usize] = shorten(time);
        self.length += 1;
    }

    #[cold]
    fn age(&mut self) {
        let recent = &self.recent[..usize::from(std::mem::take(&mut self.length))];
        let older = self.older.get_or_insert_with(Older::new);
        older.uncounted.extend_from_slice(recent);
        if older.uncounted.len() >= TOGETHER {
            older.count();
        }
    }

    /// What was recorded so far.
    pub fn percentiles(&mut self) -> Percentiles {
        if self.length > 0 {
            self.age();
        }
        let Some(older) = &mut self.older else {
            return Percentiles::default();
        };
        older.count();
        let histogram = &older.histogram;
        Percentiles {
            count: histogram.len(),
            p50: histogram.value_at_quantile(0.50),
            p90: histogram.value_at_quantile(0.90),
            p99: histogram.value_at_quantile(0.99),
            max: histogram.max(),
        }
    }
}

impl Older {
    fn new() -> Box<Self> {
        let mut histogram = Histogram::new(2).expect("two digits are within hdrhistogram's range");
        histogram.auto(true);
        Box::new(Self {
            uncounted: Vec::new(),
            histogram,
        })
    }

    fn count(&mut self) {
        // What waited in one queue waited equally long, as far as a histogram can tell.
        for equal in self.uncounted.chunk_by(|one, next| one == next) {
            let recorded = self
                .histogram
                .record_n(lengthen(equal[0]), equal.len() as u32);
            debug_assert!(
                recorded.is_ok(),
                "a histogram that resizes itself holds every u64"
            );
        }
        self.uncounted.clear();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// What is kept of a time until it is counted is enough to count it.
        #[test]
        fn loses_nothing_on_the_way(times in proptest::collection::vec((0..48u32, any::<u64>()), 1..600)) {
            let mut latencies = Latencies::default();
            let mut histogram = Older::new().histogram;
            for (size, time) in times {
                // Of all sizes, up to three days; but a single float has 24 bits.
                let time = time >> (63 - size) >> size.saturating_sub(23) << size.saturating_sub(23);
                latencies.record(time);
                histogram.record(time).unwrap();
            }
            let percentiles = latencies.percentiles();
            prop_assert_eq!(percentiles.count, histogram.len());
            prop_assert_eq!(percentiles.p50, histogram.value_at_quantile(0.50));
            prop_assert_eq!(percentiles.p90, histogram.value_at_quantile(0.90));
            prop_assert_eq!(percentiles.p99, histogram.value_at_quantile(0.99));
            prop_assert_eq!(percentiles.max, histogram.max());
        }

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
