"""The port of the metadata store: the journals of runs, and the records that clients read.

The *journal* of a run consists of its events, appended in batches; the state of the run is computed
by replaying them. The *records* (flows, runs, tasks, attempts) are what clients list, filter and
page through. `commit` writes both in one transaction.

Every backend guarantees the following; tests/contracts/test_metadata*.py check it:

- `create_run` is atomic, and rejects a run id that the flow already has.
- `commit` is a compare-and-set on the run's version: it either applies the whole batch and
  increments the version, or raises VersionConflict and changes nothing. With durability `power`,
  committed data survive a power failure; with `process`, any crash except that of the machine.
- Readers see commits whole and in order, and their own immediately. Readers never block the writer.
- A database of a newer version raises MetadataTooNew; one that is missing, locked for too long,
  full, read-only or damaged raises MetadataUnavailable, with one sentence that names the place, the
  reason and a remedy.

Calls block. A store may be used from several threads; asyncio code calls it in a thread.
Arguments and results are plain values; times are seconds since the epoch, in UTC.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

from aflow._core import ids
from aflow._core.records import NamedTuple, dataclass, field
from aflow.errors import InvalidName
from aflow.scheduler.states import AttemptState, RunState, TaskState

SPIN = "spin"
# Of runs that are not in aflow's own metadata.
FIRST_KEY = 1 << 61
"""The first key of runs that Metaflow has recorded; keys of aflow's runs are lower."""
READ_ONLY = "This run is one of Metaflow's: aflow reads it, and it is never changed."
MARK = "metaflow+"
"""The prefix of the datastore URLs of Metaflow's runs, which only MetaflowHistory can open."""
LEASE = 10.0
"""Seconds without a heartbeat after which the lease of a run has expired."""
DAMAGED: dict[str, Any] = {"damaged": True}
"""The settings that replace those of a run if they cannot be read."""


class RunLease(NamedTuple):
    """The lease of a run that has not finished. `holder` is `kind/name`; `left` the seconds until
    it expires, by the store's clock, at the time of reading (negative if it has expired); `cancel`
    the reason of a request to cancel the run, or None."""

    holder: str
    left: float
    cancel: str | None = None


class RunRecord(NamedTuple):
    """One run. `key` is the store's own number for it, a compact reference.

    `graph` is `Graph.as_dict()`; `settings` are those that the run was started with (max_workers,
    datastore, isolation, python and aflow version, script, host, pid), as plain values. `kind` is
    empty for a run of a whole flow, and SPIN for a run of a single task, which lists omit. `lease`
    is None once the run has finished and if it never had a holder; stores fill it in when they
    read a run, and ignore it when they create one.
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
    """Conditions on the runs to list, and their maximum number; see `Records.runs`."""

    tags: Sequence[str] = ()
    states: Sequence[RunState] = ()
    users: Sequence[str] = ()
    since: float | None = None
    until: float | None = None
    after: tuple[float, int] | None = None
    limit: int | None = None
    kind: str = ""

    def passes(self, tags: Collection[str], user: object, created_at: float, key: int) -> bool:
        """Return whether a run meets all conditions except those on its state and kind.

        Args:
            tags: The run's tags, of users and of the system.
            user: The user who created the run.
            created_at: Seconds since the epoch.
            key: `RunRecord.key` of the run.
        """
        return (
            all(tag in tags for tag in self.tags)
            and (not self.users or user in self.users)
            and (self.since is None or created_at >= self.since)
            and (self.until is None or created_at < self.until)
            and (self.after is None or (created_at, key) < self.after)
        )


class TaskRecord(NamedTuple):
    """The immutable part of a task. Written once, with its first attempt.

    `created_at` is when the task became ready, that is, when all its inputs existed. `split` and
    `index` locate it in the innermost foreach around it (the task that opened the foreach, and the
    number of the item). `inputs` is the result of `scheduler.messages.encode_inputs`. `origin` is
    the task (`run/step/task` of the same flow) whose result was reused instead of running this one;
    empty if it ran. `cache_key` is a digest of all that the result depends on, or None if it was
    not computed.
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
    """A task that succeeded earlier with the requested cache key."""

    pathspec: str
    run_key: int
    task: int
    manifest: bytes


