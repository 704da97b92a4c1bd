"""The routes of the daemon, all of them: what answers, what it takes, and how it may refuse. The
application and its OpenAPI document are both made of this table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from aflow.server.bodies import LARGEST_NUMBER

Schema = Mapping[str, Any]

TEXT: Schema = {"type": "string"}
MAYBE_TEXT: Schema = {"type": ["string", "null"]}
_TIME: Schema = {"type": ["number", "null"]}
_COUNT: Schema = {"type": "integer", "minimum": 0}


def _object(optional: Mapping[str, Schema] | None = None, **properties: Schema) -> Schema:
    return {
        "type": "object",
        "properties": {**properties, **(optional or {})},
        "required": [*properties],
    }


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def number(most: int) -> Schema:
    """A whole number from 0 to this one."""
    return {"type": "integer", "minimum": 0, "maximum": most}


LARGEST_PAGE = 1000
LONGEST_WAIT = 60  # seconds that a request may wait for the end of a run

_RUN = _object(
    flow=TEXT, run=TEXT, state=TEXT, user=TEXT, created_at={"type": "number"},
    finished_at=_TIME, tags=_list(TEXT), reason=TEXT,
    recorded_by={"enum": ["aflow", "metaflow"]}, read_from=MAYBE_TEXT,
    read_only={"type": "boolean"},
)  # fmt: skip
_TASK = _object(
    task={"type": "integer"}, step=TEXT, state=TEXT, attempts={"type": "integer"},
    started_at=_TIME, finished_at=_TIME, reason=TEXT,
)  # fmt: skip
_HOW_FAR = _object(
    here={"type": "boolean"}, steps=_list(_object(step=TEXT, tasks={"type": "object"}))
)
_WORKER = _object(
    name=TEXT, state={"enum": ["idle", "busy", "draining", "silent"]}, host=TEXT,
    pid={"type": "integer"}, queue=TEXT, pools=_list(TEXT), slots={"type": "integer"},
    labels={"type": "object", "additionalProperties": TEXT}, version=TEXT, python=TEXT,
    started_at={"type": "number"}, heartbeat_at={"type": "number"},
    expires_in={"type": "number"}, drain=MAYBE_TEXT, done={"type": "integer"},
    failed={"type": "integer"},
    running=_list(
        _object(
            task=TEXT, attempt={"type": "integer"}, since={"type": "number"},
            begun={"type": "boolean"},
        )
    ),
)  # fmt: skip
_COUNTED = _object(tasks={"type": "object"}, parameters=_list(_object(name=TEXT, value=TEXT)))
_ORDER = _object(
    {
        "flow": MAYBE_TEXT,
        "parameters": {"type": "object"},
        "tags": _list(TEXT),
        "max_workers": {"type": ["integer", "null"], "minimum": 1, "maximum": 10_000},
    },
    package={"type": "string", "pattern": "^[0-9a-f]{64}$"},
    script={"type": "string", "pattern": r"^[A-Za-z0-9_][A-Za-z0-9_. -]{0,199}\.py$"},
)


_SCHEDULE = _object(
    name=TEXT, flow=MAYBE_TEXT, cron=TEXT, timezone=TEXT, missed=TEXT, overlap=TEXT,
    paused={"type": "boolean"}, created_by=TEXT, parameters={"type": "object"}, tags=_list(TEXT),
    script=MAYBE_TEXT, next=_TIME,
    latest=MAYBE_TEXT, said=TEXT, started={"type": "integer"}, skipped={"type": "integer"},
)  # fmt: skip
_WANTED = _object(
    {
        "timezone": MAYBE_TEXT,
        "missed": {"enum": ["latest", "skip", "all"]},
        "overlap": {"enum": ["skip", "allow", "wait", "cancel"]},
        "since": {"type": "number", "minimum": 0},
    },
    cron={"type": "string", "maxLength": 500},
    run=_ORDER,
)


_MAX_WORKERS = {"type": ["integer", "null"], "minimum": 1, "maximum": 10_000}
_RESUME = _object(
    {"step": MAYBE_TEXT, "parameters": {"type": "object"}, "max_workers": _MAX_WORKERS}
)
_RERUN = _object(
    {"parameters": {"type": "object"}, "tags": _list(TEXT), "max_workers": _MAX_WORKERS}
)
_FORECAST = _object(
    parameters=_list(_object(name=TEXT, type=TEXT, value=TEXT)), run=_COUNT, reuse=_COUNT,
    steps=_list(
        _object(
            step=TEXT, run=_COUNT, reuse=_COUNT,
            reasons=_list(_object(text=TEXT, count=_COUNT)),
        )
    ),
    after=_list(TEXT),
)  # fmt: skip


class Route(NamedTuple):
    """One route. `name` is that of the method that answers; `takes` the type of the body, `body`
    its schema; `says` the type of the answer; `refuses` the statuses beside 401, 403 and 503."""

    method: str
    path: str
    name: str
    answer: Schema
    status: int = 200
    query: Mapping[str, Schema] = {}
    takes: str | None = None
    body: Schema | None = None
    says: str = "application/json"
    refuses: tuple[int, ...] = ()


_EVENT = _object({"id": TEXT}, event=TEXT, data=TEXT)  # of a stream, one of many
_JSON, _TAR, _EVENTS = "application/json", "application/x-tar", "text/event-stream"
_ONE = "/v1/runs/{flow}/{run}"
_PLAN = "/v1/schedules/{name}"
_FOLLOW = {"follow": number(1)}

ROUTES = [
    Route("GET", "/healthz", "alive", _object(status=TEXT)),
    Route("GET", "/readyz", "ready", _object(status=TEXT)),
    Route("GET", "/metrics", "measure", TEXT, says="text/plain"),
    Route(
        "POST", "/v1/packages", "add_package", _object(package=TEXT), 201,
        takes=_TAR, refuses=(400, 408, 413, 415),
    ),
    Route(
        "POST", "/v1/runs", "add_run", _object(run=TEXT), 201,
        takes=_JSON, body=_ORDER, refuses=(400, 408, 413, 415, 422, 429),
    ),
    Route(
        "GET", "/v1/runs", "list_runs", _object(runs=_list(_RUN)),
        query={"flow": TEXT, "limit": number(LARGEST_PAGE)}, refuses=(400,),
    ),
    Route(
        "GET", _ONE, "show_run", {"allOf": [_RUN, _HOW_FAR]},
        query={"wait": number(LONGEST_WAIT)}, refuses=(400, 404, 422),
    ),
    Route(
        "GET", _ONE + "/tasks", "list_tasks", _object(tasks=_list(_TASK)),
        query={"after": number(LARGEST_NUMBER), "limit": number(LARGEST_PAGE)},
        refuses=(400, 404, 422),
    ),
    Route(
        "GET", _ONE + "/events", "show_events", _EVENT,
        query=_FOLLOW, says=_EVENTS, refuses=(400, 404, 422),
    ),
    Route(
        "GET", _ONE + "/logs", "show_logs", _EVENT,
        query={"step": TEXT, "task": number(LARGEST_NUMBER), **_FOLLOW},
        says=_EVENTS, refuses=(400, 404, 422),
    ),
    Route("DELETE", _ONE, "cancel_run", _object(run=TEXT), 202, refuses=(400, 404, 409)),
    Route(
        "GET", "/v1/schedules", "list_schedules", _object(schedules=_list(_SCHEDULE)),
        refuses=(400,),
    ),
    Route(
        "GET", "/v1/ticks", "preview_schedule", _object(next=_list({"type": "number"})),
        query={"cron": TEXT, "timezone": TEXT}, refuses=(400,),
    ),
    Route("GET", _PLAN, "show_schedule", _SCHEDULE, refuses=(400, 404)),
    Route(
        "PUT", _PLAN, "put_schedule", _SCHEDULE,
        takes=_JSON, body=_WANTED, refuses=(400, 408, 409, 413, 415),
    ),
    Route(
        "PATCH", _PLAN, "change_schedule", _SCHEDULE,
        takes=_JSON, body=_object(
            {
                "paused": {"type": "boolean"},
                "cron": {"type": "string", "maxLength": 500},
                "timezone": MAYBE_TEXT,
                "missed": {"enum": ["latest", "skip", "all"]},
                "overlap": {"enum": ["skip", "allow", "wait", "cancel"]},
                "parameters": {"type": "object"},
                "tags": _list(TEXT),
            }
        ),
        refuses=(400, 404, 408, 409, 413, 415),
    ),
    Route("DELETE", _PLAN, "delete_schedule", _object(schedule=TEXT), refuses=(400, 404)),
    Route(
        "POST", _PLAN + "/runs", "trigger_schedule", _object(run=TEXT), 201,
        refuses=(400, 404, 422, 429),
    ),
    Route(
        "GET", "/v1/search", "find_runs",
        _object(runs=_list({"allOf": [_RUN, _COUNTED]}), cursor=MAYBE_TEXT),
        query={"filter": TEXT, "cursor": TEXT, "limit": number(200)}, refuses=(400,),
    ),
    Route("GET", "/v1/flows", "list_flows", _object(flows=_list(_object(flow=TEXT)))),
    Route("GET", "/v1/flows/{flow}", "show_flow", _object(flow=TEXT), refuses=(400, 404, 422)),
    Route(
        "GET", "/v1/compare", "compare_runs", _object(runs=_list(_RUN), rows=_list(_object())),
        query={"runs": TEXT}, refuses=(400, 404, 422),
    ),
    Route(
        "GET", "/v1/suggest", "suggest", _object(found=_list(_object(kind=TEXT, text=TEXT))),
        query={"prefix": TEXT}, refuses=(400,),
    ),
    Route(
        "GET", "/v1/stream", "stream", _EVENT, query={"topics": TEXT}, says=_EVENTS,
        refuses=(400, 404),
    ),
    Route(
        "GET", _ONE + "/overview", "show_overview", {"allOf": [_RUN, _COUNTED]},
        refuses=(400, 404, 422),
    ),
    Route(
        "GET", _ONE + "/columns", "show_columns", {"type": "string", "format": "binary"},
        query={"since": number(LARGEST_NUMBER)}, says="application/octet-stream",
        refuses=(400, 404, 422),
    ),
    Route(
        "GET", _ONE + "/trace.json", "get_trace", _object(traceEvents=_list(_object())),
        refuses=(400, 404, 422),
    ),
    Route(
        "GET", _ONE + "/task-page", "page_tasks",
        _object(total={"type": "integer"}, tasks=_list(_TASK)),
        query={
            "step": TEXT, "state": TEXT, "sort": TEXT, "offset": number(LARGEST_NUMBER),
            "limit": number(500),
        },
        refuses=(400, 404, 422),
    ),
    Route("GET", _ONE + "/tasks/{task}", "show_task", _TASK, refuses=(400, 404, 422)),
    Route(
        "GET", _ONE + "/artifacts", "list_artifacts", _object(steps=_list(_object(step=TEXT))),
        refuses=(400, 404, 422),
    ),
    Route(
        "GET", _ONE + "/tasks/{task}/artifacts/{name}", "get_artifact",
        {"type": "string", "format": "binary"}, says="application/octet-stream",
        refuses=(400, 404, 422),
    ),
    Route(
        "GET", _ONE + "/cards", "list_cards", _object(cards=_list(_object(name=TEXT))),
        refuses=(400, 404, 422),
    ),
    Route(
        "GET", _ONE + "/tasks/{task}/cards/{name}", "get_card", TEXT,
        query={"theme": {"enum": ["light", "dark"]}}, says="text/html", refuses=(400, 404, 422),
    ),
    Route(
        "GET", _ONE + "/explain", "explain_run", _object(lines=_list(_object(text=TEXT))),
        refuses=(400, 404, 422),
    ),
    Route(
        "GET", _ONE + "/code", "show_code", _object(files=_list(_object(name=TEXT, text=TEXT))),
        query={"against": TEXT}, refuses=(400, 404, 422),
    ),
    Route(
        "GET", _ONE + "/log", "page_log",
        _object(lines=_list(_object(text=TEXT)), next=TEXT, end={"type": "boolean"}),
        query={
            "step": TEXT, "task": number(LARGEST_NUMBER), "after": TEXT, "search": TEXT,
            "limit": number(5000), "tail": number(5000),
        },
        refuses=(400, 404, 422),
    ),
    Route(
        "GET", _ONE + "/log.txt", "get_log", TEXT,
        query={"step": TEXT, "task": number(LARGEST_NUMBER)}, says="text/plain",
        refuses=(400, 404, 422),
    ),
    Route(
        "GET", "/v1/queue", "show_queue",
        _object(url=MAYBE_TEXT, pools=_list(_object(pool=TEXT)), workers=_list(_object(name=TEXT)),
                buried=_list(_object(id=TEXT))),
    ),
    Route(
        "POST", "/v1/queue/release", "release_messages", _object(count={"type": "integer"}),
        takes=_JSON, body=_object(ids=_list(TEXT)), refuses=(400, 408, 413, 415),
    ),
    Route(
        "POST", "/v1/queue/delete", "delete_messages", _object(count={"type": "integer"}),
        takes=_JSON, body=_object(ids=_list(TEXT)), refuses=(400, 408, 413, 415),
    ),
    Route(
        "GET", "/v1/workers", "list_workers",
        _object(
            workers=_list(_WORKER), heartbeat={"type": "number"}, silent_after={"type": "number"},
            expires_after={"type": "number"},
        ),
        refuses=(400,),
    ),
    Route(
        "GET", "/v1/jobs", "list_jobs",
        _object(
            queues=_list(
                _object(
                    system=TEXT, queue=TEXT, waiting=_COUNT, running=_COUNT,
                    steps=_list(
                        _object(
                            run=TEXT, user=TEXT, step=TEXT, waiting=_COUNT, running=_COUNT,
                            since=_TIME, reason=TEXT,
                        )
                    ),
                )
            ),
            complete={"type": "boolean"}, reason=TEXT,
        ),
    ),
    Route(
        "GET", _ONE + "/jobs", "list_run_jobs",
        _object(
            jobs=_list(
                _object(
                    task={"type": "integer"}, step=TEXT, attempt={"type": "integer"}, system=TEXT,
                    queue=TEXT, job=TEXT, state={"enum": ["submitting", "waiting", "running"]},
                    host=TEXT, since=_TIME, reason=TEXT,
                )
            ),
            next={"type": ["integer", "null"]},
        ),
        query={"step": TEXT, "after": number(LARGEST_NUMBER), "limit": number(500)},
        refuses=(400, 404, 422),
    ),
    Route("GET", "/v1/workers/{name}", "show_worker", _WORKER, refuses=(400, 404)),
    Route(
        "POST", "/v1/workers/{name}/drain", "drain_worker", _WORKER, 202, refuses=(400, 404),
    ),
    Route(
        "GET", "/v1/server", "show_server",
        _object(
            {"caller": _object(name=TEXT, scope={"enum": ["read", "write"]}, expires_at=_TIME)},
            version=TEXT,
        ),
    ),
    Route(
        "POST", "/v1/doctor", "check_settings",
        _object(findings=_list(_object(name=TEXT, state=TEXT, said=TEXT, advice=TEXT))),
    ),
    Route(
        "POST", "/v1/gc", "plan_collection",
        _object(runs=_list(TEXT), count=_COUNT, objects=_COUNT, size=_COUNT, young=_COUNT),
        takes=_JSON,
        body=_object(
            {
                "older_than": {"type": ["number", "null"], "minimum": 0},
                "failed": {"type": "boolean"},
                "flow": MAYBE_TEXT,
                "keep": {"type": "integer", "minimum": 0},
            }
        ),
        refuses=(400, 408, 413, 415),
    ),
    Route(
        "PATCH", _ONE + "/tags", "tag_run", _object(tags=_list(TEXT)),
        takes=_JSON, body=_object({"add": _list(TEXT), "remove": _list(TEXT)}),
        refuses=(400, 404, 408, 413, 415),
    ),
    Route(
        "POST", _ONE + "/resume", "resume_run", _object(run=TEXT), 201,
        takes=_JSON, body=_RESUME,
        refuses=(400, 404, 408, 413, 415, 422, 429),
    ),
    Route(
        "POST", _ONE + "/rerun", "rerun", _object(run=TEXT), 201, takes=_JSON, body=_RERUN,
        refuses=(400, 404, 408, 413, 415, 422, 429),
    ),
    Route(
        "POST", "/v1/dry-run", "foresee_run", _FORECAST,
        takes=_JSON, body=_ORDER, refuses=(400, 408, 413, 415, 422),
    ),
    Route(
        "POST", _ONE + "/resume/dry-run", "foresee_resume", _FORECAST,
        takes=_JSON, body=_RESUME, refuses=(400, 404, 408, 413, 415, 422),
    ),
    Route(
        "POST", _ONE + "/rerun/dry-run", "foresee_rerun", _FORECAST,
        takes=_JSON, body=_RERUN, refuses=(400, 404, 408, 413, 415, 422),
    ),
    Route(
        "POST", "/v1/batch", "change_many",
        _object(
            count=_COUNT, runs=_list(TEXT), refused=_list(_object(reason=TEXT, count=_COUNT)),
            cursor=MAYBE_TEXT, until={"type": "number"}, stopped=MAYBE_TEXT,
        ),
        takes=_JSON,
        body=_object(
            {
                "filter": {"type": "string", "maxLength": 1000},
                "tags": _list(TEXT),
                "until": {"type": ["number", "null"], "minimum": 0},
                "cursor": MAYBE_TEXT,
                "dry_run": {"type": "boolean"},
            },
            action={"enum": ["cancel", "resume", "tag", "untag", "delete"]},
        ),
        refuses=(400, 408, 413, 415),
    ),
    Route(
        "POST", "/v1/storage", "measure_storage",
        _object(
            flows=_list(_object(flow=TEXT, runs=_COUNT, objects=_COUNT, size=_COUNT)),
            objects=_COUNT, size=_COUNT, complete={"type": "boolean"},
        ),
    ),
    Route(
        "GET", "/v1/queue/messages", "list_messages",
        _object(
            pool=TEXT, ready=_COUNT, messages=_list(_object(id=TEXT, task=TEXT)),
            runs=_list(_object(run=TEXT, ready=_COUNT)),
        ),
        query={"pool": TEXT, "limit": number(1000)}, refuses=(400,),
    ),
    Route(
        "GET", "/v1/deletion", "plan_deletion", _object(runs=_list(TEXT)),
        query={"runs": TEXT}, refuses=(400,),
    ),
    Route("DELETE", _ONE + "/records", "delete_run", _object(run=TEXT), refuses=(400, 404, 409)),
    Route(
        "GET", "/v1/tokens", "list_tokens",
        _object(tokens=_list(_object(name=TEXT, scope=TEXT, expires_at=_TIME))), refuses=(400,),
    ),
    Route(
        "POST", "/v1/tokens", "add_token", _object(token=TEXT), 201, takes=_JSON,
        body=_object(
            {"scope": {"enum": ["read", "write"]}, "seconds": {"type": ["number", "null"]}},
            name=TEXT,
        ),
        refuses=(400, 408, 413, 415),
    ),
    Route("DELETE", "/v1/tokens/{name}", "revoke_token", _object(token=TEXT), refuses=(400, 404)),
]  # fmt: skip
