"""`aflow server` and `aflow submit`, through the command line."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import ssl
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from aflow.scheduler.states import RunState
from aflow.task import code_package
from tests.server.conftest import FLOW, Daemon, make_certificate
from tests.support.disks import fill, small_disk
from tests.support.postgres import new_schema
from tests.support.servers import postgres_for_one
from tests.support.waiting import PATIENCE, wait_until

WAITS = """
class Flow_(FlowSpec):
    @step
    def start(self):
        with open(os.environ["BEGUN"], "w") as file:
            file.write("yes")
        if "ENDS" not in os.environ:
            signal.pause()
        self.next(self.end)

    @step
    def end(self):
        pass
"""


def test_a_flow_that_is_submitted_runs_with_its_parameters(daemon: Daemon) -> None:
    ran = daemon.submit("flow.py", "--alpha", "0.5", "--tag", "a", "--wait")

    run = ran.out.splitlines()[0]
    assert (0, f"{run} has succeeded.") == (ran.code, ran.err.strip())
    _, reported = daemon.ask("GET", f"/v1/runs/{run}")
    assert ("succeeded", ["a"], ["start", "end"]) == (
        reported["state"],
        reported["tags"],
        [each["step"] for each in reported["steps"]],
    )
    _, listed = daemon.ask("GET", "/v1/runs?flow=Flow_&limit=1")
    assert [reported["run"]] == [each["run"] for each in listed["runs"]]
    _, first = daemon.ask("GET", f"/v1/runs/{run}/tasks?limit=1")
    number = first["tasks"][0]["task"]
    _, others = daemon.ask("GET", f"/v1/runs/{run}/tasks?after={number}")
    assert [("start", "succeeded", 1), ("end", "succeeded", 1)] == [
        (each["step"], each["state"], each["attempts"]) for each in first["tasks"] + others["tasks"]
    ]
    assert 0 == daemon.stop()
    daemon.check()


def test_a_parameter_that_cannot_be_read_is_reported_and_nothing_has_run(daemon: Daemon) -> None:
    ran = daemon.submit("flow.py", "--alpha", "many")

    assert 1 == ran.code
    assert "alpha" in ran.err
    assert "many" in ran.err
    assert (200, {"runs": []}) == daemon.ask("GET", "/v1/runs?flow=Flow_")


def test_a_run_can_be_cancelled_once(folder: Daemon) -> None:
    folder.write(WAITS)
    begun = folder.path / "begun"
    os.mkfifo(begun)
    folder.begin(BEGUN=str(begun))
    run = folder.submit("flow.py").out.strip()
    assert "yes" == begun.read_text()

    assert 0 == folder.call("cancel", run).code
    assert "cancelled" == folder.ask("GET", f"/v1/runs/{run}?wait=60")[1]["state"]
    again = folder.call("cancel", run)
    assert (1, True) == (again.code, "it has ended" in again.err)
    assert (2, True) == ((wrong := folder.call("cancel", "../x")).code, "Invalid" in wrong.err)
    assert 0 == folder.stop()
    folder.check()


def test_runs_that_a_server_has_left_go_on_with_the_next_one(folder: Daemon) -> None:
    folder.write(WAITS)
    begun = folder.path / "begun"
    os.mkfifo(begun)
    folder.begin("--grace", "3600", BEGUN=str(begun))
    run = folder.submit("flow.py").out.strip()
    assert "yes" == begun.read_text()

    folder.process.send_signal(signal.SIGTERM)
    assert (503, ["error"]) == folder.until_stopping()
    assert [503, 200] == [folder.ask("GET", path)[0] for path in ("/readyz", "/healthz")]
    folder.process.send_signal(signal.SIGINT)  # a second signal: now

    assert 0 == folder.stop()
    assert RunState.RUNNING == folder.latest()[0]
    folder.check()
    folder.begin(BEGUN=str(begun), ENDS="1")
    assert "yes" == begun.read_text()
    assert "succeeded" == folder.ask("GET", f"/v1/runs/{run}?wait=60")[1]["state"]
    assert 0 == folder.stop()
    folder.check()


def test_runs_of_a_server_that_was_killed_are_taken_up_by_another(folder: Daemon) -> None:
    folder.write(WAITS)
    begun = folder.path / "begun"
    os.mkfifo(begun)
    folder.begin(BEGUN=str(begun))
    run = folder.submit("flow.py").out.strip()
    assert "yes" == begun.read_text()
    other = Daemon(folder.path)
    other.begin(BEGUN=str(begun), ENDS="1")

    folder.process.kill()
    kill_runs(folder)
    folder.process.communicate()
    foreign = name_other_code(folder)
    folder.let_time_pass()

    assert "yes" == begun.read_text()
    assert "succeeded" == other.ask("GET", f"/v1/runs/{run}?wait=60")[1]["state"]
    assert 0 == other.stop()
    assert not foreign.exists()
    folder.check()


def name_other_code(folder: Daemon) -> Path:
    """Have the record of a run name a folder with other code, other words, and another datastore,
    as one may who writes to the metadata; the file that the code would make."""
    code, mark = folder.path / ("e" * 64), folder.path / "foreign code has run"
    code.mkdir()
    (code / "flow.py").write_text(f"open({str(mark)!r}, 'w')\n")
    with (
        closing(sqlite3.connect(folder.path / ".aflow/metadata.db")) as database,
        database,
    ):
        [text] = database.execute("SELECT settings FROM runs").fetchone()
        settings = json.loads(text)
        settings["code"]["key"] = str(code)
        settings["argv"] = ["--datastore-root", str(code), "run"]
        settings["storage"] = code.as_uri()
        database.execute("UPDATE runs SET settings = ?", (json.dumps(settings),))
    return mark


def test_a_run_that_nobody_has_submitted_is_not_recovered(folder: Daemon) -> None:
    assert 0 == folder.run("--run-id", "foreign").code
    with (
        closing(sqlite3.connect(folder.path / ".aflow/metadata.db")) as database,
        database,
    ):
        database.execute("UPDATE runs SET state = 'running', finished_at = NULL")
        database.execute(
            "INSERT INTO leases (run_key, owner, until) SELECT key, 'server/x', 0 FROM runs"
        )
    folder.begin()
    assert folder.process.stderr is not None

    assert any(
        "Flow_/foreign was not submitted" in line
        for line in iter(folder.process.stderr.readline, "")
    )

    assert 0 == folder.stop()


def test_parameters_of_a_run_are_on_no_command_line(folder: Daemon) -> None:
    folder.write(WAITS.replace("    @step", "    word = Parameter('word')\n\n    @step", 1))
    begun = folder.path / "begun"
    os.mkfifo(begun)
    folder.begin(BEGUN=str(begun))
    fields = {"package": folder.package(), "script": "flow.py", "parameters": {"word": "hunter2"}}
    status, reported = folder.order(**fields)
    assert 201 == status, reported
    assert "yes" == begun.read_text()

    lines = [file.read_bytes() for file in Path("/proc").glob("[0-9]*/cmdline") if readable(file)]

    assert [] == [line for line in lines if b"hunter2" in line]
    assert [line for line in lines if b"--aflow-argv=" in line]
    assert 0 == folder.call("cancel", reported["run"]).code
    assert 0 == folder.stop()


def readable(file: Path) -> bool:
    try:
        return bool(file.read_bytes())
    except OSError:  # it has ended meanwhile
        return False


def test_a_run_is_cancelled_by_a_server_that_has_not_begun_it(folder: Daemon) -> None:
    folder.write(WAITS)
    begun = folder.path / "begun"
    os.mkfifo(begun)
    folder.begin(BEGUN=str(begun))
    run = folder.submit("flow.py").out.strip()
    assert "yes" == begun.read_text()
    other = Daemon(folder.path)
    other.begin()

    assert 0 == other.call("cancel", run).code
    assert "cancelled" == other.ask("GET", f"/v1/runs/{run}?wait=60")[1]["state"]
    assert [0, 0] == [folder.stop(), other.stop()]
    folder.check()


def test_a_run_whose_code_cannot_be_loaded_any_more_can_be_ended(folder: Daemon) -> None:
    folder.write(
        "if os.path.exists(os.environ.get('GONE', '')): raise ImportError('libfoo.so.3')\n" + WAITS
    )
    begun, gone = folder.path / "begun", folder.path / "gone"
    os.mkfifo(begun)
    folder.begin(BEGUN=str(begun), GONE=str(gone))
    run = folder.submit("flow.py").out.strip()
    assert "yes" == begun.read_text()
    other = folder.submit("flow.py").out.strip()
    assert "yes" == begun.read_text()
    gone.touch()
    kill_runs(folder)

    # A moment after its death the run is still somebody's, and the server sees that it ends.
    assert f"{run} is being stopped.\n" == folder.call("cancel", run).out
    folder.expire_leases()
    reported = folder.ask("GET", f"/v1/runs/{run}?wait=60")[1]
    assert ("cancelled", "The run was cancelled over HTTP.") == (
        reported["state"],
        reported["reason"],
    )
    # One that nobody drives has ended when the command has: here without any server.
    ran = folder.finish(folder.start_aflow("cancel", other))
    assert f"{other} is cancelled: no coordinator drove it.\n" == ran.out, ran.err
    reported = folder.ask("GET", f"/v1/runs/{other}")[1]
    assert "cancelled" == reported["state"]
    assert 0 == folder.stop()


def kill_runs(folder: Daemon) -> None:
    """Kill the processes of all runs."""
    for pid in runs_in(folder.path):
        with suppress(ProcessLookupError):  # it has ended with another one of them
            os.kill(pid, signal.SIGKILL)


def runs_in(folder: Path) -> list[int]:
    """Return the processes of runs that a server has started, by their command lines."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:  # it has ended while we looked
                continue
            if b"run" in words and any(str(folder).encode() in word for word in words):
                found.append(int(entry.name))
    return found


