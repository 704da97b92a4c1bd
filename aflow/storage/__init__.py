"""Named bytes, content addressing, artifacts, manifests, logs."""
