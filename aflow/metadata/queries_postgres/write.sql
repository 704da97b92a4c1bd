-- name: add_run
INSERT INTO runs (flow, run, state, user_name, created_at, finished_at, version, graph, settings, reason, heartbeat_at, origin_run, kind, written_by)
VALUES (%s, %s, %s, %s, %s, %s, 0, %s, %s, %s, %s, %s, %s, %s)
ON CONFLICT DO NOTHING RETURNING key

-- name: acquire_lease
-- The run is locked before its lease, as by a commit: the one that ends the run deletes the lease.
INSERT INTO leases (run_key, owner, until)
SELECT key, %s, extract(epoch FROM clock_timestamp()) + %s FROM runs WHERE key = %s AND state = 'running'
FOR NO KEY UPDATE
ON CONFLICT (run_key) DO UPDATE SET owner = excluded.owner, until = excluded.until
WHERE leases.owner = excluded.owner OR leases.until <= extract(epoch FROM clock_timestamp())

-- name: step_ended
UPDATE steps SET finished_at = greatest(finished_at, %s), max_rss = greatest(max_rss, %s) WHERE run_key = %s AND step = %s

-- name: put_attempt
INSERT INTO attempts (run_key, task, attempt, state, started_at, finished_at, reason, manifest, log, log_chunks, stdout_size, stderr_size, host, pid, handle, max_rss, cpu, changed)
VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s)
ON CONFLICT (run_key, task, attempt) DO UPDATE SET (state, started_at, finished_at, reason, manifest, log, log_chunks, stdout_size, stderr_size, host, pid, handle, max_rss, cpu, changed) =
  (excluded.state, excluded.started_at, excluded.finished_at, excluded.reason, excluded.manifest, excluded.log, excluded.log_chunks, excluded.stdout_size, excluded.stderr_size, excluded.host, excluded.pid, excluded.handle, excluded.max_rss, excluded.cpu, excluded.changed)

-- name: add_metadata
INSERT INTO metadata (run_key, task, attempt, field, value, type, created_at) VALUES (%s, %s, %s, %s, %s, %s, %s)

-- name: lock_flow
-- So that a flow is not deleted with its last run while another run of it begins.
SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))

-- name: expire_workers
DELETE FROM workers WHERE name IN (
  SELECT name FROM workers WHERE until <= extract(epoch FROM clock_timestamp()) FOR UPDATE SKIP LOCKED)
