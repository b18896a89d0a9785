//! The engine's bus over a journal in a file, whose outside world is the plain one; its clock moves when the
//! test says so, the writer's steps fail on demand, and what refills lanes can be held up. Shared by tests
//! of durable buses, which bring `plain` along.
#![allow(dead_code)] // each test binary uses its part

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::Duration;

use ironbus::engine::dead_letters::Limits;
use ironbus::engine::digest::Digest;
use ironbus::engine::durable::{
    Beyond, Durable, Fate, Keep, Opening, Publication, Refusal, Revive, Since, Written,
};
use ironbus::engine::gate::Timing;
use ironbus::engine::idempotency::Claim;
use ironbus::engine::journal::{
    Bounds, Commit, Event, Faults, FileOptions, JournalError, JournalOptions, Keeping, Observer,
    SqliteOptions,
};
use ironbus::engine::lane::{Failed, LaneOptions};
use ironbus::engine::ops::wake_all;
use ironbus::engine::priority::Priority;
use ironbus::engine::settlement::Outcome;
use ironbus::engine::store::{Durability, Problem};
use ironbus::engine::sync::lock;

use crate::plain::{self, Bus, Lane, Plain, Seat, options};

/// Unix time where the clock is at 0.
pub const NOW: f64 = 1_700_000_000.0;
pub const SECOND: u64 = 1_000_000_000;

/// The bus and its journal.
pub struct World {
    pub bus: Bus,
    pub durable: Arc<Durable<Plain>>,
    pub seat: Arc<Seat>,
    /// The step at which the writer fails.
    pub fails_at: Arc<Mutex<Option<&'static str>>>,
    /// How often it has failed.
    pub failures: Arc<AtomicU64>,
    /// Held by a test, nobody brings older events to lanes meanwhile.
    pub held_up: Arc<Mutex<()>>,
    /// Held by a test, nobody is told of a commit meanwhile.
    pub writer: Mutex<()>,
    /// How long keys count, in seconds.
    pub ttl: f64,
    clock: Arc<AtomicU64>,
}

impl AsRef<Bus> for World {
    fn as_ref(&self) -> &Bus {
        &self.bus
    }
}

struct Watch(OnceLock<Weak<World>>);

impl Observer for Watch {
    fn committed(&self, commit: &Commit) {
        if let Some(world) = self.0.get().and_then(Weak::upgrade) {
            let _turn = lock(&world.writer);
            world.durable.committed(&world.bus, commit, world.now());
        }
    }
}

struct Numbers {
    clock: Arc<AtomicU64>,
    held_up: Arc<Mutex<()>>,
}

fn wall(clock: &AtomicU64) -> f64 {
    NOW + clock.load(Ordering::SeqCst) as f64 / SECOND as f64
}

impl Revive<Plain> for Numbers {
    fn payload(&self, event: &Event) -> (u64, Option<()>) {
        match event.data.parse() {
            Ok(number) => (number, None),
            Err(_) => (0, Some(())),
        }
    }

    fn token(&self, event: &Event) -> u64 {
        event.key.as_deref().map_or(0, token)
    }

    fn killed(&self) {}

    fn now(&self) -> u64 {
        self.clock.load(Ordering::SeqCst)
    }

    fn wall(&self) -> f64 {
        wall(&self.clock)
    }

    fn attached(&self, work: &mut dyn FnMut()) {
        let _turn = lock(&self.held_up);
        work();
    }

    fn unreadable(&self, subscription: &str, error: &JournalError) {
        panic!("{subscription}: {error}");
    }
}

fn token(key: &str) -> u64 {
    key.bytes().map(u64::from).sum()
}

/// Nothing is let go of.
pub fn keep() -> Keep {
    Keep {
        keeping: Keeping::default(),
        first: Duration::from_secs(3600),
        pause: Duration::from_secs(3600),
        told: Box::new(|_| ()),
    }
}

impl World {
    pub fn new(path: &Path) -> Arc<Self> {
        Self::with_limit(path, None)
    }

    /// One in which publishers wait for lanes that are so many events behind.
    pub fn with_limit(path: &Path, max_backlog: Option<u64>) -> Arc<Self> {
        Self::made(path, max_backlog, 1, 1e6)
    }

