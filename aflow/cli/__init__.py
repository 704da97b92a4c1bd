"""The command line: parse arguments, call the runtime, print results."""
