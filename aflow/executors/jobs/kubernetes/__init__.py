"""Kubernetes as a job system: the API server of a cluster, manifests of Jobs, settings."""
