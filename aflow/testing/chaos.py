"""Chaos tests: real processes on this machine, faults at random times, and a checker.

    fleet = Fleet(folder, "sqlite:////tmp/a/metadata.db", "redis://127.0.0.1:6379/0")
    fleet.write(SOURCE_OF_A_FLOW)
    report = soak(fleet, seed=7, kills=100)      # raises ChaosError if an invariant is violated

A `Fleet` is a run of a flow: a coordinator (`aflow run`, or `aflow server`) and workers, each in
its own process, and the stores and the broker that they use. `soak` kills tasks, workers,
coordinators and servers, sets their clocks, and injects additional faults of the caller, at random
times drawn from the seed. Then `check` verifies that:

- The run has ended in the expected state, and the artifacts of its tasks are those of a run without
  faults.
- Each task was committed once, according to the journal and to the records, which agree. The
  journal has no gap, and the database is intact.
- No task started again after it was committed, according to the ledger, a file that steps write to
  without aflow.
- Every blob that a manifest refers to exists and matches its digest.
- No process is left. No message is ready, leased or dead, except those of workers that were killed
  or reported too late (`late`); these are about attempts that have ended.

`scripts/soak` in aflow's repository runs it for hours. Linux only: processes are found in /proc.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import select
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn
from urllib.parse import unquote

from aflow._core.clock import SystemClock
from aflow.errors import MetadataUnavailable
from aflow.executors import protocol
from aflow.metadata.base import MetadataStore, RunRecord
from aflow.metadata.factory import open_metadata
from aflow.queue.base import Queue
from aflow.queue.factory import open_queue
from aflow.scheduler.messages import AttemptEnded, decode_events
from aflow.scheduler.states import (
    TERMINAL_ATTEMPT_STATES,
    TERMINAL_RUN_STATES,
    AttemptState,
    RunState,
)
from aflow.storage.artifacts import Manifest, digest
from aflow.storage.base import ObjectStore
from aflow.storage.blobs import BlobStore
from aflow.storage.factory import open_store
from aflow.storage.items import blobs_of_items

__all__ = ["ChaosError", "Fault", "Fleet", "Ledger", "Report", "check", "results", "soak"]


class ChaosError(AssertionError):
    """An invariant is violated: something hangs, is lost, or was done twice."""


PREAMBLE = """\
import os, signal, sys, time
from aflow import FlowSpec, JSONType, Parameter, catch, current, environment, resources, retry
from aflow import step, timeout

"""
POSTAMBLE = """

if __name__ == "__main__":
    {name}()
"""


def _fail(why: str) -> NoReturn:
    raise ChaosError(why)


def processes_in(folder: Path) -> list[int]:
    """Return the processes whose working directory is the folder or a subfolder.

    Args:
        folder: The folder of the test.
    """
    found, inside = [], folder.resolve()
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            # The kernel returns a path without links; resolving it takes ten times as long.
            if Path(os.readlink(f"/proc/{name}/cwd")).is_relative_to(inside):
                found.append(int(name))
        except OSError:  # the process has exited in the meantime
            continue
    return found


SOURCE = """
LEDGER = {path!r}

