"""Flows that a server runs on a schedule."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from aflow.metadata.sqlite import SqliteMetadata
from aflow.scheduler.states import RunState
from aflow.server import schedules
from aflow.task import code_package
from tests.server.conftest import FLOW, Daemon
from tests.support.waiting import wait_until

SCHEDULED = "from aflow import schedule\n" + FLOW.replace(
    "class Flow_", "@schedule(cron='0 0 1 1 ? *', timezone='Europe/Berlin')\nclass Flow_"
)


@pytest.fixture
def scheduled(daemon: Daemon) -> Daemon:
    daemon.write(SCHEDULED)
    return daemon


def until(daemon: Daemon, name: str, holds: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Wait until the schedule satisfies a condition, and return it."""
    reported: dict[str, Any] = {}

    def asked() -> bool:
        reported.update(daemon.ask("GET", f"/v1/schedules/{name}")[1])
        return holds(reported)

    wait_until(asked, lambda: reported, interval=0.1)
    return reported


def make_due(daemon: Daemon, name: str, **changes: Any) -> dict[str, Any]:
    """Set the time when the schedule was last seen to a year ago."""
    reported = daemon.ask("GET", f"/v1/schedules/{name}")[1]
    _, order = daemon.ask("GET", "/v1/schedules")
    assert [name] == [each["name"] for each in order["schedules"]]
    year = datetime.now(UTC).year
    since = datetime(year - 1, 6, 1, tzinfo=UTC).timestamp()
    body = {"cron": reported["cron"], "timezone": reported["timezone"], "since": since, **changes}
    status, made = daemon.ask("PUT", f"/v1/schedules/{name}", json.dumps(body).encode())
    assert 200 == status, made
    return dict(made)


def order_for(daemon: Daemon) -> dict[str, Any]:
    """Upload the package, and return the request for its run."""
    data = code_package.pack({"flow.py": daemon.path / "flow.py"})
    _, kept = daemon.ask("POST", "/v1/packages", data, "application/x-tar")
    return {"package": kept["package"], "script": "flow.py", "flow": "Flow_"}


def test_a_flow_is_run_when_its_schedule_says_so(scheduled: Daemon) -> None:
    made = scheduled.call("schedule", "create", "flow.py", "--alpha", "0.5")
    assert (0, True) == (made.code, "Flow_ runs Flow_ next at " in made.out), made.err
    make_due(scheduled, "Flow_", run={**order_for(scheduled), "parameters": {"alpha": 0.5}})

    reported = until(scheduled, "Flow_", lambda reported: reported["latest"] is not None)

    year = datetime.now(UTC).year
    assert f"Flow_/Flow_-{year - 1}1231T230000Z" == reported["latest"]  # midnight in Berlin
    _, run = scheduled.ask("GET", f"/v1/runs/{reported['latest']}?wait=60")
    assert ("succeeded", ["schedule:Flow_"]) == (run["state"], run["tags"])
    assert (1, 0) == (reported["started"], reported["skipped"])
    assert reported["latest"] in scheduled.call("schedule", "list").out
    assert 0 == scheduled.stop()
    scheduled.check()


def test_gc_keeps_the_code_that_a_schedule_needs_and_no_other(scheduled: Daemon) -> None:
    assert 0 == scheduled.call("schedule", "create", "flow.py").code
    scheduled.write(SCHEDULED + "\n# another version\n")
    lost = order_for(scheduled)  # sent, and not asked to be run

    swept = scheduled.finish(scheduled.start_aflow("gc", "--grace", "0s"))

    assert "0 runs and 1 object deleted" in swept.out, swept.err
    assert 0 == scheduled.call("schedule", "trigger", "Flow_").code
    body = json.dumps({"cron": "0 2 * * ? *", "run": lost}).encode()
    status, reported = scheduled.ask("PUT", "/v1/schedules/late", body)
    assert (400, True) == (status, "send the code again" in reported["error"])
    assert 0 == scheduled.call("schedule", "delete", "Flow_").code
    assert [] == [*(scheduled.path / ".aflow" / "roots").rglob("*/*")]


def test_a_run_that_nobody_can_take_up_does_not_keep_its_schedule_from_running(
    scheduled: Daemon,
) -> None:
    assert 0 == scheduled.call("schedule", "create", "flow.py").code
    first = scheduled.call("schedule", "trigger", "Flow_").out.strip()
    assert "succeeded" == scheduled.ask("GET", f"/v1/runs/{first}?wait=60")[1]["state"]
    metadata = SqliteMetadata(scheduled.path / ".aflow" / "metadata.db")
    ended = metadata.run(*first.split("/"))
    assert ended is not None
    left = ended._replace(run="left", state=RunState.RUNNING, finished_at=None)
    metadata.create_run(left, b"", "elsewhere/gone", -100.0)
    [document] = metadata.documents(schedules.KIND)
    schedule = replace(schedules.read(document), latest="Flow_/left")
    metadata.put_document(schedules.KIND, "Flow_", schedule.encode(), document.version)

    make_due(scheduled, "Flow_", overlap="skip", run=order_for(scheduled))
    reported = until(scheduled, "Flow_", lambda reported: reported["latest"] != "Flow_/left")

    assert (1, 0) == (reported["started"], reported["skipped"])
    found = metadata.run("Flow_", "left")
    metadata.close()
    assert found is not None
    assert RunState.FAILED is found.state
    assert "the next run of its schedule was due" in found.reason


