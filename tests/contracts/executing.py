"""An executor with the flow of actions, and a listener that records its reports."""

from __future__ import annotations

import asyncio
import gc
import os
import select
import signal
import uuid
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from aflow._core.clock import SystemClock
from aflow.executors.base import Usage
from aflow.executors.local.executor import ProcessExecutor, needs_of
from aflow.executors.local.zygote_client import ZygoteProcess
from aflow.executors.local.zygote_start import spawn_zygote
from aflow.flow.spec import define
from aflow.scheduler.messages import FromTask, encode_inputs
from aflow.storage.artifacts import ArtifactReader, ArtifactWriter, Manifest
from aflow.storage.blobs import BlobStore
from aflow.storage.memory import MemoryStore
from aflow.task.program import request_of
from aflow.task.spec import AttemptReport, AttemptSpec, RunContext
from tests.contracts.flow_of_actions import ActionFlow
from tests.contracts.over_a_queue import OverAQueue
from tests.contracts.over_batch import OverBatch
from tests.support.waiting import wait_until

KINDS = ["task", "worker", "coroutine"]
EVERYWHERE = [*KINDS, "queue"]  # and by a worker that takes attempts from a queue
BATCH = pytest.param("batch", marks=pytest.mark.xdist_group("batch"))  # jobs, slow to start
GRACE = 0.3  # seconds; for tests in which nobody is to wait for it, and for those that do
BLOBS = BlobStore(MemoryStore())  # small values are inline in the manifests
PARENTS = 10_000  # numbers of the tasks that store the actions start here


class Recorder:
    """Records the reports of each task, in order."""

    def __init__(self) -> None:
        self.said: defaultdict[int, list[str]] = defaultdict(list)
        self.handles: dict[int, str] = {}
        self.hosts: dict[int, str] = {}
        self.pids: dict[int, int | None] = {}
        self.reports: dict[int, AttemptReport] = {}
        self.usages: dict[int, Usage] = {}
        self.sizes: defaultdict[int, int] = defaultdict(int)
        self.largest = 0
        self.keeps: Callable[[int], bool] = lambda task: True
        self._output: defaultdict[tuple[int, int], bytearray] = defaultdict(bytearray)
        self._changed = asyncio.Event()

    def handed(self, task: int, attempt: int, handle: str, host: str = "") -> None:
        self.handles[task], self.hosts[task] = handle, host
        self._changed.set()

    def started(self, task: int, attempt: int, pid: int | None, at: float) -> None:
        self.said[task].append("started")
        self.pids[task] = pid
        self._changed.set()

    def logged(self, task: int, attempt: int, stream: int, at: float, chunk: bytes) -> None:
        if self.said[task][-1:] != ["logged"]:
            self.said[task].append("logged")
        self.sizes[task] += len(chunk)
        self.largest = max(self.largest, len(chunk))
        if self.keeps(task):
            self._output[(task, stream)] += chunk
        self._changed.set()

    def grown(self, task: int, attempt: int, count: int, manifest: bytes) -> None:
        self.said[task].append("grown")
        self._changed.set()

    def ended(self, report: AttemptReport, usage: Usage) -> None:
        self.said[report.task].append("ended")
        self.reports[report.task] = report
        self.usages[report.task] = usage
        self._changed.set()

    async def until(self, happened: Callable[[], Any]) -> None:
        """Wait until the reports satisfy a condition."""
        while not happened():
            self._changed.clear()
            await self._changed.wait()

    def out(self, task: int, stream: int = 0) -> bytes:
        """Return the task's output so far."""
        return bytes(self._output[(task, stream)])

    def lines(self, task: int) -> list[bytes]:
        """Return the task's lines on stdout so far, sorted."""
        return sorted(self.out(task).splitlines())


class Bench:
    """One executor with its launched tasks and its reports."""

    def __init__(self, executor: Any, kind: str, zygotes: list[ZygoteProcess]):
        self.executor = executor
        self.kind = kind
        self.zygotes = zygotes  # the started processes, in order
        self.recorder = Recorder()
        self.specs: dict[int, AttemptSpec] = {}
        self._tasks = 0

    def launch(self, action: str, *args: Any, step: str | None = None) -> int:
        """Launch an attempt with an action, and return the number of its task."""
        task = self.prepare(action, *args, step=step)
        self.executor.launch(self.specs[task])
        return task

    def handle_of(self, task: int) -> str:
        """Return the latest reported handle of the task."""
        return self.recorder.handles.get(task, "")

    def prepare(self, action: str, *args: Any, step: str | None = None) -> int:
        """Store the action of a new task without launching it, and return the task's number."""
        self._tasks += 1
        task, parent = self._tasks, PARENTS + self._tasks
        manifest = Manifest(step="start")
        manifest.artifacts["action"] = ArtifactWriter(BLOBS).save("action", (action, *args))
        along = {0: Manifest(step="_parameters").encode(), parent: manifest.encode()}
        step = step or ("act_async" if self.kind == "coroutine" else "act")
        inputs = encode_inputs(FromTask(parent))
        self.specs[task] = AttemptSpec(
            step, task, 0, inputs, None, None, None, False, True, False, along
        )
        return task

    def cancel(self, task: int) -> None:
        self.executor.cancel(task, 0)

    async def started(self, *tasks: int) -> list[int]:
        """Wait until the tasks have started, and return their process ids."""
        await self.recorder.until(lambda: all(task in self.recorder.pids for task in tasks))
        pids = [self.recorder.pids[task] for task in tasks]
        assert None not in pids
        return [pid for pid in pids if pid is not None]

    async def written(self, task: int, data: bytes) -> None:
        """Wait until the task has written this."""
        await self.recorder.until(lambda: data in self.recorder.out(task))

    async def ended(self, *tasks: int) -> list[str]:
        """Wait until the tasks have ended, and return their states."""
        await self.recorder.until(lambda: all(task in self.recorder.reports for task in tasks))
        return [self.recorder.reports[task].state for task in tasks]

    async def does(self, action: str, *args: Any) -> Any:
        """Run an action in an attempt that succeeds, and return its result."""
        task = self.launch(action, *args)
        assert ["succeeded"] == await self.ended(task), self.reason(task)
        return self.result(task)

    def result(self, task: int) -> Any:
        """Return the result of a task's action."""
        manifest = self.recorder.reports[task].manifest
        assert manifest is not None
        return ArtifactReader(BLOBS).load("result", Manifest.decode(manifest).artifacts["result"])

    def reason(self, task: int) -> str:
        """Return why a task did not succeed."""
        return self.recorder.reports[task].reason

    def check_order(self) -> None:
        """Check for each launched task: at most one start, then its output, then one end."""
        orders = [["started", "logged", "ended"], ["started", "ended"], ["ended"]]
        for task in range(1, self._tasks + 1):
            assert self.recorder.said[task] in orders, f"task {task}"


