"""The language in which flows are written. It does not start processes or read a clock."""
