"""Messages between coordinators and workers over a queue.

tasks.<pool>      task     one attempt: what to run, and where to report
reports.<run>     reports  events of the attempts of one run
worker.<id>       cancel   attempts that the worker must stop
worker.<id>       drain    the worker must exit when its attempts have ended
(announced)                what a worker announces about itself: Presence

Other programs can write to the queue. Therefore each field of a message is validated before use. A
malformed message raises InvalidMessage."""

from __future__ import annotations

import hashlib
import math
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import msgpack

from aflow._core import ids
from aflow._core.ids import PARAMETERS_TASK
from aflow._core.unpacking import unpack
from aflow.environments.lock import Shipped
from aflow.errors import AflowError, CorruptBlob, InvalidMessage
from aflow.executors.local.executor import StepNeeds, needs_from
from aflow.queue.messages import Keys, seal, unseal
from aflow.scheduler.messages import FromBranches, FromForeach, FromTask, Inputs, decode_inputs
from aflow.scheduler.states import AttemptState
from aflow.storage.artifacts import Manifest
from aflow.storage.blobs import digest_of
from aflow.task.inputs import PAGE
from aflow.task.program import LoadRequest
from aflow.task.remote import Payloads, pack_manifests
from aflow.task.spec import AttemptReport, AttemptSpec, RunContext

if TYPE_CHECKING:
    from aflow.metadata.base import MetadataStore
    from aflow.task.remote import Payloads
    from aflow.task.spec import AttemptSpec

DEFAULT_POOL = "default"

# Kinds of events in reports. Each event is an array that starts with kind, task and attempt.
STARTED = 0  # [.., pid, at]
LOGGED = 1  # [.., stream, at, bytes]
ENDED = 2  # [.., peak memory, CPU seconds, *rest of AttemptReport]
GROWN = 3  # [.., items so far, manifest]
DECLINED = 4  # [.., reason]: the worker cannot run the flow, and has returned the attempt

LARGEST_MANIFEST = 32 << 20  # bytes; half of the largest message
_LARGEST_PRESENCE, _MOST_OF_PRESENCE = 8 << 20, 100  # of an announcement: bytes; length of lists
_MOST_EVENTS = 500  # in a message
_MOST_BYTES = 1 << 20  # of output and manifests, in a message with several events
_ROOM = 4096  # bytes of a message reserved for everything else


def tasks_topic(pool: str) -> str:
    """Return the topic of the tasks of a pool.

    Args:
        pool: The name of the pool of workers.
    """
    return f"tasks.{pool}"


def reports_topic(flow: str, run: str) -> str:
    """Return the topic of the reports on a run. It is the same after the coordinator has restarted.

    Args:
        flow: The name of the flow; hashed, since brokers restrict the characters of topics.
        run: The id of the run.
    """
    return f"reports.{hashlib.sha256(f'{flow}/{run}'.encode()).hexdigest()[:32]}"


def worker_topic(worker: str) -> str:
    """Return the topic of commands to one worker.

    Args:
        worker: The id of the worker.
    """
    return f"worker.{worker}"


def task_id(flow: str, run: str, task: int, attempt: int) -> str:
    """Return the id of an attempt's message. The ids of all messages of a run have the same prefix.

    Args:
        flow: The name of the flow.
        run: The id of the run.
        task: The number of the task within its run.
        attempt: The number of the attempt, from 0.
    """
    return f"{run_id(flow, run)}:{task}:{attempt}"


def run_id(flow: str, run: str) -> str:
    """Return the prefix of the ids of all messages of a run: short, and valid for all brokers.

    Args:
        flow: The name of the flow; hashed together with the run.
        run: The id of the run.
    """
    return hashlib.sha256(f"{flow}/{run}".encode()).hexdigest()[:24]