class AttemptRecord(NamedTuple):
    """One attempt. Written when it starts and again, as a whole, when it finishes (upsert).

    `manifest` is `storage.manifest.Manifest.encode()`, set if the attempt has succeeded.
    `log` is the attempt's output if it is small (`storage.logs`); otherwise it is None, and
    `log_chunks` is the number of objects that hold the output. `host` and `pid` identify the
    process; `handle` the worker or the job that ran the attempt, empty for a child process of the
    coordinator. `max_rss` is in bytes, `cpu` in seconds.
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
    """A named fact about an attempt, in addition to the records above."""

    task: int
    attempt: int
    field: str
    value: str
    type: str
    created_at: float


class ReplacedLog(NamedTuple):
    """The replacement of an attempt's log; the fields are those of AttemptRecord."""

    task: int
    attempt: int
    log: bytes | None
    log_chunks: int
    stdout_size: int
    stderr_size: int


class RunUpdate(NamedTuple):
    """The changes that a commit makes to the run itself; None keeps a value."""

    state: RunState | None = None
    finished_at: float | None = None
    reason: str | None = None


@dataclass(slots=True)
class Batch:
    """The content of one commit: encoded events for the journal, and records."""

    events: bytes = b""
    tasks: list[TaskRecord] = field(default_factory=list)
    attempts: list[AttemptRecord] = field(default_factory=list)
    metadata: list[MetadataRecord] = field(default_factory=list)
    run: RunUpdate | None = None


class TaskView(NamedTuple):
    """A task joined with one of its attempts: the latest, unless another one was requested.

    `attempt` is None if the first attempt has not started. `attempts` is the number of attempts.
    """

    run_key: int
    task: TaskRecord
    attempt: AttemptRecord | None
    attempts: int = 0

    @property
    def state(self) -> TaskState:
        """The task's state, derived from the state of the attempt."""
        if self.attempt is None:
            return TaskState.READY
        return TASK_STATES[self.attempt.state]


# The state of a task by the state of its latest attempt. A task without attempts is READY.
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
    """A task as a timeline shows it: its creation, and the figures of its latest attempt.
    `attempt` is the number of that attempt, `host` and `pid` identify its process; `reused` is true
    if the result is that of an earlier task."""

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
    """The progress of a step: creation of its first task, number of tasks by state, end of the last
    attempt that has finished, and the peak memory of its attempts in bytes."""

    step: str
    created_at: float
    tasks: dict[TaskState, int]
    finished_at: float | None
    max_rss: int | None = None


class LeaseState(NamedTuple):
    """Whether the caller holds the lease, and the reason of a request to cancel, or None."""

    mine: bool
    cancel: str | None = None


class Document(NamedTuple):
    """A small document that belongs to no run. `version` counts its changes, from 1."""

    name: str
    version: int
    data: bytes


Method = TypeVar("Method", bound=Callable[..., Any])


def writes(method: Method) -> Method:
    """Mark a method of a port as writing: the metadata service refuses it to tokens with the scope
    `read`, and accepts large requests for it.

    Args:
        method: A method of a protocol.

    Returns:
        The same method.
    """
    vars(method)["writes"] = True
    return method


class Documents(Protocol):
    """aflow's small documents. The metadata service does not offer them to its clients."""

    def put_document(self, kind: str, name: str, data: bytes, version: int = 0) -> int:
        """Create or change a document.

        Args:
            kind: The kind of document, such as `schedule` or `token`.
            name: A name that is unique within the kind.
            data: The content, in the format of the kind.
            version: 0 to create a document; otherwise the version that the caller has read, which
                must still be the current one.

        Returns:
            The new version of the document.

        Raises:
            VersionConflict: If it already exists, or was changed after the caller read it.
        """

    def delete_document(self, kind: str, name: str) -> bool:
        """Delete a document.

        Args:
            kind: The kind of document, such as `schedule` or `token`.
            name: Its name within the kind.

        Returns:
            Whether it existed.
        """

    def documents(self, kind: str) -> list[Document]:
        """Return all documents of a kind, by name.

        Args:
            kind: The kind of document, such as `schedule` or `token`.
        """

    def document(self, kind: str, name: str) -> Document | None:
        """Return one document, or None if there is none.

        Args:
            kind: The kind of document, such as `schedule` or `token`.
            name: Its name within the kind.
        """