def test_a_server_whose_metadata_are_away_lives_and_is_not_ready(folder: Daemon) -> None:
    with postgres_for_one() as postgres:
        store = (folder.path / "store").as_uri()
        folder.begin("--metadata", new_schema(postgres), "--storage", store)
        assert (200, {"status": "ready"}) == folder.ask("GET", "/readyz")
        postgres.kill()

        def refused() -> Any:
            """The answer, once the server says that it is not ready: a process of PostgreSQL may
            answer once more after the first one was killed."""
            status, reported = folder.ask("GET", "/readyz")
            return reported if status == 503 else None

        reported = wait_until(refused)
        assert ["error"] == list(reported)
        assert "secret" not in reported["error"]
        assert 200 == folder.ask("GET", "/healthz")[0]
        folder.process.kill()  # asked to stop, it would wait until its threads have given up
        folder.process.communicate()


def test_a_server_that_others_can_reach_wants_a_token(folder: Daemon) -> None:
    refused = folder.finish(folder.start_aflow("server", "--host", "0.0.0.0", "--port", "0"))
    assert (2, True) == (refused.code, "AFLOW_SERVICE_AUTH_KEY" in refused.err)

    folder.begin(AFLOW_SERVICE_AUTH_KEY="one,other")
    assert 401 == folder.ask("GET", "/v1/runs?flow=Flow_")[0]
    assert 401 == folder.ask("GET", "/v1/runs?flow=Flow_", Authorization="Bearer on")[0]
    assert 401 == folder.ask("GET", "/v1/runs?flow=Flow_", Authorization="Basic one")[0]
    assert 200 == folder.ask("GET", "/v1/runs?flow=Flow_", Authorization="Bearer other")[0]
    assert 200 == folder.ask("GET", "/healthz")[0]
    assert 1 == folder.submit("flow.py", AFLOW_SERVICE_AUTH_KEY="two").code
    assert 0 == folder.submit("flow.py", "--wait", AFLOW_SERVICE_AUTH_KEY="one").code
    assert 0 == folder.stop()


