"""Attempts that run as jobs of a cluster: a port for its job system, the executor above it, and one
backend a module."""