class TaskMessage(NamedTuple):
    """One attempt to run.

    `job` is the key of the run's payload, `spec` an encoded AttemptSpec. `launch` distinguishes
    several messages for the same attempt."""

    store: str
    flow: str
    run: str
    job: str
    reply: str
    spec: bytes
    launch: int

    def seal(self, keys: Keys, topic: str, at: float) -> bytes:
        """Return the sealed body of this message for the topic.

        Args:
            keys: The signing keys of the queue; empty for no signature.
            topic: The topic to which it is sent. It is signed as well, so that the message cannot
                be moved to another topic.
            at: When it is sent, in seconds since the epoch.
        """
        return seal("task", topic, at, self._asdict(), keys)

    @property
    def attempt(self) -> AttemptSpec:
        """The decoded attempt. Raises InvalidMessage if it is malformed."""
        try:
            spec = AttemptSpec.decode(self.spec)
            decode_inputs(spec.inputs)
        except Exception as error:
            raise InvalidMessage("A message names an attempt that cannot be read.") from error
        for name, value in zip(spec._fields, spec, strict=True):
            _check("an attempt", name, value, _SPEC[name])
        return spec


class ReportsMessage(NamedTuple):
    """Events that a worker reports on a run.

    `number` counts the messages of the worker; a duplicate delivery has the same number."""

    flow: str
    run: str
    worker: str
    host: str
    number: int
    events: Sequence[Any]

    def seal(self, keys: Keys, topic: str, at: float) -> bytes:
        """Return the sealed body of this message for the topic.

        Args:
            keys: The signing keys of the queue; empty for no signature.
            topic: The topic to which it is sent. It is signed as well, so that the message cannot
                be moved to another topic.
            at: When it is sent, in seconds since the epoch.
        """
        return seal("reports", topic, at, self._asdict(), keys)


class CancelMessage(NamedTuple):
    """Attempts that a worker must stop, each as [flow, run, task, attempt]."""

    attempts: Sequence[Sequence[Any]]

    def seal(self, keys: Keys, topic: str, at: float) -> bytes:
        """Return the sealed body of this message for the topic.

        Args:
            keys: The signing keys of the queue; empty for no signature.
            topic: The topic to which it is sent. It is signed as well, so that the message cannot
                be moved to another topic.
            at: When it is sent, in seconds since the epoch.
        """
        return seal("cancel", topic, at, self._asdict(), keys)


class DrainMessage(NamedTuple):
    """Request that a worker exits when its attempts have ended, with the reason."""

    reason: str

    def seal(self, keys: Keys, topic: str, at: float) -> bytes:
        """Return the sealed body of this message for the topic.

        Args:
            keys: The signing keys of the queue; empty for no signature.
            topic: The topic to which it is sent. It is signed as well, so that the message cannot
                be moved to another topic.
            at: When it is sent, in seconds since the epoch.
        """
        return seal("drain", topic, at, self._asdict(), keys)


class Presence(NamedTuple):
    """The announcement of a worker.

    It contains its pools, the number of tasks that it runs at a time, the ids of messages that it
    has held for a while, and the runs (groups of messages) that it declines, with the reasons. A
    worker without access to the metadata store sends its record in `about`, for a server to
    register it.

    Announcements are not signed: they only affect what is displayed, and what coordinators wait
    for."""

    pools: Sequence[str]
    slots: int
    held: Sequence[str]
    declined: Mapping[str, str]
    about: str = ""

    def encode(self) -> bytes:
        """Return the announcement as bytes, which `decode` reads."""
        return msgpack.packb([1, *self])  # type: ignore[no-any-return]

    @classmethod
    def decode(cls, data: bytes) -> Presence | None:
        """Return the announcement that `encode` encoded; None if the data is malformed.

        Args:
            data: An announcement; other programs may have written it, so size and types are
                checked.
        """
        try:
            if len(data) > _LARGEST_PRESENCE:
                return None
            _, pools, slots, held, declined, about = unpack(data, _MOST_OF_PRESENCE)
            found = cls(pools, slots, held, declined, about)
            for name, value in zip(found._fields, found, strict=True):
                _check("a worker", name, value, _PRESENCE[name])
        except Exception:  # noqa: BLE001 -- written by another program or a later version: ignored
            return None
        return found


def parts(
    events: Sequence[Sequence[Any]], largest: int | None = None
) -> Iterator[list[Sequence[Any]]]:
    """Yield the events in batches for messages, in order.

    Each message fits a broker that accepts bodies of `largest` bytes, unless a single event exceeds
    that and cannot be split.

    Args:
        events: Events for a coordinator, each a sequence that starts with its kind.
        largest: The largest body that the broker accepts, in bytes; None if only aflow's own limit
            applies.
    """
    room = _MOST_BYTES if largest is None else max(1, min(_MOST_BYTES, largest - _ROOM) - 1)
    each_event = 0 if largest is None else 64  # bytes of an event in addition to its payload
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
    """Yield the events, with output that exceeds a message split into several events."""
    for event in events:
        if len(event) == 6 and event[0] == LOGGED and len(event[5]) > room:
            *head, chunk = event
            for start in range(0, len(chunk), room):
                yield (*head, chunk[start : start + room])
        else:
            yield event