def note(what=""):
    fields = current.task_id, current.retry_count, repr(time.time()), os.getpid(), what
    line = "{{}} {{}} {{}} {{}} {{}}\\n".format(*fields)
    file = os.open(LEDGER, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(file, line.encode())
    os.close(file)

"""


class StartedAttempt(NamedTuple):
    """The start of an attempt, as the task recorded it in the ledger."""

    task: int
    attempt: int
    at: float
    pid: int
    what: str


class Ledger:
    """The file in which tasks record their starts, independently of aflow."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def source(self) -> str:
        """The code at the start of the flow's file that defines `note`."""
        return SOURCE.format(path=str(self.path))

    def lines(self) -> list[StartedAttempt]:
        """Return all complete lines of the ledger, in order."""
        if not self.path.exists():
            return []
        # Skips an incomplete last line, which a task is still writing.
        whole = self.path.read_text("utf-8").rpartition("\n")[0]
        return [_read(line) for line in whole.splitlines()]

    def begun(self) -> list[StartedAttempt]:
        """Return the lines that record starts of attempts, without those that record ends."""
        return [each for each in self.lines() if not each.what.startswith("ended")]

    def times(self) -> Mapping[int, int]:
        """Return how often each task has started."""
        return Counter(each.task for each in self.begun())


def _read(line: str) -> StartedAttempt:
    task, attempt, at, pid, what = line.split(" ", 4)
    return StartedAttempt(int(task), int(attempt), float(at), int(pid), what)


# ------------------------------------------------------------------ the fleet

PATIENCE = 120.0  # seconds after which a wait fails the test
FLOW = "Flow_"
_KINDS = ("task", "reports", "cancel", "drain")  # of messages
_FIRST_OUTGOING = 32_768  # the first port that Linux uses for outgoing connections


def wait_until(what: Callable[[], object], why: str = "it has not come to that") -> None:
    """Wait until a condition holds; raises ChaosError after PATIENCE seconds.

    Args:
        what: The condition.
        why: The message of the error.
    """
    give_up_at = SystemClock.monotonic() + PATIENCE
    while not what():
        if SystemClock.monotonic() > give_up_at:
            _fail(why)
        select.select([], [], [], 0.02)


class Fleet:
    """The processes of a run of a flow. `metadata` and `queue` are URLs; `env` are environment
    variables of all processes, such as the location of the datastore."""

    def __init__(self, folder: Path, metadata: str, queue: str, **env: str) -> None:
        self.folder = folder
        self.queue = queue
        self.ledger = Ledger(folder / "ledger")
        self.metadata_url = metadata
        self._env = env
        self.home = _made(folder / "coordinator")
        self.away = _made(folder / "workers")
        self._log = self.home / "output"  # output of coordinators and servers
        self._processes: list[subprocess.Popen[bytes]] = []
        self._metadata: MetadataStore | None = None
        self._opened: list[Any] = []  # closed by `close`

    # ------------------------------------------------------------ processes

    def write(self, source: str) -> None:
        """Write the flow's file; its steps may call `note()` to write to the ledger.

        Args:
            source: The text of the flow's file.
        """
        text = PREAMBLE + self.ledger.source + source + POSTAMBLE.format(name=FLOW)
        (self.home / "flow.py").write_text(text, "utf-8")

    def start_worker(self, *arguments: str, **env: str) -> subprocess.Popen[bytes]:
        """Start a worker, and wait until it consumes tasks.

        Args:
            *arguments: Additional arguments of the command line.
            **env: Additional environment variables.

        Returns:
            The process.
        """
        log = self.away / f"{len(self._processes)}.err"
        command = ("-m", "aflow", "worker", "--queue", self.queue, *arguments)
        process = self._start(command, self.away, log, env)
        wait_until(
            lambda: b"takes tasks of" in log.read_bytes() or process.poll() is not None,
            "the worker does not begin",
        )
        assert process.poll() is None, log.read_text("utf-8")
        return process

    def begin(
        self, *arguments: str, output: int | None = None, **env: str
    ) -> subprocess.Popen[bytes]:
        """Start a coordinator with a new run.

        Args:
            *arguments: Additional arguments of the command line.
            output: The descriptor for its stdout; None for a file.
            **env: Additional environment variables.

        Returns:
            The process.
        """
        queue = ("--executor", "queue", "--queue", self.queue)
        run = ("flow.py", "--no-pylint", "run", "--max-num-splits", "100000")
        return self._start((*run, *queue, *arguments), self.home, self._log, env, output)

    def serve(self, port: int) -> subprocess.Popen[bytes]:
        """Start a server whose runs use the workers, and wait until it listens.

        Args:
            port: The port of the server.

        Returns:
            The process.
        """
        arguments = ("-m", "aflow", "server", "--port", str(port), "--queue", self.queue)
        process = self._start(arguments, self.home, self._log, {})

        def listens() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        wait_until(lambda: listens() or process.poll() is not None, "the server does not listen")
        if process.poll() is not None:
            _fail(f"the server does not begin: {self.output()[-4000:]}")
        return process

    def submit(self, port: int) -> None:
        """Submit the run to a server.

        Args:
            port: The port of the server.
        """
        arguments = ("-m", "aflow", "submit", "flow.py", "--server", f"http://127.0.0.1:{port}")
        if self.ends(self._start(arguments, self.home, self._log, {})):
            _fail(f"the run is not taken: {self.output()[-4000:]}")

    def recover(self, **env: str) -> subprocess.Popen[bytes]:
        """Start a coordinator that recovers the run.

        Args:
            **env: Additional environment variables.

        Returns:
            The process.
        """
        run = self._run()
        arguments = ("-m", "aflow", "recover", f"{run.flow}/{run.run}")
        # Not in the record of the run, because the URL may have a password.
        own = {"AFLOW_QUEUE": self.queue, **env}
        return self._start(arguments, self.home, self._log, own)

    def _start(
        self,
        arguments: tuple[str, ...],
        folder: Path,
        log: Path,
        env: dict[str, str],
        output: int | None = None,
    ) -> subprocess.Popen[bytes]:
        own = {
            "AFLOW_DEFAULT_METADATA": self.metadata_url,
            "AFLOW_CLIENT_CACHE_PATH": str(folder / "cache"),
        }
        with log.open("ab") as file:
            process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=folder,
                env=os.environ | own | self._env | env,
                stdin=subprocess.DEVNULL,
                stdout=file if output is None else output,
                stderr=file,
            )
        self._processes.append(process)
        return process

    def output(self) -> str:
        """Return the output of coordinators and servers."""
        return self._log.read_text(errors="replace")

    def worker_output(self) -> str:
        """Return the output of workers."""
        files = sorted(self.away.glob("*.err"))
        return "".join(file.read_text(errors="replace") for file in files)

    def ends(self, process: subprocess.Popen[bytes]) -> int:
        """Wait until the process exits; raises ChaosError after PATIENCE seconds.

        Args:
            process: The process.

        Returns:
            The exit code.
        """
        try:
            return process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            _fail(f"it hangs:\n{self.output()[-4000:]}\n{self.worker_output()[-4000:]}")

    def stop_workers(self) -> None:
        """Send SIGTERM to all running processes, and wait until they exit."""
        running = [each for each in self._processes if each.poll() is None]
        for process in running:
            process.send_signal(signal.SIGCONT)
            process.send_signal(signal.SIGTERM)
        for process in running:
            self.ends(process)

    def close(self) -> None:
        """Kill all remaining processes and close all stores, even after a failed test."""
        for process in self._processes:
            if process.poll() is None:
                _end(process)
        for pid in self.orphans():
            _killed(pid)
        for each in self._opened:
            each.close()

    def orphans(self) -> list[int]:
        """Return the running processes of coordinators and workers."""
        return processes_in(self.home) + processes_in(self.away)

    # ------------------------------------------------------------ records and results

    @property
    def metadata(self) -> MetadataStore:
        """The metadata store of the run."""
        if self._metadata is None:
            self._metadata = open_metadata(self.metadata_url, read_only=True)
            self._opened.append(self._metadata)
        return self._metadata

    def record(self) -> RunRecord | None:
        """Return the record of the run; None if it does not exist yet."""
        try:
            found = self.metadata.runs(FLOW)
        except MetadataUnavailable:  # nothing has been written yet
            return None
        return self.metadata.run(FLOW, found[-1].run) if found else None

    def _run(self) -> RunRecord:
        run = self.record()
        assert run is not None, "there is a run"
        return run

    def store(self) -> ObjectStore:
        """Return the run's datastore, as seen from a machine without a cache."""
        url = self._run().settings["storage"]
        if not url.startswith("s3:"):
            return open_store(url)
        from aflow.storage.s3 import S3Store  # needs the extra aws

        with _environment(self._env):
            store = S3Store(url)
        self._opened.append(store)
        return store

    def is_over(self) -> bool:
        """Return whether the run has ended, according to its record."""
        run = self.record()
        return run is not None and run.state in TERMINAL_RUN_STATES

    def committed(self) -> set[int]:
        """Return the tasks that have succeeded, according to the records."""
        run = self.record()
        if run is None:
            return set()
        tasks = self.metadata.tasks(run.key, light=True)
        return {each.task.task for each in tasks if each.state.value == "succeeded"}

    def let_lease_pass(self) -> None:
        """Expire the lease of the run, as if its time had passed."""
        writer = open_metadata(self.metadata_url)
        assert self.record() is not None, "there is a run"
        if self.metadata_url.startswith("sqlite"):
            with sqlite3.connect(file_of(self.metadata_url)) as database:
                database.execute("UPDATE leases SET until = until - 3600")
            database.close()
        else:
            with writer._connections.one() as db:  # type: ignore[attr-defined]
                db.execute("UPDATE leases SET until = until - 3600")
        writer.close()


