"""Runs: registered, alive, tagged."""

from __future__ import annotations

import json

from aflow.errors import RegistrationRefused
from aflow.service import checks
from aflow.service.database import Session, sql
from aflow.service.messages import Answer, Asked, Listing
from aflow.service.paging import Condition, filters, page_of
from aflow.service.scope import RunScope, duplicate, find_run, missing, no_parent

WAIT = 10  # seconds that a client is told to wait between heartbeats

_FIELDS = {
    "user": "r.user_name",
    "run_id": "r.run_id",
    "ts_epoch": "r.ts_epoch",
    "last_heartbeat_ts": "r.last_heartbeat_ts",
}


def get_runs(session: Session, asked: Asked) -> Listing:
    """The runs of a flow."""
    condition = filters(
        asked.query,
        _FIELDS,
        Condition().add("r.flow_id = ?", asked.flow),
        has_tag=asked.words["has_tag"],
        completed=sql()["completed"],
        now=asked.now,
    )
    return Listing(
        sql()["runs"],
        condition,
        "r.run_number",
        lambda row: RunScope.of(asked.flow, row).told(),
        page_of(asked.query),
    )


def get_run(session: Session, asked: Asked) -> Answer:
    """One run; 404."""
    return Answer(the_run(session, asked).told())


def add_run(session: Session, asked: Asked) -> Answer:
    """Register a run, which gets a number, or has a name; 409, 404 without its flow."""
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
    return Answer(RunScope.of(asked.flow, row).told())


def beat_run(session: Session, asked: Asked) -> Answer:
    """A run is alive; 404."""
    run = the_run(session, asked)
    session.change(sql()["beat_run"], [int(asked.now), run.number])
    return heard()


def heard() -> Answer:
    """What a heartbeat is answered: JSON in a text, as clients expect it."""
    return Answer(json.dumps({"wait_time_in_seconds": WAIT}))


def change_tags(session: Session, asked: Asked) -> Answer:
    """Remove tags from a run, then add others, in one step; 404, 422 for a system tag."""
    body = checks.parsed(asked.body, dict)
    if not {"tags_to_add", "tags_to_remove"} & body.keys():
        raise RegistrationRefused.of(400, "the body has to have tags_to_add or tags_to_remove")
    add, remove = checks.tag_list(body, "tags_to_add"), checks.tag_list(body, "tags_to_remove")
    run = the_run(session, asked)
    locked = sql()["lock_tags"].replace("{for_update}", asked.words["for_update"])
    tags, system = (set(json.loads(value) or ()) for value in session.rows(locked, [run.number])[0])
    if fixed := sorted(system & set(remove)):
        said = f"Cannot remove tags that are existing system tags: {', '.join(fixed)}"
        raise RegistrationRefused(422, said)
    after = sorted((tags - set(remove)) | (set(add) - system))
    session.change(sql()["set_tags"], [json.dumps(after), run.number])
    return Answer({"tags": after})


def the_run(session: Session, asked: Asked) -> RunScope:
    """The run of the path; 404."""
    found = find_run(session, asked.flow, asked.run)
    if found is None:
        raise missing()
    return found
