"""The messages between coordinators and workers over a queue: records of plain values.

tasks.<pool>      task     one attempt: what to run, and where to report
reports.<run>     reports  what a worker has to say of the attempts of one run
worker.<id>       cancel   which attempts that worker is to stop
(announced)                what a worker says of itself to all: Presence

What comes from a queue is checked field by field before anything is done with it: others can write
there. A malformed message raises InvalidMessage.
"""

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

# Kinds of events in reports. Each is an array that begins with kind, task and attempt.
STARTED = 0  # [.., pid, at]
LOGGED = 1  # [.., stream, at, bytes]
ENDED = 2  # [.., peak memory, CPU seconds, *rest of AttemptReport]
GROWN = 3  # [.., items so far, manifest]
DECLINED = 4  # [.., why]: this worker cannot run the flow, and has given the attempt back

LARGEST_MANIFEST = 32 << 20  # bytes; half of what a message can have
_LARGEST_PRESENCE, _MOST_OF_PRESENCE = 8 << 20, 100  # bytes of what a worker announces; lists
_MOST_EVENTS = 500  # in a message
_MOST_BYTES = 1 << 20  # of output and manifests in a message with more than one event
_ROOM = 4096  # bytes of a message beside them


def tasks_topic(pool: str) -> str:
    """Return where the tasks of a pool wait.

    Args:
        pool: The name of the pool of workers.
    """
    return f"tasks.{pool}"


def reports_topic(flow: str, run: str) -> str:
    """Return the topic on which workers report on a run: the same one after its coordinator has
    restarted.

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
    """Return the id that the message of an attempt has in its topic. All of a run are one group.

    Args:
        flow: The name of the flow.
        run: The id of the run; flow and run together give the prefix by which messages are removed.
        task: The number of the task within its run.
        attempt: The number of the attempt, from 0.
    """
    return f"{run_id(flow, run)}:{task}:{attempt}"


def run_id(flow: str, run: str) -> str:
    """Return the prefix that the ids of all messages of a run have: it is short and safe for all
    brokers.

    Args:
        flow: The name of the flow; hashed together with the run.
        run: The id of the run.
    """
    return hashlib.sha256(f"{flow}/{run}".encode()).hexdigest()[:24]


class TaskMessage(NamedTuple):
    """One attempt. `job` is the payload of its run, `spec` an encoded AttemptSpec, `launch` tells
    one message for an attempt from the next."""

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
            topic: The topic that it is sent to, which is signed, too: nobody can move it to
                another.
            at: When it is sent, in seconds since the epoch.
        """
        return seal("task", topic, at, self._asdict(), keys)

    @property
    def attempt(self) -> AttemptSpec:
        """The attempt; raises InvalidMessage for anything else."""
        try:
            spec = AttemptSpec.decode(self.spec)
            decode_inputs(spec.inputs)
        except Exception as error:
            raise InvalidMessage("A message names an attempt that cannot be read.") from error
        for name, value in zip(spec._fields, spec, strict=True):
            _check("an attempt", name, value, _SPEC[name])
        return spec


