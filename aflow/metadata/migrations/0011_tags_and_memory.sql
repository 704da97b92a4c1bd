-- Runs by tag, and the most memory that an attempt of a step has taken, kept by the commit that
-- writes the attempt.

CREATE INDEX run_tags_by_tag ON run_tags (tag, run_key);

ALTER TABLE steps ADD COLUMN max_rss INTEGER;  -- bytes

UPDATE steps SET max_rss = (
  SELECT max(a.max_rss) FROM tasks t JOIN attempts a ON a.run_key = t.run_key AND a.task = t.task
  WHERE t.run_key = steps.run_key AND t.step = steps.step);
