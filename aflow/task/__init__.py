"""Run one attempt at a task, inside its process."""
