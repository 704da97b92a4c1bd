"""A template that is forked before this process has threads, and is told the flow later.

It has the client of S3 imported already, which takes longer than all else that a job does of its
own. The second template, should the first one die, is spawned as everywhere.
"""

from __future__ import annotations

import gc
import os
import socket
from collections.abc import Mapping
from typing import TYPE_CHECKING

from aflow.executors.local.spawn import SpawnedTemplate, have_loaded, start_from
from aflow.spawned import serve

if TYPE_CHECKING:
    from aflow.executors.local.spawn import Request


class EarlyTemplate:
    """A template process that waits to be told which flow to import."""

    def __init__(self) -> None:
        self.control, theirs = socket.socketpair()
        self._taken = False
        gc.freeze()  # what is imported by now stays, and is shared with what is forked
        gc.enable()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self.control.close()
                serve(theirs)
            finally:
                os._exit(0)  # nobody told it anything, and its parent is gone
        theirs.close()

    def load(
        self, request: Request, name: str, environment: Mapping[str, str]
    ) -> EarlyTemplate | SpawnedTemplate:
        """The template, with the flow imported; another one the second time. Blocks."""
        if self._taken:
            return start_from(request, name, environment)
        self._taken = True
        have_loaded(self.control, request, name)
        return self

    def reap(self) -> None:
        """Wait for its end, which is near: its socket is closed."""
        os.waitpid(self.pid, 0)

    def close(self) -> None:
        """Let it end, if it was never told anything."""
        if not self._taken:
            self.control.close()
            self.reap()
