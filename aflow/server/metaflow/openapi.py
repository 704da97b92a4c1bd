"""What the routes take and answer, in the OpenAPI document: made of the table of routes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from aflow.server.metaflow.checks import MAX_ITEMS, NAMES
from aflow.server.metaflow.messages import LIMIT, MAX_LIMIT, SPOKEN
from aflow.server.metaflow.routes import ROUTES, ServiceRoute
from aflow.server.openapi import SECURITY, Description, parameters, query, summary_of

_Schema = dict[str, Any]

_NULLABLE: _Schema = {"type": ["string", "null"]}


def _text(meaning: str) -> _Schema:
    return {"type": "string", "description": meaning}


def _maybe_text(meaning: str) -> _Schema:
    return {**_NULLABLE, "description": meaning}


def _number(meaning: str) -> _Schema:
    return {"type": "integer", "description": meaning}


def _name_or_number(meaning: str) -> _Schema:
    return {"type": ["string", "integer"], "description": meaning}


def _tags(meaning: str) -> _Schema:
    return {"type": ["array", "object", "null"], "description": meaning}


def _texts(meaning: str) -> _Schema:
    return {"type": "array", "items": {"type": "string"}, "description": meaning}


def _sent_tags(meaning: str) -> _Schema:
    return {"type": ["array", "null"], "items": {"type": "string"}, "description": meaning}


_USER = _maybe_text("The user that registered it.")
_REGISTERED_BY = {
    "user_name": _USER,
    "ts_epoch": _number("When it was registered, in milliseconds since 1970 (UTC)."),
    "tags": _tags("The tags."),
    "system_tags": _tags("The tags that clients set by themselves."),
}
_IN_RUN = {
    "flow_id": _text("The name of the flow."),
    "run_number": _name_or_number("The number of the run, or its name where it has one."),
    **_REGISTERED_BY,
}
_IN_STEP = {"step_name": _text("The name of the step."), **_IN_RUN}
_IN_TASK = {
    "task_id": _name_or_number("The number of the task, or its name where it has one."),
    **_IN_STEP,
}
_HEARTBEAT = {
    "last_heartbeat_ts": {
        "type": ["integer", "null"],
        "description": "The last heartbeat, in seconds since 1970 (UTC); null if there was none.",
    }
}
_OF_ARTIFACT = {
    "location": _maybe_text("Where the value is stored."),
    "ds_type": _maybe_text("The type of the datastore: `s3` or `local`."),
    "sha": _maybe_text("The digest of the value."),
    "type": _maybe_text("The type of the record: `metaflow.artifact`."),
    "content_type": _maybe_text("The encoding of the value, such as `gzip+pickle-v4`."),
}
_FIELD = _text("The name of the field.")
_VALUE = {
    "value": _maybe_text("The value of the field."),
    "type": _maybe_text("The kind of the field."),
}

_RECORDS: dict[str, _Schema] = {
    "Flow": {"flow_id": _text("The name of the flow."), **_REGISTERED_BY},
    "Run": {**_IN_RUN, **_HEARTBEAT},
    "Step": _IN_STEP,
    "Task": {**_IN_TASK, **_HEARTBEAT},
    "Metadata": {"id": _number("The number of the record."), "field_name": _FIELD, **_VALUE,
                 **_IN_TASK},
    "Artifact": {
        "name": _text("The name of the artifact."),
        "attempt_id": _number("The number of the attempt, from 0 on."),
        **_IN_TASK,
        **_OF_ARTIFACT,
    },
}  # fmt: skip

_SENT_BY = {
    "user_name": _USER,
    "tags": _sent_tags("The tags."),
    "system_tags": _sent_tags("The tags that the client sets by itself."),
}


def _object(properties: _Schema, required: Iterable[str] = ()) -> _Schema:
    return {"type": "object", "properties": properties, "required": [*required]}


def _list(items: _Schema) -> _Schema:
    return {"type": "array", "items": items, "maxItems": MAX_ITEMS}


_BODIES: dict[str, _Schema] = {
    "add_flow": _object(_SENT_BY),
    "add_run": _object(
        {**_SENT_BY, "run_number": _maybe_text("A name for the run; null: it gets a number.")}
    ),
    "add_step": _object(_SENT_BY),
    "add_task": _object(
        {**_SENT_BY, "task_id": _maybe_text("A name for the task; null: it gets a number.")}
    ),
    "beat_run": {"type": "object"},
    "beat_task": {"type": "object"},
    "change_tags": _object(
        {
            "tags_to_add": _texts("Tags to add."),
            "tags_to_remove": _texts("Tags to remove."),
        }
    ),
    "add_metadata": _list(_object({"field_name": _FIELD, **_VALUE, **_SENT_BY})),
    "add_artifacts": _list(
        _object(
            {
                "name": _text("The name of the artifact."),
                "attempt_id": {
                    "type": "integer",
                    "minimum": 0,
                    "maximum": 9999,
                    "description": "The number of the attempt, from 0 on.",
                },
                **_OF_ARTIFACT,
                **_SENT_BY,
            }
        )
    ),
}
_ANSWERS: dict[str, _Schema] = {
    "get_filtered_tasks": _texts("The pathspecs of the tasks."),
    "beat_run": _text("A JSON object in a string: `wait_time_in_seconds`."),
    "beat_task": _text("A JSON object in a string: `wait_time_in_seconds`."),
    "change_tags": _object({"tags": _texts("The tags of the run after the change.")}, ["tags"]),
    "add_metadata": _object(
        {"metadata_created": _number("How many fields were registered.")}, ["metadata_created"]
    ),
    "add_artifacts": _object(
        {"artifacts_created": _number("How many artifacts were new.")}, ["artifacts_created"]
    ),
}
_MEANINGS = {
    "flow_id": "The name of the flow.",
    "run_number": "The number or the name of the run.",
    "step_name": "The name of the step.",
    "task_id": "The number or the name of the task.",
    "attempt_id": "The number of the attempt, from 0 on.",
    "artifact_name": "The name of the artifact.",
}
_REFUSALS = {
    400: "Malformed or invalid request.",
    401: "Missing or invalid token.",
    403: "Access denied: the token has expired, or its scope is `read` and the request writes.",
    404: "Not found, or its flow, run, step or task is not registered.",
    408: "The body did not arrive in time.",
    409: "It is registered already.",
    413: "The body is too large.",
    415: "The body is compressed.",
    422: "A system tag cannot be removed.",
    500: "The service failed unexpectedly: its log has the cause.",
    503: "The database does not answer: try again later.",
}
_ONE_BY_ONE = ("add_flow", "add_run", "add_step", "add_task")
_TAG = "metadata service"


def description() -> Description:
    """Return the API of Metaflow's service."""
    paths: dict[str, dict[str, Any]] = {
        "/ping": {"get": _plain("service_ping", "Check that the process answers.", "`pong`.")},
        "/version": {
            "get": _plain(
                "service_version", "Show the version of the protocol.", "A version such as 2.5.1."
            )
        },
        "/healthcheck": {"get": _HEALTH},
        "/auth/token": {"get": _NO_CREDENTIALS},
    }
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    schemas = {name: _object(each, each) for name, each in _RECORDS.items()}
    return Description("aflow metadata service", SPOKEN, paths, schemas)