def file_of(url: str) -> str:
    """Return the path of the file of an sqlite URL.

    Args:
        url: The URL of the metadata store.
    """
    return unquote(url.removeprefix("sqlite:///"))


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


# ------------------------------------------------------------------ the checker

Place = tuple[str, tuple[int, ...]]  # a task: its step, and its index in each foreach around it
Results = Mapping[Place, Mapping[str, str]]  # the digests of the artifacts that each task has set


class _End(NamedTuple):
    task: int
    attempt: int
    state: AttemptState


def check(
    fleet: Fleet,
    expected: Results | None = None,
    *,
    state: RunState = RunState.SUCCEEDED,
    late: bool = False,
    clocks_agree: bool = True,
) -> None:
    """Check all invariants after the run has ended. Stops the workers first.

    Args:
        fleet: The processes of the test.
        expected: The results of a run without faults; None to skip the comparison.
        state: The expected final state of the run.
        late: Whether workers were killed, or reported too late: messages may then be left in
            topics without a reader.
        clocks_agree: Whether no clock was set: otherwise the times that processes have recorded
            are not comparable.
    """
    fleet.stop_workers()
    metadata, run = fleet.metadata, fleet.record()
    assert run is not None
    assert state is run.state, f"{run.reason}\n{fleet.output()[-4000:]}"
    ends = check_journal(metadata, run)
    if expected is not None:
        check_results(expected, results(metadata, run))
    if clocks_agree:
        check_ledger(fleet, ends)
    check_blobs(metadata, fleet.store(), run)
    check_database(fleet)
    check_machines(fleet, late)
    check_queue(fleet, run, {(end.task, end.attempt) for end in ends}, late)


