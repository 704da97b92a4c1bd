"""aflow reads the history of a team that used Metaflow as Metaflow does: from the folder
`.metaflow`, from S3, through the metadata services of Metaflow and of aflow, and from the tables
of Metaflow's service. A failed run of the history is resumed.

`scripts/peer` installs Metaflow into .peer; without it these tests are skipped.
"""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from tests.compat.peer import Forks, call, needs_peer
from tests.server.conftest import Daemon
from tests.support.postgres import new_schema
from tests.support.s3 import ACCESS, S3Bucket
from tests.support.servers import Server
from tests.support.service import InThread

pytestmark = [needs_peer, pytest.mark.timeout(300)]

READ = Path(__file__).with_name("read_all.py")
FLOW = """
import os, sys
from metaflow import FlowSpec, Parameter, card, catch, current, retry, step
from metaflow.cards import Markdown

class Shapes(FlowSpec):
    n = Parameter("n", default=3)
    constant = 7

    @step
    def start(self):
        self.xs = list(range(self.n))
        self.large = "x" * 300_000
        self.next(self.left, self.right)

    @card(type="blank")
    @step
    def left(self):
        current.card.append(Markdown("# Left"))
        print("  indented", flush=True)
        print("to stderr", file=sys.stderr)
        self.side = {"left": (1, 2.5, None)}
        self.next(self.body, foreach="xs")

    @retry(times=1, minutes_between_retries=0)
    @step
    def body(self):
        if self.input == 1 and current.retry_count == 0:
            raise ValueError("once")
        self.inner = ["a", "b"]
        self.next(self.nested, foreach="inner")

    @step
    def nested(self):
        self.y = f"{self.foreach_stack()[0][0]}{self.index}"
        self.next(self.inside)

    @step
    def inside(self, inputs):
        self.ys = [each.y for each in inputs]
        self.merge_artifacts(inputs, include=["side"])
        self.next(self.join)

    @step
    def join(self, inputs):
        self.all = [each.ys for each in inputs]
        self.merge_artifacts(inputs, include=["side"])
        self.next(self.both)

    @step
    def right(self):
        self.side = "right"
        self.next(self.both)

    @step
    def both(self, inputs):
        self.all, self.side = inputs.join.all, inputs.join.side
        self.next(self.end)

    @step
    def end(self):
        if self.n == 2 and not os.path.exists("mended"):
            raise KeyError("at the end")
        print("ended", self.all, self.n, self.constant)

if __name__ == "__main__":
    Shapes()
"""


class Team:
    """A folder in which both systems are used, with the same settings."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.folder = folder
        self.settings = {
            f"{prefix}_{name}": value
            for prefix in ("METAFLOW", "AFLOW")
            for name, value in {
                "CLIENT_CACHE_PATH": str(folder / "cache"), "HOME": str(folder), **settings,
            }.items()
        }  # fmt: skip
        self._read: dict[str, str] = {}
        self._forks = Forks(**self.settings, **ACCESS)
        (folder / "flow.py").write_text(FLOW)

    def theirs(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a program with Metaflow's Python."""
        return self._forks.run(self.folder, *words)

    def ours(self, *words: str | Path, **more: str) -> subprocess.CompletedProcess[str]:
        """Run a command of aflow."""
        return call(self.folder, sys.executable, *words, **{**self.settings, **ACCESS, **more})

    def close(self) -> None:
        """Stop the process from which Metaflow's processes are forked."""
        self._forks.close()

    def history(self) -> list[str]:
        """Two runs of Metaflow: one that succeeded, one that failed."""
        runs = []
        for words in (("--n", "1"), ("--n", "2")):
            self.theirs("flow.py", "--no-pylint", "run", "--run-id-file", "id", *words)
            runs.append((self.folder / "id").read_text())
        return runs

    def check(self, runs: list[str], **more: str) -> None:
        """Check that both systems return the same for the runs."""
        for run in runs:
            if run not in self._read:
                self._read[run] = self.theirs(READ, f"Shapes/{run}").stdout
            ours = self.ours(READ, f"Shapes/{run}", **more)
            assert 0 == ours.returncode, ours.stderr
            expected, found = json.loads(self._read[run]), json.loads(ours.stdout)
            for name, task in expected.pop("tasks").items():
                assert task == found["tasks"].pop(name), name
            assert {} == found.pop("tasks")
            assert expected == found

    def check_resumed(self, failed: str) -> None:
        """Check that aflow resumes the failed run where it failed."""
        (self.folder / "mended").touch()
        resumed = self.ours("-m", "aflow", "resume", "flow.py", "--origin-run-id", failed)
        assert 0 == resumed.returncode, resumed.stdout + resumed.stderr
        assert "ended [['00', '01'], ['10', '11']] 2 7" in resumed.stdout
        assert ["end"] == sorted(
            {line.split("/")[1] for line in resumed.stdout.splitlines() if "is starting" in line}
        )
        again = self.ours("-m", "aflow", "resume", "flow.py", "body", "--origin-run-id", failed)
        assert "ended [['00', '01'], ['10', '11']] 2 7" in again.stdout, again.stderr


