//! Races on the keys of a bus with a journal while the disk fails: one winner for each key, who waits takes
//! over from who fails, nobody is told of a duplicate of what does not exist, and of what is unknown the key
//! tells once the journal is open again. Publishers do here what those of the bus do.

mod plain;
mod torture;
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use ironbus::engine::digest::Digest;
use ironbus::engine::durable::{Beyond, Refusal};
use ironbus::engine::idempotency::Claim;
use ironbus::engine::journal::JournalError;
use ironbus::engine::sync::lock;
use plain::Flag;
use torture::{control, done, times};
use world::{SECOND, World, fate, folder, key};

const THREADS: u64 = 4;
const KEYS: u8 = 6;
const ATTEMPTS: u64 = 3;

/// What a publisher was told, and what it has published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Told {
    Stored(u64),
    Duplicate,
    /// Nothing of it is stored.
    Failed,
    Unknown(u64),
    ReadOnly,
}

/// How a publisher deals with its key.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rule {
    Right,
    /// Does not look whether it is somebody's.
    Blind,
    /// Takes it for seen though nothing was stored.
    Hasty,
    /// Lets go of it though nobody knows whether it was stored.
    Forgetful,
}

fn publish(world: &World, key: &Digest, payload: u64, rule: Rule) -> Told {
    loop {
        if world.durable.is_read_only() {
            return Told::ReadOnly;
        }
        let claim = world.bus.with_keys(|keys| {
            let claim = match rule {
                Rule::Blind => Claim::Vacant,
                _ => keys.look(key, world.now()),
            };
            if claim == Claim::Vacant {
                keys.hold(key);
            }
            claim
        });
        match claim {
            Claim::Duplicate => return Told::Duplicate,
            Claim::Vacant => break,
            Claim::Pending => {
                let flag = Flag::default();
                if world.bus.join(key, flag.waker()) {
                    while flag.told() == 0 {
                        std::thread::yield_now();
                    }
                }
            }
        }
    }
    let written = world.written(&[payload], Some(key));
    let publication = match world.hand_over(written, Beyond::Wait) {
        Ok(publication) => publication,
        Err(Refusal::Journal(JournalError::ReadOnly)) => return Told::ReadOnly,
        Err(_) => return Told::Failed,
    };
    match fate(&publication) {
        Ok(_) => Told::Stored(payload),
        Err(JournalError::ReadOnly) => Told::ReadOnly,
        Err(JournalError::DurabilityUnknown(_)) => {
            if rule == Rule::Forgetful {
                world.bus.with_keys(|keys| keys.release(key));
            }
            Told::Unknown(payload)
        }
        Err(_) => {
            if rule == Rule::Hasty {
                let now = world.now();
                world.bus.with_keys(|keys| {
                    if keys.look(key, now) == Claim::Vacant {
                        keys.mark(key, now);
                    }
                });
            }
            Told::Failed
        }
    }
}

/// All that publishers were told, by key.
type Story = BTreeMap<u8, Vec<Told>>;

/// Everybody publishes each key, some times over if nothing was stored, and `meanwhile` does what it likes.
fn race(world: &World, rule: Rule, meanwhile: impl FnOnce(&AtomicBool) + Send) -> Story {
    let (over, payloads) = (AtomicBool::new(false), AtomicU64::new(1));
    std::thread::scope(|scope| {
        scope.spawn(|| meanwhile(&over));
        let publishers: Vec<_> = (0..THREADS)
            .map(|_| {
                scope.spawn(|| {
                    let mut told = Vec::new();
                    for n in 0..KEYS {
                        for _ in 0..ATTEMPTS {
                            let payload = payloads.fetch_add(1, Ordering::Relaxed);
                            told.push((n, publish(world, &key(n), payload, rule)));
                            if told.last().is_none_or(|(_, told)| *told != Told::Failed) {
                                break;
                            }
                        }
                    }
                    told
                })
            })
            .collect();
        let mut story = Story::new();
        for publisher in publishers {
            for (n, told) in publisher.join().expect("it does not panic") {
                story.entry(n).or_default().push(told);
            }
        }
        over.store(true, Ordering::Relaxed);
        story
    })
}

fn stored(told: &[Told]) -> Vec<u64> {
    let stored = told.iter().filter_map(|told| match told {
        Told::Stored(payload) => Some(*payload),
        _ => None,
    });
    stored.collect()
}

/// Everything that is delivered, to a subscription that has been there from the beginning.
fn delivered(world: &World) -> Vec<u64> {
    world.run_out(&[])
}