def test_submit_without_a_server_says_what_to_do(folder: Daemon) -> None:
    ran = folder.finish(folder.start_aflow("submit", "flow.py", "--server", "http://127.0.0.1:1"))

    assert 1 == ran.code
    assert "start one with `aflow server`" in ran.err
    named = ("submit", "flow.py", "--server", "http://user:canary@127.0.0.1:1")
    ran = folder.finish(folder.start_aflow(*named))
    assert (2, True, False) == (ran.code, "is named with a user" in ran.err, "canary" in ran.err)


def until_logged(daemon: Daemon, words: str) -> None:
    """Read the log of the daemon until a line contains these words."""
    assert daemon.process.stderr is not None
    assert any(words in line for line in daemon.process.stderr)


def test_the_metadata_service_speaks_tls_and_names_its_version_in_all_answers(
    folder: Daemon,
) -> None:
    make_certificate(folder.path)
    words = ("metadata-service", "--port", "0", "--tls-cert", "cert.pem", "--tls-key", "key.pem")
    folder.process = folder.start_aflow(*words)
    assert folder.process.stdout is not None
    folder.url = folder.process.stdout.readline().split()[-1]
    assert folder.url.startswith("https://")
    connection = folder.connection()
    for path, status in (("/ping", 200), ("/flows/F", 404), ("/flows/F/cats", 404), ("/cats", 404)):
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read()
        assert (status, "cats" in path) == (answer.status, b"message" in body)
        if path != "/cats":  # which is no path of the service
            assert "2.5.1" == answer.headers["METADATA_SERVICE_VERSION"]
    connection.close()
    assert 0 == folder.stop()


