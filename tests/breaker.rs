//! The circuit breaker against an independent model, and from many threads at once.
#![cfg(not(loom))]

use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Barrier, Mutex};

use ironbus::engine::breaker::{
    Breaker, BreakerConfig, Change, Circuit, Outcome, Permit, Refused, Snapshot, State, Transition,
};
use proptest::prelude::*;

const CONFIG: BreakerConfig = BreakerConfig {
    failure_threshold: 3,
    success_threshold: 2,
    timeout: 100,
    window_size: 10,
    failure_rate: 0.5,
    half_open_max_calls: 1,
};

fn permit(circuit: &mut Circuit, now: u64) -> Permit {
    circuit.try_acquire(now).0.expect("calls are let through")
}

fn call(circuit: &mut Circuit, outcome: Outcome, now: u64) -> Option<Change> {
    let permit = permit(circuit, now);
    circuit.report(permit, outcome, now)
}

fn opened(now: u64) -> Circuit {
    let mut circuit = Circuit::new(CONFIG, 0);
    circuit.force(State::Open, now);
    circuit
}

#[test]
fn one_in_doubt_asks_with_a_probe_first() {
    let mut circuit = Circuit::new(CONFIG, 0);
    assert!(circuit.doubt(5).is_some());
    let probe = permit(&mut circuit, 5);
    assert!(probe.is_probe());
    assert!(circuit.try_acquire(5).0.is_err());
    circuit.report(probe, Outcome::Failure, 6);
    assert_eq!(circuit.snapshot().state, State::Open);
    // What it knows already is not doubted.
    assert!(circuit.doubt(7).is_none());
    assert!(opened(0).doubt(1).is_none());
}

#[test]
fn failures_in_a_row_open_it_and_a_success_breaks_the_row() {
    use Outcome::{Failure, Ignored, Success};
    let mut circuit = Circuit::new(CONFIG, 0);
    for outcome in [Failure, Failure, Success, Failure, Ignored, Failure] {
        assert_eq!(call(&mut circuit, outcome, 5), None);
    }
    let change = call(&mut circuit, Failure, 7);
    assert_eq!(
        change,
        Some(Change::State(Transition {
            from: State::Closed,
            to: State::Open,
            generation: 1,
            retry_at: Some(107),
        }))
    );
    let refused = Refused {
        retry_at: Some(107),
    };
    assert_eq!(circuit.try_acquire(106).0, Err(refused));
    assert!(circuit.try_acquire(107).0.is_ok());
}

#[test]
fn it_goes_back_to_how_it_was() {
    let mut circuit = Circuit::new(CONFIG, 0);
    call(&mut circuit, Outcome::Failure, 1);
    let before = circuit.clone();
    let running = permit(&mut circuit, 2);
    assert!(circuit.force(State::Open, 3).is_some());
    let change = circuit.restore(before.clone(), 4);
    assert_eq!(
        change,
        Some(Change::State(Transition {
            from: State::Open,
            to: State::Closed,
            generation: 2,
            retry_at: None,
        }))
    );
    assert_eq!(circuit.snapshot(), before.snapshot());
    // A call that ran meanwhile does not count, and two more failures open it.
    assert_eq!(circuit.report(running, Outcome::Failure, 5), None);
    assert_eq!(call(&mut circuit, Outcome::Failure, 5), None);
    assert!(call(&mut circuit, Outcome::Failure, 5).is_some());
}

#[test]
fn going_back_to_the_same_state_is_no_change() {
    let mut circuit = opened(10);
    let before = circuit.clone();
    circuit.force(State::Closed, 20);
    circuit.force(State::Open, 30);
    assert_eq!(circuit.restore(before, 40), None);
    // It is open since the first time, and nobody was told otherwise.
    let refused = Refused {
        retry_at: Some(110),
    };
    assert_eq!(circuit.try_acquire(109).0, Err(refused));
    let (permit, change) = circuit.try_acquire(110);
    assert!(permit.is_ok());
    assert!(matches!(change, Some(Change::State(transition)) if transition.generation == 4));
}

#[test]
fn a_share_of_failures_opens_it_once_there_are_enough_calls() {
    let mut circuit = Circuit::new(CONFIG, 0);
    for n in 0..9 {
        let outcome = [Outcome::Failure, Outcome::Success][n % 2];
        assert_eq!(call(&mut circuit, outcome, 0), None, "call {n}");
    }
    // The tenth: five of ten, whichever way it goes.
    assert!(call(&mut circuit, Outcome::Success, 0).is_some());
    assert_eq!(circuit.snapshot().state, State::Open);
}

