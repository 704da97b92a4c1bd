"""The template process: it has imported the flow, and every process that runs attempts is forked
from it.

It is single-threaded and has no event loop, so that a fork is safe at any time. It knows nothing
of runs and outcomes: it forks, kills, and says who ended how. When the coordinator goes away, it
kills all that it has forked, and ends.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import msgpack

from aflow import collector, ending
from aflow.attempt.runner import Runner
from aflow.attempt.spec import GROWN, AttemptSpec, RunContext
from aflow.clock import SystemClock
from aflow.executors.local import inside, wire
from aflow.executors.local.warm_up import warm_up
from aflow.storage.blobs import BlobStore

if TYPE_CHECKING:
    from aflow.flow.definition import FlowDefinition
    from aflow.metadata.base import MetadataStore
    from aflow.storage.base import ObjectStore

OpenStore = Callable[[str], "ObjectStore"]
OpenMetadata = Callable[[str, str], "MetadataStore"]


class Template:
    """Forks processes on request. `open_store` and `open_metadata` turn the URLs of a run's
    context into backends, in the processes that need them."""

    def __init__(
        self,
        control: socket.socket,
        definition: FlowDefinition,
        open_store: OpenStore,
        open_metadata: OpenMetadata,
    ) -> None:
        self._control = control
        self._definition = definition
        self._open_store = open_store
        self._open_metadata = open_metadata
        self._children: dict[int, int] = {}  # pid -> the coordinator's id
        self._pids: dict[int, int] = {}  # the coordinator's id -> pid
        self._unpacker = wire.unpacker()
        self._fds: list[int] = []
        self._runner: Runner | None = None
        self._clock = SystemClock()
        self._pid = os.getpid()

    def serve(self) -> None:
        """Do what the coordinator asks, until it closes its end; then kill all and return."""
        wakeup = self._prepare()
        poll = select.poll()
        poll.register(self._control, select.POLLIN)
        poll.register(wakeup, select.POLLIN)
        try:
            while True:
                ready = {fd for fd, _ in poll.poll()}
                if wakeup in ready:
                    os.read(wakeup, 4096)
                    self._reap()
                if self._control.fileno() in ready and not self._obey():
                    return
        finally:
            for pid in self._children:
                kill_group(pid, signal.SIGKILL)

    def _prepare(self) -> int:
        """Signals, streams and memory, before the first fork; the descriptor that wakes us."""
        readable, writable = os.pipe()
        os.set_blocking(writable, False)
        signal.signal(signal.SIGCHLD, lambda signum, frame: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
        inside.load_prctl()
        inside.close_stdin()
        inside.forget_exit_functions()
        for stream in (sys.stdout, sys.stderr):
            stream.reconfigure(line_buffering=True, errors="surrogateescape")  # type: ignore[union-attr]
        warm_up()
        # Pages of objects that the collector has moved to its permanent generation stay shared
        # with the forked processes: a collection there does not touch them.
        collector.as_usual()
        gc.collect()
        ending.prepare()
        gc.freeze()
        return readable

    # ------------------------------------------------------------ requests

    def _obey(self) -> bool:
        """Read and carry out what has come; False when the coordinator is gone."""
        data, fds = wire.receive(self._control)
        if not data:
            return False
        self._fds += fds
        self._unpacker.feed(data)
        for message in self._unpacker:
            self._carry_out(message)
        return True

    def _carry_out(self, message: tuple[Any, ...]) -> None:
        kind, *rest = message
        if kind == wire.RUN:
            child, spec = rest
            fds = self._take(3)
            attempt = AttemptSpec.decode(spec)
            # Decoded here, where it stays decoded for all tasks that read the same.
            self._configured.remember(attempt)
            self._fork(child, fds, lambda: self._run_one(attempt, *fds))
        elif kind == wire.KILL:
            child, signum = rest
            if child in self._pids:
                kill_group(self._pids[child], signum)
        elif kind == wire.WORK:
            child, coroutines = rest
            fds = self._take(6)
            self._fork(child, fds, lambda: self._work(coroutines, *fds))
        elif kind == wire.CONFIGURE:
            self._configure(RunContext(*rest[0]))
        else:
            raise AssertionError(f"no such request: {kind}")

    def _take(self, count: int) -> list[int]:
        taken, self._fds = self._fds[:count], self._fds[count:]
        return taken

    def _configure(self, context: RunContext) -> None:
        blobs = BlobStore(self._open_store(context.storage_url), context.durability == "power")
        if context.remote:
            from aflow.attempt.remote import RemoteRunner  # only workers of a queue need it

            self._runner = RemoteRunner(self._definition, context, blobs, self._clock)
            return
        self._runner = Runner(
            self._definition,
            context,
            blobs,
            lambda: self._open_metadata(context.metadata_url, context.durability),
            self._clock,
        )

    def _fork(self, child: int, fds: list[int], body: Callable[[], None]) -> None:
        try:
            pid = os.fork()
        except OSError as error:
            self._say(wire.NOT_FORKED, child, f"no process could be started: {error.strerror}")
        else:
            if pid == 0:
                self._become(body)
            self._children[pid] = child
            self._pids[child] = pid
            self._say(wire.FORKED, child, pid, self._clock.now())
        finally:
            wire.close_all(fds)

    # ------------------------------------------------------------ in the forked process

    def _become(self, body: Callable[[], None]) -> None:
        """Run the body as a process of its own; never returns."""
        code = 1
        try:
            inside.begin(self._pid)
            os.close(self._control.fileno())
            body()
            code = 0
        except BaseException:  # noqa: BLE001 -- a fault of ours: the coordinator reports it with the exit code
            import traceback

            traceback.print_exc()
        finally:
            inside.end(code)

    def _run_one(self, spec: AttemptSpec, stdout: int, stderr: int, report: int) -> None:
        inside.redirect(stdout, stderr)
        pid = os.getpid()
        runner = self._configured
        runner.announce = lambda *grown: inside.write_all(report, msgpack.packb((GROWN, *grown)))
        ended = runner.run(spec)
        if os.getpid() != pid:
            return  # the step forked, and this is its child: it has nothing to report
        inside.flush()
        inside.write_all(report, msgpack.packb(ended.message()))

    def _work(self, coroutines: bool, *fds: int) -> None:
        # Only these processes need the modules (asyncio among them, for the coroutines).
        if coroutines:
            from aflow.executors.local.coroutines import CoroutineWorker as Work
        else:
            from aflow.executors.local.work import SequentialWorker as Work  # type: ignore[assignment]

        Work(self._configured, *fds).serve()

    @property
    def _configured(self) -> Runner:
        assert self._runner is not None, "CONFIGURE comes first"
        return self._runner

    # ------------------------------------------------------------ ends

    def _reap(self) -> None:
        """Say of each child that has ended how it did, and end what it left running."""
        while True:
            # WNOWAIT: while the child is not reaped, its number cannot name another group.
            info = (
                os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                if self._children
                else None
            )
            if info is None:
                return
            kill_group(info.si_pid, signal.SIGKILL)
            pid, status, usage = os.wait4(info.si_pid, 0)
            child = self._children.pop(pid, None)
            if child is not None:
                del self._pids[child]
                cpu = usage.ru_utime + usage.ru_stime
                self._say(wire.EXITED, child, status, usage.ru_maxrss * 1024, cpu)

    def _say(self, *message: Any) -> None:
        try:
            self._control.sendall(msgpack.packb(message))
        except OSError:  # the coordinator is gone: the next read sees the end and kills all
            return


def kill_group(pid: int, signum: int) -> None:
    """Send a signal to a process and all that it has started, if there is any left."""
    try:
        os.killpg(pid, signum)
    except ProcessLookupError:
        try:
            os.kill(pid, signum)  # it was just forked and has no group of its own yet
        except ProcessLookupError:
            return
