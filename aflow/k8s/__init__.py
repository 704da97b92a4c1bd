"""A cluster of Kubernetes: access to it, and the manifests of jobs that run steps."""
