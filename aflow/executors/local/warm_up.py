"""What a ground does before its first fork, so that each forked process has less to do.

A process that was just forked shares all memory with the ground; whatever it writes to is copied,
page by page, and a page costs as much as a hundred lines of Python. The interpreter writes to code
when it runs it for the first times (it specialises it), modules write all over when they are
imported. So the modules are imported here, and the runner's code has run here, on a flow of its own
whose tasks do what all tasks do.
"""

from __future__ import annotations

import importlib
import threading

from aflow.attempt.runner import Runner
from aflow.attempt.spec import AttemptSpec, RunContext
from aflow.clock import SystemClock
from aflow.flow.spec import FlowSpec, define, step
from aflow.ids import PARAMETERS_TASK
from aflow.metadata.base import MetadataStore
from aflow.scheduler.codec import encode_inputs
from aflow.scheduler.messages import FromTask, NoInputs
from aflow.storage.blobs import BlobStore
from aflow.storage.manifest import Manifest
from aflow.storage.memory import MemoryStore

# What tasks import when they first need it. In the ground nobody waits for it.
_MODULES = ("blake3", "sqlite3", "json", "traceback", "signal")
_ROUNDS = 12  # the interpreter specialises code that has run some eight times


class WarmUp(FlowSpec):
    """A foreach over nothing of interest."""

    @step
    def start(self) -> None:
        self.xs = [0, 1]
        self.next(self.work, foreach="xs")

    @step
    def work(self) -> None:
        self.y = self.input
        self.next(self.join)

    @step
    def join(self, inputs: object) -> None:
        self.next(self.end)

    @step
    def end(self) -> None:
        """Nothing."""


def warm_up() -> None:
    """Import what tasks will need, and run the code that each of them runs."""
    for name in _MODULES:
        importlib.import_module(name)
    for _ in range(_ROUNDS):
        threading._after_fork()  # type: ignore[attr-defined]  # what each fork does anyway
    parameters = Manifest(step="_parameters").encode()
    start = _spec("start", 1, encode_inputs(NoInputs()), {PARAMETERS_TASK: parameters})
    context = RunContext("WarmUp", "0", 0, "", None, (), "", "", "process", 10)
    blobs = BlobStore(MemoryStore())
    for _ in range(_ROUNDS):
        runner = Runner(context, blobs, _no_metadata, SystemClock())
        runner.definition = define(WarmUp)
        opened = AttemptSpec.decode(start.encode())
        manifest = runner.run(opened).manifest or b""
        along = {PARAMETERS_TASK: parameters, 1: manifest}
        work = _spec("work", 2, encode_inputs(FromTask(1)), along, split=1)
        runner.run(AttemptSpec.decode(work.encode())).message()


def _spec(
    step_name: str, task: int, inputs: bytes, along: dict[int, bytes], split: int | None = None
) -> AttemptSpec:
    inside = split is not None
    index, count = (0, 2) if inside else (None, None)
    return AttemptSpec(step_name, task, 0, inputs, split, index, count, inside, True, False, along)


def _no_metadata() -> MetadataStore:
    raise AssertionError("these tasks find all that they read in their specs")
