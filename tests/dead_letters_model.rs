//! Both dead letter queues against a plain list.
#![cfg(not(loom))]

mod letters;

use ironbus::engine::dead_letters::{
    Added, DeadLetter, DeadLetterError, DeadLetters, Filter, Fingerprint, Lease, Limits,
    MemoryDeadLetters, SqliteDeadLetters, Statistics, WhenFull,
};
use letters::{NOW, all, failure, letter, options};
use proptest::prelude::*;

/// A queue as a plain list.
#[derive(Default)]
struct Model {
    entries: Vec<(DeadLetter, Option<Lease>)>,
    statistics: Statistics,
}

#[derive(Clone, Debug)]
enum Step {
    Add(u8, u8, u64),
    Remove(u8),
    Purge(u8),
    Claim(u64, u8, usize),
    Renew(u64),
    Succeeded(u8, u64),
    Failed(u8, u64),
    Release(u8, u64),
    Expire,
    Wait(u8),
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let (id, kind, holder) = (|| 0..8u8, || 0..3u8, || 0..3u64);
    prop_oneof![
        6 => (id(), kind(), 1..4u64).prop_map(|(id, kind, attempts)| Step::Add(id, kind, attempts)),
        1 => id().prop_map(Step::Remove),
        1 => kind().prop_map(Step::Purge),
        4 => (holder(), kind(), 0..4usize).prop_map(|(who, kind, limit)| Step::Claim(who, kind, limit)),
        1 => holder().prop_map(Step::Renew),
        3 => (id(), holder()).prop_map(|(id, who)| Step::Succeeded(id, who)),
        2 => (id(), holder()).prop_map(|(id, who)| Step::Failed(id, who)),
        1 => (id(), holder()).prop_map(|(id, who)| Step::Release(id, who)),
        1 => Just(Step::Expire),
        2 => (0..30u8).prop_map(Step::Wait),
        1 => Just(Step::Reopen),
    ]
}

/// Kind 0 is everything.
fn kind(kind: u8) -> Filter {
    Filter {
        fingerprint: (kind > 0).then_some(Fingerprint(kind.into())),
        ..Filter::default()
    }
}

impl Model {
    fn free(lease: &Option<Lease>, now: f64) -> bool {
        lease.is_none_or(|lease| lease.until <= now)
    }

    fn held(&mut self, id: &str, holder: u64) -> Option<usize> {
        self.entries.iter().position(|(letter, lease)| {
            letter.id == id && lease.is_some_and(|lease| lease.holder == holder)
        })
    }

    fn expire(&mut self, limits: &Limits, now: f64) -> u64 {
        let Some(age) = limits.max_age else { return 0 };
        let before = self.entries.len();
        self.entries
            .retain(|(letter, lease)| letter.last_failure >= now - age || !Self::free(lease, now));
        let gone = (before - self.entries.len()) as u64;
        self.statistics.expired += gone;
        gone
    }

    fn add(
        &mut self,
        new: DeadLetter,
        limits: &Limits,
        now: f64,
    ) -> Result<Added, DeadLetterError> {
        if let Some((known, _)) = self
            .entries
            .iter_mut()
            .find(|(known, _)| known.id == new.id)
        {
            let attempts = known.attempts + new.attempts;
            let first_failure = known.first_failure;
            *known = DeadLetter {
                attempts,
                first_failure,
                ..new
            };
            return Ok(Added::Again { attempts });
        }
        let full = |model: &Self| model.entries.len() as u64 >= limits.max_entries;
        if full(self) {
            self.expire(limits, now);
        }
        if full(self) {
            let oldest = self
                .entries
                .iter()
                .position(|(_, lease)| Self::free(lease, now));
            match (limits.when_full, oldest) {
                (WhenFull::DropOldest, Some(oldest)) => {
                    self.entries.remove(oldest);
                    self.statistics.dropped += 1;
                }
                _ => {
                    return Err(DeadLetterError::Full {
                        bound: limits.max_entries,
                    });
                }
            }
        }
        self.entries.push((new, None));
        Ok(Added::New)
    }
}

