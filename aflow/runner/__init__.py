"""Run flows from programs: as commands in child processes, or in the calling process."""
