//! A process that publishes and settles is killed, at random moments and at every named step of
//! the writer, and started again: what it acknowledged is there, what it settled does not come
//! again, and no number is given twice.
#![cfg(not(loom))]

mod durable;
mod torture;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use durable::{Bus, event};
use ironbus::engine::journal::{Event, EventFilter, Faults, Range, verify};
use ironbus::engine::priority::Priority::Normal;
use ironbus::engine::store::Durability;

const STEPS: [&str; 7] = [
    "batch.begin",
    "batch.appended",
    "batch.settled",
    "batch.commit",
    "batch.committed",
    "checkpoint.begin",
    "checkpoint.end",
];

/// Ends the process at the `visit`-th time that the writer comes to a step, as hard as a kill:
/// nothing is dropped, flushed or told.
fn dying(step: String, visit: u64) -> Faults {
    let visits = AtomicU64::new(0);
    Faults::new(Arc::new(move |at| {
        if at == step && visits.fetch_add(1, Ordering::Relaxed) + 1 == visit {
            std::process::abort();
        }
        Ok(())
    }))
}

/// What the child process does: this test, in a process that is told so.
#[test]
fn child() {
    let Ok(path) = std::env::var("IRONBUS_TEST_JOURNAL") else {
        return;
    };
    let mut faults = Faults::default();
    let mut large = false;
    if let Ok(step) = std::env::var("IRONBUS_TEST_STEP") {
        let (step, visit) = step.split_once(' ').expect("a step and a visit");
        // The log is to be full soon.
        large = step.starts_with("checkpoint");
        faults = dying(step.into(), visit.parse().expect("a number"));
    }
    // Told before the flush: the control.
    let early = std::env::var_os("IRONBUS_TEST_EARLY").is_some();
    let bus = Bus::open_with(Path::new(&path), faults).expect("a journal");
    let lane = bus.subscribe("bill", "t");
    let mut out = std::io::stdout();
    let mut say = |line: String| writeln!(out, "{line}").expect("the parent listens");
    loop {
        let event = Event {
            headers: large.then(|| "h".repeat(100_000)),
            ..event(0, Normal, "t")
        };
        let (sequence, ticket) = bus.publish_event(event, Durability::Os);
        if early {
            say(format!("did {sequence}"));
        }
        ticket.wait().expect("stored");
        if !early {
            say(format!("did {sequence}"));
        }
        if sequence % 3 == 0
            && let Some(next) = lane.next(Normal)
        {
            lane.subscription.settle(Normal, next);
            bus.flush();
            say(format!("end {next}"));
        }
    }
}

fn start(
    path: &Path,
    step: Option<(&str, u64)>,
    early: bool,
) -> (Child, impl Iterator<Item = String> + use<>) {
    let mut command = Command::new(std::env::current_exe().expect("this test"));
    command
        .args(["--exact", "child", "--nocapture"])
        .env("IRONBUS_TEST_JOURNAL", path)
        .stdout(Stdio::piped());
    if let Some((step, visit)) = step {
        command.env("IRONBUS_TEST_STEP", format!("{step} {visit}"));
    }
    if early {
        command.env("IRONBUS_TEST_EARLY", "yes");
    }
    let mut child = command.spawn().expect("a process");
    let lines = BufReader::new(child.stdout.take().expect("its output")).lines();
    let lines = lines
        .map_while(Result::ok)
        .filter(|line| line.starts_with("did ") || line.starts_with("end "));
    (child, lines)
}

/// What all processes have said so far.
#[derive(Default)]
struct Said {
    stored: BTreeSet<u64>,
    settled: BTreeSet<u64>,
    kills: u64,
}

impl Said {
    fn hear(&mut self, lines: impl IntoIterator<Item = String>) {
        for line in lines {
            let number: u64 = line[4..].parse().expect("a number");
            let new = match line.starts_with("did ") {
                true => self.stored.insert(number),
                false => self.settled.insert(number),
            };
            assert!(new, "{line} for the second time");
        }
    }

    /// After a kill: the file is whole, and has what was acknowledged.
    fn check(&mut self, path: &Path) {
        self.kills += 1;
        let found = verify(path).expect("readable");
        assert!(found.is_clean(), "{found:?}");
        let bus = Bus::open(path);
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
        assert!(
            there.is_superset(&self.stored),
            "an acknowledged event is lost"
        );
        self.stored = there;
    }

    /// In the end: what was settled does not come again, everything else does.
    fn end(self, path: &Path) {
        let bus = Bus::open(path);
        let again: BTreeSet<u64> = bus
            .subscribe("bill", "t")
            .drain(Normal)
            .into_iter()
            .collect();
        assert!(
            again.is_disjoint(&self.settled),
            "settled, and delivered again"
        );
        // Each process may have settled one more than it could say.
        let silent = self.stored.len() - again.len() - self.settled.len();
        assert!(silent as u64 <= self.kills, "{silent} events are gone");
        torture::done("kills", self.kills);
        torture::done("acknowledged events", self.stored.len() as u64);
    }
}

#[test]
fn what_was_acknowledged_survives_every_kill_and_what_was_settled_does_not_come_again() {
    let folder = tempfile::tempdir().expect("a folder for the test");
    let path = folder.path().join("x.bus");
    let mut said = Said::default();
    let mut random = fastrand::Rng::with_seed(7);
    for _ in 0..torture::times(12, 200) {
        let (mut child, mut lines) = start(&path, None, false);
        said.hear(lines.by_ref().take(random.usize(1..200)));
        child.kill().expect("it runs");
        child.wait().expect("it ends");
        // What it had written to the pipe before it died counts as well.
        said.hear(lines);
        said.check(&path);
    }
    said.end(&path);
}

#[test]
fn a_process_that_dies_at_a_step_of_the_writer_loses_nothing() {
    for step in STEPS {
        let folder = tempfile::tempdir().expect("a folder for the test");
        let path = folder.path().join("x.bus");
        let mut said = Said::default();
        // The steps of opening the journal are among the first visits: the death comes again and
        // again, also while what the last one left is put in order.
        for visit in 1..=torture::times(3, 20) {
            let (mut child, lines) = start(&path, Some((step, visit)), false);
            said.hear(lines);
            let ended = child.wait().expect("it ends");
            assert!(!ended.success(), "{step} was not come to");
            said.check(&path);
        }
        said.end(&path);
    }
}

/// The control: a process that acknowledges before the event is stored is caught, as soon as it
/// comes to say so before it dies.
#[test]
fn an_acknowledgement_before_the_commit_is_found_out() {
    let caught = (1..=50).any(|_| {
        let folder = tempfile::tempdir().expect("a folder for the test");
        let path = folder.path().join("x.bus");
        let mut said = Said::default();
        // The commit of the third event, of which no settlement follows yet.
        let (mut child, lines) = start(&path, Some(("batch.commit", 4)), true);
        said.hear(lines);
        child.wait().expect("it ends");
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| said.check(&path))).is_err()
    });
    assert!(caught);
    torture::control();
}
