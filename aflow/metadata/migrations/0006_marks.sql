-- The mark of a run's latest commit: who lost the answer to it looks for it.

ALTER TABLE runs ADD COLUMN written_by TEXT NOT NULL DEFAULT '';
