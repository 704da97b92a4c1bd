-- State and user stand in the index of the list of runs: a filter that few runs match reads the index
-- alone, and the rows of those that it lists.

DROP INDEX runs_newest_of_all;
CREATE INDEX runs_newest_of_all ON runs (kind, created_at DESC, key DESC, state, user);
