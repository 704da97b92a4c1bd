"""Flows run by programs: as a command in a process of its own, or inside of the program."""
