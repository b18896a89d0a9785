//! A bus whose deliveries leave dead letters, step by step.
#![allow(dead_code)] // each test binary uses its part

use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use ironbus::engine::gate::{Patience, Redelivery};
use ironbus::engine::lane::{Failed, LaneOptions, Letter, Letters};
use ironbus::engine::priority::Priority::Normal;
use ironbus::engine::settlement::Outcome;
use ironbus::engine::sync::Shared;
use ironbus::engine::topic::Topic;

use crate::plain::{self, Bus, Entry, Envelope, Graves, Lane, Seat, options, publish};

pub struct World {
    pub bus: Bus,
    pub seat: Arc<Seat>,
    pub graves: Graves,
    pub now: u64,
}

pub fn told(letters: Letters) -> LaneOptions {
    LaneOptions {
        letters,
        ..options("lane", 100)
    }
}

impl World {
    pub fn new(room: usize) -> Self {
        let graves = Graves::default();
        graves.room.store(room, SeqCst);
        let keys = ironbus::engine::idempotency::Idempotency::new(1 << 60, 16, 0);
        let bus = Bus::new(16, keys, plain::Alarm::default(), graves.clone());
        bus.open(0);
        Self {
            bus,
            seat: Arc::default(),
            graves,
            now: 0,
        }
    }

    pub fn lane(&self, options: LaneOptions) -> Arc<Lane> {
        let lane = self.bus.make_lane(options, (), self.seat.clone());
        self.bus.subscribe(vec![Topic::new("t")], &lane, self.now);
        lane
    }

    pub fn publish(&self, payloads: std::ops::Range<u64>) {
        for payload in payloads {
            let published = publish(&self.bus, "t", Normal, payload, Patience::None);
            assert!(matches!(published, plain::Published::Accepted(_)));
        }
    }

    pub fn scheduled(&self) -> Option<Entry> {
        let lane = self.seat.next()?;
        self.bus.take(&lane, self.now).map(|next| next.entry)
    }

    pub fn take(&self) -> Entry {
        self.scheduled().expect("a lane with work")
    }

    pub fn fail(&self, lane: &Arc<Lane>, entry: Entry) -> Option<Entry> {
        let failed = Failed::Passing(Arc::new(()));
        let verdict = lane.judge(&entry, &failed, 0.0);
        let next = self
            .bus
            .fail(lane, entry, &failed, verdict, None, true, self.now);
        next.map(|next| next.entry)
    }

    pub fn done(&self, lane: &Arc<Lane>, mut entry: Entry) -> Option<Entry> {
        let next = self
            .bus
            .finish(lane, &mut entry, Outcome::Done, None, true, self.now);
        next.map(|next| next.entry)
    }

    /// Ends the writing of the oldest letter that is being written.
    pub fn written(&self, well: bool) {
        let dying = self.graves.writing.lock().unwrap().remove(0);
        self.bus.letter_kept(Box::new(dying), well, self.now);
    }

    pub fn offer(&self, payload: u64, token: u64) {
        let (bus, patience) = (&self.bus, Patience::None);
        let published = plain::offer(bus, "t", Normal, payload, token, None, patience, self.now);
        assert!(matches!(published, plain::Published::Accepted(_)));
    }

    pub fn redeliver(&self, lane: &Arc<Lane>, payload: u64) -> Option<(u64, Shared<Envelope>)> {
        self.redeliver_of(lane, payload, payload)
    }

    pub fn redeliver_of(
        &self,
        lane: &Arc<Lane>,
        payload: u64,
        token: u64,
    ) -> Option<(u64, Shared<Envelope>)> {
        let event = plain::event(payload);
        let letter = Letter {
            id: payload.to_string(),
            holder: 7,
            subscription: "lane".into(),
        };
        let redelivery = Redelivery {
            lane,
            level: Normal,
            token,
            event: &event,
            letter,
        };
        let (sequence, _) = self.bus.redeliver(redelivery, self.now)?;
        Some((sequence, event))
    }

    /// The payloads that have a letter, in order; one that was refused at first counts once.
    pub fn kept(&self) -> Vec<u64> {
        let mut seen = std::collections::HashSet::new();
        let kept = self.graves.kept().into_iter().map(|letter| letter.0);
        kept.filter(|payload| seen.insert(*payload)).collect()
    }

    pub fn tally(&self, lane: &Arc<Lane>) -> (u64, u64, usize) {
        let (counts, lanes) = self.bus.report();
        assert_eq!(
            counts.offered,
            counts.accepted + counts.rejected + counts.waiting
        );
        let (_, routed, report) = lanes
            .iter()
            .find(|(other, ..)| other.id == lane.id)
            .unwrap();
        let tally = report.tally;
        let pending = report.depth.iter().sum::<usize>() + report.running;
        let settled = tally.done + tally.dead + tally.dropped + tally.expired + tally.filtered;
        assert_eq!(*routed, settled + pending as u64);
        (tally.done, tally.dead, pending)
    }
}
