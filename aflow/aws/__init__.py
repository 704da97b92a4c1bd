"""An AWS account: settings and calls."""

from __future__ import annotations

from aflow._core.lazy import modules_of

__all__ = ["client", "settings"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from aflow.aws import client, settings
else:
    __getattr__ = modules_of(__name__, __all__)
