"""The daemon's OpenAPI document, made of its table of routes, and of that of the metadata service,
whose routes it answers too."""

from __future__ import annotations

import re
from typing import Any

from aflow.server.routes import ROUTES, TEXT, Route
from aflow.service import openapi as of_service
from aflow.version import __version__

_REFUSALS = {
    400: "What was sent means nothing.",
    401: "A token is wanted.",
    403: "The token does not allow it; or, without tokens: it is none of this machine.",
    404: "There is no such run.",
    408: "The body did not come to its end in time.",
    409: "The run has ended.",
    413: "The body is too large.",
    415: "The body is of another type, or compressed.",
    422: "The run did not begin, and this is what it said.",
    429: "So many runs go on that no more may begin.",
    503: "The metadata or the datastore do not answer, too many streams go on, or the server is "
    "being stopped.",
}
_REFUSAL = {"type": "object", "properties": {"error": TEXT}, "required": ["error"]}
_OPEN = ("/healthz", "/readyz")


def document(summaries: dict[str, str]) -> dict[str, Any]:
    """The document, of OpenAPI 3.1. `summaries` says what each method does, by its name."""
    told = of_service.document()
    told["info"] = {"title": "aflow server", "version": __version__}
    for route in ROUTES:
        operations = told["paths"].setdefault(route.path, {})
        operations[route.method.lower()] = _operation(route, summaries[route.name])
    return told


def _operation(route: Route, summary: str) -> dict[str, Any]:
    operation: dict[str, Any] = {
        "operationId": route.name,
        "summary": " ".join(summary.split()),
        "security": [{}, {"bearer": []}, {"key": []}],
        "parameters": [*map(_in_path, re.findall(r"{(\w+)}", route.path)), *_in_query(route)],
        "responses": {str(route.status): _success(route), **_refusals(route)},
    }
    if route.takes is not None:
        schema = route.body or {"type": "string", "format": "binary"}
        content = {route.takes: {"schema": schema}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _in_path(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": TEXT}


def _in_query(route: Route) -> list[dict[str, Any]]:
    return [
        {"name": name, "in": "query", "required": False, "schema": schema}
        for name, schema in route.query.items()
    ]


def _success(route: Route) -> dict[str, Any]:
    return {
        "description": "It is told, or done.",
        "content": {route.says: {"schema": route.answer}},
    }


def _refusals(route: Route) -> dict[str, Any]:
    always = (503,) if route.path in _OPEN else (401, 403, 503)
    return {
        str(status): {
            "description": _REFUSALS[status],
            "content": {"application/json": {"schema": _REFUSAL}},
        }
        for status in sorted((*always, *route.refuses))
    }
