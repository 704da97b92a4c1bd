-- What clients have registered: the rows of Metaflow's metadata service, each said once. What a task
-- or an artifact has in common with its run (flow, tags) is the run's, and is not repeated.
-- `ts_epoch` is in milliseconds, `last_heartbeat_ts` in seconds since the epoch, UTC; tags are JSON.

CREATE TABLE service_flows (
    flow_id TEXT PRIMARY KEY,
    user_name TEXT,
    ts_epoch BIGINT NOT NULL,
    tags TEXT NOT NULL,
    system_tags TEXT NOT NULL
);

CREATE TABLE service_runs (
    run_number {serial},
    flow_id TEXT NOT NULL REFERENCES service_flows (flow_id),
    run_id TEXT,                -- the name that the client gave, if it did
    user_name TEXT,
    ts_epoch BIGINT NOT NULL,
    last_heartbeat_ts BIGINT,
    tags TEXT NOT NULL,
    system_tags TEXT NOT NULL
);
-- Without those that have no name: an index that holds all of a list, and not in its order, is one
-- that PostgreSQL may choose to sort the whole list for each page.
CREATE UNIQUE INDEX service_runs_by_name ON service_runs (flow_id, run_id)
    WHERE run_id IS NOT NULL;
CREATE INDEX service_runs_of_flow ON service_runs (flow_id, run_number);

CREATE TABLE service_steps (
    run_number BIGINT NOT NULL,
    step_name TEXT NOT NULL,
    user_name TEXT,
    ts_epoch BIGINT NOT NULL,
    PRIMARY KEY (run_number, step_name)
);

CREATE TABLE service_tasks (
    task_id {serial},
    run_number BIGINT NOT NULL,
    step_name TEXT NOT NULL,
    task_name TEXT,             -- the name that the client gave, if it did
    user_name TEXT,
    ts_epoch BIGINT NOT NULL,
    last_heartbeat_ts BIGINT
);
CREATE UNIQUE INDEX service_tasks_by_name ON service_tasks (run_number, step_name, task_name)
    WHERE task_name IS NOT NULL;
CREATE INDEX service_tasks_of_step ON service_tasks (run_number, step_name, task_id);

CREATE TABLE service_metadata (
    id {serial},
    run_number BIGINT NOT NULL,
    step_name TEXT NOT NULL,
    task_id BIGINT NOT NULL,
    field_name TEXT NOT NULL,
    value TEXT,
    type TEXT,
    user_name TEXT,
    ts_epoch BIGINT NOT NULL
);
CREATE INDEX service_metadata_of_task ON service_metadata (task_id, id);
CREATE INDEX service_metadata_of_run ON service_metadata (run_number, id);

CREATE TABLE service_artifacts (
    number {serial},
    run_number BIGINT NOT NULL,
    step_name TEXT NOT NULL,
    task_id BIGINT NOT NULL,
    attempt_id INTEGER NOT NULL,
    name TEXT NOT NULL,
    location TEXT,
    ds_type TEXT,
    sha TEXT,
    type TEXT,
    content_type TEXT,
    user_name TEXT,
    ts_epoch BIGINT NOT NULL,
    UNIQUE (task_id, attempt_id, name)
);
CREATE INDEX service_artifacts_of_step ON service_artifacts (run_number, step_name, number);
CREATE INDEX service_artifacts_of_run ON service_artifacts (run_number, number);
