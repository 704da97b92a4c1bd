"""The OpenAPI description of the metadata service, generated from its table of routes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aflow.server.metaflow.checks import MAX_ITEMS, NAMES
from aflow.server.metaflow.messages import LIMIT, MAX_LIMIT, PROTOCOL
from aflow.server.metaflow.routes import ROUTES, ServiceRoute
from aflow.server.openapi import REFUSALS, SECURITY, Description, parameters, query, summary_of
from aflow.server.routes.schemas import (
    Schema,
    array,
    choice,
    count,
    described,
    fields,
    maybe_text,
    maybe_whole,
    number,
    optional_fields,
    text,
    whole,
)

_NAME: Schema = {"type": "string"}  # an item of a list; the description of the list explains it
_TAGS: Schema = {"type": ["array", "object", "null"], "description": "The tags."}


def _name_or_number(meaning: str) -> Schema:
    return {"type": ["string", "integer"], "description": meaning}


_USER = maybe_text("The user that registered it.")
_REGISTERED_BY = {
    "user_name": _USER,
    "ts_epoch": whole("When it was registered, in milliseconds since 1970 (UTC)."),
    "tags": _TAGS,
    "system_tags": described(_TAGS, "The tags that clients set by themselves."),
}
_IN_RUN = {
    "flow_id": text("The name of the flow."),
    "run_number": _name_or_number("The number of the run, or its name where it has one."),
    **_REGISTERED_BY,
}
_IN_STEP = {"step_name": text("The name of the step."), **_IN_RUN}
_IN_TASK = {
    "task_id": _name_or_number("The number of the task, or its name where it has one."),
    **_IN_STEP,
}
_HEARTBEAT = {
    "last_heartbeat_ts": maybe_whole(
        "The last heartbeat, in seconds since 1970 (UTC); null if there was none."
    )
}
_OF_ARTIFACT = {
    "location": maybe_text("Where the value is stored."),
    "ds_type": maybe_text("The type of the datastore: `s3` or `local`."),
    "sha": maybe_text("The digest of the value."),
    "type": maybe_text("The type of the record: `metaflow.artifact`."),
    "content_type": maybe_text("The encoding of the value, such as `gzip+pickle-v4`."),
}
_FIELD = text("The name of the field.")
_VALUE = {
    "value": maybe_text("The value of the field."),
    "type": maybe_text("The kind of the field."),
}

_RECORDS: dict[str, dict[str, Schema]] = {
    "Flow": {"flow_id": text("The name of the flow."), **_REGISTERED_BY},
    "Run": {**_IN_RUN, **_HEARTBEAT},
    "Step": _IN_STEP,
    "Task": {**_IN_TASK, **_HEARTBEAT},
    "Metadata": {"id": whole("The number of the record."), "field_name": _FIELD, **_VALUE,
                 **_IN_TASK},
    "Artifact": {
        "name": text("The name of the artifact."),
        "attempt_id": whole("The number of the attempt, from 0 on."),
        **_IN_TASK,
        **_OF_ARTIFACT,
    },
}  # fmt: skip

_SENT_TAGS: Schema = {"type": ["array", "null"], "items": _NAME, "description": "The tags."}
_SENT_BY = {
    "user_name": _USER,
    "tags": _SENT_TAGS,
    "system_tags": described(_SENT_TAGS, "The tags that the client sets by itself."),
}


def _items(properties: Mapping[str, Schema]) -> Schema:
    items = optional_fields(**properties, **_SENT_BY)
    return {"type": "array", "items": items, "maxItems": MAX_ITEMS}


_BODIES: dict[str, Schema] = {
    "add_flow": optional_fields(**_SENT_BY),
    "add_run": optional_fields(
        **_SENT_BY, run_number=maybe_text("A name for the run; null: it gets a number.")
    ),
    "add_step": optional_fields(**_SENT_BY),
    "add_task": optional_fields(
        **_SENT_BY, task_id=maybe_text("A name for the task; null: it gets a number.")
    ),
    "beat_run": {"type": "object"},
    "beat_task": {"type": "object"},
    "change_tags": optional_fields(
        tags_to_add=array(_NAME, "Tags to add."),
        tags_to_remove=array(_NAME, "Tags to remove."),
    ),
    "add_metadata": _items({"field_name": _FIELD, **_VALUE}),
    "add_artifacts": _items(
        {
            "name": text("The name of the artifact."),
            "attempt_id": number(9999, "The number of the attempt, from 0 on."),
            **_OF_ARTIFACT,
        }
    ),
}
_ANSWERS: dict[str, Schema] = {
    "get_filtered_tasks": array(_NAME, "The pathspecs of the tasks."),
    "beat_run": text("A JSON object in a string: `wait_time_in_seconds`."),
    "beat_task": text("A JSON object in a string: `wait_time_in_seconds`."),
    "change_tags": fields(tags=array(_NAME, "The tags of the run after the change.")),
    "add_metadata": fields(metadata_created=whole("How many fields were registered.")),
    "add_artifacts": fields(artifacts_created=whole("How many artifacts were new.")),
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
    **REFUSALS,
    403: "Access denied: the token has expired, or its scope is `read` and the request writes.",
    404: "Not found, or its flow, run, step or task is not registered.",
    409: "It is registered already.",
    415: "The body is compressed.",
    422: "A system tag cannot be removed.",
    500: "The service failed unexpectedly: its log has the cause.",
    503: "The database does not answer: try again later.",
}
_ONE_BY_ONE = ("add_flow", "add_run", "add_step", "add_task")
_TAG = "metadata service"


def description() -> Description:
    """Return the description of the API of Metaflow's metadata service."""
    plain = {
        "/ping": _plain(
            "ping", "Check that the process answers.", {"200": _text("`pong`.")}, security=[]
        ),
        "/version": _plain(
            "version",
            "Show the version of the protocol.",
            {"200": _text("A version such as 2.5.1.")},
        ),
        "/healthcheck": _plain(
            "healthcheck",
            "Check that the database answers.",
            {
                "200": _status("The database answers.", "UP"),
                "500": {"description": _REFUSALS[500]},
                "503": _status("The database does not answer.", "DOWN"),
            },
            security=[],
        ),
        "/auth/token": _plain(
            "auth_token",
            "Refuse credentials: the service has none to give.",
            {
                "401": {"description": _REFUSALS[401]},
                "403": {"description": "The service gives out no credentials."},
            },
            description="Clients of Metaflow may ask here for credentials of AWS. They have to use "
            "those of their own account.",
        ),
    }
    paths: dict[str, dict[str, Any]] = {path: {"get": each} for path, each in plain.items()}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route)
    schemas = {name: fields(**each) for name, each in _RECORDS.items()}
    return Description("aflow metadata service", PROTOCOL, paths, schemas)


