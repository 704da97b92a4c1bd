"""The metadata port over HTTP: journals and records that `aflow metadata-service` keeps.

A call waits while the service does not answer (`calling.PATIENCE`). A write may have been done
before its answer was lost: a commit has a mark by which the store knows it again, and of a run that
exists already what is there says whether it is this one.
"""

from __future__ import annotations

import http.client
import os
import select
import threading
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from aflow._core.backoff import Backoff, Tries
from aflow._core.clock import duration
from aflow._core.secret import as_mentioned
from aflow._core.waiting import FIRST, Waiting
from aflow.errors import InvalidMessage, InvalidSetting, MetadataUnavailable, VersionConflict
from aflow.metadata.base import (
    AttemptRecord,
    Batch,
    CachedTask,
    LeaseState,
    MetadataRecord,
    ReplacedLog,
    RunRecord,
    StepProgress,
    TaskColumns,
    TaskView,
    WorkerRecord,
)
from aflow.metadata.wire import frames, pack, raise_received
from aflow.scheduler.states import RunState, TaskState

if TYPE_CHECKING:
    from aflow._core.clock import Clock

# HTTP calls of a service that may be away for a while.


T = TypeVar("T")

PATIENCE = 120.0  # seconds that a service may be away
_TIMEOUT = 60.0  # seconds without a byte
_CONNECTING = 10.0  # seconds
_BACKOFF = Backoff(0.1, 8.0)
_CHUNK = 1 << 16


class FrameResponse(NamedTuple):
    """The frames of an answer; `again` says that an earlier try may have been done as well."""

    frames: Iterator[list[Any]]
    again: bool