#[test]
fn a_rate_is_met_exactly() {
    let config = BreakerConfig {
        failure_threshold: u32::MAX,
        window_size: 100,
        failure_rate: 0.07,
        ..CONFIG
    };
    let mut circuit = Circuit::new(config, 0);
    for n in 0..99 {
        let outcome = [Outcome::Success, Outcome::Failure][usize::from(n < 6)];
        assert_eq!(call(&mut circuit, outcome, 0), None);
    }
    assert!(call(&mut circuit, Outcome::Failure, 0).is_some());
}

#[test]
fn a_rate_above_one_is_never_met() {
    let config = BreakerConfig {
        failure_threshold: u32::MAX,
        failure_rate: f64::INFINITY,
        ..CONFIG
    };
    let mut circuit = Circuit::new(config, 0);
    for _ in 0..1000 {
        assert_eq!(call(&mut circuit, Outcome::Failure, 0), None);
    }
}

#[test]
fn successes_of_probes_close_it_and_a_failure_opens_it_again() {
    let mut circuit = opened(0);
    assert_eq!(
        call(&mut circuit, Outcome::Success, 100),
        Some(Change::Room)
    );
    assert_eq!(circuit.snapshot().success_count, 1);
    let change = call(&mut circuit, Outcome::Failure, 150);
    assert!(matches!(change, Some(Change::State(change)) if change.retry_at == Some(250)));
    assert_eq!(
        call(&mut circuit, Outcome::Success, 250),
        Some(Change::Room)
    );
    let change = call(&mut circuit, Outcome::Success, 251);
    assert!(matches!(change, Some(Change::State(change)) if change.to == State::Closed));
    assert_eq!(circuit.snapshot().failure_count, 0);
}

#[test]
fn a_probe_without_a_result_gives_its_place_back() {
    let mut circuit = opened(0);
    let probe = permit(&mut circuit, 100);
    let refused = Refused { retry_at: None };
    assert_eq!(circuit.try_acquire(100), (Err(refused), None));
    let change = circuit.report(probe, Outcome::Ignored, 101);
    assert_eq!(change, Some(Change::Room));
    assert!(circuit.try_acquire(101).0.is_ok());
}

#[test]
fn calls_of_another_time_say_nothing() {
    let mut circuit = Circuit::new(CONFIG, 0);
    let mut early: Vec<_> = (0..9).map(|_| permit(&mut circuit, 0)).collect();
    circuit.force(State::Open, 0);
    let probe = permit(&mut circuit, 100);
    let mut before = circuit.snapshot();
    before.probes = 1;
    for outcome in [Outcome::Success, Outcome::Failure, Outcome::Ignored].repeat(3) {
        let stale = early.pop().expect("there are nine");
        assert_eq!(circuit.report(stale, outcome, 100), None);
        assert_eq!(circuit.snapshot(), before);
    }
    assert_eq!(
        circuit.report(probe, Outcome::Success, 100),
        Some(Change::Room)
    );
}

#[test]
fn a_smaller_window_forgets_the_oldest_calls() {
    let config = BreakerConfig {
        failure_threshold: u32::MAX,
        ..CONFIG
    };
    let mut circuit = Circuit::new(config, 0);
    for n in 0..9 {
        let outcome = [Outcome::Success, Outcome::Failure][usize::from(n < 4)];
        call(&mut circuit, outcome, 0);
    }
    circuit.set_config(BreakerConfig {
        window_size: 4,
        ..config
    });
    assert_eq!(call(&mut circuit, Outcome::Failure, 0), None);
    assert!(call(&mut circuit, Outcome::Failure, 0).is_some());
}

/// Remembers everything and derives the rest, where the machine keeps counts.
struct Model {
    config: BreakerConfig,
    state: State,
    since: u64,
    epoch: u64,
    /// Failed or not, since the last change of state.
    results: Vec<bool>,
    /// The same since the breaker closed last.
    history: Vec<bool>,
    running: usize,
}

impl Model {
    fn trailing(results: &[bool], value: bool) -> usize {
        results
            .iter()
            .rev()
            .take_while(|&&failed| failed == value)
            .count()
    }

