"""The daemon also serves the routes of the metadata service, with its own authentication."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from aflow._core.clock import SystemClock
from aflow.metadata.http import ServiceMetadata
from tests.server.conftest import Daemon

WHO = json.dumps({"user_name": "ada", "tags": [], "system_tags": []}).encode()


@pytest.fixture
def guarded(folder: Daemon) -> Iterator[Daemon]:
    folder.begin(AFLOW_SERVICE_AUTH_KEY="token")
    yield folder
    folder.stop()


def test_clients_of_metaflow_and_of_aflow_use_its_metadata(guarded: Daemon) -> None:
    status, reported = guarded.ask("POST", "/flows/F", WHO)
    assert (401, ["error", "message"]) == (status, list(reported))
    key: Any = {"x-api-key": "token"}

    assert 200 == guarded.ask("POST", "/flows/F", WHO, **key)[0]
    number = guarded.ask("POST", "/flows/F/run", WHO, **key)[1]["run_number"]
    assert 409 == guarded.ask("POST", "/flows/F", WHO, **key)[0]
    assert (404, {}) == guarded.ask("GET", f"/flows/F/runs/{number + 1}", **key)
    assert "ada" == guarded.ask("GET", f"/flows/F/runs/{number}", **key)[1]["user_name"]

    submitted = guarded.submit("flow.py", "--wait", AFLOW_SERVICE_AUTH_KEY="token")
    assert 0 == submitted.code, submitted.err
    store = ServiceMetadata(guarded.url, key, SystemClock())
    assert ["succeeded"] == [run.state.value for run in store.runs("Flow_")]
    store.close()
