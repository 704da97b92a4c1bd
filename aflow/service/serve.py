"""The service as a program: it listens until it is told to stop."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from aflow.errors import InvalidSetting
from aflow.service.app import application

if TYPE_CHECKING:
    from aflow.clock import Clock
    from aflow.metadata.base import MetadataStore
    from aflow.service.database import Database

_GOODBYE = 10.0  # seconds for requests that are being answered


def serve(
    database: Database,
    clock: Clock,
    host: str,
    port: int,
    keys: Sequence[str],
    store: MetadataStore | None,
    say: Callable[[str], object],
) -> None:
    """Serve until SIGTERM or SIGINT; requests that go on then are still answered. Port 0 takes a
    free one, which `say` is told. Raises InvalidSetting where it cannot listen."""
    import uvloop

    uvloop.run(_serve(database, clock, host, port, keys, store, say))


async def _serve(
    database: Database,
    clock: Clock,
    host: str,
    port: int,
    keys: Sequence[str],
    store: MetadataStore | None,
    say: Callable[[str], object],
) -> None:
    from aiohttp import web

    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    runner = web.AppRunner(application(database, clock, keys, store), shutdown_timeout=_GOODBYE)
    await runner.setup()
    try:
        try:
            await web.TCPSite(runner, host, port).start()
        except OSError as error:
            raise InvalidSetting(
                f"The metadata service cannot listen on {host}:{port} ({error.strerror}): choose "
                "another --host or --port."
            ) from error
        taken = runner.addresses[0][1]
        say(f"Metadata service on http://{host}:{taken}")
        await stop.wait()
    finally:
        await runner.cleanup()
