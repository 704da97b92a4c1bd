"""What is in a queue, for people: pools, workers, and the messages that wait or were buried; and
the workers that have registered in the metadata."""

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

HEARTBEAT = 5.0  # seconds between the heartbeats of a worker in the metadata
SILENT = 15.0  # seconds without a heartbeat after which it is shown as silent
_MOST_BURIED = 100_000  # that are released or deleted at once


class ShownMessage(NamedTuple):
    """A message as it is shown. `at` is when it was buried, or written."""

    pool: str
    id: str
    task: str
    size: int
    deliveries: int | None
    at: float | None

    def as_json(self) -> dict[str, Any]:
        """Return the message as an object of JSON."""
        return self._asdict()


async def workers_of(opened: Queue) -> dict[str, Presence] | None:
    """Return the workers that have announced themselves, by name; None where the broker knows none.

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
    """Return the pools that are asked for, or all that have messages or workers.

    Args:
        opened: The open queue; it stays open.
        pools: The names that the user has given; empty for all.
        workers: What `workers_of` has returned.
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
    """Return how many messages of a pool are ready, leased and buried, since when the oldest one
    that is ready waits (`oldest`, by the reader's clock, which says `now`: None where none does, or
    the broker does not say), and how many workers and slots there are.

    Args:
        opened: The open queue; it stays open.
        pool: The name of the pool of workers.
        workers: What `workers_of` has returned; None where the broker does not know it.
        now: The present time, in seconds since the epoch.
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
        ready: Whether ready messages are meant, instead of buried ones.
        limit: How many messages at most.
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
    """A message of which nothing is known but what it says itself."""
    task, at = _read(body)
    return ShownMessage(pool=pool, id=id, task=task, size=len(body), deliveries=None, at=at)


def _read(body: bytes) -> tuple[str, float | None]:
    """Which task a message is for, as it says itself, and when it was written. Whether it was
    signed is not looked at."""
    found = peek(body)
    if found is None:
        return "(no message of this version of aflow)", None
    _, at, fields = found
    try:
        spec = AttemptSpec.decode(fields["spec"])
        named = f"{fields['flow']}/{fields['run']}/{spec.step}/{spec.task}"
        return plain(named), at
    except Exception:  # noqa: BLE001 -- it may hold anything
        return "(it cannot be read)", at


async def chosen(
    opened: Queue, pools: Sequence[str], ids: Sequence[str], everything: bool
) -> dict[str, list[str]]:
    """Return the ids, by topic, of the messages that were named, or of all that are buried.

    Args:
        opened: The open queue; it stays open.
        pools: The pools to search; empty for all.
        ids: The ids of messages; not together with `everything`.
        everything: Whether all buried messages are meant.

    Raises:
        InvalidInput: Neither ids nor `everything` were given, or both.
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
    """Return what others wrote, in one line and without control characters.

    Args:
        text: A text from outside: at most 500 characters of it are kept, so that it cannot garble a
            terminal.
    """
    return "".join(each for each in " ".join(text.split()) if each.isprintable())[:500]


# ------------------------------------------------------------ registered workers


def rates_of(workers: Sequence[WorkerRecord]) -> dict[str, float]:
    """Return how many attempts a minute these workers have ended lately, by pool.

    Args:
        workers: The records of the workers, each with its counts by pool.
    """
    found: dict[str, float] = {}
    for worker in workers:
        for pool in worker.pools:
            found[pool] = found.get(pool, 0.0) + worker.ended.get(pool, 0)
    return found


def state_of(worker: WorkerRecord) -> str:
    """Return the state of a worker: `idle`, `busy`, `draining` (it takes no new tasks), or `silent`
    (its heartbeats have stopped; others get its tasks).

    Args:
        worker: The record of the worker, as its last heartbeat has left it.
    """
    if worker.left < WORKER_EXPIRY - SILENT:
        return "silent"
    if worker.draining or worker.drain is not None:
        return "draining"
    return "busy" if any(each.begun for each in worker.running) else "idle"


def worker_as_json(worker: WorkerRecord, now: float) -> dict[str, Any]:
    """Return a worker as an object of JSON. `now` is the time by the reader's clock.

    Args:
        worker: The record of the worker, as its last heartbeat has left it.
        now: The present time, in seconds since the epoch.
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
    """Return the worker of this name, or the only one whose name begins so.

    Args:
        workers: The workers that are registered.
        name: The name, or a beginning of it that only one worker has.

    Raises:
        NotFound: No worker has such a name.
        InvalidInput: Several workers have names that begin so.
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
