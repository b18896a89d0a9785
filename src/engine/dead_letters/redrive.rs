//! Which dead letters are delivered again, and when to leave the rest alone: a cause that
//! comes back would only fail them all once more.
//!
//! Of each cause one is tried first; once that has succeeded, several are under way at a
//! time, in their order. Who delivers them, and how they ended, comes from outside.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};

use super::entry::{DeadLetter, Fingerprint, Stored};
use super::filter::Filter;
use super::{DeadLetterError, DeadLetters, Lease};
use crate::engine::store::WallSeconds;

/// How many are under way at a time.
pub const WINDOW: usize = 32;

/// Seconds for which entries are held without a [renewal](Redrive::renew).
pub const LEASE: WallSeconds = 300.0;

/// Entries that are looked at together.
const PAGE: usize = 64;

/// Why an entry was left as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Skipped {
    /// The cause of its failure has come back.
    SameCause,
    /// Somebody else redrives it, or it is gone.
    Held,
    /// Nobody is there to whom it could be delivered.
    NoSubscription,
    /// Only the process that has its payload can deliver it.
    PayloadElsewhere,
    /// It was delivered, and let go before its handler had it, or not wanted.
    NotHandled,
}

/// How a delivery ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Its handler succeeded, and the entry has left.
    Succeeded,
    /// It failed again, from this cause.
    Failed(Fingerprint),
    /// Its handler did not have it.
    NotHandled,
}

/// What to do next.
#[derive(Debug, PartialEq)]
pub enum Step {
    /// Deliver this one, which is held.
    Deliver(Box<Stored>),
    /// Wait until one that is under way has ended.
    Wait,
    /// Nothing: when those under way have ended, that was all.
    End,
}

/// What a redrive has done so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Entries that were delivered.
    pub delivered: u64,
    /// Entries that have left.
    pub succeeded: u64,
    /// Entries that failed again.
    pub failed: u64,
    /// Entries that were left as they were.
    pub skipped: HashMap<Skipped, u64>,
    /// Causes that came back.
    pub stopped: BTreeSet<Fingerprint>,
}

/// See the module.
#[derive(Debug)]
pub struct Redrive {
    filter: Filter,
    holder: u64,
    /// Entries that may still be delivered, and looked at: those that come meanwhile are not meant.
    limit: u64,
    to_look_at: u64,
    after: u64,
    ahead: VecDeque<Stored>,
    under_way: HashMap<String, Fingerprint>,
    fine: HashSet<Fingerprint>,
    report: Report,
}

impl Redrive {
    /// Of what a filter lets through now, up to so many. The holder is a number that no other
    /// redrive of the queue has.
    pub fn new(
        queue: &dyn DeadLetters,
        filter: Filter,
        limit: Option<u64>,
        holder: u64,
    ) -> Result<Self, DeadLetterError> {
        Ok(Self {
            to_look_at: queue.count(&filter)?,
            limit: limit.unwrap_or(u64::MAX),
            filter,
            holder,
            after: 0,
            ahead: VecDeque::new(),
            under_way: HashMap::new(),
            fine: HashSet::new(),
            report: Report::default(),
        })
    }

    /// Finds the next to deliver, and holds it. `refuse` says why one cannot be delivered.
    pub fn step(
        &mut self,
        queue: &dyn DeadLetters,
        refuse: impl Fn(&DeadLetter) -> Option<Skipped>,
        now: WallSeconds,
    ) -> Result<Step, DeadLetterError> {
        while self.limit > 0 && self.to_look_at > 0 {
            if self.ahead.is_empty() {
                self.ahead = queue.page(&self.filter, self.after, PAGE)?.into();
            }
            let Some(first) = self.ahead.front() else {
                break;
            };
            let (position, cause) = (first.position, first.letter.fingerprint);
            let skipped = if self.report.stopped.contains(&cause) {
                Some(Skipped::SameCause)
            } else {
                refuse(&first.letter)
            };
            if skipped.is_none() && !self.may_begin(cause) {
                return Ok(Step::Wait);
            }
            let claimed = match skipped {
                None => self.claim(queue, now)?,
                Some(_) => None,
            };
            self.ahead.pop_front();
            self.after = position;
            self.to_look_at -= 1;
            let Some(stored) = claimed else {
                self.skip(skipped.unwrap_or(Skipped::Held));
                continue;
            };
            let letter = &stored.letter;
            self.under_way.insert(letter.id.clone(), letter.fingerprint);
            self.limit -= 1;
            self.report.delivered += 1;
            return Ok(Step::Deliver(Box::new(stored)));
        }
        Ok(Step::End)
    }