fn run(
    steps: &[Step],
    limits: Limits,
    reopen: &dyn Fn(Option<Box<dyn DeadLetters>>) -> Box<dyn DeadLetters>,
) {
    let mut queue = reopen(None);
    let mut model = Model::default();
    let mut now = NOW;
    for step in steps {
        match *step {
            Step::Add(id, kind, attempts) => {
                let new = DeadLetter {
                    attempts,
                    first_failure: now,
                    last_failure: now,
                    fingerprint: Fingerprint(kind.into()),
                    ..letter(&id.to_string())
                };
                assert_eq!(queue.add(new.clone(), now), model.add(new, &limits, now));
            }
            Step::Remove(id) => {
                let id = id.to_string();
                let there = model.entries.iter().position(|(letter, _)| letter.id == id);
                there.map(|at| model.entries.remove(at));
                assert_eq!(queue.remove(&id), Ok(there.is_some()));
            }
            Step::Purge(of) => {
                let before = model.entries.len();
                model.entries.retain(|(letter, _)| !kind(of).admits(letter));
                assert_eq!(
                    queue.purge(&kind(of)),
                    Ok((before - model.entries.len()) as u64)
                );
            }
            Step::Claim(holder, of, limit) => {
                let lease = Lease {
                    holder,
                    until: now + 20.0,
                };
                let mut expected = Vec::new();
                for (letter, held) in &mut model.entries {
                    if expected.len() < limit && Model::free(held, now) && kind(of).admits(letter) {
                        *held = Some(lease);
                        expected.push(letter.clone());
                    }
                }
                let claimed = queue
                    .claim(&kind(of), 0, limit, lease, now)
                    .expect("claimed");
                let claimed: Vec<_> = claimed.into_iter().map(|stored| stored.letter).collect();
                assert_eq!(claimed, expected);
            }
            Step::Renew(holder) => {
                let lease = Lease {
                    holder,
                    until: now + 30.0,
                };
                let mut renewed = 0;
                for (_, held) in &mut model.entries {
                    if held.is_some_and(|held| held.holder == holder) {
                        *held = Some(lease);
                        renewed += 1;
                    }
                }
                assert_eq!(queue.renew(lease), Ok(renewed));
            }
            Step::Succeeded(id, holder) => {
                let at = model.held(&id.to_string(), holder);
                at.map(|at| model.entries.remove(at));
                assert_eq!(queue.succeeded(&id.to_string(), holder), Ok(at.is_some()));
            }
            Step::Failed(id, holder) => {
                let at = model.held(&id.to_string(), holder);
                if let Some(at) = at {
                    let (letter, lease) = &mut model.entries[at];
                    *lease = None;
                    letter.attempts += 2;
                    letter.last_failure = now;
                    letter.fingerprint = Fingerprint(1);
                    letter.failure = failure("again");
                }
                let failed = queue.failed(
                    &id.to_string(),
                    holder,
                    failure("again"),
                    Fingerprint(1),
                    2,
                    now,
                );
                assert_eq!(failed, Ok(at.is_some()));
            }
            Step::Release(id, holder) => {
                let at = model.held(&id.to_string(), holder);
                if let Some(at) = at {
                    model.entries[at].1 = None;
                }
                assert_eq!(queue.release(&id.to_string(), holder), Ok(at.is_some()));
            }
            Step::Expire => assert_eq!(queue.expire(now), Ok(model.expire(&limits, now))),
            Step::Wait(seconds) => now += f64::from(seconds),
            Step::Reopen => queue = reopen(Some(queue)),
        }
        let kept: Vec<_> = all(&*queue)
            .into_iter()
            .map(|stored| stored.letter)
            .collect();
        let expected: Vec<_> = model
            .entries
            .iter()
            .map(|(letter, _)| letter.clone())
            .collect();
        assert_eq!(kept, expected);
        let expected = Statistics {
            entries: expected.len() as u64,
            ..model.statistics
        };
        assert_eq!(queue.statistics(), Ok(expected));
        for of in 0..3 {
            let expected = kept.iter().filter(|letter| kind(of).admits(letter)).count() as u64;
            assert_eq!(queue.count(&kind(of)), Ok(expected));
        }
    }
    assert_eq!(queue.verify(), Ok(0));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn both_queues_do_as_a_list_does(
        steps in prop::collection::vec(step(), 1..40),
        max_entries in 1..6u64,
        drop_oldest: bool,
        max_age in prop::option::of(20.0..60.0f64),
    ) {
        let when_full = if drop_oldest { WhenFull::DropOldest } else { WhenFull::Refuse };
        let limits = Limits { max_entries, when_full, max_age, ..Limits::default() };
        run(&steps, limits, &|open| open.unwrap_or_else(|| Box::new(MemoryDeadLetters::new(limits))));
        let folder = tempfile::tempdir().expect("a folder for the test");
        let path = folder.path().join("x.dlq");
        run(&steps, limits, &|open| {
            drop(open);
            Box::new(SqliteDeadLetters::open(&path, limits, &options()).expect("opens"))
        });
    }
}
