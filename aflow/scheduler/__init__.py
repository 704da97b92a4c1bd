"""The scheduler of a run: a pure state machine that takes events and returns commands."""
