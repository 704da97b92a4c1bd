"""The JSON schemas of the daemon's HTTP API: each field with its meaning and unit."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from aflow.flow.graph import Kind
from aflow.scheduler.states import AttemptState, RunState, TaskState

Schema = Mapping[str, Any]

LARGEST_PAGE = 1000
LONGEST_WAIT = 60  # maximum time that a request may wait for the end of a run, in seconds


def _plain(type_: str | list[str], meaning: str, **more: Any) -> Schema:
    """Return the schema of a plain value.

    Args:
        type_: The type of the value in JSON Schema; several, if it may be null.
        meaning: The description of the field, with its unit, and what null means, for readers of
            the OpenAPI document.
        **more: More keywords of JSON Schema, such as `pattern` or `minimum`.
    """
    return {"type": type_, "description": meaning, **more}


text = partial(_plain, "string")
maybe_text = partial(_plain, ["string", "null"])
flag = partial(_plain, "boolean")
count = partial(_plain, "integer", minimum=0)
whole = partial(_plain, "integer")
maybe_whole = partial(_plain, ["integer", "null"])
real = partial(_plain, "number")
maybe_real = partial(_plain, ["number", "null"])


def choice(values: Any, meaning: str) -> Schema:
    """Return the schema of an enumeration of strings.

    Args:
        values: The allowed values, in the order of the document.
        meaning: The description of the field, for readers of the OpenAPI document.
    """
    return {"enum": [*values], "description": meaning}


def number(most: int, meaning: str, default: int | None = None) -> Schema:
    """Return the schema of a whole number from 0 to `most`.

    Args:
        most: The maximum.
        meaning: The description of the field, for readers of the OpenAPI document.
        default: The default shown in the document; None to show none.
    """
    found = {"type": "integer", "minimum": 0, "maximum": most, "description": meaning}
    return found if default is None else {**found, "default": default}


def array(items: Schema, meaning: str, **more: Any) -> Schema:
    """Return the schema of a list.

    Args:
        items: The schema of each item.
        meaning: The description of the field, for readers of the OpenAPI document.
        **more: More keywords of JSON Schema, such as `maxItems`.
    """
    return {"type": "array", "items": items, "description": meaning, **more}


def mapping(meaning: str, values: Schema | None = None) -> Schema:
    """Return the schema of an object with arbitrary names.

    Args:
        meaning: The description of the field, for readers of the OpenAPI document.
        values: The schema of each value; None for any.
    """
    return {"type": "object", "additionalProperties": values or {}, "description": meaning}


class _Optional(dict[str, Any]):
    """The schema of a field that may be absent."""


def optional(schema: Schema) -> Schema:
    """Return the schema of a field that may be absent from the object that `fields` describes.

    Args:
        schema: The schema of the field if it is present.
    """
    return _Optional(schema)


def fields(**properties: Schema) -> Schema:
    """Return the schema of an object with these fields.

    Args:
        **properties: The schemas of the fields, by name; those of `optional` may be absent.
    """
    required = [name for name, each in properties.items() if not isinstance(each, _Optional)]
    return {"type": "object", "properties": properties, "required": required}


def optional_fields(**properties: Schema) -> Schema:
    """Return the schema of an object whose fields may all be absent.

    Args:
        **properties: The schemas of the fields, by name.
    """
    return fields(**{name: optional(each) for name, each in properties.items()})


def maybe_fields(meaning: str, /, **properties: Schema) -> Schema:
    """Return the schema of an object with these fields, or null.

    Args:
        meaning: The description of the field, with what null means.
        **properties: The schemas of the fields, by name.
    """
    return {**fields(**properties), "type": ["object", "null"], "description": meaning}


def objects(meaning: str, /, **properties: Schema) -> Schema:
    """Return the schema of a list of objects with these fields.

    Args:
        meaning: The description of the list, for readers of the OpenAPI document.
        **properties: The schemas of the fields of each object, by name.
    """
    return array(fields(**properties), meaning)


def described(schema: Schema, meaning: str) -> Schema:
    """Return the schema with a description.

    Args:
        schema: The schema; it is copied.
        meaning: The description, which replaces that of the schema.
    """
    return {**schema, "description": meaning}


_NAME: Schema = {"type": "string"}  # an item of a list; the description of the list explains it
_MAYBE: Schema = {"type": ["string", "null"]}
_TAGS = array(_NAME, "The tags of the run.")
_VALUE = "as a short text (`repr`), cut off after 80 characters"
_TASK_COUNTS = mapping("The number of tasks in each state.", {"type": "integer"})
_SINCE = "in seconds since 1970 (UTC)"

RUN = {
    "flow": text("The name of the flow."),
    "run": text("The id of the run."),
    "state": choice(RunState, "The state of the run."),
    "user": text("The user that started the run."),
    "created_at": real(f"When the run was created, {_SINCE}."),
    "finished_at": maybe_real(f"When the run ended, {_SINCE}; null while it is active."),
    "tags": _TAGS,
    "reason": text("Why the run failed or was cancelled; empty for any other run."),
    "recorded_by": choice(("aflow", "metaflow"), "The program that recorded the run."),
    "read_from": maybe_text("Where a run of Metaflow is read from; null for a run of aflow."),
    "read_only": flag("Whether the run can only be read here: Metaflow owns its records."),
}
LISTED_RUN = {
    **RUN,
    "heartbeat_at": maybe_real(
        f"The last heartbeat of the coordinator of the run, {_SINCE}; null if it has none."
    ),
}
_PARAMETER = {
    "name": text("The name of the parameter."),
    "value": text(f"The value, {_VALUE}."),
    "default": maybe_text(f"The default, {_VALUE}; null if it was not recorded."),
}
_TYPED_PARAMETER = {**_PARAMETER, "type": text("The Python type of the value.")}
SUMMARY = {
    **LISTED_RUN,
    "tasks": _TASK_COUNTS,
    "parameters": objects("The parameters of the run.", **_PARAMETER),
}
SHOWN_RUN = {
    **RUN,
    "here": flag("Whether this server drives the run."),
    "steps": objects(
        "The steps that have tasks.",
        step=text("The name of the step."),
        tasks=_TASK_COUNTS,
    ),
}
_FIGURES = {
    "median": maybe_real("The median duration of the ended tasks, in seconds."),
    "p95": maybe_real("The 95th percentile of the duration of the ended tasks, in seconds."),
    "longest": maybe_real("The longest duration of an ended task, in seconds."),
    "wait": maybe_real("The median time from ready to started, in seconds."),
    "retried": count("The number of tasks with more than one attempt."),
    "reused": count("The number of tasks whose result was reused."),
}
_NODE = {
    "name": text("The name of the step."),
    "x": real("The column of the step in a drawing of the graph."),
    "y": real("The row of the step in a drawing of the graph."),
    "next": array(_NAME, "The steps that follow."),
    "kind": choice(Kind, "How the step goes on."),
    "foreach": maybe_text("The artifact that a foreach iterates over."),
    "condition": maybe_text("The artifact that a switch decides by."),
    "is_join": flag("Whether the step is a join."),
    "is_many": flag("Whether the step has a task for each item of a foreach."),
    "doc": text("The docstring of the step."),
    "line": maybe_whole("The line of the flow's file in which the step begins."),
}
_GRAPH = maybe_fields(
    "The graph of the flow, with positions for a drawing; null if none was recorded.",
    nodes=objects("The steps.", **_NODE),
    width=whole("The number of columns."),
    height=whole("The number of rows."),
)
_ERROR = maybe_fields(
    "The exception that the step raised; null if it raised none.",
    type=text("The class of the exception."),
    message=text("The message of the exception."),
    traceback=text("The traceback."),
)
ARTIFACT = {
    "name": text("The name of the artifact."),
    "type": text("The Python type of the value."),
    "size": count("The size of the pickle in bytes."),
    "preview": mapping("What was recorded of the value: `repr`, `len`, `shape`, and so on."),
    "text": text("The preview in one line."),
    "digest": text("The digest of the stored value: equal digests mean equal values."),
}
_ARTIFACTS = objects(
    "The artifacts, without those whose names begin with `_`.",
    **ARTIFACT,
)
_CODE = mapping("The code package: `key`, `script` and `size`, or why it was left out.")
OVERVIEW = {
    **SUMMARY,
    "version": whole("The version of the records of the run; it grows with each commit."),
    "system_tags": array(_NAME, "The tags that aflow set: versions, user, date."),
    "origin_run": maybe_text("The id of the run that this one resumed."),
    "settings": mapping("The options of the run: `max_workers`, `isolation`, and so on."),
    "typed_parameters": objects("The parameters with their types.", **_TYPED_PARAMETER),
    "constants": objects("Configs and constants of the flow's class.", **ARTIFACT),
    "code": _CODE,
    "graph": _GRAPH,
    "doc": text("The docstring of the flow."),
    "steps": objects(
        "The steps, in the order of the flow's file.",
        step=text("The name of the step."),
        tasks=_TASK_COUNTS,
        created_at=maybe_real(f"When its first task was created, {_SINCE}."),
        finished_at=maybe_real(f"When its last task ended, {_SINCE}."),
        max_rss=maybe_whole("The largest resident memory of a task, in bytes."),
        **_FIGURES,
    ),
    "failures": objects(
        "The latest failed tasks, five at most.",
        task=whole("The number of the task."),
        step=text("The name of the step."),
        reason=text("Why the last attempt failed."),
        error=_ERROR,
    ),
}
TASK = {
    "task": whole("The number of the task; it is unique in the run."),
    "step": text("The name of the step."),
    "state": choice(TaskState, "The state of the task."),
    "attempts": count("The number of attempts."),
    "started_at": maybe_real(f"When the latest attempt started, {_SINCE}."),
    "finished_at": maybe_real(f"When the latest attempt ended, {_SINCE}."),
    "reason": text("Why the latest attempt failed; empty if it did not."),
}
TASK_ROW = {
    **TASK,
    "index": maybe_whole("The index of the item in the foreach that created the task."),
    "item": maybe_text(f"The item of the foreach, {_VALUE}."),
    "created_at": real(f"When the task was created, {_SINCE}."),
    "reused": flag("Whether the result of another task was reused."),
    "max_rss": maybe_whole("The largest resident memory of the latest attempt, in bytes."),
    "host": text("The host of the latest attempt."),
    "worker": text("The worker process, worker or job of the latest attempt."),
}
CARD = {
    "name": text("The name of the card, as `/tasks/{task}/cards/{name}` takes it."),
    "type": text("The type of the card."),
    "id": text("The id that the flow gave the card; empty if it gave none."),
    "hash": text("The first characters of the SHA-1 digest of the page."),
}
SHOWN_TASK = {
    **TASK_ROW,
    "pathspec": text("The pathspec of the task: Flow/run/step/task."),
    "origin": maybe_text("The pathspec of the task whose result was reused."),
    "stack": objects(
        "The foreach loops around the task, the outermost first.",
        step=text("The step that opened the foreach."),
        variable=text("The artifact that the foreach iterates over."),
        index=whole("The index of the item."),
        count=maybe_whole("The number of items."),
        value=maybe_text(f"The item, {_VALUE}."),
    ),
    "tries": objects(
        "The attempts.",
        attempt=count("The number of the attempt, from 0 on."),
        state=choice(AttemptState, "The state of the attempt."),
        started_at=maybe_real(f"When the attempt started, {_SINCE}."),
        finished_at=maybe_real(f"When the attempt ended, {_SINCE}."),
        reason=text("Why the attempt failed; empty if it did not."),
        host=text("The host of the attempt."),
        pid=maybe_whole("The process id of the attempt on its host."),
        worker=text("The worker process, worker or job that ran the attempt."),
        max_rss=maybe_whole("The largest resident memory, in bytes."),
        cpu=maybe_real("The CPU time, in seconds."),
        stdout=maybe_whole("The number of bytes printed to stdout."),
        stderr=maybe_whole("The number of bytes printed to stderr."),
    ),
    "inputs": fields(
        count=count("The number of input tasks."),
        tasks=array({"type": "integer"}, "The numbers of input tasks, 20 at most."),
    ),
    "damaged": maybe_text("Why the artifacts cannot be read; null if they can."),
    "error": _ERROR,
    "artifacts": _ARTIFACTS,
    "inherited": objects(
        "The artifacts that earlier tasks set and this one passed on.",
        name=text("The name of the artifact."),
        task=whole("The number of the task that set the artifact."),
    ),
    "facts": objects(
        "The metadata of the task.",
        name=text("The name of the field."),
        value=text("The value, cut off after 1,000 characters."),
        at=real(f"When it was recorded, {_SINCE}."),
    ),
    "cards": objects("The cards of the task.", **CARD),
}
SHOWN_FLOW = {
    "flow": text("The name of the flow."),
    "doc": text("The docstring of the flow."),
    "graph": _GRAPH,
    "runs": objects("The 100 latest runs, newest first.", **LISTED_RUN),
    "grid": objects(
        "The steps of the 30 latest runs.",
        run=text("The id of the run."),
        state=choice(RunState, "The state of the run."),
        steps=mapping(
            "The steps of the run by name.",
            fields(
                tasks=_TASK_COUNTS,
                seconds=real("From the first task to the end of the last one."),
            ),
        ),
    ),
    "parameters": objects("The parameters of the latest run.", **_TYPED_PARAMETER),
    "code": _CODE,
}
LINE = {
    "step": text("The name of the step."),
    "task": whole("The number of the task."),
    "attempt": count("The number of the attempt, from 0 on."),
    "stream": choice(("stdout", "stderr"), "The stream that the line was printed to."),
    "at": real(f"When the line was printed, {_SINCE}."),
    "text": text("The line without its newline."),
}
COMPARISON = {
    "runs": objects("The runs, in the order of the request.", **LISTED_RUN),
    "rows": objects(
        "What was compared, row by row.",
        section=choice(("run", "parameters", "durations", "artifacts"), "What the row is about."),
        name=text("The name of the field, parameter, step or artifact."),
        values=array({}, "The value in each run; null where a run has none."),
        differ=flag("Whether the runs differ in this row."),
        previews=optional(array({}, "The preview of the value in each run.")),
        defaults=optional(array(_MAYBE, "The default of the parameter in each run.")),
    ),
}
WORKER = {
    "name": text("The name of the worker: host, process id and a random part."),
    "state": choice(
        ("idle", "busy", "draining", "silent"),
        "`draining`: it leases nothing more; `silent`: its heartbeats have stopped.",
    ),
    "host": text("The host of the worker."),
    "pid": whole("The process id of the worker on its host."),
    "queue": text("The URL of the queue, without its password."),
    "pools": array(_NAME, "The pools that the worker leases from, in their order."),
    "slots": whole("The number of tasks that run at a time."),
    "labels": mapping("The labels of the worker (--label).", {"type": "string"}),
    "version": text("The version of aflow."),
    "python": text("The version of Python."),
    "started_at": real(f"When the worker started, {_SINCE}."),
    "heartbeat_at": real(f"The last heartbeat, {_SINCE}."),
    "expires_in": real("Seconds until the worker is no longer listed, without a heartbeat."),
    "drain": maybe_text("Why the worker drains; null if it does not."),
    "done": count("The number of attempts that succeeded."),
    "failed": count("The number of attempts that failed."),
    "running": objects(
        "The attempts that the worker has leased.",
        task=text("The pathspec of the task."),
        attempt=count("The number of the attempt, from 0 on."),
        since=real(f"When the worker leased the task, {_SINCE}."),
        begun=flag("Whether the attempt has started."),
    ),
}
_MAX_WORKERS = maybe_whole(
    "The most tasks of the run at a time; null for the server's default.",
    minimum=1,
    maximum=10_000,
)
_VALUES = mapping("Values of parameters by name: texts, or any JSON value.")
RUN_REQUEST = fields(
    package=text("The key of the code package, from POST /v1/packages.", pattern="^[0-9a-f]{64}$"),
    script=text(
        "The flow's file in the package, such as flow.py.",
        pattern=r"^[A-Za-z0-9_][A-Za-z0-9_. -]{0,199}\.py$",
    ),
    flow=optional(maybe_text("The flow, where the file has several.")),
    parameters=optional(_VALUES),
    tags=optional(_TAGS),
    max_workers=optional(_MAX_WORKERS),
)
RESUME_REQUEST = optional_fields(
    step=maybe_text("The step to run again from; null: from where the run failed."),
    parameters=described(_VALUES, "Values that replace some of the run's parameters."),
    max_workers=_MAX_WORKERS,
)
RERUN_REQUEST = optional_fields(
    parameters=described(_VALUES, "Values that replace some of the run's parameters."),
    tags=_TAGS,
    max_workers=_MAX_WORKERS,
)
FORECAST = fields(
    parameters=objects(
        "The parameters, checked.",
        name=text("The name of the parameter."),
        type=text("The Python type of the value."),
        value=text("The value that the run would have."),
    ),
    run=count("The number of tasks that would run."),
    reuse=count("The number of tasks whose results would be reused."),
    steps=objects(
        "The steps that can be foreseen.",
        step=text("The name of the step."),
        run=count("The number of its tasks that would run."),
        reuse=count("The number of its tasks whose results would be reused."),
        reasons=objects(
            "The most frequent reasons.",
            text=text("The reason."),
            count=count("The number of tasks that have it."),
        ),
    ),
    after=array(_NAME, "The steps that cannot be foreseen: they depend on results."),
)
_CRON = "The cron expression, such as `0 2 * * ? *` (see docs/server.md)."
_ZONE = "The time zone of the expression, such as Europe/Berlin"
_MISSED = choice(
    ("latest", "skip", "all"), "Which missed runs are made up for after the server was down."
)
_OVERLAP = choice(
    ("skip", "allow", "wait", "cancel"),
    "What is done while the previous run is active: no run, a run beside it, a run after it, or a "
    "run instead of it.",
)
SCHEDULE = {
    "name": text("The name of the schedule."),
    "flow": maybe_text("The flow that it runs."),
    "cron": text(_CRON),
    "timezone": text(f"{_ZONE}."),
    "missed": _MISSED,
    "overlap": _OVERLAP,
    "paused": flag("Whether the schedule is paused."),
    "created_by": text("The token that created or last changed it."),
    "parameters": mapping("Values of parameters by name."),
    "tags": array(_NAME, "The tags of its runs."),
    "script": maybe_text("The flow's file in the code package."),
    "next": maybe_real(f"When it is due next, {_SINCE}; null if it is not."),
    "latest": maybe_text("The pathspec of its latest run."),
    "reason": text("Why the last time it was due started no run; empty if it did."),
    "started": count("The number of runs that it has started."),
    "skipped": count("The number of times at which it was due and started no run."),
}
SCHEDULE_REQUEST = fields(
    cron=text(_CRON, maxLength=500),
    run=described(RUN_REQUEST, "What to run: the body of POST /v1/runs; it names its flow."),
    timezone=optional(maybe_text(f"{_ZONE}; null for UTC.")),
    missed=optional(_MISSED),
    overlap=optional(_OVERLAP),
    since=optional(
        real(f"The time from which runs are due, {_SINCE}; now if left out.", minimum=0)
    ),
)
SCHEDULE_CHANGES = optional_fields(
    paused=flag("True pauses the schedule, false resumes it from now on."),
    cron=text(_CRON, maxLength=500),
    timezone=maybe_text(f"{_ZONE}; null for UTC."),
    missed=_MISSED,
    overlap=_OVERLAP,
    parameters=mapping("Values of parameters by name, instead of the earlier ones."),
    tags=array(_NAME, "The tags of its runs, instead of the earlier ones."),
)
_MESSAGE = {
    "pool": text("The pool of the message."),
    "id": text("The id of the message."),
    "task": text("The pathspec of the task, with its attempt."),
    "size": count("The size of the message in bytes."),
    "deliveries": maybe_whole("How many times it was delivered; null for a ready message."),
    "at": maybe_real(f"When the message was buried, or else sent, {_SINCE}."),
}
QUEUE = fields(
    url=maybe_text("The URL of the queue; null if the server has none."),
    pools=objects(
        "The pools.",
        pool=text("The name of the pool."),
        ready=count("The number of messages that wait for a worker."),
        leased=count("The number of messages that workers have leased."),
        buried=count("The number of buried messages (dead letters)."),
        oldest=maybe_real(f"When the oldest ready message was sent, {_SINCE}."),
        workers=maybe_whole("The number of workers; null if it is unknown."),
        slots=maybe_whole("The number of slots of all workers."),
        rate=maybe_real("The number of attempts that ended in the last minute."),
    ),
    workers=objects(
        "The workers that announced themselves to the broker.",
        name=text("The name of the worker."),
        pools=array(_NAME, "The pools that it leases from."),
        slots=whole("The number of tasks that run at a time."),
        held=count("The number of messages that it has leased."),
        declined=array(_NAME, "Why it declined tasks."),
    ),
    buried=objects("The buried messages, 200 of each pool at most.", **_MESSAGE),
)
MESSAGES = fields(
    pool=text("The name of the pool."),
    ready=count("The number of messages that wait for a worker."),
    messages=objects("The first messages that wait for a worker.", **_MESSAGE),
    runs=objects(
        "The runs of these messages.",
        run=text("The pathspec of the run."),
        ready=count("How many of these messages belong to it."),
    ),
)
MESSAGE_IDS = fields(ids=array(_NAME, "The ids of 1 to 200 messages."))
CHANGED_MESSAGES = fields(count=whole("The number of messages."))
JOB_QUEUES = fields(
    queues=objects(
        "The queues.",
        system=text("AWS Batch, Slurm or Kubernetes."),
        queue=text("The job queue, partition or namespace."),
        waiting=count("The number of jobs that wait."),
        running=count("The number of jobs that run."),
        steps=objects(
            "The steps that have jobs.",
            run=text("The pathspec of the run."),
            user=text("The user that started the run."),
            step=text("The name of the step."),
            waiting=count("The number of its jobs that wait."),
            running=count("The number of its jobs that run."),
            since=maybe_real(f"Since when the oldest job waits, {_SINCE}."),
            reason=text("Why jobs wait, as the system reports it."),
        ),
    ),
    complete=flag("Whether all active runs are included."),
)
RUN_JOBS = fields(
    jobs=objects(
        "The jobs, by task.",
        task=whole("The number of the task."),
        step=text("The name of the step."),
        attempt=count("The number of the attempt, from 0 on."),
        system=text("AWS Batch, Slurm or Kubernetes."),
        queue=text("The job queue, partition or namespace."),
        job=text("The id of the job; empty until the system has given one."),
        state=choice(("submitting", "waiting", "running"), "The state of the job."),
        host=text("The host of a running job."),
        since=maybe_real(f"Since when the job is in this state, {_SINCE}."),
        reason=text("Why the job waits, as the system reports it."),
    ),
    next=maybe_whole("`after` for the next page; null after the last one."),
)
CALLER = maybe_fields(
    "Whose token the request carries, and what it allows.",
    name=text("The name of the token."),
    scope=choice(("read", "write"), "`read`, or `write` for everything."),
    expires_at=maybe_real(f"When the token expires, {_SINCE}; null: never."),
)
SERVER = fields(
    caller=CALLER,
    version=text("The version of aflow."),
    python=text("The version of Python."),
    metadata=text("The URL of the metadata, without its password."),
    storage=text("The URL of the datastore."),
    previews=flag("Whether runs record previews of artifacts."),
    runs_here=count("The number of runs that this server drives."),
)
FINDINGS = fields(
    findings=objects(
        "The results, one for each check.",
        name=text("What was checked."),
        state=choice(("ok", "warn", "fail"), "The result of the check."),
        message=text("What was found."),
        advice=text("What to do; empty if nothing is to be done."),
    ),
)
COLLECTION_REQUEST = optional_fields(
    older_than=maybe_real("Only runs that ended at least this many seconds ago.", minimum=0),
    failed=flag("Only runs that did not succeed."),
    flow=maybe_text("Only runs of this flow."),
    keep=count("Keep this many newest runs of each flow."),
)
COLLECTION = fields(
    runs=array(_NAME, "The pathspecs of the runs, 200 at most."),
    count=count("The number of runs."),
    objects=count("The number of objects in the datastore."),
    size=count("The size of these objects in bytes."),
    young=count("The number of objects without references that are too young to delete."),
)
STORAGE_SIZES = fields(
    flows=objects(
        "The flows, the largest first.",
        flow=text("The name of the flow."),
        runs=count("The number of its runs."),
        objects=count("The number of its objects, each counted once."),
        size=count("The size of these objects in bytes."),
    ),
    objects=count("The number of objects of all flows, each counted once."),
    size=count("The size of all objects in bytes."),
    complete=flag("Whether all runs were read within a minute."),
)
TAG_CHANGES = optional_fields(
    add=array(_NAME, "Tags to add."), remove=array(_NAME, "Tags to remove.")
)
BATCH_REQUEST = fields(
    action=choice(("cancel", "resume", "tag", "untag", "delete"), "What to do with each run."),
    filter=optional(text("The filter words, as in GET /v1/search.", maxLength=1000)),
    tags=optional(array(_NAME, "The tags to add (`tag`) or to remove (`untag`).")),
    until=optional(maybe_real(f"Only runs created before this time, {_SINCE}.", minimum=0)),
    cursor=optional(maybe_text("The `cursor` of the response before; null for the first request.")),
    dry_run=optional(flag("Change nothing, and only count.")),
)
BATCH_RESULT = fields(
    count=count("The number of runs that were changed, or would be."),
    runs=array(_NAME, "The pathspecs of some of these runs."),
    refused=objects(
        "The runs that were not changed, by reason.",
        reason=text("Why a run was not changed."),
        count=count("The number of runs with this reason."),
    ),
    cursor=maybe_text("`cursor` for the next request; null if all runs are done."),
    until=real(f"`until` for the next request, {_SINCE}."),
    stopped=maybe_text("Why the request stopped early; null if it did not."),
)
TOKEN_REQUEST = fields(
    name=text("The name of the token."),
    scope=optional({**choice(("read", "write"), "What the token allows."), "default": "read"}),
    seconds=optional(maybe_real("The lifetime in seconds; null: it does not expire.")),
)
TOKEN = {
    "name": text("The name of the token."),
    "scope": choice(("read", "write"), "What the token allows."),
    "created_at": real(f"When the token was created, {_SINCE}."),
    "expires_at": maybe_real(f"When the token expires, {_SINCE}."),
}
TOKENS = fields(tokens=objects("The tokens, without their secrets.", **TOKEN))
EVENT = fields(
    event=text("The type of the event."),
    data=text("A JSON object."),
    id=optional(text("The id of the event, for `Last-Event-ID`.")),
)
STEP_ARTIFACTS = fields(
    steps=objects(
        "The steps.",
        step=text("The name of the step."),
        count=count("The number of its tasks."),
        tasks=objects(
            "The first tasks of the step, three at most.",
            task=whole("The number of the task."),
            damaged=maybe_text("Why the artifacts cannot be read."),
            artifacts=_ARTIFACTS,
        ),
    ),
)
RUN_CARDS = fields(
    cards=objects(
        "The cards, by task.",
        step=text("The name of the step."),
        task=whole("The number of the task."),
        **CARD,
    ),
)
EXPLANATIONS = fields(
    lines=objects(
        "The reasons, by step.",
        step=text("The name of the step."),
        text=text("Why the tasks ran, or why their results were reused."),
        count=count("The number of tasks."),
        tasks=array({"type": "integer"}, "The numbers of some of them."),
    ),
)
CODE = fields(
    script=maybe_text("The flow's file."),
    files=objects(
        "The files of the code package.",
        name=text("The path of the file."),
        text=text("The text of the file."),
    ),
    diff=optional(text("A unified diff from the code of `against` to that of the run.")),
)
LOG_PAGE = fields(
    lines=objects("The lines.", **LINE),
    next=text("`after` for the next page."),
    end=flag("Whether these are all lines for now."),
    looked_at=count("The number of lines that a search has read."),
    skipped=optional(count("With `tail`: the number of lines before these.")),
)
SUGGESTIONS = fields(
    found=objects(
        "The completions, 20 at most.",
        kind=choice(("flow", "run", "step", "artifact", "tag", "user"), "What was found."),
        text=text("The completed text."),
    ),
)
STARTED_RUN = fields(run=text("The pathspec (Flow/run) of the new run."))
