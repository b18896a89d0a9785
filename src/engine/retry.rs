//! Retries: whether there is another attempt, and how long to wait before it.
//!
//! Plain values. What a failure means is told by the caller, which alone knows the
//! exception, and so is the random number: the same numbers give the same delays.

use super::clock::Nanos;

/// How delays are spread, so that those who failed together do not come back together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Jitter {
    /// Not at all.
    None,
    /// Anywhere between nothing and the delay. Spreads best.
    Full,
    /// Between a half and one and a half of the delay.
    Factor,
}

/// How often something is tried, and how long the pauses are.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RetryPolicy {
    /// All attempts, the first included.
    pub max_attempts: u32,
    /// The delay after the first failure.
    pub initial_delay: Nanos,
    /// No delay is longer than this, with jitter either.
    pub max_delay: Nanos,
    /// What the delay is multiplied by after each further failure.
    pub exponential_base: f64,
    /// How delays are spread.
    pub jitter: Jitter,
}

impl RetryPolicy {
    /// The delay after this many failures, before jitter.
    ///
    /// ```
    /// use ironbus::engine::clock::SECOND;
    /// use ironbus::engine::retry::{Jitter, RetryPolicy};
    ///
    /// let policy = RetryPolicy {
    ///     max_attempts: 10,
    ///     initial_delay: SECOND,
    ///     max_delay: 5 * SECOND,
    ///     exponential_base: 2.0,
    ///     jitter: Jitter::None,
    /// };
    /// let delays = [1, 2, 3, 4].map(|failures| policy.backoff(failures) / SECOND);
    /// assert_eq!(delays, [1, 2, 4, 5]);
    /// ```
    pub fn backoff(&self, failures: u32) -> Nanos {
        let exponent = i32::try_from(failures.saturating_sub(1)).unwrap_or(i32::MAX);
        // Beyond all bounds it is infinite, and the conversion takes the largest integer for that.
        let growth = self.exponential_base.powi(exponent);
        ((self.initial_delay as f64 * growth) as Nanos).min(self.max_delay)
    }

    /// The delay after this many failures. `random` is uniform in `0.0..1.0`.
    pub fn delay(&self, failures: u32, random: f64) -> Nanos {
        let backoff = self.backoff(failures);
        let (low, high) = match self.jitter {
            Jitter::None => return backoff,
            Jitter::Full => (0, backoff),
            // At the limit the range narrows: to cut what is above would send many back at once.
            Jitter::Factor => (
                backoff / 2,
                backoff.saturating_add(backoff / 2).min(self.max_delay),
            ),
        };
        low.saturating_add(((high - low) as f64 * random) as Nanos)
            .min(high)
    }
}

/// What a failed attempt means for the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It may go better the next time.
    Passing,
    /// It will not.
    Final,
    /// Nothing is wrong, but it must wait this long: not a failed attempt.
    Later(Nanos),
    /// A breaker let nothing through, and will not for this long, if it knows: not an attempt.
    Refused(Option<Nanos>),
}

/// What comes after a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Another attempt, after this long.
    Retry(Nanos),
    /// The failure stands.
    GiveUp,
}

/// The attempts at one event, or at one call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attempts {
    failed: u32,
}

impl Attempts {
    /// Goes on after this many failed attempts.
    pub fn after(failed: u32) -> Self {
        Self { failed }
    }

    /// How many have failed.
    pub fn failed(&self) -> u32 {
        self.failed
    }

    /// The attempt that runs, or comes next. The first is 1.
    pub fn number(&self) -> u32 {
        self.failed.saturating_add(1)
    }

