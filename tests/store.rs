//! What every file shares: how it is made, and what is refused without touching it.
#![cfg(not(loom))]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use ironbus::engine::store::{Durability, Options, Problem, Schema, open, open_reader};
use rusqlite::Connection;
use tempfile::TempDir;

/// The schema of a dead letter queue, as far as the store looks at it.
const FIRST: Schema = Schema {
    name: "dead letter queue",
    id: 0x6962_4431,
    steps: &["CREATE TABLE thing (name TEXT NOT NULL) STRICT"],
};
const SECOND: Schema = Schema {
    steps: &[
        "CREATE TABLE thing (name TEXT NOT NULL) STRICT",
        "ALTER TABLE thing ADD COLUMN colour TEXT NOT NULL DEFAULT 'grey'",
    ],
    ..FIRST
};
const JOURNAL: Schema = Schema {
    name: "journal",
    id: 0x6962_4a31,
    steps: &["CREATE TABLE event (sequence INTEGER PRIMARY KEY)"],
};

fn folder() -> TempDir {
    tempfile::tempdir().expect("a folder for the test")
}

fn problem(path: &Path, schema: &Schema, options: &Options) -> Problem {
    let error = open(path, schema, options).expect_err("must be refused");
    assert_eq!(error.path, path);
    error.problem
}

/// Names and contents of all files of a folder.
fn contents(folder: &TempDir) -> BTreeMap<String, Vec<u8>> {
    fs::read_dir(folder)
        .expect("the folder is there")
        .map(|entry| entry.expect("an entry").path())
        .map(|path| {
            let content = if path.is_file() {
                fs::read(&path).expect("readable")
            } else {
                vec![]
            };
            (path.display().to_string(), content)
        })
        .collect()
}

fn pragma<T: rusqlite::types::FromSql>(connection: &Connection, name: &str) -> T {
    connection
        .pragma_query_value(None, name, |row| row.get(0))
        .expect("a pragma of SQLite")
}

#[test]
fn the_bundled_sqlite_has_no_bug_of_the_reset_log() {
    assert!(
        rusqlite::version_number() >= 3_051_003,
        "{}",
        rusqlite::version()
    );
}

#[test]
fn a_new_file_is_private_and_has_the_settings_that_are_promised() {
    let folder = folder();
    let path = folder.path().join("a b%3f?.dlq");
    let connection = open(&path, &FIRST, &Options::default()).expect("makes the file");
    connection
        .execute("INSERT INTO thing VALUES ('x')", [])
        .expect("a row");
    assert_eq!(pragma::<String>(&connection, "journal_mode"), "wal");
    assert_eq!(pragma::<i64>(&connection, "synchronous"), 2);
    assert_eq!(pragma::<i64>(&connection, "mmap_size"), 0);
    assert_eq!(pragma::<i64>(&connection, "trusted_schema"), 0);
    assert_eq!(pragma::<String>(&connection, "locking_mode"), "normal");
    assert_eq!(pragma::<i64>(&connection, "busy_timeout"), 5000);
    assert_eq!(pragma::<i64>(&connection, "user_version"), 1);
    #[cfg(unix)]
    for entry in fs::read_dir(&folder).expect("the folder is there") {
        let entry = entry.expect("an entry");
        let mode = std::os::unix::fs::PermissionsExt::mode(
            &entry.metadata().expect("of a file").permissions(),
        );
        assert_eq!(mode & 0o777, 0o600, "{}", entry.path().display());
    }
    // The file, its log and the log's index; nothing of the making is left.
    assert_eq!(contents(&folder).len(), 3);
    drop(connection);
    let os = Options {
        durability: Durability::Os,
        ..Options::default()
    };
    let connection = open(&path, &FIRST, &os).expect("opens it again");
    assert_eq!(pragma::<i64>(&connection, "synchronous"), 1);
    drop(connection);
    assert_eq!(contents(&folder).len(), 1);
}

