-- name: add_flow
INSERT INTO flows (flow, created_at) VALUES (%s, %s) ON CONFLICT DO NOTHING

-- name: add_run
INSERT INTO runs (flow, run, state, user_name, created_at, finished_at, version, graph, settings, reason, heartbeat_at, origin_run, kind, written_by)
VALUES (%s, %s, %s, %s, %s, %s, 0, %s, %s, %s, %s, %s, %s, %s)
ON CONFLICT DO NOTHING RETURNING key

-- name: add_tag
INSERT INTO run_tags (run_key, tag, is_system) VALUES (%s, %s, %s) ON CONFLICT DO NOTHING

-- name: remove_tag
DELETE FROM run_tags WHERE run_key = %s AND tag = %s AND NOT is_system

-- name: advance
UPDATE runs SET version = version + 1, written_by = %s WHERE key = %s AND version = %s

-- name: update_run
UPDATE runs SET state = coalesce(%s, state), finished_at = coalesce(%s, finished_at), reason = coalesce(%s, reason)
WHERE key = %s

-- name: beat
UPDATE runs SET heartbeat_at = %s WHERE key = %s

-- name: acquire_lease
-- The column `owner` is the lease holder: stored databases have it by that name.
INSERT INTO leases (run_key, owner, until)
SELECT key, %s, extract(epoch FROM clock_timestamp()) + %s FROM runs WHERE key = %s AND state = 'running'
ON CONFLICT (run_key) DO UPDATE SET owner = excluded.owner, until = excluded.until
WHERE leases.owner = excluded.owner OR leases.until <= extract(epoch FROM clock_timestamp())

-- name: release_lease
UPDATE leases SET until = extract(epoch FROM clock_timestamp()) WHERE run_key = %s AND owner = %s

-- name: request_cancel
UPDATE leases SET cancel = coalesce(cancel, %s) WHERE run_key = %s

-- name: delete_leases
DELETE FROM leases WHERE run_key = %s

-- name: add_step
INSERT INTO steps (run_key, step, created_at) VALUES (%s, %s, %s) ON CONFLICT DO NOTHING

-- name: count_tasks
INSERT INTO task_counts (run_key, step, state, tasks) VALUES (%s, %s, %s, %s)
ON CONFLICT (run_key, step, state) DO UPDATE SET tasks = task_counts.tasks + excluded.tasks

-- name: step_ended
UPDATE steps SET finished_at = greatest(finished_at, %s), max_rss = greatest(max_rss, %s) WHERE run_key = %s AND step = %s

-- name: add_task
INSERT INTO tasks (run_key, task, step, created_at, split, split_index, inputs, origin, cache_key)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s)

-- name: put_attempt
INSERT INTO attempts (run_key, task, attempt, state, started_at, finished_at, reason, manifest, log, log_chunks, stdout_size, stderr_size, host, pid, handle, max_rss, cpu, changed)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
ON CONFLICT (run_key, task, attempt) DO UPDATE SET (state, started_at, finished_at, reason, manifest, log, log_chunks, stdout_size, stderr_size, host, pid, handle, max_rss, cpu, changed) =
  (excluded.state, excluded.started_at, excluded.finished_at, excluded.reason, excluded.manifest, excluded.log, excluded.log_chunks, excluded.stdout_size, excluded.stderr_size, excluded.host, excluded.pid, excluded.handle, excluded.max_rss, excluded.cpu, excluded.changed)

-- name: replace_log
UPDATE attempts SET log = %s, log_chunks = %s, stdout_size = %s, stderr_size = %s WHERE run_key = %s AND task = %s AND attempt = %s

-- name: add_metadata
INSERT INTO metadata (run_key, task, attempt, field, value, type, created_at) VALUES (%s, %s, %s, %s, %s, %s, %s)

-- name: add_events
INSERT INTO journal (run_key, version, events) VALUES (%s, %s, %s)

-- name: delete_journal
DELETE FROM journal WHERE run_key = %s

-- name: delete_metadata
DELETE FROM metadata WHERE run_key = %s

-- name: delete_attempts
DELETE FROM attempts WHERE run_key = %s

-- name: delete_task_counts
DELETE FROM task_counts WHERE run_key = %s

-- name: delete_tasks
DELETE FROM tasks WHERE run_key = %s

-- name: delete_steps
DELETE FROM steps WHERE run_key = %s

-- name: delete_run_tags
DELETE FROM run_tags WHERE run_key = %s

-- name: delete_run
DELETE FROM runs WHERE key = %s

-- name: delete_empty_flow
DELETE FROM flows WHERE flow = %(flow)s AND NOT EXISTS (SELECT 1 FROM runs WHERE runs.flow = %(flow)s)

-- name: lock_flow
-- So that a flow is not deleted with its last run while another run of it begins.
SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))

-- name: add_document
INSERT INTO documents (kind, name, version, data) VALUES (%s, %s, 1, %s) ON CONFLICT DO NOTHING

-- name: change_document
UPDATE documents SET version = version + 1, data = %s WHERE kind = %s AND name = %s AND version = %s

-- name: delete_document
DELETE FROM documents WHERE kind = %s AND name = %s

-- name: beat_worker
INSERT INTO workers (name, data, heartbeat_at, until)
VALUES (%s, %s, extract(epoch FROM clock_timestamp()), extract(epoch FROM clock_timestamp()) + %s)
ON CONFLICT (name) DO UPDATE SET data = excluded.data, heartbeat_at = excluded.heartbeat_at, until = excluded.until

-- name: drain_worker
UPDATE workers SET drain = coalesce(drain, %s) WHERE name = %s AND until > extract(epoch FROM clock_timestamp())

-- name: remove_worker
DELETE FROM workers WHERE name = %s

-- name: expire_workers
DELETE FROM workers WHERE name IN (
  SELECT name FROM workers WHERE until <= extract(epoch FROM clock_timestamp()) FOR UPDATE SKIP LOCKED)
