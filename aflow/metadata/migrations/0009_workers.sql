-- Workers that have registered: until when each is known without another heartbeat (seconds since
-- the epoch, by this database's clock), and why somebody wants it to be drained.

CREATE TABLE workers (
    name TEXT PRIMARY KEY,
    data TEXT NOT NULL,         -- JSON
    heartbeat_at REAL NOT NULL,
    until REAL NOT NULL,
    drain TEXT
) WITHOUT ROWID;

CREATE INDEX workers_by_end ON workers (until);
