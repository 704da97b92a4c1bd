"""The daemon conforms to the OpenAPI document. Rejected requests are tested in test_attacks.py."""

from __future__ import annotations

from collections.abc import Iterator
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

from aflow.server.metaflow.openapi import description
from aflow.server.openapi import document, of_daemon
from aflow.server.routes.table import ROUTES, Route
from tests.server.conftest import FLOW, Daemon

CHECKS = [
    not_a_server_error,
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
]
OURS = "^/(v1/|healthz|readyz)"


def strict(schema: Any) -> Any:
    """Return the schema, with objects restricted to their described fields."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {name: strict(each) for name, each in schema.items()}
    if "properties" in found and "type" in found:
        found.setdefault("additionalProperties", False)
    return found


def of_strict_answers(described: dict[str, Any]) -> dict[str, Any]:
    """Return the document, with responses restricted to their described fields."""
    for operations in described["paths"].values():
        for operation in operations.values():
            operation["responses"] = strict(operation["responses"])
    return described


SCHEMA = schemathesis.openapi.from_dict(
    of_strict_answers(document(of_daemon({route.name: "" for route in ROUTES})))
)
SCHEMA.config.phases.coverage.enabled = False  # takes another half minute: optional
NAMES = [f"{route.method} {route.path}" for route in ROUTES]


@schemathesis.serializer("application/x-tar")
def as_bytes(context: Any, value: Any) -> bytes:
    """Return a body that is not valid JSON, unchanged."""
    return value if isinstance(value, bytes) else str(value).encode("utf-8", "replace")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon with a run, which all tests here share."""
    daemon = Daemon(tmp_path_factory.mktemp("served"))
    daemon.write(FLOW)
    daemon.begin()
    assert 0 == daemon.submit("flow.py", "--wait").code
    yield daemon
    assert 0 == daemon.stop()
    daemon.check()


def test_every_route_is_in_the_document(served: Daemon) -> None:
    paths = served.ask("GET", "/openapi.json")[1]["paths"]
    for route in ROUTES:
        assert paths[route.path][route.method.lower()]["summary"]
    assert "/flows/{flow_id}" in paths  # of the metadata service


def test_everything_in_the_document_is_described() -> None:
    daemon, service = of_daemon({route.name: "Show it." for route in ROUTES}), description()
    whole = document(daemon, service)
    missing = [*undescribed(whole["components"], "components")]
    ids = []
    for path, operations in whole["paths"].items():
        for method, operation in operations.items():
            where = f"{method} {path}"
            ids.append(operation["operationId"])
            assert operation["summary"].endswith("."), where
            assert operation["tags"], where
            for each in (*operation.get("parameters", ()), *operation["responses"].values()):
                assert each["description"], (where, each)
            missing += undescribed(operation, where)

    assert [] == missing
    assert len(ids) == len(set(ids))
    for operations in daemon.paths.values():
        for operation in operations.values():
            assert {"500", "503"} <= operation["responses"].keys()


def undescribed(value: Any, where: str) -> Iterator[str]:
    """Return the fields of objects that have no description."""
    if isinstance(value, list):
        for each in value:
            yield from undescribed(each, where)
    elif isinstance(value, dict):
        for name, field in value.get("properties", {}).items():
            # An object is described by its own fields.
            if not (field.get("description") or field.get("properties")):
                yield f"{where}: {name}"
        for name, each in value.items():
            yield from undescribed(each, f"{where}.{name}")


@SCHEMA.include(path_regex=OURS).parametrize()
@settings(max_examples=15, deadline=None, derandomize=True, suppress_health_check=[*HealthCheck])
def test_the_answers_are_those_of_the_document(served: Daemon, case: Any) -> None:
    token = {"Authorization": f"Bearer {served.token}"}
    answer = case.call(base_url=served.url, headers=token)
    assert 500 > answer.status_code
    case.validate_response(answer, checks=CHECKS)
    if "flow" in case.path_parameters and case.method != "DELETE":
        case.path_parameters.update(flow="Flow_", run=known_run(served))
        case.call_and_validate(base_url=served.url, headers=token, checks=CHECKS)


@pytest.mark.parametrize("route", ROUTES, ids=NAMES)
def test_other_methods_are_refused(served: Daemon, route: Route) -> None:
    path = a_path(route)
    known = {each.method for each in ROUTES if each.path == route.path}
    for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "TRACE", "PROPFIND"} - known:
        assert 405 == served.ask(method, path)[0]


def a_path(route: Route) -> str:
    return (
        route.path.replace("{flow}", "Flow_")
        .replace("{run}", "1")
        .replace("{name}", "x")
        .replace("{task}", "7")
    )


def known_run(daemon: Daemon) -> str:
    run: str = daemon.ask("GET", "/v1/runs")[1]["runs"][0]["run"]
    return run
