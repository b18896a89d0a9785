//! The engine's bus over a journal in a file, whose outside world is the plain one; the writer's steps
//! fail on demand. Shared by tests of durable buses, which bring `plain` along.
#![allow(dead_code)] // each test binary uses its part

use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::Duration;

use ironbus::engine::dead_letters::Limits;
use ironbus::engine::digest::Digest;
use ironbus::engine::durable::{
    Beyond, Durable, Fate, Keep, Opening, Publication, Refusal, Revive, Since, Written,
};
use ironbus::engine::idempotency::Claim;
use ironbus::engine::journal::{
    Bounds, Commit, Event, Faults, FileOptions, JournalError, JournalOptions, Keeping, Observer,
    SqliteOptions,
};
use ironbus::engine::priority::Priority;
use ironbus::engine::settlement::Outcome;
use ironbus::engine::store::{Durability, Problem};
use ironbus::engine::sync::lock;

use crate::plain::{self, Bus, Lane, Plain, Seat, options};

pub const NOW: f64 = 1_700_000_000.0;

/// The bus and its journal.
pub struct World {
    pub bus: Bus,
    pub durable: Arc<Durable<Plain>>,
    pub seat: Arc<Seat>,
    /// The step at which the writer fails.
    pub fails_at: Arc<Mutex<Option<&'static str>>>,
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
            world.durable.committed(&world.bus, commit, 1);
        }
    }
}

struct Numbers;

impl Revive<Plain> for Numbers {
    fn payload(&self, event: &Event) -> (u64, Option<()>) {
        match event.data.parse() {
            Ok(number) => (number, None),
            Err(_) => (0, Some(())),
        }
    }

    fn token(&self, _event: &Event) -> u64 {
        0
    }

    fn killed(&self) {}

    fn now(&self) -> u64 {
        1
    }

    fn wall(&self) -> f64 {
        NOW
    }

    fn attached(&self, work: &mut dyn FnMut()) {
        work();
    }

    fn unreadable(&self, subscription: &str, error: &JournalError) {
        panic!("{subscription}: {error}");
    }
}

/// Nothing is let go of.
fn keep() -> Keep {
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
        Arc::new(Self {
            bus: plain::closed_bus(1024),
            durable: Arc::new(Durable::new(path.to_owned(), max_backlog)),
            seat: Arc::default(),
            fails_at: Arc::default(),
        })
    }

    pub fn open(self: &Arc<Self>) {
        let watch = Watch(OnceLock::new());
        let _ = watch.0.set(Arc::downgrade(self));
        let fails_at = self.fails_at.clone();
        let hook = move |step: &'static str| match *lock(&fails_at) == Some(step) {
            true => Err(Problem::Io("on demand".into())),
            false => Ok(()),
        };
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
                    clock: Arc::new(|| NOW),
                    faults: Faults::new(Arc::new(hook)),
                },
            },
            observer: Arc::new(watch),
            revive: Arc::new(Numbers),
            ttl: 1e6,
            max_keys: 1000,
            keep: keep(),
        };
        self.durable.open(self, opening).expect("a journal");
        self.bus.open(1);
        self.durable.resume();
    }

    pub fn close(&self) -> Result<(), JournalError> {
        self.bus.close();
        self.durable.close()
    }

    pub fn lane(&self, name: &str, bound: usize) -> Arc<Lane> {
        let options = options(name, bound);
        let seat = self.seat.clone();
        let lane = self
            .durable
            .make_lane(&self.bus, options, Since::Now, (), seat);
        let subscribed = self
            .durable
            .subscribe(&self.bus, vec!["*".into()], &lane, 1);
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
                assert_eq!(keys.look(key, 1), Claim::Vacant);
                keys.hold(key);
            });
        }
        let written = self.written(payloads, key);
        let handed = self
            .durable
            .publish(&self.bus, written, Durability::Os, beyond);
        handed.map_err(|(refusal, written)| {
            if let Some(key) = key {
                self.bus.with_keys(|keys| keys.release(key));
            }
            for written in written {
                drop(written.event.routed(0));
            }
            refusal
        })
    }

    /// Events, of which the first has the key.
    pub fn written(&self, payloads: &[u64], key: Option<&Digest>) -> Vec<Written<Plain>> {
        let mut key = key;
        let written = payloads.iter().map(|payload| {
            let key = key.take();
            Written {
                event: plain::event(*payload),
                stored: Event {
                    event_type: "t".into(),
                    level: Priority::Normal,
                    data: payload.to_string(),
                    accepted: NOW,
                    timestamp: NOW,
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
        self.bus.with_keys(|keys| keys.look(key, 1))
    }

    /// Runs lanes until so many deliveries are settled; what they were of.
    pub fn run(&self, count: usize) -> Vec<(Box<str>, u64)> {
        let mut done = Vec::new();
        while done.len() < count {
            let Some(lane) = self.seat.next() else {
                std::thread::yield_now();
                continue;
            };
            let mut next = self.bus.take(&lane, 1);
            while let Some(found) = next {
                let mut entry = found.entry;
                done.push((lane.options.name.clone(), entry.event.payload));
                next = self
                    .bus
                    .finish(&lane, &mut entry, Outcome::Done, Some(1), true, 1);
            }
        }
        done
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