class RunningTask(NamedTuple):
    """An attempt that a worker has leased: its task as `Flow/run/step/task`, since when (seconds
    since the epoch), and whether it has started or waits for a slot."""

    pathspec: str
    attempt: int
    since: float
    begun: bool = True


class WorkerRecord(NamedTuple):
    """A worker as it registers itself, and renews its registration with each heartbeat.

    `queue` is the URL of the queue that it polls, without a password; `pools` the pools whose tasks
    it takes; `slots` the number of tasks that it runs concurrently; `running` its current attempts
    (at most `MOST_RUNNING`); `done` and `failed` the numbers of attempts that have finished;
    `ended` the number of attempts that finished in the last minute, by pool.

    The store sets `heartbeat_at`, `left` (seconds until the registration expires) and `drain` (the
    reason of a request to drain the worker) when it reads a worker, and ignores them when it writes
    one.
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
"""The maximum number of running attempts in the record of a worker."""

LARGEST_JOBS = 1 << 20
"""The maximum size in bytes of a document in which a run publishes its jobs."""


class WorkerRegistry(Protocol):
    """The registered workers; SQLite, PostgreSQL and the metadata service keep them."""

    @writes
    def beat_worker(self, worker: WorkerRecord, seconds: float) -> str | None:
        """Register a worker, or renew its registration.

        Args:
            worker: The worker's description of itself.
            seconds: Validity of the registration in seconds, by the store's clock.

        Returns:
            The reason of a request to drain the worker, or None.

        Raises:
            InvalidName: If the name of the worker is not allowed.
        """

    def workers(self) -> list[WorkerRecord]:
        """Return the workers whose registration has not expired, by name."""

    @writes
    def drain_worker(self, name: str, reason: str) -> bool:
        """Ask a worker to finish its tasks and exit: its next heartbeat returns the request.
        The first reason is kept.

        Args:
            name: The name under which the worker has registered.
            reason: One sentence for users.

        Returns:
            Whether the worker is registered.
        """

    @writes
    def remove_worker(self, name: str) -> None:
        """Delete the registration of a worker, if there is one.

        Args:
            name: The name under which the worker has registered.
        """


class HandedAttempt(NamedTuple):
    """An attempt that another executor has accepted and not finished. `handle` names its job or its
    worker there; `state` is QUEUED until it starts, on `host`, at `started_at`. `created_at` is
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
    """Attempts that other executors have accepted, found by an index, and the documents in which
    runs publish their jobs at job systems."""

    def live_counts(self, run_key: int) -> dict[str, dict[AttemptState, int]]:
        """Return the numbers of queued and running attempts by step; commits maintain the counts.

        Args:
            run_key: `RunRecord.key` of the run.
        """

    def handed(self, run_key: int, step: str | None, after: int, limit: int) -> list[HandedAttempt]:
        """Return a page of the attempts of a run that other executors have accepted and not
        finished, ordered by task.

        Args:
            run_key: `RunRecord.key` of the run.
            step: The step whose attempts to return; None for all steps.
            after: The last task of the previous page; 0 for the first page.
            limit: Maximum number of attempts.
        """

    @writes
    def put_jobs(self, name: str, data: bytes) -> None:
        """Replace the document in which a run publishes its jobs at one job system.

        Args:
            name: `Flow/run SYSTEM`.
            data: The content, at most LARGEST_JOBS bytes; empty to delete the document.

        Raises:
            InvalidMessage: If the content is larger.
        """

    def jobs(self) -> list[Document]:
        """Return the documents written by `put_jobs`, by name."""