class ServiceClient:
    """Calls one service. Safe from many threads; a process that is forked makes connections of its
    own."""

    not_there = "it is not a service of aflow, or an older one"

    def __init__(
        self, url: str, headers: Mapping[str, str], clock: Clock, patience: float = PATIENCE
    ) -> None:
        refused = InvalidSetting(
            f"{as_mentioned(url)!r} is not an address of a metadata service: use http(s)://host"
        )
        try:
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
                raise refused
        except ValueError:  # the port is not a number, a bracket is not closed
            raise refused from None
        self._secure = parts.scheme == "https"
        self._host, self._port = parts.hostname, parts.port
        self._path = parts.path.rstrip("/")
        self.url = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{self._path}"
        self._headers = dict(headers)
        self._clock = clock
        self._patience = patience
        self._never = threading.Event()
        self._answered = False  # ever
        self._idle: list[http.client.HTTPConnection] = []
        self._process = os.getpid()

    def call(self, path: str, body: bytes) -> FrameResponse:
        """POST a request until the service answers.

        Args:
            path: The path below the URL of the service.
            body: The body, as msgpack.

        Returns:
            The frames of the answer.

        Raises:
            MetadataUnavailable: It does not answer in time, or turns the call down.
        """
        return FrameResponse(*self.patiently(lambda waiting: self._post(path, body, waiting)))

    def patiently(self, attempt: Callable[[Waiting], T]) -> tuple[T, bool]:
        """Make attempts until one succeeds, or the patience is over.

        Args:
            attempt: Makes one attempt; it is given the wait that it is part of.

        Returns:
            What the attempt returned, and whether it was not the first.

        Raises:
            MetadataUnavailable: As `call` raises it.
        """
        waiting = Waiting(f"the metadata service at {self.url}", self._clock)
        tries = Tries(_BACKOFF, patience=self._patience, clock=self._clock)
        while True:
            try:
                found = attempt(waiting)
                self._answered = True
                waiting.over()
                return found, tries.failures > 0
            except (OSError, http.client.HTTPException, InvalidMessage) as error:
                if self._is_stranger(error):
                    raise MetadataUnavailable(
                        f"The metadata service at {self.url} cannot be trusted: {_why(error)}. "
                        "Check its address, its certificate, and SSL_CERT_FILE."
                    ) from error
                delay = tries.failed()
                if delay is None:
                    raise MetadataUnavailable(
                        f"The metadata service at {self.url} cannot be used: {_why(error)}, for "
                        f"{duration(self._patience)}. Check that it runs, and its address."
                    ) from error
                waiting.still(_why(error), "Check that it runs, and its address.")
            self._never.wait(waiting.capped(delay))

    def _is_stranger(self, error: Exception) -> bool:
        """Whether it has shown another certificate than that of the service. One that was known
        before may have let its own expire, and gets another while a run waits for it."""
        return not self._answered and type(error).__name__ == "SSLCertVerificationError"

    def _post(self, path: str, body: bytes, waiting: Waiting) -> Iterator[list[Any]]:
        connection = self._connection()
        try:
            headers = {**self._headers, "Content-Type": "application/msgpack"}
            connection.request("POST", self._path + path, body, headers)
            self._until_readable(connection, waiting)
            response = connection.getresponse()
            if response.status != 200:
                self._turned_down(response, response.read(1000))
            answer = frames(iter(lambda: response.read1(_CHUNK), b""))
            first = next(answer)
        except BaseException:
            connection.close()
            raise
        return self._rest(connection, response, first, answer)

    def _until_readable(self, connection: http.client.HTTPConnection, waiting: Waiting) -> None:
        """Wait for the first byte of an answer, and say so where it is late."""
        poll = select.poll()
        poll.register(connection.sock, select.POLLIN)
        for _ in range(int(_TIMEOUT / FIRST)):
            if poll.poll(FIRST * 1000):
                return
            waiting.still("it has taken the call, and does not answer")
        raise TimeoutError(f"it has not answered within {_TIMEOUT:g} seconds")

    def _rest(
        self,
        connection: http.client.HTTPConnection,
        response: http.client.HTTPResponse,
        first: list[Any],
        answer: Iterator[list[Any]],
    ) -> Iterator[list[Any]]:
        whole, is_complete = False, first[0] == "value"
        try:
            yield first
            yield from answer
            whole = not response.read()
        except (OSError, http.client.HTTPException, InvalidMessage) as error:
            if is_complete:
                return  # the service was killed between the value and the end of the body
            raise MetadataUnavailable(
                f"The metadata service at {self.url} stopped in the middle: {_why(error)}."
            ) from error
        finally:
            self._give_back(connection, whole)

    def _turned_down(self, response: http.client.HTTPResponse, body: bytes) -> None:
        said = body.decode("utf-8", "replace")
        if 300 <= response.status < 400:
            raise MetadataUnavailable(
                f"The metadata service at {self.url} redirects to "
                f"{response.getheader('Location', '')[:200]!r}. A key is sent nowhere but to the "
                "address that was given: give that one, if it is the right one."
            )
        if response.status >= 500 and response.status != 501:
            raise http.client.HTTPException(f"it answers {response.status} {response.reason}")
        advice = {401: "AFLOW_SERVICE_AUTH_KEY is missing or wrong", 403: "access is denied"}
        advice |= dict.fromkeys((404, 405), self.not_there)
        raise MetadataUnavailable(
            f"The metadata service at {self.url} answers {response.status}: "
            f"{advice.get(response.status, said)}."
        )

    def _connection(self) -> http.client.HTTPConnection:
        if self._process != os.getpid():
            self._idle, self._process = [], os.getpid()
        try:
            return self._idle.pop()
        except IndexError:
            kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
            connection = kind(self._host, self._port, timeout=_CONNECTING)
            connection.connect()
            connection.sock.settimeout(_TIMEOUT)
            return connection

    def _give_back(self, connection: http.client.HTTPConnection, usable: bool) -> None:
        if usable and self._process == os.getpid():
            self._idle.append(connection)
        else:
            connection.close()

    def close(self) -> None:
        """Release the connections. May be called twice."""
        while self._idle:
            self._idle.pop().close()


def _why(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).rstrip(".")


PATH = "/aflow/v1/metadata"