    fn must_open(&self) -> bool {
        let config = &self.config;
        let window = config.window_size as usize;
        let row = Self::trailing(&self.history, true) >= config.failure_threshold as usize;
        let share = self.results.len() >= window && {
            let last = &self.results[self.results.len() - window..];
            let failures = last.iter().filter(|failed| **failed).count();
            failures as f64 >= config.failure_rate * window as f64
        };
        share || (row && self.results.last() == Some(&true))
    }

    fn enter(&mut self, state: State, now: u64) {
        self.state = state;
        self.since = now;
        self.epoch += 1;
        self.results.clear();
        self.running = 0;
        if state == State::Closed {
            self.history.clear();
        }
    }

    fn ask(&mut self, now: u64) -> bool {
        if self.state == State::Open && now >= self.since + self.config.timeout {
            self.enter(State::HalfOpen, now);
        }
        let room = match self.state {
            State::Closed => true,
            State::Open => false,
            State::HalfOpen => self.running < self.config.half_open_max_calls as usize,
        };
        self.running += usize::from(room);
        room
    }

    fn end(&mut self, epoch: u64, outcome: Outcome, now: u64) {
        if epoch != self.epoch {
            return;
        }
        self.running -= 1;
        if outcome == Outcome::Ignored {
            return;
        }
        let failed = outcome == Outcome::Failure;
        self.results.push(failed);
        self.history.push(failed);
        match self.state {
            State::Closed if self.must_open() => self.enter(State::Open, now),
            State::HalfOpen if failed => self.enter(State::Open, now),
            State::HalfOpen if self.results.len() >= self.config.success_threshold as usize => {
                self.enter(State::Closed, now);
            }
            _ => {}
        }
    }

    fn check(&self, snapshot: &Snapshot) -> Result<(), TestCaseError> {
        prop_assert_eq!(snapshot.state, self.state);
        prop_assert_eq!(snapshot.changed_at, self.since);
        let trailing = Self::trailing(&self.history, true);
        prop_assert_eq!(snapshot.failure_count as usize, trailing);
        if self.state == State::HalfOpen {
            prop_assert_eq!(snapshot.success_count as usize, self.results.len());
            prop_assert_eq!(snapshot.probes as usize, self.running);
        }
        let retry_at = (self.state == State::Open).then(|| self.since + self.config.timeout);
        prop_assert_eq!(snapshot.retry_at, retry_at);
        Ok(())
    }
}

#[derive(Clone, Debug)]
enum Step {
    Ask,
    End(prop::sample::Index, Outcome),
    Wait(u64),
    Force(State),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let outcome = prop_oneof![
        4 => Just(Outcome::Failure),
        3 => Just(Outcome::Success),
        1 => Just(Outcome::Ignored),
    ];
    let state = prop_oneof![
        Just(State::Closed),
        Just(State::Open),
        Just(State::HalfOpen)
    ];
    let step = prop_oneof![
        8 => Just(Step::Ask),
        8 => (any::<prop::sample::Index>(), outcome).prop_map(|(at, how)| Step::End(at, how)),
        2 => (0..15u64).prop_map(Step::Wait),
        1 => state.prop_map(Step::Force),
    ];
    proptest::collection::vec(step, 0..300)
}

fn configs() -> impl Strategy<Value = BreakerConfig> {
    (1..6u32, 1..4u32, 0..30u64, 1..8u32, 1..=4u8, 1..4u32).prop_map(
        |(failure_threshold, success_threshold, timeout, window_size, rate, most)| BreakerConfig {
            failure_threshold,
            success_threshold,
            timeout,
            window_size,
            // Quarters are exact, so that the model may multiply.
            failure_rate: f64::from(rate) / 4.0,
            half_open_max_calls: most,
        },
    )
}