class Journal(Protocol):
    """The events of each run, ordered by version."""

    @writes
    def create_run(
        self, run: RunRecord, parameters: bytes, holder: str = "", seconds: float = 0.0
    ) -> RunRecord:
        """Record a new run with its task 0 of step `_parameters`, which has succeeded; and its
        flow, if this is the flow's first run. The holder, if given, acquires the lease.

        Args:
            run: The run; its `key` is ignored.
            parameters: The manifest of task 0.
            holder: The lease holder, as `kind/name`; empty for none.
            seconds: Duration of the lease in seconds, by the store's clock.

        Returns:
            The run with its real key, at version 0.

        Raises:
            VersionConflict: If the flow already has a run with this id.
        """

    @writes
    def commit(self, run_key: int, version: int, batch: Batch, mark: str = "") -> int:
        """Write a batch in one transaction if the run is at the expected version.

        Args:
            run_key: `RunRecord.key` of the run.
            version: The expected version of the run.
            batch: The events, and the records that follow from them.
            mark: An idempotency token, unique to this commit: a caller that lost the response
                repeats the call with the same mark, and the batch is not written twice.

        Returns:
            The new version of the run, `version` + 1.
        """

    def journal(self, run_key: int) -> Iterator[bytes]:
        """Return the event batches of the run, oldest first.

        Args:
            run_key: `RunRecord.key` of the run.
        """

    def journal_after(self, run_key: int, version: int) -> Generator[tuple[int, bytes], None, None]:
        """Return the event batches written after a version of the run, each with the version that
        the run had after it.

        Args:
            run_key: `RunRecord.key` of the run.
            version: The version up to which batches are omitted; 0 for all batches.
        """


class Leases(Protocol):
    """The leases of runs: the holder of a run's lease coordinates it."""

    @writes
    def acquire_lease(self, run_key: int, holder: str, seconds: float, at: float) -> LeaseState:
        """Acquire the lease of a run, or renew it.

        It is not acquired while another holder has an unexpired lease, or if the run has finished.
        The version of the run does not change: a holder whose lease has expired can still commit
        until the next holder has committed.

        Args:
            run_key: `RunRecord.key` of the run.
            holder: The caller, as `kind/name`.
            seconds: Duration of the lease in seconds, by the store's clock.
            at: The time of the heartbeat by the holder's clock, in seconds since the epoch; it is
                stored in the run's record.

        Returns:
            Whether the caller holds the lease now, and a request to cancel the run, if there is
            one.
        """

    @writes
    def release_lease(self, run_key: int, holder: str) -> None:
        """Release the lease if `holder` has it, so that another holder can acquire it immediately.
        Does nothing otherwise.

        Args:
            run_key: `RunRecord.key` of the run.
            holder: The caller, as `kind/name`.
        """

    def orphaned(self, kind: str, limit: int = 100) -> list[tuple[str, str]]:
        """Return flow and id of orphaned runs, which have not finished and whose lease has expired,
        ordered by the time of expiry.

        Args:
            kind: The kind of the last holder, as in `kind/name`.
            limit: Maximum number of runs.
        """

    @writes
    def request_cancel(self, run_key: int, reason: str) -> bool:
        """Ask the current or next lease holder of a run to cancel it: `acquire_lease` returns the
        request. The first reason is kept.

        Args:
            run_key: `RunRecord.key` of the run.
            reason: One sentence for users.

        Returns:
            False if the run has finished, or has never had a lease holder.
        """


