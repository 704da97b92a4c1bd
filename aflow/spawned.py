"""The main program of a template that was spawned: `python -m aflow.spawned FD`."""

from __future__ import annotations

import os
import pickle
import socket
import sys
from typing import Any

import msgpack

from aflow import backends, compat
from aflow.configured import with_values
from aflow.executors.local import wire
from aflow.executors.local.spawn import class_from
from aflow.executors.local.template import Template
from aflow.flow.decorators.attach import attach
from aflow.flow.spec import define


def main() -> None:
    """Import the flow that the first message names, then serve."""
    control = socket.socket(fileno=int(sys.argv[1]))
    control.set_inheritable(False)
    serve(control)


def serve(control: socket.socket) -> None:
    """Import the flow that the first message names, then serve."""
    unpacker = wire.unpacker()
    while data := control.recv(1 << 20):
        unpacker.feed(data)
        for message in unpacker:
            _, source, decospecs, configs, is_metaflow = message
            if is_metaflow:
                compat.install()
            _serve(control, source, decospecs, configs)
            return


def _serve(
    control: socket.socket, source: dict[str, Any], decospecs: list[str], configs: bytes | None
) -> None:
    try:
        definition = define(class_from(source))
        if configs is not None:
            definition = with_values(definition, pickle.loads(configs))  # noqa: S301 -- from the process that started us
        definition = attach(definition, decospecs)
    except Exception as error:  # noqa: BLE001 -- whatever the user's module raises is what its owner has to know
        control.sendall(msgpack.packb((wire.NOT_READY, f"{type(error).__name__}: {error}")))
        return
    control.sendall(msgpack.packb((wire.READY,)))
    Template(control, definition, backends.open_store, backends.open_metadata).serve()
    os._exit(0)  # at once: threads that the flow's file has started do not hold us up


if __name__ == "__main__":
    main()