/// What was told while the disk failed now and then, and came back. Nothing of it is unknown.
fn check(world: &World, story: &Story) -> Result<u64, String> {
    let (mut events, mut taken_over) = (BTreeSet::new(), 0);
    for (n, told) in story {
        let winners = stored(told);
        let claim = world.claim(&key(*n));
        if winners.len() > 1 {
            return Err(format!("key {n} has {} winners", winners.len()));
        }
        let duplicates = told.contains(&Told::Duplicate);
        if winners.is_empty() && (duplicates || claim != Claim::Vacant) {
            return Err(format!("key {n} is a duplicate of nothing"));
        }
        if winners.len() == 1 && claim != Claim::Duplicate {
            return Err(format!("key {n} is free, and its event is stored"));
        }
        taken_over += u64::from(winners.len() == 1 && told.contains(&Told::Failed));
        events.extend(winners);
    }
    let delivered = delivered(world);
    if delivered.len() != events.len() || !delivered.iter().all(|it| events.contains(it)) {
        return Err(format!("{delivered:?} were delivered of {events:?}"));
    }
    Ok(taken_over)
}

/// The disk fails again and again, so that a commit is undone.
fn disk_that_fails(world: &World) -> impl FnOnce(&AtomicBool) + Send + '_ {
    |over| {
        while !over.load(Ordering::Relaxed) {
            *lock(&world.fails_at) = Some("batch.appended");
            for _ in 0..3 {
                std::thread::yield_now();
            }
            *lock(&world.fails_at) = None;
            std::thread::yield_now();
        }
        *lock(&world.fails_at) = None;
    }
}

#[test]
fn who_waits_for_a_key_takes_over_where_a_commit_is_undone() {
    let (mut winners, mut taken_over) = (0, 0);
    for _ in 0..times(40, 1000) {
        let (_folder, path) = folder();
        let world = World::new(&path);
        world.lane("l", 100);
        world.open();
        let story = race(&world, Rule::Right, disk_that_fails(&world));
        taken_over += check(&world, &story).unwrap_or_else(|error| panic!("{error}: {story:?}"));
        winners += story.values().map(|told| stored(told).len()).sum::<usize>() as u64;
        // What was not stored is free, and what was is known, in the next life as well.
        world.close().expect("in order");
        let world = World::new(&path);
        world.lane("l", 100);
        world.open();
        for (n, told) in &story {
            let again = publish(&world, &key(*n), 1000, Rule::Right);
            match stored(told).is_empty() {
                true => assert_eq!(again, Told::Stored(1000)),
                false => assert_eq!(again, Told::Duplicate),
            }
        }
        world.close().expect("in order");
    }
    assert!(winners > 0 && taken_over > 0, "{winners}, {taken_over}");
    done("keys that had one winner", winners);
    done("keys taken over from a publisher that failed", taken_over);
}

#[test]
fn one_publisher_that_waits_takes_over_and_is_stored_when_the_disk_is_back() {
    for comes_back in [true, false] {
        let (_folder, path) = folder();
        let world = World::new(&path);
        world.lane("l", 100);
        world.open();
        *lock(&world.fails_at) = Some("batch.appended");
        let nobody_is_told = lock(&world.writer);
        let (first, second) = std::thread::scope(|scope| {
            let first = scope.spawn(|| publish(&world, &key(0), 1, Rule::Right));
            while world.claim(&key(0)) != Claim::Pending {
                std::thread::yield_now();
            }
            let second = scope.spawn(|| publish(&world, &key(0), 2, Rule::Right));
            // The first has failed, and nobody knows yet; then the disk is back, or it is not.
            while world.failures.load(Ordering::SeqCst) == 0 {
                std::thread::yield_now();
            }
            if comes_back {
                *lock(&world.fails_at) = None;
            }
            drop(nobody_is_told);
            (first.join().expect("told"), second.join().expect("told"))
        });
        assert_eq!(first, Told::Failed);
        if comes_back {
            assert_eq!(second, Told::Stored(2));
            assert_eq!(delivered(&world), [2]);
        } else {
            assert_eq!(second, Told::Failed, "a clear error, and no duplicate");
            assert_eq!(world.claim(&key(0)), Claim::Vacant);
        }
        *lock(&world.fails_at) = None;
        world.close().expect("in order");
    }
}

#[test]
fn publishers_that_do_not_keep_to_the_claims_are_noticed() {
    for (rule, what) in [(Rule::Blind, "winners"), (Rule::Hasty, "of nothing")] {
        let noticed = (0..1000).any(|_| {
            let (_folder, path) = folder();
            let world = World::new(&path);
            world.lane("l", 100);
            world.open();
            let story = race(&world, rule, disk_that_fails(&world));
            check(&world, &story).is_err_and(|error| error.contains(what))
        });
        assert!(noticed, "{what}");
        control();
    }
}

fn copy(from: &Path, to: &Path) {
    for suffix in ["", "-wal", "-shm"] {
        let name = |path: &Path| path.with_file_name(format!("x.bus{suffix}"));
        let _ = std::fs::remove_file(name(to));
        if suffix != "-shm" && name(from).exists() {
            std::fs::copy(name(from), name(to)).expect("copied");
        }
    }
}

