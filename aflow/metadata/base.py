"""The port of the metadata store: journals and records, two faces of one store.

The *journal* of a run is its events, appended in batches; the state of the run is their fold.
The *records* (flows, runs, tasks, attempts) are what clients list, filter and page through. Both
are written by one `commit`, in one transaction.

What every backend promises, and tests/contracts/test_metadata*.py check:

- `create_run` is all or nothing, and refuses a run id that the flow already has.
- `commit` is compare-and-set on the run's version: it applies all of the batch and the version
  grows by one, or raises VersionConflict and nothing has changed. With durability `power` what it
  wrote survives a power cut once it returns, with `process` any crash but that.
- A reader sees commits whole, in order, and its own at once. Readers never block the writer.
- A database of a newer version raises MetadataTooNew, one that is missing, locked for too long,
  full, read-only or damaged raises MetadataUnavailable: one sentence with place, reason and what
  to do.

Calls block; one store object may be used from many threads. asyncio programs call it in a thread.
Values are plain; times are seconds since the epoch, UTC.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

from aflow._core import ids
from aflow._core.records import NamedTuple, dataclass, field
from aflow.errors import InvalidName
from aflow.scheduler.states import AttemptState, RunState, TaskState

SPIN = "spin"
# Of runs that are in other places than aflow's own metadata.
FIRST_KEY = 1 << 61
"""Keys of runs from here on are those of what Metaflow has left."""
READ_ONLY = "This run is one of Metaflow's: aflow reads it, and it is never changed."
MARK = "metaflow+"
"""What the URL of the store of a run of Metaflow's has, which only its history can open."""
LEASE = 10.0
"""Seconds without a heartbeat after which the lease of a run has expired."""
DAMAGED: dict[str, Any] = {"damaged": True}
"""The settings of a run whose own cannot be read."""


class RunLease(NamedTuple):
    """The lease of a run that has not ended: its holder, as `kind/name`. `left` is how many seconds
    were left of it when this was read, by the store's own clock: negative once it has expired.
    `cancel` is the reason of a request to cancel the run, if there is one."""

    holder: str
    left: float
    cancel: str | None = None


class RunRecord(NamedTuple):
    """One run. `key` is the store's own number for it, cheap to refer to.

    `graph` is `Graph.as_dict()`; `settings` what the run was started with (max_workers, datastore,
    isolation, python and aflow version, script, host, pid: all plain values). `kind` is
    empty for a run of a whole flow, and SPIN for one of a single task, which lists leave out.
    `lease` is that of a run that goes on and has had a holder; stores fill it in when a run is
    read, and ignore it when one is created.
    """

    key: int
    flow: str
    run: str
    state: RunState
    user: str
    created_at: float
    finished_at: float | None
    version: int
    tags: tuple[str, ...]
    system_tags: tuple[str, ...]
    graph: dict[str, Any]
    settings: dict[str, Any]
    reason: str = ""
    heartbeat_at: float | None = None
    origin_run: str | None = None
    kind: str = ""
    lease: RunLease | None = None

    def all_tags(self) -> list[tuple[str, bool]]:
        """Return the tags of users and of the system, each with whether it is a system tag."""
        user = [(tag, False) for tag in self.tags]
        return user + [(tag, True) for tag in self.system_tags]


class RunFilter(NamedTuple):
    """Which runs are listed, and how many; `Records.runs` says what the fields mean."""

    tags: Sequence[str] = ()
    states: Sequence[RunState] = ()
    users: Sequence[str] = ()
    since: float | None = None
    until: float | None = None
    after: tuple[float, int] | None = None
    limit: int | None = None
    kind: str = ""

    def passes(self, tags: Collection[str], user: object, created_at: float, key: int) -> bool:
        """Return whether a run passes all conditions but those on its state and its kind.

        Args:
            tags: Its tags, of users and of the system.
            user: The user who has created it.
            created_at: The time of its creation, in seconds since the epoch.
            key: Its key in the metadata store.
        """
        return (
            all(tag in tags for tag in self.tags)
            and (not self.users or user in self.users)
            and (self.since is None or created_at >= self.since)
            and (self.until is None or created_at < self.until)
            and (self.after is None or (created_at, key) < self.after)
        )


