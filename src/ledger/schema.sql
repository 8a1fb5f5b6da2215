-- The ledger: everything that was decided, in one file, committed together with the cursor it belongs to.
CREATE TABLE cursor (
    id              INTEGER PRIMARY KEY CHECK (id = 1),
    next_offset     INTEGER NOT NULL,   -- the first journal entry not yet applied
    now_ms          INTEGER NOT NULL    -- the rules' now after the last one applied
) STRICT;
INSERT INTO cursor VALUES (1, 0, 0);

-- Totals that survive restarts; the accounting terms are labelled by route.
CREATE TABLE counter (
    name            TEXT NOT NULL,
    label           TEXT NOT NULL,
    value           INTEGER NOT NULL,
    PRIMARY KEY (name, label)
) STRICT, WITHOUT ROWID;

-- Every configuration in force, from the journal entry that brought it.
CREATE TABLE configuration (
    journal_offset  INTEGER PRIMARY KEY,
    received_at_ms  INTEGER NOT NULL,
    hash            TEXT NOT NULL,
    content         TEXT NOT NULL
) STRICT;

-- One row per episode that was told; `body` is the alert as it is shown.
CREATE TABLE alert (
    id              TEXT PRIMARY KEY,
    operator        TEXT NOT NULL,
    unit            TEXT NOT NULL,
    sensor          TEXT,
    kind            TEXT NOT NULL,      -- of the series, or of the rule for a whole unit
    rule            TEXT NOT NULL,
    severity        TEXT NOT NULL,
    state           TEXT NOT NULL,
    handling        TEXT NOT NULL,
    jurisdiction    TEXT,
    category        TEXT,
    started_at_ms   INTEGER NOT NULL,
    fired_at_ms     INTEGER NOT NULL,
    resolved_at_ms  INTEGER,
    first_seq       INTEGER NOT NULL,   -- order in which episodes became known
    body            TEXT NOT NULL
) STRICT;
CREATE INDEX alert_by_series ON alert (operator, unit, rule, sensor, started_at_ms);
CREATE INDEX alert_by_fired ON alert (fired_at_ms DESC, id);

-- Every transition told, in order: what sinks write, streams show and the outbox delivers.
CREATE TABLE told (
    seq             INTEGER PRIMARY KEY AUTOINCREMENT,
    journal_offset  INTEGER NOT NULL,
    alert_id        TEXT NOT NULL,
    revision        INTEGER NOT NULL,
    state           TEXT NOT NULL,
    event_time_ms   INTEGER NOT NULL,
    superseded      INTEGER NOT NULL,   -- 1 where it rewrites a transition that an amendment took back
    value           REAL,
    body            TEXT NOT NULL
) STRICT;
CREATE INDEX told_by_alert ON told (alert_id, seq);

-- Deliveries not yet made; a row goes when the receiver has confirmed it.
CREATE TABLE outbox (
    seq             INTEGER PRIMARY KEY AUTOINCREMENT,
    channel         TEXT NOT NULL,
    destination     TEXT NOT NULL,
    payload         TEXT NOT NULL,
    journal_offset  INTEGER NOT NULL
) STRICT;

-- Messages of which something could not be used, once each, and what could not be used in them.
CREATE TABLE dead_message (
    journal_offset  INTEGER PRIMARY KEY,
    received_at_ms  INTEGER NOT NULL,
    route           TEXT NOT NULL,
    topic           BLOB NOT NULL,
    payload         BLOB NOT NULL,      -- of an oversize message the first 64 KiB
    length          INTEGER NOT NULL,   -- of the whole payload, in bytes
    sha256          TEXT,               -- of the whole payload, where it was cut
    redriven_at_ms  INTEGER
) STRICT;
CREATE TABLE dead_letter (
    id              INTEGER PRIMARY KEY AUTOINCREMENT,
    journal_offset  INTEGER NOT NULL REFERENCES dead_message ON DELETE CASCADE,
    item            INTEGER,            -- which reading of the message, from 0; null for all of it
    reason          TEXT NOT NULL,
    detail          TEXT NOT NULL
) STRICT;
CREATE INDEX dead_letter_by_message ON dead_letter (journal_offset);

-- Points that a series database would not take; they stay in the history.
CREATE TABLE refused (
    id              INTEGER PRIMARY KEY AUTOINCREMENT,
    sink            TEXT NOT NULL,
    line            TEXT NOT NULL,
    reason          TEXT NOT NULL,
    refused_at_ms   INTEGER NOT NULL,
    UNIQUE (sink, line)
) STRICT;

-- What decoding a message again cannot tell: which readings were conflicts, which time an untimed one was given.
CREATE TABLE exception (
    journal_offset  INTEGER NOT NULL,
    item            INTEGER NOT NULL,
    event_time_ms   INTEGER,            -- the time given, or null for a conflict
    PRIMARY KEY (journal_offset, item)
) STRICT, WITHOUT ROWID;

-- What devices say of themselves; judges nothing.
CREATE TABLE status (
    operator        TEXT NOT NULL,
    unit            TEXT NOT NULL,
    online          INTEGER NOT NULL,
    event_time_ms   INTEGER,
    received_at_ms  INTEGER NOT NULL,
    PRIMARY KEY (operator, unit)
) STRICT, WITHOUT ROWID;

-- How far each sink has safely got.
CREATE TABLE sink (
    name            TEXT PRIMARY KEY,
    next_offset     INTEGER NOT NULL,
    next_told       INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