WorkerMessage = TaskMessage | ReportsMessage | CancelMessage | DrainMessage

_KINDS: dict[str, type[WorkerMessage]] = {
    "task": TaskMessage,
    "reports": ReportsMessage,
    "cancel": CancelMessage,
    "drain": DrainMessage,
}


def open_message(
    body: bytes, kind: str | Sequence[str], keys: Keys, topic: str, now: float | None
) -> Any:
    """Return a message received from a topic, decoded and validated.

    Args:
        body: The sealed message as the broker delivered it; untrusted until this function returns.
        kind: The expected kind (`task`, `reports`...), or several accepted kinds.
        keys: The keys that messages are signed with.
        topic: The name of the topic, such as `tasks.POOL`.
        now: The current time; None to accept messages of any age.

    Raises:
        ForgedMessage: If the signature is missing or wrong.
        MessageTooNew: If a newer version of aflow wrote it.
        InvalidMessage: If it is malformed, or of another kind.
    """
    kinds = (kind,) if isinstance(kind, str) else kind
    kind, fields = unseal(body, kinds, topic, now, keys)
    try:
        message = _KINDS[kind](**fields)
    except TypeError as error:
        raise InvalidMessage(f"A message of kind {kind} has other fields: {error}.") from error
    for name, value in zip(message._fields, message, strict=True):
        _check(f"a message of kind {kind}", name, value, _FIELDS_OF[kind][name])
    if isinstance(message, TaskMessage) and message.reply != reports_topic(
        message.flow, message.run
    ):
        raise InvalidMessage("A message names another place for its reports than that of its run.")
    return message


# ------------------------------------------------------------------ validation of fields

Check = Callable[[Any], bool]


def _check(where: str, name: str, value: Any, check: Check) -> None:
    try:
        is_right = check(value)
    except Exception:  # noqa: BLE001 -- a check may fail in any way on untrusted values
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


def _is_amount(value: Any) -> bool:
    """Return whether the value is a pair of a resource's name and the requested amount."""
    if not isinstance(value, list | tuple) or len(value) != 2:
        return False
    name, amount = value
    return (
        type(name) is str
        and name.isidentifier()
        and len(name) <= 100
        and type(amount) in (int, float)
        and 0 <= amount < math.inf
    )


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
    "resources": lambda value: (
        isinstance(value, list | tuple) and len(value) <= 100 and all(map(_is_amount, value))
    ),
    "address": lambda value: value == "",  # the machine that runs the attempt determines it
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


