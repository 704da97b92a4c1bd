"""Group commit: whatever has come while one commit was being written goes out with the next.

A run's outcomes are written to the metadata in one thread, one transaction after the other. A
commit that has to reach the disk takes about a millisecond; ten outcomes that arrive meanwhile
share the next one. Each outcome knows the number of the commit that will hold it, and what has to
wait for that commit waits at the gate.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, assert_never

from aflow._core.threads import in_thread
from aflow.metadata.base import AttemptRecord, Batch, MetadataRecord, RunUpdate, TaskRecord
from aflow.scheduler.messages import FromBranches, FromForeach, FromTask, NoInputs, encode_events

if TYPE_CHECKING:
    from aflow.metadata.base import LeaseState, MetadataStore
    from aflow.runs.events import RunEvent
    from aflow.scheduler.messages import Event, Inputs, LaunchAttempt


class Pending:
    """What the next commit will write. An attempt that starts and ends within it is one row. What
    is `late` is worked out when it is written, in the thread that does."""

    def __init__(self) -> None:
        self.events: list[tuple[float, Event]] = []
        self.tasks: list[TaskRecord] = []
        self.attempts: dict[tuple[int, int], AttemptRecord] = {}
        self.late: list[Callable[[], MetadataRecord]] = []
        self.run: RunUpdate | None = None

    def batch(self) -> Batch:
        """Return the batch as the metadata store takes it."""
        return Batch(
            encode_events(self.events) if self.events else b"",
            self.tasks,
            [*self.attempts.values()],
            [each() for each in self.late],
            self.run,
        )


class GroupCommit:
    """Writes the commits of one run, in order.

    `committed(number)` is called on the event loop after each commit; `failed(error)` once, after
    which nothing is written any more: what was not committed never happened.
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
        self.pending = Pending()
        self.number = 0  # of the commit that will hold what is pending

    def touch(self) -> None:
        """Something was added to `pending`: see that it is written."""
        self._dirty = True
        if not self._writing and not self._broken:
            self._write()

    def _write(self) -> None:
        pending, self.pending = self.pending, Pending()
        self._writing, self._dirty = True, False
        self._idle.clear()
        # The lease is renewed while something is worked out, however long that takes.
        thread = ThreadPoolExecutor(1, "aflow-commit") if pending.late else self._thread
        future = self._loop.run_in_executor(thread, self._commit, pending)
        future.add_done_callback(self._written)
        if thread is not self._thread:
            thread.shutdown(wait=False)
        self.number += 1

    def _commit(self, pending: Pending) -> None:
        self._version = self._metadata.commit(self._run_key, self._version, pending.batch())

    def _written(self, future: asyncio.Future[None]) -> None:
        self._writing = False
        error = future.exception()
        if error is not None:
            self._broken = True
            self._idle.set()
            if not isinstance(error, Exception):
                raise error
            self._failed(error)
            return
        self._committed(self.number - 1)
        if self._dirty and not self._writing:
            self._write()
        elif not self._writing:
            self._idle.set()

    def acquire_lease(
        self, holder: str, seconds: float, at: float, notify: Callable[[LeaseState], None]
    ) -> None:
        """Renew the lease of this run's coordinator; `notify` is called on the event loop. Errors
        are left to the next commit.

        Args:
            holder: The name of the lease holder, as `holder_named` makes it.
            seconds: How long the lease is valid, from when it is written.
            at: When it happened, in seconds since the epoch.
            notify: Called with the state of the lease when it was written.
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
        """Write what is pending; then another holder may acquire the lease at once. If that fails,
        it may when this one's time is over.

        Args:
            holder: The name of the lease holder, as `holder_named` makes it.
        """
        await self.flush()
        if not self._broken:
            release_lease = self._thread.submit(self._metadata.release_lease, self._run_key, holder)
            await asyncio.wait([asyncio.wrap_future(release_lease)])

    async def flush(self) -> None:
        """Wait until all that is pending is written, or cannot be."""
        self.touch()
        await self._idle.wait()

    async def close(self) -> None:
        """Wait until all is written and let the thread go. May be called twice."""
        await self._idle.wait()
        # A sign of life may still be on its way: it must not open again what is closed after us.
        await in_thread(self._thread.shutdown)


class CommitGate:
    """What has to wait for a commit: attempts that read what it holds, and events that report it.

    Commits are named by their numbers. The gate does no I/O.
    """

    def __init__(self) -> None:
        self._uncommitted: dict[int, int] = {}  # task -> the commit that holds what it has left
        self._settled_in: defaultdict[int, list[int]] = defaultdict(list)
        self._attempts: defaultdict[int, list[LaunchAttempt]] = defaultdict(list)
        self._events: defaultdict[int, list[RunEvent]] = defaultdict(list)

    def settle(self, task: int, commit: int) -> None:
        """Note that what the task has left is in this commit.

        Args:
            task: The number of the task within its run.
            commit: The number of the commit, as GroupCommit counts them.
        """
        self._uncommitted[task] = commit
        self._settled_in[commit].append(task)

    def commit_of(self, inputs: Inputs) -> int | None:
        """Return the commit that a task with these inputs has to wait for; None where all is
        written.

        Args:
            inputs: Which tasks the inputs come from.
        """
        if not self._uncommitted:
            return None
        match inputs:
            case FromTask(task):
                return self._uncommitted.get(task)
            case FromBranches(tasks):
                return max((self._uncommitted.get(task, -1) for task in tasks), default=-1)
            case FromForeach():  # which of them it reads, the store knows
                return max(self._uncommitted.values())
            case NoInputs():
                return None
            case _:
                assert_never(inputs)

    def hold_attempt(self, launch: LaunchAttempt, commit: int) -> None:
        """Keep an attempt until this commit is written.

        Args:
            launch: The command to launch the attempt.
            commit: The number of a commit that is not written yet.
        """
        self._attempts[commit].append(launch)

    def withdraw(self, task: int, attempt: int) -> LaunchAttempt | None:
        """Take an attempt back that is kept here.

        Args:
            task: The number of the task within its run.
            attempt: The number of the attempt, from 0.

        Returns:
            None where it is not.
        """
        for held in self._attempts.values():
            for launch in held:
                if (launch.task, launch.attempt) == (task, attempt):
                    held.remove(launch)
                    return launch
        return None

    def hold_event(self, event: RunEvent, commit: int) -> None:
        """Keep an event until this commit is written.

        Args:
            event: The event to publish.
            commit: The number of a commit that is not written yet.
        """
        self._events[commit].append(event)

    def open(self, commit: int) -> tuple[Sequence[RunEvent], Sequence[LaunchAttempt]]:
        """Return the events and the attempts that were held for this commit, which is written now.

        Args:
            commit: The number of the commit; nothing may have been held for it.
        """
        for task in self._settled_in.pop(commit, ()):
            if self._uncommitted.get(task) == commit:
                del self._uncommitted[task]
        return self._events.pop(commit, ()), self._attempts.pop(commit, ())
