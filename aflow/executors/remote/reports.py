"""Send a worker's reports and acknowledgements, in order and with retries."""

from __future__ import annotations

import asyncio
import socket
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from aflow._core.backoff import Tries
from aflow.errors import InvalidMessage, LeaseLost, QueueUnavailable
from aflow.executors import protocol
from aflow.executors.protocol import ReportsMessage, TaskMessage
from aflow.queue.base import AWAY, Lease, Message, Queue
from aflow.queue.messages import Keys
from aflow.scheduler.states import AttemptState
from aflow.task.spec import AttemptReport

if TYPE_CHECKING:
    from aflow._core.clock import Clock


_SHOWN = 2000  # characters of an error message that is too large


class _Recipient(NamedTuple):
    """A coordinator: its topic and its run."""

    topic: str
    flow: str
    run: str


class ReportSender:
    """Sends reports to coordinators in batches and in order, and then acknowledges leases."""

    def __init__(self, queue: Queue, worker: str, keys: Keys, clock: Clock) -> None:
        self._queue = queue
        self._worker = worker
        self._keys = keys
        self._clock = clock
        self._host = socket.gethostname()[:200]
        self._number = 0
        self._events: defaultdict[_Recipient, list[Any]] = defaultdict(list)
        self._done: list[Lease] = []
        self._back: list[Lease] = []
        self._bury: list[Lease] = []
        self._news = asyncio.Event()
        self._closed = False
        self.undelivered = 0  # events and ends of leases that have not been sent yet

    def add(self, task: TaskMessage, event: Sequence[Any], done: Lease | None = None) -> None:
        """Queue an event for the coordinator of this task.

        Args:
            task: The message of the task, which names the topic for its reports.
            event: The event: its kind, followed by its fields.
            done: The lease to acknowledge after the event has been sent; None for none.
        """
        self._events[_Recipient(task.reply, task.flow, task.run)].append(event)
        if done is not None:
            self._done.append(done)
        self._note(1)

    def acknowledge(self, lease: Lease) -> None:
        """Acknowledge a message without a report.

        Args:
            lease: The lease of the message.
        """
        self._done.append(lease)
        self._note(1)

    def give_back(self, lease: Lease) -> None:
        """Return a message to the queue immediately, without counting the delivery.

        Args:
            lease: The lease of the message.
        """
        self._back.append(lease)
        self._note(1)

    def take_back(self) -> list[Lease]:
        """Return the leases that were not given back, after sending has ended."""
        back, self._back = self._back, []
        return back

    def bury(self, lease: Lease) -> None:
        """Move a message that no worker can process to the dead letters.

        Args:
            lease: The lease of the message.
        """
        self._bury.append(lease)
        self._note(1)

    def _note(self, count: int) -> None:
        self.undelivered += count
        self._news.set()

    def close(self) -> None:
        """Make `send` return when everything has been sent."""
        self._closed = True
        self._news.set()

    async def send(self) -> None:
        """Send everything that is queued, until `close` is called and nothing is left."""
        while True:
            await self._news.wait()
            self._news.clear()
            events, self._events = self._events, defaultdict(list)
            done, self._done = self._done, []
            back, self._back = self._back, []
            bury, self._bury = self._bury, []
            count = self.undelivered
            try:
                for reader, reports in events.items():
                    await self._put(reader, reports)
                await self._until_done(lambda: self._queue.ack(done))  # noqa: B023
                await self._until_done(lambda: self._queue.release(back, counted=False))  # noqa: B023
                await self._until_done(lambda: self._queue.bury(bury))  # noqa: B023
            except BaseException:
                self._back[:0] = back
                raise
            self.undelivered -= count
            if self._closed and not self._news.is_set():
                return

    async def _put(self, reader: _Recipient, events: list[Any]) -> None:
        """Send these events in messages within the size limit of the queue."""
        for part in protocol.parts(events, self._queue.largest):
            for body in self._fitting(reader, part):
                message = Message(f"{self._worker}/{self._number}", body)
                await self._until_done(lambda: self._queue.put(reader.topic, [message]))  # noqa: B023

    def _fitting(self, reader: _Recipient, part: Sequence[Any]) -> Iterator[bytes]:
        """Yield one message with these events, or several if one would be too large."""
        largest = self._queue.largest
        try:
            body = self._sealed(reader, part)
            is_too_large = largest is not None and len(body) > largest
        except InvalidMessage:  # too large for any queue
            is_too_large = True
        if not is_too_large:
            yield body
        elif len(part) > 1:  # `parts` only estimates sizes: each event may fit by itself
            half = len(part) // 2
            yield from self._fitting(reader, part[:half])
            yield from self._fitting(reader, part[half:])
        elif part[0][0] == protocol.ENDED:
            # All but ends are dropped: they contain what has grown, and output was split before.
            yield self._sealed(reader, [_too_large(part[0], self._queue.url)])

    def _sealed(self, reader: _Recipient, events: Sequence[Any]) -> bytes:
        self._number += 1
        message = ReportsMessage(
            flow=reader.flow,
            run=reader.run,
            worker=self._worker,
            host=self._host,
            number=self._number,
            events=events,
        )
        return message.seal(self._keys, reader.topic, self._clock.now())

    async def _until_done(self, call: Callable[[], Any]) -> None:
        """Retry the call while the broker is unavailable, so that no result is lost."""
        try:
            await Tries(AWAY).retry_async(call, QueueUnavailable)
        except LeaseLost:  # the message was redelivered; its attempt will turn out to be settled
            return


def _too_large(event: Sequence[Any], url: str) -> Sequence[Any]:
    """Return the end of an attempt whose report exceeds the queue's limit.

    An error message is truncated; a success that cannot be reported becomes a failure."""
    _, task, attempt, max_rss, cpu, *fields = event
    report = AttemptReport(task, attempt, *fields)
    report = report._replace(steps=(), foreach=None, splits=None, manifest=None, metadata=())
    if report.state != AttemptState.SUCCEEDED.value:
        cut = f"{report.reason[:_SHOWN]}... (of {len(report.reason)} characters)"
        report = report._replace(reason=report.reason if len(report.reason) <= _SHOWN else cut)
    else:
        size = len(AttemptReport(task, attempt, *fields).manifest or b"")
        report = report._replace(
            state=AttemptState.FAILED.value,
            reason=(
                f"What the task keeps of its small artifacts ({size} bytes) is larger than the "
                f"queue {url} takes: put many of them into one list or dict, or name a store for "
                "such messages in the URL of the queue (?bodies= for SQS)."
            ),
            retryable=False,
        )
    return (protocol.ENDED, task, attempt, max_rss, cpu, *report[2:])