proptest! {
    #[test]
    fn does_what_the_model_does(config in configs(), steps in steps()) {
        let mut circuit = Circuit::new(config, 0);
        let mut model = Model {
            config,
            state: State::Closed,
            since: 0,
            epoch: 0,
            results: Vec::new(),
            history: Vec::new(),
            running: 0,
        };
        let mut now = 0;
        let mut running: Vec<(Permit, u64)> = Vec::new();
        let mut generation = 0;
        for step in steps {
            let before = circuit.snapshot().state;
            let change = match step {
                Step::Ask => {
                    let (answer, change) = circuit.try_acquire(now);
                    prop_assert_eq!(answer.is_ok(), model.ask(now));
                    match answer {
                        Ok(permit) => running.push((permit, model.epoch)),
                        Err(refused) => prop_assert_eq!(
                            refused.retry_at,
                            (model.state == State::Open).then(|| model.since + config.timeout)
                        ),
                    }
                    change
                }
                Step::End(at, outcome) => {
                    if running.is_empty() {
                        continue;
                    }
                    let (permit, epoch) = running.swap_remove(at.index(running.len()));
                    model.end(epoch, outcome, now);
                    circuit.report(permit, outcome, now)
                }
                Step::Wait(time) => {
                    now += time;
                    None
                }
                Step::Force(state) => {
                    if state != model.state {
                        model.enter(state, now);
                    }
                    circuit.force(state, now)
                }
            };
            model.check(&circuit.snapshot())?;
            if let Some(Change::State(transition)) = change {
                generation += 1;
                prop_assert_eq!((transition.from, transition.to), (before, model.state));
                prop_assert_eq!(transition.generation, generation);
            }
            prop_assert_eq!(generation, model.epoch);
        }
    }
}

#[test]
fn of_many_threads_exactly_so_many_probe() {
    for most in [1, 3] {
        let breaker = Breaker::new(
            BreakerConfig {
                half_open_max_calls: most,
                ..CONFIG
            },
            0,
        );
        breaker.force(State::Open, 0);
        let start = Barrier::new(16);
        let running = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..16 {
                scope.spawn(|| {
                    start.wait();
                    // The permits are kept, so all these calls are at once.
                    running.fetch_add(usize::from(breaker.try_acquire(100).is_ok()), SeqCst);
                });
            }
        });
        assert_eq!(running.into_inner(), most as usize);
        assert_eq!(breaker.snapshot().probes, most);
    }
}

#[test]
fn those_who_watch_learn_of_everything_and_may_call_back() {
    let breaker = Arc::new(Breaker::new(CONFIG, 0));
    let told: Arc<Mutex<Vec<(Change, State)>>> = Arc::default();
    let number = breaker.watch({
        let (told, breaker) = (told.clone(), Arc::downgrade(&breaker));
        move |change| {
            let breaker = breaker.upgrade().expect("it is telling");
            told.lock()
                .unwrap()
                .push((change, breaker.snapshot().state));
        }
    });
    for _ in 0..3 {
        let permit = breaker.try_acquire(0).expect("closed");
        breaker.report(permit, Outcome::Failure, 0);
    }
    let probe = breaker.try_acquire(100).expect("half open");
    breaker.report(probe, Outcome::Success, 100);
    breaker.unwatch(number);
    breaker.force(State::Closed, 0);
    let told = told.lock().unwrap();
    let states: Vec<_> = told.iter().map(|(_, state)| *state).collect();
    assert_eq!(states, [State::Open, State::HalfOpen, State::HalfOpen]);
    assert_eq!(told[2].0, Change::Room);
    assert_eq!(Arc::strong_count(&breaker), 1);
}

#[test]
fn threads_that_call_and_fail_keep_the_counts_right() {
    let breaker = Breaker::new(CONFIG, 0);
    let generations: Mutex<Vec<u64>> = Mutex::default();
    let generations = Arc::new(generations);
    breaker.watch({
        let generations = generations.clone();
        move |change| {
            if let Change::State(transition) = change {
                generations.lock().unwrap().push(transition.generation);
            }
        }
    });
    let clock = std::sync::atomic::AtomicU64::new(0);
    std::thread::scope(|scope| {
        for seed in 0..8u64 {
            let (breaker, clock) = (&breaker, &clock);
            scope.spawn(move || {
                let mut random = fastrand::Rng::with_seed(seed);
                for _ in 0..5_000 {
                    let now = clock.fetch_add(1, SeqCst);
                    if let Ok(permit) = breaker.try_acquire(now) {
                        let outcome = match random.u8(0..8) {
                            0 => Outcome::Ignored,
                            1..4 => Outcome::Failure,
                            _ => Outcome::Success,
                        };
                        breaker.report(permit, outcome, now);
                    }
                }
            });
        }
    });
    // Each change was told once, and no place was lost: a probe is possible again.
    let mut told = std::mem::take(&mut *generations.lock().unwrap());
    told.sort_unstable();
    assert!(told.len() > 10 && told.iter().copied().eq(1..=told.len() as u64));
    assert_eq!(breaker.snapshot().probes, 0);
    assert!(breaker.try_acquire(u64::MAX).is_ok());
}