def results(metadata: MetadataStore, run: RunRecord) -> Results:
    """Return the digests of the artifacts of each task that succeeded.

    Args:
        metadata: The metadata store.
        run: The record of the run.
    """
    found: dict[Place, Mapping[str, str]] = {}
    for view in metadata.tasks(run.key):
        assert view.attempt is not None
        if view.attempt.state is AttemptState.SUCCEEDED:
            manifest = Manifest.decode(view.attempt.manifest or b"")
            place = view.task.step, tuple(frame.index for frame in manifest.stack)
            assert place not in found, f"{place} was done twice"
            found[place] = {name: digest(each) for name, each in manifest.artifacts.items()}
    return found


def check_results(expected: Results, found: Results) -> None:
    """Check that the artifacts are the same.

    Args:
        expected: The results of a run without faults.
        found: The results of the run.
    """
    assert [*sorted(expected)] == [*sorted(found)]
    pairs = {place: (expected[place], found[place]) for place in expected}
    other = {place: (one, another) for place, (one, another) in pairs.items() if one != another}
    assert other == {}, other


def check_journal(metadata: MetadataStore, run: RunRecord) -> dict[_End, float]:
    """Check that each task was committed once, and that the records agree with the journal.

    Args:
        metadata: The metadata store.
        run: The record of the run.

    Returns:
        When each attempt ended, according to the journal.
    """
    batches = [*metadata.journal_after(run.key, 0)]
    versions = [version for version, _ in batches]
    assert sorted({*versions}) == versions
    assert run.version >= versions[-1]  # a commit without events is not in the journal
    events = [each for _, batch in batches if batch for each in decode_events(batch)]
    ended = [
        (_End(event.task, event.attempt, event.outcome.state), at)
        for at, event in events
        if type(event) is AttemptEnded
    ]
    assert [end for end, times in Counter(end for end, _ in ended).items() if times > 1] == []
    recorded = {
        _End(attempt.task, attempt.attempt, attempt.state)
        for view in metadata.tasks(run.key, light=True)
        if view.task.task
        for attempt in metadata.attempts(run.key, view.task.task)
    }
    assert {end for end, _ in ended} == recorded
    assert set() == {each for each in recorded if each.state not in TERMINAL_ATTEMPT_STATES}
    succeeded = Counter(end.task for end in recorded if end.state is AttemptState.SUCCEEDED)
    assert set() == {task for task, times in succeeded.items() if times > 1}
    return dict(ended)