class TaskRecord(NamedTuple):
    """One task: what never changes of it. Written once, with its first attempt.

    `created_at` is when the task became ready: all that it reads was there.
    `split` and `index` place it in the innermost foreach around it (the task that opened the
    foreach, and which item). `inputs` is `scheduler.messages.Inputs` in the form of
    `encode_inputs`. `origin` is the task (`run/step/task`, of the same flow) whose result this one
    took over instead of running, empty if it ran. `cache_key` names all that its result depends
    on, if that was looked at.
    """

    task: int
    step: str
    created_at: float
    split: int | None = None
    index: int | None = None  # type: ignore[assignment]
    inputs: bytes = b""
    origin: str = ""
    cache_key: bytes | None = None


class CachedTask(NamedTuple):
    """A task that succeeded before with the cache key that was asked for."""

    pathspec: str
    run_key: int
    task: int
    manifest: bytes


class AttemptRecord(NamedTuple):
    """One attempt; written when it starts and again, whole, when it ends (upsert).

    `manifest` is `storage.manifest.Manifest.encode()`, there if the attempt succeeded. `log` is
    the attempt's output if it is small (`storage.logs`), else None and `log_chunks` says how many
    chunk objects hold it. `host`, `pid` say where it ran, `handle` which worker or job ran it, if
    it was no process of the coordinator; `max_rss` is in bytes, `cpu` in seconds.
    """

    task: int
    attempt: int
    state: AttemptState
    started_at: float | None = None
    finished_at: float | None = None
    reason: str = ""
    manifest: bytes | None = None
    log: bytes | None = None
    log_chunks: int = 0
    stdout_size: int = 0
    stderr_size: int = 0
    host: str = ""
    pid: int | None = None
    handle: str = ""
    max_rss: int | None = None
    cpu: float | None = None


class MetadataRecord(NamedTuple):
    """A named fact about an attempt, beside what the records above already say."""

    task: int
    attempt: int
    field: str
    value: str
    type: str
    created_at: float


class ReplacedLog(NamedTuple):
    """What takes the place of an attempt's log; the fields are those of AttemptRecord."""

    task: int
    attempt: int
    log: bytes | None
    log_chunks: int
    stdout_size: int
    stderr_size: int


class RunUpdate(NamedTuple):
    """What a commit changes of the run itself; None leaves it as it is."""

    state: RunState | None = None
    finished_at: float | None = None
    reason: str | None = None


@dataclass(slots=True)
class Batch:
    """What one commit writes: encoded events for the journal, and records."""

    events: bytes = b""
    tasks: list[TaskRecord] = field(default_factory=list)
    attempts: list[AttemptRecord] = field(default_factory=list)
    metadata: list[MetadataRecord] = field(default_factory=list)
    run: RunUpdate | None = None


class TaskView(NamedTuple):
    """A task joined with one of its attempts (the latest, unless another was asked for).

    `attempt` is None for a task whose first attempt has not started. `attempts` is how many
    attempts there are.
    """

    run_key: int
    task: TaskRecord
    attempt: AttemptRecord | None
    attempts: int = 0

    @property
    def state(self) -> TaskState:
        """The task's state, as the attempt tells it."""
        if self.attempt is None:
            return TaskState.READY
        return TASK_STATES[self.attempt.state]


# What the latest attempt's state makes of a task. One without attempts is READY.
TASK_STATES = {
    AttemptState.QUEUED: TaskState.RUNNING,
    AttemptState.RUNNING: TaskState.RUNNING,
    AttemptState.SUCCEEDED: TaskState.SUCCEEDED,
    AttemptState.FAILED: TaskState.FAILED,
    AttemptState.TIMED_OUT: TaskState.FAILED,
    AttemptState.LOST: TaskState.FAILED,
    AttemptState.CANCELLED: TaskState.CANCELLED,
    AttemptState.INTERRUPTED: TaskState.CANCELLED,
}


