"""Guarantees of the file metadata store beyond the contract: concurrent and killed processes,
indexes and descriptors."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import IO, Any

import pytest

from aflow.errors import VersionConflict
from aflow.metadata import sql as rows
from aflow.metadata import sqlite
from aflow.metadata.base import Batch
from aflow.metadata.sql import statements
from aflow.metadata.sqlite import SqliteMetadata
from tests.contracts.metadata_files import RUN, a_batch, check_integrity, every_answer, filled


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "folder" / "metadata.db"


# ------------------------------------------------------------------ processes

PRELUDE = """
import sys
from pathlib import Path
from aflow.errors import VersionConflict
from aflow.metadata.sqlite import SqliteMetadata
from tests.contracts.metadata_files import RUN, a_batch
path, name = Path(sys.argv[1]), sys.argv[2]
"""


def python(code: str, *arguments: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", PRELUDE + code, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )


def output(process: subprocess.Popen[bytes]) -> IO[bytes]:
    assert process.stdout is not None
    return process.stdout


def all_at_once(code: str, path: Path, names: str) -> list[list[str]]:
    """Run the code in one process per name, started simultaneously, and return their output."""
    racers = [python(code, path, name) for name in names]
    for racer in racers:
        assert b"ready\n" == output(racer).readline()
    for racer in racers:
        assert racer.stdin is not None
        racer.stdin.write(b"\n")
        racer.stdin.flush()
    printed = [racer.communicate()[0].decode().split() for racer in racers]
    assert [0] * len(racers) == [racer.returncode for racer in racers]
    return printed


OPENS = """
print("ready", flush=True)
sys.stdin.readline()
store = SqliteMetadata(path)
print(store.create_run(RUN._replace(run=name), b"").key)
store.close()
"""


@pytest.mark.parametrize("_round", range(3))
def test_processes_that_begin_a_database_at_once_all_find_it_made(path: Path, _round: int) -> None:
    keys = all_at_once(OPENS, path, "abcd")

    assert [["1"], ["2"], ["3"], ["4"]] == sorted(keys)
    check_integrity(path)


COMMITS = """
store = SqliteMetadata(path, durability="process")
run = store.create_run(RUN._replace(run=name), b"")
print("ready", flush=True)
sys.stdin.readline()
for number in range(100):
    store.commit(run.key, number, a_batch(number))
store.close()
"""


def test_processes_commit_to_different_runs_at_once(path: Path) -> None:
    all_at_once(COMMITS, path, "ab")

    store = SqliteMetadata(path)
    for name in "ab":
        run = store.run("Flow", name)
        assert run is not None
        assert 100 == run.version
        assert [b"%d" % number for number in range(100)] == list(store.journal(run.key))
    store.close()
    check_integrity(path)


RACES = """
store = SqliteMetadata(path, durability="process")
print("ready", flush=True)
sys.stdin.readline()
for number in range(50):
    try:
        store.commit(1, number, a_batch(number))
    except VersionConflict:
        continue
    print(number)
"""


def test_of_processes_that_commit_on_one_version_one_wins(path: Path) -> None:
    filled(path, batches=0)
    won = all_at_once(RACES, path, "abc")

    assert sorted(map(str, range(50))) == sorted(number for each in won for number in each)
    check_integrity(path)


COMMITS_UNTIL_KILLED = """
store = SqliteMetadata(path, durability="process")
run = store.run("Flow", "1") or store.create_run(RUN, b"")
number = run.version
while True:
    store.commit(run.key, number, a_batch(number))
    number += 1
    print(number, flush=True)
