//! A process that publishes and settles is killed at random moments and started again: what it
//! acknowledged is there, and no number is given twice.
#![cfg(not(loom))]

mod durable;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use durable::{Bus, event};
use ironbus::engine::journal::{EventFilter, Range, verify};
use ironbus::engine::priority::Priority::Normal;
use ironbus::engine::store::Durability;

/// What the child process does: this test, in a process that is told so.
#[test]
fn child() {
    let Ok(path) = std::env::var("IRONBUS_TEST_JOURNAL") else {
        return;
    };
    let bus = Bus::open(Path::new(&path));
    let lane = bus.subscribe("bill", "t");
    let mut out = std::io::stdout();
    loop {
        let (sequence, ticket) = bus.publish_event(event(0, Normal, "t"), Durability::Os);
        ticket.wait().expect("stored");
        writeln!(out, "did {sequence}").expect("the parent listens");
        if sequence % 3 == 0
            && let Some(next) = lane.next(Normal)
        {
            lane.subscription.settle(Normal, next);
            bus.flush();
            writeln!(out, "end {next}").expect("the parent listens");
        }
    }
}

fn start(path: &Path) -> (Child, impl Iterator<Item = String> + use<>) {
    let mut child = Command::new(std::env::current_exe().expect("this test"))
        .args(["--exact", "child", "--nocapture"])
        .env("IRONBUS_TEST_JOURNAL", path)
        .stdout(Stdio::piped())
        .spawn()
        .expect("a process");
    let lines = BufReader::new(child.stdout.take().expect("its output")).lines();
    let lines = lines
        .map_while(Result::ok)
        .filter(|line| line.starts_with("did ") || line.starts_with("end "));
    (child, lines)
}

#[test]
fn what_was_acknowledged_survives_every_kill_and_what_was_settled_does_not_come_again() {
    let folder = tempfile::tempdir().expect("a folder for the test");
    let path = folder.path().join("x.bus");
    let (mut stored, mut settled) = (BTreeSet::new(), BTreeSet::new());
    for round in 0..12 {
        let (mut child, mut lines) = start(&path);
        let mut said: Vec<String> = lines.by_ref().take(20 + 17 * round).collect();
        child.kill().expect("it runs");
        child.wait().expect("it ends");
        said.extend(lines);
        for line in said {
            let number: u64 = line[4..].parse().expect("a number");
            let new = match line.starts_with("did ") {
                true => stored.insert(number),
                false => settled.insert(number),
            };
            assert!(new, "{line} for the second time");
        }
        let found = verify(&path).expect("readable");
        assert!(found.is_clean(), "{found:?}");
    }
    let bus = Bus::open(&path);
    let mut reader = bus.journal.reader().expect("a reader");
    let all = Range {
        after: 0,
        through: u64::MAX >> 1,
        limit: usize::MAX,
        budget: usize::MAX,
    };
    let scan = reader
        .events(&EventFilter::default(), all)
        .expect("readable");
    let there: BTreeSet<u64> = scan.events.iter().map(|event| event.sequence).collect();
    assert!(there.is_superset(&stored));
    // Of the rounds, each may have settled one more than it could say.
    let again: BTreeSet<u64> = bus
        .subscribe("bill", "t")
        .drain(Normal)
        .into_iter()
        .collect();
    assert!(again.is_disjoint(&settled));
    assert!(there.len() - again.len() - settled.len() <= 12);
}
