//! A journal in a file: taken, opened, and put in order after a crash.

use std::path::Path;
use std::sync::Arc;

use super::in_flight::{InFlight, Suspect};
use super::owner::Owner;
use super::sqlite::{SCHEMA, SqliteOptions, SqliteStorage};
use super::storage::{Change, CursorRow, Reader, Straggler, StragglerState};
use super::{Journal, JournalError, JournalOptions, Observer, Start};
use crate::engine::store::{self, StoreError};
use crate::engine::sync::lock;

/// How a journal's file is opened and worked with.
#[derive(Clone)]
pub struct FileOptions {
    /// The file.
    pub file: SqliteOptions,
    /// The journal.
    pub journal: JournalOptions,
}

/// What the process has of a file while it owns it. Dropped in this order.
pub(super) struct Held {
    pub(super) in_flight: Arc<InFlight>,
    pub(super) identity: [u8; 16],
    pub(super) _owner: Owner,
}

impl Journal {
    /// Opens a journal and owns it; makes it where there is none. Deliveries that were running
    /// when its last owner died are stragglers from now on, in the state of suspects.
    pub fn open(
        path: &Path,
        options: FileOptions,
        observer: Arc<dyn Observer>,
    ) -> Result<Self, JournalError> {
        // Before anything is made beside it.
        store::check(path, &SCHEMA, options.file.create)?;
        let owner = Owner::claim(path)?;
        let (storage, head) = SqliteStorage::open(path, &options.file)?;
        let identity = storage.identity();
        let suspects = InFlight::suspects(path, &identity)?;
        let settlements = recover(&mut *super::Storage::reader(&storage)?, &suspects)?;
        let start = Start {
            storage: Box::new(storage),
            head,
            path: path.to_owned(),
            settlements,
        };
        let journal = Self::start(start, options.journal, observer)?;
        // The suspects are stored: the page may forget them.
        let in_flight = InFlight::make(path, &identity)?;
        *lock(&journal.held) = Some(Held {
            in_flight,
            identity,
            _owner: owner,
        });
        Ok(journal)
    }

    /// The page for running deliveries, of a journal in a file.
    pub fn in_flight(&self) -> Option<Arc<InFlight>> {
        lock(&self.held).as_ref().map(|held| held.in_flight.clone())
    }

    /// What tells this journal from all others, of a journal in a file.
    pub fn identity(&self) -> Option<[u8; 16]> {
        lock(&self.held).as_ref().map(|held| held.identity)
    }
}

/// What the suspects come to: the cursor passes them, and they are stragglers with the attempts
/// that they had. One that was settled after all is none.
fn recover(
    reader: &mut dyn Reader,
    suspects: &[Suspect],
) -> Result<(Vec<CursorRow>, Vec<Change>), StoreError> {
    let (mut cursors, mut changes) = (Vec::<CursorRow>::new(), Vec::new());
    if suspects.is_empty() {
        return Ok((cursors, changes));
    }
    let known = reader.subscriptions()?;
    let known = known.into_iter().flat_map(|(_, cursors)| cursors);
    let mut known: Vec<CursorRow> = known.collect();
    for suspect in suspects {
        let (level, sequence) = (suspect.level, suspect.sequence);
        let of =
            |row: &&mut CursorRow| row.subscription == suspect.subscription && row.level == level;
        let Some(cursor) = known.iter_mut().find(of) else {
            continue;
        };
        let before = Some((level, sequence.saturating_sub(1)));
        let straggler = reader
            .stragglers(suspect.subscription, before, 1)?
            .into_iter()
            .find(|straggler| straggler.level == level && straggler.sequence == sequence);
        let passed = sequence <= cursor.position
            || cursor
                .runs
                .iter()
                .any(|(from, to)| (*from..=*to).contains(&sequence));
        if straggler.is_none() && (passed || reader.event(sequence)?.is_none()) {
            continue;
        }
        if !passed {
            let at = cursor.runs.partition_point(|(from, _)| *from < sequence);
            cursor.runs.insert(at, (sequence, sequence));
            cursors.retain(|row| row.subscription != cursor.subscription || row.level != level);
            cursors.push(cursor.clone());
        }
        changes.push(Change::Put(Straggler {
            subscription: suspect.subscription,
            level,
            sequence,
            attempt: suspect
                .attempt
                .max(straggler.as_ref().map_or(0, |known| known.attempt)),
            due: None,
            state: StragglerState::Suspect,
            dead_letter: straggler.and_then(|known| known.dead_letter),
        }));
    }
    Ok((cursors, changes))
}
