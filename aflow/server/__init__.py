"""The daemon: takes flows over HTTP and runs each in a process of its own."""
