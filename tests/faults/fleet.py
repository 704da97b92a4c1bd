"""A team's machines on this one: a coordinator, workers, and what both rest on. Each of them can be
killed, stopped and started again in the middle of a run."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from aflow import backends
from aflow.metadata.base import MetadataStore, RunRecord
from aflow.storage.base import ObjectStore
from tests.faults.ledger import Ledger
from tests.flows.conftest import POSTAMBLE, PREAMBLE, processes_in

PATIENCE = 120.0  # seconds after which something that does not come fails its test
FLOW = "Flow_"


def wait_until(what: Callable[[], object], why: str = "it has not come to that") -> None:
    """Wait until it is so."""
    give_up_at = time.monotonic() + PATIENCE
    while not what():
        if time.monotonic() > give_up_at:
            pytest.fail(why)
        select.select([], [], [], 0.02)


class Fleet:
    """One run of one flow on machines of its own. `metadata` and `queue` are URLs; `env` is of all
    processes (where the datastore is, say)."""

    def __init__(self, folder: Path, metadata: str, queue: str, **env: str) -> None:
        self.folder = folder
        self.queue = queue
        self.ledger = Ledger(folder / "ledger")
        self.metadata_url = metadata
        self._env = env
        self.home = _made(folder / "coordinator")
        self.away = _made(folder / "workers")
        self._processes: list[subprocess.Popen[bytes]] = []
        self._metadata: MetadataStore | None = None
        self._opened: list[Any] = []  # to be closed

    # ------------------------------------------------------------ processes

    def write(self, source: str) -> None:
        """Write the flow, which may `note()` in the ledger."""
        text = PREAMBLE + self.ledger.source + source + POSTAMBLE.format(name=FLOW)
        (self.home / "flow.py").write_text(text)

    def start_worker(self, *words: str, **env: str) -> subprocess.Popen[bytes]:
        """Start a worker, and wait until it takes tasks."""
        said = self.away / f"{len(self._processes)}.err"
        command = ("-m", "aflow", "worker", "--queue", self.queue, *words)
        process = self._start(command, self.away, said, env)
        wait_until(
            lambda: b"takes tasks of" in said.read_bytes() or process.poll() is not None,
            "the worker does not begin",
        )
        assert process.poll() is None, said.read_text()
        return process

    def begin(self, *words: str, output: int | None = None, **env: str) -> subprocess.Popen[bytes]:
        """Start a coordinator with a new run; `output` is where it prints to, if not to a file."""
        queue = ("--executor", "queue", "--queue", self.queue)
        command = ("flow.py", "--no-pylint", "run", "--max-num-splits", "100000", *queue, *words)
        return self._start(command, self.home, self.home / "said", env, output)

    def adopt(self, **env: str) -> subprocess.Popen[bytes]:
        """Start a coordinator that goes on with the run."""
        run = self.record()
        assert run is not None, "there is a run"
        words = ("-m", "aflow", "adopt", f"{run.flow}/{run.run}")
        return self._start(words, self.home, self.home / "said", env)

    def _start(
        self,
        words: tuple[str, ...],
        folder: Path,
        said: Path,
        env: dict[str, str],
        output: int | None = None,
    ) -> subprocess.Popen[bytes]:
        own = {
            "AFLOW_DEFAULT_METADATA": self.metadata_url,
            "AFLOW_CLIENT_CACHE_PATH": str(folder / "cache"),
        }
        with said.open("ab") as file:
            process = subprocess.Popen(
                [sys.executable, *words],
                cwd=folder,
                env=os.environ | own | self._env | env,
                stdin=subprocess.DEVNULL,
                stdout=file if output is None else output,
                stderr=file,
            )
        self._processes.append(process)
        return process

    @contextlib.contextmanager
    def limited(self, what: int, limit: int) -> Iterator[None]:
        """What is started meanwhile may have no more of it (resource.RLIMIT_...)."""
        soft, hard = resource.getrlimit(what)
        resource.setrlimit(what, (limit, hard))
        try:
            yield
        finally:
            resource.setrlimit(what, (soft, hard))

    def said(self) -> str:
        """What coordinators have said."""
        return (self.home / "said").read_text(errors="replace")

    def said_by_workers(self) -> str:
        """What workers have said."""
        files = sorted(self.away.glob("*.err"))
        return "".join(file.read_text(errors="replace") for file in files)

    def ends(self, process: subprocess.Popen[bytes]) -> int:
        """Wait for its end: the exit code."""
        try:
            return process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            pytest.fail(f"it hangs:\n{self.said()[-4000:]}\n{self.said_by_workers()[-4000:]}")

    def stop_workers(self) -> None:
        """SIGTERM to all that still run, and wait for them."""
        running = [each for each in self._processes if each.poll() is None]
        for process in running:
            process.send_signal(signal.SIGCONT)
            process.send_signal(signal.SIGTERM)
        for process in running:
            self.ends(process)

    def close(self) -> None:
        """Nothing of it is left, whatever the test has come to."""
        for process in self._processes:
            if process.poll() is None:
                process.kill()
                process.wait()
        for folder in (self.home, self.away):
            for pid in processes_in(folder):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        for each in self._opened:
            each.close()

    def orphans(self) -> list[int]:
        """Processes of coordinators and workers that still run."""
        return processes_in(self.home) + processes_in(self.away)

    # ------------------------------------------------------------ what they have left

    @property
    def metadata(self) -> MetadataStore:
        """The records."""
        if self._metadata is None:
            self._metadata = backends.open_metadata(self.metadata_url, read_only=True)
            self._opened.append(self._metadata)
        return self._metadata

    def record(self) -> RunRecord | None:
        """The run; None before there is one."""
        from aflow.errors import MetadataUnavailable

        try:
            found = self.metadata.runs(FLOW)
        except MetadataUnavailable:  # nothing has been written yet
            return None
        return self.metadata.run(FLOW, found[-1].run) if found else None

    def store(self) -> ObjectStore:
        """The run's datastore, as a machine sees it that has no copy of anything."""
        run = self.record()
        assert run is not None, "there is a run"
        url = run.settings["storage"]
        if not url.startswith("s3:"):
            return backends.open_store(url)
        from aflow.storage.s3 import S3Store

        with _environment(self._env):
            store = S3Store(url)
        self._opened.append(store)
        return store

    def committed(self) -> set[int]:
        """The tasks that have succeeded, by the records."""
        run = self.record()
        if run is None:
            return set()
        tasks = self.metadata.tasks(run.key, light=True)
        return {each.task.task for each in tasks if each.state.value == "succeeded"}

    def let_lease_pass(self) -> None:
        """So much time passes that the run is nobody's."""
        writer = backends.open_metadata(self.metadata_url)
        run = self.record()
        assert run is not None, "there is a run"
        if self.metadata_url.startswith("sqlite"):
            import sqlite3

            with sqlite3.connect(file_of(self.metadata_url)) as database:
                database.execute("UPDATE leases SET until = until - 3600")
            database.close()
        else:
            with writer._connections.one() as db:  # type: ignore[attr-defined]
                db.execute("UPDATE leases SET until = until - 3600")
        writer.close()

    def depth(self, topic: str) -> tuple[int, int, int]:
        """How many messages of a topic are ready, leased and buried."""

        async def look() -> tuple[int, int, int]:
            queue = backends.open_queue(self.queue)
            try:
                return tuple(await queue.depth(topic))  # type: ignore[return-value]
            finally:
                await queue.close()

        return asyncio.run(look())


def file_of(url: str) -> str:
    """The file of an sqlite URL."""
    return unquote(url.removeprefix("sqlite:///"))


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True)
    return folder


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setenv(name, value)
        yield