def _status(meaning: str, status: str) -> dict[str, Any]:
    schema = _object({"status": {"enum": [status], "description": meaning}}, ["status"])
    return {"description": meaning, "content": {"application/json": {"schema": schema}}}


_HEALTH: dict[str, Any] = {
    "operationId": "service_healthcheck",
    "summary": "Check that the database answers.",
    "tags": [_TAG],
    "security": [],
    "responses": {
        "200": _status("The database answers.", "UP"),
        "500": {"description": _REFUSALS[500]},
        "503": _status("The database does not answer.", "DOWN"),
    },
}
_NO_CREDENTIALS: dict[str, Any] = {
    "operationId": "service_auth_token",
    "summary": "Refuse credentials: the service has none to give.",
    "description": "Clients of Metaflow may ask here for credentials of AWS. They have to use "
    "those of their own account.",
    "tags": [_TAG],
    "security": SECURITY,
    "responses": {
        "401": {"description": _REFUSALS[401]},
        "403": {"description": "The service gives out no credentials."},
    },
}


def _plain(name: str, summary: str, answer: str) -> dict[str, Any]:
    content = {"text/plain": {"schema": {"type": "string"}}}
    return {
        "operationId": name,
        "summary": summary,
        "tags": [_TAG],
        "security": [] if name == "service_ping" else SECURITY,
        "responses": {"200": {"description": answer, "content": content}},
    }