def _status(meaning: str, status: str) -> dict[str, Any]:
    schema = fields(status=choice((status,), meaning))
    return {"description": meaning, "content": {"application/json": {"schema": schema}}}


def _text(meaning: str) -> dict[str, Any]:
    return {"description": meaning, "content": {"text/plain": {"schema": {"type": "string"}}}}


def _plain(name: str, summary: str, responses: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Return an operation without parameters."""
    return {
        "operationId": f"service_{name}",
        "summary": summary,
        "tags": [_TAG],
        "security": SECURITY,
        "responses": responses,
        **more,
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
        responses["304"] = {"description": _REFUSALS[304]}
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


def _answer_of(name: str) -> Schema:
    if name in _ANSWERS:
        return _ANSWERS[name]
    _, _, what = name.partition("_")  # get_runs, get_artifacts_of_step, add_task
    record = what.partition("_")[0].capitalize()
    one = {"$ref": f"#/components/schemas/{record if record in _RECORDS else record[:-1]}"}
    return one if record in _RECORDS and record != "Metadata" else {"type": "array", "items": one}


def _ascii_pattern(pattern: str) -> str:
    # `\w` and `\Z` have other meanings in the regular expressions of other languages.
    pattern = pattern.removesuffix(r"\Z")
    pattern = pattern.replace(r"[^\W\d]", "[A-Za-z_]").replace(r"\w", "[A-Za-z0-9_]")
    return f"^{pattern}$"


_PATTERNS = {name: _ascii_pattern(each.pattern) for name, each in NAMES.items()}


def _queried(name: str) -> dict[str, Schema]:
    limited = (
        "The largest number of records of a page. Without `_limit` and `_cursor` all records are "
        "sent."
    )
    schemas: dict[str, Schema] = {
        "_limit": {**number(MAX_LIMIT, limited, LIMIT), "minimum": 1},
        "_cursor": text("The header `X-Next-Cursor` of the page before."),
    }
    if name == "get_filtered_tasks":
        schemas |= {
            "metadata_field_name": text("Only tasks that have this metadata field."),
            "pattern": text(
                "Only tasks with a value in which this expression (RE2) is found.", format="regex"
            ),
        }
    else:
        schemas["ts_epoch:ge"] = count(
            "Only records since this time, in milliseconds since 1970 (UTC). Other operators: eq, "
            "ne, lt, le, gt."
        )
    if name == "get_runs":
        schemas |= {
            "user:eq": text("Only runs of this user. Other operators: ne, co (contains), sw "
                             "(starts with), ew (ends with)."),
            "status:eq": choice(
                ("completed", "running", "failed"), "Only runs of this status. Other operator: ne."
            ),
            "_tags:any": text("Only runs with one of these tags, with commas between them."),
            "_tags:all": text("Only runs with all of these tags, with commas between them."),
        }  # fmt: skip
    return schemas
