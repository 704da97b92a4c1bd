-- The queue in PostgreSQL (aflow/queue/postgres.py). `{schema}` is the schema that the tables are in,
-- quoted, with a dot. `state` is r(eady), d(elayed), l(eased) or b(uried); `due` (seconds since the
-- epoch) when a lease or a delay ends, or when a message was buried, or became ready. The lowest `turn`
-- goes first: see `put`.

-- name: tables
CREATE TABLE IF NOT EXISTS {schema}aflow_messages (
    number BIGSERIAL PRIMARY KEY,
    topic TEXT NOT NULL,
    id TEXT NOT NULL,
    body BYTEA NOT NULL,
    state "char" NOT NULL DEFAULT 'r',
    due DOUBLE PRECISION NOT NULL DEFAULT 0,
    token TEXT,
    deliveries INTEGER NOT NULL DEFAULT 0,
    UNIQUE (topic, id)
);
DROP INDEX IF EXISTS {schema}aflow_messages_ready;
DROP INDEX IF EXISTS {schema}aflow_messages_due;
ALTER TABLE {schema}aflow_messages ADD COLUMN IF NOT EXISTS priority INTEGER NOT NULL DEFAULT 0;
ALTER TABLE {schema}aflow_messages ADD COLUMN IF NOT EXISTS turn BIGINT NOT NULL DEFAULT 0;
UPDATE {schema}aflow_messages SET state = 'd' WHERE state = 'r' AND due > 0;
CREATE INDEX IF NOT EXISTS aflow_messages_turn
    ON {schema}aflow_messages (topic, priority DESC, turn, number) WHERE state = 'r';
CREATE INDEX IF NOT EXISTS aflow_messages_timed
    ON {schema}aflow_messages (topic, state, due) WHERE state <> 'r';
CREATE TABLE IF NOT EXISTS {schema}aflow_turns (
    topic TEXT NOT NULL,
    grp TEXT NOT NULL,
    priority INTEGER NOT NULL,
    last BIGINT NOT NULL,
    PRIMARY KEY (topic, grp, priority)
);
CREATE TABLE IF NOT EXISTS {schema}aflow_workers (
    name TEXT PRIMARY KEY, body BYTEA NOT NULL, until DOUBLE PRECISION NOT NULL
)

-- name: _held
unnest($1::text[], $2::text[], $3::text[]) AS held (topic, id, token)
WHERE m.topic = held.topic AND m.id = held.id AND m.token = held.token AND m.state = 'l'
AND m.due > {_now}

-- name: _first
coalesce((SELECT o.turn FROM {schema}aflow_messages AS o WHERE o.topic = m.topic
AND o.state = 'r' AND o.priority = m.priority ORDER BY o.turn LIMIT 1), 0)

-- name: _now
extract(epoch FROM clock_timestamp())::float8

-- name: _group
CASE WHEN strpos(id, ':') > 0 THEN split_part(id, ':', 1) ELSE '' END

-- name: is_there
-- Whether the tables have been made: two of their parts, the last of them.
SELECT count(*) = 2 FROM pg_catalog.pg_class AS c
JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace
WHERE n.nspname = $1 AND c.relname IN ('aflow_messages_timed', 'aflow_workers')

-- name: has_schema
SELECT count(*) = 1 FROM pg_catalog.pg_namespace WHERE nspname = $1

-- name: put
-- A group's next message has the turn that is being handed out; or, while the group's last message
-- waits, the one after that. So groups take turns. Those of no group come in the order of their
-- numbers.
WITH put AS (
    SELECT id, body, {_group} AS grp, place
    FROM unnest($2::text[], $3::bytea[]) WITH ORDINALITY AS put (id, body, place)
), new AS (
    SELECT *, CASE WHEN grp = '' THEN 0
        ELSE row_number() OVER (PARTITION BY grp ORDER BY place) - 1 END AS step
    FROM put
), present AS (
    SELECT coalesce((
        SELECT turn FROM {schema}aflow_messages
        WHERE topic = $1 AND state = 'r' AND priority = $5 ORDER BY turn LIMIT 1
    ), 0) AS turn
), begun AS (
    SELECT groups.grp, groups.steps, greatest(present.turn, coalesce((
        SELECT t.last + 1 FROM {schema}aflow_turns AS t
        WHERE t.topic = $1 AND t.grp = groups.grp AND t.priority = $5 AND EXISTS (
            SELECT FROM {schema}aflow_messages AS m
            WHERE m.topic = $1 AND m.state = 'r' AND m.priority = $5 AND m.turn = t.last
            AND starts_with(m.id, t.grp || ':')
        )
    ), 0)) AS turn
    FROM (SELECT grp, max(step) AS steps FROM new GROUP BY grp) AS groups, present
), noted AS (
    INSERT INTO {schema}aflow_turns (topic, grp, priority, last)
    SELECT $1, grp, $5, turn + steps FROM begun WHERE grp <> ''
    ON CONFLICT (topic, grp, priority) DO UPDATE SET last = excluded.last
), inserted AS (
    INSERT INTO {schema}aflow_messages (topic, id, body, priority, turn, due)
    SELECT $1, new.id, new.body, $5, begun.turn + new.step, {_now} FROM new JOIN begun USING (grp)
    ORDER BY new.place
    ON CONFLICT DO NOTHING
) SELECT pg_notify($4, '')