def _operation(route: ServiceRoute) -> dict[str, Any]:
    name = route.answer.__name__
    listed = not route.writes and _answer_of(name).get("type") == "array"
    operation: dict[str, Any] = {
        "operationId": f"service_{name}" + ("_of_attempt" if "{attempt_id}" in route.path else ""),
        **summary_of(route.answer.__doc__ or ""),
        "tags": [_TAG],
        "security": SECURITY,
        "parameters": [
            *parameters(route.path, _PATTERNS, _MEANINGS),
            *query(_queried(name) if listed else {}),
        ],
        "responses": _responses(route, name),
    }
    if route.writes:
        content = {"application/json": {"schema": _BODIES[name]}}
        operation["requestBody"] = {
            "description": "JSON, 16 MB at most.", "content": content, "required": False
        }  # fmt: skip
    return operation


def _responses(route: ServiceRoute, name: str) -> dict[str, Any]:
    statuses = [400, 401, 403, 404, 500, 503]
    if route.writes:
        statuses += [408, 413, 415]
    if name in _ONE_BY_ONE:
        statuses.append(409)
    if name == "change_tags":
        statuses.append(422)
    responses: dict[str, Any] = {
        "200": {
            "description": _result_of(name, writes=route.writes),
            "content": {"application/json": {"schema": _answer_of(name)}},
        }
    }
    if not route.writes:
        responses["304"] = {
            "description": "The response is the one with the ETag of `If-None-Match`."
        }
    for status in sorted(statuses):
        content: dict[str, Any] = {"application/json": {"schema": {}}}
        responses[str(status)] = {"description": _REFUSALS[status], "content": content}
    return responses


def _result_of(name: str, *, writes: bool) -> str:
    if name.startswith("beat_"):
        return "When to send the next heartbeat."
    if name == "change_tags":
        return "The tags of the run after the change."
    if not writes:
        return "The records."
    return "The record." if name in _ONE_BY_ONE else "How many were registered."


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
        "_limit": {
            "type": "integer",
            "minimum": 1,
            "maximum": MAX_LIMIT,
            "default": LIMIT,
            "description": "The largest number of records of a page. Without `_limit` and "
            "`_cursor` all records are sent.",
        },
        "_cursor": _text("The header `X-Next-Cursor` of the page before."),
    }
    if name == "get_filtered_tasks":
        schemas |= {
            "metadata_field_name": _text("Only tasks that have this metadata field."),
            "pattern": {
                **_text("Only tasks with a value in which this expression (RE2) is found."),
                "format": "regex",
            },
        }
    else:
        schemas["ts_epoch:ge"] = {
            "type": "integer",
            "minimum": 0,
            "description": "Only records since this time, in milliseconds since 1970 (UTC). Other "
            "operators: eq, ne, lt, le, gt.",
        }
    if name == "get_runs":
        schemas |= {
            "user:eq": _text("Only runs of this user. Other operators: ne, co (contains), sw "
                             "(starts with), ew (ends with)."),
            "status:eq": {
                "enum": ["completed", "running", "failed"],
                "description": "Only runs of this status. Other operator: ne.",
            },
            "_tags:any": _text("Only runs with one of these tags, with commas between them."),
            "_tags:all": _text("Only runs with all of these tags, with commas between them."),
        }  # fmt: skip
    return schemas