class ServiceMetadata:
    """The metadata of the service at `http(s)://host:port/prefix`."""

    def __init__(
        self,
        url: str,
        headers: Mapping[str, str],
        clock: Clock,
        patience: float = PATIENCE,
    ) -> None:
        self._caller = ServiceClient(url, headers, clock, patience)

    @property
    def url(self) -> str:
        """The address of the service."""
        return self._caller.url

    @property
    def address(self) -> str:
        """The same: keys are in the settings."""
        return self._caller.url

    def _call(self, name: str, *values: Any, **named: Any) -> Any:
        return _value(self._answer(name, *values, **named))

    def _answer(self, name: str, *values: Any, **named: Any) -> FrameResponse:
        return self._caller.call(f"{PATH}/{name}", pack([list(values), named]))

    def _stream(self, name: str, *values: Any, **named: Any) -> Iterator[Any]:
        for frame in self._answer(name, *values, **named).frames:
            raise_received(frame)
            if frame[0] == "items":
                yield from frame[1]

    # ------------------------------------------------------------------ writing

    def create_run(
        self, run: RunRecord, parameters: bytes, holder: str = "", seconds: float = 0.0
    ) -> RunRecord:
        """Record a new run with its parameters; see the port."""
        answer = self._answer("create_run", run, parameters, holder, seconds)
        try:
            made: RunRecord = _value(answer)
        except VersionConflict:
            there = self.run(run.flow, run.run) if answer.again else None
            if there is None or there._replace(key=run.key, version=run.version) != run:
                raise
            return there
        return made

    def commit(self, run_key: int, version: int, batch: Batch, mark: str = "") -> int:
        """Write the batch if the run is still at `version`; see the port."""
        return int(self._call("commit", run_key, version, batch, mark or uuid.uuid4().hex))

    def acquire_lease(self, run_key: int, holder: str, seconds: float, at: float) -> LeaseState:
        """Acquire or renew the lease of a run; see the port."""
        found: LeaseState = self._call("acquire_lease", run_key, holder, seconds, at)
        return found

    def release_lease(self, run_key: int, holder: str) -> None:
        """Release the lease of a run; see the port."""
        self._call("release_lease", run_key, holder)

    def request_cancel(self, run_key: int, reason: str) -> bool:
        """Ask the lease holder of a run to stop it; see the port."""
        return bool(self._call("request_cancel", run_key, reason))

    def beat_worker(self, worker: WorkerRecord, seconds: float) -> str | None:
        """Register a worker, or renew that; see `WorkerRegistry`."""
        found: str | None = self._call("beat_worker", worker, seconds)
        return found

    def drain_worker(self, name: str, reason: str) -> bool:
        """Ask a worker to end; see `WorkerRegistry`."""
        return bool(self._call("drain_worker", name, reason))

    def remove_worker(self, name: str) -> None:
        """List a worker no longer; see `WorkerRegistry`."""
        self._call("remove_worker", name)

    def change_tags(
        self, run_key: int, add: Sequence[str], remove: Sequence[str]
    ) -> tuple[str, ...]:
        """Remove, then add user tags; see the port."""
        return tuple(self._call("change_tags", run_key, list(add), list(remove)))

    def replace_logs(self, run_key: int, logs: Sequence[ReplacedLog]) -> None:
        """Put these logs in the place of others; see the port."""
        self._call("replace_logs", run_key, list(logs))

    def delete_run(self, run_key: int) -> None:
        """Remove a run with all its records; see the port."""
        self._call("delete_run", run_key)

    # ------------------------------------------------------------------ reading

    def all_manifests(self, run_key: int) -> Iterator[bytes]:
        """The manifests of all attempts of a run; see the port."""
        return self._stream("all_manifests", run_key)

    def journal(self, run_key: int) -> Iterator[bytes]:
        """The event batches of the run, oldest first."""
        return self._stream("journal", run_key)

    def journal_after(self, run_key: int, version: int) -> Generator[tuple[int, bytes], None, None]:
        """Event batches above a version, with theirs; see the port."""
        return (
            (number, events) for number, events in self._stream("journal_after", run_key, version)
        )

    def orphaned(self, kind: str, limit: int = 100) -> list[tuple[str, str]]:
        """Runs whose lease has expired; see the port."""
        return [(flow, run) for flow, run in self._call("orphaned", kind, limit)]

    def workers(self) -> list[WorkerRecord]:
        """The workers whose registration has not expired; see `WorkerRegistry`."""
        return list(self._call("workers"))

    def flows(self) -> list[tuple[str, float]]:
        """Name and time of creation of every flow, newest first."""
        return list(self._call("flows"))

    def runs(
        self,
        flow: str | None,
        *,
        tags: Sequence[str] = (),
        states: Sequence[RunState] = (),
        users: Sequence[str] = (),
        since: float | None = None,
        until: float | None = None,
        after: tuple[float, int] | None = None,
        limit: int | None = None,
        kind: str = "",
    ) -> list[RunRecord]:
        """The flow's runs, newest first; see the port."""
        chosen = {
            "tags": list(tags),
            "states": list(states),
            "users": list(users),
            "since": since,
            "until": until,
        }
        return list(self._call("runs", flow, **chosen, after=after, limit=limit, kind=kind))

    def run(self, flow: str, run: str) -> RunRecord | None:
        """One run, whole; None where there is none."""
        found: RunRecord | None = self._call("run", flow, run)
        return found

    def steps(self, run_key: int) -> list[tuple[str, float, int]]:
        """Name, time and number of tasks of every step that has begun, newest first."""
        return list(self._call("steps", run_key))

    def tasks(
        self,
        run_key: int,
        *,
        step: str | None = None,
        split: int | None = None,
        steps: Sequence[str] = (),
        after: int | None = None,
        limit: int | None = None,
        light: bool = False,
    ) -> Iterator[TaskView]:
        """Tasks with their latest attempts, in one query that streams; see the port."""
        which = {"step": step, "split": split, "steps": list(steps), "after": after}
        return self._stream("tasks", run_key, **which, limit=limit, light=light)

    def newest_tasks(
        self,
        run_key: int,
        *,
        step: str | None = None,
        states: Sequence[TaskState] = (),
        before: int | None = None,
        limit: int | None = None,
        light: bool = False,
    ) -> Iterator[TaskView]:
        """Tasks with their latest attempts, the newest first; see the port."""
        which = {"step": step, "states": list(states), "before": before}
        return self._stream("newest_tasks", run_key, **which, limit=limit, light=light)

    def progress(self, run_key: int) -> list[StepProgress]:
        """How far every step that has begun has come, oldest first."""
        return list(self._call("progress", run_key))

    def task_columns(self, run_key: int, after: int = 0) -> Iterator[TaskColumns]:
        """Tasks whose latest attempts were written after a version; see the port."""
        return self._stream("task_columns", run_key, after)

    def task(self, run_key: int, task: int, attempt: int | None = None) -> TaskView | None:
        """One task with its latest attempt, or with the attempt asked for."""
        found: TaskView | None = self._call("task", run_key, task, attempt)
        return found

    def manifests(self, run_key: int, tasks: Sequence[int]) -> dict[int, bytes]:
        """The manifests of the latest attempts of these tasks; see the port."""
        return dict(self._call("manifests", run_key, list(tasks)))

    def split_manifests(
        self, run_key: int, split: int, steps: Sequence[str], start: int = 0, limit: int = 1000
    ) -> list[tuple[int, int, str, bytes]]:
        """A page of a foreach join's inputs; see the port."""
        return list(self._call("split_manifests", run_key, split, list(steps), start, limit))

    def cached(self, flow: str, key: bytes) -> CachedTask | None:
        """The task that has this cache key and succeeded; see the port."""
        found: CachedTask | None = self._call("cached", flow, key)
        return found

    def attempts(self, run_key: int, task: int) -> list[AttemptRecord]:
        """All attempts of a task, oldest first."""
        return list(self._call("attempts", run_key, task))

    def metadata(self, run_key: int, task: int) -> list[MetadataRecord]:
        """The metadata records of a task, oldest first."""
        return list(self._call("metadata", run_key, task))

    def close(self) -> None:
        """Release the connections. May be called twice."""
        self._caller.close()


def _value(answer: FrameResponse) -> Any:
    found = None
    for frame in answer.frames:
        raise_received(frame)
        found = frame[1]
    return found
