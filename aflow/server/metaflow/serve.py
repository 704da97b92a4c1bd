"""The service as a program: it listens until it is asked to stop."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from aflow._core.process import fastest_loop, on_signal
from aflow.server.auth import is_loopback
from aflow.server.listening import listening, settle
from aflow.server.metaflow.app import application

if TYPE_CHECKING:
    from aflow._core.clock import Clock
    from aflow.metadata.base import MetadataStore
    from aflow.server.metaflow.database import Database
    from aflow.storage.base import ObjectStore


def serve(
    database: Database,
    clock: Clock,
    host: str,
    port: int,
    keys: Sequence[str],
    store: MetadataStore | None,
    say: Callable[[str], object],
    open_store: Callable[[str], ObjectStore | None] | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT; requests that go on then are still answered. Port 0 takes a
    free one, which `say` receives. Raises InvalidSetting where it cannot listen."""
    with asyncio.Runner(loop_factory=fastest_loop()) as runner:
        runner.run(_serve(database, clock, host, port, keys, store, say, open_store))


async def _serve(
    database: Database,
    clock: Clock,
    host: str,
    port: int,
    keys: Sequence[str],
    store: MetadataStore | None,
    say: Callable[[str], object],
    open_store: Callable[[str], ObjectStore | None] | None,
) -> None:
    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        on_signal(asyncio.get_running_loop(), signum, stop.set)
    app = application(
        database, clock, keys, store, is_local=is_loopback(host), open_store=open_store
    )
    async with listening(app, host, port, "metadata service") as taken:
        settle()
        say(f"Metadata service on http://{host}:{taken}")
        await stop.wait()
