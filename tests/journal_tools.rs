//! Looking at a journal, copying it and asking it, while its bus works and after damage.
#![cfg(not(loom))]

mod durable;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use durable::{Bus, NOW, event, lock};
use ironbus::engine::dead_letters::{DeadLetter, DeadLetters, Filter, Limits};
use ironbus::engine::journal::{
    Answer, Damage, Event, Faults, JournalError, Ownership, StragglerState, Value, Verification,
    backup, query, read_dead_letters, status, verify,
};
use ironbus::engine::priority::Priority::{High, Normal};
use ironbus::engine::store::{self, Durability, Problem};
use rusqlite::Connection;
use tempfile::TempDir;

fn folder() -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a folder for the test");
    let path = folder.path().join("x.bus");
    (folder, path)
}

/// A journal with something of everything.
fn furnished(path: &Path) -> Bus {
    let bus = Bus::open(path);
    let lane = bus.subscribe("bill", "t");
    for n in 0..20 {
        bus.publish(if n % 4 == 3 { High } else { Normal }, "t");
    }
    bus.flush();
    for _ in 0..3 {
        let next = lane.next(Normal).expect("it is there");
        if next == 2 {
            lane.subscription
                .defer(Normal, next, 1, Some(NOW), StragglerState::Retry);
        } else {
            lane.subscription.settle(Normal, next);
        }
    }
    let letters = bus
        .journal
        .dead_letters(Limits::default(), Durability::Os)
        .expect("readable");
    let letter = DeadLetter {
        id: "a".into(),
        ..DeadLetter::default()
    };
    letters.add(letter, NOW).expect("added");
    bus.flush();
    bus
}

fn clean() -> Verification {
    Verification {
        events: 20,
        dead_letters: 1,
        ..Verification::default()
    }
}

#[test]
fn a_journal_is_verified_while_its_bus_works_and_after() {
    let (_folder, path) = folder();
    let bus = furnished(&path);
    assert_eq!(verify(&path), Ok(clean()));
    bus.journal.close().expect("in order");
    let found = verify(&path).expect("readable");
    assert!(found.is_clean());
    assert_eq!(found, clean());
}

#[test]
fn its_dead_letters_are_read_beside_its_bus() {
    let (_folder, path) = folder();
    let _bus = furnished(&path);
    assert_eq!(store::kind(&path), Ok(store::JOURNAL));
    let mut letters = read_dead_letters(&path).expect("readable");
    let page = letters.page(&Filter::default(), 0, 9).expect("a page");
    assert_eq!((page.entries.len(), page.damaged), (1, 0));
    assert_eq!(page.entries[0].letter.id, "a");
    std::fs::write(path.with_extension("txt"), [b'x'; 600]).expect("written");
    let error = store::kind(&path.with_extension("txt")).expect_err("no database");
    assert_eq!(error.problem, Problem::NotADatabase);
}

#[test]
fn a_journal_says_how_it_stands() {
    let (_folder, path) = folder();
    let bus = furnished(&path);
    bus.subscribe("ship", "other.*");
    let pid = Some(std::process::id());
    let found = status(&path).expect("readable");
    assert_eq!(found.owner, Ownership::Owned { pid });
    assert_eq!((found.events, found.dead_letters, found.noted), (20, 1, 0));
    assert_eq!((found.first, found.last), (Some((1, NOW)), Some((20, NOW))));
    assert!(found.bytes > 0 && !found.head.closed);
    let [bill, ship] = &found.subscriptions[..] else {
        panic!("two subscriptions");
    };
    // 1 and 3 are settled, 2 is left behind, and 4, as each fourth, is HIGH.
    assert_eq!(bill.levels[Normal.index()].position, Some(4));
    assert_eq!(bill.levels[Normal.index()].waiting, 12);
    assert_eq!(bill.levels[High.index()].waiting, 5);
    assert_eq!(bill.stragglers, [(StragglerState::Retry, 1)]);
    assert_eq!(bill.next_due, Some(NOW));
    assert!(ship.levels.iter().all(|level| level.waiting == 0));
    // What the view for people says.
    let view = query(&path, "SELECT waiting FROM backlog ORDER BY 1", &[], 9).expect("an answer");
    assert_eq!(view.rows, [[Value::Integer(0)], [Value::Integer(17)]]);
    bus.journal.close().expect("in order");
    let found = status(&path).expect("readable");
    assert_eq!((found.owner, found.head.closed), (Ownership::Free, true));
}

