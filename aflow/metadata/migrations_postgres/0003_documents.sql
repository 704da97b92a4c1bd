-- Small documents of aflow's own beside the runs: tokens, schedules. The version counts changes.

CREATE TABLE documents (
    kind TEXT COLLATE "C" NOT NULL,
    name TEXT COLLATE "C" NOT NULL,
    version BIGINT NOT NULL,
    data BYTEA NOT NULL,        -- JSON
    PRIMARY KEY (kind, name)
);
