-- The queue of one machine (aflow/queue/sqlite.py). `state` is r(eady), d(elayed), l(eased) or
-- b(uried); `due` when a lease or a delay ends, or when a message was buried, or became ready (0: put
-- by an earlier version). The lowest `turn` goes first: see `_turn` there. All times are those of
-- LeaseClock.

-- name: schema
-- Version 1 had neither turns nor priorities, nor workers.
CREATE TABLE IF NOT EXISTS messages (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    topic TEXT NOT NULL,
    id TEXT NOT NULL,
    body BLOB NOT NULL,
    state TEXT NOT NULL DEFAULT 'r',
    due REAL NOT NULL DEFAULT 0,
    token TEXT,
    deliveries INTEGER NOT NULL DEFAULT 0,
    UNIQUE (topic, id)
) STRICT;
DROP INDEX IF EXISTS by_state;
ALTER TABLE messages ADD COLUMN priority INTEGER NOT NULL DEFAULT 0;
ALTER TABLE messages ADD COLUMN turn INTEGER NOT NULL DEFAULT 0;
UPDATE messages SET state = 'd' WHERE state = 'r' AND due > 0;
CREATE INDEX ready ON messages (topic, priority DESC, turn, number) WHERE state = 'r';
CREATE INDEX leased ON messages (topic, due) WHERE state = 'l';
CREATE INDEX delayed ON messages (topic, due) WHERE state = 'd';
CREATE INDEX buried ON messages (topic, due) WHERE state = 'b';
CREATE TABLE turns (
    topic TEXT NOT NULL,
    grp TEXT NOT NULL,
    priority INTEGER NOT NULL,
    last INTEGER NOT NULL,
    PRIMARY KEY (topic, grp, priority)
) STRICT, WITHOUT ROWID;
CREATE TABLE workers (
    name TEXT PRIMARY KEY, body BLOB NOT NULL, until REAL NOT NULL
) STRICT, WITHOUT ROWID;

-- name: lease_clocks
-- Version 2 went by the machine's clock.
CREATE TABLE lease_clocks (
    number INTEGER PRIMARY KEY, domain TEXT NOT NULL UNIQUE, ahead REAL NOT NULL
) STRICT;

-- name: _group
substr(id, 1, instr(id, ':') - 1)

-- name: _first
coalesce((SELECT other.turn FROM messages AS other WHERE other.topic = messages.topic
AND other.state = 'r' AND other.priority = messages.priority ORDER BY other.turn LIMIT 1), 0)

-- name: _held
topic = ? AND id = ? AND token = ? AND state = 'l' AND due > ?

-- name: shorten_messages
UPDATE messages SET due = min(due, ?) WHERE state IN ('l', 'd')

-- name: shorten_workers
UPDATE workers SET until = min(until, ?)

-- name: put
INSERT INTO messages (topic, id, body, priority, turn, due) VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT DO NOTHING

-- name: present_turn
SELECT turn FROM messages WHERE topic = ? AND state = 'r' AND priority = ? ORDER BY turn LIMIT 1

-- name: last_turn
SELECT last FROM turns WHERE topic = ? AND grp = ? AND priority = ?

-- name: is_ready
SELECT 1 FROM messages WHERE topic = ? AND state = 'r' AND priority = ? AND turn = ?
AND {_group} = ? LIMIT 1

-- name: note_last_turn
INSERT INTO turns VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET last = excluded.last

-- name: bury_spent
UPDATE messages SET state = 'b', token = NULL
WHERE topic = ?1 AND state = 'l' AND due <= ?2 AND deliveries >= ?3

-- name: come_back_leased
UPDATE messages SET state = 'r', token = NULL, due = ?2, turn = {_first}
WHERE topic = ?1 AND state = 'l' AND due <= ?2

-- name: come_back_delayed
UPDATE messages SET state = 'r', token = NULL, due = ?2, turn = {_first}
WHERE topic = ?1 AND state = 'd' AND due <= ?2

-- name: lease
UPDATE messages
SET state = 'l', due = ?2, token = ?3 || number, deliveries = deliveries + 1
WHERE number IN (
    SELECT number FROM messages WHERE topic = ?1 AND state = 'r'
    AND (?5 = '[]' OR {_group} NOT IN (SELECT value FROM json_each(?5)))
    ORDER BY priority DESC, turn, number LIMIT ?4
) RETURNING -priority, turn, number, id, token, body, deliveries

-- name: next_due
SELECT min(due) FROM (
    SELECT * FROM (SELECT due FROM messages WHERE topic = ?1 AND state = 'l' ORDER BY due LIMIT 1)
    UNION ALL
    SELECT * FROM (SELECT due FROM messages WHERE topic = ?1 AND state = 'd' ORDER BY due LIMIT 1)
)

-- name: forget_turns
DELETE FROM turns WHERE topic = ?

-- name: extend
UPDATE messages SET due = ? WHERE {_held}

-- name: ack
DELETE FROM messages WHERE {_held}

-- name: release
UPDATE messages SET token = NULL, due = ?, deliveries = deliveries - ?,
turn = {_first}, state = CASE WHEN deliveries - ? >= ? THEN 'b' ELSE ? END
WHERE {_held}

-- name: bury
UPDATE messages SET state = 'b', token = NULL, due = ? WHERE {_held}

-- name: remove
DELETE FROM messages WHERE topic = ? AND id = ? AND (state <> 'l' OR due <= ? OR ?)

-- name: known
SELECT 1 FROM messages WHERE topic = ? AND id = ?

-- name: drop
DELETE FROM messages WHERE topic = ?

-- name: redrive
UPDATE messages SET state = 'r', due = ?, deliveries = 0, turn = {_first}
WHERE topic = ? AND id = ? AND state = 'b'

-- name: peek
SELECT id, body FROM messages WHERE topic = ? AND state = 'r'
ORDER BY priority DESC, turn, number LIMIT ?

-- name: buried
SELECT id, body, deliveries, due FROM messages WHERE topic = ? AND state = 'b'
ORDER BY due, number LIMIT ?

-- name: topics
SELECT DISTINCT topic FROM messages ORDER BY topic

-- name: ready_since
SELECT min(due) FROM messages WHERE topic = ? AND state = 'r' AND due > 0

-- name: depth
SELECT state, count(*) FROM messages WHERE topic = ? GROUP BY state

-- name: announce
INSERT INTO workers VALUES (?, ?, ?)
ON CONFLICT DO UPDATE SET body = excluded.body, until = excluded.until

-- name: expire_workers
DELETE FROM workers WHERE until <= ?

-- name: announced
SELECT name, body FROM workers