#[test]
fn each_kind_of_damage_is_found() {
    let lost = |after, through| Damage::Lost {
        level: Normal,
        after,
        through,
    };
    let cases: [(&str, Vec<Damage>, &str); 10] = [
        (
            "UPDATE event SET data = 'x' WHERE sequence = 6",
            vec![Damage::Damaged { sequence: 6 }],
            "",
        ),
        (
            "UPDATE event SET digest = x'00' WHERE sequence = 6",
            vec![Damage::Damaged { sequence: 6 }],
            "",
        ),
        (
            "UPDATE event SET sequence = 99 WHERE sequence = 6",
            vec![lost(5, 6), Damage::Damaged { sequence: 99 }],
            "",
        ),
        (
            "DELETE FROM event WHERE sequence IN (6, 7)",
            vec![lost(5, 7)],
            "",
        ),
        (
            "DELETE FROM event WHERE sequence >= 18",
            vec![
                lost(17, 19),
                Damage::Lost {
                    level: High,
                    after: 16,
                    through: 20,
                },
            ],
            "",
        ),
        (
            "UPDATE cursor SET runs = '[[4,9]]' WHERE priority = 2",
            vec![],
            "the position of subscription bill on level NORMAL is damaged",
        ),
        (
            "UPDATE straggler SET attempt = 0",
            vec![],
            "the straggler of subscription 1 at event 2 is damaged",
        ),
        (
            "UPDATE subscription SET topics = '[]'",
            vec![],
            "a subscription is damaged",
        ),
        (
            "UPDATE journal SET reserved = 0",
            vec![],
            "the row of the journal itself is damaged",
        ),
        (
            "UPDATE dead_letter SET attempts = 7",
            vec![],
            "dead letter at position 1 is damaged",
        ),
    ];
    for (sql, damage, finding) in cases {
        let (_folder, path) = folder();
        furnished(&path).journal.close().expect("in order");
        let raw = Connection::open(&path).expect("opens");
        raw.execute_batch(sql).expect("damage");
        drop(raw);
        let mut found = verify(&path).expect("readable");
        assert!(!found.is_clean(), "{sql}");
        found.damage.sort();
        let mut damage = damage;
        damage.sort();
        assert_eq!(found.damage, damage, "{sql}");
        let findings: Vec<&str> = finding.split_terminator('\n').collect();
        assert_eq!(found.findings, findings, "{sql}");
    }
}

#[test]
fn a_journal_that_has_lost_its_own_row_is_not_taken_for_a_new_one() {
    let (_folder, path) = folder();
    furnished(&path).journal.close().expect("in order");
    let raw = Connection::open(&path).expect("opens");
    raw.execute_batch("DELETE FROM journal").expect("damage");
    drop(raw);
    assert!(!verify(&path).expect("readable").is_clean());
    let Err(JournalError::Store(error)) = Bus::open_with(&path, Faults::default()) else {
        panic!("its numbers would begin again")
    };
    assert_eq!(error.problem, Problem::Corrupt);
}

#[test]
fn damage_in_the_structure_of_the_file_is_found() {
    let (_folder, path) = folder();
    furnished(&path).journal.close().expect("in order");
    let raw = Connection::open(&path).expect("opens");
    raw.execute_batch(
        "PRAGMA writable_schema = ON;
         UPDATE sqlite_schema SET rootpage = (SELECT rootpage FROM sqlite_schema WHERE name = 'bookmark')
         WHERE name = 'event_by_priority'",
    )
    .expect("damage");
    drop(raw);
    let found = verify(&path);
    match found {
        Ok(found) => assert!(
            found
                .findings
                .iter()
                .any(|text| text.starts_with("SQLite: ")),
            "{found:?}"
        ),
        Err(error) => assert_eq!(error.problem, Problem::Corrupt),
    }
}

