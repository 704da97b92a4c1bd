"""The state machine of a run: events in, commands out. Pure."""
