-- Workers that have registered: until when each is known without another heartbeat (seconds since
-- the epoch, by this server's clock), and why somebody wants it to be drained.

CREATE TABLE workers (
    name TEXT COLLATE "C" PRIMARY KEY,
    data TEXT NOT NULL,         -- JSON
    heartbeat_at DOUBLE PRECISION NOT NULL,
    until DOUBLE PRECISION NOT NULL,
    drain TEXT
);

CREATE INDEX workers_by_end ON workers (until);
