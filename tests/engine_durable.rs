//! The engine's bus over a journal in a file: flushes that fail, windows that are too small for what
//! comes, restarts. The outside world is the plain one; the writer's steps fail on demand.

mod plain;

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};
use std::time::Duration;

use ironbus::engine::dead_letters::Limits;
use ironbus::engine::digest::Digest;
use ironbus::engine::durable::{
    Durable, Fate, Keep, Opening, Publication, Refusal, Revive, Since, Written,
};
use ironbus::engine::idempotency::Claim;
use ironbus::engine::journal::{
    Bounds, Commit, Event, Faults, FileOptions, JournalError, JournalOptions, Keeping, Observer,
    Parameters, SqliteOptions, Statement, Unit,
};
use ironbus::engine::priority::Priority;
use ironbus::engine::settlement::Outcome;
use ironbus::engine::store::{Durability, Problem};
use ironbus::engine::sync::lock;
use plain::{Bus, Flag, Lane, Plain, Seat, options};

const NOW: f64 = 1_700_000_000.0;

/// The bus and its journal.
struct World {
    bus: Bus,
    durable: Arc<Durable<Plain>>,
    seat: Arc<Seat>,
    /// The step at which the writer fails.
    fails_at: Arc<Mutex<Option<&'static str>>>,
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
    fn new(path: &Path) -> Arc<Self> {
        Arc::new(Self {
            bus: plain::closed_bus(1024),
            durable: Arc::new(Durable::new(path.to_owned())),
            seat: Arc::default(),
            fails_at: Arc::default(),
        })
    }