#[test]
fn what_is_not_ours_is_refused_and_left_as_it_was() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    fs::create_dir(at("directory")).expect("a directory");
    fs::write(
        at("text"),
        "not a database, and quite a lot of text\n".repeat(400),
    )
    .expect("a text");
    fs::write(at("short"), "x").expect("a short text");
    fs::write(at("empty"), "").expect("an empty file");
    Connection::open(at("foreign"))
        .and_then(|foreign| {
            foreign.execute_batch(
                "PRAGMA journal_mode=WAL; CREATE TABLE theirs (x); PRAGMA application_id=7",
            )
        })
        .expect("another program's database");
    Connection::open(at("anonymous"))
        .and_then(|foreign| foreign.execute_batch("CREATE TABLE theirs (x)"))
        .expect("a database without an id");
    drop(open(&at("journal"), &JOURNAL, &Options::default()).expect("a journal"));
    drop(open(&at("newer"), &SECOND, &Options::default()).expect("a newer version"));
    // As a process that was killed leaves it: with a log.
    let killed = open(&at("killed"), &SECOND, &Options::default()).expect("a newer version");
    killed
        .execute("INSERT INTO thing VALUES ('x', 'y')", [])
        .expect("a row");
    for rest in ["", "-wal"] {
        fs::copy(at(&format!("killed{rest}")), at(&format!("left{rest}"))).expect("a copy");
    }
    killed.close().expect("closes");

    let before = contents(&folder);
    let options = Options::default();
    assert_eq!(
        problem(&at("directory"), &FIRST, &options),
        Problem::NotAFile
    );
    assert_eq!(
        problem(&at("text"), &FIRST, &options),
        Problem::NotADatabase
    );
    assert_eq!(
        problem(&at("short"), &FIRST, &options),
        Problem::NotADatabase
    );
    assert_eq!(problem(&at("empty"), &FIRST, &options), Problem::Empty);
    let expected = "dead letter queue";
    assert_eq!(
        problem(&at("foreign"), &FIRST, &options),
        Problem::Foreign { expected }
    );
    assert_eq!(
        problem(&at("anonymous"), &FIRST, &options),
        Problem::Foreign { expected }
    );
    let found = "journal";
    assert_eq!(
        problem(&at("journal"), &FIRST, &options),
        Problem::OtherKind { found, expected }
    );
    let newer = Problem::Newer { found: 2, known: 1 };
    assert_eq!(problem(&at("newer"), &FIRST, &options), newer);
    assert_eq!(problem(&at("left"), &FIRST, &options), newer);
    assert_eq!(
        problem(&at("no/folder"), &FIRST, &options),
        Problem::NoFolder
    );
    let keep = Options {
        create: false,
        ..options
    };
    assert_eq!(problem(&at("nothing"), &FIRST, &keep), Problem::Missing);
    for name in ["text", "empty", "foreign", "newer", "nothing"] {
        open_reader(&at(name), &FIRST, Duration::ZERO).expect_err("readers refuse it too");
    }
    assert_eq!(contents(&folder), before);
}

#[test]
fn a_read_only_file_is_refused_also_for_root() {
    let folder = folder();
    let path = folder.path().join("x.dlq");
    drop(open(&path, &FIRST, &Options::default()).expect("makes the file"));
    let mut permissions = fs::metadata(&path).expect("is there").permissions();
    permissions.set_readonly(true);
    fs::set_permissions(&path, permissions).expect("ours");
    let before = contents(&folder);
    assert_eq!(
        problem(&path, &FIRST, &Options::default()),
        Problem::ReadOnly
    );
    assert_eq!(contents(&folder), before);
}

