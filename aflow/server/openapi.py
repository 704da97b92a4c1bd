"""The OpenAPI document of a server, which covers all of its APIs, and the daemon's part of it,
which is generated from the table of routes."""

from __future__ import annotations

from collections.abc import Mapping
from inspect import cleandoc
from itertools import pairwise
from typing import Any, NamedTuple

from aflow._core.version import __version__
from aflow.server.auth import SCOPE_HEADER
from aflow.server.routes.schemas import STARTED_RUN, Schema, fields, text
from aflow.server.routes.table import ROUTES, Route

REFUSALS = {
    304: "The response is the one with the ETag of `If-None-Match`.",
    400: "Malformed or invalid request.",
    401: "Missing or invalid token.",
    403: "Access denied: the token has expired, or its scope is `read` and the request changes "
    "something. Without tokens: the request comes from a page of another site, or names another "
    "host.",
    408: "The body did not arrive in time.",
    413: "The body is too large.",
    415: "The body has another type, or is compressed.",
    429: "Too many runs are active (--max-runs): try again when one has ended.",
    500: "The server failed unexpectedly: its log has the cause.",
    503: "The metadata, the datastore or the queue does not answer, too many streams are open, or "
    "the server is shutting down: try again later.",
}
_CONFLICTS = {
    "cancel_run": "The run has ended.",
    "delete_run": "The run is active, or an active run has resumed it.",
    "put_schedule": "The schedule was changed at the same time: try again.",
    "change_schedule": "The schedule was changed at the same time: try again.",
}
_DAMAGED = "The records or the stored data of the run are damaged."
_NOT_BEGUN = "The run did not start: `error` has what it printed."
_REFUSAL = fields(error=text("One sentence: what failed, and what to do."))
_RESULTS = {  # descriptions of responses, if the summary describes an action instead
    "alive": "The process answers.",
    "ready": "The server accepts runs.",
    "measure": "The metrics.",
    "add_package": "The key of the package.",
    "cancel_run": "The run, and whether it has ended or is stopping.",
    "put_schedule": "The schedule as it is stored.",
    "change_schedule": "The schedule as it is stored.",
    "delete_schedule": "The name of the schedule that was deleted.",
    "drain_worker": "The worker. It ends when its running tasks have ended.",
    "release_messages": "How many messages were released.",
    "delete_messages": "How many messages were deleted.",
    "tag_run": "The tags of the run after the change.",
    "change_many": "How many runs were changed, and where the next request continues.",
    "delete_run": "The run that was deleted.",
    "add_token": "The token. It is not shown again.",
    "revoke_token": "The name of the token that was revoked.",
    "check_settings": "The result of each check.",
    "show_events": "The events.",
    "show_logs": "The lines, one event for each.",
    "stream": "The events.",
}
_STARTED = "The pathspec (Flow/run) of the run that was started."
# The meaning of the last part of a path, by the part before it.
_NAMED = {
    "schedules": "The name of the schedule.",
    "workers": "The name of the worker.",
    "tokens": "The name of the token.",
    "artifacts": "The name of the artifact.",
    "cards": "The name of the card, from the list of cards.",
}
_PLACES = {
    "flow": "The name of the flow.",
    "run": "The id of the run.",
    "task": "The number of the task.",
}
_OPEN = ("/healthz", "/readyz")
_HEADERS = {
    SCOPE_HEADER: {
        "description": "What the token of the request allows: `read`, or `write` for everything.",
        "schema": {"enum": ["read", "write"]},
    }
}
_ETAG = {"ETag": {"description": "The version of the response.", "schema": {"type": "string"}}}
_ABOUT = """\
The HTTP API of aflow. All operations below /v1/ belong to `aflow server`; those below /flows are \
Metaflow's metadata service, which `aflow metadata-service` serves as well.

Authentication: send a token of `aflow token create`, or a key of AFLOW_SERVICE_AUTH_KEY, as \
`Authorization: Bearer TOKEN` or as `x-api-key: TOKEN`.

Errors: each response with a status of 400 or more has a JSON object whose field `error` (for the \
metadata service `message` or `detail`) is one sentence. A method that a path does not have is \
refused with 405.

Times are seconds since 1970 (UTC), those of the metadata service milliseconds. Clients have to \
ignore fields that they do not know: later versions add some."""
_TAGS = {
    "runs": "Start, list, show, change and delete runs.",
    "tasks": "The tasks of a run.",
    "artifacts": "Artifacts and cards of tasks.",
    "logs": "What tasks have printed.",
    "streams": "Server-sent events (text/event-stream).",
    "flows": "Flows and their history.",
    "dry runs": "What a run would do. Nothing is run.",
    "schedules": "Runs that the server starts on a schedule.",
    "queue": "The messages of the queue.",
    "workers": "The registered workers.",
    "jobs": "Jobs at AWS Batch, Slurm and Kubernetes.",
    "storage": "What runs take in the datastore, and what could be deleted.",
    "server": "The server and its configuration.",
    "tokens": "API tokens.",
    "probes": "Health checks and metrics.",
    "metadata service": "Metaflow's metadata service, version 2.5.",
}