def check_ledger(fleet: Fleet, ends: Mapping[_End, float]) -> None:
    """Check that all tasks that succeeded have started, and none after it was committed.

    Args:
        fleet: The processes of the test.
        ends: When each attempt ended, in seconds since the epoch.
    """
    committed = {end.task: at for end, at in ends.items() if end.state is AttemptState.SUCCEEDED}
    begun = fleet.ledger.begun()
    if begun:
        assert set() == set(committed) - {each.task for each in begun}
    late = [each for each in begun if each.at > committed.get(each.task, each.at)]
    assert [
        (each, [one for one in begun if one.task == each.task], committed[each.task])
        for each in late
    ] == []


def check_blobs(metadata: MetadataStore, store: ObjectStore, run: RunRecord) -> None:
    """Check that every referenced blob exists and matches its digest.

    Args:
        metadata: The metadata store.
        store: The datastore.
        run: The record of the run.
    """
    blobs, seen = BlobStore(store), set[str]()
    for data in metadata.all_manifests(run.key):
        manifest = Manifest.decode(data)
        keys = {key for entry in manifest.artifacts.values() for key, _ in entry.blobs}
        for key in (keys | {*blobs_of_items(manifest.items, blobs, set())}) - seen:
            blobs.get(key)
            seen.add(key)


def check_database(fleet: Fleet) -> None:
    """Check the integrity of the metadata's database with the database's own checks.

    Args:
        fleet: The processes of the test.
    """
    if fleet.metadata_url.startswith("sqlite"):
        with sqlite3.connect(file_of(fleet.metadata_url)) as database:
            assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        database.close()
        return
    import psycopg  # needs the extra postgres

    url = fleet.metadata_url.partition("?")[0]
    schema = fleet.metadata_url.rpartition("schema=")[2]
    with psycopg.connect(url, autocommit=True) as server:
        server.execute("CREATE EXTENSION IF NOT EXISTS amcheck SCHEMA public")
        # Raises if an index is damaged, or lacks a row.
        checked = server.execute(
            "SELECT count(public.bt_index_parent_check(indexrelid, true)) FROM pg_index JOIN "
            "pg_class ON pg_class.oid = indexrelid JOIN pg_am ON pg_am.oid = relam WHERE "
            "amname = 'btree' AND relnamespace = %s::regnamespace",
            (schema,),
        ).fetchone()
        assert checked is not None
        assert checked[0] > 0


def check_machines(fleet: Fleet, late: bool) -> None:
    """Check that no process and no temporary file is left. A process that is killed while it writes
    a file (`late`) cannot remove it; coordinators remove such files when they start.

    Args:
        fleet: The processes of the test.
        late: Whether processes were killed while they may have been writing.
    """
    wait_until(lambda: fleet.orphans() == [], "a process is left")
    if late:
        fleet.store().sweep(-1.0, SystemClock.now())
    assert [*fleet.folder.rglob(".tmp/*")] == []


def check_queue(fleet: Fleet, run: RunRecord, ended: set[tuple[int, int]], late: bool) -> None:
    """Check that no message is left in the queue.

    Args:
        fleet: The processes of the test.
        run: The record of the run.
        ended: Task and number of the attempts that have ended.
        late: Whether workers were killed, or reported too late.
    """

    async def look(queue: Queue) -> None:
        reports = protocol.reports_topic(run.flow, run.run)
        for topic in ("tasks.default", "tasks.gpu", *_topics_of_workers(fleet, run), reports):
            ready, leased, buried = await queue.depth(topic)
            if not late:
                assert (ready, leased, buried) == (0, 0, 0), topic
            elif topic != reports:
                assert buried == 0, topic
            # A worker that was killed, or was too slow to renew its lease, leaves messages: they
            # are leased until the lease expires, and ready after that. The next worker that leases
            # one drops it, because its attempt has ended.
            for lease in await queue.lease([topic], 10_000, 60.0):
                message = protocol.open_message(lease.body, _KINDS, (), topic, None)
                assert set() == _attempts_in(message) - ended, f"{topic}: of what has not ended"
                await queue.ack([lease])

    async def look_and_close() -> None:
        queue = open_queue(fleet.queue)
        try:
            await look(queue)
        finally:
            await queue.close()

    asyncio.run(look_and_close())


