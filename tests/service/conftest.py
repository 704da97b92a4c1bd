"""The metadata service on a local port, with each database that it supports."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientResponse
from aiohttp.test_utils import TestClient, TestServer

from aflow.metadata.base import MetadataStore
from aflow.server.app import application
from aflow.server.auth import Authenticator
from aflow.server.metaflow.api import MetaflowApi
from aflow.server.metaflow.database import Database, open_database
from tests.support.clocks import FakeClock
from tests.support.postgres import new_schema

WHO = {"user_name": "ada", "tags": ["t"], "system_tags": ["user:ada"]}


@pytest.fixture(params=["sqlite", "memory", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a database without registrations."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/metadata.db"
    elif request.param == "memory":
        yield "memory:"
    else:
        yield new_schema(request.getfixturevalue("postgres_server"))


@pytest.fixture
def database(url: str) -> Database:
    """The open database; the service closes it."""
    return open_database(url, "process")


@dataclass
class Service:
    """A client of the service, and the clock of the service."""

    http: TestClient[Any, Any]
    clock: FakeClock

    async def get(self, path: str, status: int = 200, **more: Any) -> Any:
        return await self._json(await self.http.get(path, **more), status)

    async def post(self, path: str, body: Any = WHO, status: int = 200) -> Any:
        return await self._json(await self.http.post(path, json=body), status)

    async def patch(self, path: str, body: Any, status: int = 200) -> Any:
        return await self._json(await self.http.patch(path, json=body), status)

    async def _json(self, response: ClientResponse, status: int) -> Any:
        assert status == response.status, await response.text()
        assert "2.5.1" == response.headers["METADATA_SERVICE_VERSION"]
        return await response.json(content_type=None)

    async def task(self) -> str:
        """Create a run of the flow F with a step and a task, and return the task's path."""
        await self.http.post("/flows/F", json=WHO)
        run = (await self.post("/flows/F/run"))["run_number"]
        step = f"/flows/F/runs/{run}/steps/start"
        await self.post(f"{step}/step")
        return f"{step}/tasks/{(await self.post(f'{step}/task'))['task_id']}"


@pytest.fixture
async def serve() -> AsyncIterator[Callable[..., Any]]:
    """Start a service over a database."""
    clients: list[TestClient[Any, Any]] = []

    async def start(
        database: Database,
        keys: Sequence[str] = (),
        store: MetadataStore | None = None,
        is_local: bool = False,
    ) -> Service:
        clock = FakeClock()
        authenticator = Authenticator(keys, store, clock, anonymous=True, is_local=is_local)
        app = application([MetaflowApi(database, clock, store)], authenticator)
        client = TestClient(TestServer(app))
        await client.start_server()
        clients.append(client)
        return Service(client, clock)

    yield start
    for client in clients:
        await client.close()


@pytest.fixture
async def service(serve: Callable[..., Any], database: Database) -> Service:
    """A service without keys."""
    started: Service = await serve(database)
    return started