@pytest.fixture
def new_team() -> Iterator[Callable[..., Team]]:
    """A factory of teams, with the arguments of `Team`."""
    with ExitStack() as stack:
        yield lambda *where, **settings: stack.enter_context(closing(Team(*where, **settings)))


@pytest.mark.slow
def test_the_folder_of_metaflow_is_read_and_its_run_resumed(
    new_team: Callable[..., Team], tmp_path: Path
) -> None:
    team = new_team(tmp_path)
    good, failed = runs = team.history()

    assert team.ours("-m", "aflow", "runs").stdout.count("Shapes/") == 2
    team.check(runs)
    assert not (tmp_path / ".aflow").exists(), "reading writes nothing"
    status = team.ours("-m", "aflow", "status").stdout
    assert f"Shapes  {failed}" in status
    dumped = team.ours("-m", "aflow", "dump", f"Shapes/{good}/join", "--include", "all")
    assert "[['00', '01']]" in dumped.stdout
    assert (
        "KeyError: 'at the end'" in team.ours("-m", "aflow", "logs", f"Shapes/{failed}/end").stdout
    )
    card = team.ours("-m", "aflow", "card", "get", f"Shapes/{good}/left")
    assert "Left" in card.stdout, card.stderr
    refused = team.ours("-m", "aflow", "dump", f"Shapes/{good}0")
    assert 1 == refused.returncode
    tagged = team.ours(
        "-c", f"import aflow; aflow.namespace(None); aflow.Run('Shapes/{good}').add_tag('x')"
    )
    assert "never changed" in tagged.stderr
    team.check_resumed(failed)
    listed = team.ours("-m", "aflow", "runs").stdout
    assert [1, 1, 4] == [listed.count(good), listed.count(failed), listed.count("Shapes/")]
    assert 2 == team.ours("-m", "aflow", "runs", AFLOW_HISTORY="none").stdout.count("succeeded")


SMALL = """
from metaflow import FlowSpec, step

class Shapes(FlowSpec):
    @step
    def start(self):
        self.value = {"a": (1, None), "large": b"x" * 100_000}
        print("printed")
        self.next(self.end)

    @step
    def end(self):
        self.other = sorted(self.value)

if __name__ == "__main__":
    Shapes()
"""


@pytest.mark.slow
def test_values_and_logs_in_s3_are_read(
    new_team: Callable[..., Team], s3_bucket: S3Bucket, tmp_path: Path
) -> None:
    team = new_team(
        tmp_path,
        DEFAULT_DATASTORE="s3",
        DATASTORE_SYSROOT_S3=f"s3://{s3_bucket.name}/a/prefix",
        S3_ENDPOINT_URL=s3_bucket.endpoint,
        S3_WORKER_COUNT="2",
    )
    (tmp_path / "flow.py").write_text(SMALL)
    team.theirs("flow.py", "--no-pylint", "run", "--run-id-file", "id")
    team.check([(tmp_path / "id").read_text()])


@pytest.mark.slow
def test_runs_that_are_registered_in_a_service_are_read_and_resumed(
    new_team: Callable[..., Team], postgres_server: Server, tmp_path: Path
) -> None:
    database = f"sqlite:///{tmp_path}/service.db"
    theirs = InThread(database, own=False)
    where = {"DEFAULT_METADATA": "service", "SERVICE_URL": theirs.url}
    team = new_team(tmp_path, **where)
    runs = team.history()
    team.check(runs)
    ours = InThread(database)
    team.check(runs, AFLOW_SERVICE_URL=ours.url)
    tables = Tables(new_schema(postgres_server))
    tables.fill(ours.url)
    team.check(runs, AFLOW_DEFAULT_METADATA=tables.url)

    team.check_resumed(runs[1])
    listed = team.ours("-m", "aflow", "runs").stdout
    theirs.stop()
    ours.stop()

    assert 4 == listed.count("Shapes/"), listed


