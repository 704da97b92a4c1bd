-- Small documents of aflow's own beside the runs: tokens, schedules. The version counts changes.

CREATE TABLE documents (
    kind TEXT NOT NULL,
    name TEXT NOT NULL,
    version INTEGER NOT NULL,
    data BLOB NOT NULL,         -- JSON
    PRIMARY KEY (kind, name)
) WITHOUT ROWID;