class Records(Protocol):
    """The records that clients list and page through: flows, runs, tasks, attempts, tags."""

    @writes
    def change_tags(
        self, run_key: int, add: Sequence[str], remove: Sequence[str]
    ) -> tuple[str, ...]:
        """Remove and then add user tags, in one transaction.

        Args:
            run_key: `RunRecord.key` of the run.
            add: Tags to add; those that the run already has are ignored.
            remove: Tags to remove; those that the run does not have are ignored.

        Returns:
            The user tags of the run after the change.

        Raises:
            InvalidName: If a tag is not allowed, a tag to remove is a system tag, or the run would
                have too many tags.
            NotFound: If there is no such run.
        """

    @writes
    def replace_logs(self, run_key: int, logs: Sequence[ReplacedLog]) -> None:
        """Replace the logs of finished attempts in one transaction, and erase the old logs from the
        store's own files, if it has any. Erasing may take as long as copying the files.

        Args:
            run_key: `RunRecord.key` of the run.
            logs: The new logs; attempts that are not listed keep theirs.
        """

    @writes
    def delete_run(self, run_key: int) -> None:
        """Delete a run with all its records atomically, and its flow if that has no other run. Does
        nothing if there is no such run. The key is never used again.

        Args:
            run_key: `RunRecord.key` of the run.
        """

    def all_manifests(self, run_key: int) -> Iterator[bytes]:
        """Return the manifests of all attempts of a run, possibly with duplicates; the objects that
        they reference are in use.

        Args:
            run_key: `RunRecord.key` of the run.
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
        """Return runs, newest first, with an empty `graph`: only `run` returns the graph.

        Args:
            flow: The flow's name; None for all flows.
            tags: Tags, of users or of the system; a run must have all of them.
            states: Allowed states; empty for any.
            users: Users who may have created the run; empty for any.
            since: Earliest time of creation (inclusive), in seconds since the epoch.
            until: Latest time of creation (exclusive), in seconds since the epoch.
            after: Time of creation and key of the last run of the previous page.
            limit: Maximum number of runs; None for all.
            kind: Empty for runs of whole flows, SPIN for runs of single tasks.
        """

    def run(self, flow: str, run: str) -> RunRecord | None:
        """Return one run with its graph, or None if there is none.

        Args:
            flow: The flow's name, the first part of a pathspec.
            run: The run's id, the second part of a pathspec.
        """

    def steps(self, run_key: int) -> list[tuple[str, float, int]]:
        """Return the name, the creation time of the first task and the number of tasks of every
        step that has started, except `_parameters`, newest first.

        Args:
            run_key: `RunRecord.key` of the run.
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
        """Return tasks with their latest attempts, in one streaming query: ordered by task number,
        or with `split` by index in the foreach.

        Args:
            run_key: `RunRecord.key` of the run.
            step: The step whose tasks to return; None for all steps.
            split: The task that opened a foreach: only tasks directly in it are returned.
            steps: With `split`, the steps whose tasks to return; empty for all.
            after: The last task, or with `split` the last index, of the previous page; None for the
                first page.
            limit: Maximum number of tasks; None for all.
            light: Whether to omit manifests and logs, which are then None.
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
        """Return tasks with their latest attempts, in descending order of task numbers, in one
        streaming query.

        Args:
            run_key: `RunRecord.key` of the run.
            step: The step whose tasks to return; None for all steps.
            states: Allowed states of a task; empty for any.
            before: The last task of the previous page; None for the first page.
            limit: Maximum number of tasks; None for all.
            light: Whether to omit manifests and logs, which are then None.
        """

    def progress(self, run_key: int) -> list[StepProgress]:
        """Return the progress of every step that has started, except `_parameters`, oldest first.
        Commits maintain the counts, so the duration does not depend on the number of tasks.

        Args:
            run_key: `RunRecord.key` of the run.
        """

    def task_columns(self, run_key: int, after: int = 0) -> Iterator[TaskColumns]:
        """Return the timeline data of the tasks whose latest attempt was written after a version of
        the run, in no particular order.

        Args:
            run_key: `RunRecord.key` of the run.
            after: The version of the run up to which tasks are omitted; 0 for all tasks.
        """

    def task(self, run_key: int, task: int, attempt: int | None = None) -> TaskView | None:
        """Return one task with the requested attempt, by default the latest; None if there is none.

        Args:
            run_key: `RunRecord.key` of the run.
            task: The task's number within the run; that of `_parameters` is 0.
            attempt: The number of the attempt; None for the latest.
        """

    def manifests(self, run_key: int, tasks: Sequence[int]) -> dict[int, bytes]:
        """Return the manifests of the latest attempts of tasks that have succeeded, or are running
        and have already written a manifest.

        Args:
            run_key: `RunRecord.key` of the run.
            tasks: Task numbers within the run; the result omits tasks without a manifest.
        """

    def split_manifests(
        self, run_key: int, split: int, steps: Sequence[str], start: int = 0, limit: int = 1000
    ) -> list[tuple[int, int, str, bytes]]:
        """Return a page of the inputs of a foreach join: (index, task, step, manifest) of the
        succeeded tasks of `steps` directly in the foreach that `split` opened, ordered by index.

        Args:
            run_key: `RunRecord.key` of the run.
            split: The task that opened the foreach.
            steps: The steps whose tasks the join reads.
            start: The first index of the page; indexes begin at 0.
            limit: Maximum number of inputs.
        """

    def cached(self, flow: str, key: bytes) -> CachedTask | None:
        """Return a succeeded task of the flow with this cache key, or None. The latest task that
        ran itself is preferred to those that reused a result.

        Args:
            flow: The flow's name, the first part of a pathspec.
            key: A digest of all that the result depends on.
        """

    def attempts(self, run_key: int, task: int) -> list[AttemptRecord]:
        """Return all attempts of a task, oldest first.

        Args:
            run_key: `RunRecord.key` of the run.
            task: The task's number within the run; that of `_parameters` is 0.
        """

    def metadata(self, run_key: int, task: int) -> list[MetadataRecord]:
        """Return the metadata records of a task, oldest first.

        Args:
            run_key: `RunRecord.key` of the run.
            task: The task's number within the run; that of `_parameters` is 0.
        """


class MetadataStore(Journal, Leases, Records, HandedAttempts, Protocol):
    """Journals, leases, records and handed attempts; the module docstring lists the guarantees."""

    @property
    def url(self) -> str:
        """The URL for messages (`sqlite:///path`), without a password."""

    @property
    def address(self) -> str:
        """The URL that opens the store in another process. It may contain a password."""

    def close(self) -> None:
        """Release files and connections. Idempotent."""


def documents_of(store: object) -> Documents | None:
    """Return the document store of a metadata store, or None if it keeps no documents, such as the
    client of a metadata service.

    Args:
        store: Any metadata store, or a combination of several.
    """
    kept: Any = store
    return kept if hasattr(store, "put_document") else None


def registry_of(store: object) -> WorkerRegistry | None:
    """Return the worker registry of a metadata store, or None if it has none.

    Args:
        store: Any metadata store, or a combination of several.
    """
    kept: Any = store
    return kept if hasattr(store, "beat_worker") else None


# The task at which a run has failed.


_LOOKED_AT = 100


def failed_task(metadata: MetadataStore, run: RunRecord) -> TaskView | None:
    """Return the failed task that caused the failure of a run: of the tasks whose reason is that of
    the run, the first to fail. None if the run has not failed, or no task caused it.

    Args:
        metadata: The metadata store of the run.
        run: The run; its reason selects the task.
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
    """Return why a run has not succeeded, in one line that starts with the task; "" if no reason
    was recorded.

    Args:
        run: The run; only the first line of its reason is used.
        task: The task that caused the failure; None if no task did.
    """
    first = next(iter(run.reason.strip().splitlines()), "")
    return first if task is None else f"{task.task.step}/{task.task.task}: {first}"


# Changing the tags of a run.


def changed(
    known: Iterable[tuple[str, object]], add: Sequence[str], remove: Sequence[str]
) -> tuple[str, ...]:
    """Return the user tags of a run after some were removed and then others added.

    Args:
        known: The current tags of the run, each with whether it is a system tag.
        add: Tags to add; those that the run already has are ignored.
        remove: Tags to remove; those that the run does not have are ignored.

    Raises:
        InvalidName: If a tag is not allowed, a tag to remove is a system tag, or the run would
            have too many tags.
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