def _attempts_in(message: Any) -> set[tuple[int, int]]:
    """Return the attempts, by task and number, that a message is about."""
    if isinstance(message, protocol.TaskMessage):
        return {(message.attempt.task, message.attempt.attempt)}
    if isinstance(message, protocol.ReportsMessage):
        return {(task, attempt) for _, task, attempt, *_ in message.events}
    if isinstance(message, protocol.CancelMessage):
        return {(task, attempt) for _, _, task, attempt in message.attempts}
    return set()


def _topics_of_workers(fleet: Fleet, run: RunRecord) -> set[str]:
    return {
        protocol.worker_topic(view.attempt.handle)
        for view in fleet.metadata.tasks(run.key, light=True)
        if view.attempt is not None and view.attempt.handle
    }


# ------------------------------------------------------------------ the soak


MOST_GIVEN_UP = 10  # maximum number of coordinators of a run that may exit without a kill


class Report(NamedTuple):
    """The faults of a run that passed all checks: how often each fault was injected, the number of
    tasks, the number of their starts, and the duration."""

    seed: int
    struck: Mapping[str, int]
    tasks: int
    begun: int
    seconds: float

    @property
    def kills(self) -> int:
        """The total number of faults."""
        return sum(self.struck.values())


class Machines:
    """The processes of a fleet while faults are injected, at random times of `rng`."""

    def __init__(
        self, fleet: Fleet, rng: random.Random, workers: int, isolation: str, *, by_server: bool
    ) -> None:
        self.fleet = fleet
        self.rng = rng
        self._by_server = by_server
        self._isolation = isolation
        self._gave_up = 0  # number of coordinators that exited without a kill
        self._committed = -1  # number of committed tasks when a worker was last killed
        self.has_slept = False  # whether a worker has been suspended
        self._settled: dict[int, int] = {}  # by committed task: its number of starts at the time
        self.clocks = {name: _Clock(fleet.folder / f"clock-{name}") for name in ("ours", "theirs")}
        self._port = free_port()
        self._workers = [self._worker() for _ in range(workers)]
        self._server = fleet.serve(self._port) if by_server else None
        self._coordinator: subprocess.Popen[bytes] | None = None
        if by_server:
            fleet.submit(self._port)
        else:
            self._coordinator = self._begin()

    def _worker(self) -> subprocess.Popen[bytes]:
        return self.fleet.start_worker("--slots", "2", "--lease", "3", **self.clocks["theirs"].env)

    def _begin(self) -> subprocess.Popen[bytes]:
        env = self.clocks["ours"].env
        return self.fleet.begin("--isolation", self._isolation, output=None, **env)

    def is_over(self) -> bool:
        """Return whether the run has ended. If a coordinator has exited because a service that it
        needs was down when it started, another one is started.

        Raises:
            ChaosError: If that happens too often.
        """
        if self._coordinator is None:
            return self.fleet.is_over()
        code = self._coordinator.poll()
        if code in (None, 0) or self.fleet.is_over():
            return code is not None
        self._gave_up += 1
        if self._gave_up > MOST_GIVEN_UP or self.fleet.record() is None:
            _fail(f"the coordinator ended with {code}:\n{self.fleet.output()[-4000:]}")
        self.fleet.let_lease_pass()
        self._coordinator = self.fleet.recover(**self.clocks["ours"].env)
        return False

    def rest(self, seconds: float) -> None:
        """Sleep.

        Args:
            seconds: The duration, in seconds.
        """
        select.select([], [], [], seconds)

    def until_it_goes_on(self) -> None:
        """Wait until another task has started, or the run has ended: without this a run would never
        end if its coordinators are killed too often."""
        before = len(self.fleet.ledger.lines())
        wait_until(
            lambda: len(self.fleet.ledger.lines()) > before or self.is_over(), "nothing goes on"
        )

    def until_over(self) -> None:
        """Wait until the run has ended."""
        wait_until(self.is_over, f"the run hangs:\n{self.fleet.output()[-4000:]}")

    def note_committed(self) -> None:
        """Check that no committed task has started since, unless a worker was suspended: that may
        start tasks which others have finished in the meantime, and its results are rejected."""
        if self.has_slept:
            return
        committed, times = self.fleet.committed() - {0}, self.fleet.ledger.times()
        for task in committed:
            if times[task] != self._settled.setdefault(task, times[task]):
                _fail(f"task {task} began again after it was committed")

    def stop(self) -> None:
        """Stop the server after its run has ended."""
        self.note_committed()
        if self._server is not None:
            self._server.send_signal(signal.SIGTERM)
            self.fleet.ends(self._server)

    # ------------------------------------------------------------ faults

    def kill_task(self) -> bool:
        """Send SIGKILL to a process that runs a task.

        Returns:
            Whether there was such a process.
        """
        lines = self.fleet.ledger.lines()[-20:]
        there = {*processes_in(self.fleet.away)}
        pids = [each.pid for each in lines if each.pid in there]
        return bool(pids) and _killed(self.rng.choice(pids))

    def kill_worker(self) -> bool:
        """Kill a worker with SIGKILL and start another one. Does nothing until a task was committed
        since the last time, since a task fails after its fifth worker is lost.

        Returns:
            Whether a worker was killed.
        """
        committed = len(self.fleet.committed())
        if committed == self._committed:
            return False
        self._committed = committed
        number = self.rng.randrange(len(self._workers))
        _end(self._workers[number])
        self._workers[number] = self._worker()
        return True

    def stop_worker(self) -> bool:
        """Suspend a worker with SIGSTOP for up to four seconds, which may be longer than its lease.

        Returns:
            True.
        """
        self.has_slept = True
        worker = self.rng.choice(self._workers)
        worker.send_signal(signal.SIGSTOP)
        self.rest(self.rng.uniform(0.1, 4.0))
        worker.send_signal(signal.SIGCONT)
        return True

    def kill_coordinator(self) -> bool:
        """Kill the coordinator with SIGKILL, and start another one that recovers the run.

        Returns:
            Whether a coordinator was killed.
        """
        if self.is_over():
            return False
        if self._coordinator is None:
            assert self._server is not None, "a server has begun the run"
            pids = _children_of(self._server.pid)
            killed = [_killed(pid) for pid in pids]  # a list, so that all are killed
            if not any(killed):
                return False
            self.fleet.let_lease_pass()
        else:
            _end(self._coordinator)
            if self.fleet.record() is None:
                self._coordinator = self._begin()
            elif self.fleet.is_over():  # the run ended before the coordinator was killed
                self._coordinator = None
                return True
            else:
                self.fleet.let_lease_pass()
                self._coordinator = self.fleet.recover(**self.clocks["ours"].env)
        self.note_committed()
        self.until_it_goes_on()
        return True

    def kill_server(self) -> bool:
        """Kill the server with SIGKILL, and start another one on its port.

        Returns:
            Whether there is a server.
        """
        if self._server is None:
            return False
        _end(self._server)
        self._server = self.fleet.serve(self._port)
        return True

    def set_clock(self) -> bool:
        """Set the clock of the coordinator, or of all workers, by up to two hours.

        Returns:
            True.
        """
        clock = self.rng.choice([*self.clocks.values()])
        clock.set(self.rng.uniform(-7200.0, 7200.0))
        return True


