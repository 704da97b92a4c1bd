"""Whether what the settings name is there and can be used: for `aflow doctor` and `configure`."""
