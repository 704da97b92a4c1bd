"""The main program of a zygote: the process that tasks are forked from (executors/local/zygote.py).

This module connects the zygote to the backends, which are chosen by URL, and to the names that
flows import from aflow.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Sequence

from aflow._core.settings import withhold_secrets
from aflow.executors.local.zygote import Zygote
from aflow.flow.spec import FlowSpec
from aflow.metadata.factory import open_metadata
from aflow.storage.factory import open_store


def main() -> None:
    """Serve as a spawned zygote; the arguments are its socket's descriptor and its parent's id."""
    control, parent = map(int, sys.argv[1:3])
    path = sys.path if sys.flags.safe_path else sys.path[1:]
    # Only tasks may import from the user's folder: a file there may be named like a module of ours.
    sys.path[:] = path
    command = sys.orig_argv[:-2]
    connection = socket.socket(fileno=control)
    connection.set_inheritable(False)
    serve(connection, parent, path, lambda: command)
    os._exit(0)


def serve(
    control: socket.socket, parent: int, path: Sequence[str], command: Callable[[], list[str]]
) -> None:
    """Serve as a zygote until the coordinator is gone; see Zygote.

    Args:
        control: The socket to the coordinator.
        parent: The process id of the parent.
        path: The `sys.path` of a fresh interpreter, without the folder of the program.
        command: Returns the command that starts another zygote in a fresh interpreter, without the
            numbers of its socket and its parent.
    """
    withhold_secrets()
    names = sys.modules["aflow"]
    vars(names)["FlowSpec"] = FlowSpec  # without the command line, which tasks do not need
    _ = names.current
    zygote = Zygote(control, parent, [*path], command, open_store, open_metadata)
    zygote.prepare()
    zygote.serve()