class ReportsMessage(NamedTuple):
    """What a worker reports of a run. `number` counts its messages: a second delivery has the same
    one."""

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
            topic: The topic that it is sent to, which is signed, too: nobody can move it to
                another.
            at: When it is sent, in seconds since the epoch.
        """
        return seal("reports", topic, at, self._asdict(), keys)


class CancelMessage(NamedTuple):
    """Attempts that a worker is to stop: [flow, run, task, attempt] each."""

    attempts: Sequence[Sequence[Any]]

    def seal(self, keys: Keys, topic: str, at: float) -> bytes:
        """Return the sealed body of this message for the topic.

        Args:
            keys: The signing keys of the queue; empty for no signature.
            topic: The topic that it is sent to, which is signed, too: nobody can move it to
                another.
            at: When it is sent, in seconds since the epoch.
        """
        return seal("cancel", topic, at, self._asdict(), keys)


class DrainMessage(NamedTuple):
    """A worker is to end when what it runs has ended, for this reason."""

    reason: str

    def seal(self, keys: Keys, topic: str, at: float) -> bytes:
        """Return the sealed body of this message for the topic.

        Args:
            keys: The signing keys of the queue; empty for no signature.
            topic: The topic that it is sent to, which is signed, too: nobody can move it to
                another.
            at: When it is sent, in seconds since the epoch.
        """
        return seal("drain", topic, at, self._asdict(), keys)


class Presence(NamedTuple):
    """What a worker announces of itself: its pools, how many tasks it runs at a time, the ids of
    messages that it has had for a while, and the runs (groups of messages) that it leaves to
    others, with the reason. One that cannot register in the metadata says in `about` what it would
    register, so that a server does so for it. Nobody signs it: it decides nothing but what is
    waited for, and what is shown."""

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
        """Return what `encode` gave; None for anything else.

        Args:
            data: What a worker has announced; other programs may have written it, so size and types
                are checked.
        """
        try:
            if len(data) > _LARGEST_PRESENCE:
                return None
            _, pools, slots, held, declined, about = unpack(data, _MOST_OF_PRESENCE)
            found = cls(pools, slots, held, declined, about)
            for name, value in zip(found._fields, found, strict=True):
                _check("a worker", name, value, _PRESENCE[name])
        except Exception:  # noqa: BLE001 -- a stranger's, or a later version's: as if not there
            return None
        return found


def parts(
    events: Sequence[Sequence[Any]], largest: int | None = None
) -> Iterator[list[Sequence[Any]]]:
    """Yield the events as they go into messages: in order, none too large for a broker that takes
    bodies of `largest` bytes, but for single ones that cannot be divided.

    Args:
        events: Events for a coordinator, each a sequence whose first item is its kind.
        largest: How many bytes a message may have; None where aflow's own limit is lower.
    """
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
    """The events, output that is too large for a message in several."""
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
    """Return the message that has come by a topic, decoded and checked.

    Args:
        body: The sealed message as the broker delivered it; not to be trusted until this function
            returns.
        kind: The kind that is expected (`task`, `reports`...), or several that are accepted.
        keys: The keys that messages are signed with.
        topic: The name of the topic: `tasks.POOL` or `reports.NAME`.
        now: The present time; None where the age does not matter.

    Raises:
        ForgedMessage: The signature is missing or wrong.
        MessageTooNew: Another version of aflow has written it.
        InvalidMessage: It is malformed, or of another kind.
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


def _is_amount(value: Any) -> bool:
    """Whether it is the name of a resource, and how much of it is asked for."""
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
    "address": lambda value: value == "",  # which the machine that runs the attempt finds out
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


# What a worker has to know of a run: one payload, written when the run begins.
#
# It holds no secrets of aflow's, but the values of @environment. It is only read by the name of
# its digest, which stands in each (signed) message. What is pickled in it is read by the process
# that runs the flow, and by nobody else.


VERSION = 3


class Job(NamedTuple):
    """How the attempts of a run are run elsewhere.

    `code` is the key of the code package (None for a flow that travels as a pickle), `script` the
    flow file's name inside of it. `python` is the version that the run was started with, as
    `3.11`. `max_log_size` is in bytes per stream of an attempt. `environments` are those of steps
    that have packages of their own, by step, as they were shipped.
    """

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
        """Return the job that `encode` gave.

        Args:
            data: The payload of a run, as `encode` returned it.

        Raises:
            InvalidMessage: The bytes are not a job, or a newer aflow has written them.
        """
        newer = "The run was started by a newer aflow: upgrade the worker."
        with unreadable("A run's description cannot be read"):
            job = cls(*unpacked_fields(data, VERSION, newer))
            return job._replace(context=RunContext(*job.context), **unpacked_program(job))


def packed(version: int, fields: Iterable[Any]) -> bytes:
    """Return a record as bytes, which `unpacked_fields` reads.

    Args:
        version: The version of the record's form.
        fields: The record.
    """
    return msgpack.packb((version, *fields), unicode_errors="surrogatepass")  # type: ignore[no-any-return]


def unpacked_fields(data: bytes, version: int, newer: str) -> list[Any]:
    """Return the fields of a record that `packed` has written.

    Args:
        data: The bytes.
        version: The latest version that can be read.
        newer: The sentence for one that is newer.

    Raises:
        InvalidMessage: It is newer.
        ValueError: The bytes are no such record.
    """
    values: tuple[Any, ...] = msgpack.unpackb(data, use_list=False, unicode_errors="surrogatepass")
    found, *fields = values
    if found > version:
        raise InvalidMessage(newer)
    return fields


