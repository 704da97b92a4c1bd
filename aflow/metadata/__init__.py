"""The journal of each run and the records that clients read."""