    /// One whose clock shows this at first, and whose keys count so many seconds.
    pub fn at(path: &Path, now: u64, ttl: f64) -> Arc<Self> {
        Self::made(path, None, now, ttl)
    }

    fn made(path: &Path, max_backlog: Option<u64>, now: u64, ttl: f64) -> Arc<Self> {
        Arc::new(Self {
            bus: plain::closed_bus_with(1024, (ttl * SECOND as f64) as u64),
            durable: Arc::new(Durable::new(path.to_owned(), max_backlog)),
            seat: Arc::default(),
            fails_at: Arc::default(),
            failures: Arc::default(),
            held_up: Arc::default(),
            writer: Mutex::default(),
            ttl,
            clock: Arc::new(AtomicU64::new(now)),
        })
    }

    pub fn now(&self) -> u64 {
        self.clock.load(Ordering::SeqCst)
    }

    /// Lets time pass up to there; what is due is looked after.
    pub fn advance(&self, now: u64) {
        self.clock.store(now, Ordering::SeqCst);
        self.bus.tick(now);
    }

    pub fn open(self: &Arc<Self>) {
        self.open_journal();
        self.open_gate();
    }

    /// What was begun before is in the lanes, and nothing else.
    pub fn open_journal(self: &Arc<Self>) {
        let watch = Watch(OnceLock::new());
        let _ = watch.0.set(Arc::downgrade(self));
        let (fails_at, failures) = (self.fails_at.clone(), self.failures.clone());
        let hook = move |step: &'static str| {
            if *lock(&fails_at) != Some(step) {
                return Ok(());
            }
            failures.fetch_add(1, Ordering::SeqCst);
            Err(Problem::Io("on demand".into()))
        };
        let clock = self.clock.clone();
        let opening = || Opening {
            options: FileOptions {
                file: SqliteOptions {
                    identity: [7; 16],
                    dead_letters: Limits::default(),
                    checkpoint_pages: 1000,
                    create: true,
                },
                journal: JournalOptions {
                    bounds: Bounds {
                        settle_after: Duration::from_millis(1),
                        ..Bounds::default()
                    },
                    clock: Arc::new(move || wall(&clock)),
                    faults: Faults::new(Arc::new(hook)),
                },
            },
            observer: Arc::new(watch),
            revive: Arc::new(Numbers {
                clock: self.clock.clone(),
                held_up: self.held_up.clone(),
            }),
            ttl: self.ttl,
            max_keys: 1000,
            keep: keep(),
        };
        self.durable.open(self, opening).expect("a journal");
    }

    pub fn open_gate(&self) {
        self.bus.open(self.now());
        self.durable.resume();
    }

    pub fn close(&self) -> Result<(), JournalError> {
        self.bus.close();
        self.durable.close()
    }

    pub fn lane(&self, name: &str, bound: usize) -> Arc<Lane> {
        self.lane_with(options(name, bound))
    }

    pub fn lane_with(&self, options: LaneOptions) -> Arc<Lane> {
        let seat = self.seat.clone();
        let lane = self
            .durable
            .make_lane(&self.bus, options, Since::Now, (), seat);
        let subscribed = self
            .durable
            .subscribe(&self.bus, vec!["*".into()], &lane, self.now());
        subscribed.expect("subscribed");
        lane
    }

    /// Hands events to the journal; a key is claimed first, as a publisher does.
    pub fn publish(
        &self,
        payloads: &[u64],
        key: Option<&Digest>,
    ) -> Result<Arc<Publication<Plain>>, Refusal> {
        self.publish_beyond(payloads, key, Beyond::Wait)
    }

    pub fn publish_beyond(
        &self,
        payloads: &[u64],
        key: Option<&Digest>,
        beyond: Beyond,
    ) -> Result<Arc<Publication<Plain>>, Refusal> {
        if let Some(key) = key {
            self.bus.with_keys(|keys| {
                assert_eq!(keys.look(key, self.now()), Claim::Vacant);
                keys.hold(key);
            });
        }
        self.hand_over(self.written(payloads, key), beyond)
    }

    /// Hands events to the journal whose keys are claimed.
    pub fn hand_over(
        &self,
        written: Vec<Written<Plain>>,
        beyond: Beyond,
    ) -> Result<Arc<Publication<Plain>>, Refusal> {
        let os = Durability::Os;
        let handed = self.durable.publish(&self.bus, written, os, beyond);
        handed.map_err(|(refusal, written)| {
            for written in written {
                if let Some(key) = &written.key {
                    wake_all(self.bus.with_keys(|keys| keys.release(key)));
                }
                drop(written.event.routed(0));
            }
            refusal
        })
    }

    /// Publishes one, to be delivered after so long, and waits until it is stored.
    pub fn store(&self, payload: u64, ordered_by: Option<&str>, delay: Option<u64>) {
        self.store_at(Priority::Normal, payload, ordered_by, delay);
    }

    /// The same, on a level.
    pub fn store_at(
        &self,
        level: Priority,
        payload: u64,
        ordered_by: Option<&str>,
        delay: Option<u64>,
    ) {
        let mut written = self.written(&[payload], None);
        let due = delay.map(|delay| self.now() + delay);
        for one in &mut written {
            one.stored.level = level;
            one.token = ordered_by.map_or(0, token);
            one.stored.key = ordered_by.map(str::to_owned);
            one.stored.due = due.map(|due| NOW + due as f64 / SECOND as f64);
            one.timing = due.map(|due| Timing {
                due: Some(due),
                expires: None,
            });
        }
        let handed = self.hand_over(written, Beyond::Wait).ok().expect("taken");
        assert_eq!(fate(&handed), Ok(Durability::Os));
    }

    /// Events, of which the first has the key.
    pub fn written(&self, payloads: &[u64], key: Option<&Digest>) -> Vec<Written<Plain>> {
        let mut key = key;
        let wall = wall(&self.clock);
        let written = payloads.iter().map(|payload| {
            let key = key.take();
            Written {
                event: plain::event(*payload),
                stored: Event {
                    event_type: "t".into(),
                    level: Priority::Normal,
                    data: payload.to_string(),
                    accepted: wall,
                    timestamp: wall,
                    digest: key.map(Digest::short),
                    ..Event::default()
                },
                token: 0,
                key: key.copied(),
                timing: None,
            }
        });
        written.collect()
    }

    pub fn claim(&self, key: &Digest) -> Claim {
        self.bus.with_keys(|keys| keys.look(key, self.now()))
    }

    /// Runs lanes until so many deliveries are settled; what they were of.
    pub fn run(&self, count: usize) -> Vec<(Box<str>, u64)> {
        let mut done = Vec::new();
        while done.len() < count {
            let Some(lane) = self.seat.next() else {
                std::thread::yield_now();
                continue;
            };
            let now = self.now();
            let mut next = self.bus.take(&lane, now);
            while let Some(found) = next {
                let mut entry = found.entry;
                done.push((lane.options.name.clone(), entry.event.payload));
                next = self
                    .bus
                    .finish(&lane, &mut entry, Outcome::Done, Some(1), true, now);
            }
        }
        done
    }

    /// Runs all that can be run now; of these the handler fails. Every call, in order.
    pub fn run_out(&self, failing: &[u64]) -> Vec<u64> {
        let mut called = Vec::new();
        while !self.bus.is_still(0) {
            let Some(lane) = self.seat.next() else {
                std::thread::yield_now();
                continue;
            };
            let now = self.now();
            let mut next = self.bus.take(&lane, now);
            while let Some(found) = next {
                let mut entry = found.entry;
                if found.token_wanted {
                    let token = entry.event.payload;
                    next = self.bus.with_token(&lane, entry, token, now);
                    continue;
                }
                called.push(entry.event.payload);
                next = if failing.contains(&entry.event.payload) {
                    let failed = Failed::Passing(Arc::new(()));
                    let verdict = lane.judge(&entry, &failed, 0.0);
                    self.bus
                        .fail(&lane, entry, &failed, verdict, None, true, now)
                } else {
                    let done = Outcome::Done;
                    self.bus.finish(&lane, &mut entry, done, Some(1), true, now)
                };
            }
        }
        called
    }
}

pub fn fate(publication: &Publication<Plain>) -> Fate {
    loop {
        match publication.fate() {
            Some(fate) => return fate,
            None => std::thread::yield_now(),
        }
    }
}

pub fn folder() -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().expect("a folder for the test");
    let path = folder.path().join("x.bus");
    (folder, path)
}

pub fn key(n: u8) -> Digest {
    Digest::of(&[n])
}