class Fault(NamedTuple):
    """A fault: its name, its weight in the random choice, and a function that injects it. That
    returns whether it did: there may have been no process to affect."""

    name: str
    weight: int
    strike: Callable[[Machines], bool]


FAULTS = (
    Fault("task", 8, Machines.kill_task),
    Fault("worker", 4, Machines.kill_worker),
    Fault("sleeping worker", 1, Machines.stop_worker),
    Fault("coordinator", 3, Machines.kill_coordinator),
    Fault("server", 2, Machines.kill_server),
    Fault("clock", 1, Machines.set_clock),
)


def soak(
    fleet: Fleet,
    *,
    seed: int,
    kills: int = 50,
    workers: int = 2,
    isolation: str = "task",
    by_server: bool = False,
    faults: Sequence[Fault] = FAULTS,
    expected: Results | None = None,
    pause: float = 0.5,
) -> Report:
    """Run the fleet's flow (see `Fleet.write`), and inject faults until it has ended. Steps whose
    tasks may be killed need @retry with more attempts than the faults that may affect them.

    Args:
        fleet: The processes of the test.
        seed: The seed of the times and the kinds of faults.
        kills: The maximum number of faults.
        workers: The number of workers.
        isolation: The isolation of tasks: `task` or `worker`.
        by_server: Whether `aflow server` starts the run, instead of `aflow run`.
        faults: The faults to choose from.
        expected: The results of a run without faults; None to skip the comparison.
        pause: The longest time between two faults, in seconds.

    Returns:
        The faults that were injected, and statistics of the run.

    Raises:
        ChaosError: If something was lost, done twice, or hangs; the message has the seed.
    """
    began, rng, struck = SystemClock.monotonic(), random.Random(seed), Counter[str]()
    try:
        machines = Machines(fleet, rng, workers, isolation, by_server=by_server)
        while faults and struck.total() < kills:
            machines.rest(rng.uniform(0.0, pause))
            if machines.is_over():
                break
            [fault] = rng.choices(faults, [each.weight for each in faults])
            struck[fault.name] += fault.strike(machines)
        machines.until_over()
        machines.stop()
        comparable = not struck["clock"] and not machines.has_slept
        check(fleet, expected, late=True, clocks_agree=comparable)
    except AssertionError as error:
        raise ChaosError(f"seed {seed}, after {dict(struck)}: {error}") from error
    begun = fleet.ledger.begun()
    tasks = len({each.task for each in begun})
    seconds = SystemClock.monotonic() - began
    return Report(seed, dict(+struck), tasks, len(begun), seconds)


