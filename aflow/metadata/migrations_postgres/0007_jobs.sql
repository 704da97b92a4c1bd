-- Attempts that have been handed to another executor and have not ended: of a hundred thousand jobs of
-- a run, some at a time.

CREATE INDEX attempts_handed ON attempts (run_key, task) WHERE handle <> '' AND state IN ('queued', 'running');
