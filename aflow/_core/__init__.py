"""The base of aflow: settings, names, time, processes. Nothing here knows of flows or runs."""
