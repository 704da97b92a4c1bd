-- name: orphaned
SELECT flow, run FROM leases JOIN runs ON runs.key = leases.run_key
WHERE until <= extract(epoch FROM clock_timestamp()) AND starts_with(owner, %(kind)s || '/')
ORDER BY until LIMIT %(limit)s

-- name: run
SELECT key, flow, run, state, user_name, created_at, finished_at, version, graph, settings, reason, heartbeat_at, origin_run, kind,
  owner, until - extract(epoch FROM clock_timestamp()), cancel
FROM runs LEFT JOIN leases ON leases.run_key = runs.key WHERE flow = %(flow)s AND run = %(run)s

-- name: run_exists
SELECT 1 FROM runs WHERE key = %(run_key)s FOR UPDATE

-- name: _listed_run
SELECT key, flow, run, state, user_name, created_at, finished_at, version, '{}', settings, reason, heartbeat_at, origin_run, kind,
  owner, until - extract(epoch FROM clock_timestamp()), cancel

-- name: _runs_filtered
-- A run's tags are probed one run after another, up to the limit: of EXISTS the server may make a
-- table of all runs with the tag first.
kind = %(kind)s
  AND created_at >= coalesce(%(since)s::float8, '-infinity')
  AND created_at <= coalesce(%(after_time)s::float8, 'infinity')
  AND created_at < coalesce(%(until)s::float8, 'infinity')
  AND (%(after_key)s::bigint IS NULL OR (created_at, key) < (%(after_time)s::float8, %(after_key)s::bigint))
  AND (cardinality(%(states)s::text[]) = 0 OR state = ANY (%(states)s::text[]))
  AND (cardinality(%(users)s::text[]) = 0 OR user_name = ANY (%(users)s::text[]))
  AND (%(tag)s::text IS NULL OR (SELECT true FROM run_tags WHERE run_key = runs.key AND tag = %(tag)s::text))
  AND (%(second_tag)s::text IS NULL OR (SELECT true FROM run_tags WHERE run_key = runs.key AND tag = %(second_tag)s::text))
  AND (cardinality(%(more_tags)s::text[]) = 0 OR NOT EXISTS (
    SELECT 1 FROM unnest(%(more_tags)s::text[]) AS wanted
    WHERE NOT EXISTS (SELECT 1 FROM run_tags WHERE run_key = runs.key AND tag = wanted)))
ORDER BY created_at DESC, key DESC LIMIT %(limit)s

-- name: runs
{_listed_run}
FROM runs LEFT JOIN leases ON leases.run_key = runs.key
WHERE flow = %(flow)s AND {_runs_filtered}

-- name: all_runs
{_listed_run}
FROM runs LEFT JOIN leases ON leases.run_key = runs.key
WHERE {_runs_filtered}

-- name: runs_of_keys
-- Of few runs: looked up by their keys, and sorted. (Of key = ANY (...) the server may look through
-- the array for each of all runs.)
{_listed_run}
FROM unnest(%(keys)s::bigint[]) AS wanted (wanted_key) JOIN runs ON runs.key = wanted_key
LEFT JOIN leases ON leases.run_key = runs.key
WHERE (%(flow)s::text IS NULL OR flow = %(flow)s::text)
  AND {_runs_filtered}

-- name: tags
SELECT run_key, tag, is_system FROM run_tags
WHERE run_key = ANY (%(run_keys)s::bigint[]) ORDER BY run_key, tag

-- name: _latest
LATERAL (
    SELECT * FROM attempts WHERE run_key = t.run_key AND task = t.task ORDER BY attempt DESC LIMIT 1
  ) a ON true

-- name: tasks
SELECT {columns} FROM tasks t LEFT JOIN {_latest}
WHERE t.run_key = %(run_key)s AND t.task > %(after)s ORDER BY t.task LIMIT %(limit)s

-- name: tasks_of_step
SELECT {columns} FROM tasks t LEFT JOIN {_latest}
WHERE t.run_key = %(run_key)s AND t.step = %(step)s AND t.task > %(after)s ORDER BY t.task LIMIT %(limit)s

-- name: newest_tasks
SELECT {columns} FROM tasks t LEFT JOIN {_latest}
WHERE t.run_key = %(run_key)s AND t.task < %(before)s
  AND (cardinality(%(states)s::text[]) = 0 OR coalesce(a.state, '') = ANY (%(states)s::text[]))
ORDER BY t.task DESC LIMIT %(limit)s

-- name: newest_tasks_of_step
SELECT {columns} FROM tasks t LEFT JOIN {_latest}
WHERE t.run_key = %(run_key)s AND t.step = %(step)s AND t.task < %(before)s
  AND (cardinality(%(states)s::text[]) = 0 OR coalesce(a.state, '') = ANY (%(states)s::text[]))
ORDER BY t.task DESC LIMIT %(limit)s

