"""What a ground does before its first fork, so that each forked process has less to do.

A process that was just forked shares all memory with the ground; whatever it writes to is copied,
page by page, and a page costs as much as a hundred lines of Python. The interpreter writes to code
when it runs it for the first times (it specialises it), modules write all over when they are
imported. So the modules are imported here, and the runner's code has run here, on a flow of its own
whose tasks do what all tasks do.
"""

from __future__ import annotations

import importlib
import sys
import threading

from aflow.attempt.runner import Runner
from aflow.attempt.spec import AttemptSpec, RunContext
from aflow.clock import SystemClock
from aflow.executors.local.program import Program, Request, is_library
from aflow.executors.local.task import Host, copies_of
from aflow.flow.graph import Graph, Kind, Node
from aflow.flow.spec import FlowSpec, set_launcher
from aflow.flow.structure import connect
from aflow.ids import PARAMETERS_TASK
from aflow.metadata.base import MetadataStore
from aflow.scheduler.codec import encode_inputs
from aflow.scheduler.messages import FromTask, NoInputs
from aflow.storage.blobs import BlobStore
from aflow.storage.manifest import Manifest
from aflow.storage.memory import MemoryStore

# What tasks import when they first need it, and what a program has imported by then because aflow
# did. In the ground nobody waits for it.
_MODULES = ("blake3", "sqlite3", "json", "traceback", "signal", "subprocess")
_ROUNDS = 12  # the interpreter specialises code that has run some eight times


# A foreach over nothing of interest, as a user writes one.
_PROGRAM = """
from aflow import FlowSpec, Parameter, current, step

class WarmUp(FlowSpec):
    @step
    def start(self):
        self.xs = [0, 1]
        self.next(self.work, foreach="xs")
    @step
    def work(self):
        self.y = self.input
        self.next(self.join)
    @step
    def join(self, inputs):
        self.next(self.end)
    @step
    def end(self):
        pass

if __name__ == "__main__":
    WarmUp()
"""
_SOURCE = {
    "kind": "main",
    "file": "<aflow>",
    "module": "__main__",
    "name": "WarmUp",
    "argv": [""],
    "flags": [],
}


def warm_up() -> None:
    """Import what tasks will need, and run the code that each of them runs."""
    for name in _MODULES:
        importlib.import_module(name)
    is_library("")  # brings sysconfig, and what that reads
    for _ in range(_ROUNDS):
        threading._after_fork()  # type: ignore[attr-defined]  # what each fork does anyway
    kept = [*sys.argv], [*sys.orig_argv], [*sys.path], sys.modules["__main__"]
    host = _RehearsedHost()
    for _ in range(_ROUNDS):
        host.rehearse()
    sys.argv[:], sys.orig_argv[:], sys.path[:], sys.modules["__main__"] = kept
    set_launcher(_never)


class _RehearsedHost(Host):
    """Runs a program as a process of a task does, in this process."""

    def __init__(self) -> None:
        program = Program(_SOURCE, sys.path)
        program.compile(_PROGRAM)
        context = RunContext("WarmUp", "0", 0, "", None, (), "", "", "process", 10)
        runner = Runner(context, BlobStore(MemoryStore()), _no_metadata, SystemClock())
        graph = _graph()
        request = Request(_SOURCE, [], None, False)
        super().__init__(program, request, graph, runner, {}, (b"", b""), None)
        self._parameters = Manifest(step="_parameters").encode()

    def rehearse(self) -> None:
        """Run the program, and two of its steps."""
        self._entered, self._code = False, None
        self.run_program(self._steps, lambda *message: None)

    def _steps(self, flow: FlowSpec) -> int:
        runner = self._runner
        runner.instance = copies_of(flow)
        start = _spec("start", 1, encode_inputs(NoInputs()), {PARAMETERS_TASK: self._parameters})
        manifest = runner.run(AttemptSpec.decode(start.encode())).manifest or b""
        along = {PARAMETERS_TASK: self._parameters, 1: manifest}
        work = _spec("work", 2, encode_inputs(FromTask(1)), along, split=1)
        runner.run(AttemptSpec.decode(work.encode())).message()
        return 0


def _graph() -> Graph:
    places = {"start": "work", "work": "join", "join": "end", "end": ""}
    nodes = {
        name: Node(
            name,
            Kind.FOREACH if name == "start" else Kind.END if name == "end" else Kind.LINEAR,
            is_join=name == "join",
            next=(following,) if following else (),
            foreach="xs" if name == "start" else None,
        )
        for name, following in places.items()
    }
    return Graph("WarmUp", "start", "end", connect(nodes, "start"))


def _never(flow: FlowSpec) -> None:
    raise AssertionError("a ground runs no flow")


def _spec(
    step_name: str, task: int, inputs: bytes, along: dict[int, bytes], split: int | None = None
) -> AttemptSpec:
    inside = split is not None
    index, count = (0, 2) if inside else (None, None)
    return AttemptSpec(step_name, task, 0, inputs, split, index, count, inside, True, False, along)


def _no_metadata() -> MetadataStore:
    raise AssertionError("these tasks find all that they read in their specs")
