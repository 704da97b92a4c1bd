"""The storage layer: object stores, content-addressed blobs, artifacts, manifests and logs."""

from __future__ import annotations

from aflow._core.lazy import modules_of

__all__ = ["cache", "local", "memory", "retry", "s3"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from aflow.storage import cache, local, memory, retry, s3
else:
    __getattr__ = modules_of(__name__, __all__)
