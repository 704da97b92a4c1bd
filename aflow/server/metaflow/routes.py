"""All routes of metaflow-service 2.5 and their handlers: method, path, function, and whether it
writes."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple

from aflow.errors import RegistrationRefused
from aflow.server.metaflow import checks
from aflow.server.metaflow.database import Row, Transaction, sql
from aflow.server.metaflow.messages import (
    Asked,
    Condition,
    JsonResponse,
    Listing,
    RunScope,
    TaskScope,
    duplicate,
    filters,
    missing,
    no_parent,
    page_of,
)

# Flows.


_FLOW_FIELDS = {"flow_id": "f.flow_id", "user": "f.user_name", "ts_epoch": "f.ts_epoch"}


def get_flows(session: Transaction, asked: Asked) -> Listing:
    """List all flows."""
    condition = filters(asked.query, _FLOW_FIELDS, Condition())
    return Listing(sql()["flows"], condition, "f.flow_id", _flow_answer, page_of(asked.query, str))


def get_flow(session: Transaction, asked: Asked) -> JsonResponse:
    """Show a flow. Fails with 404 if there is none."""
    found = session.rows(sql()["flow"], [asked.flow])
    if not found:
        raise missing()
    return JsonResponse(_flow_answer(found[0]))


def add_flow(session: Transaction, asked: Asked) -> JsonResponse:
    """Register a flow. Fails with 409 if it is registered already."""
    body = checks.parsed(asked.body, dict)
    values = [
        asked.flow,
        checks.text(body, "user_name"),
        asked.ts_epoch,
        checks.tags(body, "tags"),
        checks.tags(body, "system_tags"),
    ]
    if not session.change(sql()["add_flow"], values):
        raise duplicate(asked.flow)
    return JsonResponse(_flow_answer(values))


def register_flow(session: Transaction, asked: Asked) -> None:
    """Register a flow that aflow itself has run, unless it is registered already.

    Args:
        session: The transaction to read and write in.
        asked: The request.
    """
    if not session.rows(sql()["flow"], [asked.flow]):
        session.change(sql()["add_flow"], [asked.flow, None, asked.ts_epoch, "[]", "[]"])


def _flow_answer(row: Row) -> dict[str, Any]:
    flow, user, ts_epoch, tags, system_tags = row
    return {
        "flow_id": flow,
        "user_name": user,
        "ts_epoch": ts_epoch,
        "tags": json.loads(tags),
        "system_tags": json.loads(system_tags),
    }


# Runs: registration, heartbeats, tags.


WAIT = 10  # seconds between heartbeats, as requested from clients

_RUN_FIELDS = {
    "user": "r.user_name",
    "run_id": "r.run_id",
    "ts_epoch": "r.ts_epoch",
    "last_heartbeat_ts": "r.last_heartbeat_ts",
}


def get_runs(session: Transaction, asked: Asked) -> Listing:
    """List the runs of a flow."""
    condition = filters(
        asked.query,
        _RUN_FIELDS,
        Condition().add("r.flow_id = ?", asked.flow),
        has_tag=asked.words["has_tag"],
        completed=sql()["completed"],
        now=asked.now,
    )
    return Listing(
        sql()["runs"],
        condition,
        "r.run_number",
        lambda row: RunScope.of(asked.flow, row).row(),
        page_of(asked.query),
    )


def get_run(session: Transaction, asked: Asked) -> JsonResponse:
    """Show a run. Fails with 404 if there is none."""
    return JsonResponse(the_run(session, asked).row())


def add_run(session: Transaction, asked: Asked) -> JsonResponse:
    """Register a run, with a number or the name that is sent. Fails with 409 if the name is taken,
    or 404 if its flow is not registered."""
    body = checks.parsed(asked.body, dict)
    name = checks.given_name("run_number", body.get("run_number"))
    user, tags = checks.text(body, "user_name"), checks.tags(body, "tags")
    system_tags = checks.tags(body, "system_tags")
    if not session.rows(sql()["flow"], [asked.flow]):
        raise no_parent(f"flow {asked.flow}")
    values = [asked.flow, name, user, asked.ts_epoch, tags, system_tags]
    added = session.rows(sql()["add_run"], values)
    if not added:
        raise duplicate(f"{asked.flow}/{name}")
    row = (added[0][0], name, user, asked.ts_epoch, None, tags, system_tags)
    return JsonResponse(RunScope.of(asked.flow, row).row())


def beat_run(session: Transaction, asked: Asked) -> JsonResponse:
    """Record a heartbeat of a run. Fails with 404 if there is none."""
    run = the_run(session, asked)
    session.change(sql()["beat_run"], [int(asked.now), run.number])
    return heartbeat_answer()


def heartbeat_answer() -> JsonResponse:
    """Return the response to a heartbeat: JSON in a JSON string, as clients expect it."""
    return JsonResponse(json.dumps({"wait_time_in_seconds": WAIT}))


def change_tags(session: Transaction, asked: Asked) -> JsonResponse:
    """Remove tags from a run, then add others, in one transaction. Fails with 404 if there is no
    such run, or 422 if a system tag would be removed."""
    body = checks.parsed(asked.body, dict)
    if not {"tags_to_add", "tags_to_remove"} & body.keys():
        raise RegistrationRefused.of(400, "the body has to have tags_to_add or tags_to_remove")
    add, remove = checks.tag_list(body, "tags_to_add"), checks.tag_list(body, "tags_to_remove")
    run = the_run(session, asked)
    locked = sql()["lock_tags"].replace("{for_update}", asked.words["for_update"])
    tags, system = (set(json.loads(value) or ()) for value in session.rows(locked, [run.number])[0])
    if fixed := sorted(system & set(remove)):
        sentence = f"Cannot remove tags that are existing system tags: {', '.join(fixed)}"
        raise RegistrationRefused(422, sentence)
    after = sorted((tags - set(remove)) | (set(add) - system))
    session.change(sql()["set_tags"], [json.dumps(after), run.number])
    return JsonResponse({"tags": after})


def the_run(session: Transaction, asked: Asked) -> RunScope:
    """Return the run of the path, which has its number or its name.

    Args:
        session: The transaction to read in.
        asked: The request.

    Raises:
        RegistrationRefused: If the run does not exist (404).
    """
    number = checks.number(asked.run)
    query = "run_by_name" if number is None else "run_by_number"
    found = session.rows(sql()[query], [asked.flow, asked.run if number is None else number])
    if not found:
        raise missing()
    return RunScope.of(asked.flow, found[0])


def _empty_if_missing(
    list_: Callable[[Transaction, Asked], Listing],
) -> Callable[[Transaction, Asked], Listing | JsonResponse]:
    """Return a handler that responds with an empty list if the run or task does not exist."""

    @wraps(list_)
    def listed(session: Transaction, asked: Asked) -> Listing | JsonResponse:
        try:
            return list_(session, asked)
        except RegistrationRefused as refused:
            if refused.status != 404:
                raise
            return JsonResponse([])

    return listed


# Steps of runs.


_STEP_FIELDS = {"step_name": "s.step_name", "user": "s.user_name", "ts_epoch": "s.ts_epoch"}


@_empty_if_missing
def get_steps(session: Transaction, asked: Asked) -> Listing:
    """List the steps of a run that have started."""
    run = the_run(session, asked)
    condition = filters(asked.query, _STEP_FIELDS, Condition().add("s.run_number = ?", run.number))
    page = page_of(asked.query, str)
    return Listing(sql()["steps"], condition, "s.step_name", lambda row: run.step_row(*row), page)


def get_step(session: Transaction, asked: Asked) -> JsonResponse:
    """Show a step. Fails with 404 if there is none."""
    run = the_run(session, asked)
    found = session.rows(sql()["step"], [run.number, asked.step])
    if not found:
        raise missing()
    return JsonResponse(run.step_row(*found[0]))


def add_step(session: Transaction, asked: Asked) -> JsonResponse:
    """Register a step. Fails with 409 if it exists, or 404 if its run is not registered."""
    user = checks.text(checks.parsed(asked.body, dict), "user_name")
    run = the_run(session, asked)
    if not session.change(sql()["add_step"], [run.number, asked.step, user, asked.ts_epoch]):
        raise duplicate(f"{asked.flow}/{asked.run}/{asked.step}")
    return JsonResponse(run.step_row(asked.step, user, asked.ts_epoch))


# Tasks: registration, heartbeats, search by metadata.


_TASK_FIELDS = {
    "user": "t.user_name",
    "ts_epoch": "t.ts_epoch",
    "last_heartbeat_ts": "t.last_heartbeat_ts",
}


@_empty_if_missing
def get_tasks(session: Transaction, asked: Asked) -> Listing:
    """List the tasks of a step."""
    run = the_run(session, asked)
    condition = filters(asked.query, _TASK_FIELDS, _of_step(run, asked))
    page = page_of(asked.query)
    return Listing(
        sql()["tasks"], condition, "t.task_id", lambda row: TaskScope(*row).row(run), page
    )


def get_task(session: Transaction, asked: Asked) -> JsonResponse:
    """Show a task. Fails with 404 if there is none."""
    run, task = the_task(session, asked)
    return JsonResponse(task.row(run))


@_empty_if_missing
def get_filtered_tasks(session: Transaction, asked: Asked) -> Listing:
    """List the pathspecs of the tasks of a step with a metadata field `metadata_field_name` whose
    value matches the regular expression `pattern`. Both filters are optional."""
    run = the_run(session, asked)
    field = asked.query.get("metadata_field_name")
    checks.storable("metadata_field_name", field or "")
    pattern = checks.pattern(asked.query.get("pattern"))
    condition = _of_step(run, asked)
    if field is not None or pattern is not None:
        with_metadata = sql()["with_metadata"].replace("{matches}", asked.words["matches"])
        condition.add(with_metadata, field, field, pattern, pattern)
    head = f"{asked.flow}/{run.name or run.number}/{asked.step}"
    return Listing(
        sql()["tasks"],
        condition,
        "t.task_id",
        lambda row: f"{head}/{row[1] or row[0]}",
        page_of({key: asked.query[key] for key in asked.query if key in ("_limit", "_cursor")}),
    )


def add_task(session: Transaction, asked: Asked) -> JsonResponse:
    """Register a task, with a number or the name that is sent. Fails with 409 if the name is taken,
    or 404 if its run or step is not registered."""
    body = checks.parsed(asked.body, dict)
    name = checks.given_name("task_id", body.get("task_id"))
    user = checks.text(body, "user_name")
    run = the_run(session, asked)
    if not session.rows(sql()["step"], [run.number, asked.step]):
        raise no_parent(f"step {asked.flow}/{asked.run}/{asked.step}")
    values = [run.number, asked.step, name, user, asked.ts_epoch]
    added = session.rows(sql()["add_task"], values)
    if not added:
        raise duplicate(f"{asked.flow}/{asked.run}/{asked.step}/{name}")
    task = TaskScope(
        number=added[0][0],
        name=name,
        step=asked.step,
        user=user,
        ts_epoch=asked.ts_epoch,
        heartbeat=None,
    )
    return JsonResponse(task.row(run))


def beat_task(session: Transaction, asked: Asked) -> JsonResponse:
    """Record a heartbeat of a task and its run. Fails with 404 if there is none."""
    run, task = the_task(session, asked)
    session.change(sql()["beat_run"], [int(asked.now), run.number])
    session.change(sql()["beat_task"], [int(asked.now), task.number])
    return heartbeat_answer()


def the_task(session: Transaction, asked: Asked) -> tuple[RunScope, TaskScope]:
    """Return the run and the task of the path, which has the number or the name of each.

    Args:
        session: The transaction to read in.
        asked: The request.

    Raises:
        RegistrationRefused: If the run or the task does not exist (404).
    """
    run, number = the_run(session, asked), checks.number(asked.task)
    query = "task_by_name" if number is None else "task_by_number"
    key = asked.task if number is None else number
    found = session.rows(sql()[query], [run.number, asked.step, key])
    if not found:
        raise missing()
    return run, TaskScope(*found[0])


def _of_step(run: RunScope, asked: Asked) -> Condition:
    return Condition().add("t.run_number = ? AND t.step_name = ?", run.number, asked.step)


# Metadata: name-value pairs that clients register for tasks.


_METADATA_FIELDS = {
    "field_name": "m.field_name",
    "value": "m.value",
    "type": "m.type",
    "user": "m.user_name",
    "ts_epoch": "m.ts_epoch",
}


@_empty_if_missing
def get_metadata_of_run(session: Transaction, asked: Asked) -> Listing:
    """List the metadata of all tasks of a run."""
    run = the_run(session, asked)
    return _metadata_listing(run, asked, Condition().add("m.run_number = ?", run.number))


@_empty_if_missing
def get_metadata(session: Transaction, asked: Asked) -> Listing:
    """List the metadata of a task."""
    run, task = the_task(session, asked)
    return _metadata_listing(run, asked, Condition().add("m.task_id = ?", task.number))


def add_metadata(session: Transaction, asked: Asked) -> JsonResponse:
    """Register metadata of a task. Fails with 400 if the task is not registered. Returns how
    many fields were registered."""
    items = checks.items(asked.body)
    run, task = registered(session, asked)
    rows = [
        (
            run.number,
            asked.step,
            task.number,
            checks.name_of(item, "field_name"),
            checks.text(item, "value", " "),
            checks.text(item, "type", " "),
            checks.text(item, "user_name"),
            asked.ts_epoch,
        )
        for item in items
    ]
    return JsonResponse({"metadata_created": session.change_many(sql()["add_metadata"], rows)})


def registered(session: Transaction, asked: Asked) -> tuple[RunScope, TaskScope]:
    """Return the run and the task of the path, to register something in them.

    Args:
        session: The transaction to read in.
        asked: The request.
    """
    try:
        return the_task(session, asked)
    except RegistrationRefused:
        raise RegistrationRefused.of(400, "need to register run_id and task_id first") from None


def _metadata_listing(run: RunScope, asked: Asked, condition: Condition) -> Listing:
    filters(asked.query, _METADATA_FIELDS, condition)
    page = page_of(asked.query)
    return Listing(
        sql()["metadata"], condition, "m.id", lambda row: _metadata_answer(run, row), page
    )


def _metadata_answer(run: RunScope, row: Row) -> dict[str, Any]:
    number, step, task, task_name, field, value, type_, user, ts_epoch = row
    return {
        "id": number,
        **run.in_task(step, task_name or task),
        "field_name": field,
        "value": value,
        "type": type_,
        "user_name": user,
        "ts_epoch": ts_epoch,
    }


# Artifacts of attempts and their locations. For a task, the artifacts of its latest attempt are
# listed unless the path names an attempt.


_TEXTS = ("location", "ds_type", "sha", "type", "content_type", "user_name")
# The columns in queries.sql from the fifth one on.
_ARTIFACT_COLUMNS = ("name", *_TEXTS, "attempt_id", "ts_epoch")
_ARTIFACT_FIELDS = {
    "name": "a.name",
    "type": "a.type",
    "user": "a.user_name",
    "ts_epoch": "a.ts_epoch",
}


@_empty_if_missing
def get_artifacts_of_run(session: Transaction, asked: Asked) -> Listing:
    """List the artifacts of all tasks of a run."""
    run = the_run(session, asked)
    return _artifact_listing(run, asked, _latest().add("a.run_number = ?", run.number))


@_empty_if_missing
def get_artifacts_of_step(session: Transaction, asked: Asked) -> Listing:
    """List the artifacts of all tasks of a step."""
    run = the_run(session, asked)
    of_step = _latest().add("a.run_number = ? AND a.step_name = ?", run.number, asked.step)
    return _artifact_listing(run, asked, of_step)


@_empty_if_missing
def get_artifacts(session: Transaction, asked: Asked) -> Listing:
    """List the artifacts of a task, or of the attempt in the path."""
    run = the_run(session, asked)
    condition = _chosen_attempt(asked).add("t.run_number = ?", run.number)
    condition.add("t.step_name = ?", asked.step)
    number = checks.number(asked.task)
    if number is None:
        condition.add("t.task_name = ?", asked.task)
    else:
        condition.add("t.task_id = ?", number)
    return _artifact_listing(run, asked, condition)


def get_artifact(session: Transaction, asked: Asked) -> JsonResponse:
    """Show an artifact of a task: of the attempt in the path, or of the latest attempt that has
    it. Fails with 404 if there is none."""
    run, task = the_task(session, asked)
    condition = Condition().add("a.task_id = ?", task.number)
    condition.add("a.name = ?", asked.names["artifact_name"])
    if "attempt_id" in asked.names:
        condition.add("a.attempt_id = ?", int(asked.names["attempt_id"]))
    found = session.rows(
        f"{sql()['artifacts']}{condition.sql} ORDER BY a.attempt_id DESC LIMIT 1", condition.values
    )
    if not found:
        raise missing()
    return JsonResponse(_artifact_answer(run, found[0]))


def add_artifacts(session: Transaction, asked: Asked) -> JsonResponse:
    """Register artifacts of a task. Fails with 400 if the task is not registered. Returns how
    many artifacts were new."""
    items = checks.items(asked.body)
    run, task = registered(session, asked)
    rows = [
        (
            run.number,
            asked.step,
            task.number,
            checks.attempt(item),
            checks.name_of(item, "name", "artifact_name"),
            *(checks.text(item, key, " ") for key in _TEXTS),
            asked.ts_epoch,
        )
        for item in items
    ]
    return JsonResponse({"artifacts_created": session.change_many(sql()["add_artifact"], rows)})


def _latest() -> Condition:
    return Condition().add(sql()["latest_attempt"])


def _chosen_attempt(asked: Asked) -> Condition:
    if "attempt_id" in asked.names:
        return Condition().add("a.attempt_id = ?", int(asked.names["attempt_id"]))
    return _latest()


def _artifact_listing(run: RunScope, asked: Asked, condition: Condition) -> Listing:
    filters(asked.query, _ARTIFACT_FIELDS, condition)
    page = page_of(asked.query)
    return Listing(
        sql()["artifacts"], condition, "a.number", lambda row: _artifact_answer(run, row), page
    )


def _artifact_answer(run: RunScope, row: Row) -> dict[str, Any]:
    _, step, task, task_name, *rest = row
    columns = zip(_ARTIFACT_COLUMNS, rest, strict=True)
    return {**run.in_task(step, task_name or task), **dict(columns)}


class ServiceRoute(NamedTuple):
    """A route: method, path, handler, and whether it writes."""

    method: str
    path: str
    answer: Callable[[Transaction, Asked], JsonResponse | Listing]
    writes: bool = False


_FLOW = "/flows/{flow_id}"
_RUN = _FLOW + "/runs/{run_number}"
_STEP = _RUN + "/steps/{step_name}"
_TASK = _STEP + "/tasks/{task_id}"
_ATTEMPT = "/attempt/{attempt_id}"

ROUTES = [
    ServiceRoute("GET", "/flows", get_flows),
    ServiceRoute("GET", _FLOW, get_flow),
    ServiceRoute("POST", _FLOW, add_flow, writes=True),
    ServiceRoute("GET", _FLOW + "/runs", get_runs),
    ServiceRoute("POST", _FLOW + "/run", add_run, writes=True),
    ServiceRoute("GET", _RUN, get_run),
    ServiceRoute("POST", _RUN + "/heartbeat", beat_run, writes=True),
    ServiceRoute("PATCH", _RUN + "/tag/mutate", change_tags, writes=True),
    ServiceRoute("GET", _RUN + "/steps", get_steps),
    ServiceRoute("GET", _STEP, get_step),
    ServiceRoute("POST", _STEP + "/step", add_step, writes=True),
    ServiceRoute("GET", _STEP + "/tasks", get_tasks),
    ServiceRoute("GET", _STEP + "/filtered_tasks", get_filtered_tasks),
    ServiceRoute("POST", _STEP + "/task", add_task, writes=True),
    ServiceRoute("GET", _TASK, get_task),
    ServiceRoute("POST", _TASK + "/heartbeat", beat_task, writes=True),
    ServiceRoute("GET", _RUN + "/metadata", get_metadata_of_run),
    ServiceRoute("GET", _TASK + "/metadata", get_metadata),
    ServiceRoute("POST", _TASK + "/metadata", add_metadata, writes=True),
    ServiceRoute("GET", _RUN + "/artifacts", get_artifacts_of_run),
    ServiceRoute("GET", _STEP + "/artifacts", get_artifacts_of_step),
    ServiceRoute("GET", _TASK + "/artifacts", get_artifacts),
    ServiceRoute("GET", _TASK + _ATTEMPT + "/artifacts", get_artifacts),
    ServiceRoute("GET", _TASK + "/artifacts/{artifact_name}", get_artifact),
    ServiceRoute("GET", _TASK + "/artifacts/{artifact_name}" + _ATTEMPT, get_artifact),
    ServiceRoute("POST", _TASK + "/artifact", add_artifacts, writes=True),
]
