"""The service conforms to its OpenAPI document: each allowed request gets such a response."""

from __future__ import annotations

import json
import urllib.request
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
from aflow.server.metaflow.routes import ROUTES
from aflow.server.openapi import document
from tests.support.postgres import new_schema
from tests.support.servers import Server
from tests.support.service import InThread

SCHEMA = schemathesis.openapi.from_dict(document(description()))
SCHEMA.config.phases.coverage.enabled = False  # takes another half minute: optional
CHECKS = [
    not_a_server_error,
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
]


KNOWN = {"flow_id": "F", "run_number": "r", "step_name": "start", "task_id": "t"}
"""Names of what is registered before."""


@pytest.fixture(scope="module")
def service(postgres_server: Server) -> Iterator[InThread]:
    made = InThread(new_schema(postgres_server))
    for path, body in [
        ("F", {}),
        ("F/run", {"run_number": "r"}),
        ("F/runs/r/steps/start/step", {}),
        ("F/runs/r/steps/start/task", {"task_id": "t"}),
    ]:
        sent = json.dumps(body).encode()
        urllib.request.urlopen(f"{made.url}/flows/{path}", sent, timeout=100).close()
    yield made
    made.stop()


def test_every_route_is_in_the_document(service: InThread) -> None:
    with urllib.request.urlopen(f"{service.url}/openapi.json", timeout=100) as answer:
        paths = json.load(answer)["paths"]

    assert {(route.path, route.method.lower()) for route in ROUTES} <= {
        (path, method) for path, methods in paths.items() for method in methods
    }
    ids = [
        each["operationId"]
        for path in paths.values()
        for each in path.values()
        if "operationId" in each
    ]
    assert len(set(ids)) == len(ids)


@SCHEMA.parametrize()
@settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=[*HealthCheck])
def test_the_answers_are_those_of_the_document(service: InThread, case: Any) -> None:
    answer = case.call(base_url=service.url)
    assert 500 > answer.status_code
    case.validate_response(answer, checks=CHECKS)

    for name in KNOWN.keys() & case.path_parameters.keys():
        case.path_parameters[name] = KNOWN[name]
    case.call_and_validate(base_url=service.url, checks=CHECKS)