class Tables:
    """The tables of Metaflow's service, in a separate schema."""

    COLUMNS = {
        "flows_v3": "flow_id text, ",
        "runs_v3": "flow_id text, run_number bigint, run_id text, last_heartbeat_ts bigint, ",
        "steps_v3": "flow_id text, run_number bigint, run_id text, step_name text, ",
        "tasks_v3": "flow_id text, run_number bigint, run_id text, step_name text, task_id bigint, "
        "task_name text, last_heartbeat_ts bigint, ",
        "metadata_v3": "flow_id text, run_number bigint, run_id text, step_name text, "
        "task_id bigint, task_name text, field_name text, value text, type text, ",
        "artifact_v3": "flow_id text, run_number bigint, run_id text, step_name text, "
        "task_id bigint, task_name text, name text, location text, ds_type text, sha text, "
        "type text, content_type text, attempt_id smallint, ",
    }
    ALL = "user_name text, ts_epoch bigint, tags jsonb, system_tags jsonb"

    def __init__(self, url: str) -> None:
        import psycopg

        self.url = url
        self._connection = psycopg.connect(url.partition("?")[0], autocommit=True)
        self._connection.execute("DROP SCHEMA IF EXISTS metaflow CASCADE")
        self._connection.execute("CREATE SCHEMA metaflow")
        for table, columns in self.COLUMNS.items():
            self._connection.execute(
                f"CREATE TABLE metaflow.{table} ({columns}{self.ALL})".encode()
            )

    def fill(self, service: str) -> None:
        """Copy the registrations of a service into the tables."""

        def got(path: str) -> Any:
            with urllib.request.urlopen(f"{service}{path}") as answer:
                return json.load(answer)

        flow = "/flows/Shapes"
        self._put("flows_v3", got("/flows?_registered=1"))
        for run in got(f"{flow}/runs"):
            path = f"{flow}/runs/{run['run_number']}"
            self._put("runs_v3", [run])
            steps = got(f"{path}/steps")
            self._put("steps_v3", steps)
            for step in steps:
                self._put("tasks_v3", got(f"{path}/steps/{step['step_name']}/tasks"))
            self._put("metadata_v3", got(f"{path}/metadata"))
            self._put("artifact_v3", got(f"{path}/artifacts"))
        self._connection.close()

    def _put(self, table: str, rows: list[dict[str, Any]]) -> None:
        names = [each.split()[0] for each in (self.COLUMNS[table] + self.ALL).split(", ")]
        values = ", ".join(["%s"] * len(names))
        query = f"INSERT INTO metaflow.{table} ({', '.join(names)}) VALUES ({values})"
        for row in rows:
            lists = {name: json.dumps(row[name]) for name in ("tags", "system_tags")}
            reported = {**row, **lists}
            self._connection.execute(query.encode(), [reported.get(name) for name in names])


SUMS = """
from metaflow import FlowSpec, Parameter, card, current, step
from metaflow.cards import Markdown

class Sums(FlowSpec):
    n = Parameter("n", default=2)

    @step
    def start(self):
        self.xs = list(range(self.n))
        self.next(self.double, foreach="xs")

    @card(type="blank")
    @step
    def double(self):
        current.card.append(Markdown("# Doubled"))
        print("doubling", self.input)
        self.y = self.input * 2
        self.next(self.join)

    @step
    def join(self, inputs):
        self.total = sum(each.y for each in inputs)
        self.next(self.end)

    @step
    def end(self):
        assert self.n < 3, "too many"

if __name__ == "__main__":
    Sums()
"""


def raw(server: Daemon, path: str) -> tuple[int, bytes]:
    """Return the status and the bytes of a response."""
    connection = server.connection()
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {server.token}"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


