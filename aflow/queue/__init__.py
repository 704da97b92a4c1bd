"""Queues of messages between coordinators and workers."""

from aflow._core.lazy import modules_of

__all__ = ["postgres", "redis", "sqlite", "sqs"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from aflow.queue import postgres, redis, sqlite, sqs
else:
    __getattr__ = modules_of(__name__, __all__)