"""


def killed_while_it_commits(path: Path, commits: int) -> int:
    """Kill a process after this many commits, and return the last version that it printed."""
    writer = python(COMMITS_UNTIL_KILLED, path, "")
    for _ in range(commits):
        output(writer).readline()
    writer.kill()
    rest = writer.communicate()[0].split()
    assert -signal.SIGKILL == writer.returncode
    return int(rest[-1]) if rest else commits


def test_a_process_killed_while_it_commits_leaves_whole_commits(path: Path) -> None:
    for commits in (1, 5, 10, 25):
        reported = killed_while_it_commits(path, commits)
        store = SqliteMetadata(path)
        run = store.run("Flow", "1")
        store.close()

        assert run is not None
        assert reported <= run.version
        check_integrity(path)


def test_a_killed_writer_locks_nobody_out(path: Path) -> None:
    run = filled(path)
    dies = "import os, signal\n" + (
        "store = SqliteMetadata(path)\n"
        "with store._transaction() as db:\n"
        "    db.execute('UPDATE runs SET version = 99')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = python(dies, path, "")
    killed.communicate()
    assert -signal.SIGKILL == killed.returncode

    store = SqliteMetadata(path)
    assert 11 == store.commit(run.key, 10, a_batch(10))
    store.close()
    check_integrity(path)


def test_a_log_that_is_deleted_after_a_crash_takes_whole_commits_with_it(path: Path) -> None:
    version = killed_while_it_commits(path, 120)
    Path(f"{path}-wal").unlink()
    store = SqliteMetadata(path)
    run = store.run("Flow", "1")
    if run is not None:
        check_integrity(path)
        assert run.version < version
    with pytest.raises(VersionConflict):
        store.commit(1, version, Batch())
    store.close()


# ------------------------------------------------------------------ indexes and descriptors


MAY_SCAN = {
    "flows": ["SCAN flows"],  # it is asked for all of them
    "add_run": ["SCAN retired_keys"],  # one row
    "retire_key": ["SCAN retired_keys"],
    "shorten_leases": ["SCAN leases"],  # once after a start of the machine
    "shorten_workers": ["SCAN workers USING COVERING INDEX workers_by_end"],
    "workers": ["SCAN workers"],  # it is asked for all of them, and the others are soon deleted
}
# Flows and steps are few, and so are the runs that are looked up by their keys.
MAY_SORT = {"flows": 1, "steps": 1, "progress": 1, "runs_of_keys": 1}


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind in ("read", "write") for name in statements(kind)]
)
def test_every_statement_is_answered_from_an_index(kind: str, name: str) -> None:
    sql = statements(kind)[name].replace("{columns}", rows.COLUMNS)
    db = sqlite.connect(None, synchronous="FULL", read_only=False)
    db.create_function("lease_now", 0, lambda: 0.0)
    plan = [row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {sql}", nothing_for(sql))]
    db.close()

    scans = [line for line in plan if line.startswith("SCAN") and "VIRTUAL TABLE" not in line]
    assert MAY_SCAN.get(name, []) == scans
    sorts = [line for line in plan if "TEMP B-TREE" in line]
    assert MAY_SORT.get(name, 0) == len(sorts)


def test_the_tasks_of_a_step_are_found_without_those_of_others() -> None:
    sql = statements("read")["tasks_of_step"].replace("{columns}", rows.COLUMNS)
    db = sqlite.connect(None, synchronous="FULL", read_only=False)
    db.create_function("lease_now", 0, lambda: 0.0)
    plan = [row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {sql}", nothing_for(sql))]
    db.close()

    assert "SEARCH t USING INDEX tasks_by_step (run_key=? AND step=? AND task>?)" == plan[0]


def nothing_for(sql: str) -> Any:
    """Return values for a statement's parameters, which do not affect its plan."""
    if named := re.findall(r":([a-z_]+)", sql):
        return dict.fromkeys(named)
    numbered = [int(number) for number in re.findall(r"\?(\d+)", sql)]
    return [None] * (max(numbered) if numbered else sql.count("?"))


def open_databases() -> list[str]:
    """Return the database files that this process has open."""
    if not Path("/proc/self/fd").exists():
        pytest.skip("this system does not list the descriptors of a process")
    names = []
    for number in os.listdir("/proc/self/fd"):
        try:
            names.append(os.readlink(f"/proc/self/fd/{number}"))
        except FileNotFoundError:  # the descriptor of the listing itself
            continue
    return sorted(name for name in names if ".db" in name)


def test_a_closed_store_holds_no_file(path: Path) -> None:
    before = open_databases()
    store = SqliteMetadata(path)
    run = store.create_run(RUN, b"")
    store.commit(run.key, 0, a_batch(0, size=1000))
    stream = store.tasks(run.key)
    next(stream)
    every_answer(store, run.key)
    assert open_databases() != before
    store.close()
    del stream

    assert before == open_databases()
    assert not Path(f"{path}-wal").exists()