    fn may_begin(&self, cause: Fingerprint) -> bool {
        let probing = || self.under_way.values().any(|other| *other == cause);
        self.under_way.len() < WINDOW && (self.fine.contains(&cause) || !probing())
    }

    fn claim(
        &self,
        queue: &dyn DeadLetters,
        now: WallSeconds,
    ) -> Result<Option<Stored>, DeadLetterError> {
        let Some(first) = self.ahead.front() else {
            return Ok(None);
        };
        let this = Filter {
            id: Some(first.letter.id.clone()),
            ..Filter::default()
        };
        let claimed = queue.claim(&this, 0, 1, self.lease(now), now)?;
        Ok(claimed.into_iter().next())
    }

    fn skip(&mut self, why: Skipped) {
        *self.report.skipped.entry(why).or_default() += 1;
    }

    /// The delivery of this one has ended.
    pub fn ended(&mut self, id: &str, how: Ended) {
        let Some(cause) = self.under_way.remove(id) else {
            return;
        };
        match how {
            Ended::Succeeded => {
                self.report.succeeded += 1;
                self.fine.insert(cause);
            }
            Ended::Failed(came_back) => {
                self.report.failed += 1;
                let known = !self.report.stopped.insert(came_back);
                // Of another cause, but not for the first time: what failed before fails on.
                if known {
                    self.report.stopped.insert(cause);
                }
            }
            Ended::NotHandled => self.skip(Skipped::NotHandled),
        }
    }

    /// It could not be delivered after all; the caller has let go of it.
    pub fn not_delivered(&mut self, id: &str, why: Skipped) {
        if self.under_way.remove(id).is_some() {
            self.report.delivered -= 1;
            self.skip(why);
        }
    }

    /// Holds what is under way for longer.
    pub fn renew(&self, queue: &dyn DeadLetters, now: WallSeconds) -> Result<u64, DeadLetterError> {
        queue.renew(self.lease(now))
    }

    fn lease(&self, now: WallSeconds) -> Lease {
        Lease {
            holder: self.holder,
            until: now + LEASE,
        }
    }

    /// Who holds what is under way.
    pub fn holder(&self) -> u64 {
        self.holder
    }

