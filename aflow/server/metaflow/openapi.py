"""What the routes take and answer, in the OpenAPI document: made of the table of routes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from aflow.server.metaflow.checks import MAX_ITEMS, NAMES
from aflow.server.metaflow.messages import LIMIT, MAX_LIMIT, SPOKEN
from aflow.server.metaflow.routes import ROUTES, ServiceRoute
from aflow.server.openapi import SECURITY, Description, parameters, query

_Schema = dict[str, Any]

_TEXT: _Schema = {"type": "string"}
_MAY_BE_TEXT: _Schema = {"type": ["string", "null"]}
_NUMBER: _Schema = {"type": "integer"}
_NAME_OR_NUMBER: _Schema = {"type": ["string", "integer"]}
_TAGS: _Schema = {"type": ["array", "object", "null"]}
_TEXTS: _Schema = {"type": "array", "items": _TEXT}
_GIVEN_TAGS: _Schema = {"type": ["array", "null"], "items": _TEXT}

_WHO = {"user_name": _MAY_BE_TEXT, "ts_epoch": _NUMBER, "tags": _TAGS, "system_tags": _TAGS}
_IN_RUN = {"flow_id": _TEXT, "run_number": _NAME_OR_NUMBER, **_WHO}
_IN_STEP = {"step_name": _TEXT, **_IN_RUN}
_IN_TASK = {"task_id": _NAME_OR_NUMBER, **_IN_STEP}
_HEARTBEAT = {"last_heartbeat_ts": {"type": ["integer", "null"]}}
_OF_ARTIFACT = ("location", "ds_type", "sha", "type", "content_type")

_RECORDS: dict[str, _Schema] = {
    "Flow": {"flow_id": _TEXT, **_WHO},
    "Run": {**_IN_RUN, **_HEARTBEAT},
    "Step": _IN_STEP,
    "Task": {**_IN_TASK, **_HEARTBEAT},
    "Metadata": {
        "id": _NUMBER, "field_name": _TEXT, "value": _MAY_BE_TEXT, "type": _MAY_BE_TEXT, **_IN_TASK
    },
    "Artifact": {
        "name": _TEXT, "attempt_id": _NUMBER, **_IN_TASK,
        **dict.fromkeys(_OF_ARTIFACT, _MAY_BE_TEXT),
    },
}  # fmt: skip

_BY_WHOM = {"user_name": _MAY_BE_TEXT, "tags": _GIVEN_TAGS, "system_tags": _GIVEN_TAGS}


def _object(properties: _Schema, required: Iterable[str] = ()) -> _Schema:
    return {"type": "object", "properties": properties, "required": [*required]}


def _list(items: _Schema) -> _Schema:
    return {"type": "array", "items": items, "maxItems": MAX_ITEMS}


_BODIES: dict[str, _Schema] = {
    "add_flow": _object(_BY_WHOM),
    "add_run": _object({**_BY_WHOM, "run_number": _MAY_BE_TEXT}),
    "add_step": _object(_BY_WHOM),
    "add_task": _object({**_BY_WHOM, "task_id": _MAY_BE_TEXT}),
    "beat_run": {"type": "object"},
    "beat_task": {"type": "object"},
    "change_tags": _object({"tags_to_add": _TEXTS, "tags_to_remove": _TEXTS}),
    "add_metadata": _list(
        _object({"field_name": _TEXT, "value": _MAY_BE_TEXT, "type": _MAY_BE_TEXT, **_BY_WHOM})
    ),
    "add_artifacts": _list(
        _object(
            {
                "name": _TEXT,
                "attempt_id": {"type": "integer", "minimum": 0, "maximum": 9999},
                **dict.fromkeys(_OF_ARTIFACT, _MAY_BE_TEXT),
                **_BY_WHOM,
            }
        )
    ),
}
_ANSWERS: dict[str, _Schema] = {
    "get_filtered_tasks": {"type": "array", "items": _TEXT},
    "beat_run": _TEXT,
    "beat_task": _TEXT,
    "change_tags": _object({"tags": _TEXTS}, ["tags"]),
    "add_metadata": _object({"metadata_created": _NUMBER}, ["metadata_created"]),
    "add_artifacts": _object({"artifacts_created": _NUMBER}, ["artifacts_created"]),
}
_REFUSALS = {
    400: "Malformed or invalid request.",
    401: "Missing or invalid token.",
    404: "Not found, or what it would belong to is not registered.",
    409: "It is registered already.",
    413: "The body is too large.",
    422: "A system tag cannot be removed.",
    503: "The database cannot be used.",
}
_CURSOR = "`X-Next-Cursor` of the page before"
_ONE_BY_ONE = ("add_flow", "add_run", "add_step", "add_task")


def description() -> Description:
    """The API of Metaflow's service."""
    paths: dict[str, dict[str, Any]] = {
        "/ping": {"get": _plain("Whether the service answers.")},
        "/version": {"get": _plain("The version of metaflow-service that is spoken.")},
    }
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    schemas = {name: _object(each, each) for name, each in _RECORDS.items()}
    return Description("aflow metadata service", SPOKEN, paths, schemas)


