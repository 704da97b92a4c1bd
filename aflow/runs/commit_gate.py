"""Group commit: all outcomes that arrive during one commit are written with the next one.

A run's outcomes are written to the metadata store by one thread, one transaction after the other. A
commit that has to reach the disk takes about a millisecond; all outcomes that arrive in that time
share the next commit. Each outcome is assigned the number of the commit that will contain it, and
attempts and events that depend on that commit are held by `CommitGate`.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, assert_never

from aflow._core.threads import in_thread
from aflow.metadata.base import AttemptRecord, Batch, MetadataRecord, RunUpdate, TaskRecord
from aflow.scheduler.messages import FromBranches, FromForeach, FromTask, NoInputs, encode_events

if TYPE_CHECKING:
    from aflow.metadata.base import LeaseState, MetadataStore
    from aflow.runs.events import RunEvent
    from aflow.scheduler.messages import Event, Inputs, LaunchAttempt


class Pending:
    """The contents of the next commit.

    An attempt that starts and ends within one commit is written as one row. The callables in `late`
    compute their records during the commit, in the thread that writes it.
    """

    def __init__(self, written: asyncio.Future[None]) -> None:
        self.written = written  # is done when the commit is
        self.events: list[tuple[float, Event]] = []
        self.tasks: list[TaskRecord] = []
        self.attempts: dict[tuple[int, int], AttemptRecord] = {}
        self.late: list[Callable[[], MetadataRecord]] = []
        self.run: RunUpdate | None = None

    def batch(self) -> Batch:
        """Return the contents as a batch for the metadata store. Blocks: calls those in `late`."""
        return Batch(
            encode_events(self.events) if self.events else b"",
            self.tasks,
            [*self.attempts.values()],
            [each() for each in self.late],
            self.run,
        )


class GroupCommit:
    """Writes the commits of one run, in order.

    `committed(number)` is called on the event loop after each commit. `failed(error)` is called
    once, if a commit fails: nothing is written after that, and uncommitted outcomes are lost.
    """

    def __init__(
        self,
        metadata: MetadataStore,
        run_key: int,
        version: int,
        committed: Callable[[int], None],
        failed: Callable[[Exception], None],
    ) -> None:
        self._metadata = metadata
        self._run_key = run_key
        self._version = version
        self._committed = committed
        self._failed = failed
        self._thread = ThreadPoolExecutor(1, "aflow-commit")
        self._loop = asyncio.get_running_loop()
        self._writing = False
        self._broken = False
        self._dirty = False
        self._idle = asyncio.Event()
        self._idle.set()
        self.pending = Pending(self._loop.create_future())
        self.number = 0  # of the commit that will write `pending`

    def touch(self) -> None:
        """Schedule a commit, because something was added to `pending`."""
        self._dirty = True
        if not self._writing and not self._broken:
            self._write()

    def _write(self) -> None:
        pending, self.pending = self.pending, Pending(self._loop.create_future())
        self._writing, self._dirty = True, False
        self._idle.clear()
        # `late` may take long to compute: the usual thread has to stay free to renew the lease.
        thread = ThreadPoolExecutor(1, "aflow-commit") if pending.late else self._thread
        future = self._loop.run_in_executor(thread, self._commit, pending)
        future.add_done_callback(partial(self._written, pending.written))
        if thread is not self._thread:
            thread.shutdown(wait=False)
        self.number += 1

    def _commit(self, pending: Pending) -> None:
        self._version = self._metadata.commit(self._run_key, self._version, pending.batch())

    def _written(self, written: asyncio.Future[None], future: asyncio.Future[None]) -> None:
        self._writing = False
        error = future.exception()
        if error is not None:
            for each in (written, self.pending.written):
                if not each.done():
                    each.set_exception(error)
                    each.exception()  # nothing may wait for it
            self._broken = True
            self._idle.set()
            if not isinstance(error, Exception):
                raise error
            self._failed(error)
            return
        if not written.done():  # cancelled with the only task that waited for it
            written.set_result(None)
        self._committed(self.number - 1)
        if self._dirty and not self._writing:
            self._write()
        elif not self._writing:
            self._idle.set()

    def acquire_lease(
        self, holder: str, seconds: float, at: float, notify: Callable[[LeaseState], None]
    ) -> None:
        """Renew the lease of this run's coordinator; `notify` is called on the event loop. Errors
        are ignored: the next commit will fail as well.

        Args:
            holder: The name of the lease holder, from `holder_named`.
            seconds: How long the lease is valid, from the time of the write.
            at: The present time, in seconds since the epoch.
            notify: Called with the state of the lease after the write.
        """

        def answered(future: Future[LeaseState]) -> None:
            if future.exception() is None:
                self._loop.call_soon_threadsafe(notify, future.result())

        if not self._broken:
            held = self._thread.submit(
                self._metadata.acquire_lease, self._run_key, holder, seconds, at
            )
            held.add_done_callback(answered)

    async def release_lease(self, holder: str) -> None:
        """Write all pending outcomes, then release the lease. If that fails, another holder can
        acquire the lease only after it has expired.

        Args:
            holder: The name of the lease holder, from `holder_named`.
        """
        await self.flush()
        if not self._broken:
            release_lease = self._thread.submit(self._metadata.release_lease, self._run_key, holder)
            await asyncio.gather(asyncio.wrap_future(release_lease), return_exceptions=True)

    async def flush(self) -> None:
        """Wait until all pending outcomes are written, or a commit has failed."""
        self.touch()
        await self._idle.wait()

    async def close(self) -> None:
        """Wait until all commits are written, and stop the thread. Idempotent."""
        await self._idle.wait()
        # A heartbeat may still be in flight: it must not reopen the store after it is closed.
        await in_thread(self._thread.shutdown)


class CommitGate:
    """Holds what depends on a commit: attempts that read its results, events that report them.

    Commits are identified by their numbers. The gate does no I/O.
    """

    def __init__(self) -> None:
        self._uncommitted: dict[int, int] = {}  # task -> the commit that contains its results
        self._settled_in: defaultdict[int, list[int]] = defaultdict(list)
        self._attempts: defaultdict[int, dict[tuple[int, int], LaunchAttempt]] = defaultdict(dict)
        self._events: defaultdict[int, list[RunEvent]] = defaultdict(list)

    def settle(self, task: int, commit: int) -> None:
        """Note that the results of the task are part of this commit.

        Args:
            task: The number of the task within its run.
            commit: The number of the commit, see `GroupCommit.number`.
        """
        self._uncommitted[task] = commit
        self._settled_in[commit].append(task)

    def commit_of(self, inputs: Inputs) -> int | None:
        """Return the commit that a task with these inputs has to wait for; None if all inputs are
        committed.

        Args:
            inputs: The tasks whose artifacts are the inputs.
        """
        if not self._uncommitted:
            return None
        match inputs:
            case FromTask(task):
                return self._uncommitted.get(task)
            case FromBranches(tasks):
                known = self._uncommitted
                return max((known[task] for task in tasks if task in known), default=None)
            case FromForeach():  # only the store knows which tasks these are
                return max(self._uncommitted.values())
            case NoInputs():
                return None
            case _:
                assert_never(inputs)

    def hold_attempt(self, launch: LaunchAttempt, commit: int) -> None:
        """Hold an attempt until this commit is written.

        Args:
            launch: The command to launch the attempt.
            commit: The number of a commit that is not written yet.
        """
        self._attempts[commit][launch.task, launch.attempt] = launch

    def withdraw(self, task: int, attempt: int) -> LaunchAttempt | None:
        """Remove a held attempt.

        Args:
            task: The number of the task within its run.
            attempt: The number of the attempt, from 0.

        Returns:
            The command to launch the attempt; None if it is not held.
        """
        held = (each.pop((task, attempt), None) for each in self._attempts.values())
        return next(filter(None, held), None)

    def hold_event(self, event: RunEvent, commit: int) -> None:
        """Hold an event until this commit is written.

        Args:
            event: The event to publish.
            commit: The number of a commit that is not written yet.
        """
        self._events[commit].append(event)

    def open(self, commit: int) -> tuple[Sequence[RunEvent], Sequence[LaunchAttempt]]:
        """Return the events and the attempts that were held for a commit, and release them.

        Args:
            commit: The number of the commit, which has been written.
        """
        for task in self._settled_in.pop(commit, ()):
            if self._uncommitted.get(task) == commit:
                del self._uncommitted[task]
        return self._events.pop(commit, ()), [*self._attempts.pop(commit, {}).values()]
