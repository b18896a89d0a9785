//! The thread that bounds a journal: now and then it has old events and absent subscriptions let go
//! of. It waits for the journal's writer, and nobody waits for it.

use std::sync::Arc;
use std::time::Duration;

use crate::engine::journal::{Journal, JournalError, Keeping, Upkeep};
use crate::engine::sync::{Condvar, Mutex, lock};

/// What became of a round.
pub type Kept = Result<Upkeep, JournalError>;

/// What of a journal is kept, and who hears of what is not.
pub struct Keep {
    /// What is kept.
    pub keeping: Keeping,
    /// The pause before the first round, by the machine's clock.
    pub first: Duration,
    /// The pause between two.
    pub pause: Duration,
    /// Told of each round, with no lock of the bus held.
    pub told: Box<dyn Fn(&Kept) + Send + Sync>,
}

/// Told the names of subscriptions that were let go of.
type Gone = Box<dyn Fn(&[String]) + Send + Sync>;

/// What is looked after.
pub(super) struct Charge {
    keep: Keep,
    journal: Arc<Journal>,
    gone: Gone,
    ends: Mutex<bool>,
    changed: Condvar,
    /// One round at a time.
    round: Mutex<()>,
}

impl Charge {
    /// Lets go of what need not be kept. Waits for the disk.
    pub(super) fn round(&self) -> Kept {
        let _one_at_a_time = lock(&self.round);
        let done = self
            .journal
            .upkeep(&self.keep.keeping, &|| !*lock(&self.ends));
        if let Ok(done) = &done {
            (self.gone)(&done.subscriptions);
        }
        (self.keep.told)(&done);
        done
    }

    /// False: it is the end.
    fn wait(&self, pause: Duration) -> bool {
        let ends = lock(&self.ends);
        if *ends {
            return false;
        }
        let (ends, _) = self
            .changed
            .wait_timeout(ends, pause)
            .unwrap_or_else(|poisoned| poisoned.into_inner());
        !*ends
    }
}

/// See the module. Dropped, it ends within a commit, and nobody waits for that: whoever drops it may be
/// the writer, for which it waits.
pub(super) struct Keeper {
    pub(super) charge: Arc<Charge>,
}

impl Keeper {
    /// Begins to look after a journal.
    pub(super) fn start(
        keep: Keep,
        journal: Arc<Journal>,
        gone: impl Fn(&[String]) + Send + Sync + 'static,
    ) -> std::io::Result<Self> {
        let charge = Arc::new(Charge {
            keep,
            journal,
            gone: Box::new(gone),
            ends: Mutex::default(),
            changed: Condvar::new(),
            round: Mutex::default(),
        });
        let works_on = charge.clone();
        let thread = std::thread::Builder::new().name("ironbus-upkeep".into());
        thread.spawn(move || {
            let mut pause = works_on.keep.first;
            while works_on.wait(pause) {
                // Whoever hears of it has been told.
                let _ = works_on.round();
                pause = works_on.keep.pause;
            }
        })?;
        Ok(Self { charge })
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        *lock(&self.charge.ends) = true;
        self.charge.changed.notify_all();
    }
}
