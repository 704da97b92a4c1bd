-- name: journal
SELECT version, events FROM journal WHERE run_key = :run_key AND version > :after ORDER BY version

-- name: cancel
SELECT cancel FROM leases WHERE run_key = :run_key

-- name: orphaned
SELECT flow, run FROM leases JOIN runs ON runs.key = leases.run_key
WHERE until <= lease_now() AND substr(owner, 1, length(:kind) + 1) = :kind || '/'
ORDER BY until LIMIT :limit

-- name: flows
SELECT flow, created_at FROM flows ORDER BY created_at DESC, flow

-- name: run
SELECT key, flow, run, state, user, created_at, finished_at, version, graph, settings, reason, heartbeat_at, origin_run, kind,
  owner, until - lease_now(), cancel
FROM runs LEFT JOIN leases ON leases.run_key = runs.key WHERE flow = :flow AND run = :run

-- name: run_exists
SELECT 1 FROM runs WHERE key = :run_key

-- name: _listed_run
SELECT key, flow, run, state, user, created_at, finished_at, version, '{}', settings, reason, heartbeat_at, origin_run, kind,
  owner, until - lease_now(), cancel
FROM runs LEFT JOIN leases ON leases.run_key = runs.key

-- name: _runs_filtered
-- (One upper bound of the time is for the index; unary + keeps the others from it. The first tags
-- have conditions of their own: a table of wanted tags for each run takes twice as long.)
kind = :kind AND created_at >= coalesce(:since, -9e999)
  AND created_at <= min(coalesce(:until, 9e999), coalesce(:after_time, 9e999))
  AND +created_at < coalesce(:until, 9e999)
  AND (:after_key IS NULL OR (+created_at, +key) < (:after_time, :after_key))
  AND (:states = '[]' OR state IN (SELECT value FROM json_each(:states)))
  AND (:users = '[]' OR user IN (SELECT value FROM json_each(:users)))
  {_runs_tagged}
ORDER BY created_at DESC, key DESC LIMIT coalesce(:limit, -1)

-- name: _runs_tagged
AND (:tag IS NULL OR EXISTS (SELECT 1 FROM run_tags WHERE run_key = runs.key AND tag = :tag))
  AND (:second_tag IS NULL OR EXISTS (SELECT 1 FROM run_tags WHERE run_key = runs.key AND tag = :second_tag))
  AND (:more_tags = '[]' OR NOT EXISTS (
    SELECT 1 FROM json_each(:more_tags) AS wanted
    WHERE NOT EXISTS (SELECT 1 FROM run_tags WHERE run_key = runs.key AND tag = wanted.value)))

-- name: runs
{_listed_run}
WHERE flow = :flow AND {_runs_filtered}

-- name: all_runs
{_listed_run}
WHERE {_runs_filtered}

-- name: runs_with_tag
SELECT run_key FROM run_tags WHERE tag = :tag LIMIT :limit

-- name: runs_of_keys
-- (Of few runs: looked up by their keys, and sorted.)
{_listed_run}
WHERE key IN (SELECT value FROM json_each(:keys)) AND (:flow IS NULL OR +flow = :flow)
  AND +kind = :kind AND +created_at >= coalesce(:since, -9e999) AND +created_at < coalesce(:until, 9e999)
  AND (:after_key IS NULL OR (+created_at, +key) < (:after_time, :after_key))
  AND (:states = '[]' OR +state IN (SELECT value FROM json_each(:states)))
  AND (:users = '[]' OR +user IN (SELECT value FROM json_each(:users)))
  {_runs_tagged}
ORDER BY +created_at DESC, key DESC LIMIT coalesce(:limit, -1)

-- name: tags
SELECT run_key, tag, is_system FROM run_tags
WHERE run_key IN (SELECT value FROM json_each(:run_keys)) ORDER BY run_key, tag

-- name: tags_of_run
SELECT tag, is_system FROM run_tags WHERE run_key = :run_key ORDER BY tag

-- name: steps
SELECT step, created_at,
  (SELECT count(*) FROM tasks WHERE tasks.run_key = steps.run_key AND tasks.step = steps.step)
FROM steps WHERE run_key = :run_key AND step <> '_parameters' ORDER BY created_at DESC, step

-- name: _latest
attempts a ON a.run_key = t.run_key AND a.task = t.task AND a.attempt =
    (SELECT max(attempt) FROM attempts WHERE run_key = t.run_key AND task = t.task)

-- name: tasks
SELECT {columns} FROM tasks t LEFT JOIN {_latest}
WHERE t.run_key = :run_key AND t.task > :after ORDER BY t.task LIMIT coalesce(:limit, -1)

-- name: tasks_of_step
-- (Left alone, SQLite prefers the primary key, and would read all tasks of the run.)
SELECT {columns} FROM tasks t INDEXED BY tasks_by_step LEFT JOIN {_latest}
WHERE t.run_key = :run_key AND t.step = :step AND t.task > :after ORDER BY t.task LIMIT coalesce(:limit, -1)

-- name: newest_tasks
SELECT {columns} FROM tasks t LEFT JOIN {_latest}
WHERE t.run_key = :run_key AND t.task < :before
  AND (:states = '[]' OR coalesce(a.state, '') IN (SELECT value FROM json_each(:states)))
ORDER BY t.task DESC LIMIT coalesce(:limit, -1)

-- name: newest_tasks_of_step
SELECT {columns} FROM tasks t INDEXED BY tasks_by_step LEFT JOIN {_latest}
WHERE t.run_key = :run_key AND t.step = :step AND t.task < :before
  AND (:states = '[]' OR coalesce(a.state, '') IN (SELECT value FROM json_each(:states)))
ORDER BY t.task DESC LIMIT coalesce(:limit, -1)

