"""An account of AWS: its settings, the calls to it, and the definitions of jobs of AWS Batch."""

from __future__ import annotations

from aflow._core.lazy import modules_of

__all__ = ["client", "settings"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from aflow.aws import client, settings
else:
    __getattr__ = modules_of(__name__, __all__)
