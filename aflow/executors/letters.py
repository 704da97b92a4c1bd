"""What coordinators and workers say to each other over a queue: envelopes of plain values.

tasks.<pool>      task     one attempt: what to run, and where to report
reports.<run>     reports  what a worker has to say of the attempts of one run
worker.<id>       cancel   which attempts that worker is to stop
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from aflow.errors import InvalidMessage
from aflow.queue.envelope import seal, unseal

DEFAULT_POOL = "default"

# Kinds of events in reports. Each is an array that begins with kind, task and attempt.
STARTED = 0  # [.., pid, at]
LOGGED = 1  # [.., stream, at, bytes]
ENDED = 2  # [.., peak memory, CPU seconds, *rest of AttemptReport]
GROWN = 3  # [.., items so far, manifest]

Key = bytes | None

LARGEST_MANIFEST = 32 << 20  # bytes; half of what a message can have
_MOST_EVENTS = 500  # in a letter
_MOST_BYTES = 1 << 20  # of output and manifests in a letter with more than one event


def tasks_topic(pool: str) -> str:
    """Where the tasks of a pool wait."""
    return f"tasks.{pool}"


def reports_topic(flow: str, run: str) -> str:
    """Where workers report on a run: the same name after its coordinator has started again."""
    return f"reports.{hashlib.sha256(f'{flow}/{run}'.encode()).hexdigest()[:32]}"


def worker_topic(worker: str) -> str:
    """Where a worker is told what concerns it alone."""
    return f"worker.{worker}"


class TaskLetter(NamedTuple):
    """One attempt. `job` is the parcel of its run, `spec` an encoded AttemptSpec, `launch` tells
    one message for an attempt from the next."""

    store: str
    flow: str
    run: str
    job: str
    reply: str
    spec: bytes
    launch: int

    def seal(self, key: Key) -> bytes:
        """The letter as the body of a message."""
        return seal("task", self._asdict(), key)


class ReportsLetter(NamedTuple):
    """What a worker reports. `number` counts its letters: a second delivery has the same one."""

    worker: str
    host: str
    number: int
    events: Sequence[Any]

    def seal(self, key: Key) -> bytes:
        """The letter as the body of a message."""
        return seal("reports", self._asdict(), key)


class CancelLetter(NamedTuple):
    """Attempts that a worker is to stop: [flow, run, task, attempt] each."""

    attempts: Sequence[Sequence[Any]]

    def seal(self, key: Key) -> bytes:
        """The letter as the body of a message."""
        return seal("cancel", self._asdict(), key)


def parts(events: Sequence[Sequence[Any]]) -> Iterator[list[Sequence[Any]]]:
    """The events as they go into letters: in order, none too large for a broker to take."""
    part: list[Sequence[Any]] = []
    size = 0
    for event in events:
        weight = sum(len(each) for each in event if isinstance(each, bytes))
        if part and (len(part) >= _MOST_EVENTS or size + weight > _MOST_BYTES):
            yield part
            part, size = [], 0
        part.append(event)
        size += weight
    if part:
        yield part


Letter = TaskLetter | ReportsLetter | CancelLetter

_KINDS: dict[str, type[Letter]] = {
    "task": TaskLetter,
    "reports": ReportsLetter,
    "cancel": CancelLetter,
}


def unseal_letter(body: bytes, kind: str, key: Key) -> Any:
    """The letter of this kind; raises ForgedMessage and InvalidMessage."""
    _, fields = unseal(body, (kind,), key)
    try:
        return _KINDS[kind](**fields)
    except TypeError as error:
        raise InvalidMessage(f"A message of kind {kind} has other fields: {error}.") from error