-- name: progress
SELECT s.step, s.created_at, c.state, c.tasks, s.finished_at, s.max_rss
FROM steps s JOIN task_counts c ON c.run_key = s.run_key AND c.step = s.step
WHERE s.run_key = :run_key AND s.step <> '_parameters' AND c.tasks > 0 ORDER BY s.created_at, s.step

-- name: tasks_of_split
SELECT {columns} FROM tasks t LEFT JOIN {_latest}
WHERE t.run_key = :run_key AND t.split = :split AND t.split_index > :after
  AND (:steps = '[]' OR t.step IN (SELECT value FROM json_each(:steps)))
ORDER BY t.split_index, t.task LIMIT coalesce(:limit, -1)

-- name: task_columns
-- (An attempt that is not the latest one is left out.)
SELECT t.task, t.step, t.created_at, a.started_at, a.finished_at, a.state, a.attempt, t.origin <> '', a.host, a.pid
FROM attempts a JOIN tasks t ON t.run_key = a.run_key AND t.task = a.task
WHERE a.run_key = :run_key AND a.changed > :after AND t.step <> '_parameters'
  AND NOT EXISTS (SELECT 1 FROM attempts n WHERE n.run_key = a.run_key AND n.task = a.task AND n.attempt > a.attempt)

-- name: all_task_columns
-- (In the order of the primary key, where the latest attempt of a task stands before the others:
-- a reader takes the first one. This is faster by a third than to look for later ones.)
SELECT t.task, t.step, t.created_at, a.started_at, a.finished_at, a.state, a.attempt, t.origin <> '', a.host, a.pid
FROM attempts a JOIN tasks t ON t.run_key = a.run_key AND t.task = a.task
WHERE a.run_key = :run_key AND t.step <> '_parameters' ORDER BY a.task, a.attempt DESC

-- name: latest_states
SELECT t.task, t.step, a.attempt, a.state FROM tasks t LEFT JOIN {_latest}
WHERE t.run_key = :run_key AND t.task IN (SELECT value FROM json_each(:tasks))

-- name: task
SELECT {columns} FROM tasks t LEFT JOIN attempts a
  ON a.run_key = t.run_key AND a.task = t.task AND a.attempt = coalesce(:attempt,
    (SELECT max(attempt) FROM attempts WHERE run_key = t.run_key AND task = t.task))
WHERE t.run_key = :run_key AND t.task = :task

-- name: manifests
SELECT a.task, a.manifest FROM attempts a
WHERE a.run_key = :run_key AND a.task IN (SELECT value FROM json_each(:tasks))
  AND a.state IN ('succeeded', 'running') AND a.manifest IS NOT NULL
  AND a.attempt = (SELECT max(attempt) FROM attempts WHERE run_key = :run_key AND task = a.task)

-- name: split_manifests
-- A switch that loops leaves several tasks for one item: the last one went on to the join. (Beside
-- max(), SQLite takes the other columns from the row that has it.)
SELECT t.split_index, max(t.task), t.step, a.manifest FROM tasks t INDEXED BY tasks_by_split
JOIN {_latest}
WHERE t.run_key = :run_key AND t.split = :split AND t.split_index >= :start
  AND t.step IN (SELECT value FROM json_each(:steps))
  AND a.state = 'succeeded' AND a.manifest IS NOT NULL
GROUP BY t.split_index ORDER BY t.split_index LIMIT coalesce(:limit, -1)

-- name: attempts
SELECT task, attempt, state, started_at, finished_at, reason, manifest, log, log_chunks, stdout_size, stderr_size, host, pid, handle, max_rss, cpu
FROM attempts WHERE run_key = :run_key AND task = :task ORDER BY attempt

-- name: cached
-- Of several tasks with the key that succeeded, the latest that ran; else the latest of all.
SELECT runs.run, t.step, t.task, t.run_key, a.manifest FROM tasks t
JOIN {_latest}
JOIN runs ON runs.key = t.run_key
WHERE t.cache_key = :key AND runs.flow = :flow AND a.state = 'succeeded' AND a.manifest IS NOT NULL
ORDER BY t.origin = '' DESC, t.run_key DESC LIMIT 1

-- name: metadata
SELECT task, attempt, field, value, type, created_at FROM metadata
WHERE run_key = :run_key AND task = :task ORDER BY number

-- name: all_manifests
SELECT task, manifest FROM attempts
WHERE run_key = :run_key AND task > :after AND manifest IS NOT NULL ORDER BY task LIMIT coalesce(:limit, -1)

-- name: name_of_run
SELECT flow, run FROM runs WHERE key = :run_key

-- name: written_by
SELECT written_by FROM runs WHERE key = :run_key AND version = :version

-- name: documents
SELECT name, version, data FROM documents WHERE kind = :kind ORDER BY name

-- name: document
SELECT name, version, data FROM documents WHERE kind = :kind AND name = :document

-- name: workers
SELECT name, data, heartbeat_at, until - lease_now(), drain FROM workers
WHERE until > lease_now() ORDER BY name

-- name: drain_of_worker
SELECT drain FROM workers WHERE name = :worker

-- name: live_counts
SELECT step, state, tasks FROM task_counts
WHERE run_key = :run_key AND tasks > 0 AND state IN ('queued', 'running') ORDER BY step, state

-- name: handed
-- (The states are written out: only so is the index of handed attempts used.)
SELECT a.task, t.step, a.attempt, a.state, t.created_at, a.started_at, a.handle, a.host
FROM attempts a JOIN tasks t ON t.run_key = a.run_key AND t.task = a.task
WHERE a.run_key = :run_key AND a.handle <> '' AND a.state IN ('queued', 'running') AND a.task > :after
  AND (:step IS NULL OR +t.step = :step)
ORDER BY a.task LIMIT :limit
