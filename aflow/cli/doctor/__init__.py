"""`aflow doctor`: findings (pure), the probes that ask, and the command."""