#[test]
fn an_older_version_is_brought_up_with_its_rows() {
    let folder = folder();
    let path = folder.path().join("x.dlq");
    let old = open(&path, &FIRST, &Options::default()).expect("makes the file");
    old.execute("INSERT INTO thing VALUES ('x')", [])
        .expect("a row");
    drop(old);
    for _ in 0..2 {
        let new = open(&path, &SECOND, &Options::default()).expect("migrates");
        let row: (String, String) = new
            .query_row("SELECT * FROM thing", [], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .expect("the row");
        assert_eq!(row, ("x".into(), "grey".into()));
        assert_eq!(pragma::<i64>(&new, "user_version"), 2);
    }
}

#[test]
fn a_step_that_fails_changes_nothing() {
    const BROKEN: Schema = Schema {
        steps: &[
            FIRST.steps[0],
            "CREATE TABLE half (x); INSERT INTO missing VALUES (1)",
        ],
        ..FIRST
    };
    let folder = folder();
    let path = folder.path().join("x.dlq");
    drop(open(&path, &FIRST, &Options::default()).expect("makes the file"));
    open(&path, &BROKEN, &Options::default()).expect_err("the step fails");
    let old = open(&path, &FIRST, &Options::default()).expect("still of the first version");
    let tables: i64 = old
        .query_row(
            "SELECT count(*) FROM sqlite_schema WHERE type = 'table'",
            [],
            |row| row.get(0),
        )
        .expect("a count");
    assert_eq!(tables, 1);
    // Nor does a file that cannot be made complete come into being.
    let other = folder.path().join("y.dlq");
    open(&other, &BROKEN, &Options::default()).expect_err("the step fails");
    assert!(contents(&folder).keys().all(|name| !name.contains("y.dlq")));
}

#[test]
fn eight_threads_that_make_one_file_share_it() {
    let folder = folder();
    let path = folder.path().join("x.dlq");
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let connection = open(&path, &FIRST, &Options::default()).expect("opens");
                connection
                    .execute("INSERT INTO thing VALUES ('x')", [])
                    .expect("a row");
            });
        }
    });
    let connection = open(&path, &FIRST, &Options::default()).expect("opens");
    let rows: i64 = connection
        .query_row("SELECT count(*) FROM thing", [], |row| row.get(0))
        .expect("a count");
    assert_eq!(rows, 8);
    drop(connection);
    assert_eq!(contents(&folder).len(), 1);
}

#[test]
fn a_lock_of_somebody_else_and_a_full_database_are_told_apart() {
    let folder = folder();
    let path = folder.path().join("x.dlq");
    let options = Options {
        busy_timeout: Duration::ZERO,
        ..Options::default()
    };
    let first = open(&path, &FIRST, &options).expect("opens");
    let second = open(&path, &FIRST, &options).expect("opens");
    let full: i64 = pragma(&second, "page_count");
    second
        .pragma_update(None, "max_page_count", full)
        .expect("a limit");
    first.execute_batch("BEGIN IMMEDIATE").expect("the lock");
    let insert = "INSERT INTO thing VALUES (hex(zeroblob(9999)))";
    let error = second.execute(insert, []).expect_err("locked");
    assert_eq!(Problem::from(error), Problem::Busy);
    first.execute_batch("ROLLBACK").expect("the lock is gone");
    let error = second.execute(insert, []).expect_err("full");
    assert_eq!(Problem::from(error), Problem::Full);
}

/// Its commits would be read into the new file, page by page.
#[test]
fn a_log_that_lost_its_file_is_not_taken_for_that_of_a_new_one() {
    let folder = tempfile::tempdir().expect("a folder for the test");
    let path = folder.path().join("x.db");
    let log = folder.path().join("x.db-wal");
    std::fs::write(&log, [1]).expect("a log");
    let opened = open(&path, &FIRST, &Options::default());
    let problem = opened.map(drop).map_err(|error| error.problem);
    assert_eq!(problem, Err(Problem::Orphan));
    assert!(!path.exists());
    // An empty one has nothing in it.
    std::fs::write(&log, []).expect("a log");
    open(&path, &FIRST, &Options::default()).expect("opens");
}
