-- Runs by tag, and the most memory that an attempt of a step has taken, kept by the commit that
-- writes the attempt.

CREATE INDEX run_tags_by_tag ON run_tags (tag, run_key);

ALTER TABLE steps ADD COLUMN max_rss BIGINT;  -- bytes

UPDATE steps SET max_rss = (
  SELECT max(a.max_rss) FROM tasks t JOIN attempts a ON a.run_key = t.run_key AND a.task = t.task
  WHERE t.run_key = steps.run_key AND t.step = steps.step);

-- State and user stand in the index of the list of runs: a filter that few runs match reads the index
-- alone, and the rows of those that it lists.

DROP INDEX runs_newest_of_all;
CREATE INDEX runs_newest_of_all ON runs (kind, created_at, key, state, user_name);
