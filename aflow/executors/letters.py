"""What coordinators and workers say to each other over a queue: envelopes of plain values.

tasks.<pool>      task     one attempt: what to run, and where to report
reports.<run>     reports  what a worker has to say of the attempts of one run
worker.<id>       cancel   which attempts that worker is to stop
(announced)                what a worker says of itself to all: Presence

What comes from a queue is checked field by field before anything is done with it: others can write
there. A letter that is not as it has to be raises InvalidMessage.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgpack

from aflow import ids
from aflow.attempt.spec import AttemptReport, AttemptSpec
from aflow.errors import AflowError, InvalidMessage
from aflow.queue.envelope import Keys, seal, unseal
from aflow.scheduler.codec import decode_inputs
from aflow.scheduler.states import AttemptState
from aflow.storage.manifest import Manifest

DEFAULT_POOL = "default"

# Kinds of events in reports. Each is an array that begins with kind, task and attempt.
STARTED = 0  # [.., pid, at]
LOGGED = 1  # [.., stream, at, bytes]
ENDED = 2  # [.., peak memory, CPU seconds, *rest of AttemptReport]
GROWN = 3  # [.., items so far, manifest]
DECLINED = 4  # [.., why]: this worker cannot run the flow, and has given the attempt back

LARGEST_MANIFEST = 32 << 20  # bytes; half of what a message can have
_MOST_EVENTS = 500  # in a letter
_MOST_BYTES = 1 << 20  # of output and manifests in a letter with more than one event
_ROOM = 4096  # bytes of a letter beside them


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

    def seal(self, keys: Keys, topic: str, at: float) -> bytes:
        """The letter as the body of a message for this topic."""
        return seal("task", topic, at, self._asdict(), keys)

    @property
    def attempt(self) -> AttemptSpec:
        """The attempt; raises InvalidMessage for what is none."""
        try:
            spec = AttemptSpec.decode(self.spec)
            decode_inputs(spec.inputs)
        except Exception as error:
            raise InvalidMessage("A message names an attempt that cannot be read.") from error
        for name, value in zip(spec._fields, spec, strict=True):
            _check("an attempt", name, value, _SPEC[name])
        return spec


class ReportsLetter(NamedTuple):
    """What a worker reports of a run. `number` counts its letters: a second delivery has the same
    one."""

    flow: str
    run: str
    worker: str
    host: str
    number: int
    events: Sequence[Any]

    def seal(self, keys: Keys, topic: str, at: float) -> bytes:
        """The letter as the body of a message for this topic."""
        return seal("reports", topic, at, self._asdict(), keys)


class CancelLetter(NamedTuple):
    """Attempts that a worker is to stop: [flow, run, task, attempt] each."""

    attempts: Sequence[Sequence[Any]]

    def seal(self, keys: Keys, topic: str, at: float) -> bytes:
        """The letter as the body of a message for this topic."""
        return seal("cancel", topic, at, self._asdict(), keys)


class Presence(NamedTuple):
    """What a worker announces of itself: its pools, how many tasks it runs at a time, the ids of
    messages that it has had for a while, and the runs (groups of messages) that it leaves to
    others, with the reason. Nobody signs it: it decides nothing but what is waited for."""

    pools: Sequence[str]
    slots: int
    held: Sequence[str]
    declined: Mapping[str, str]

    def encode(self) -> bytes:
        """As bytes."""
        return msgpack.packb([1, *self])  # type: ignore[no-any-return]

    @classmethod
    def decode(cls, data: bytes) -> Presence | None:
        """What `encode` gave; None for anything else."""
        try:
            _, pools, slots, held, declined = msgpack.unpackb(data)
            found = cls(pools, slots, held, declined)
            for name, value in zip(found._fields, found, strict=True):
                _check("a worker", name, value, _PRESENCE[name])
        except Exception:  # noqa: BLE001 -- a stranger's, or a later version's: as if not there
            return None
        return found


def parts(
    events: Sequence[Sequence[Any]], largest: int | None = None
) -> Iterator[list[Sequence[Any]]]:
    """The events as they go into letters: in order, none too large for a broker that takes bodies
    of `largest` bytes, but for single ones that cannot be divided."""
    room = _MOST_BYTES if largest is None else max(1, min(_MOST_BYTES, largest - _ROOM) - 1)
    each_event = 0 if largest is None else 64  # bytes of one beside what it carries
    part: list[Sequence[Any]] = []
    size = 0
    for event in _divided(events, room):
        weight = each_event + sum(len(each) for each in event if isinstance(each, bytes | str))
        if part and (len(part) >= _MOST_EVENTS or size + weight > room):
            yield part
            part, size = [], 0
        part.append(event)
        size += weight
    if part:
        yield part


def _divided(events: Sequence[Sequence[Any]], room: int) -> Iterator[Sequence[Any]]:
    """The events, output that is too large for a letter in several."""
    for event in events:
        if len(event) == 6 and event[0] == LOGGED and len(event[5]) > room:
            *head, chunk = event
            for start in range(0, len(chunk), room):
                yield (*head, chunk[start : start + room])
        else:
            yield event


Letter = TaskLetter | ReportsLetter | CancelLetter

_KINDS: dict[str, type[Letter]] = {
    "task": TaskLetter,
    "reports": ReportsLetter,
    "cancel": CancelLetter,
}


def unseal_letter(body: bytes, kind: str, keys: Keys, topic: str, now: float | None) -> Any:
    """The letter of this kind that has come by this topic; raises ForgedMessage, MessageTooNew and
    InvalidMessage."""
    _, fields = unseal(body, (kind,), topic, now, keys)
    try:
        letter = _KINDS[kind](**fields)
    except TypeError as error:
        raise InvalidMessage(f"A message of kind {kind} has other fields: {error}.") from error
    for name, value in zip(letter._fields, letter, strict=True):
        _check(f"a message of kind {kind}", name, value, _LETTERS[kind][name])
    if isinstance(letter, TaskLetter) and letter.reply != reports_topic(letter.flow, letter.run):
        raise InvalidMessage("A message names another place for its reports than that of its run.")
    return letter


# ------------------------------------------------------------------ what may stand where

Check = Callable[[Any], bool]


def _check(where: str, name: str, value: Any, check: Check) -> None:
    try:
        is_right = check(value)
    except Exception:  # noqa: BLE001 -- whatever it is, it is not what it has to be
        is_right = False
    if not is_right:
        raise InvalidMessage(f"{where.capitalize()} has a {name} that cannot be one.")


def _is(kind: type) -> Check:
    return lambda value: type(value) is kind


def _number(highest: int) -> Check:
    return lambda value: type(value) is int and 0 <= value <= highest


def _or_none(check: Check) -> Check:
    return lambda value: value is None or check(value)


def _all(check: Check) -> Check:
    return lambda value: isinstance(value, list | tuple) and all(map(check, value))


def _text(longest: int) -> Check:
    return lambda value: type(value) is str and len(value) <= longest


def _names(check: Callable[[str], str]) -> Check:
    def is_one(value: Any) -> bool:
        try:
            return type(value) is str and bool(check(value))
        except AflowError:
            return False

    return is_one


def _time(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and 0 <= value < 1e12


def _amount(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value) and 0 <= value < 1e15


def _manifest(value: Any) -> bool:
    if type(value) is not bytes:
        return False
    found = Manifest.decode(value)
    (steps, foreach, splits) = found.transition
    return (
        type(found.step) is str
        and _all(_step)(steps)
        and _or_none(_is(str))(foreach)
        and _or_none(_COUNT)(splits)
        and all(map(_is(str), found.artifacts))
        and all(_TASK(task) and _all(_is(str))(names) for task, names in found.inherited.items())
        and all(type(frame.index) is int and _TASK(frame.split) for frame in found.stack)
        and _or_none(lambda items: _COUNT(items[0]))(found.items)
        and _or_none(_is(dict))(found.error)
    )


_COUNT, _TASK, _ATTEMPT = _number(1 << 53), _number(1 << 53), _number(1 << 31)
_step = _names(ids.step_name)
_DIGEST = _names(ids.blob_key)
_STATES = frozenset(state.value for state in AttemptState) - {"queued", "running", "interrupted"}
_SPEC: dict[str, Check] = {
    "step": _step,
    "task": _TASK,
    "attempt": _ATTEMPT,
    "inputs": _is(bytes),
    "split": _or_none(_TASK),
    "split_index": _or_none(_COUNT),
    "splits": _or_none(_COUNT),
    "opens_index": _is(bool),
    "final": _is(bool),
    "fallback": _is(bool),
    "manifests": lambda value: (
        type(value) is dict and all(_TASK(task) and _manifest(data) for task, data in value.items())
    ),
    "more": _or_none(_DIGEST),
    "pages": _all(_DIGEST),
    "again": _is(bool),
}
_EVENTS: dict[int, tuple[Check, ...]] = {
    STARTED: (_or_none(_number((1 << 31) - 1)), _time),
    LOGGED: (_number(1), _time, _is(bytes)),
    GROWN: (_COUNT, _manifest),
    DECLINED: (_text(100_000),),
}
_REPORT: dict[str, Check] = {
    "state": lambda value: value in _STATES,
    "reason": _is(str),
    "retryable": _is(bool),
    "steps": _all(_step),
    "foreach": _or_none(_is(str)),
    "splits": _or_none(_COUNT),
    "manifest": _or_none(_manifest),
    "started_at": _time,
    "finished_at": _time,
    "metadata": _all(lambda fact: len(fact) == 3 and _all(_is(str))(fact)),
    "unreached": _is(bool),
}


def _is_event(event: Any) -> bool:
    kind, task, attempt, *rest = event
    if type(kind) is not int or not _TASK(task) or not _ATTEMPT(attempt):
        return False
    if kind != ENDED:
        checks = _EVENTS[kind]
        return len(rest) == len(checks) and all(
            check(value) for check, value in zip(checks, rest, strict=True)
        )
    max_rss, cpu, *fields = rest
    report = AttemptReport(task, attempt, *fields)
    return (
        _or_none(_number(1 << 60))(max_rss)
        and _or_none(_amount)(cpu)
        and all(check(getattr(report, name)) for name, check in _REPORT.items())
        and (report.state != AttemptState.SUCCEEDED.value or report.manifest is not None)
    )


_LETTERS: dict[str, dict[str, Check]] = {
    "task": {
        "store": _text(4096),
        "flow": _names(ids.flow_name),
        "run": _names(ids.run_id),
        "job": _DIGEST,
        "reply": _text(64),
        "spec": _is(bytes),
        "launch": _COUNT,
    },
    "reports": {
        "flow": _names(ids.flow_name),
        "run": _names(ids.run_id),
        "worker": lambda value: _text(256)(value) and value.isascii() and value.isprintable(),
        "host": _text(256),
        "number": _COUNT,
        "events": _all(_is_event),
    },
    "cancel": {
        "attempts": _all(
            lambda each: (
                len(each) == 4
                and type(each[0]) is type(each[1]) is str
                and _TASK(each[2])
                and _ATTEMPT(each[3])
            )
        ),
    },
}
_PRESENCE: dict[str, Check] = {
    "pools": _all(_text(64)),
    "slots": _number(1 << 20),
    "held": _all(_text(256)),
    "declined": lambda value: (
        type(value) is dict
        and all(map(_text(256), value))
        and all(map(_text(2000), value.values()))
    ),
}