def new_executor(
    kind: str = "task",
    workers: int = 2,
    grace: float = GRACE,
    start: Callable[[], ZygoteProcess] | None = None,
) -> Bench:
    """Return an executor that has not started."""
    definition = define(ActionFlow)
    zygotes: list[ZygoteProcess] = []

    def start_one() -> ZygoteProcess:
        zygotes.append(start() if start else spawn_zygote())
        return zygotes[-1]

    if kind == "queue":
        return Bench(OverAQueue(definition, workers, grace), kind, zygotes)
    if kind == "batch":
        return Bench(OverBatch(definition, grace), kind, zygotes)
    executor = ProcessExecutor(
        needs_of(definition),
        request_of(definition),
        start_one,
        SystemClock(),
        max_workers=workers,
        isolation="worker" if kind == "worker" else "task",
        grace=grace,
    )
    return Bench(executor, kind, zygotes)


def context_in(folder: Path) -> RunContext:
    """Return the context that all attempts share."""
    return RunContext(
        flow="ActionFlow",
        run="1",
        run_key=1,
        user="tester",
        namespace=None,
        tags=(),
        storage_url=(folder / "store").as_uri(),
        metadata_url=f"sqlite:///{folder}/metadata.db",
        durability="process",
        max_num_splits=100,
    )


@asynccontextmanager
async def executing(folder: Path, kind: str = "task", **options: Any) -> AsyncIterator[Bench]:
    """Run an executor; afterwards check the order of its reports, and that it leaves nothing."""
    with nothing_left():
        bench = new_executor(kind, **options)
        try:
            await bench.executor.start(context_in(folder), bench.recorder)
            yield bench
        finally:
            await bench.executor.stop()
        await settled()
        bench.check_order()


async def settled() -> None:
    """Let the event loop process everything that is due."""
    for _ in range(3):
        await asyncio.sleep(0)


# ------------------------------------------------------------------ leftovers


@contextmanager
def nothing_left() -> Iterator[None]:
    """Check that the block leaves no process and no open descriptor."""
    if not Path("/proc/self/environ").exists():
        pytest.skip("this system does not list processes and descriptors")
    mark = f"ACTIONS_MARK={uuid.uuid4().hex}"
    name, _, value = mark.partition("=")
    gc.collect()  # garbage of earlier tests must not be closed during this one
    before, ended_before = descriptors(), zombies()
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]
        left = [pid for pid in processes_with(mark) if not ends(pid)]
        for pid in left:
            os.kill(pid, signal.SIGKILL)
    assert [] == left
    assert [] == [pid for pid in zombies() if pid not in ended_before]
    # Connections of a stand-in that runs in a thread of this process come and go meanwhile; it
    # keeps them for a while.
    wait_until(
        lambda: not {*descriptors()} - {*before},
        lambda: f"left open: {sorted({*descriptors()} - {*before})}",
    )


def descriptors() -> list[str]:
    """Return the open files of this process."""
    found = []
    for number in os.listdir("/proc/self/fd"):
        try:
            found.append(f"{number} {os.readlink(f'/proc/self/fd/{number}')}")
        except FileNotFoundError:  # the descriptor of the listing itself
            continue
    return sorted(found)


def processes_with(mark: str) -> list[int]:
    """Return all processes that have inherited the variable, even if their parent has changed."""
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            environment = Path(f"/proc/{entry}/environ").read_bytes()
        except OSError:  # it has exited, or belongs to another user
            continue
        if mark.encode() in environment.split(b"\0"):
            found.append(int(entry))
    return found


def zombies() -> list[int]:
    """Return the child processes that have exited but were not waited for."""
    try:
        found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return []
    return [] if found is None else [found.si_pid]


def ends(pid: int, patience: float = 5.0) -> bool:
    """Return whether a process has exited or exits soon: a killed process takes a moment."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], patience)[0])
    finally:
        os.close(descriptor)


def is_alive(pid: int) -> bool:
    """Return whether a process is running; False for a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