class TaskColumns(NamedTuple):
    """What a timeline shows of a task: when it was created, and its latest attempt (`attempt` is
    its number, `host` and `pid` where it ran). `reused`: its result is that of an earlier task."""

    task: int
    step: str
    created_at: float
    started_at: float | None
    finished_at: float | None
    state: AttemptState
    attempt: int
    reused: bool
    host: str
    pid: int | None


class StepProgress(NamedTuple):
    """How far a step has come: when its first task was created, how many tasks are in each state,
    when the last attempt that has ended did, and the most bytes of memory that an attempt took."""

    step: str
    created_at: float
    tasks: dict[TaskState, int]
    finished_at: float | None
    max_rss: int | None = None


class LeaseState(NamedTuple):
    """Whether the caller has the lease of the run, and the reason of a request to cancel the run,
    if there is one."""

    mine: bool
    cancel: str | None = None


class Document(NamedTuple):
    """A small document beside the runs. `version` counts its changes, from 1."""

    name: str
    version: int
    data: bytes


Method = TypeVar("Method", bound=Callable[..., Any])


def writes(method: Method) -> Method:
    """Mark a method of a port that writes: a token with the scope `read` may not call it, and its
    requests may be large.

    Args:
        method: The method.

    Returns:
        The same method.
    """
    vars(method)["writes"] = True
    return method


class Documents(Protocol):
    """Small documents of aflow's own: not over the metadata service, which others may use."""

    def put_document(self, kind: str, name: str, data: bytes, version: int = 0) -> int:
        """Write a new document, or change one.

        Args:
            kind: The kind of document, such as `schedule` or `token`.
            name: The name of the document within its kind.
            data: The content, in whatever format the kind has.
            version: 0 for a new document; else the version that was read, which the document still
                has to have.

        Returns:
            The version that the document has now.

        Raises:
            VersionConflict: It already exists, or was changed in the meantime.
        """

    def delete_document(self, kind: str, name: str) -> bool:
        """Remove a document.

        Args:
            kind: The kind of document, such as `schedule` or `token`.
            name: The name of the document.

        Returns:
            Whether it existed.
        """

    def documents(self, kind: str) -> list[Document]:
        """Return all documents of this kind, by name.

        Args:
            kind: The kind of document, such as `schedule` or `token`.
        """

    def document(self, kind: str, name: str) -> Document | None:
        """Return one document; None where there is none.

        Args:
            kind: The kind of document, such as `schedule` or `token`.
            name: The name of the document.
        """


class RunningTask(NamedTuple):
    """An attempt that a worker has: its task as `Flow/run/step/task`, since when, and whether it
    has begun or waits for a slot."""

    pathspec: str
    attempt: int
    since: float
    begun: bool = True


class WorkerRecord(NamedTuple):
    """A worker as it registers itself and renews that with each heartbeat.

    `queue` is the queue that it leases from, without a password, `pools` the pools whose tasks it
    takes, `slots` how many tasks it runs at once, `running` what it has at the moment (at most
    `MOST_RUNNING` of them), `done` and `failed` how many attempts have ended here and how, `ended`
    how many of each pool did in the last minute.

    `heartbeat_at`, `left` (seconds until it is not known any more without another heartbeat) and
    `drain` (why somebody wants it to end) are the store's: it fills them in when a worker is read,
    and ignores them when one is written.
    """

    name: str
    host: str
    pid: int
    queue: str
    pools: tuple[str, ...]
    slots: int
    version: str
    python: str
    started_at: float
    labels: dict[str, str]
    running: tuple[RunningTask, ...] = ()
    done: int = 0
    failed: int = 0
    draining: bool = False
    heartbeat_at: float = 0.0
    left: float = 0.0
    drain: str | None = None
    ended: dict[str, int] = {}