def undisturbed(folder: Path, source: str, *arguments: str) -> Results:
    """Return the results of a flow that is run with one worker and without faults.

    Args:
        folder: A new folder for the run.
        source: The text of the flow's file.
        *arguments: Additional arguments of the command line.
    """
    folder.mkdir()
    calm = Fleet(
        folder,
        f"sqlite:///{folder}/metadata.db",
        f"sqlite:///{folder}/queue.db",
        AFLOW_DATASTORE_SYSROOT_LOCAL=str(folder / "store"),
    )
    try:
        calm.write(source)
        calm.start_worker("--slots", "2")
        code = calm.ends(calm.begin(*arguments))
        if code:
            _fail(f"the undisturbed run ended with {code}:\n{calm.output()[-4000:]}")
        check(calm)
        record = calm.record()
        assert record is not None, "it has run"
        return results(calm.metadata, record)
    finally:
        calm.close()


# A module that Python imports when it starts, which adds an adjustable offset to the clock.
_CLOCK = """
import mmap, struct, time
with open({path!r}, "rb") as file:
    offset = mmap.mmap(file.fileno(), 8, access=mmap.ACCESS_READ)
real = time.time
time.time = lambda: real() + struct.unpack("d", offset)[0]
"""


class _Clock:
    """The clock of all processes that have `env` in their environment."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self._file = folder / "offset"
        self.set(0.0)
        (folder / "sitecustomize.py").write_text(_CLOCK.format(path=str(self._file)), "utf-8")
        others = filter(None, [os.environ.get("PYTHONPATH")])
        self.env = {"PYTHONPATH": os.pathsep.join([str(folder), *others])}

    def set(self, offset: float) -> None:
        """Set the clock to this many seconds after the clock of this machine."""
        file = os.open(self._file, os.O_WRONLY | os.O_CREAT, 0o644)
        os.pwrite(file, struct.pack("d", offset), 0)
        os.close(file)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def _killed(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def _children_of(pid: int) -> list[int]:
    found = []
    for each in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # the process has exited in the meantime
            found += [int(child) for child in each.read_text("utf-8").split()]
    return found


def free_port() -> int:
    """Return a port that is not in use. It is below the range of ports for outgoing connections:
    one of these could take the port before the server listens, or while the server is being
    restarted.
    """
    while True:
        port = random.SystemRandom().randrange(10_000, _FIRST_OUTGOING)
        with socket.socket() as probe, contextlib.suppress(OSError):  # in use: try another one
            probe.bind(("127.0.0.1", port))
            return port