-- name: tasks_of_split
SELECT {columns} FROM tasks t LEFT JOIN {_latest}
WHERE t.run_key = %(run_key)s AND t.split = %(split)s AND t.split_index > %(after)s
  AND (cardinality(%(steps)s::text[]) = 0 OR t.step = ANY (%(steps)s::text[]))
ORDER BY t.split_index, t.task LIMIT %(limit)s

-- name: task_columns
SELECT t.task, t.step, t.created_at, a.started_at, a.finished_at, a.state, a.attempt, t.origin <> '', a.host, a.pid
FROM attempts a JOIN tasks t ON t.run_key = a.run_key AND t.task = a.task
WHERE a.run_key = %(run_key)s AND a.changed > %(after)s AND t.step <> '_parameters'
  AND NOT EXISTS (SELECT 1 FROM attempts n WHERE n.run_key = a.run_key AND n.task = a.task AND n.attempt > a.attempt)

-- name: all_task_columns
-- (Of a range of tasks that is joined and sorted in memory: all at once are written to disk for it.)
SELECT DISTINCT ON (a.task)
  t.task, t.step, t.created_at, a.started_at, a.finished_at, a.state, a.attempt, t.origin <> '', a.host, a.pid
FROM attempts a JOIN tasks t ON t.run_key = a.run_key AND t.task = a.task
WHERE a.run_key = %(run_key)s AND a.task > %(after)s AND a.task <= %(last)s
  AND t.run_key = %(run_key)s AND t.task > %(after)s AND t.task <= %(last)s
  AND t.step <> '_parameters' ORDER BY a.task, a.attempt DESC

-- name: next_task
SELECT min(task) FROM tasks WHERE run_key = %(run_key)s AND task > %(after)s

-- name: latest_states
SELECT t.task, t.step, a.attempt, a.state
FROM tasks t LEFT JOIN {_latest}
WHERE t.run_key = %(run_key)s AND t.task = ANY (%(tasks)s::bigint[])

-- name: task
SELECT {columns} FROM tasks t LEFT JOIN LATERAL (
    SELECT * FROM attempts
    WHERE run_key = t.run_key AND task = t.task
      AND (%(attempt)s::bigint IS NULL OR attempt = %(attempt)s::bigint)
    ORDER BY attempt DESC LIMIT 1
  ) a ON true
WHERE t.run_key = %(run_key)s AND t.task = %(task)s

-- name: manifests
SELECT t.task, a.manifest
FROM (SELECT %(run_key)s::bigint AS run_key, unnest(%(tasks)s::bigint[]) AS task) t
JOIN {_latest}
WHERE a.state IN ('succeeded', 'running') AND a.manifest IS NOT NULL

-- name: split_manifests
-- A switch that loops leaves several tasks for one item: the last one went on to the join.
SELECT DISTINCT ON (t.split_index) t.split_index, t.task, t.step, a.manifest
FROM tasks t JOIN {_latest}
WHERE t.run_key = %(run_key)s AND t.split = %(split)s AND t.split_index >= %(start)s
  AND t.step = ANY (%(steps)s::text[]) AND a.state = 'succeeded' AND a.manifest IS NOT NULL
ORDER BY t.split_index, t.task DESC LIMIT %(limit)s

-- name: cached
-- Of several tasks with the key that succeeded, the latest that ran; else the latest of all.
SELECT runs.run, t.step, t.task, t.run_key, a.manifest FROM tasks t
JOIN {_latest}
JOIN runs ON runs.key = t.run_key
WHERE t.cache_key = %(key)s AND runs.flow = %(flow)s
  AND a.state = 'succeeded' AND a.manifest IS NOT NULL
ORDER BY (t.origin = '') DESC, t.run_key DESC LIMIT 1

-- name: all_manifests
SELECT task, manifest FROM attempts
WHERE run_key = %(run_key)s AND task > %(after)s AND manifest IS NOT NULL ORDER BY task LIMIT %(limit)s

-- name: made_by
SELECT key FROM runs WHERE flow = %(flow)s AND run = %(run)s AND version = 0 AND written_by = %(mark)s

-- name: workers
SELECT name, data, heartbeat_at, (until - extract(epoch FROM clock_timestamp()))::float8, drain FROM workers
WHERE until > extract(epoch FROM clock_timestamp()) ORDER BY name

-- name: handed
-- (The states are written out: only so is the index of handed attempts used.)
SELECT a.task, t.step, a.attempt, a.state, t.created_at, a.started_at, a.handle, a.host
FROM attempts a JOIN tasks t ON t.run_key = a.run_key AND t.task = a.task
WHERE a.run_key = %(run_key)s AND a.handle <> '' AND a.state IN ('queued', 'running') AND a.task > %(after)s
  AND (%(step)s::text IS NULL OR t.step = %(step)s::text)
ORDER BY a.task LIMIT %(limit)s