WORKER_EXPIRY = 60.0
"""Seconds without a heartbeat after which a worker is no longer listed."""

MOST_RUNNING = 200
"""Attempts that a worker's record names at most."""

LARGEST_JOBS = 1 << 20
"""Bytes of a document in which a run publishes its jobs."""


class WorkerRegistry(Protocol):
    """The workers that have registered; SQLite, PostgreSQL and the metadata service keep them."""

    @writes
    def beat_worker(self, worker: WorkerRecord, seconds: float) -> str | None:
        """Register a worker, or renew its registration.

        Args:
            worker: What the worker has announced of itself.
            seconds: For how many seconds, by the store's own clock.

        Returns:
            Why the worker is to be drained, if somebody has asked for that; else None.

        Raises:
            InvalidName: The name of the worker is not allowed.
        """

    def workers(self) -> list[WorkerRecord]:
        """Return the workers that have registered and whose registration has not expired, by
        name."""

    @writes
    def drain_worker(self, name: str, reason: str) -> bool:
        """Ask a worker to end once its tasks have ended: its next heartbeat returns the request.
        The first reason stays.

        Args:
            name: The name of the worker.
            reason: Why, in one sentence.

        Returns:
            Whether the worker is registered.
        """

    @writes
    def remove_worker(self, name: str) -> None:
        """Remove the registration of a worker, if there is one.

        Args:
            name: The name of the worker.
        """


class HandedAttempt(NamedTuple):
    """An attempt that another executor has (`handle` is its job there, or its worker) and that has
    not ended: `state` is QUEUED until it has begun, on `host`, at `started_at`. `created_at` is
    when its task became ready."""

    task: int
    step: str
    attempt: int
    state: AttemptState
    created_at: float
    started_at: float | None
    handle: str
    host: str


class HandedAttempts(Protocol):
    """Attempts that other executors have, found by an index, and what runs publish of their jobs at
    job systems."""

    def live_counts(self, run_key: int) -> dict[str, dict[AttemptState, int]]:
        """Return how many attempts are queued and how many run, by step; commits keep the counts.

        Args:
            run_key: The key of the run in the metadata store.
        """

    def handed(self, run_key: int, step: str | None, after: int, limit: int) -> list[HandedAttempt]:
        """Return a page of the attempts of a run, or of a step, that another executor has: by task,
        those above `after`.

        Args:
            run_key: The key of the run in the metadata store.
            step: The name of the step; None for all steps.
            after: The last task of the page before; 0 for the first page.
            limit: How many attempts the page has at most.
        """

    @writes
    def put_jobs(self, name: str, data: bytes) -> None:
        """Replace the document in which a run publishes its jobs at one job system.

        Args:
            name: The name of the document: `Flow/run SYSTEM`.
            data: The content, LARGEST_JOBS bytes at most; empty to remove the document.

        Raises:
            InvalidMessage: It is larger.
        """

    def jobs(self) -> list[Document]:
        """Return the documents that `put_jobs` has written, by name."""


class Journal(Protocol):
    """What has happened in each run, in the order of its versions."""

    @writes
    def create_run(
        self, run: RunRecord, parameters: bytes, holder: str = "", seconds: float = 0.0
    ) -> RunRecord:
        """Record a new run (its flow too, if it is the first) with its task 0 of step
        `_parameters`, succeeded. The holder, if one is named, acquires the lease.

        Args:
            run: The record; its `key` is ignored.
            parameters: The manifest of task 0.
            holder: The holder, as `kind/name`; empty for none.
            seconds: For how many seconds the lease is acquired, by the store's own clock.

        Returns:
            The record with its real key, at version 0.

        Raises:
            VersionConflict: The flow has a run with this id.
        """

    @writes
    def commit(self, run_key: int, version: int, batch: Batch, mark: str = "") -> int:
        """Write a batch in one transaction, if the run is still at a version.

        Args:
            run_key: The key of the run in the metadata store.
            version: The version that the run has to have.
            batch: The events and the records that follow from them.
            mark: A name that no other commit has: a caller that lost the answer asks again with the
                same one, and what was committed already is not committed twice.

        Returns:
            The new version of the run.
        """

    def journal(self, run_key: int) -> Iterator[bytes]:
        """Return the event batches of the run, oldest first.

        Args:
            run_key: The key of the run in the metadata store.
        """

    def journal_after(self, run_key: int, version: int) -> Generator[tuple[int, bytes], None, None]:
        """Return the event batches that were written after the run was at this version, each with
        the version that it brought the run to.

        Args:
            run_key: The key of the run in the metadata store.
            version: The version above which event batches are wanted; 0 for all.
        """