SECURITY: list[dict[str, list[str]]] = [{}, {"bearer": []}, {"key": []}]


class Description(NamedTuple):
    """One API: its operations by path and method, and the schemas that they reference."""

    title: str
    version: str
    paths: Mapping[str, Mapping[str, Any]]
    schemas: Mapping[str, Any] = {}


def document(*apis: Description) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of a server with these APIs, under the title of the first
    one.

    Args:
        *apis: The APIs, in the order in which the server registers them.
    """
    paths: dict[str, dict[str, Any]] = {"/openapi.json": {"get": _DOCUMENT}}
    for api in apis:
        for path, operations in api.paths.items():
            paths.setdefault(path, {}).update(operations)
    used = {tag for each in paths.values() for one in each.values() for tag in one.get("tags", ())}
    return {
        "openapi": "3.1.0",
        "info": {"title": apis[0].title, "version": apis[0].version, "description": _ABOUT},
        "tags": [{"name": name, "description": _TAGS[name]} for name in _TAGS if name in used],
        "paths": paths,
        "components": {
            "schemas": {name: each for api in apis for name, each in api.schemas.items()},
            "securitySchemes": {
                "key": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "x-api-key",
                    "description": "A token or a key, as Metaflow's clients send it.",
                },
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A token of `aflow token create`, or a key of "
                    "AFLOW_SERVICE_AUTH_KEY.",
                },
            },
        },
    }


_DOCUMENT: dict[str, Any] = {
    "operationId": "openapi",
    "summary": "Get this document.",
    "tags": ["server"],
    "security": SECURITY,
    "responses": {
        "200": {
            "description": "The OpenAPI document of the server.",
            "content": {"application/json": {"schema": {"type": "object"}}},
        },
        **{
            str(status): {"description": REFUSALS[status]} for status in (401, 403, 500, 503)
        },
    },
}  # fmt: skip


def parameters(
    path: str, patterns: Mapping[str, str] | None = None, meanings: Mapping[str, str] | None = None
) -> list[dict[str, Any]]:
    """Return the parameters of a path.

    Args:
        path: The path with its parameters in braces: `/v1/runs/{flow}/{run}`.
        patterns: The regular expression of each parameter, by name; None to omit them.
        meanings: The description of each parameter, by name; None for aflow's own routes.
    """
    found = []
    for before, name in places_of(path):
        schema = {"type": "string"}
        if patterns is not None:
            schema["pattern"] = patterns[name]
        meaning = (meanings or _PLACES).get(name) or _NAMED[before]
        found.append(
            {"name": name, "in": "path", "required": True, "schema": schema, "description": meaning}
        )
    return found


def places_of(path: str) -> list[tuple[str, str]]:
    """Return a pair for each parameter of a path: the segment before it, and its name.

    Args:
        path: The path with its parameters in braces.
    """
    parts = path.split("/")
    return [(before, part.strip("{}")) for before, part in pairwise(parts) if part.startswith("{")]


def query(schemas: Mapping[str, Schema], where: str = "query") -> list[dict[str, Any]]:
    """Return the parameters of a query, or the headers of a request, with the descriptions in their
    schemas.

    Args:
        schemas: The schema of each parameter, by name, with its description.
        where: The place of the parameters: `query` or `header`.
    """
    return [
        {
            "name": name,
            "in": where,
            "required": False,
            "description": schema["description"],
            "schema": {key: each for key, each in schema.items() if key != "description"},
        }
        for name, schema in schemas.items()
    ]


def summary_of(docstring: str) -> dict[str, str]:
    """Return the first paragraph of a docstring as the summary of an operation, the others as its
    description.

    Args:
        docstring: The docstring of the handler, whose paragraphs are separated by blank lines.
    """
    first, _, rest = cleandoc(docstring).partition("\n\n")
    found = {"summary": " ".join(first.split())}
    if rest:
        found["description"] = "\n\n".join(" ".join(each.split()) for each in rest.split("\n\n"))
    return found


def of_daemon(docstrings: Mapping[str, str]) -> Description:
    """Return the description of the daemon's API.

    Args:
        docstrings: The docstring of each handler, by its name.
    """
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        operations = paths.setdefault(route.path, {})
        operations[route.method.lower()] = _operation(route, docstrings[route.name])
    return Description("aflow server", __version__, paths)


def _operation(route: Route, docstring: str) -> dict[str, Any]:
    about = summary_of(docstring)
    operation: dict[str, Any] = {
        "operationId": route.name,
        **about,
        "tags": [route.tag],
        "security": [] if route.path in _OPEN else SECURITY,
        "parameters": [
            *parameters(route.path), *query(route.query), *query(route.headers, "header")
        ],
        "responses": {str(route.status): _success(route, about["summary"]), **_refusals(route)},
    }  # fmt: skip
    if route.takes is not None:
        body = route.body or {"type": "string", "format": "binary"}
        what = "A JSON object." if route.body else "A tar archive of the code, 64 MB at most."
        content = {route.takes: {"schema": body}}
        operation["requestBody"] = {"required": True, "description": what, "content": content}
    return operation


def _success(route: Route, summary: str) -> dict[str, Any]:
    headers = {} if route.path in _OPEN or route.content_type == "text/event-stream" else _HEADERS
    if "If-None-Match" in route.headers:
        headers = {**headers, **_ETAG}
    result = _STARTED if route.answer is STARTED_RUN else _RESULTS.get(route.name)
    return {
        "description": result or _result(summary),
        "headers": headers,
        "content": {route.content_type: {"schema": route.answer}},
    }


def _result(summary: str) -> str:
    """Return the description of a response: `The runs.` for the summary `List the runs.`"""
    _, _, what = summary.partition(" ")
    return f"{what[:1].upper()}{what[1:]}"


def _refusals(route: Route) -> dict[str, Any]:
    always = (500, 503) if route.path in _OPEN else (401, 403, 500, 503)
    found: dict[str, Any] = {}
    if "If-None-Match" in route.headers:
        found["304"] = {"description": REFUSALS[304]}
    for status in sorted((*always, *route.refusals)):
        found[str(status)] = {
            "description": _refusal_of(route, status),
            "content": {"application/json": {"schema": _REFUSAL}},
        }
    return found


def _refusal_of(route: Route, status: int) -> str:
    if status == 409:
        return _CONFLICTS[route.name]
    if status == 422:
        starts = 429 in route.refuses or route.tag == "dry runs"
        return _NOT_BEGUN if starts else _DAMAGED
    if status != 404:
        return REFUSALS[status]
    kinds = [name if name != "name" else before[:-1] for before, name in places_of(route.path)]
    kinds = kinds[1:] if kinds[:2] == ["flow", "run"] else kinds
    return f"There is no such {' or '.join(kinds) or 'run'}."
