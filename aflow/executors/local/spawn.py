"""A template in a fresh interpreter: where there are threads or an event loop, nobody may fork.

The new process is told which flow to import, and with which decorators from outside. A flow whose
class cannot be imported (one made in a notebook) travels as cloudpickle bytes, over a socket that
no other process can reach.
"""

from __future__ import annotations

import importlib.util
import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, NamedTuple

import msgpack

from aflow.errors import AflowError
from aflow.executors.local import wire

if TYPE_CHECKING:
    from aflow.flow.definition import FlowDefinition


class Request(NamedTuple):
    """How a flow is loaded in another process. `source` is as `source_of` gives it, `configs` are
    pickled values, which only the process that loads the flow reads."""

    source: dict[str, Any]
    decospecs: list[str]
    configs: bytes | None
    is_metaflow: bool


class SpawnedTemplate:
    """A template that runs in an interpreter of its own."""

    def __init__(self, control: socket.socket, process: subprocess.Popen[bytes]) -> None:
        self.control = control
        self._process = process

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    def reap(self) -> None:
        """Wait for its end, which is near: its socket is closed."""
        self._process.wait()


def start_template(definition: FlowDefinition, decospecs: Sequence[str] = ()) -> SpawnedTemplate:
    """Start a template for a flow and wait until it has imported it. Blocks; any thread may call.

    Raises AflowError with what the import said, OSError if there is no process to be had."""
    return start_from(request_of(definition, decospecs), definition.name, fresh_environment())


def request_of(definition: FlowDefinition, decospecs: Sequence[str] = ()) -> Request:
    """What a fresh interpreter has to be told to load the flow: plain values."""
    return Request(
        source_of(definition.cls), list(decospecs), _configs_of(definition), stands_for_metaflow()
    )


def start_from(request: Request, name: str, environment: Mapping[str, str]) -> SpawnedTemplate:
    """Start a template for the flow of this name that the request describes, in this environment.
    Blocks; raises what `start_template` raises."""
    with ExitStack() as made:
        ours, theirs = socket.socketpair()
        made.enter_context(ours)
        with theirs:
            process = subprocess.Popen(
                [sys.executable, "-m", "aflow.spawned", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=environment,
            )
        made.enter_context(process)  # waits for its end ...
        made.callback(process.kill)  # ... which a thread of the flow's file could put off
        have_loaded(ours, request, name)
        made.pop_all()
        return SpawnedTemplate(ours, process)


def have_loaded(control: socket.socket, request: Request, name: str) -> None:
    """Have the template at the other end load the flow of this name. Blocks; raises AflowError with
    what the import said."""
    kind, *rest = _answer(control, msgpack.packb((wire.LOAD, *request)))
    if kind != wire.READY:
        raise AflowError(f"The flow {name} could not be loaded again: {rest[0]}")


def _answer(control: socket.socket, request: bytes) -> tuple[Any, ...]:
    """The first thing that the process says to the request."""
    unpacker = wire.unpacker()
    try:
        control.sendall(request)
        while data := control.recv(1 << 16):
            unpacker.feed(data)
            for message in unpacker:
                return tuple(message)
    except ConnectionError:  # it has ended with our request unread
        pass
    return (wire.NOT_READY, "its process ended while it was importing the flow")


def stands_for_metaflow() -> bool:
    """Whether aflow stands for Metaflow in this process."""
    compat = sys.modules.get("aflow.compat")
    return compat is not None and compat.is_installed()


def _configs_of(definition: FlowDefinition) -> bytes | None:
    """The values of its configs, which a parser may have made of any types."""
    if definition.config_values is None:
        return None
    import cloudpickle  # rarely needed, and slow to import

    values: bytes = cloudpickle.dumps(dict(definition.config_values))
    return values


def fresh_environment() -> dict[str, str]:
    """The environment of a fresh interpreter that imports what this one can."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


def source_of(made: Any) -> dict[str, Any]:
    """Where a class or a function comes from, as plain values; see `class_from`."""
    home, name = getattr(made, "__module__", None), getattr(made, "__qualname__", "")
    module = sys.modules.get(home or "")
    file = getattr(module, "__file__", None)
    if file is None or getattr(module, name, None) is not made:
        import cloudpickle  # rarely needed, and slow to import

        return {"pickle": cloudpickle.dumps(made)}
    return {"file": os.path.abspath(file), "module": home, "name": name}


def class_from(source: dict[str, Any]) -> Any:
    """The class or function that `source_of` described, in another process."""
    if "pickle" in source:
        import pickle

        return pickle.loads(source["pickle"])
    module = _import(source["file"], source["module"])
    return getattr(module, source["name"])


def _import(file: str, name: str) -> Any:
    """Import a module by name where that leads to the same file, else from its file.

    The module `__main__` of the program that started us gets another name while it is imported, so
    that its last lines do not run; afterwards it is known by both, for the pickles it has made.
    """
    if name != "__main__":
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin and os.path.samefile(spec.origin, file):
            return importlib.import_module(name)
    alias = name if name != "__main__" else "__aflow_main__"
    spec = importlib.util.spec_from_file_location(alias, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[alias] = sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
