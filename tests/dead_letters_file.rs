//! What the file of a dead letter queue goes through: kills, other processes, damage.
#![cfg(not(loom))]

mod torture;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use ironbus::engine::dead_letters::{
    DeadEvent, DeadLetter, DeadLetterError, DeadLetterReader, DeadLetters, Filter, Lease, Limits,
    SqliteDeadLetters,
};
use ironbus::engine::store::{self, Durability, Options, Problem, StoreError};
use rusqlite::Connection;

fn open(path: &Path) -> SqliteDeadLetters {
    let options = Options {
        durability: Durability::Os,
        busy_timeout: Duration::from_secs(60),
        create: true,
    };
    SqliteDeadLetters::open(path, Limits::default(), &options).expect("opens")
}

fn letter(id: &str) -> DeadLetter {
    DeadLetter {
        id: id.into(),
        event: DeadEvent {
            event_type: "order.paid".into(),
            data: format!(r#"{{"id": "{id}", "note": "{}"}}"#, "n".repeat(100)),
            ..DeadEvent::default()
        },
        subscription: "bill".into(),
        attempts: 1,
        ..DeadLetter::default()
    }
}

fn ids(queue: &SqliteDeadLetters) -> BTreeSet<String> {
    queue
        .page(&Filter::default(), 0, usize::MAX)
        .expect("a page")
        .into_iter()
        .map(|stored| stored.letter.id)
        .collect()
}

/// What a child process does: this test, in a process that is told so.
#[test]
fn child() {
    let Ok(work) = std::env::var("IRONBUS_TEST_CHILD") else {
        return;
    };
    let mut words = work.splitn(3, '\n');
    let (task, name, path) = (words.next(), words.next(), words.next());
    let name = name.expect("a name");
    let queue = open(Path::new(path.expect("a path")));
    let mut out = std::io::stdout();
    match task {
        Some("add") => {
            for n in 0.. {
                let id = format!("{name}-{n}");
                queue.add(letter(&id), 0.0).expect("added");
                writeln!(out, "did {id}").expect("the parent listens");
            }
        }
        Some("redrive") => {
            let lease = Lease {
                holder: name.parse().expect("a number"),
                until: 100.0,
            };
            loop {
                let claimed = queue
                    .claim(&Filter::default(), 0, 5, lease, 0.0)
                    .expect("claimed");
                if claimed.is_empty() {
                    break;
                }
                for stored in claimed {
                    let id = stored.letter.id;
                    writeln!(out, "did {id}").expect("the parent listens");
                    assert_eq!(queue.succeeded(&id, lease.holder), Ok(true));
                    writeln!(out, "end {id}").expect("the parent listens");
                }
            }
        }
        task => panic!("no such task: {task:?}"),
    }
}

struct Process(Child);

impl Process {
    fn start(task: &str, name: &str, path: &Path) -> (Self, impl Iterator<Item = String> + use<>) {
        let mut child = Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", "child", "--nocapture"])
            .env(
                "IRONBUS_TEST_CHILD",
                format!("{task}\n{name}\n{}", path.display()),
            )
            .stdout(Stdio::piped())
            .spawn()
            .expect("a process");
        let lines = BufReader::new(child.stdout.take().expect("its output")).lines();
        let lines = lines
            .map_while(Result::ok)
            .filter(|line| line.starts_with("did ") || line.starts_with("end "));
        (Self(child), lines)
    }

    /// SIGKILL, where there is such a thing.
    fn kill(mut self) {
        self.0.kill().expect("it runs");
        self.0.wait().expect("it ends");
    }

    fn join(mut self) {
        assert!(self.0.wait().expect("it ends").success());
    }
}

fn name_of(line: &str) -> String {
    line[4..].to_owned()
}

#[test]
fn every_acknowledged_entry_survives_a_kill_at_any_moment() {
    let folder = tempfile::tempdir().expect("a folder for the test");
    let path = folder.path().join("x.dlq");
    let mut acknowledged = BTreeSet::new();
    for round in 0..torture::times(8, 60) {
        let (process, mut lines) = Process::start("add", &round.to_string(), &path);
        acknowledged.extend(
            lines
                .by_ref()
                .take(40 + 33 * (round as usize % 20))
                .map(|line| name_of(&line)),
        );
        process.kill();
        // What it had written to the pipe before it died is acknowledged too.
        acknowledged.extend(lines.map(|line| name_of(&line)));
        let queue = open(&path);
        let kept = ids(&queue);
        assert!(kept.is_superset(&acknowledged));
        assert_eq!(
            queue.statistics().expect("counts").entries,
            kept.len() as u64
        );
        assert_eq!(queue.verify(), Ok(0));
    }
    torture::done("kills", torture::times(8, 60));
    torture::done("acknowledged dead letters", acknowledged.len() as u64);
}

#[test]
fn two_processes_add_to_one_queue() {
    let folder = tempfile::tempdir().expect("a folder for the test");
    let path = folder.path().join("x.dlq");
    let (one, mut did_one) = Process::start("add", "1", &path);
    let (two, mut did_two) = Process::start("add", "2", &path);
    let mut added: BTreeSet<String> = BTreeSet::new();
    for _ in 0..500 {
        for lines in [
            &mut did_one as &mut dyn Iterator<Item = String>,
            &mut did_two,
        ] {
            added.insert(name_of(&lines.next().expect("it goes on")));
        }
    }
    one.kill();
    two.kill();
    added.extend(did_one.chain(did_two).map(|line| name_of(&line)));
    let queue = open(&path);
    assert!(ids(&queue).is_superset(&added));
    let found = queue.statistics().expect("counts");
    assert_eq!(found.entries, ids(&queue).len() as u64);
    drop(queue);
    assert!(is_sound(&path));
}

#[test]
fn two_redrivers_share_the_work_and_one_that_is_killed_loses_nothing() {
    let folder = tempfile::tempdir().expect("a folder for the test");
    let path = folder.path().join("x.dlq");
    let queue = open(&path);
    let all: BTreeSet<String> = (0..400).map(|n| n.to_string()).collect();
    for id in &all {
        queue.add(letter(id), 0.0).expect("added");
    }
    let (killed, mut lines) = Process::start("redrive", "1", &path);
    let mut of_killed: Vec<String> = lines.by_ref().take(101).collect();
    killed.kill();
    of_killed.extend(lines);
    let ended = |lines: &[String]| -> BTreeSet<String> {
        lines
            .iter()
            .filter(|line| line.starts_with("end "))
            .map(|line| name_of(line))
            .collect()
    };
    let gone = ended(&of_killed);
    let left = ids(&queue);
    // At most the one whose success was being written has left without a word.
    let unsaid: BTreeSet<_> = all
        .difference(&left)
        .filter(|id| !gone.contains(*id))
        .collect();
    assert!(gone.is_disjoint(&left));
    assert!(unsaid.len() <= 1, "{unsaid:?}");

    let (one, did_one) = Process::start("redrive", "2", &path);
    let (two, did_two) = Process::start("redrive", "3", &path);
    let (did_one, did_two): (Vec<_>, Vec<_>) = (did_one.collect(), did_two.collect());
    one.join();
    two.join();
    let (of_one, of_two) = (ended(&did_one), ended(&did_two));
    assert!(of_one.is_disjoint(&of_two));
    // What the killed one held is free when its lease ends, and not before.
    let held = ids(&queue);
    let served: BTreeSet<String> = of_one.union(&of_two).chain(&held).cloned().collect();
    assert_eq!(served, left);
    assert!(held.len() <= 5);
    let lease = |until| Lease { holder: 4, until };
    let early = queue
        .claim(&Filter::default(), 0, 9, lease(200.0), 99.0)
        .expect("claimed");
    assert!(early.is_empty());
    let late = queue
        .claim(&Filter::default(), 0, 9, lease(200.0), 100.0)
        .expect("claimed");
    assert_eq!(late.len(), held.len());
}

fn is_sound(path: &Path) -> bool {
    let raw = Connection::open(path).expect("opens");
    let found: String = raw
        .query_row("PRAGMA integrity_check", [], |row| row.get(0))
        .expect("a check");
    found == "ok"
}

#[test]
fn a_damaged_row_is_moved_aside_and_the_rest_is_delivered() {
    let folder = tempfile::tempdir().expect("a folder for the test");
    let path = folder.path().join("x.dlq");
    let queue = open(&path);
    for id in ["a", "b", "c", "d", "e"] {
        queue.add(letter(id), 0.0).expect("added");
    }
    let raw = Connection::open(&path).expect("opens beside it");
    raw.execute_batch(
        "UPDATE dead_letter SET data = replace(data, 'n', 'm') WHERE id = 'b';
         UPDATE dead_letter SET subscription = 'ship' WHERE id = 'd';
         UPDATE dead_letter SET attempts = 2 WHERE id = 'e'",
    )
    .expect("damage");
    let lease = Lease {
        holder: 1,
        until: 9.0,
    };
    let claimed = queue
        .claim(&Filter::default(), 0, 2, lease, 0.0)
        .expect("claimed");
    let claimed: Vec<_> = claimed.iter().map(|stored| &*stored.letter.id).collect();
    assert_eq!(claimed, ["a", "c"]);
    assert_eq!(
        queue.get("d"),
        Err(DeadLetterError::Damaged { id: "d".into() })
    );
    assert_eq!(queue.get("d"), Ok(None));
    let found = queue.statistics().expect("counts");
    assert_eq!((found.entries, found.damaged), (3, 2));
    assert_eq!(queue.verify(), Ok(1));
    assert_eq!(ids(&queue).len(), 2);
    // As they were found, for somebody to look at.
    let aside: String = raw
        .query_row(
            "SELECT group_concat(id || subscription, ' ' ORDER BY id) FROM dead_letter_damaged",
            [],
            |row| row.get(0),
        )
        .expect("the damaged rows");
    assert_eq!(aside, "bbill dship ebill");
    // The id is free again.
    queue.add(letter("b"), 0.0).expect("added");
    assert_eq!(
        queue.get("b").expect("read").map(|stored| stored.letter),
        Some(letter("b"))
    );
}

/// Of every bit of the pages that hold the rows, each flip shows; read without the checksum,
/// many do not.
#[test]
fn no_flipped_bit_gives_a_wrong_entry() {
    let folder = tempfile::tempdir().expect("a folder for the test");
    let path = folder.path().join("x.dlq");
    let queue = open(&path);
    let all: Vec<DeadLetter> = ["a", "b", "c"].map(letter).into();
    for one in &all {
        queue.add(one.clone(), 0.0).expect("added");
    }
    drop(queue);
    let whole = std::fs::read(&path).expect("readable");
    let raw = Connection::open(&path).expect("opens");
    let page: u32 = raw
        .query_row(
            "SELECT rootpage FROM sqlite_schema WHERE name = 'dead_letter'",
            [],
            |row| row.get(0),
        )
        .expect("its page");
    let size: u32 = raw
        .query_row("PRAGMA page_size", [], |row| row.get(0))
        .expect("a size");
    drop(raw);
    let (page, size) = (page as usize, size as usize);
    let flipped_path = folder.path().join("flipped.dlq");
    let (mut flips, mut moved, mut refused, mut silent) = (0, 0, 0, 0);
    // A step that is prime to 8 visits all bits of bytes and all parts of the page.
    for bit in ((page - 1) * size * 8..page * size * 8).step_by(torture::times(37, 7) as usize) {
        flips += 1;
        let mut flipped = whole.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        for rest in ["-wal", "-shm"] {
            let _ = std::fs::remove_file(flipped_path.with_extension(format!("dlq{rest}")));
        }
        std::fs::write(&flipped_path, &flipped).expect("written");
        let unchecked = Connection::open(&flipped_path).and_then(|raw| {
            raw.prepare("SELECT data FROM dead_letter ORDER BY position")?
                .query_map([], |row| row.get::<_, String>(0))?
                .collect::<Result<Vec<_>, _>>()
        });
        let payloads: Vec<_> = all.iter().map(|letter| letter.event.data.clone()).collect();
        silent += usize::from(unchecked.is_ok_and(|read| read != payloads));
        let queue = open(&flipped_path);
        match queue.page(&Filter::default(), 0, 99) {
            Ok(kept) => {
                for stored in &kept {
                    assert!(
                        all.contains(&stored.letter),
                        "bit {bit}: {:?}",
                        stored.letter
                    );
                }
                let damaged = queue.statistics().expect("counts").damaged;
                // An entry can be out of sight, but then SQLite's own check says so.
                assert!(
                    kept.len() as u64 + damaged >= 3 || !is_sound(&flipped_path),
                    "bit {bit}: {} kept, {damaged} damaged",
                    kept.len()
                );
                moved += usize::from(damaged > 0);
            }
            Err(DeadLetterError::Store(StoreError {
                problem: Problem::Corrupt,
                ..
            })) => refused += 1,
            Err(error) => panic!("bit {bit}: {error}"),
        }
    }
    assert!(
        silent > 50,
        "the control: {silent} wrong payloads without an error"
    );
    assert!(moved > 100, "{moved} moved aside, {refused} refused");
    torture::done("bits flipped", flips);
    torture::control();
}

/// v1.0 rewrote its file for every entry, so that the ten-thousandth cost ten thousand times
/// the first. Counted in bytes of the log, which no machine's load changes.
#[test]
fn the_thousandth_entry_costs_what_the_first_did() {
    let folder = tempfile::tempdir().expect("a folder for the test");
    let path = folder.path().join("x.dlq");
    let queue = open(&path);
    // A reader keeps the log from being begun anew.
    let reader = Connection::open(&path).expect("opens beside it");
    reader
        .execute_batch("BEGIN; SELECT count(*) FROM dead_letter")
        .expect("a snapshot");
    let mut written = vec![0];
    for n in 0..4000 {
        if n % 1000 == 0 {
            let log = std::fs::metadata(path.with_extension("dlq-wal")).expect("the log");
            written.push(log.len());
        }
        queue.add(letter(&format!("{n:05}")), 0.0).expect("added");
    }
    let (early, late) = (written[2] - written[1], written[4] - written[3]);
    assert!(late < early * 5 / 4, "{early} bytes, then {late}");
    assert!(late / 1000 < 40_000, "{late} bytes for a thousand entries");
}

#[test]
fn a_reader_sees_what_the_queue_has_and_moves_nothing_aside() {
    let folder = tempfile::tempdir().expect("a folder for the test");
    let path = folder.path().join("x.dead");
    let queue = open(&path);
    assert_eq!(store::kind(&path), Ok(store::DEAD_LETTERS));
    for id in ["a", "b", "c"] {
        queue.add(letter(id), 0.0).expect("added");
    }
    let mut reader = DeadLetterReader::open(&path).expect("readable");
    let all = Filter::default();
    let page = reader.page(&all, 0, 9).expect("a page");
    assert_eq!(page.entries, queue.page(&all, 0, 9).expect("a page"));
    let raw = Connection::open(&path).expect("opens");
    raw.execute("UPDATE dead_letter SET data = 'x' WHERE id = 'b'", [])
        .expect("damage");
    for _ in 0..2 {
        let page = reader.page(&all, 0, 9).expect("a page");
        assert_eq!((page.entries.len(), page.damaged), (2, 1));
        assert_eq!(reader.count(&all), Ok(3));
    }
    assert_eq!(queue.verify(), Ok(1));
    assert_eq!(reader.count(&all), Ok(2));
}

/// What is written to a file that has no name any more cannot be read by anybody.
#[cfg(unix)]
#[test]
fn a_file_that_is_moved_or_deleted_takes_no_more_entries() {
    type Fault = fn(&Path) -> std::io::Result<()>;
    let faults: [(&str, Fault); 4] = [
        ("deleted", |path| std::fs::remove_file(path)),
        ("log deleted", |path| {
            let mut log = path.as_os_str().to_owned();
            log.push("-wal");
            std::fs::remove_file(log)
        }),
        ("moved", |path| {
            std::fs::rename(path, path.with_extension("old"))
        }),
        ("replaced", |path| {
            let copy = path.with_extension("copy");
            std::fs::copy(path, &copy)?;
            std::fs::rename(copy, path)
        }),
    ];
    for (name, fault) in faults {
        let folder = tempfile::tempdir().expect("a folder for the test");
        let path = folder.path().join("x.dead");
        let queue = open(&path);
        queue.add(letter("a"), 0.0).expect("it is there");
        fault(&path).expect("the fault");
        let moved = DeadLetterError::Store(StoreError {
            path: path.clone(),
            problem: Problem::Moved,
        });
        assert_eq!(queue.add(letter("b"), 0.0), Err(moved.clone()), "{name}");
        assert_eq!(queue.count(&Filter::default()), Err(moved), "{name}");
    }
}
