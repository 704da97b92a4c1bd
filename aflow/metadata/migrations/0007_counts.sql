-- How many tasks of a step are in each state, kept by the commit that changes it, so that nobody
-- counts tasks to show a run; and which commit wrote an attempt last, so that a reader of many
-- tasks asks for what has changed alone.

CREATE TABLE task_counts (
    run_key INTEGER NOT NULL,
    step TEXT NOT NULL,
    state TEXT NOT NULL,        -- of the latest attempt; empty for a task without one
    tasks INTEGER NOT NULL,
    PRIMARY KEY (run_key, step, state)
) WITHOUT ROWID;

INSERT INTO task_counts (run_key, step, state, tasks)
SELECT t.run_key, t.step, coalesce(a.state, ''), count(*)
FROM tasks t LEFT JOIN attempts a
  ON a.run_key = t.run_key AND a.task = t.task AND a.attempt =
    (SELECT max(attempt) FROM attempts WHERE run_key = t.run_key AND task = t.task)
WHERE t.step <> '_parameters' GROUP BY 1, 2, 3;

ALTER TABLE steps ADD COLUMN finished_at REAL;  -- when the last attempt that has ended did

UPDATE steps SET finished_at = (
  SELECT max(a.finished_at) FROM tasks t JOIN attempts a ON a.run_key = t.run_key AND a.task = t.task
  WHERE t.run_key = steps.run_key AND t.step = steps.step);

ALTER TABLE attempts ADD COLUMN changed INTEGER NOT NULL DEFAULT 0;  -- version of the run

CREATE INDEX attempts_by_change ON attempts (run_key, changed);
CREATE INDEX runs_newest_of_all ON runs (kind, created_at DESC, key DESC);
