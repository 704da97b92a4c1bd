-- name: add_flow
INSERT INTO flows (flow, created_at) VALUES (?, ?) ON CONFLICT DO NOTHING

-- name: add_run
INSERT INTO runs (key, flow, run, state, user, created_at, finished_at, version, graph, settings, reason, heartbeat_at, origin_run, kind)
SELECT 1 + max(last_key, coalesce((SELECT max(key) FROM runs), 0)), ?, ?, ?, ?, ?, ?, 0, ?, ?, ?, ?, ?, ?
FROM retired_keys

-- name: add_tag
INSERT INTO run_tags (run_key, tag, is_system) VALUES (?, ?, ?) ON CONFLICT DO NOTHING

-- name: remove_tag
DELETE FROM run_tags WHERE run_key = ? AND tag = ? AND NOT is_system

-- name: advance
UPDATE runs SET version = version + 1, written_by = ? WHERE key = ? AND version = ?

-- name: update_run
UPDATE runs SET state = coalesce(?, state), finished_at = coalesce(?, finished_at), reason = coalesce(?, reason)
WHERE key = ?

-- name: beat
UPDATE runs SET heartbeat_at = ? WHERE key = ?

-- name: acquire_lease
-- The column `owner` is the lease holder: stored databases have it by that name.
INSERT INTO leases (run_key, owner, until)
SELECT key, ?, lease_now() + ? FROM runs WHERE key = ? AND state = 'running'
ON CONFLICT (run_key) DO UPDATE SET owner = excluded.owner, until = excluded.until
WHERE leases.owner = excluded.owner OR leases.until <= lease_now()

-- name: shorten_leases
UPDATE leases SET until = min(until, lease_now() + ?)

-- name: release_lease
UPDATE leases SET until = lease_now() WHERE run_key = ? AND owner = ?

-- name: request_cancel
UPDATE leases SET cancel = coalesce(cancel, ?) WHERE run_key = ?

-- name: delete_leases
DELETE FROM leases WHERE run_key = ?

-- name: add_step
INSERT INTO steps (run_key, step, created_at) VALUES (?, ?, ?) ON CONFLICT DO NOTHING

-- name: count_tasks
INSERT INTO task_counts (run_key, step, state, tasks) VALUES (?, ?, ?, ?)
ON CONFLICT (run_key, step, state) DO UPDATE SET tasks = task_counts.tasks + excluded.tasks

-- name: step_ended
UPDATE steps SET finished_at = nullif(max(coalesce(finished_at, 0), coalesce(?, 0)), 0),
  max_rss = nullif(max(coalesce(max_rss, 0), coalesce(?, 0)), 0)
WHERE run_key = ? AND step = ?

-- name: add_task
INSERT INTO tasks (run_key, task, step, created_at, split, split_index, inputs, origin, cache_key)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)

-- name: put_attempt
INSERT OR REPLACE INTO attempts (run_key, task, attempt, state, started_at, finished_at, reason, manifest, log, log_chunks, stdout_size, stderr_size, host, pid, handle, max_rss, cpu, changed)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)

-- name: replace_log
UPDATE attempts SET log = ?, log_chunks = ?, stdout_size = ?, stderr_size = ? WHERE run_key = ? AND task = ? AND attempt = ?

-- name: add_metadata
INSERT INTO metadata (run_key, task, number, attempt, field, value, type, created_at)
SELECT ?1, ?2, coalesce(max(number), 0) + 1, ?3, ?4, ?5, ?6, ?7 FROM metadata WHERE run_key = ?1 AND task = ?2

-- name: add_events
INSERT INTO journal (run_key, version, events) VALUES (?, ?, ?)

-- name: delete_journal
DELETE FROM journal WHERE run_key = ?

-- name: delete_metadata
DELETE FROM metadata WHERE run_key = ?

-- name: delete_attempts
DELETE FROM attempts WHERE run_key = ?

-- name: delete_task_counts
DELETE FROM task_counts WHERE run_key = ?

-- name: delete_tasks
DELETE FROM tasks WHERE run_key = ?

-- name: delete_steps
DELETE FROM steps WHERE run_key = ?

-- name: delete_run_tags
DELETE FROM run_tags WHERE run_key = ?

-- name: delete_run
DELETE FROM runs WHERE key = ?

-- name: retire_key
UPDATE retired_keys SET last_key = max(last_key, ?)

-- name: delete_empty_flow
DELETE FROM flows WHERE flow = ? AND NOT EXISTS (SELECT 1 FROM runs WHERE runs.flow = flows.flow)

-- name: add_document
INSERT INTO documents (kind, name, version, data) VALUES (?, ?, 1, ?) ON CONFLICT DO NOTHING

-- name: change_document
UPDATE documents SET version = version + 1, data = ? WHERE kind = ? AND name = ? AND version = ?

-- name: delete_document
DELETE FROM documents WHERE kind = ? AND name = ?

-- name: beat_worker
INSERT INTO workers (name, data, heartbeat_at, until)
VALUES (?, ?, lease_now(), lease_now() + ?)
ON CONFLICT (name) DO UPDATE SET data = excluded.data, heartbeat_at = excluded.heartbeat_at, until = excluded.until

-- name: shorten_workers
UPDATE workers SET until = min(until, lease_now() + ?)

-- name: drain_worker
UPDATE workers SET drain = coalesce(drain, ?) WHERE name = ? AND until > lease_now()

-- name: remove_worker
DELETE FROM workers WHERE name = ?

-- name: expire_workers
DELETE FROM workers WHERE until <= lease_now()
