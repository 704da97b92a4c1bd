"""The metadata service in a thread of the test's own process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence

from aiohttp import web

from aflow._core.clock import SystemClock
from aflow.metadata.factory import open_metadata
from aflow.metadata.http import ServiceMetadata
from aflow.server.app import application
from aflow.server.auth import Authenticator
from aflow.server.metaflow.api import MetaflowApi
from aflow.server.metaflow.database import open_database


class InThread:
    """A service over the database at a URL, on a port of this machine. One that is not `own`
    speaks Metaflow's language alone."""

    def __init__(self, url: str, keys: Sequence[str] = (), port: int = 0, own: bool = True) -> None:
        self._store = open_metadata(url, "process") if own else None
        clock = SystemClock()
        authenticator = Authenticator(keys, self._store, clock, anonymous=True, is_local=False)
        api = MetaflowApi(open_database(url, "process"), clock, self._store)
        self._app = application([api], authenticator)
        self._loop = asyncio.new_event_loop()
        self._port = port
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._started.wait(30), "the service did not start"

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._runner = web.AppRunner(self._app, shutdown_timeout=0)
        self._loop.run_until_complete(self._runner.setup())
        site = web.TCPSite(self._runner, "127.0.0.1", self._port)
        self._loop.run_until_complete(site.start())
        self._port = self._runner.addresses[0][1]
        self._started.set()
        self._loop.run_forever()
        self._loop.run_until_complete(self._runner.cleanup())
        self._loop.close()
        if self._store is not None:
            self._store.close()

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def port(self) -> int:
        """Its port."""
        return self._port

    def stop(self) -> None:
        """End it, and wait for that."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(30)


class ServedMetadata(ServiceMetadata):
    """The store over HTTP, and the service that it talks to."""

    def __init__(self, url: str) -> None:
        self._service = InThread(url)
        super().__init__(self._service.url, {}, SystemClock())

    def close(self) -> None:
        """Close the store, and end the service."""
        super().close()
        self._service.stop()
