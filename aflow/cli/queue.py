"""`aflow queue`: show, release and delete messages of a queue, and list its workers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

from aflow._core.clock import SystemClock, duration
from aflow._core.settings import Settings
from aflow._core.wording import plural
from aflow.cli import tables
from aflow.cli.options import Subcommand, command_group, count_option, flag, option
from aflow.errors import InvalidInput, InvalidSetting
from aflow.executors.queue_status import (
    ShownMessage,
    chosen,
    messages_of,
    plain,
    pool_status,
    pools_of,
    workers_of,
)
from aflow.queue.factory import open_queue

if TYPE_CHECKING:
    from aflow.queue.base import Queue

_HELP = """Show, release and delete the messages of a queue.

A message is buried (a dead letter) after five deliveries to workers that died, or if no worker can
read it. A buried message is kept, and not delivered, until it is released or deleted. Its attempt
fails, and an active run removes the message.

\b
  aflow queue status                           waiting messages of each pool, and its workers
  aflow queue list                             list buried messages
  aflow queue list --ready --pool gpu          list waiting messages of the pool gpu
  aflow queue release --all                    deliver all buried messages again
  aflow queue delete 1f0c...:17:0              delete a message that is buried or waits
"""
T = TypeVar("T")


def queue() -> click.Command:
    """Return the command `queue`."""
    place = option("--queue", metavar="URL", help="The queue.  [default: AFLOW_QUEUE]")
    pools = option(
        "--pool",
        "pools",
        multiple=True,
        metavar="NAME",
        help="Only this pool; may be given several times.  [default: all pools]",
    )
    as_json = flag("--json", "as_json", help="Print a JSON list.")
    ids = click.Argument(["ids"], nargs=-1, metavar="[ID]...")
    everything = flag("--all", "everything", help="All buried messages.")
    ready = flag("--ready", help="List messages that wait for a worker, instead of buried ones.")
    limit = count_option("--limit", default=100, help="The most messages of each pool.")
    return command_group(
        "queue",
        _HELP,
        {
            "status": Subcommand(
                "Show how many messages each pool has, and its workers.",
                [place, pools, as_json],
                _status,
            ),
            "list": Subcommand(
                "List messages that are buried or wait.",
                [ready, limit, place, pools, as_json],
                _list,
            ),
            "release": Subcommand(
                "Deliver buried messages again.", [ids, everything, place, pools], _release
            ),
            "delete": Subcommand(
                "Delete messages that are buried or wait.",
                [ids, everything, place, pools],
                _delete,
            ),
        },
    )


# ------------------------------------------------------------ commands


def _status(queue: str | None, pools: tuple[str, ...], as_json: bool) -> None:
    now = SystemClock.now()

    async def look(opened: Queue) -> tuple[Any, Any]:
        workers = await workers_of(opened)
        named = await pools_of(opened, pools, workers)
        return [await pool_status(opened, each, workers, now) for each in named], workers

    found, workers = _with_queue(queue, look)
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    rows = [_pool_row(each, now) for each in found]
    tables.show(("POOL", "READY", "LEASED", "BURIED", "OLDEST", "WORKERS", "SLOTS"), rows)
    for name, each in sorted((workers or {}).items()):
        click.echo(
            f"{plain(name)}: {plural(each.slots, 'slot')} for {', '.join(map(plain, each.pools))}, "
            f"{plural(len(each.held), 'task')} for more than some seconds"
        )
        for why in sorted(set(each.declined.values())):
            click.echo(f"    leaves runs to others: {plain(why)}")


def _pool_row(pool: Mapping[str, Any], now: float) -> tuple[str, ...]:
    """Return the cells of a pool; `?` if the broker or the workers do not report a value."""
    oldest = "?" if pool["oldest"] is None else duration(now - pool["oldest"])
    counts = [str(pool[name]) for name in ("ready", "leased", "buried")]
    workers = ["?" if pool[name] is None else str(pool[name]) for name in ("workers", "slots")]
    return (pool["pool"], *counts, oldest if pool["ready"] else "", *workers)


def _list(
    queue: str | None, pools: tuple[str, ...], ready: bool, limit: int, as_json: bool
) -> None:
    async def look(opened: Queue) -> list[ShownMessage]:
        named = await pools_of(opened, pools, await workers_of(opened))
        return [each for pool in named for each in await messages_of(opened, pool, ready, limit)]

    found = _with_queue(queue, look)
    if as_json:
        click.echo(json.dumps([each.as_json() for each in found], indent=2))
        return
    if not found:
        click.echo("Nothing waits." if ready else "Nothing is buried.")
        return
    rows = [
        (
            each.pool,
            each.id,
            "" if each.deliveries is None else str(each.deliveries),
            str(each.size),
            "" if each.at is None else tables.local(each.at),
            each.task,
        )
        for each in found
    ]
    since = "WRITTEN" if ready else "BURIED"
    tables.show(("POOL", "ID", "DELIVERIES", "BYTES", since, "TASK"), rows)


def _release(
    queue: str | None, pools: tuple[str, ...], ids: tuple[str, ...], everything: bool
) -> None:
    async def release(opened: Queue) -> int:
        count = 0
        for topic, names in (await chosen(opened, pools, ids, everything)).items():
            count += await opened.redrive(topic, names)
        return count

    count = _with_queue(queue, release)
    if not count and ids:
        raise InvalidInput("No such message is buried: `aflow queue list` shows those that are.")
    click.echo(f"{plural(count, 'message')} released.")


def _delete(
    queue: str | None, pools: tuple[str, ...], ids: tuple[str, ...], everything: bool
) -> None:
    async def delete(opened: Queue) -> int | None:
        count: int | None = 0
        for topic, names in (await chosen(opened, pools, ids, everything)).items():
            before = await opened.known(topic, names)
            await opened.remove(topic, names)
            after = await opened.known(topic, names)
            if count is None or before is None or after is None:  # not reported by the broker
                count = None
            else:
                count += len(before - after)
        return count

    count = _with_queue(queue, delete)
    if count == 0 and ids:
        raise InvalidInput(
            "There is no such message that could be deleted: `aflow queue list` shows those that "
            "are buried, and with --ready those that wait. What a worker has is not deleted."
        )
    if count is None:
        click.echo("Deleted, as far as they were buried.")
    else:
        click.echo(f"{plural(count, 'message')} deleted.")


# ------------------------------------------------------------ the queue


def _with_queue(url: str | None, what: Callable[[Queue], Awaitable[T]]) -> T:
    """Call the function with the queue of the option or the settings, and return its result."""
    place, _ = queue_and_settings(queue=url)

    async def use() -> T:
        opened = open_queue(place)
        try:
            return await what(opened)
        finally:
            await opened.close()

    return asyncio.run(use())


def queue_and_settings(**given: Any) -> tuple[str, Settings]:
    """Return the URL of the queue, and the settings of a command that requires one.

    Args:
        **given: The options of the command that override settings.

    Raises:
        InvalidSetting: If neither the options nor the settings name a queue.
    """
    settings = Settings.load(**given)
    if not settings.queue:
        raise InvalidSetting("No queue is given: use --queue URL, or set AFLOW_QUEUE.")
    return settings.queue, settings
