"""The status of a queue for users: pools, workers, ready messages and dead letters.

The metadata store provides the registered workers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from aflow.errors import InvalidInput, NotFound
from aflow.executors.protocol import DEFAULT_POOL, Presence, tasks_topic
from aflow.metadata.base import WORKER_EXPIRY
from aflow.queue.messages import peek
from aflow.task.spec import AttemptSpec

if TYPE_CHECKING:
    from aflow.metadata.base import WorkerRecord
    from aflow.queue.base import Depth, Queue

HEARTBEAT = 5.0  # seconds between a worker's heartbeats in the metadata store
SILENT = 15.0  # seconds without a heartbeat after which a worker is displayed as silent
_MOST_BURIED = 100_000  # released or deleted per call


class ShownMessage(NamedTuple):
    """A message as displayed. `at` is when it became a dead letter, or was sent."""

    pool: str
    id: str
    task: str
    size: int
    deliveries: int | None
    at: float | None

    def as_json(self) -> dict[str, Any]:
        """Return the message as a JSON object."""
        return self._asdict()


async def workers_of(opened: Queue) -> dict[str, Presence] | None:
    """Return the announced workers by name; None if the broker does not list workers.

    Args:
        opened: The open queue; it stays open.
    """
    found = await opened.announced()
    if found is None:
        return None
    read = {name: Presence.decode(data) for name, data in found.items()}
    return {name: each for name, each in read.items() if each is not None}


async def pools_of(
    opened: Queue, pools: Sequence[str], workers: dict[str, Presence] | None
) -> list[str]:
    """Return the requested pools, or all pools that have messages or workers.

    Args:
        opened: The open queue; it stays open.
        pools: The names that the user has given; empty for all.
        workers: The result of `workers_of`.
    """
    if pools:
        return [*dict.fromkeys(pools)]
    start = tasks_topic("")
    found = {
        each.removeprefix(start) for each in await opened.topics() or () if each.startswith(start)
    }
    found.update(pool for each in (workers or {}).values() for pool in each.pools)
    return sorted(found | {DEFAULT_POOL})


async def pool_status(
    opened: Queue, pool: str, workers: dict[str, Presence] | None, now: float
) -> dict[str, Any]:
    """Return the number of ready, leased and dead messages of a pool, and of its workers and slots.

    `oldest` is since when the oldest ready message waits, by the reader's clock; None if no message
    waits or the broker does not report it.

    Args:
        opened: The open queue; it stays open.
        pool: The name of the pool of workers.
        workers: The result of `workers_of`; None if the broker does not list workers.
        now: The current time by the reader's clock, in seconds since the epoch.
    """
    topic = tasks_topic(pool)
    depth: Depth = await opened.depth(topic)
    waits = await opened.longest_wait(topic)
    mine = None if workers is None else [each for each in workers.values() if pool in each.pools]
    return {
        "pool": pool,
        **depth._asdict(),
        "oldest": now - waits if waits else None,
        "workers": None if mine is None else len(mine),
        "slots": None if mine is None else sum(each.slots for each in mine),
    }


async def messages_of(opened: Queue, pool: str, ready: bool, limit: int) -> list[ShownMessage]:
    """Return messages of a pool: those that are ready, or the dead letters.

    Args:
        opened: The open queue; it stays open, and nothing is leased.
        pool: The name of the pool of workers.
        ready: True for ready messages, False for dead letters.
        limit: The maximum number of messages.
    """
    topic = tasks_topic(pool)
    if ready:
        waiting = await opened.peek(topic, limit) or ()
        return [_shown(pool, each.id, each.body) for each in waiting]
    return [
        _shown(pool, each.id, each.body)._replace(deliveries=each.deliveries, at=each.buried_at)
        for each in await opened.buried(topic, limit)
    ]


def _shown(pool: str, id: str, body: bytes) -> ShownMessage:
    """Return a message with only the information in its body."""
    task, at = _read(body)
    return ShownMessage(pool=pool, id=id, task=task, size=len(body), deliveries=None, at=at)


def _read(body: bytes) -> tuple[str, float | None]:
    """Return the task in a message and the time of sending. Its signature is not checked."""
    found = peek(body)
    if found is None:
        return "(no message of this version of aflow)", None
    _, at, fields = found
    try:
        spec = AttemptSpec.decode(fields["spec"])
        named = f"{fields['flow']}/{fields['run']}/{spec.step}/{spec.task}"
        return plain(named), at
    except Exception:  # noqa: BLE001 -- the body may contain anything
        return "(it cannot be read)", at


async def chosen(
    opened: Queue, pools: Sequence[str], ids: Sequence[str], everything: bool
) -> dict[str, list[str]]:
    """Return the ids, by topic, of the given messages, or of all dead letters.

    Args:
        opened: The open queue; it stays open.
        pools: The pools to search; empty for all.
        ids: The ids of messages; empty with `everything`.
        everything: Whether to return all dead letters.

    Raises:
        InvalidInput: If both or neither of ids and `everything` are given.
    """
    if bool(ids) is everything:
        raise InvalidInput("No messages are given: name their ids, or use --all.")
    named = await pools_of(opened, pools, await workers_of(opened))
    if ids:
        return {tasks_topic(pool): [*ids] for pool in named}
    return {
        tasks_topic(pool): [
            each.id for each in await opened.buried(tasks_topic(pool), _MOST_BURIED)
        ]
        for pool in named
    }


def plain(text: str) -> str:
    """Return untrusted text as one line without control characters.

    Such characters could garble a terminal.

    Args:
        text: Text from another program; truncated to 500 characters.
    """
    return "".join(each for each in " ".join(text.split()) if each.isprintable())[:500]


# ------------------------------------------------------------ registered workers


def rates_of(workers: Sequence[WorkerRecord]) -> dict[str, float]:
    """Return the number of attempts per minute that these workers have finished recently, by pool.

    Args:
        workers: The records of the workers, each with its counts by pool.
    """
    found: dict[str, float] = {}
    for worker in workers:
        for pool in worker.pools:
            found[pool] = found.get(pool, 0.0) + worker.ended.get(pool, 0)
    return found


def state_of(worker: WorkerRecord) -> str:
    """Return the state of a worker: `idle`, `busy`, `draining` or `silent`.

    A draining worker takes no new tasks. The heartbeats of a silent one have stopped, and other
    workers receive its tasks.

    Args:
        worker: The record of the worker as of its last heartbeat.
    """
    if worker.left < WORKER_EXPIRY - SILENT:
        return "silent"
    if worker.draining or worker.drain is not None:
        return "draining"
    return "busy" if any(each.begun for each in worker.running) else "idle"


def worker_as_json(worker: WorkerRecord, now: float) -> dict[str, Any]:
    """Return a worker as a JSON object.

    Args:
        worker: The record of the worker as of its last heartbeat.
        now: The current time by the reader's clock, in seconds since the epoch.
    """
    as_they_are = (
        "name", "host", "pid", "queue", "pools", "slots", "labels", "version", "python",
        "started_at", "drain", "done", "failed",
    )  # fmt: skip
    return {
        **{name: getattr(worker, name) for name in as_they_are},
        "state": state_of(worker),
        "heartbeat_at": now - (WORKER_EXPIRY - worker.left),
        "expires_in": max(worker.left, 0.0),
        "running": [
            {
                "task": each.pathspec,
                "attempt": each.attempt,
                "since": each.since,
                "begun": each.begun,
            }
            for each in worker.running
        ],
    }


def chosen_worker(workers: Sequence[WorkerRecord], name: str) -> WorkerRecord:
    """Return the worker with this name, or the only one whose name starts with it.

    Args:
        workers: The registered workers.
        name: The name of a worker, or a unique prefix of it.

    Raises:
        NotFound: If no worker has such a name.
        InvalidInput: If the names of several workers start with it.
    """
    found = [each for each in workers if each.name == name] or [
        each for each in workers if name and each.name.startswith(name)
    ]
    if not found:
        raise NotFound(
            f"There is no worker {name[:100]!r}: `aflow workers list` shows those that there are."
        )
    if len(found) > 1:
        names = ", ".join(each.name for each in found[:5])
        raise InvalidInput(f"{name[:100]!r} may be any of: {names}.")
    return found[0]
