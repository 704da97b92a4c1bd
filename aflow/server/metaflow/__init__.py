"""The metadata service: what Metaflow's clients register over HTTP, kept and told again."""
