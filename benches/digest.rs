//! What the digest and the idempotency index cost, primitive by primitive, without Python.

use std::hint::black_box;

use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use ironbus::engine::digest::{Digest, write_f64, write_str, write_u64};
use ironbus::engine::idempotency::{Claim, Idempotency};

/// The payload of all benchmarks, as it is hashed.
const CANONICAL: &[u8] =
    br#"order.paid:{"amount": 19.99, "customer": "c17", "items": ["a", "b", "c"], "order_id": 1}"#;

fn primitives(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("digest");
    group.bench_function("sha256 of two blocks", |bench| {
        bench.iter(|| Digest::of(black_box(CANONICAL)))
    });
    let mut out = Vec::with_capacity(1024);
    let mut writer = |name: &str, write: &dyn Fn(&mut Vec<u8>)| {
        group.bench_function(name, |bench| {
            bench.iter(|| {
                out.clear();
                write(&mut out);
                black_box(&out);
            });
        });
    };
    writer("float", &|out| write_f64(out, black_box(19.99)));
    writer("float with an exponent", &|out| {
        write_f64(out, black_box(1.25e-7))
    });
    writer("integer", &|out| write_u64(out, black_box(1_234_567)));
    writer("str, 8 characters", &|out| {
        write_str(out, black_box("customer"))
    });
    writer("str, 80 characters", &|out| {
        write_str(out, black_box(&"customer".repeat(10)))
    });
    writer("str, not ASCII", &|out| {
        write_str(out, black_box("Grüße aus Köln"))
    });
    group.finish();
}

fn index(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("idempotency");
    let digest = |key: u64| Digest::of(&key.to_le_bytes());
    for live in [1, 1_000_000] {
        let mut index = Idempotency::<()>::new(u64::MAX, usize::MAX, 7);
        (0..live).for_each(|key| assert!(!index.check_and_mark(&digest(key), 0)));
        let mut key = 0;
        group.bench_function(format!("duplicate, {live} live"), |bench| {
            bench.iter_batched(
                || {
                    key = (key + 7_919) % live;
                    digest(key)
                },
                |digest| index.check_and_mark(&digest, 1),
                BatchSize::SmallInput,
            );
        });
        group.bench_function(format!("look at a vacant key, {live} live"), |bench| {
            bench.iter_batched(
                || {
                    key += 1;
                    digest(live + key)
                },
                |digest| index.look(&digest, 1) == Claim::Vacant,
                BatchSize::SmallInput,
            );
        });
    }
    // As many keys come as expire: what a bus with content keys does all day.
    let mut index = Idempotency::<()>::new(1_000_000, usize::MAX, 7);
    let mut now = 0;
    (0..1_000_000).for_each(|key| assert!(!index.check_and_mark(&digest(key), key)));
    group.bench_function("new key while one expires, 1000000 live", |bench| {
        bench.iter_batched(
            || {
                now += 1;
                (digest(1_000_000 + now), 1_000_000 + now)
            },
            |(digest, now)| index.check_and_mark(&digest, now),
            BatchSize::SmallInput,
        );
    });
    group.finish();
}

criterion_group!(benches, primitives, index);
criterion_main!(benches);
