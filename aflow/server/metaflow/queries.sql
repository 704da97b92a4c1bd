-- name: flow
SELECT flow_id, user_name, ts_epoch, tags, system_tags FROM service_flows WHERE flow_id = ?

-- name: flows
SELECT flow_id, user_name, ts_epoch, tags, system_tags FROM service_flows f

-- name: add_flow
INSERT INTO service_flows (flow_id, user_name, ts_epoch, tags, system_tags) VALUES (?, ?, ?, ?, ?)
ON CONFLICT DO NOTHING

-- name: run_by_number
SELECT run_number, run_id, user_name, ts_epoch, last_heartbeat_ts, tags, system_tags
FROM service_runs WHERE flow_id = ? AND run_number = ?

-- name: run_by_name
SELECT run_number, run_id, user_name, ts_epoch, last_heartbeat_ts, tags, system_tags
FROM service_runs WHERE flow_id = ? AND run_id = ?

-- name: runs
SELECT run_number, run_id, user_name, ts_epoch, last_heartbeat_ts, tags, system_tags
FROM service_runs r

-- name: add_run
INSERT INTO service_runs (flow_id, run_id, user_name, ts_epoch, tags, system_tags)
VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING RETURNING run_number

-- name: beat_run
UPDATE service_runs SET last_heartbeat_ts = ? WHERE run_number = ?

-- name: lock_tags
SELECT tags, system_tags FROM service_runs WHERE run_number = ? {for_update}

-- name: set_tags
UPDATE service_runs SET tags = ? WHERE run_number = ?

-- name: step
SELECT step_name, user_name, ts_epoch FROM service_steps WHERE run_number = ? AND step_name = ?

-- name: steps
SELECT step_name, user_name, ts_epoch FROM service_steps s

-- name: add_step
INSERT INTO service_steps (run_number, step_name, user_name, ts_epoch) VALUES (?, ?, ?, ?)
ON CONFLICT DO NOTHING

-- name: task_by_number
SELECT task_id, task_name, step_name, user_name, ts_epoch, last_heartbeat_ts
FROM service_tasks WHERE run_number = ? AND step_name = ? AND task_id = ?

-- name: task_by_name
SELECT task_id, task_name, step_name, user_name, ts_epoch, last_heartbeat_ts
FROM service_tasks WHERE run_number = ? AND step_name = ? AND task_name = ?

-- name: tasks
SELECT task_id, task_name, step_name, user_name, ts_epoch, last_heartbeat_ts FROM service_tasks t

-- name: add_task
INSERT INTO service_tasks (run_number, step_name, task_name, user_name, ts_epoch)
VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING RETURNING task_id

-- name: beat_task
UPDATE service_tasks SET last_heartbeat_ts = ? WHERE task_id = ?

-- name: metadata
SELECT m.id, m.step_name, m.task_id, t.task_name, m.field_name, m.value, m.type, m.user_name, m.ts_epoch
FROM service_metadata m JOIN service_tasks t ON t.task_id = m.task_id

-- name: add_metadata
INSERT INTO service_metadata (run_number, step_name, task_id, field_name, value, type, user_name, ts_epoch)
VALUES (?, ?, ?, ?, ?, ?, ?, ?)

-- name: artifacts
SELECT a.number, a.step_name, a.task_id, t.task_name, a.name, a.location, a.ds_type, a.sha, a.type, a.content_type, a.user_name, a.attempt_id, a.ts_epoch
FROM service_artifacts a JOIN service_tasks t ON t.task_id = a.task_id

-- name: latest_attempt
a.attempt_id = (SELECT max(attempt_id) FROM service_artifacts WHERE task_id = a.task_id)

-- name: add_artifact
INSERT INTO service_artifacts (run_number, step_name, task_id, attempt_id, name, location, ds_type, sha, type, content_type, user_name, ts_epoch)
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING

-- name: with_metadata
EXISTS (SELECT 1 FROM service_metadata m WHERE m.task_id = t.task_id
  AND (CAST(? AS TEXT) IS NULL OR m.field_name = ?)
  AND (CAST(? AS TEXT) IS NULL OR m.value {matches} ?))

-- name: completed
EXISTS (SELECT 1 FROM service_metadata m WHERE m.run_number = r.run_number
  AND m.step_name = 'end' AND m.field_name = 'attempt_ok' AND lower(m.value) = 'true')
