"""The table of all routes of the daemon: handlers, parameters and possible errors. Both the
application and its OpenAPI document are generated from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from aflow.scheduler.states import TaskState
from aflow.server.request_bodies import LARGEST_NUMBER
from aflow.server.routes import schemas
from aflow.server.routes.schemas import (
    LARGEST_PAGE,
    LONGEST_WAIT,
    Schema,
    array,
    choice,
    fields,
    maybe_fields,
    maybe_text,
    number,
    objects,
    real,
    text,
)


class Route(NamedTuple):
    """A route of the daemon.

    `name` is the method that handles it, `tag` its group in the document, `answer` the schema of
    the response and `content_type` its type. `takes` is the content type of the request body and
    `body` its schema. `refuses` are statuses of errors in addition to those that `refusals`
    derives. `headers` are request headers."""

    method: str
    path: str
    name: str
    tag: str
    answer: Schema
    status: int = 200
    query: Mapping[str, Schema] = {}
    takes: str | None = None
    body: Schema | None = None
    content_type: str = "application/json"
    refuses: tuple[int, ...] = ()
    headers: Mapping[str, Schema] = {}

    @property
    def refusals(self) -> list[int]:
        """The statuses of errors, except those that every route may have."""
        found = {400, *self.refuses}
        if "{" in self.path and self.method != "PUT":
            found.add(404)
        if self.takes is not None:
            found |= {408, 413, 415}
        return sorted(found)


_JSON, _TAR, _EVENTS = "application/json", "application/x-tar", "text/event-stream"
_BINARY = {"type": "string", "format": "binary"}
_ONE = "/v1/runs/{flow}/{run}"
_PLAN = "/v1/schedules/{name}"
_STEP = text("Only this step.")
_TASK = number(LARGEST_NUMBER, "Only the task with this number; 0: all tasks.", 0)
_AFTER = number(LARGEST_NUMBER, "Only tasks with a higher number.", 0)
_FOLLOW = number(1, "1: keep the stream open until the run has ended.", 0)
_LAST = {"Last-Event-ID": text("The id of the last event that was received.")}
_ETAG = {"If-None-Match": text("The `ETag` of an earlier response: 304 if nothing has changed.")}


def _limit(most: int, default: int, what: str) -> Schema:
    return number(most, f"The largest number of {what}.", default)


def _reading(path: str, name: str, tag: str, answer: Schema, **more: Any) -> Route:
    """Return a route that reads the stored data of a run, which may be damaged (422)."""
    return Route("GET", _ONE + path, name, tag, answer, refuses=(422,), **more)


def _starting(path: str, name: str, body: Schema) -> Route:
    """Return a route that starts a run: its code may fail (422), or too many are active (429)."""
    return Route(
        "POST", path, name, "runs", schemas.STARTED_RUN, status=201, takes=_JSON, body=body,
        refuses=(422, 429),
    )  # fmt: skip


def _foreseeing(path: str, name: str, body: Schema) -> Route:
    """Return a route of a dry run."""
    return Route(
        "POST", path, name, "dry runs", schemas.FORECAST, takes=_JSON, body=body, refuses=(422,)
    )


ROUTES = [
    Route(
        "GET", "/healthz", "alive", "probes",
        fields(status=choice(("alive",), "The process answers.")),
    ),
    Route(
        "GET", "/readyz", "ready", "probes",
        fields(status=choice(("ready",), "The server accepts runs.")),
    ),
    Route(
        "GET", "/metrics", "measure", "probes",
        text("Metrics in the text format of Prometheus, version 0.0.4."), content_type="text/plain",
    ),
    Route(
        "POST", "/v1/packages", "add_package", "runs",
        fields(package=text("The key of the package.")), status=201, takes=_TAR,
    ),
    _starting("/v1/runs", "add_run", schemas.RUN_REQUEST),
    Route(
        "GET", "/v1/runs", "list_runs", "runs",
        fields(runs=objects("The runs, newest first.", **schemas.RUN)),
        query={
            "flow": text("Only runs of this flow."),
            "limit": _limit(LARGEST_PAGE, 20, "runs"),
        },
    ),
    _reading(
        "", "show_run", "runs", fields(**schemas.SHOWN_RUN),
        query={
            "wait": number(
                LONGEST_WAIT, "Wait for the end of the run, at most this many seconds.", 0
            )
        },
    ),
    _reading(
        "/tasks", "list_tasks", "tasks",
        fields(tasks=objects("The tasks, by number.", **schemas.TASK)),
        query={"after": _AFTER, "limit": _limit(LARGEST_PAGE, 100, "tasks")},
    ),
    _reading(
        "/events", "show_events", "streams", schemas.EVENT,
        query={"follow": _FOLLOW}, content_type=_EVENTS, headers=_LAST,
    ),
    _reading(
        "/logs", "show_logs", "streams", schemas.EVENT,
        query={"step": _STEP, "task": _TASK, "follow": _FOLLOW}, content_type=_EVENTS,
        headers=_LAST,
    ),
    Route(
        "DELETE", _ONE, "cancel_run", "runs",
        fields(
            run=text("The pathspec of the run."),
            state=choice(
                ("stopping", "cancelled"),
                "`cancelled`: the run has ended; `stopping`: its coordinator stops it.",
            ),
        ),
        status=202, refuses=(409,),
    ),
    Route(
        "GET", "/v1/schedules", "list_schedules", "schedules",
        fields(schedules=objects("The schedules, by name.", **schemas.SCHEDULE)),
    ),
    Route(
        "GET", "/v1/ticks", "preview_schedule", "schedules",
        fields(next=array({"type": "number"}, "The next times, in seconds since 1970 (UTC).")),
        query={
            "cron": text("The cron expression."),
            "timezone": text("The time zone, such as Europe/Berlin.", default="UTC"),
        },
    ),
    Route("GET", _PLAN, "show_schedule", "schedules", fields(**schemas.SCHEDULE)),
    Route(
        "PUT", _PLAN, "put_schedule", "schedules", fields(**schemas.SCHEDULE),
        takes=_JSON, body=schemas.SCHEDULE_REQUEST, refuses=(409,),
    ),
    Route(
        "PATCH", _PLAN, "change_schedule", "schedules", fields(**schemas.SCHEDULE),
        takes=_JSON, body=schemas.SCHEDULE_CHANGES, refuses=(409,),
    ),
    Route(
        "DELETE", _PLAN, "delete_schedule", "schedules",
        fields(schedule=text("The name of the schedule.")),
    ),
    Route(
        "POST", _PLAN + "/runs", "trigger_schedule", "schedules", schemas.STARTED_RUN, status=201,
        refuses=(422, 429),
    ),
    Route(
        "GET", "/v1/search", "find_runs", "runs",
        fields(
            runs=objects("The runs, newest first.", **schemas.SUMMARY),
            cursor=maybe_text("`cursor` for the next page; null after the last one."),
        ),
        query={
            "filter": text(
                "Filter words with spaces between them: flow:NAME, state:STATE, tag:TAG, "
                "user:NAME, since:WHEN, until:WHEN, id:RUN, artifact:NAME, param.NAME:VALUE, or "
                "any text."
            ),
            "cursor": text("The `cursor` of the page before."),
            "limit": _limit(200, 50, "runs"),
        },
    ),
    Route(
        "GET", "/v1/flows", "list_flows", "flows",
        fields(
            flows=objects(
                "The flows, newest first.",
                flow=text("The name of the flow."),
                created_at=real("When the flow was first recorded, in seconds since 1970 (UTC)."),
                latest=maybe_fields(
                    "The latest run; null if all runs were deleted.", **schemas.SUMMARY
                ),
            )
        ),
    ),
    Route(
        "GET", "/v1/flows/{flow}", "show_flow", "flows", fields(**schemas.SHOWN_FLOW),
        refuses=(422,),
    ),
    Route(
        "GET", "/v1/compare", "compare_runs", "runs", fields(**schemas.COMPARISON),
        query={"runs": text("The pathspecs of 2 to 5 runs with commas between them.")},
        refuses=(404, 422),
    ),
    Route(
        "GET", "/v1/suggest", "suggest", "runs", schemas.SUGGESTIONS,
        query={"prefix": text("The text to complete.")},
    ),
    Route(
        "GET", "/v1/stream", "stream", "streams", schemas.EVENT,
        query={
            "topics": text(
                "1 to 8 topics with commas between them: runs, run:Flow/1, logs:Flow/1, "
                "logs:Flow/1/7, logs:Flow/1@POSITION."
            )
        },
        content_type=_EVENTS, refuses=(404,),
    ),
    _reading("/overview", "show_overview", "runs", fields(**schemas.OVERVIEW), headers=_ETAG),
    _reading(
        "/columns", "show_columns", "tasks",
        {**_BINARY, "description": "Columns of numbers; see the description of the operation."},
        query={
            "since": number(
                LARGEST_NUMBER, "Only tasks that changed after this version of the run."
            )
        },
        content_type="application/octet-stream", headers=_ETAG,
    ),
    _reading(
        "/trace.json", "get_trace", "tasks",
        {
            **fields(traceEvents=array({"type": "object"}, "The events of the trace.")),
            "additionalProperties": True,
            "description": "A trace in the format of Chrome's tracing, which Perfetto shows.",
        },
    ),
    _reading(
        "/task-page", "page_tasks", "tasks",
        fields(
            total=schemas.count("The number of tasks on all pages."),
            tasks=objects("The tasks of this page.", **schemas.TASK_ROW),
        ),
        query={
            "step": _STEP,
            "state": text("Only tasks in this state: " + ", ".join(TaskState) + "."),
            "sort": text(
                "task, started, duration or wait; with `-` before it, the largest first.",
                default="task",
            ),
            "offset": number(LARGEST_NUMBER, "The number of tasks to skip.", 0),
            "limit": _limit(500, 100, "tasks"),
        },
    ),
    _reading("/tasks/{task}", "show_task", "tasks", fields(**schemas.SHOWN_TASK)),
    _reading("/artifacts", "list_artifacts", "artifacts", schemas.STEP_ARTIFACTS),
    _reading(
        "/tasks/{task}/artifacts/{name}", "get_artifact", "artifacts",
        {**_BINARY, "description": "The pickle of the value."},
        content_type="application/octet-stream",
    ),
    _reading("/cards", "list_cards", "artifacts", schemas.RUN_CARDS),
    _reading(
        "/tasks/{task}/cards/{name}", "get_card", "artifacts", text("The page."),
        query={"theme": choice(("light", "dark"), "The colours of the page.")},
        content_type="text/html",
    ),
    _reading("/explain", "explain_run", "tasks", schemas.EXPLANATIONS),
    _reading(
        "/code", "show_code", "runs", schemas.CODE,
        query={"against": text("The id of another run of the flow: add a diff from its code.")},
    ),
    _reading(
        "/log", "page_log", "logs", schemas.LOG_PAGE,
        query={
            "step": _STEP,
            "task": _TASK,
            "after": text("The `next` of the page before."),
            "search": text("Only lines with this text; upper and lower case are the same."),
            "limit": _limit(5000, 1000, "lines"),
            "tail": number(5000, "The last lines of one task; 0: the first ones.", 0),
        },
    ),
    _reading(
        "/log.txt", "get_log", "logs", text("The lines."),
        query={"step": _STEP, "task": _TASK}, content_type="text/plain",
    ),
    Route("GET", "/v1/queue", "show_queue", "queue", schemas.QUEUE),
    Route(
        "POST", "/v1/queue/release", "release_messages", "queue", schemas.CHANGED_MESSAGES,
        takes=_JSON, body=schemas.MESSAGE_IDS,
    ),
    Route(
        "POST", "/v1/queue/delete", "delete_messages", "queue", schemas.CHANGED_MESSAGES,
        takes=_JSON, body=schemas.MESSAGE_IDS,
    ),
    Route(
        "GET", "/v1/workers", "list_workers", "workers",
        fields(
            workers=objects("The workers, by name.", **schemas.WORKER),
            heartbeat=real("Seconds between the heartbeats of a worker."),
            silent_after=real("Seconds without a heartbeat until a worker is silent."),
            expires_after=real("Seconds without a heartbeat until a worker is no longer listed."),
        ),
    ),
    Route("GET", "/v1/jobs", "list_jobs", "jobs", schemas.JOB_QUEUES),
    _reading(
        "/jobs", "list_run_jobs", "jobs", schemas.RUN_JOBS,
        query={"step": _STEP, "after": _AFTER, "limit": _limit(500, 100, "jobs")},
    ),
    Route("GET", "/v1/workers/{name}", "show_worker", "workers", fields(**schemas.WORKER)),
    Route(
        "POST", "/v1/workers/{name}/drain", "drain_worker", "workers", fields(**schemas.WORKER),
        status=202,
    ),
    Route("GET", "/v1/server", "show_server", "server", schemas.SERVER),
    Route("POST", "/v1/doctor", "check_settings", "server", schemas.FINDINGS),
    Route(
        "POST", "/v1/gc", "plan_collection", "storage", schemas.COLLECTION,
        takes=_JSON, body=schemas.COLLECTION_REQUEST,
    ),
    Route(
        "PATCH", _ONE + "/tags", "tag_run", "runs", fields(tags=schemas.RUN["tags"]),
        takes=_JSON, body=schemas.TAG_CHANGES,
    ),
    _starting(_ONE + "/resume", "resume_run", schemas.RESUME_REQUEST),
    _starting(_ONE + "/rerun", "rerun", schemas.RERUN_REQUEST),
    _foreseeing("/v1/dry-run", "foresee_run", schemas.RUN_REQUEST),
    _foreseeing(_ONE + "/resume/dry-run", "foresee_resume", schemas.RESUME_REQUEST),
    _foreseeing(_ONE + "/rerun/dry-run", "foresee_rerun", schemas.RERUN_REQUEST),
    Route(
        "POST", "/v1/batch", "change_many", "runs", schemas.BATCH_RESULT,
        takes=_JSON, body=schemas.BATCH_REQUEST,
    ),
    Route("POST", "/v1/storage", "measure_storage", "storage", schemas.STORAGE_SIZES),
    Route(
        "GET", "/v1/queue/messages", "list_messages", "queue", schemas.MESSAGES,
        query={
            "pool": text("The pool.", default="default"),
            "limit": _limit(1000, 100, "messages"),
        },
    ),
    Route(
        "GET", "/v1/deletion", "plan_deletion", "storage",
        fields(runs=array({"type": "string"}, "The runs that can be deleted.")),
        query={"runs": text("The pathspecs of 1 to 200 runs with commas between them.")},
    ),
    Route(
        "DELETE", _ONE + "/records", "delete_run", "runs",
        fields(run=text("The pathspec of the run.")), refuses=(409,),
    ),
    Route("GET", "/v1/tokens", "list_tokens", "tokens", schemas.TOKENS),
    Route(
        "POST", "/v1/tokens", "add_token", "tokens",
        fields(token=text("The secret of the token. It is not shown again.")), status=201,
        takes=_JSON, body=schemas.TOKEN_REQUEST,
    ),
    Route(
        "DELETE", "/v1/tokens/{name}", "revoke_token", "tokens",
        fields(token=text("The name of the token.")),
    ),
]  # fmt: skip
