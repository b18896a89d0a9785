//! What the engine costs for each event, without Python.
#![allow(missing_docs)]

#[path = "../tests/plain/mod.rs"]
mod plain;

use std::hint::black_box;
use std::sync::Arc;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use ironbus::engine::gate::{Offer, Patience};
use ironbus::engine::priority::Priority::Normal;
use ironbus::engine::queue::queue;
use ironbus::engine::settlement::Outcome;
use ironbus::engine::topic::Topic;
use plain::{Bus, Published, Route, Seat, options};

fn wired(lanes: usize, topic: impl Fn(usize) -> String) -> (Bus, Arc<Seat>) {
    let (bus, seat) = (plain::bus(), Arc::new(Seat::default()));
    for n in 0..lanes {
        let lane = bus.make_lane(options("lane", 1024), (), seat.clone());
        bus.subscribe(vec![Topic::new(&topic(n))], &lane, 0);
    }
    (bus, seat)
}

/// Publishes one event and runs all its deliveries.
fn pass(bus: &Bus, seat: &Seat, event_type: &str, route: &mut Arc<Route>, payload: u64) {
    let event = plain::event(payload);
    let offer = Offer {
        event_type,
        level: Normal,
        token: 0,
        event: &event,
        origin: None,
        timing: None,
    };
    let published = bus.publish(&offer, route, &mut None, None, Patience::None, payload);
    assert!(matches!(published, Published::Accepted(_)));
    while let Some(lane) = seat.next() {
        let mut next = bus.take(&lane, payload).expect("it was scheduled");
        let next = bus.finish(
            &lane,
            &mut next.entry,
            Outcome::Done,
            Some(100),
            true,
            payload,
        );
        assert!(next.is_none());
    }
}

fn engine(criterion: &mut Criterion) {
    let (mut tail, mut head) = queue();
    criterion.bench_function("queue/push+pop", |bencher| {
        bencher.iter(|| {
            tail.push(black_box(1u64));
            head.pop()
        });
    });

    let mut group = criterion.benchmark_group("publish+take+finish");
    for lanes in [1, 10] {
        let (bus, seat) = wired(lanes, |_| "t".into());
        let mut route = bus.route("t");
        group.throughput(Throughput::Elements(lanes as u64));
        let mut payload = 0;
        group.bench_function(format!("{lanes} lanes"), |bencher| {
            bencher.iter(|| {
                payload += 1;
                pass(&bus, &seat, "t", &mut route, payload);
            });
        });
    }
    let (bus, seat) = wired(1000, |n| format!("t{n}"));
    let mut routes: Vec<_> = (0..1000)
        .map(|n| (format!("t{n}"), bus.route(&format!("t{n}"))))
        .collect();
    group.throughput(Throughput::Elements(1));
    let mut payload = 0;
    group.bench_function("1000 lanes in turn", |bencher| {
        bencher.iter(|| {
            payload += 1;
            let (event_type, route) = &mut routes[payload as usize % 1000];
            pass(&bus, &seat, event_type, route, payload);
        });
    });
    group.finish();

    criterion.bench_function("route/remembered of 1000 types", |bencher| {
        let mut n = 0;
        bencher.iter(|| {
            n = (n + 1) % 1000;
            bus.remembered_route(black_box(&routes[n].0))
        });
    });
}

criterion_group!(benches, engine);
criterion_main!(benches);