    /// Takes note of a failure and decides. `random` is uniform in `0.0..1.0`.
    ///
    /// Who is refused by a breaker waits as long as a retry may, and no longer.
    pub fn fail(&mut self, policy: &RetryPolicy, failure: Failure, random: f64) -> Next {
        match failure {
            Failure::Later(after) => return Next::Retry(after),
            Failure::Refused(Some(after)) if after <= policy.max_delay => {
                return Next::Retry(after);
            }
            Failure::Refused(Some(_)) => return Next::GiveUp,
            Failure::Refused(None) => return Next::Retry(policy.delay(self.number(), random)),
            Failure::Passing | Failure::Final => self.failed = self.number(),
        }
        if failure == Failure::Final || self.failed >= policy.max_attempts {
            return Next::GiveUp;
        }
        Next::Retry(policy.delay(self.failed, random))
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::engine::clock::SECOND;
    use proptest::prelude::*;

    fn policy(max_attempts: u32, jitter: Jitter) -> RetryPolicy {
        RetryPolicy {
            max_attempts,
            initial_delay: SECOND,
            max_delay: 60 * SECOND,
            exponential_base: 2.0,
            jitter,
        }
    }

    fn jitters() -> impl Strategy<Value = Jitter> {
        prop_oneof![Just(Jitter::None), Just(Jitter::Full), Just(Jitter::Factor)]
    }

    fn policies() -> impl Strategy<Value = RetryPolicy> {
        (
            1..20u32,
            prop_oneof![0..100 * SECOND, any::<u64>()],
            prop_oneof![0..1000 * SECOND, any::<u64>()],
            prop_oneof![1.0..10.0f64, Just(1.0), Just(1e300)],
            jitters(),
        )
            .prop_map(
                |(max_attempts, initial_delay, max_delay, exponential_base, jitter)| RetryPolicy {
                    max_attempts,
                    initial_delay,
                    max_delay,
                    exponential_base,
                    jitter,
                },
            )
    }

    /// Multiplies step by step instead of taking a power.
    fn model(policy: &RetryPolicy, failures: u32) -> f64 {
        let mut delay = policy.initial_delay as f64;
        for _ in 1..failures {
            delay = (delay * policy.exponential_base).min(policy.max_delay as f64);
        }
        delay.min(policy.max_delay as f64)
    }

    fn is_near(delay: Nanos, expected: f64) -> bool {
        (delay as f64 - expected).abs() <= 1.0 + expected * 1e-9
    }

    proptest! {
        #[test]
        fn backoff_grows_to_its_limit(policy in policies(), failures in 0..400u32) {
            let delay = policy.backoff(failures);
            prop_assert!(delay <= policy.max_delay);
            prop_assert!(delay <= policy.backoff(failures + 1));
            let expected = model(&policy, failures);
            prop_assert!(is_near(delay, expected), "{delay} is not {expected}");
        }

        #[test]
        fn jitter_stays_within_its_bounds(
            policy in policies(), failures in 0..400u32, random in 0.0..1.0f64
        ) {
            let (delay, expected) = (policy.delay(failures, random), model(&policy, failures));
            let (low, high) = match policy.jitter {
                Jitter::None => (expected, expected),
                Jitter::Full => (0.0, expected),
                Jitter::Factor => (expected * 0.5, (expected * 1.5).min(policy.max_delay as f64)),
            };
            let slack = 2.0 + high * 1e-9;
            prop_assert!(delay <= policy.max_delay);
            prop_assert!((low - slack..=high + slack).contains(&(delay as f64)));
            let share = low + (high - low) * random;
            prop_assert!((delay as f64 - share).abs() <= slack, "{delay} is not {share}");
        }

        /// Only failed attempts count, and only they end it.
        #[test]
        fn there_are_as_many_attempts_as_the_policy_says(
            policy in policies(),
            steps in proptest::collection::vec(0..4u8, 0..60),
            random in 0.0..1.0f64,
        ) {
            let mut attempts = Attempts::default();
            let mut failed = 0;
            for step in steps {
                let failure = match step {
                    0 => Failure::Passing,
                    1 => Failure::Later(7),
                    2 => Failure::Refused(None),
                    _ => Failure::Refused(Some(policy.max_delay)),
                };
                let next = attempts.fail(&policy, failure, random);
                failed += u32::from(step == 0);
                prop_assert_eq!(attempts.failed(), failed);
                prop_assert_eq!(next == Next::GiveUp, failed == policy.max_attempts);
                if next == Next::GiveUp {
                    break;
                }
                if step == 1 {
                    prop_assert_eq!(next, Next::Retry(7));
                }
            }
        }

        #[test]
        fn the_same_numbers_give_the_same_delays(policy in policies(), seed in any::<u64>()) {
            let run = || {
                let mut random = fastrand::Rng::with_seed(seed);
                let mut attempts = Attempts::default();
                std::iter::repeat_with(move || attempts.fail(&policy, Failure::Passing, random.f64()))
                    .take(20)
                    .collect::<Vec<_>>()
            };
            prop_assert_eq!(run(), run());
        }
    }

    #[test]
    fn a_final_failure_ends_it_at_once() {
        let mut attempts = Attempts::default();
        let next = attempts.fail(&policy(5, Jitter::Full), Failure::Final, 0.5);
        assert_eq!((next, attempts.failed()), (Next::GiveUp, 1));
    }

    #[test]
    fn a_refusal_for_longer_than_a_retry_may_take_ends_it() {
        let mut attempts = Attempts::after(1);
        let policy = policy(5, Jitter::Full);
        let refused = Failure::Refused(Some(policy.max_delay + 1));
        assert_eq!(attempts.fail(&policy, refused, 0.5), Next::GiveUp);
        assert_eq!((attempts.failed(), attempts.number()), (1, 2));
    }

    #[test]
    fn full_jitter_reaches_both_ends() {
        let policy = policy(5, Jitter::Full);
        assert_eq!(policy.delay(1, 0.0), 0);
        assert_eq!(policy.delay(1, 1.0 - f64::EPSILON / 2.0), SECOND - 1);
    }

    #[test]
    fn factor_jitter_is_that_of_the_old_interface() {
        let policy = policy(5, Jitter::Factor);
        assert_eq!(policy.delay(2, 0.0), SECOND);
        assert_eq!(policy.delay(2, 0.5), 2 * SECOND);
        assert_eq!(policy.delay(2, 0.999_999_999_9), 3 * SECOND - 1);
    }
}