@pytest.mark.slow
def test_a_server_shows_the_runs_of_metaflow_and_changes_none(
    new_team: Callable[..., Team], tmp_path: Path
) -> None:
    team = new_team(tmp_path)
    (tmp_path / "flow.py").write_text(SUMS)
    runs = []
    for number in ("2", "3"):
        team.theirs("flow.py", "--no-pylint", "run", "--run-id-file", "id", "--n", number)
        runs.append((tmp_path / "id").read_text())
    good, failed = runs
    server = Daemon(tmp_path)
    server.begin()

    def got(path: str) -> Any:
        status, found = server.ask("GET", f"/v1/{path}")
        assert 200 == status, found
        return found

    try:
        listed = got("search")["runs"]
        assert [failed, good] == [each["run"] for each in listed]
        assert ["failed", "succeeded"] == [each["state"] for each in listed]
        assert {"metaflow"} == {each["recorded_by"] for each in listed}
        assert listed[0]["read_from"] == f"local@{tmp_path / '.metaflow'}"
        assert [good] == [e["run"] for e in got("search?filter=state:succeeded")["runs"]]
        assert {"metaflow"} == {each["recorded_by"] for each in got("runs")["runs"]}
        assert "Sums" == got("flows")["flows"][0]["flow"]

        run = f"runs/Sums/{good}"
        overview = got(f"{run}/overview")
        assert {"start", "double", "join", "end"} == {e["step"] for e in overview["steps"]}
        assert [{"name": "n", "value": "2", "default": None}] == overview["parameters"]
        assert "too many" in str(got(f"runs/Sums/{failed}/overview")["failures"])
        tasks = got(f"{run}/task-page?step=double")["tasks"]
        assert 2 == len(tasks)
        task = got(f"{run}/tasks/{tasks[0]['task']}")
        assert "y" in {each["name"] for each in task["artifacts"]}
        values = [
            pickle.loads(raw(server, f"/v1/{run}/tasks/{each['task']}/artifacts/y")[1])
            for each in tasks
        ]
        assert [0, 2] == sorted(values)
        lines = [each["text"] for each in got(f"{run}/log?step=double")["lines"]]
        assert ["doubling 0", "doubling 1"] == sorted(lines)
        cards = got(f"{run}/cards")["cards"]
        assert ["double", "double"] == [each["step"] for each in cards]
        page = got(f"{run}/tasks/{cards[0]['task']}/cards/{cards[0]['name']}")
        assert "metaflow_card_update" in page, "a page of Metaflow's own"

        for method, path, body in [
            ("PATCH", f"{run}/tags", b'{"add": ["x"]}'),
            ("DELETE", run, b""),
        ]:
            status, said = server.ask(method, f"/v1/{path}", body)
            assert (400, True) == (status, "never changed" in str(said)), said
        status, said = server.ask("DELETE", f"/v1/{run}/records")
        assert (409, True) == (status, "only shown here" in str(said)), said
        assert {"runs": []} == got(f"deletion?runs=Sums/{good}")
    finally:
        server.process.terminate()
        server.process.communicate(timeout=60)


def test_a_server_reads_no_folder_that_a_record_names(
    new_team: Callable[..., Team], tmp_path: Path
) -> None:
    service = InThread(f"sqlite:///{tmp_path}/service.db", own=False)
    settings = {"AFLOW_HISTORY": service.url}
    where = {"DEFAULT_METADATA": "service", "SERVICE_URL": service.url}
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    registering = new_team(elsewhere, **where)
    (elsewhere / "flow.py").write_text(SMALL)
    registering.theirs("flow.py", "--no-pylint", "run", "--run-id-file", "id")
    run = (elsewhere / "id").read_text()

    def asked(**more: str) -> tuple[int, bytes]:
        server = Daemon(tmp_path)
        server.begin(**settings, **more)
        try:
            _, listed = server.ask("GET", f"/v1/runs/Shapes/{run}/tasks")
            (task,) = [each["task"] for each in listed["tasks"] if each["step"] == "start"]
            return raw(server, f"/v1/runs/Shapes/{run}/tasks/{task}/artifacts/value")
        finally:
            server.process.terminate()
            server.process.communicate(timeout=60)

    try:
        status, said = asked()
        assert 200 != status
        assert "which a server does not read" in str(said), said
        settings["AFLOW_HISTORY"] = f"{service.url},{elsewhere}"
        assert 200 == asked()[0]
    finally:
        service.stop()
