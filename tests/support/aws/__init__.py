"""A stand-in for AWS whose jobs and state machines really run."""