    /// What was done so far.
    pub fn report(&self) -> &Report {
        &self.report
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::dead_letters::{Failure, Limits, MemoryDeadLetters};

    fn cause(name: &str) -> Fingerprint {
        Fingerprint::of("s", name, "")
    }

    fn queue(causes: &[&str]) -> MemoryDeadLetters {
        let queue = MemoryDeadLetters::new(Limits::default());
        for (number, name) in causes.iter().enumerate() {
            let letter = DeadLetter {
                id: number.to_string(),
                fingerprint: cause(name),
                ..DeadLetter::default()
            };
            queue.add(letter, 0.0).unwrap();
        }
        queue
    }

    /// Delivers what comes; `fails` says from which cause an entry fails.
    fn run(
        queue: &MemoryDeadLetters,
        limit: Option<u64>,
        fails: impl Fn(&DeadLetter) -> Option<&'static str>,
    ) -> (Vec<String>, Report) {
        let mut redrive = Redrive::new(queue, Filter::default(), limit, 1).unwrap();
        let mut calls = Vec::new();
        let mut waiting: VecDeque<DeadLetter> = VecDeque::new();
        loop {
            match redrive.step(queue, |_| None, 0.0).unwrap() {
                Step::Deliver(stored) => {
                    calls.push(stored.letter.id.clone());
                    waiting.push_back(stored.letter);
                    assert!(waiting.len() <= WINDOW);
                    continue;
                }
                Step::End if waiting.is_empty() => break,
                Step::Wait | Step::End => {}
            }
            let letter = waiting.pop_front().expect("something to wait for");
            let ended = match fails(&letter) {
                None => {
                    queue.succeeded(&letter.id, 1).unwrap();
                    Ended::Succeeded
                }
                Some(name) => {
                    let failure = Failure::default();
                    let failed = queue.failed(&letter.id, 1, failure, cause(name), 1, 0.0);
                    assert!(failed.unwrap());
                    Ended::Failed(cause(name))
                }
            };
            redrive.ended(&letter.id, ended);
        }
        (calls, redrive.report().clone())
    }

    #[test]
    fn all_go_through_once_the_bug_is_fixed() {
        let queue = queue(&["a"; 100]);
        let (calls, report) = run(&queue, None, |_| None);
        assert_eq!(calls, (0..100).map(|n| n.to_string()).collect::<Vec<_>>());
        assert_eq!((report.succeeded, report.failed), (100, 0));
        assert_eq!(queue.count(&Filter::default()), Ok(0));
    }

    #[test]
    fn a_cause_that_comes_back_is_tried_once() {
        let queue = queue(&["a", "a", "b", "a", "b"]);
        let (calls, report) = run(&queue, None, |letter| {
            (letter.fingerprint == cause("a")).then_some("a")
        });
        assert_eq!(calls, ["0", "2", "4"]);
        assert_eq!((report.succeeded, report.failed), (2, 1));
        assert_eq!(report.stopped, BTreeSet::from([cause("a")]));
        assert_eq!(report.skipped, HashMap::from([(Skipped::SameCause, 2)]));
        assert_eq!(queue.count(&Filter::default()), Ok(3));
    }

    #[test]
    fn a_cause_that_fails_in_a_new_way_is_tried_twice() {
        let queue = queue(&["a", "a", "a", "a", "new"]);
        let (calls, report) = run(&queue, None, |_| Some("new"));
        assert_eq!(calls, ["0", "1"]);
        assert_eq!(report.failed, 2);
        assert_eq!(report.stopped, BTreeSet::from([cause("a"), cause("new")]));
    }

    #[test]
    fn one_bad_entry_among_good_ones_does_not_stop_the_others_of_another_cause() {
        let queue = queue(&["a"; 10]);
        let (calls, report) = run(&queue, None, |letter| (letter.id == "4").then_some("b"));
        assert_eq!(calls.len(), 10);
        assert_eq!((report.succeeded, report.failed), (9, 1));
    }

    #[test]
    fn a_limit_is_a_number_of_deliveries() {
        let queue = queue(&["a"; 10]);
        let (calls, _) = run(&queue, Some(3), |_| None);
        assert_eq!(calls, ["0", "1", "2"]);
        assert_eq!(run(&queue, Some(0), |_| None).0.len(), 0);
    }

    #[test]
    fn entries_that_come_meanwhile_are_not_meant() {
        let queue = queue(&["a", "a"]);
        let mut redrive = Redrive::new(&queue, Filter::default(), None, 1).unwrap();
        let mut delivered = 0;
        while let Step::Deliver(stored) = redrive.step(&queue, |_| None, 0.0).unwrap() {
            delivered += 1;
            queue.succeeded(&stored.letter.id, 1).unwrap();
            redrive.ended(&stored.letter.id, Ended::Succeeded);
            let letter = DeadLetter {
                id: format!("new {delivered}"),
                ..DeadLetter::default()
            };
            queue.add(letter, 0.0).unwrap();
        }
        assert_eq!(delivered, 2);
    }

    #[test]
    fn what_another_redrive_holds_is_left_to_it() {
        let queue = queue(&["a", "b"]);
        let first = Filter {
            id: Some("0".into()),
            ..Filter::default()
        };
        let lease = Lease {
            holder: 9,
            until: 10.0,
        };
        queue.claim(&first, 0, 1, lease, 0.0).unwrap();
        let (calls, report) = run(&queue, None, |_| None);
        assert_eq!(calls, ["1"]);
        assert_eq!(report.skipped, HashMap::from([(Skipped::Held, 1)]));
    }
}