def test_two_servers_start_the_run_of_a_tick_once(scheduled: Daemon) -> None:
    other = Daemon(scheduled.path)
    other.begin()
    scheduled.call("schedule", "create", "flow.py", "--missed", "all")
    make_due(scheduled, "Flow_", missed="all", overlap="wait", run=order_for(scheduled))

    reported = until(other, "Flow_", lambda reported: reported["started"] >= 1)

    scheduled.ask("GET", f"/v1/runs/{reported['latest']}?wait=60")
    assert 1 == len(other.ask("GET", "/v1/runs")[1]["runs"])
    assert [0, 0] == [scheduled.stop(), other.stop()]
    scheduled.check()


def test_schedules_are_kept_paused_triggered_and_forgotten(scheduled: Daemon) -> None:
    def call(*words: str) -> str:
        ran = scheduled.call("schedule", *words)
        assert 0 == ran.code, ran.err
        return ran.out

    call("create", "flow.py", "--name", "nightly", "--cron", "0 2 * * ? *", "--overlap", "wait")
    assert ("0 2 * * ? *", "UTC", "wait") == tuple(
        json.loads(call("show", "nightly"))[each] for each in ("cron", "timezone", "overlap")
    )
    assert "nightly is paused" in call("pause", "nightly")
    assert "paused" in call("list")
    assert 0 == scheduled.stop()
    scheduled.begin()
    assert "nightly" in call("list")
    assert "goes on, next at" in call("resume", "nightly")
    change = {"cron": "0 3 * * ? *", "timezone": "Europe/Berlin", "tags": ["night"]}
    reported = scheduled.ask("PATCH", "/v1/schedules/nightly", json.dumps(change).encode())
    assert (200, "0 3 * * ? *", "wait", ["night"]) == (
        reported[0], reported[1]["cron"], reported[1]["overlap"], reported[1]["tags"],
    )  # fmt: skip
    for wrong in (b"{}", b'{"flow": "X"}', b'{"cron": "x"}', b'{"parameters": {"a b": 1}}'):
        assert 400 == scheduled.ask("PATCH", "/v1/schedules/nightly", wrong)[0], wrong
    preview = scheduled.ask("GET", "/v1/ticks?cron=0+3+*+*+?+*&timezone=Europe/Berlin")[1]["next"]
    assert (5, reported[1]["next"]) == (len(preview), preview[0])
    assert 400 == scheduled.ask("GET", "/v1/ticks?cron=x")[0]
    edited = call("edit", "nightly", "--overlap", "skip", "--alpha", "0.25", "--tag", "a")
    assert "nightly is changed; it runs next at" in edited
    reported = json.loads(call("show", "nightly"))
    assert ("0 3 * * ? *", "skip", {"alpha": "0.25"}, ["a"]) == (
        reported["cron"], reported["overlap"], reported["parameters"], reported["tags"]
    )  # fmt: skip
    assert 2 == scheduled.call("schedule", "edit", "nightly").code
    # As of a server that knows more time zones than this one.
    database = closing(sqlite3.connect(scheduled.path / ".aflow" / "metadata.db"))
    with database as opened, opened:
        (data,) = opened.execute("SELECT data FROM documents WHERE kind = 'schedule'").fetchone()
        elsewhere = json.dumps({**json.loads(data), "timezone": "Moon/Tycho"}).encode()
        opened.execute("INSERT INTO documents VALUES ('schedule', 'lunar', 1, ?)", [elsewhere])
    lunar, nightly = scheduled.ask("GET", "/v1/schedules")[1]["schedules"]
    assert (None, True) == (lunar["next"], "no time zone 'Moon/Tycho'" in lunar["reason"])
    assert nightly["next"] is not None
    run = call("trigger", "nightly").strip()
    assert "succeeded" == scheduled.ask("GET", f"/v1/runs/{run}?wait=60")[1]["state"]
    assert "its runs stay" in call("delete", "nightly")
    gone = scheduled.call("schedule", "show", "nightly")
    assert (1, True) == (gone.code, "There is no schedule 'nightly'" in gone.err)


def test_a_flow_without_a_schedule_is_refused(daemon: Daemon) -> None:
    ran = daemon.call("schedule", "create", "flow.py")
    assert (2, True) == (ran.code, "give it @schedule, or --cron" in ran.err)


def test_a_run_that_cannot_begin_is_reported_and_not_tried_for_ever(scheduled: Daemon) -> None:
    scheduled.call("schedule", "create", "flow.py")
    wrong = {**order_for(scheduled), "parameters": {"alpha": "many"}}
    make_due(scheduled, "Flow_", run=wrong)

    reported = until(scheduled, "Flow_", lambda reported: reported["skipped"] == 1)

    assert "alpha" in reported["reason"]
    assert [] == scheduled.ask("GET", "/v1/runs")[1]["runs"]


def test_a_schedule_ends_with_the_token_that_created_it(scheduled: Daemon) -> None:
    made = scheduled.finish(scheduled.start_aflow("token", "create", "ci")).out.strip()
    ran = scheduled.call("schedule", "create", "flow.py", AFLOW_SERVICE_AUTH_KEY=made)
    assert 0 == ran.code, ran.err
    assert "ci" == scheduled.ask("GET", "/v1/schedules/Flow_")[1]["created_by"]
    with closing(SqliteMetadata(scheduled.path / ".aflow" / "metadata.db")) as store:
        document = store.document(schedules.KIND, "Flow_")
        assert document is not None
        early = replace(schedules.read(document), done_until=0.0)
        assert 0 == scheduled.finish(scheduled.start_aflow("token", "revoke", "ci")).code
        store.put_document(schedules.KIND, "Flow_", early.encode(), document.version)

    reported = until(scheduled, "Flow_", lambda reported: reported["skipped"] > 0)

    assert "The token ci, which created this schedule, was revoked" in reported["reason"]
    assert (0, None) == (reported["started"], reported["latest"])
