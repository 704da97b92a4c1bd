"""The metadata service in a thread of the test process."""

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
    """A metadata service on a local port, with the database at a URL. Without `own` it has only the
    routes of Metaflow's service."""

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
        """The URL of the service."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def port(self) -> int:
        """The port of the service."""
        return self._port

    def stop(self) -> None:
        """Stop the service, and wait until it has stopped."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(30)


class ServedMetadata(ServiceMetadata):
    """A ServiceMetadata together with the service that it uses."""

    def __init__(self, url: str) -> None:
        self._service = InThread(url)
        super().__init__(self._service.url, {}, SystemClock())

    def close(self) -> None:
        """Close the store, and stop the service."""
        super().close()
        self._service.stop()
