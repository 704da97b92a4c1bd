"""The journal of each run and the records that clients read."""

from aflow._core.lazy import modules_of

__all__ = ["http", "object_store", "postgres", "sqlite", "tokens"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from aflow.metadata import http, object_store, postgres, sqlite, tokens
else:
    __getattr__ = modules_of(__name__, __all__)