def unpacked_program(record: Any) -> dict[str, Any]:
    """Return the fields about the program of a run or a deployment as the records that they were
    before they were packed.

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
    """Report what cannot be unpacked in this block in one sentence.

    Args:
        sentence: What cannot be read; the reason follows.

    Raises:
        InvalidMessage: The block has raised what unpacking raises.
    """
    try:
        yield
    except (TypeError, ValueError, AttributeError) as error:
        raise InvalidMessage(f"{sentence}: {error}.") from error


def python_version() -> str:
    """Return the version of this Python, as far as what is pickled depends on it."""
    return ".".join(platform.python_version_tuple()[:2])


# What travels with an attempt to a machine that has no metadata.
#
# A task reads the manifests of its inputs, of the tasks that set what these pass on, and of those
# that opened the foreachs around it. Small ones that are at hand ride in the spec; the others go
# into a payload, which all tasks with the same inputs share. The inputs of a join come in pages.


_AT_ONCE = 500  # manifests a query
_KEPT = 256  # payloads whose keys are remembered


class Packer:
    """Completes specs, so that a worker needs nothing but the store. Calls block; one thread."""

    def __init__(self, metadata: MetadataStore, run_key: int, payloads: Payloads) -> None:
        self._metadata = metadata
        self._run_key = run_key
        self._payloads = payloads
        self._known: dict[tuple[int, ...], str] = {}

    def complete(self, spec: AttemptSpec, *, apart: bool = False) -> AttemptSpec:
        """Return the spec with the payloads that its attempt may need; with `apart` it carries no
        manifest itself, so that it is small.

        Args:
            spec: What the attempt is to run.
            apart: Whether the attempt gets a message of its own.
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
        """The manifests of these tasks, and of those that they lead to, but for those there."""
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
        """The key of a payload; tasks with the same inputs share it, unless these have grown."""
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
    """The tasks that manifests lead to: who set what they pass on, who opened their foreachs."""
    found: set[int] = set()
    for manifest in manifests:
        found.update(manifest.inherited)
        found.update(frame.split for frame in manifest.stack)
    return found


# The attempts of one job, of which an array has many: an object with a record for each of them.
#
# All records have the same width, so that a job finds its own by its index and reads no other: one
# ranged request, however wide the array is.


class ArraySpec(NamedTuple):
    """Where the attempts of a job array are: the key of a payload, and the bytes of each record."""

    key: str
    width: int

    @classmethod
    def write(cls, payloads: Payloads, specs: Sequence[AttemptSpec]) -> ArraySpec:
        """Put the attempts of an array into a payload. Blocks.

        Args:
            payloads: Where the run keeps its payloads; the records are put into one of them.
            specs: The attempts, in the order of their index in the array.

        Returns:
            The array spec.

        Raises:
            StorageError: The datastore does not answer.
        """
        records = [_record(spec) for spec in specs]
        width = max(map(len, records))
        key = payloads.put(b"".join(record.ljust(width, b"\0") for record in records))
        return cls(key, width)

    @classmethod
    def parse(cls, text: str) -> ArraySpec:
        """Return the array spec that `str` returned as text.

        Args:
            text: `KEY:WIDTH`, as it stands in the variables of an array job.

        Raises:
            InvalidMessage: It is malformed.
        """
        key, _, width = text.partition(":")
        if not width.isdigit():
            raise InvalidMessage(f"{text!r} does not say where attempts stand.")
        return cls(key, int(width))

    def __str__(self) -> str:
        return f"{self.key}:{self.width}"

    def read(self, payloads: Payloads, index: int) -> AttemptSpec:
        """Return the attempt of this index. Blocks.

        Args:
            payloads: Where the run keeps its payloads; only the bytes of one record are fetched.
            index: The index of the member within the array, from 0.

        Raises:
            ObjectNotFound: The payload is gone: the run was deleted, or has ended.
            CorruptBlob: The bytes are not those that the key names.
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
