"""One attempt at a task, from the inside."""