    fn open(self: &Arc<Self>) {
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

    fn close(&self) -> Result<(), JournalError> {
        self.bus.close();
        self.durable.close()
    }

    fn lane(&self, name: &str, bound: usize) -> Arc<Lane> {
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
    fn publish(
        &self,
        payloads: &[u64],
        key: Option<&Digest>,
    ) -> Result<Arc<Publication<Plain>>, Refusal> {
        if let Some(key) = key {
            self.bus.with_keys(|keys| {
                assert_eq!(keys.look(key, 1), Claim::Vacant);
                keys.hold(key);
            });
        }
        let written = self.written(payloads, key);
        let handed = self.durable.publish(&self.bus, written, Durability::Os);
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
    fn written(&self, payloads: &[u64], key: Option<&Digest>) -> Vec<Written<Plain>> {
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

    fn claim(&self, key: &Digest) -> Claim {
        self.bus.with_keys(|keys| keys.look(key, 1))
    }

    /// Runs lanes until so many deliveries are settled; what they were of.
    fn run(&self, count: usize) -> Vec<(Box<str>, u64)> {
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

fn fate(publication: &Publication<Plain>) -> Fate {
    loop {
        match publication.fate() {
            Some(fate) => return fate,
            None => std::thread::yield_now(),
        }
    }
}

fn folder() -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().expect("a folder for the test");
    let path = folder.path().join("x.bus");
    (folder, path)
}

fn key(n: u8) -> Digest {
    Digest::of(&[n])
}

#[test]
fn a_commit_that_is_undone_frees_the_keys_and_whoever_waits_takes_over() {
    let (_folder, path) = folder();
    let world = World::new(&path);
    world.lane("l", 10);
    world.open();
    *lock(&world.fails_at) = Some("batch.appended");
    let publication = world.publish(&[1], Some(&key(1))).ok().expect("taken");
    let told = Flag::default();
    let joined = world.bus.join(&key(1), told.waker());
    assert!(matches!(fate(&publication), Err(JournalError::Store(_))));
    assert!(told.told() == 1 || !joined);
    assert_eq!(world.claim(&key(1)), Claim::Vacant, "it is free");
    let (counts, _) = world.bus.report();
    assert_eq!((counts.rejected, counts.waiting, counts.unknown), (1, 0, 0));

    *lock(&world.fails_at) = None;
    let again = world.publish(&[2], Some(&key(1))).ok().expect("taken");
    assert_eq!(fate(&again), Ok(Durability::Os));
    assert!(again.first > publication.first, "no number is given twice");
    assert_eq!(world.run(1), [("l".into(), 2)]);
    world.close().expect("in order");
}

#[test]
fn events_of_a_unit_come_with_it_or_leave_nothing() {
    let (_folder, path) = folder();
    let world = World::new(&path);
    let lane = world.lane("l", 10);
    world.open();
    let place = world.durable.place(lane.id).expect("it is open");
    // With an unknown table, with a fault of the disk, and well.
    for (n, (sql, fault)) in [
        ("INSERT INTO nowhere VALUES (1)", None),
        ("SELECT 1", Some("batch.appended")),
        ("CREATE TABLE theirs (n)", None),
    ]
    .into_iter()
    .enumerate()
    {
        *lock(&world.fails_at) = fault;
        world.bus.with_keys(|keys| keys.hold(&key(1)));
        let told = Arc::new(Mutex::new(None));
        let tell = told.clone();
        let mut unit = Unit {
            statements: vec![Statement {
                sql: sql.into(),
                parameters: Parameters::Numbered(Vec::new()),
            }],
            ..Unit::default()
        };
        let joined = Flag::default();
        assert!(world.bus.join(&key(1), joined.waker()));
        let written = world.written(&[n as u64, 7], Some(&key(1)));
        let done = Box::new(move |outcome| *lock(&tell) = Some(outcome));
        let (bus, os) = (&world.bus, Durability::Os);
        let handed = world
            .durable
            .settle_with(bus, &place, None, &mut unit, written, os, done);
        assert!(handed.is_ok());
        // Another one, in the same commit or the next: it is nothing to it.
        let other = loop {
            *lock(&world.fails_at) = fault.filter(|_| lock(&told).is_none());
            match world.publish(&[9], None).ok().map(|other| fate(&other)) {
                Some(Ok(_)) => break true,
                _ if fault.is_some() => {}
                _ => break false,
            }
        };
        assert!(other);
        let outcome = lock(&told).take().expect("told, before the other");
        let good = n == 2;
        assert_eq!(outcome.is_ok(), good, "{outcome:?}");
        let claim = if good {
            Claim::Duplicate
        } else {
            Claim::Vacant
        };
        assert_eq!(world.claim(&key(1)), claim);
        assert_eq!(joined.told(), 1, "who joined looks again");
    }
    let delivered = world.run(5).into_iter().map(|(_, payload)| payload);
    assert_eq!(delivered.collect::<Vec<_>>(), [9, 9, 2, 7, 9]);
    let (counts, lanes) = world.bus.report();
    assert_eq!((counts.waiting, counts.unknown), (0, 0));
    assert_eq!(counts.offered, counts.accepted + counts.rejected);
    assert_eq!((counts.accepted, lanes[0].1), (5, 5));
    world.close().expect("in order");
}

#[test]
fn after_a_flush_that_fails_nothing_is_told_that_is_not_known() {
    for stored in [true, false] {
        let (_folder, path) = folder();
        let world = World::new(&path);
        world.lane("l", 10);
        world.open();
        // The first is stored and nobody hears of it.
        *lock(&world.fails_at) = Some("batch.committed");
        let publication = world.publish(&[1], Some(&key(1))).ok().expect("taken");
        assert!(matches!(
            fate(&publication),
            Err(JournalError::DurabilityUnknown(_))
        ));
        assert_eq!(world.claim(&key(1)), Claim::Pending, "it stays claimed");
        let told = Flag::default();
        assert!(world.bus.join(&key(1), told.waker()));
        assert!(world.durable.is_read_only());
        let refused = world.publish(&[2], Some(&key(2)));
        assert!(matches!(
            refused,
            Err(Refusal::Journal(JournalError::ReadOnly))
        ));
        assert_eq!(world.claim(&key(2)), Claim::Vacant);
        let (counts, lanes) = world.bus.report();
        assert_eq!((counts.unknown, counts.accepted, counts.waiting), (1, 0, 0));
        assert_eq!(lanes[0].1, 0, "it went to no lane");
        assert_eq!(world.close(), Err(JournalError::ReadOnly));

        *lock(&world.fails_at) = None;
        if !stored {
            // As if the machine had lost it: an older copy of the file.
            for beside in ["", "-wal", "-shm"] {
                let file = path.with_file_name(format!("x.bus{beside}"));
                if file.exists() {
                    std::fs::remove_file(file).expect("ours");
                }
            }
        }
        world.open();
        assert_eq!(told.told(), 1, "who joined looks again");
        match stored {
            true => {
                assert_eq!(world.claim(&key(1)), Claim::Duplicate, "the key tells");
                assert_eq!(world.run(1), [("l".into(), 1)], "and it is delivered");
            }
            false => assert_eq!(world.claim(&key(1)), Claim::Vacant, "the key tells"),
        }
        world.close().expect("in order");
    }
}

#[test]
fn windows_smaller_than_what_comes_lose_nothing_and_keep_the_order() {
    const EACH: u64 = 400;
    let (_folder, path) = folder();
    let world = World::new(&path);
    let lanes = ["one", "three", "many"];
    for (name, bound) in lanes.into_iter().zip([1, 3, 10_000]) {
        world.lane(name, bound);
    }
    world.open();
    let order = Mutex::new(HashMap::new());
    let done = std::thread::scope(|scope| {
        for publisher in 0..4_u64 {
            let (world, order) = (&world, &order);
            scope.spawn(move || {
                for n in 0..EACH / 4 {
                    let payload = publisher * 1_000_000 + n;
                    let several = [payload, payload + 500_000];
                    let handed = world.publish(&several, None).ok().expect("room");
                    lock(order).insert(handed.first, several);
                    if n % 16 == 0 {
                        assert_eq!(fate(&handed), Ok(Durability::Os));
                    }
                }
            });
        }
        world.run((EACH * 2) as usize * lanes.len())
    });
    let mut order: Vec<_> = lock(&order).drain().collect();
    order.sort_unstable();
    let expected: Vec<u64> = order.into_iter().flat_map(|(_, several)| several).collect();
    for name in lanes {
        let of_lane = done.iter().filter(|(lane, _)| &**lane == name);
        let seen: Vec<u64> = of_lane.map(|(_, payload)| *payload).collect();
        assert_eq!(seen, expected, "{name}");
    }
    assert!(world.bus.is_quiet(None));
    let (_, reports) = world.bus.report();
    for (lane, routed, report) in reports {
        assert_eq!(routed, report.tally.done, "{}", lane.options.name);
    }
    world.close().expect("in order");

    // And nothing of it comes again.
    let world = World::new(&path);
    for name in lanes {
        world.lane(name, 2);
    }
    world.open();
    let last = world.publish(&[7], None).ok().expect("room");
    assert_eq!(fate(&last), Ok(Durability::Os));
    let mut done = world.run(lanes.len());
    done.sort();
    assert_eq!(
        done,
        [("many".into(), 7), ("one".into(), 7), ("three".into(), 7)]
    );
    world.close().expect("in order");
}

#[test]
fn stops_and_starts_in_the_middle_deliver_all_of_it_in_order() {
    let (_folder, path) = folder();
    let world = World::new(&path);
    world.lane("l", 3);
    let (mut seen, mut next) = (Vec::new(), 0);
    for round in 0..10 {
        world.open();
        let several: Vec<u64> = (next..next + 5).collect();
        next += 5;
        let handed = world.publish(&several, None).ok().expect("room");
        assert_eq!(fate(&handed), Ok(Durability::Os));
        let more = world.run(round % 4);
        seen.extend(more.into_iter().map(|(_, payload)| payload));
        world.close().expect("in order");
    }
    world.open();
    let rest = world.run(next as usize - seen.len());
    seen.extend(rest.into_iter().map(|(_, payload)| payload));
    assert_eq!(seen, (0..next).collect::<Vec<_>>());
    world.close().expect("in order");
}

#[test]
fn publishers_wait_for_room_in_the_buffer_and_are_woken() {
    let (_folder, path) = folder();
    let world = World::new(&path);
    world.open();
    let most = Bounds::default().max_pending;
    let (full, seen) = (AtomicBool::new(false), AtomicU64::new(0));
    let payloads: Vec<u64> = (0..most as u64).collect();
    let told = Flag::default();
    for _ in 0..3 {
        match world.publish(&payloads, None) {
            Ok(handed) => {
                seen.fetch_add(1, Ordering::Relaxed);
                drop(handed);
            }
            Err(Refusal::Journal(JournalError::Busy { .. })) => {
                full.store(true, Ordering::Relaxed);
                if world.durable.when_room(most, told.waker()).is_ok() {
                    while told.told() == 0 {
                        std::thread::yield_now();
                    }
                }
                break;
            }
            Err(_) => panic!("refused"),
        }
    }
    assert!(full.into_inner() && seen.into_inner() > 0);
    let (counts, _) = world.bus.report();
    assert_eq!(counts.rejected, 0, "who waits is not refused");
    world.close().expect("in order");
}
