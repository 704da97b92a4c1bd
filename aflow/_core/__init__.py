"""The base layer of aflow: settings, names, time, processes. It does not know flows or runs."""
