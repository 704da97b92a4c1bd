-- Tasks that were not run but taken over: from the origin of a resumed run, or from any run whose
-- task had the same cache key.

ALTER TABLE tasks ADD COLUMN origin TEXT NOT NULL DEFAULT '';  -- run/step/task, of the same flow
ALTER TABLE tasks ADD COLUMN cache_key BLOB;

-- Empty for runs of whole flows, 'spin' for those of one task, which lists of runs leave out.
ALTER TABLE runs ADD COLUMN kind TEXT NOT NULL DEFAULT '';

-- A key may be that of thousands of tasks, nearly all of them taken over: one that ran comes first.
CREATE INDEX tasks_by_cache_key ON tasks (cache_key, origin = '', run_key) WHERE cache_key IS NOT NULL;