def test_a_server_speaks_tls_with_a_certificate_that_clients_trust(folder: Daemon) -> None:
    make_certificate(folder.path)
    tls = ("--tls-cert", "cert.pem", "--tls-key")
    wrong = folder.finish(folder.start_aflow("server", "--port", "0", *tls, "cert.pem"))
    assert (2, True) == (wrong.code, "TLS cannot use the certificate cert.pem" in wrong.err)

    folder.begin(*tls, "key.pem")
    assert folder.url.startswith("https://")
    assert 1 == folder.submit("flow.py").code
    assert 0 == folder.submit("flow.py", "--wait", SSL_CERT_FILE="cert.pem").code
    strange = folder.call("status")  # at once: waiting does not make a certificate another
    assert (1, True) == (strange.code, "cannot be trusted" in strange.err), strange.err

    before = ssl.get_server_certificate(folder.address)
    (folder.path / "key.pem").write_text("no key")
    until_logged(folder, "the earlier ones stay")
    assert before == ssl.get_server_certificate(folder.address)
    make_certificate(folder.path)
    until_logged(folder, "is used from now on")
    assert before != ssl.get_server_certificate(folder.address)
    assert 0 == folder.stop()


GATED = """
class Flow_(FlowSpec):
    gate = Parameter("gate")

    @step
    def start(self):
        open(self.gate).read()
        self.next(self.end)

    @step
    def end(self):
        pass
"""


def test_a_full_disk_ends_neither_the_server_nor_what_can_be_read(
    folder: Daemon, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    large = elsewhere / "large.py"
    large.write_text(f"x = {os.urandom(200_000).hex()!r}\n")
    os.mkfifo(elsewhere / "gate")
    run: dict[str, Any] = {"script": "flow.py", "flow": "Flow_"}
    schedule = {"cron": "0 0 1 1 ? *", "run": run}
    with small_disk(folder.path, "24m"):
        folder.write(FLOW)
        folder.write(GATED, "gated.py")
        folder.begin()
        code = run["package"] = folder.package()
        going = folder.submit("gated.py", "--gate", str(elsewhere / "gate")).out.strip()
        filler = fill(folder.path)

        packed = code_package.pack({"large.py": large})
        refused = [
            folder.ask("POST", "/v1/packages", packed, "application/x-tar"),
            folder.order(package=code, script="flow.py"),
            folder.ask("PUT", "/v1/schedules/x", json.dumps(schedule).encode()),
        ]
        assert [503] * 3 == [status for status, _ in refused], str(refused)
        assert all(
            "full" in reported["error"] or "No space" in reported["error"]
            for _, reported in refused
        ), refused
        for path in ("/healthz", "/v1/runs", f"/v1/runs/{going}", "/metrics", "/v1/schedules"):
            assert 200 == folder.ask("GET", path)[0], path
        assert 503 == folder.ask("GET", "/readyz")[0]
        token = folder.finish(folder.start_aflow("token", "create", "x"))
        assert (1, True) == (token.code, "the disk is full" in token.err)

        filler.unlink()
        assert 200 == folder.ask("GET", "/readyz")[0]
        (elsewhere / "gate").write_text("go on")  # what went on meanwhile has lost nothing
        assert "succeeded" == folder.ask("GET", f"/v1/runs/{going}?wait=60")[1]["state"]
        assert 0 == folder.submit("flow.py", "--wait").code
        folder.process.terminate()
        _, log = folder.process.communicate(timeout=PATIENCE)
        assert (0, False) == (folder.process.returncode, "Traceback" in log), log
        folder.check()