_FIELDS_OF: dict[str, dict[str, Check]] = {
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
_FIELDS_OF["drain"] = {"reason": _text(2000)}
_PRESENCE: dict[str, Check] = {
    "about": _text(1 << 17),
    "pools": _all(_text(64)),
    "slots": _number(1 << 20),
    "held": _all(_text(256)),
    "declined": lambda value: (
        type(value) is dict
        and all(map(_text(256), value))
        and all(map(_text(2000), value.values()))
    ),
}


# What a worker needs to know about a run: one payload, written when the run starts.
#
# It contains no secrets of aflow, but the values of @environment. Workers read it only by its
# digest, which each (signed) message contains. Its pickled parts are only unpickled by the process
# that runs the flow.


VERSION = 3


class Job(NamedTuple):
    """How other machines run the attempts of a run.

    `code` is the key of the code package (None for a pickled flow), `script` the name of the flow's
    file in the package. `python` is the version that started the run, such as `3.11`.
    `max_log_size` is in bytes per stream of an attempt. `environments` are the uploaded
    environments, by step."""

    context: RunContext
    request: LoadRequest
    needs: Mapping[str, StepNeeds]
    code: str | None
    script: str
    isolation: str
    python: str
    max_log_size: int
    environments: Mapping[str, Shipped] = {}

    def encode(self) -> bytes:
        """Return the job as bytes."""
        return packed(VERSION, self)

    @classmethod
    def decode(cls, data: bytes) -> Job:
        """Return the job that `encode` encoded.

        Args:
            data: The payload of a run, as `encode` returned it.

        Raises:
            InvalidMessage: If the bytes are not a job, or a newer aflow wrote them.
        """
        newer = "The run was started by a newer aflow: upgrade the worker."
        with unreadable("A run's description cannot be read"):
            job = cls(*unpacked_fields(data, VERSION, newer))
            return job._replace(context=RunContext(*job.context), **unpacked_program(job))


def packed(version: int, fields: Iterable[Any]) -> bytes:
    """Return a record as bytes, which `unpacked_fields` reads.

    Args:
        version: The version of the record's format.
        fields: The record.
    """
    return msgpack.packb((version, *fields), unicode_errors="surrogatepass")  # type: ignore[no-any-return]


def unpacked_fields(data: bytes, version: int, newer: str) -> list[Any]:
    """Return the fields of a record that `packed` encoded.

    Args:
        data: The encoded record.
        version: The latest version that can be read.
        newer: The error message for a newer version.

    Raises:
        InvalidMessage: If the version is newer.
        ValueError: If the bytes are not such a record.
    """
    values: tuple[Any, ...] = msgpack.unpackb(data, use_list=False, unicode_errors="surrogatepass")
    found, *fields = values
    if found > version:
        raise InvalidMessage(newer)
    return fields


def unpacked_program(record: Any) -> dict[str, Any]:
    """Return the fields of a record about its program, converted from plain values.

    Args:
        record: A record whose `request`, `needs` and `environments` are plain values.
    """
    return {
        "request": LoadRequest(*record.request),
        "needs": needs_from(record.needs),
        "environments": {name: Shipped(*each) for name, each in record.environments.items()},
    }


@contextmanager
def unreadable(sentence: str) -> Iterator[None]:
    """Convert the errors of unpacking in this block to InvalidMessage.

    Args:
        sentence: The start of the message: what cannot be read. The error follows.

    Raises:
        InvalidMessage: If the block raised TypeError, ValueError or AttributeError.
    """
    try:
        yield
    except (TypeError, ValueError, AttributeError) as error:
        raise InvalidMessage(f"{sentence}: {error}.") from error


def python_version() -> str:
    """Return the major and minor version of this Python, on which the format of pickles depends."""
    return ".".join(platform.python_version_tuple()[:2])


# What an attempt needs on a machine without access to the metadata store.
#
# A task reads the manifests of its inputs, of the tasks that set the inherited artifacts of these,
# and of the tasks that opened the enclosing foreachs. Small manifests at hand are part of the spec.
# The others are stored in a payload, which all tasks with the same inputs share. The inputs of a
# join are stored in pages.


_AT_ONCE = 500  # manifests per query
_KEPT = 256  # payloads whose keys are cached


class Packer:
    """Completes specs so that a worker only needs the datastore. Calls block; use one thread."""

    def __init__(self, metadata: MetadataStore, run_key: int, payloads: Payloads) -> None:
        self._metadata = metadata
        self._run_key = run_key
        self._payloads = payloads
        self._known: dict[tuple[int, ...], str] = {}

    def complete(self, spec: AttemptSpec, *, apart: bool = False) -> AttemptSpec:
        """Return the spec with the keys of the payloads that its attempt may need.

        Args:
            spec: The attempt to run.
            apart: Whether to move the manifests in the spec to the payload as well, to keep the
                spec small.
        """
        inputs = decode_inputs(spec.inputs)
        pages: tuple[str, ...] = ()
        if isinstance(inputs, FromForeach):
            pages = tuple(self._page(inputs, start) for start in range(0, inputs.count, PAGE))
        along = {task: Manifest.decode(data) for task, data in spec.manifests.items()}
        needed = {int(PARAMETERS_TASK), *_inputs_of(inputs)}
        needed.update(_behind(along[task] for task in needed if task in along))
        missing = self._all_behind(sorted(needed - along.keys()), set(along))
        if apart:
            missing.update(spec.manifests)
            spec = spec._replace(manifests={})
        return spec._replace(pages=pages, more=self._payload(missing) if missing else None)

    def _all_behind(self, tasks: Iterable[int], there: set[int]) -> dict[int, bytes]:
        """Return the manifests of these tasks and, transitively, of those that they refer to.

        Tasks in `there` are omitted."""
        found: dict[int, bytes] = {}
        missing = sorted(set(tasks) - there)
        while missing:
            for at in range(0, len(missing), _AT_ONCE):
                part = missing[at : at + _AT_ONCE]
                found.update(self._metadata.manifests(self._run_key, part))
            read = [Manifest.decode(found[task]) for task in missing if task in found]
            missing = sorted(_behind(read) - found.keys() - there - set(missing))
        return found

    def _page(self, inputs: FromForeach, start: int) -> str:
        rows = self._metadata.split_manifests(
            self._run_key, inputs.split, inputs.steps, start, PAGE
        )
        behind = _behind(Manifest.decode(data) for *_, data in rows)
        return self._payloads.put(pack_manifests(self._all_behind(behind, set()), rows))

    def _payload(self, manifests: dict[int, bytes]) -> str:
        """Return the key of a payload, shared by all tasks with the same inputs.

        Inputs that have grown get a new payload."""
        name = tuple(each for task in sorted(manifests) for each in (task, len(manifests[task])))
        key = self._known.get(name)
        if key is None:
            if len(self._known) >= _KEPT:
                self._known.clear()
            key = self._known[name] = self._payloads.put(pack_manifests(manifests))
        return key


def _inputs_of(inputs: Inputs) -> tuple[int, ...]:
    if isinstance(inputs, FromTask):
        return (inputs.task,)
    if isinstance(inputs, FromBranches):
        return inputs.tasks
    return (inputs.split,) if isinstance(inputs, FromForeach) else ()


def _behind(manifests: Iterable[Manifest]) -> set[int]:
    """Return the tasks that set inherited artifacts or opened the enclosing foreachs."""
    found: set[int] = set()
    for manifest in manifests:
        found.update(manifest.inherited)
        found.update(frame.split for frame in manifest.stack)
    return found


# The attempts of a job array: one object with a record per attempt.
#
# All records have the same width, so that a job reads its own record by index, with one ranged
# request, however wide the array is.


class ArraySpec(NamedTuple):
    """The location of a job array's attempts: the payload's key, and bytes per record."""

    key: str
    width: int

    @classmethod
    def write(cls, payloads: Payloads, specs: Sequence[AttemptSpec]) -> ArraySpec:
        """Write the attempts of an array to a payload. Blocks.

        Args:
            payloads: The payloads of the run.
            specs: The attempts, in the order of their index in the array.

        Returns:
            The array spec.

        Raises:
            StorageError: If the datastore does not respond.
        """
        records = [_record(spec) for spec in specs]
        width = max(map(len, records))
        key = payloads.put(b"".join(record.ljust(width, b"\0") for record in records))
        return cls(key, width)

    @classmethod
    def parse(cls, text: str) -> ArraySpec:
        """Return the array spec with this text.

        Args:
            text: `KEY:WIDTH`, as in the environment variables of an array job.

        Raises:
            InvalidMessage: If it is malformed.
        """
        key, _, width = text.partition(":")
        if not width.isdigit():
            raise InvalidMessage(f"{text!r} does not say where attempts stand.")
        return cls(key, int(width))

    def __str__(self) -> str:
        return f"{self.key}:{self.width}"

    def read(self, payloads: Payloads, index: int) -> AttemptSpec:
        """Return the attempt with this index. Blocks.

        Args:
            payloads: The payloads of the run; only the bytes of one record are fetched.
            index: The index of the member within the array, from 0.

        Raises:
            ObjectNotFound: If the payload no longer exists: the run was deleted, or has ended.
            CorruptBlob: If the record does not match its digest.
        """
        return _attempt(payloads.part(self.key, index * self.width, self.width), self.key)


def _record(spec: AttemptSpec) -> bytes:
    data = spec.encode()
    return msgpack.packb((digest_of([data], len(data)), data))  # type: ignore[no-any-return]


def _attempt(record: bytes, key: str) -> AttemptSpec:
    unpacker = msgpack.Unpacker()
    unpacker.feed(record)
    try:
        digest, data = unpacker.unpack()
    except (ValueError, msgpack.OutOfData) as error:
        raise CorruptBlob(f"The list of attempts {key} is damaged.") from error
    if digest_of([data], len(data)) != digest:
        raise CorruptBlob(f"The list of attempts {key} is damaged.")
    return AttemptSpec.decode(data)