class Leases(Protocol):
    """Who drives each run."""

    @writes
    def acquire_lease(self, run_key: int, holder: str, seconds: float, at: float) -> LeaseState:
        """Acquire the lease of a run, or renew it.

        It is not acquired while another holder has a lease that has not expired, or once the run
        has ended. This does not change the version of the run: `commit` refuses a holder whose
        lease has expired once the next one has written.

        Args:
            run_key: The key of the run in the metadata store.
            holder: The holder, as `kind/name`.
            seconds: For how many seconds, by the store's own clock.
            at: The time of the heartbeat by the holder's clock, in seconds since the epoch; it is
                recorded.

        Returns:
            Who holds the lease now, and whether somebody has asked to cancel the run.
        """

    @writes
    def release_lease(self, run_key: int, holder: str) -> None:
        """Release the lease, if this is its holder: another one may acquire it at once. Does
        nothing otherwise.

        Args:
            run_key: The key of the run in the metadata store.
            holder: The holder, as `kind/name`.
        """

    def orphaned(self, kind: str, limit: int = 100) -> list[tuple[str, str]]:
        """Return flow and id of orphaned runs: they have not ended, and their lease has expired.
        The lease that expired first comes first.

        Args:
            kind: The kind of the holders, as in `kind/name`.
            limit: How many runs are returned at most.
        """

    @writes
    def request_cancel(self, run_key: int, reason: str) -> bool:
        """Ask the lease holder of the run, this one or the next, to cancel it: `acquire_lease`
        returns the request. The first reason stays.

        Args:
            run_key: The key of the run in the metadata store.
            reason: Why, in one sentence.

        Returns:
            Whether the run has not ended and has had a holder.
        """


