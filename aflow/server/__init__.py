"""The server of aflow: receives flows over HTTP and runs each in its own child process."""
