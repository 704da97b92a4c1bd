"""Invalid requests: each is rejected with one sentence and has no effect."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import Any

import pytest

from tests.server.conftest import Daemon

KEY = "0" * 64


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon that all tests here share: none of them changes anything."""
    daemon = Daemon(tmp_path_factory.mktemp("refuses"))
    daemon.begin()
    yield daemon
    assert 0 == daemon.stop()


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"package": "../../etc/passwd", "script": "flow.py"},
        {"package": KEY},
        {"package": KEY, "script": "../flow.py"},
        {"package": KEY, "script": "/etc/flow.py"},
        {"package": KEY, "script": "--with.py"},
        {"package": KEY, "script": "flow.py", "flow": "../x"},
        {"package": KEY, "script": "flow.py", "more": 1},
        {"package": KEY, "script": "flow.py", "parameters": []},
        {"package": KEY, "script": "flow.py", "parameters": {"datastore-root": "/"}},
        {"package": KEY, "script": "flow.py", "parameters": {"datastore_root": "/"}},
        {"package": KEY, "script": "flow.py", "parameters": {"run_id_file": "/etc/x"}},
        {"package": KEY, "script": "flow.py", "parameters": {"With": "retry"}},
        {"package": KEY, "script": "flow.py", "parameters": {"parameters_file": "/etc/x"}},
        {"package": KEY, "script": "flow.py", "parameters": {"a": "\0"}},
        {"package": KEY, "script": "flow.py", "parameters": {"a": "\ud800"}},
        {"package": KEY, "script": "flow.py", "parameters": {"a": "x" * 200_000}},
        {"package": KEY, "script": "flow.py", "tags": [1]},
        {"package": KEY, "script": "flow.py", "max_workers": True},
        {"package": KEY, "script": "flow.py"},  # a package that was not uploaded
    ],
)
def test_an_order_that_cannot_be_is_refused(daemon: Daemon, fields: dict[str, Any]) -> None:
    status, reported = daemon.order(**fields)

    assert (400, ["error"]) == (status, list(reported))


def test_bodies_that_are_no_orders_are_refused(daemon: Daemon) -> None:
    for body in (b"", b"{", b"[]", b"\xff", b"[" * 100_000, pickle.dumps({"package": KEY})):
        assert 400 == daemon.ask("POST", "/v1/runs", body)[0]
    assert 415 == daemon.ask("POST", "/v1/runs", b"{}", "text/plain")[0]
    assert 413 == daemon.ask("POST", "/v1/runs", b" " * (3 << 20))[0]


def test_a_body_is_refused_where_a_route_takes_none(daemon: Daemon) -> None:
    for method, path in (
        ("POST", "/v1/doctor"), ("POST", "/v1/storage"), ("POST", "/v1/schedules/x/runs"),
        ("DELETE", "/v1/tokens/x"), ("GET", "/v1/runs"),
    ):  # fmt: skip
        status, reported = daemon.ask(method, path, b"{}")
        assert (400, "This route takes no body: send none.") == (status, reported["error"]), path
    assert 404 == daemon.ask("DELETE", "/v1/tokens/x", b"")[0]


@pytest.mark.parametrize(
    "path",
    [
        "/v1/runs/Flow_/../../etc",
        "/v1/runs/Flow_/..%2f..%2fetc",
        "/v1/runs/..%2fFlow_/1",
        "/v1/runs/Flow_/%00",
        "/v1/runs/Flow_/nothing",
        "/v1/runs?flow=../x",
        "/v1/runs?flow=Flow_&limit=-1",
        "/v1/runs?flow=Flow_&limit=99999",
        "/v1/runs/Flow_/nothing/tasks",
        "/v1/runs/Flow_/1/tasks?after=x",
        "/v1/runs/Flow_/1/..%2f..%2ftasks",
        "/v2/runs",
    ],
)
def test_paths_that_name_nothing_are_refused(daemon: Daemon, path: str) -> None:
    for method in ("GET", "DELETE"):
        status, reported = daemon.ask(method, path)
        assert status in (400, 404, 405)
        assert ["error"] == list(reported)


def test_a_request_by_another_name_of_the_machine_is_refused(folder: Daemon) -> None:
    folder.begin("--no-auth")
    assert 403 == folder.ask("GET", "/v1/runs?flow=Flow_", Host="evil.example:8180")[0]
    assert 200 == folder.ask("GET", "/v1/runs?flow=Flow_", Host="localhost:8180")[0]
    assert 0 == folder.stop()
