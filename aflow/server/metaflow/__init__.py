"""The metadata service: what Metaflow's clients register over HTTP, stored and listed."""
