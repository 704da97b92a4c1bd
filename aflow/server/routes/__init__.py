"""The routes of the daemon: their table, their JSON schemas and the handlers of the web UI."""
