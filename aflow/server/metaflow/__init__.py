"""The metadata service: an implementation of the HTTP API that Metaflow's clients use."""
