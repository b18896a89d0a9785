-- Dead letters, one a row. Short columns come first, so that filters need not read the texts.
CREATE TABLE dead_letter (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    type TEXT NOT NULL,
    subscription TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    exception_type TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    first_failure REAL NOT NULL,
    last_failure REAL NOT NULL,
    lease_holder INTEGER,
    lease_until REAL,
    redrivable_in_process_only INTEGER NOT NULL,
    handler TEXT NOT NULL,
    event_id TEXT NOT NULL,
    sequence INTEGER,
    timestamp REAL NOT NULL,
    source TEXT NOT NULL,
    priority INTEGER NOT NULL,
    key TEXT,
    headers TEXT,
    idempotency_key TEXT,
    correlation_id TEXT,
    causation_id TEXT,
    message TEXT NOT NULL,
    traceback TEXT NOT NULL,
    data TEXT NOT NULL,
    checksum INTEGER NOT NULL
) STRICT;

-- Rows that no longer had their checksum, as they were found.
CREATE TABLE dead_letter_damaged (
    position INTEGER PRIMARY KEY,
    id, type, subscription, fingerprint, exception_type, attempts, first_failure, last_failure,
    lease_holder, lease_until, redrivable_in_process_only, handler, event_id, sequence, timestamp,
    source, priority, key, headers, idempotency_key, correlation_id, causation_id,
    message, traceback, data, checksum
);

-- Counts since the queue was made. Entries are counted by the triggers.
CREATE TABLE dead_letter_total (
    name TEXT PRIMARY KEY,
    value INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
INSERT INTO dead_letter_total VALUES ('entries', 0), ('dropped', 0), ('expired', 0), ('damaged', 0);
CREATE TRIGGER dead_letter_came AFTER INSERT ON dead_letter BEGIN
    UPDATE dead_letter_total SET value = value + 1 WHERE name = 'entries';
END;
CREATE TRIGGER dead_letter_left AFTER DELETE ON dead_letter BEGIN
    UPDATE dead_letter_total SET value = value - 1 WHERE name = 'entries';
END;

-- Older stores that were taken over.
CREATE TABLE dead_letter_import (
    name TEXT PRIMARY KEY
) STRICT, WITHOUT ROWID;

-- For people: SELECT * FROM dead_letters; SELECT * FROM failures.
CREATE VIEW dead_letters AS
    SELECT id, type, subscription, exception_type, attempts,
        datetime(first_failure, 'unixepoch') AS first_failure,
        datetime(last_failure, 'unixepoch') AS last_failure,
        fingerprint, message, data
    FROM dead_letter ORDER BY position;
CREATE VIEW failures AS
    SELECT fingerprint, subscription, exception_type, count(*) AS dead_letters,
        datetime(min(first_failure), 'unixepoch') AS first_failure,
        datetime(max(last_failure), 'unixepoch') AS last_failure
    FROM dead_letter GROUP BY fingerprint, subscription, exception_type ORDER BY count(*) DESC;
