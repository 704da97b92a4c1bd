"""`aflow doctor`: findings (pure), probes of services, and the command."""
