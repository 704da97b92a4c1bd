-- Who drives a run that goes on, until when (seconds since the epoch, by this server's clock), and
-- why somebody wants it to stop. The row goes with the end of the run.

CREATE TABLE leases (
    run_key BIGINT PRIMARY KEY,
    owner TEXT COLLATE "C" NOT NULL,
    until DOUBLE PRECISION NOT NULL,
    cancel TEXT
);

CREATE INDEX leases_by_end ON leases (until);
