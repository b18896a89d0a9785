-- The journal itself: one row, written with every commit that needs it.
CREATE TABLE journal (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    identity BLOB NOT NULL,         -- of this journal, part of the ids of its events
    reserved INTEGER NOT NULL,      -- sequence numbers up to here may have been given
    last_critical INTEGER NOT NULL, -- the last event of each level
    last_high INTEGER NOT NULL,
    last_normal INTEGER NOT NULL,
    last_low INTEGER NOT NULL,
    accepted REAL NOT NULL,         -- when the last event was accepted; never goes back
    deleted_through INTEGER NOT NULL, -- retention has let go of events up to here
    closed INTEGER NOT NULL,        -- 1: the owner ended in order
    checksum INTEGER NOT NULL
) STRICT;

-- Every event, one a row. Short columns come first: looking for an event need not read the texts.
CREATE TABLE event (
    sequence INTEGER PRIMARY KEY,
    previous INTEGER NOT NULL,      -- the event before it on its level: a lost row shows
    priority INTEGER NOT NULL,      -- 0 CRITICAL, 1 HIGH, 2 NORMAL, 3 LOW
    type TEXT NOT NULL,
    key TEXT,
    accepted REAL NOT NULL,
    timestamp REAL NOT NULL,
    due REAL,
    expires REAL,
    event_id TEXT,                  -- NULL: made of the journal's identity and the sequence
    source TEXT,                    -- NULL: the default
    headers TEXT,
    idempotency_key TEXT,
    digest BLOB,                    -- what duplicates are found by
    correlation_id TEXT,
    causation_id TEXT,
    data TEXT NOT NULL,
    checksum INTEGER NOT NULL
) STRICT;
-- Most events are NORMAL and need no index: the others are passed over.
CREATE INDEX event_by_priority ON event (priority) WHERE priority <> 2;

CREATE TABLE subscription (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    topics TEXT NOT NULL,           -- a JSON array of types and patterns
    created REAL NOT NULL,
    seen REAL NOT NULL,             -- when it was there for the last time
    checksum INTEGER NOT NULL
) STRICT;

-- Where each subscription is, per level: settled up to the position, and in the runs above it.
CREATE TABLE cursor (
    subscription INTEGER NOT NULL,
    priority INTEGER NOT NULL,
    position INTEGER NOT NULL,
    runs TEXT NOT NULL,             -- a JSON array of [from, to]
    checksum INTEGER NOT NULL,
    PRIMARY KEY (subscription, priority)
) STRICT, WITHOUT ROWID;

-- Deliveries that the cursor has left behind: they wait for a retry, a key or their time.
CREATE TABLE straggler (
    subscription INTEGER NOT NULL,
    priority INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    due REAL,
    state TEXT NOT NULL,            -- waiting, retry, suspect, redrive
    dead_letter TEXT,               -- of a redrive
    checksum INTEGER NOT NULL,
    PRIMARY KEY (subscription, priority, sequence)
) STRICT, WITHOUT ROWID;

-- Texts that were written together with events, such as how far an input was read.
CREATE TABLE bookmark (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL,
    checksum INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- What was noticed: rows that are gone, and rows that no longer had their checksum (kept below).
CREATE TABLE damage (
    what TEXT NOT NULL,             -- lost, damaged: an event; cursor: that of a subscription
    priority INTEGER NOT NULL,      -- -1: not known
    sequence INTEGER NOT NULL,      -- lost: after this one; cursor: the subscription
    through INTEGER NOT NULL,       -- lost: up to this one
    noticed REAL NOT NULL,
    PRIMARY KEY (what, priority, sequence)
) STRICT, WITHOUT ROWID;
CREATE TABLE event_damaged (
    sequence INTEGER PRIMARY KEY,
    previous, priority, type, key, accepted, timestamp, due, expires, event_id, source, headers,
    idempotency_key, digest, correlation_id, causation_id, data, checksum
);

-- For people, and described in README.md: what each subscription still has to do, what it comes
-- back to, and the events.
CREATE VIEW backlog AS
    SELECT s.name AS subscription,
        (SELECT count(*) FROM cursor c JOIN event e
            ON e.priority = c.priority AND e.sequence > c.position
            WHERE c.subscription = s.id AND EXISTS (
                SELECT 1 FROM json_each(s.topics) topic WHERE CASE
                    WHEN topic.value LIKE '%*%' THEN e.type GLOB replace(topic.value, '[!', '[^')
                    ELSE e.type = topic.value END)
            AND NOT EXISTS (SELECT 1 FROM json_each(c.runs) run
                WHERE e.sequence BETWEEN run.value ->> 0 AND run.value ->> 1)) AS waiting,
        (SELECT count(*) FROM straggler t WHERE t.subscription = s.id) AS stragglers,
        (SELECT min(position) FROM cursor c WHERE c.subscription = s.id) AS position,
        datetime(s.seen, 'unixepoch') AS seen
    FROM subscription s ORDER BY s.name;
CREATE VIEW stragglers AS
    SELECT s.name AS subscription, t.sequence,
        CASE t.priority WHEN 0 THEN 'CRITICAL' WHEN 1 THEN 'HIGH' WHEN 2 THEN 'NORMAL' ELSE 'LOW' END
            AS priority,
        e.type, e.key, t.state, t.attempt, datetime(t.due, 'unixepoch') AS due
    FROM straggler t JOIN subscription s ON s.id = t.subscription
        LEFT JOIN event e ON e.sequence = t.sequence ORDER BY s.name, t.sequence;
CREATE VIEW events AS
    SELECT sequence, datetime(accepted, 'unixepoch') AS accepted,
        CASE priority WHEN 0 THEN 'CRITICAL' WHEN 1 THEN 'HIGH' WHEN 2 THEN 'NORMAL' ELSE 'LOW' END
            AS priority,
        type, key, idempotency_key, data
    FROM event ORDER BY sequence;
