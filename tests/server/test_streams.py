"""The events and output of a server's run, streamed while it runs."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.flows.conftest import Workspace
from tests.server.conftest import Daemon
from tests.support.servers import free_port
from tests.support.waiting import wait_until

FLOW = """
class Flow_(FlowSpec):
    fails = Parameter("fails", default=False)

    @step
    def start(self):
        print("first line")
        print("to stderr", file=sys.stderr)
        with open(os.environ["GATE"]) as gate:
            print(gate.read())
        self.xs = [1, 2]
        self.next(self.work, foreach="xs")

    @retry(times=1, minutes_between_retries=0)
    @step
    def work(self):
        print("item", self.input, "again" if current.retry_count else "at first")
        if self.input == 2 and not current.retry_count:
            raise ValueError("not yet")
        self.next(self.join)

    @step
    def join(self, inputs):
        self.next(self.end)

    @step
    def end(self):
        if self.fails:
            raise ValueError("it fails")
"""


class Gated(Daemon):
    """A daemon whose runs wait at a gate."""

    def open_gate(self) -> None:
        """Let the run that waits at the gate continue."""
        (self.path / "gate").write_text("past the gate")


@pytest.fixture
def gated(folder: Daemon) -> Any:
    gated = Gated(folder.path)
    gated.write(FLOW)
    os.mkfifo(gated.path / "gate")
    gated.begin(GATE=str(gated.path / "gate"), port=str(free_port()))  # it may be started again
    yield gated
    assert 0 == gated.stop()


def texts(out: str) -> list[str]:
    """Return the printed texts, without times and tasks."""
    return [line.partition("] ")[2] for line in out.splitlines()]


@pytest.mark.parametrize("here", [True, False])
def test_a_run_is_followed_while_it_goes_on(gated: Gated, here: bool, tmp_path: Path) -> None:
    run = gated.submit("flow.py").out.strip()
    where = [] if here else ["--server", gated.url]
    following = gated.start_aflow("logs", "--follow", run, *where)
    assert following.stdout is not None
    assert following.stdout.readline().endswith(f"[{run.partition('/')[2]}/start/1] first line\n")
    gated.open_gate()

    ran = gated.finish(following)

    assert 0 == ran.code, ran.err
    assert ["past the gate", "item 1 at first", "item 2 again", "item 2 at first"] == sorted(
        texts(ran.out), key=lambda text: (text != "past the gate", text)
    )
    assert "to stderr" in texts(ran.err)
    assert f"{run} has succeeded." in ran.err
    only = gated.finish(gated.start_aflow("logs", f"{run}/work", "--stdout", "--server", gated.url))
    assert {"item 1 at first", "item 2 at first", "item 2 again"} == set(texts(only.out))


def test_submit_prints_what_the_run_prints_and_fails_with_it(gated: Gated) -> None:
    submitted = gated.start_aflow(
        "submit", "flow.py", "--wait", "--fails", "yes", "--server", gated.url
    )
    gated.open_gate()

    ran = gated.finish(submitted)

    assert 1 == ran.code, ran.out + ran.err
    assert "past the gate" in texts(ran.out)
    assert "ValueError: it fails" in ran.err
    assert "has failed." in ran.err


def test_events_of_a_run_are_sent_and_resume_where_a_client_was(gated: Gated) -> None:
    run = gated.submit("flow.py").out.strip()
    gated.open_gate()
    assert "succeeded" == gated.ask("GET", f"/v1/runs/{run}?wait=60")[1]["state"]

    reported = events_of(gated, f"/v1/runs/{run}/events?follow=1")

    kinds = [kind for kind, _, _ in reported]
    assert ("run_started", "end") == (kinds[0], kinds[-1])
    ended = [data for kind, _, data in reported if kind == "attempt_ended"]
    assert ["start", "work", "work", "work", "join", "end"] == [each["step"] for each in ended]
    assert 1 == sum(each["state"] == "failed" for each in ended)
    assert ({"state": "succeeded", "reason": ""}, "") == (reported[-1][2], reported[-1][1])
    for number, (_, last, _) in enumerate(reported[:-1]):
        path = f"/v1/runs/{run}/events"
        assert reported[number + 1 :] == events_of(gated, path, **{"Last-Event-ID": last})
    for odd in ("x", "-1", "1.", "1.1.1", "9" * 10, "\u0661".encode().decode("latin-1")):
        sent: Any = {"Last-Event-ID": odd}
        assert 400 == gated.ask("GET", f"/v1/runs/{run}/events", **sent)[0]


def test_lines_of_a_run_are_sent_again_after_any_of_them(gated: Gated) -> None:
    run = gated.submit("flow.py").out.strip()
    gated.open_gate()
    assert "succeeded" == gated.ask("GET", f"/v1/runs/{run}?wait=60")[1]["state"]
    for path in (f"/v1/runs/{run}/logs", f"/v1/runs/{run}/logs?step=work"):
        reported = events_of(gated, path)
        assert len({last for kind, last, _ in reported if kind == "line"}) == len(reported) - 1
        for number, (_, last, _) in enumerate(reported[:-1]):
            assert reported[number + 1 :] == events_of(gated, path, **{"Last-Event-ID": last})
    for odd in ("x", "-1", "1_", "1_1.1.1.1.1", "1;2", "9" * 19):
        sent: Any = {"Last-Event-ID": odd}
        assert 400 == gated.ask("GET", f"/v1/runs/{run}/logs", **sent)[0]


def test_a_silent_run_is_waited_for_while_its_server_is_started_again(folder: Daemon) -> None:
    folder.write(FLOW.replace("print(", "(lambda *_, **__: None)("))
    os.mkfifo(folder.path / "gate")
    gated = Gated(folder.path)
    gated.begin(GATE=str(gated.path / "gate"), port=str(free_port()))  # it may be started again
    waiting = gated.start_aflow("submit", "flow.py", "--wait", "--server", gated.url)
    assert waiting.stdout is not None
    run = waiting.stdout.readline().strip()
    following = gated.start_aflow("logs", "--follow", run, "--server", gated.url)
    for each in (waiting, following):
        wait_for_answer(each, gated)
    gated.process.kill()
    gated.process.communicate()

    gated.begin(GATE=str(gated.path / "gate"), port=gated.url.rpartition(":")[2])
    gated.open_gate()

    for each in (waiting, following):
        ran = gated.finish(each)
        assert (0, "") == (ran.code, ran.out), ran.err
        assert ran.err.endswith(f"{run} has succeeded.\n")
    assert 0 == gated.stop()


def wait_for_answer(process: subprocess.Popen[str], daemon: Daemon) -> None:
    """Wait until the process is connected to the server, and has something of its answer."""
    port = int(daemon.url.rpartition(":")[2])

    def answered() -> bool:
        table = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        # Of a connection that is open, the kernel has an interval for acknowledgements (`ato`, in
        # the fourteenth column) as soon as bytes have come.
        there = {
            f"socket:[{row[9]}]"
            for row in table
            if int(row[2][-4:], 16) == port and row[3] == "01" and int(row[13])
        }
        found = set()
        for each in Path(f"/proc/{process.pid}/fd").iterdir():
            with contextlib.suppress(OSError):  # it was closed while we looked
                found.add(os.readlink(each))
        return bool(there & found)

    wait_until(answered, "it does not follow the run")


def test_a_run_is_followed_while_its_server_is_started_again(gated: Gated) -> None:
    run = gated.submit("flow.py").out.strip()
    following = gated.start_aflow("logs", "--follow", run, "--server", gated.url)
    assert following.stdout is not None
    assert "first line" in following.stdout.readline()
    gated.process.send_signal(signal.SIGTERM)
    gated.process.send_signal(signal.SIGINT)
    assert 0 == gated.stop()

    gated.begin(GATE=str(gated.path / "gate"), port=gated.url.rpartition(":")[2])
    gated.open_gate()

    ran = gated.finish(following)
    assert 0 == ran.code, ran.err
    printed = texts(ran.out)
    assert 1 == printed.count("past the gate")
    assert {"item 1 at first", "item 2 at first", "item 2 again"} <= {*printed}
    assert sorted({*printed}) == sorted(printed)


def test_a_client_that_goes_away_holds_up_nothing(gated: Gated) -> None:
    run = gated.submit("flow.py").out.strip()
    following = gated.start_aflow("logs", "--follow", run, "--server", gated.url)
    assert following.stdout is not None
    assert "first line" in following.stdout.readline()
    following.send_signal(signal.SIGKILL)
    following.communicate()
    gated.open_gate()
    assert "succeeded" == gated.ask("GET", f"/v1/runs/{run}?wait=60")[1]["state"]


def test_runs_and_status_of_a_server_are_shown_elsewhere(
    gated: Gated, tmp_path_factory: pytest.TempPathFactory
) -> None:
    run = gated.submit("flow.py").out.strip()
    gated.open_gate()
    assert "succeeded" == gated.ask("GET", f"/v1/runs/{run}?wait=60")[1]["state"]
    elsewhere = Workspace(tmp_path_factory.mktemp("elsewhere"))

    home = {"AFLOW_HOME": str(gated.path / "home")}
    there = {**home, "AFLOW_SERVER": gated.url}

    runs = elsewhere.finish(elsewhere.start_aflow("runs", **there))
    logs = elsewhere.finish(elsewhere.start_aflow("logs", run, **there))
    here = elsewhere.start_aflow("runs", "--server", "", **there)
    status = elsewhere.finish(elsewhere.start_aflow("status", "--server", gated.url, **home))

    assert (0, True) == (runs.code, run in runs.out), runs.err
    assert (0, True) == (logs.code, "past the gate" in texts(logs.out)), logs.err
    assert "Nothing has run here yet" in elsewhere.finish(here).err
    assert (0, True) == (status.code, run.partition("/")[2] in status.out), status.err
    assert [run] == [f"{r['flow']}/{r['run']}" for r in gated.ask("GET", "/v1/runs")[1]["runs"]]


def events_of(daemon: Daemon, path: str, **headers: str) -> list[tuple[str, str, Any]]:
    """Return kind, id and data of each event of a stream that ends."""
    connection = http.client.HTTPConnection(daemon.url.removeprefix("http://"), timeout=60)
    headers["Authorization"] = f"Bearer {daemon.token}"
    connection.request("GET", path, headers=headers)
    body = connection.getresponse().read().decode()
    connection.close()
    found = []
    for block in filter(None, body.split("\n\n")):
        fields = dict(line.split(": ", 1) for line in block.splitlines())
        found.append((fields["event"], fields.get("id", ""), json.loads(fields["data"])))
    return found
