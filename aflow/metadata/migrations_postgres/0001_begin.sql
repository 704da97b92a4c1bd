-- Runs of flows: their records, and the journals that their states are folded from.
-- Times are seconds since the epoch, UTC. JSON and msgpack are said beside the columns.
-- What is sorted by text is sorted by its bytes, as everywhere else.

CREATE TABLE flows (
    flow TEXT COLLATE "C" PRIMARY KEY,
    created_at DOUBLE PRECISION NOT NULL
);

CREATE TABLE runs (
    key BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    flow TEXT COLLATE "C" NOT NULL,
    run TEXT COLLATE "C" NOT NULL,
    state TEXT NOT NULL,
    user_name TEXT NOT NULL,
    created_at DOUBLE PRECISION NOT NULL,
    finished_at DOUBLE PRECISION,
    version BIGINT NOT NULL,
    written_by TEXT NOT NULL,   -- the mark of the latest commit: who lost its answer looks for it
    graph TEXT NOT NULL,        -- JSON
    settings TEXT NOT NULL,     -- JSON
    reason TEXT NOT NULL,
    heartbeat_at DOUBLE PRECISION,
    origin_run TEXT,
    kind TEXT NOT NULL,         -- empty, or 'spin', which lists of runs leave out
    UNIQUE (flow, run)
);

CREATE INDEX runs_newest ON runs (flow, kind, created_at, key);

CREATE TABLE run_tags (
    run_key BIGINT NOT NULL,
    tag TEXT COLLATE "C" NOT NULL,
    is_system BOOLEAN NOT NULL,
    PRIMARY KEY (run_key, tag)
);

CREATE TABLE steps (
    run_key BIGINT NOT NULL,
    step TEXT COLLATE "C" NOT NULL,
    created_at DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (run_key, step)
);

CREATE TABLE tasks (
    run_key BIGINT NOT NULL,
    task BIGINT NOT NULL,
    step TEXT COLLATE "C" NOT NULL,
    created_at DOUBLE PRECISION NOT NULL,
    split BIGINT,
    split_index BIGINT,
    inputs BYTEA NOT NULL,      -- scheduler/messages.py
    origin TEXT NOT NULL,       -- run/step/task, of the same flow
    cache_key BYTEA,
    PRIMARY KEY (run_key, task)
);

CREATE INDEX tasks_by_step ON tasks (run_key, step, task);
CREATE INDEX tasks_by_split ON tasks (run_key, split, split_index, task) WHERE split IS NOT NULL;
-- A key may be that of thousands of tasks, nearly all of them taken over: one that ran comes first.
CREATE INDEX tasks_by_cache_key ON tasks (cache_key, (origin = ''), run_key)
    WHERE cache_key IS NOT NULL;

CREATE TABLE attempts (
    run_key BIGINT NOT NULL,
    task BIGINT NOT NULL,
    attempt BIGINT NOT NULL,
    state TEXT NOT NULL,
    started_at DOUBLE PRECISION,
    finished_at DOUBLE PRECISION,
    reason TEXT NOT NULL,
    manifest BYTEA,             -- storage/artifacts.py
    log BYTEA,                  -- storage/logs.py
    log_chunks BIGINT NOT NULL,
    stdout_size BIGINT NOT NULL,
    stderr_size BIGINT NOT NULL,
    host TEXT NOT NULL,
    pid BIGINT,
    handle TEXT NOT NULL,
    max_rss BIGINT,
    cpu DOUBLE PRECISION,
    PRIMARY KEY (run_key, task, attempt)
);

CREATE TABLE metadata (
    run_key BIGINT NOT NULL,
    task BIGINT NOT NULL,
    number BIGINT GENERATED ALWAYS AS IDENTITY,
    attempt BIGINT NOT NULL,
    field TEXT NOT NULL,
    value TEXT NOT NULL,
    type TEXT NOT NULL,
    created_at DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (run_key, task, number)
);

CREATE TABLE journal (
    run_key BIGINT NOT NULL,
    version BIGINT NOT NULL,
    events BYTEA NOT NULL,      -- scheduler/messages.py
    PRIMARY KEY (run_key, version)
);
