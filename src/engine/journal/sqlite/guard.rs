//! Keeps the user's statements, which run on the writer's connection, away from the journal's
//! own tables and from the transaction that they run in.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rusqlite::Connection;
use rusqlite::hooks::{AuthAction, AuthContext, Authorization};

use crate::engine::store::Problem;

/// The tables that only the journal writes to.
const OWN: [&str; 13] = [
    "journal",
    "event",
    "subscription",
    "cursor",
    "straggler",
    "bookmark",
    "damage",
    "event_damaged",
    "dead_letter",
    "dead_letter_damaged",
    "dead_letter_total",
    "dead_letter_import",
    "sqlite_sequence",
];

/// The views that come with them.
const VIEWS: [&str; 5] = [
    "backlog",
    "stragglers",
    "events",
    "dead_letters",
    "failures",
];

/// Whether a statement of the user is being prepared. SQLite asks then and only then, so the
/// journal's own statements, prepared once, are never looked at again.
#[derive(Clone, Debug, Default)]
pub(super) struct Guard(Arc<AtomicBool>);

/// While it lives, statements are the user's.
pub(super) struct Raised<'a>(&'a AtomicBool);

impl Drop for Raised<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

impl Guard {
    pub(super) fn install(&self, connection: &mut Connection) -> Result<(), Problem> {
        let raised = self.0.clone();
        connection.authorizer(Some(move |context: AuthContext<'_>| {
            if !raised.load(Ordering::Relaxed) || is_allowed(&context.action) {
                Authorization::Allow
            } else {
                Authorization::Deny
            }
        }))?;
        Ok(())
    }

    pub(super) fn raise(&self) -> Raised<'_> {
        self.0.store(true, Ordering::Relaxed);
        Raised(&self.0)
    }
}

fn is_allowed(action: &AuthAction<'_>) -> bool {
    let theirs = |table: &str| !OWN.iter().any(|own| own.eq_ignore_ascii_case(table));
    match action {
        AuthAction::Insert { table_name }
        | AuthAction::Delete { table_name }
        | AuthAction::Update { table_name, .. }
        | AuthAction::DropTable { table_name }
        | AuthAction::AlterTable { table_name, .. }
        | AuthAction::CreateIndex { table_name, .. }
        | AuthAction::DropIndex { table_name, .. }
        | AuthAction::CreateTrigger { table_name, .. }
        | AuthAction::CreateTempTrigger { table_name, .. }
        | AuthAction::DropTrigger { table_name, .. } => theirs(table_name),
        AuthAction::DropView { view_name } => {
            !VIEWS.iter().any(|own| own.eq_ignore_ascii_case(view_name))
        }
        AuthAction::Transaction { .. }
        | AuthAction::Savepoint { .. }
        | AuthAction::Attach { .. }
        | AuthAction::Detach { .. }
        | AuthAction::Pragma { .. }
        | AuthAction::Unknown { .. } => false,
        _ => true,
    }
}