class Records(Protocol):
    """What clients list and page through: flows, runs, tasks, attempts, tags."""

    @writes
    def change_tags(
        self, run_key: int, add: Sequence[str], remove: Sequence[str]
    ) -> tuple[str, ...]:
        """Remove, then add user tags, in one transaction.

        Args:
            run_key: The key of the run in the metadata store.
            add: The tags to add; those that the run has already change nothing.
            remove: The tags to remove; those that the run lacks change nothing.

        Returns:
            The tags that the run has now.

        Raises:
            InvalidName: A tag is not allowed, one to remove is a system tag, or there would be too
                many.
            NotFound: There is no such run.
        """

    @writes
    def replace_logs(self, run_key: int, logs: Sequence[ReplacedLog]) -> None:
        """Replace the logs of attempts that have ended, in one transaction, and leave nothing of
        the old ones in the store's own files, as far as it has files of its own: that may take as
        long as copying them.

        Args:
            run_key: The key of the run in the metadata store.
            logs: What takes the place of the log of each attempt.
        """

    @writes
    def delete_run(self, run_key: int) -> None:
        """Remove a run with all its records, in one step, and its flow if that was its last run.
        Fine if there is no such run. Its key is never given to another.

        Args:
            run_key: The key of the run in the metadata store.
        """

    def all_manifests(self, run_key: int) -> Iterator[bytes]:
        """Return the manifests of all attempts of a run, some of them twice: what they refer to is
        in use.

        Args:
            run_key: The key of the run in the metadata store.
        """

    def flows(self) -> list[tuple[str, float]]:
        """Return name and time of creation of every flow, newest first."""

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
        """Return runs, newest first, without their graphs ({}): `run` has them.

        Args:
            flow: The name of the flow; None for all flows.
            tags: Tags, of users or of the system, that a run has to have, all of them.
            states: States of which a run has to have one; empty for any.
            users: Users of whom one has to have created the run; empty for any.
            since: The earliest time of creation, in seconds since the epoch.
            until: The time before which a run was created, in seconds since the epoch.
            after: Time of creation and key of the last run of the page before.
            limit: How many at most; None for all.
            kind: Empty for runs of whole flows, SPIN for those of single tasks.
        """

    def run(self, flow: str, run: str) -> RunRecord | None:
        """Return one run, whole; None where there is none.

        Args:
            flow: The name of the flow.
            run: The id of the run.
        """

    def steps(self, run_key: int) -> list[tuple[str, float, int]]:
        """Return name, time of its first task and number of tasks of every step that has begun,
        without `_parameters`, newest first.

        Args:
            run_key: The key of the run in the metadata store.
        """

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
        """Return tasks with their latest attempts, in one query that streams: in the order of
        tasks, or with `split` in that of the foreach.

        Args:
            run_key: The key of the run in the metadata store.
            step: The name of the step; None for all steps.
            split: The task that opened a foreach: tasks of `steps` directly in it, by index.
            steps: With `split`, the steps whose tasks are returned; empty for all.
            after: The last task, or with `split` the last index, of the page before; None for the
                first.
            limit: How many at most; None for all.
            light: Whether to leave out manifests and logs, as None.
        """

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
        """Return tasks with their latest attempts, those with the greatest number first, in one
        query that streams.

        Args:
            run_key: The key of the run in the metadata store.
            step: The name of the step; None for all steps.
            states: The states of which a task has to have one; empty for any.
            before: The last task of the page before; None for the first.
            limit: How many at most; None for all.
            light: Whether to leave out manifests and logs, as None.
        """

    def progress(self, run_key: int) -> list[StepProgress]:
        """Return how far every step that has begun has come, without `_parameters`, oldest first.
        The counts are kept by commits: the time that it takes does not depend on how many tasks
        there are.

        Args:
            run_key: The key of the run in the metadata store.
        """

    def task_columns(self, run_key: int, after: int = 0) -> Iterator[TaskColumns]:
        """Return tasks of a run with what a timeline shows of their latest attempts, in no order:
        those whose latest attempt was written after the run was at version `after`.

        Args:
            run_key: The key of the run in the metadata store.
            after: The version of the run: tasks are left out whose latest attempt was written up to
                then.
        """

    def task(self, run_key: int, task: int, attempt: int | None = None) -> TaskView | None:
        """Return one task with its latest attempt, or with the attempt asked for.

        Args:
            run_key: The key of the run in the metadata store.
            task: The number of the task within its run.
            attempt: The number of the attempt; None for the latest.
        """

    def manifests(self, run_key: int, tasks: Sequence[int]) -> dict[int, bytes]:
        """Return the manifests of the latest attempts of these tasks, where they succeeded, or run
        and have left one already.

        Args:
            run_key: The key of the run in the metadata store.
            tasks: The numbers of the tasks within the run; of those without a manifest the result
                has no entry.
        """

    def split_manifests(
        self, run_key: int, split: int, steps: Sequence[str], start: int = 0, limit: int = 1000
    ) -> list[tuple[int, int, str, bytes]]:
        """Return a page of a foreach join's inputs: (index, task, step, manifest) of the succeeded
        tasks of `steps` directly in the foreach that `split` opened, by index from `start` on.

        Args:
            run_key: The key of the run in the metadata store.
            split: The task that opened the foreach.
            steps: The names of the steps.
            start: The index of the first item of the page, from 0.
            limit: How many inputs the page has at most.
        """

    def cached(self, flow: str, key: bytes) -> CachedTask | None:
        """Return the task of the flow's runs that has this cache key and succeeded; None where
        there is none. Of several it is the latest that ran itself, before those that reused a
        result.

        Args:
            flow: The name of the flow.
            key: The cache key: a digest of all that the result depends on.
        """

    def attempts(self, run_key: int, task: int) -> list[AttemptRecord]:
        """Return all attempts of a task, oldest first.

        Args:
            run_key: The key of the run in the metadata store.
            task: The number of the task within its run.
        """

    def metadata(self, run_key: int, task: int) -> list[MetadataRecord]:
        """Return the metadata records of a task, oldest first.

        Args:
            run_key: The key of the run in the metadata store.
            task: The number of the task within its run.
        """