def _plain(summary: str) -> dict[str, Any]:
    content = {"text/plain": {"schema": _TEXT}}
    return {"summary": summary, "responses": {"200": {"description": "Yes.", "content": content}}}


def _operation(route: ServiceRoute) -> dict[str, Any]:
    name = route.answer.__name__
    listed = not route.writes and _answer_of(name).get("type") == "array"
    operation: dict[str, Any] = {
        "operationId": name if "{attempt_id}" not in route.path else f"{name}_of_attempt",
        "summary": (route.answer.__doc__ or "").split("\n\n")[0].replace("\n    ", " "),
        "security": SECURITY,
        "parameters": [
            *parameters(route.path, _PATTERNS),
            *query(_queried(name) if listed else {}),
        ],
        "responses": _responses(route, name),
    }
    if route.writes:
        content = {"application/json": {"schema": _BODIES[name]}}
        operation["requestBody"] = {"content": content, "required": False}
    return operation


def _responses(route: ServiceRoute, name: str) -> dict[str, Any]:
    statuses = [400, 401, 404, 503]
    if route.writes:
        statuses.append(413)
    if name in _ONE_BY_ONE:
        statuses.append(409)
    if name == "change_tags":
        statuses.append(422)
    responses: dict[str, Any] = {
        "200": {
            "description": "What was registered." if route.writes else "What was asked for.",
            "content": {"application/json": {"schema": _answer_of(name)}},
        }
    }
    if not route.writes:
        responses["304"] = {"description": "The `ETag` in `If-None-Match` is that of now."}
    for status in sorted(statuses):
        content: dict[str, Any] = {"application/json": {"schema": {}}}
        responses[str(status)] = {"description": _REFUSALS[status], "content": content}
    return responses


def _answer_of(name: str) -> _Schema:
    if name in _ANSWERS:
        return _ANSWERS[name]
    _, _, what = name.partition("_")  # get_runs, get_artifacts_of_step, add_task
    record = what.partition("_")[0].capitalize()
    one = {"$ref": f"#/components/schemas/{record if record in _RECORDS else record[:-1]}"}
    return one if record in _RECORDS and record != "Metadata" else {"type": "array", "items": one}


def _ascii_pattern(pattern: str) -> str:
    # `\w` and `\Z` mean other things to those who read the document in other languages.
    pattern = pattern.removesuffix(r"\Z")
    pattern = pattern.replace(r"[^\W\d]", "[A-Za-z_]").replace(r"\w", "[A-Za-z0-9_]")
    return f"^{pattern}$"


_PATTERNS = {name: _ascii_pattern(each.pattern) for name, each in NAMES.items()}


def _queried(name: str) -> _Schema:
    schemas: dict[str, _Schema] = {
        "_limit": {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": LIMIT},
        "_cursor": {**_TEXT, "description": _CURSOR},
    }
    if name == "get_filtered_tasks":
        schemas |= {"metadata_field_name": _TEXT, "pattern": {**_TEXT, "format": "regex"}}
    else:
        schemas["ts_epoch:ge"] = {"type": "integer", "minimum": 0}
    if name == "get_runs":
        schemas |= {
            "user:eq": _TEXT,
            "status:eq": {"enum": ["completed", "running", "failed"]},
            "_tags:any": {**_TEXT, "description": "tags, with commas between them"},
            "_tags:all": {**_TEXT, "description": "tags, with commas between them"},
        }
    return schemas