-- name: settle
UPDATE {schema}aflow_messages AS m SET token = NULL, turn = {_first},
state = CASE WHEN state = 'l' AND deliveries >= $2 THEN 'b'::"char" ELSE 'r'::"char" END,
due = {_now}
WHERE number IN (
    SELECT number FROM {schema}aflow_messages
    WHERE topic = $1 AND state IN ('l', 'd') AND state <> 'r' AND due <= {_now}
    ORDER BY due LIMIT 1000 FOR UPDATE SKIP LOCKED
)

-- name: lease
UPDATE {schema}aflow_messages AS m
SET state = 'l', due = {_now} + $3, token = $4 || m.number, deliveries = deliveries + 1
FROM (
    SELECT number FROM {schema}aflow_messages
    WHERE topic = $1 AND state = 'r' AND (cardinality($5::text[]) = 0 OR {_group} <> ALL ($5))
    ORDER BY priority DESC, turn, number LIMIT $2 FOR UPDATE SKIP LOCKED
) AS chosen
WHERE m.number = chosen.number
RETURNING -m.priority, m.turn, m.number, m.id, m.token, m.body, m.deliveries, m.due

-- name: next_due
SELECT min(due) - {_now} FROM {schema}aflow_messages
WHERE topic = $1 AND state IN ('l', 'd') AND state <> 'r'

-- name: forget_turns
DELETE FROM {schema}aflow_turns WHERE topic = $1

-- name: extend
UPDATE {schema}aflow_messages AS m SET due = {_now} + $4 FROM {_held}
RETURNING m.token, m.due

-- name: ack
DELETE FROM {schema}aflow_messages AS m USING {_held} RETURNING m.token

-- name: release
UPDATE {schema}aflow_messages AS m
SET token = NULL, deliveries = m.deliveries - $5, turn = {_first},
state = CASE WHEN m.deliveries - $5 >= $6 THEN 'b' WHEN $4 > 0 THEN 'd' ELSE 'r' END::"char",
due = {_now} + CASE WHEN m.deliveries - $5 < $6 AND $4 > 0 THEN $4 ELSE 0 END
FROM {_held} RETURNING held.token

-- name: bury
UPDATE {schema}aflow_messages AS m SET token = NULL, state = 'b', due = {_now}
FROM {_held} RETURNING held.token

-- name: remove
DELETE FROM {schema}aflow_messages
WHERE topic = $1 AND id = ANY ($2::text[]) AND (state <> 'l' OR $3)

-- name: known
SELECT id FROM {schema}aflow_messages WHERE topic = $1 AND id = ANY ($2::text[])

-- name: drop
WITH turns AS (DELETE FROM {schema}aflow_turns WHERE topic = $1)
DELETE FROM {schema}aflow_messages WHERE topic = $1

-- name: buried
SELECT id, body, deliveries, due FROM {schema}aflow_messages
WHERE topic = $1 AND state = 'b' ORDER BY due, number LIMIT $2

-- name: redrive
UPDATE {schema}aflow_messages AS m
SET state = 'r', due = {_now}, deliveries = 0, turn = {_first}
WHERE topic = $1 AND id = ANY ($2::text[]) AND state = 'b' RETURNING id

-- name: peek
SELECT id, body FROM {schema}aflow_messages WHERE topic = $1 AND state = 'r'
ORDER BY priority DESC, turn, number LIMIT $2

-- name: topics
SELECT DISTINCT topic FROM {schema}aflow_messages ORDER BY topic

-- name: depth
SELECT count(*) FILTER (WHERE state IN ('r', 'd')),
count(*) FILTER (WHERE state = 'l'), count(*) FILTER (WHERE state = 'b')
FROM {schema}aflow_messages WHERE topic = $1

-- name: longest_wait
SELECT {_now} - min(due) FROM {schema}aflow_messages
WHERE topic = $1 AND state = 'r' AND due > 0

-- name: announce
INSERT INTO {schema}aflow_workers (name, body, until)
VALUES ($1, $2, {_now} + $3)
ON CONFLICT (name) DO UPDATE SET body = excluded.body, until = excluded.until

-- name: unannounce
DELETE FROM {schema}aflow_workers WHERE name = $1

-- name: announced
WITH gone AS (
    DELETE FROM {schema}aflow_workers WHERE until < {_now} - 3600
) SELECT name, body FROM {schema}aflow_workers WHERE until > {_now}

-- name: ring
SELECT pg_notify($1, '')

-- name: lock
SELECT pg_advisory_xact_lock($1)