#[test]
fn a_backup_is_a_journal_of_one_moment_while_its_bus_goes_on() {
    let (folder, path) = folder();
    let bus = furnished(&path);
    let done = AtomicBool::new(false);
    let copies: Vec<PathBuf> = (0..4)
        .map(|n| folder.path().join(format!("copy-{n}.bus")))
        .collect();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let (_, ticket) = bus.publish(Normal, "t");
                ticket.wait().expect("committed");
            }
        });
        for copy in &copies {
            backup(&path, copy).expect("copied");
        }
        done.store(true, Ordering::Relaxed);
    });
    let mut events = 20;
    for copy in &copies {
        let found = verify(copy).expect("readable");
        assert!(found.is_clean() && found.events >= events, "{found:?}");
        events = found.events;
        let restored = Bus::open(copy);
        let lane = restored.subscribe("bill", "t");
        assert_eq!(lane.drain(Normal).len() as u64 + 5 + 3, found.events);
        restored.journal.close().expect("in order");
    }
    assert_eq!(
        backup(&path, &copies[0]).map_err(|error| error.problem),
        Err(Problem::Exists)
    );
    let nowhere = folder.path().join("no/copy.bus");
    assert_eq!(
        backup(&path, &nowhere).map_err(|error| error.problem),
        Err(Problem::NoFolder)
    );
    #[cfg(unix)]
    {
        let mode = std::fs::metadata(&copies[0])
            .expect("is there")
            .permissions();
        assert_eq!(
            std::os::unix::fs::PermissionsExt::mode(&mode) & 0o777,
            0o600
        );
    }
    let left: Vec<String> = std::fs::read_dir(&folder)
        .expect("the folder is there")
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .filter(|name| name.contains(".new-"))
        .collect();
    assert_eq!(left, Vec::<String>::new());
}

#[test]
fn a_journal_answers_questions_and_cannot_be_changed_by_them() {
    let (_folder, path) = folder();
    let bus = furnished(&path);
    let ask = |sql: &str, parameters: &[Value]| query(&path, sql, parameters, 3);
    assert_eq!(
        ask(
            "SELECT sequence AS n, key, 0.5, x'01', type FROM event WHERE sequence = ?",
            &[Value::Integer(7)]
        ),
        Ok(Answer {
            columns: ["n", "key", "0.5", "x'01'", "type"]
                .map(str::to_owned)
                .into(),
            rows: vec![vec![
                Value::Integer(7),
                Value::Null,
                Value::Real(0.5),
                Value::Blob(vec![1]),
                Value::Text("t".into()),
            ]],
            cut: false,
        })
    );
    let many = ask("SELECT sequence FROM event", &[]).expect("an answer");
    assert_eq!((many.rows.len(), many.cut), (3, true));
    for sql in [
        "DELETE FROM event",
        "CREATE TABLE x (y)",
        "this is no SQL",
        "PRAGMA user_version = 7",
    ] {
        assert!(ask(sql, &[]).is_err(), "{sql}");
    }
    assert!(verify(&path).expect("readable").is_clean());
    bus.publish(Normal, "t").1.wait().expect("the bus goes on");
}

#[test]
fn who_has_been_away_for_long_is_let_go_of() {
    let (_folder, path) = folder();
    let bus = furnished(&path);
    bus.subscribe("ship", "t");
    *lock(&bus.desk.now) = NOW + 100.0;
    bus.journal.close().expect("in order");
    let bus = Bus::open(&path);
    *lock(&bus.desk.now) = NOW + 200.0;
    // Whoever was there when the bus ended was there then.
    assert_eq!(bus.journal.forget_absent(Some(NOW + 100.0)), Ok(vec![]));
    let lane = bus.subscribe("ship", "t");
    assert_eq!(
        bus.journal.forget_absent(Some(NOW + 999.0)),
        Ok(vec!["bill".into()])
    );
    assert!(bus.journal.forget("ship").is_err());
    drop(lane);
    let mut reader = bus.journal.reader().expect("a reader");
    let known = reader.subscriptions().expect("readable");
    assert_eq!(known.len(), 1);
    // Nothing is left that would keep its events.
    let far = Event {
        accepted: NOW + 500.0,
        ..event(0, Normal, "other")
    };
    bus.publish_event(far, Durability::Os)
        .1
        .wait()
        .expect("committed");
    *lock(&bus.desk.now) = NOW + 1000.0;
    assert_eq!(bus.journal.forget_absent(None), Ok(vec![]));
    assert_eq!(
        reader.subscriptions().expect("readable")[0].0.seen,
        NOW + 1000.0
    );
}
