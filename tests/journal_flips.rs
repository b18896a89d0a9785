//! A flipped bit in a row of the journal is noticed before a handler sees what came of it.
#![cfg(not(loom))]

mod durable;
mod torture;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use durable::{Bus, event};
use ironbus::engine::journal::{
    Event, EventFilter, JournalError, Range, Straggler, StragglerState, verify,
};
use ironbus::engine::priority::Priority;
use ironbus::engine::priority::Priority::{High, Normal};
use ironbus::engine::store::{Durability, Problem, StoreError};
use rusqlite::Connection;

const EVENTS: u8 = 8;

/// What the world sees of a journal.
#[derive(Debug, PartialEq)]
struct View {
    events: Vec<Event>,
    delivered: BTreeSet<(Priority, u64)>,
    stragglers: Vec<Straggler>,
    keys: BTreeSet<[u8; 16]>,
}

/// A journal with something in every table that deliveries depend on.
fn furnish(path: &Path) {
    let bus = Bus::open(path);
    let lane = bus.subscribe("bill", "t");
    for n in 0..EVENTS {
        let event = Event {
            digest: Some([n; 16]),
            key: Some(format!("k{n}")),
            headers: Some(format!("{:?}", ["h".repeat(300)])),
            ..event(0, if n % 4 == 3 { High } else { Normal }, "t")
        };
        bus.publish_event(event, Durability::Os)
            .1
            .wait()
            .expect("stored");
    }
    let taken: Vec<u64> = (0..4).filter_map(|_| lane.next(Normal)).collect();
    lane.subscription.settle(Normal, taken[0]);
    lane.subscription.settle(Normal, taken[2]);
    lane.subscription
        .defer(Normal, taken[1], 2, None, StragglerState::Retry);
    bus.flush();
    bus.journal.close().expect("in order");
}

/// What a restart makes of the file, and whether it has noticed anything.
fn look(path: &Path) -> Result<(View, bool), JournalError> {
    let sound = verify(path)?.is_clean();
    let bus = Bus::open_with(path, Default::default())?;
    let lane = bus.journal.register("bill", &["t".to_owned()], 0)?;
    let mut reader = bus.journal.reader()?;
    let all = Range {
        after: 0,
        through: u64::MAX >> 1,
        limit: usize::MAX,
        budget: usize::MAX,
    };
    let scan = reader.events(&EventFilter::default(), all)?;
    let mut noticed = !sound || !scan.damage.is_empty();
    let mut delivered = BTreeSet::new();
    for level in Priority::ALL {
        let refill = lane.refill(level, usize::MAX)?;
        noticed |= !refill.damage.is_empty();
        delivered.extend(refill.events.iter().map(|event| (level, event.sequence)));
    }
    let stragglers = lane.stragglers(None, usize::MAX)?;
    let view = View {
        events: scan.events,
        delivered,
        stragglers: stragglers.into_iter().map(|(row, _)| row).collect(),
        keys: reader
            .keys(0.0, usize::MAX)?
            .into_iter()
            .map(|(digest, _)| digest)
            .collect(),
    };
    Ok((view, noticed))
}

/// The bits of the rows of a table that has one page.
fn bits(path: &Path, table: &str) -> std::ops::Range<usize> {
    let raw = Connection::open(path).expect("opens");
    let ask = |sql: &str| {
        let number: rusqlite::Result<u32> = raw.query_row(sql, [table], |row| row.get(0));
        number.expect("an answer") as usize
    };
    let root = ask("SELECT rootpage FROM sqlite_schema WHERE name = ?");
    let size = ask("SELECT page_size FROM pragma_page_size WHERE ? <> ''");
    let page = (root - 1) * size..root * size;
    // The page says where its rows begin, behind the free space.
    let file = fs::read(path).expect("readable");
    let rows = u16::from_be_bytes([file[page.start + 5], file[page.start + 6]]);
    (page.start + usize::from(rows)) * 8..page.end * 8
}

#[test]
fn no_flipped_bit_is_believed() {
    let folder = tempfile::tempdir().expect("a folder for the test");
    let path = folder.path().join("x.bus");
    furnish(&path);
    let original = fs::read(&path).expect("readable");
    let copy = folder.path().join("flipped.bus");
    fs::write(&copy, &original).expect("written");
    let (whole, noticed) = look(&copy).expect("readable");
    assert!(!noticed && whole.events.len() == usize::from(EVENTS));
    assert!(!whole.stragglers.is_empty() && !whole.delivered.is_empty());

    let (mut flips, mut refused, mut seen, mut silent) = (0, 0, 0, 0);
    // Steps that are prime to 8 visit all bits of bytes and all parts of the page.
    let step = torture::times(101, 11) as usize;
    for table in ["event", "cursor", "straggler", "subscription", "journal"] {
        for bit in bits(&path, table).step_by(step) {
            let mut flipped = original.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            for rest in ["-wal", "-shm", ".inflight", ".lock"] {
                // Most are not there.
                let _ = fs::remove_file(format!("{}{rest}", copy.display()));
            }
            fs::write(&copy, &flipped).expect("written");
            silent += u64::from(misread_without_checksums(&copy, &whole));
            flips += 1;
            match look(&copy) {
                Ok((view, noticed)) => {
                    for event in &view.events {
                        assert!(whole.events.contains(event), "{table} {bit}: {event:?}");
                    }
                    assert!(noticed || view == whole, "{table} {bit}: {view:?}");
                    seen += u64::from(noticed);
                }
                Err(JournalError::Store(StoreError {
                    problem: Problem::Corrupt | Problem::NotADatabase,
                    ..
                })) => refused += 1,
                Err(error) => panic!("{table} {bit}: {error:?}"),
            }
        }
    }
    println!("{flips} flips: {seen} seen, {refused} refused, {silent} silent for plain SQL");
    assert!(
        seen > 0 && refused > 0 && silent > 0,
        "{seen} {refused} {silent}"
    );
    torture::done("bits flipped", flips);
    // Read without the checksums, some of them were believed.
    torture::control();
}

/// The control: the same file, read as the rows are.
fn misread_without_checksums(path: &Path, whole: &View) -> bool {
    let read = Connection::open(path).and_then(|raw| {
        raw.prepare("SELECT coalesce(headers, '') || data FROM event ORDER BY sequence")?
            .query_map([], |row| row.get::<_, String>(0))?
            .collect::<Result<Vec<_>, _>>()
    });
    let texts = whole.events.iter().map(|event| {
        let headers = event.headers.as_deref().unwrap_or_default();
        format!("{headers}{}", event.data)
    });
    read.is_ok_and(|read| read != texts.collect::<Vec<_>>())
}
