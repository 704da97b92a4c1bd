"""The OpenAPI document holds of the daemon, and every route refuses what it should."""

from __future__ import annotations

import json
import pickle
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from aflow.server.openapi import document
from aflow.server.routes import ROUTES, Route
from tests.server.conftest import FLOW, Daemon

CHECKS = [
    not_a_server_error,
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
]
OURS = "^/(v1/|healthz|readyz)"
SCHEMA = schemathesis.openapi.from_dict(document({route.name: "" for route in ROUTES}))
SCHEMA.config.phases.coverage.enabled = False  # half a minute more: for who has the time
NAMES = [f"{route.method} {route.path}" for route in ROUTES]

HOSTILE = [
    "..", "%2e%2e", "..%2f..%2fetc%2fpasswd", "%00", "a%0d%0aSet-Cookie:x=1", "%ff", "a" * 5000,
    "%F0%9F%92%A9", "'; DROP TABLE runs;--", "{{7*7}}", "$(id)", "-rf", "..%5c..%5c",
]  # fmt: skip


@schemathesis.serializer("application/x-tar")
def as_bytes(context: Any, value: Any) -> bytes:
    """A body that is no JSON, as it is."""
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "replace")


class Bomb:
    """What runs code where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon with a run, for all tests here."""
    daemon = Daemon(tmp_path_factory.mktemp("served"))
    daemon.write(FLOW)
    daemon.begin()
    assert 0 == daemon.submit("flow.py", "--wait").code
    yield daemon
    assert 0 == daemon.stop()
    daemon.check()


def test_every_route_is_in_the_document(served: Daemon) -> None:
    with urllib.request.urlopen(f"{served.url}/openapi.json", timeout=30) as answer:
        paths = json.load(answer)["paths"]
    for route in ROUTES:
        assert paths[route.path][route.method.lower()]["summary"]
    assert "/flows/{flow_id}" in paths  # of the metadata service


@SCHEMA.include(path_regex=OURS).parametrize()
@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=[*HealthCheck])
def test_the_answers_are_those_of_the_document(served: Daemon, case: Any) -> None:
    answer = case.call(base_url=served.url)
    assert 500 > answer.status_code
    case.validate_response(answer, checks=CHECKS)
    if "flow" in case.path_parameters and case.method != "DELETE":
        case.path_parameters.update(flow="Flow_", run=known_run(served))
        case.call_and_validate(base_url=served.url, checks=CHECKS)


@pytest.mark.parametrize("route", ROUTES, ids=NAMES)
def test_hostile_names_are_refused_everywhere(served: Daemon, route: Route) -> None:
    paths = [route.path.replace("{flow}", bad).replace("{run}", "1") for bad in HOSTILE]
    paths += [route.path.replace("{flow}", "Flow_").replace("{run}", bad) for bad in HOSTILE]
    if "{name}" in route.path:
        paths = [route.path.replace("{name}", bad) for bad in HOSTILE]
    if "{" not in route.path:
        paths = [f"{route.path}/{bad}" for bad in HOSTILE]
        paths += [f"{route.path}?{name}={bad}" for bad in HOSTILE for name in route.query]
    for path in paths:
        status, told = served.ask(route.method, path.replace(" ", "%20"))
        assert status in (400, 404, 405, 415), path
        assert ["error"] == list(told)


@pytest.mark.parametrize("route", ROUTES, ids=NAMES)
def test_bodies_that_mean_nothing_run_nothing(served: Daemon, route: Route, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    before = len(served.ask("GET", "/v1/runs")[1]["runs"])
    path = a_path(route)
    for body in (
        pickle.dumps(Bomb(mark)), b"\x00" * 1000, b"[" * 100_000, b'{"a":' * 10_000, b"{}", b"null",
        b'{"package": "../../x", "script": "../x.py"}', b"\xff\xfe", b"__import__('os')",
    ):  # fmt: skip
        for type_ in ("application/json", "application/x-tar", "application/octet-stream"):
            if (route.method, type_) == ("POST", "application/x-tar") and "packages" in path:
                continue  # any bytes are kept there, and read by nobody but a run's own process
            status, _ = served.ask(route.method, path, body, type_)
            assert status in (200, 400, 404, 409, 413, 415), body
    assert not mark.exists()
    assert before == len(served.ask("GET", "/v1/runs")[1]["runs"])


@pytest.mark.parametrize("route", ROUTES, ids=NAMES)
def test_other_methods_are_refused(served: Daemon, route: Route) -> None:
    path = a_path(route)
    known = {each.method for each in ROUTES if each.path == route.path}
    for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "TRACE", "PROPFIND"} - known:
        assert 405 == served.ask(method, path)[0]


def a_path(route: Route) -> str:
    return route.path.replace("{flow}", "Flow_").replace("{run}", "1").replace("{name}", "x")


def known_run(daemon: Daemon) -> str:
    run: str = daemon.ask("GET", "/v1/runs")[1]["runs"][0]["run"]
    return run
