//! What the journal costs, beside a bare append and flush of the same bytes: compare within one
//! run, on the disk of the folder for temporary files.
#![allow(missing_docs)]

use std::fs::OpenOptions;
use std::hint::black_box;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use ironbus::engine::dead_letters::{
    DeadEvent, DeadLetter, DeadLetters, Limits, SqliteDeadLetters,
};
use ironbus::engine::journal::{
    Bounds, Commit, Event, Faults, FileOptions, Journal, JournalOptions, Observer, SqliteOptions,
};
use ironbus::engine::priority::Priority::Normal;
use ironbus::engine::store::{Durability, Options};

struct Nobody;

impl Observer for Nobody {
    fn committed(&self, commit: &Commit) {
        assert_eq!(commit.error, None);
    }
}

fn open(path: &Path) -> Journal {
    let options = FileOptions {
        file: SqliteOptions {
            identity: [1; 16],
            dead_letters: Limits::default(),
            checkpoint_pages: 4000,
            create: true,
        },
        journal: JournalOptions {
            bounds: Bounds::default(),
            clock: Arc::new(|| 1.7e9),
            faults: Faults::default(),
        },
    };
    Journal::open(path, options, Arc::new(Nobody)).expect("a journal")
}

/// 300 bytes of payload.
fn event(sequence: u64) -> Event {
    Event {
        sequence,
        level: Normal,
        event_type: "order.paid".into(),
        data: "x".repeat(300),
        key: Some(format!("customer-{}", sequence % 7554)),
        accepted: 1.7e9,
        timestamp: 1.7e9,
        ..Event::default()
    }
}

fn append(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a folder");
    for (name, durability) in [("fsync", Durability::Fsync), ("os", Durability::Os)] {
        let mut group = criterion.benchmark_group(format!("append/{name}"));
        group
            .measurement_time(Duration::from_secs(4))
            .sample_size(20);
        for size in [1u64, 100, 1000] {
            group.throughput(Throughput::Elements(size));
            let journal = open(&folder.path().join(format!("{name}-{size}.bus")));
            let mut sequence = journal.sequence();
            group.bench_function(format!("journal/{size}"), |bencher| {
                bencher.iter_batched(
                    || {
                        sequence += size;
                        (sequence - size + 1..=sequence)
                            .map(event)
                            .collect::<Vec<_>>()
                    },
                    |events| journal.append(events, durability).expect("taken").wait(),
                    BatchSize::PerIteration,
                );
            });
            let mut file = OpenOptions::new()
                .create(true)
                .append(true)
                .open(folder.path().join("raw"))
                .expect("a file");
            let bytes = vec![b'x'; 400 * size as usize];
            group.bench_function(format!("bare/{size}"), |bencher| {
                bencher.iter(|| {
                    file.write_all(black_box(&bytes)).expect("written");
                    if durability == Durability::Fsync {
                        file.sync_data().expect("flushed");
                    }
                });
            });
        }
        group.finish();
    }
}

/// Handed over, settled in order, and written with the appends; then the same with one key in
/// 7,554 that is parked for ever.
fn settle(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a folder");
    let mut group = criterion.benchmark_group("append+settle/fsync/1000");
    group
        .measurement_time(Duration::from_secs(4))
        .sample_size(20);
    group.throughput(Throughput::Elements(1000));
    for (name, parked) in [("all", u64::MAX), ("one key parked", 11)] {
        let journal = open(&folder.path().join(format!("{name}.bus")));
        let lane = journal
            .register("bill", &["*".into()], 0)
            .expect("registered");
        let mut sequence = journal.sequence();
        group.bench_function(name, |bencher| {
            bencher.iter_batched(
                || {
                    sequence += 1000;
                    (sequence - 999..=sequence).map(event).collect::<Vec<_>>()
                },
                |events| {
                    let ticket = journal.append(events, Durability::Fsync).expect("taken");
                    ticket.wait().expect("flushed");
                    let refill = lane.refill(Normal, 2000).expect("readable");
                    for event in refill.events {
                        if event.sequence % 7554 != parked {
                            lane.settle(Normal, event.sequence);
                        }
                    }
                },
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

fn dead_letters(criterion: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a folder");
    let options = Options {
        durability: Durability::Os,
        ..Options::default()
    };
    let limits = Limits {
        max_entries: u64::MAX >> 1,
        ..Limits::default()
    };
    let queue =
        SqliteDeadLetters::open(&folder.path().join("x.dlq"), limits, &options).expect("opens");
    let mut number = 0;
    criterion.bench_function("dead letter/add/os", |bencher| {
        bencher.iter_batched(
            || {
                number += 1;
                DeadLetter {
                    id: format!("event-{number}"),
                    event: DeadEvent {
                        data: "x".repeat(300),
                        ..DeadEvent::default()
                    },
                    ..DeadLetter::default()
                }
            },
            |letter| queue.add(letter, 0.0),
            BatchSize::PerIteration,
        );
    });
}

criterion_group!(benches, append, settle, dead_letters);
criterion_main!(benches);
