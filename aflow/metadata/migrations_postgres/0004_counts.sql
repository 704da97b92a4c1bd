-- How many tasks of a step are in each state, kept by the commit that changes it, so that nobody
-- counts tasks to show a run; and which commit wrote an attempt last, so that a reader of many
-- tasks asks for what has changed alone.

CREATE TABLE task_counts (
    run_key BIGINT NOT NULL,
    step TEXT COLLATE "C" NOT NULL,
    state TEXT NOT NULL,        -- of the latest attempt; empty for a task without one
    tasks BIGINT NOT NULL,
    PRIMARY KEY (run_key, step, state)
);

INSERT INTO task_counts (run_key, step, state, tasks)
SELECT t.run_key, t.step, coalesce(a.state, ''), count(*)
FROM tasks t LEFT JOIN LATERAL (
    SELECT * FROM attempts WHERE run_key = t.run_key AND task = t.task ORDER BY attempt DESC LIMIT 1
  ) a ON true
WHERE t.step <> '_parameters' GROUP BY 1, 2, 3;

ALTER TABLE steps ADD COLUMN finished_at DOUBLE PRECISION;  -- when the last attempt that has ended did

UPDATE steps SET finished_at = (
  SELECT max(a.finished_at) FROM tasks t JOIN attempts a ON a.run_key = t.run_key AND a.task = t.task
  WHERE t.run_key = steps.run_key AND t.step = steps.step);

ALTER TABLE attempts ADD COLUMN changed BIGINT NOT NULL DEFAULT 0;  -- version of the run

CREATE INDEX attempts_by_change ON attempts (run_key, changed);
CREATE INDEX runs_newest_of_all ON runs (kind, created_at, key);
