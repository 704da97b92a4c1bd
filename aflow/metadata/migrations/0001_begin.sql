-- Runs of flows: their records, and the journals that their states are folded from.
-- Times are seconds since the epoch, UTC. JSON and msgpack are said beside the columns.

CREATE TABLE flows (
    flow TEXT PRIMARY KEY,
    created_at REAL NOT NULL
) WITHOUT ROWID;

CREATE TABLE runs (
    key INTEGER PRIMARY KEY,
    flow TEXT NOT NULL REFERENCES flows (flow),
    run TEXT NOT NULL,
    state TEXT NOT NULL,
    user TEXT NOT NULL,
    created_at REAL NOT NULL,
    finished_at REAL,
    version INTEGER NOT NULL,
    graph TEXT NOT NULL,        -- JSON
    settings TEXT NOT NULL,     -- JSON
    reason TEXT NOT NULL,
    heartbeat_at REAL,
    origin_run TEXT,
    UNIQUE (flow, run)
);

CREATE INDEX runs_newest ON runs (flow, created_at DESC, key DESC);

CREATE TABLE run_tags (
    run_key INTEGER NOT NULL,
    tag TEXT NOT NULL,
    is_system INTEGER NOT NULL,
    PRIMARY KEY (run_key, tag)
) WITHOUT ROWID;

CREATE TABLE steps (
    run_key INTEGER NOT NULL,
    step TEXT NOT NULL,
    created_at REAL NOT NULL,
    PRIMARY KEY (run_key, step)
) WITHOUT ROWID;

CREATE TABLE tasks (
    run_key INTEGER NOT NULL,
    task INTEGER NOT NULL,
    step TEXT NOT NULL,
    created_at REAL NOT NULL,
    split INTEGER,
    split_index INTEGER,
    inputs BLOB NOT NULL,       -- scheduler/messages.py
    PRIMARY KEY (run_key, task)
) WITHOUT ROWID;

CREATE INDEX tasks_by_step ON tasks (run_key, step, task);
CREATE INDEX tasks_by_split ON tasks (run_key, split, split_index) WHERE split IS NOT NULL;

-- The latest attempt has the greatest number: it is first in the key's order.
CREATE TABLE attempts (
    run_key INTEGER NOT NULL,
    task INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    state TEXT NOT NULL,
    started_at REAL,
    finished_at REAL,
    reason TEXT NOT NULL,
    manifest BLOB,              -- storage/artifacts.py
    log BLOB,                   -- storage/logs.py
    log_chunks INTEGER NOT NULL,
    stdout_size INTEGER NOT NULL,
    stderr_size INTEGER NOT NULL,
    host TEXT NOT NULL,
    pid INTEGER,
    handle TEXT NOT NULL,
    max_rss INTEGER,
    cpu REAL,
    PRIMARY KEY (run_key, task, attempt DESC)
) WITHOUT ROWID;

CREATE TABLE metadata (
    run_key INTEGER NOT NULL,
    task INTEGER NOT NULL,
    number INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    field TEXT NOT NULL,
    value TEXT NOT NULL,
    type TEXT NOT NULL,
    created_at REAL NOT NULL,
    PRIMARY KEY (run_key, task, number)
) WITHOUT ROWID;

CREATE TABLE journal (
    run_key INTEGER NOT NULL,
    version INTEGER NOT NULL,
    events BLOB NOT NULL,       -- scheduler/messages.py
    PRIMARY KEY (run_key, version)
) WITHOUT ROWID;
