"""The OpenAPI document of a server, one for all APIs that it answers, and the daemon's part of it,
which is made of its table of routes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from aflow._core.version import __version__
from aflow.server.auth import SCOPE_HEADER
from aflow.server.routes.table import ROUTES, TEXT, Route

_REFUSALS = {
    400: "Malformed or invalid request.",
    401: "Missing or invalid token.",
    403: "Access denied: the token has expired, or does not allow this; or, without tokens, a "
    "request of another site or machine.",
    404: "Not found.",
    408: "The body did not arrive in time.",
    409: "Conflict: the run has ended, or the schedule was changed meanwhile.",
    413: "The body is too large.",
    415: "The body has another type, or is compressed.",
    422: "The run did not start, and `error` has its output; or what is kept of a run is damaged.",
    429: "Too many runs are active (--max-runs).",
    503: "The metadata or the datastore do not answer, too many streams are open, or the server is "
    "shutting down.",
}
_REFUSAL = {"type": "object", "properties": {"error": TEXT}, "required": ["error"]}
_RESULTS = {  # what comes back where the summary says what is done
    "add_package": "The key of the package.",
    "add_run": "The pathspec (Flow/run) of the run that was started.",
    "cancel_run": "The run, and whether it has ended or is stopping.",
    "put_schedule": "The schedule as it is stored.",
    "change_schedule": "The schedule as it is stored.",
    "delete_schedule": "The name of the schedule that was deleted.",
    "trigger_schedule": "The pathspec (Flow/run) of the run that was started.",
    "resume_run": "The pathspec (Flow/run) of the run that was started.",
    "rerun": "The pathspec (Flow/run) of the run that was started.",
    "drain_worker": "The worker: it ends when what it runs has ended.",
    "release_messages": "How many messages were released.",
    "delete_messages": "How many messages were deleted.",
    "tag_run": "The tags that the run has now.",
    "delete_run": "The run that was deleted.",
    "add_token": "The token: it is not shown again.",
    "revoke_token": "The name of the token that was revoked.",
}
_OPEN = ("/healthz", "/readyz")
_HEADERS = {
    SCOPE_HEADER: {
        "description": "What the token of the request allows: `read`, or `write` for everything.",
        "schema": {"enum": ["read", "write"]},
    }
}


SECURITY: list[dict[str, list[str]]] = [{}, {"bearer": []}, {"key": []}]


class Description(NamedTuple):
    """One API: its operations by path and method, and the schemas that they refer to."""

    title: str
    version: str
    paths: Mapping[str, Mapping[str, Any]]
    schemas: Mapping[str, Any] = {}


def document(*apis: Description) -> dict[str, Any]:
    """The document, of OpenAPI 3.1, of a server that answers these APIs: it has the name of the
    first one."""
    paths: dict[str, dict[str, Any]] = {}
    for api in apis:
        for path, operations in api.paths.items():
            paths.setdefault(path, {}).update(operations)
    return {
        "openapi": "3.1.0",
        "info": {"title": apis[0].title, "version": apis[0].version},
        "paths": paths,
        "components": {
            "schemas": {name: each for api in apis for name, each in api.schemas.items()},
            "securitySchemes": {
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
                "bearer": {"type": "http", "scheme": "bearer"},
            },
        },
    }


def parameters(path: str, patterns: Mapping[str, str] | None = None) -> list[dict[str, Any]]:
    """What stands in a path."""
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": TEXT if patterns is None else {**TEXT, "pattern": patterns[name]},
        }
        for name in re.findall(r"{(\w+)}", path)
    ]


def query(schemas: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What a query may have."""
    return [
        {"name": name, "in": "query", "required": False, "schema": schema}
        for name, schema in schemas.items()
    ]


def of_daemon(summaries: Mapping[str, str]) -> Description:
    """The API of the daemon. `summaries` says what each method does, by its name."""
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        operations = paths.setdefault(route.path, {})
        operations[route.method.lower()] = _operation(route, summaries[route.name])
    return Description("aflow server", __version__, paths)


def _operation(route: Route, summary: str) -> dict[str, Any]:
    summary = " ".join(summary.split())
    operation: dict[str, Any] = {
        "operationId": route.name,
        "summary": summary,
        "security": SECURITY,
        "parameters": [*parameters(route.path), *query(route.query)],
        "responses": {str(route.status): _success(route, summary), **_refusals(route)},
    }
    if route.takes is not None:
        schema = route.body or {"type": "string", "format": "binary"}
        content = {route.takes: {"schema": schema}}
        operation["requestBody"] = {"required": True, "content": content}
    return operation


def _success(route: Route, summary: str) -> dict[str, Any]:
    return {
        "description": _RESULTS.get(route.name, summary),
        "headers": {} if route.path in _OPEN or route.says == "text/event-stream" else _HEADERS,
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
