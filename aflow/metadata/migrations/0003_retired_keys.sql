-- The greatest key that a run which was deleted has had: no other run is ever given it, since
-- somebody may still hold it.

CREATE TABLE retired_keys (last_key INTEGER NOT NULL);

INSERT INTO retired_keys (last_key) VALUES (0);