/// A flush of which nobody knows whether it has stored anything; it has, or the machine has lost it.
fn unknown(path: &Path, lost: bool, rule: Rule) -> Result<u64, String> {
    let world = World::new(path);
    world.lane("l", 100);
    world.open();
    let before = path.with_file_name("before");
    std::fs::create_dir(&before).expect("a folder");
    copy(path, &before.join("x.bus"));
    *lock(&world.fails_at) = Some("batch.committed");
    let story = race(&world, rule, |_| ());
    if world.close() != Err(JournalError::ReadOnly) {
        return Err("it was closed in order".into());
    }
    *lock(&world.fails_at) = None;
    if lost {
        copy(&before.join("x.bus"), path);
    }
    let all = story.values().flatten();
    if all.clone().any(|told| matches!(told, Told::Stored(_))) {
        return Err("something was told to be stored".into());
    }
    if all.clone().any(|told| *told == Told::Duplicate) {
        return Err("something was told to be a duplicate".into());
    }
    for (n, told) in &story {
        let open = told.iter().any(|told| matches!(told, Told::Unknown(_)));
        let expected = if open { Claim::Pending } else { Claim::Vacant };
        if world.claim(&key(*n)) != expected {
            return Err(format!("key {n} is not claimed, or is: {told:?}"));
        }
    }
    world.open();
    let (mut events, mut told_by_key) = (BTreeSet::new(), 0);
    for (n, told) in &story {
        let unknown: Vec<u64> = told
            .iter()
            .filter_map(|told| match told {
                Told::Unknown(payload) => Some(*payload),
                _ => None,
            })
            .collect();
        if unknown.len() > 1 {
            return Err(format!("key {n} has {} winners", unknown.len()));
        }
        let again = publish(&world, &key(*n), 1000 + u64::from(*n), Rule::Right);
        if again == Told::Duplicate && !lost {
            events.extend(unknown);
            told_by_key += 1;
        } else if again == Told::Stored(1000 + u64::from(*n)) && (lost || unknown.is_empty()) {
            told_by_key += unknown.len() as u64;
            events.insert(1000 + u64::from(*n));
        } else {
            return Err(format!("{again:?} of key {n}: {told:?}"));
        }
    }
    let mut delivered = delivered(&world);
    delivered.sort_unstable();
    if delivered != events.iter().copied().collect::<Vec<_>>() {
        return Err(format!("{delivered:?} were delivered of {events:?}"));
    }
    world.close().map_err(|error| error.to_string())?;
    Ok(told_by_key)
}

#[test]
fn of_what_is_unknown_the_key_tells_when_the_journal_is_open_again() {
    let mut told = 0;
    for n in 0..times(30, 600) {
        let (_folder, path) = folder();
        told += unknown(&path, n % 2 == 0, Rule::Right).unwrap_or_else(|error| panic!("{error}"));
    }
    assert!(told > 0);
    done("unknown fates that the key told", told);
}

#[test]
fn a_publisher_that_lets_go_of_what_is_unknown_is_noticed() {
    let noticed = (0..100).any(|_| {
        let (_folder, path) = folder();
        unknown(&path, false, Rule::Forgetful).is_err_and(|error| error.contains("is not claimed"))
    });
    assert!(noticed);
    control();
}

/// What a key is one tick before its deadline and at it: while the bus runs, and over a restart.
fn edge(ttl: f64, counts: f64) -> Result<(), String> {
    for restarts in [false, true] {
        let (_folder, path) = folder();
        let begin = 7 * SECOND;
        let deadline = begin + (counts * SECOND as f64) as u64;
        let world = World::at(&path, begin, ttl);
        world.open();
        assert_eq!(publish(&world, &key(0), 1, Rule::Right), Told::Stored(1));
        let at = |world: Arc<World>, now: u64| {
            if restarts {
                world.close().expect("in order");
                drop(world);
                let world = World::at(&path, now, ttl);
                world.open();
                return world;
            }
            world.advance(now);
            world
        };
        let before = at(world, deadline - TICK);
        let claim = before.claim(&key(0));
        if claim != Claim::Duplicate {
            return Err(format!("{claim:?} before its deadline"));
        }
        let after = at(before, deadline);
        let claim = after.claim(&key(0));
        if claim != Claim::Vacant {
            return Err(format!("{claim:?} at its deadline"));
        }
        assert_eq!(publish(&after, &key(0), 2, Rule::Right), Told::Stored(2));
        after.close().expect("in order");
    }
    Ok(())
}

/// The finest that Unix time in seconds tells apart over a restart, with room for what is rounded.
const TICK: u64 = 1000;

#[test]
fn a_key_is_free_at_its_deadline_and_not_a_tick_before() {
    for ttl in [1.0, 20.0, 3600.0] {
        edge(ttl, ttl).unwrap_or_else(|error| panic!("{ttl}: {error}"));
        done("deadlines of keys", 2);
    }
}

#[test]
fn a_deadline_that_is_a_tick_off_is_noticed() {
    let tick = TICK as f64 / SECOND as f64;
    for (ttl, what) in [(20.0 - tick, "before"), (20.0 + 2.0 * tick, "at its")] {
        assert!(
            edge(ttl, 20.0).is_err_and(|error| error.contains(what)),
            "{what}"
        );
        control();
    }
}