class MetadataStore(Journal, Leases, Records, HandedAttempts, Protocol):
    """Journals, leases, records and handed attempts; see the module's text for what is promised."""

    @property
    def url(self) -> str:
        """Where it is, for people (`sqlite:///path`). No password is in it."""

    @property
    def address(self) -> str:
        """The URL that opens it in another process. It may hold a password: never show it."""

    def close(self) -> None:
        """Release files and connections. May be called twice."""


def documents_of(store: object) -> Documents | None:
    """Return the documents that a metadata store keeps; None for one over a service, which keeps
    none.

    Args:
        store: A metadata store of any kind, or several that are read as one.
    """
    kept: Any = store
    return kept if hasattr(store, "put_document") else None


def registry_of(store: object) -> WorkerRegistry | None:
    """Return the registry of workers of a metadata store; None for one that has none.

    Args:
        store: A metadata store of any kind, or several that are read as one.
    """
    kept: Any = store
    return kept if hasattr(store, "beat_worker") else None


# Where a run has failed.


_LOOKED_AT = 100


def failed_task(metadata: MetadataStore, run: RunRecord) -> TaskView | None:
    """Return the task that the run has failed of; None where it has not, or where no task is to
    blame.

    The run's reason is that of this task. Of several with the same reason, the first to fail.

    Args:
        metadata: The metadata store that has the tasks of the run.
        run: The record of the run, whose reason names the failure.
    """
    if run.state is not RunState.FAILED:
        return None
    failed = metadata.newest_tasks(run.key, states=[TaskState.FAILED], limit=_LOOKED_AT, light=True)
    return min(
        (view for view in failed if view.attempt and view.attempt.reason == run.reason),
        key=lambda view: (view.attempt and view.attempt.finished_at) or 0.0,
        default=None,
    )


def why(run: RunRecord, task: TaskView | None) -> str:
    """Return why a run has not succeeded, in one line that begins with the task; "" where no reason
    was recorded.

    Args:
        run: The record of the run; its reason may have several lines.
        task: The task that failed first; None where none has.
    """
    first = next(iter(run.reason.strip().splitlines()), "")
    return first if task is None else f"{task.task.step}/{task.task.task}: {first}"


# What becomes of the tags of a run.


def changed(
    known: Iterable[tuple[str, object]], add: Sequence[str], remove: Sequence[str]
) -> tuple[str, ...]:
    """Return the user tags of a run after some were removed and then others added.

    Args:
        known: The tags of the run, each with whether it is a system tag: the run has those already,
            so that adding one changes nothing.
        add: The tags that the run has afterwards; one that it has already changes nothing.
        remove: The tags that it no longer has; one that it lacks changes nothing.

    Raises:
        InvalidName: A tag is not allowed, one to remove is a system tag, or there would be too
            many.
    """
    of_system = dict(known)
    for tag in remove:
        if of_system.get(tag):
            raise InvalidName(f"{tag!r} is a system tag, which nobody may remove.")
    add = [tag for tag in add if not of_system.get(tag)]
    kept = {tag for tag, is_system in of_system.items() if not is_system}
    tags = tuple(sorted((kept - {*remove}) | {*add}))
    if len(tags) > ids.MAX_TAGS:
        raise InvalidName(f"A run can have at most {ids.MAX_TAGS} tags; it would have {len(tags)}.")
    return tags
