"""Create runs, give each a driver and an executor, and release all resources on exit.

    async with Coordinator(storage=..., metadata=..., max_workers=5) as coordinator:
        run = await coordinator.start(MyFlow, alpha=0.1)
        async for event in run.events():
            ...
        await run.wait()

A coordinator runs in the caller's event loop: it never blocks the loop, installs no signal
handlers, and leaves no process, descriptor or temporary file behind. A program may have several.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Self

from aflow import environments, runs
from aflow._core.clock import SystemClock
from aflow._core.ids import PARAMETERS_TASK
from aflow._core.records import replace
from aflow._core.settings import Durability, Isolation, RunOptions, Settings
from aflow._core.threads import in_thread, to_the_end
from aflow.errors import CoordinatorClosed, InvalidInput, NotFound, RunHasCoordinator
from aflow.executors.factory import built_here, executor_for, travelling, with_locks
from aflow.executors.local.executor import GRACE
from aflow.metadata.base import LEASE, MetadataRecord, RunRecord
from aflow.metadata.factory import open_metadata
from aflow.runs.admission import Admission, WhenFull
from aflow.runs.create import Creation, Driving, NewRun, current_facts
from aflow.runs.driver import RunDriver
from aflow.runs.events import RunEnded, RunEvent, Watch
from aflow.scheduler.machine import Machine, RunMachine, SingleTask
from aflow.scheduler.retry import policies_from
from aflow.storage.factory import open_store
from aflow.task.config_binding import configured
from aflow.task.program import check_may_begin
from aflow.task.spec import RunContext

if TYPE_CHECKING:
    from aflow._core.clock import Clock
    from aflow.environments.build import Built
    from aflow.executors.base import Executor
    from aflow.executors.factory import Travelling
    from aflow.executors.local.zygote_client import ZygoteProcess
    from aflow.flow.definition import FlowDefinition
    from aflow.flow.spec import FlowSpec
    from aflow.metadata.base import MetadataStore
    from aflow.runs.recovery import Unfinished
    from aflow.scheduler.messages import LaunchAttempt
    from aflow.storage.base import ObjectStore

LEFTOVERS = 86400.0  # seconds after which leftovers of a crashed writer are removed from the store


class Stopping:
    """The return value of `RunHandle.cancel`. The run is already being stopped; awaiting this
    object waits until it has stopped, and returns its last event."""

    def __init__(self, run: RunHandle) -> None:
        self._run = run

    def __await__(self) -> Generator[Any, None, RunEnded]:
        return self._run.wait().__await__()


class RunHandle:
    """A run that a coordinator drives."""

    def __init__(self, record: RunRecord, driver: RunDriver, listeners: list[Watch]) -> None:
        self._record = record
        self._driver = driver
        self._listeners = listeners
        self.task: asyncio.Task[RunEnded]

    @property
    def id(self) -> str:
        """The run's id."""
        return self._record.run

    @property
    def pathspec(self) -> str:
        """The flow's name and the run's id, as `Run(...)` of the client takes them."""
        return f"{self._record.flow}/{self._record.run}"

    async def wait(self) -> RunEnded:
        """Wait until the run has ended. Several tasks may wait, each more than once. Cancelling a
        waiting task does not cancel the run. If the run could no longer be recorded, the error of
        the metadata or of the datastore is raised here.

        Returns:
            The last event of the run, with its outcome.

        Raises:
            RunLeft: If `leave` was called.
            RunTakenOver: If another coordinator has acquired the lease of the run.
        """
        return await asyncio.shield(self.task)

    def cancel(self, reason: str = "The run was cancelled.") -> Stopping:
        """Cancel the run and start to stop its tasks. Does nothing if the run is already cancelled
        or has ended.

        Args:
            reason: The reason, which is recorded with the run.

        Returns:
            An awaitable: `await run.cancel()` waits until the run has ended and returns its
            last event.
        """
        if not self.task.done():
            self._driver.cancel(reason)
        return Stopping(self)

    def leave(self) -> None:
        """Stop driving the run without ending it: `Coordinator.recover` or `aflow recover` can
        continue it later.

        Attempts on workers continue; attempts in processes of this machine are interrupted, which
        does not count as a retry. From then on `wait` raises RunLeft. A second call changes
        nothing."""
        if not self.task.done():
            self._driver.leave()

    async def events(self) -> AsyncGenerator[RunEvent, None]:
        """Yield the events of the run, from the first `anext` until the run ends.

        There may be several listeners. Events are buffered for a slow listener, which does not
        delay the others. A listener that stops early must close the iterator
        (`contextlib.aclosing`)."""
        queue: asyncio.Queue[Sequence[RunEvent]] = asyncio.Queue()
        receive = queue.put_nowait

        def end(_: object) -> None:
            queue.put_nowait(())

        self._listeners.append(receive)
        self.task.add_done_callback(end)
        try:
            if self.task.done():
                end(None)
            while events := await queue.get():
                for event in events:
                    yield event
        finally:
            self._listeners.remove(receive)
            self.task.remove_done_callback(end)


class Coordinator:
    """Runs flows on this machine, in the event loop in which it is entered.

    `storage` and `metadata` are URLs or backends. `max_workers` limits the concurrent attempts of
    each run. `isolation` is `task` (a new process for each task) or `worker` (processes that run
    many tasks).

    `max_runs` limits the concurrent runs. At the limit `start` waits until a run has ended, first
    come, first served (`when_full="wait"`), or raises CoordinatorFull (`when_full="refuse"`).

    The coordinator holds a lease on each of its runs, under a holder name of the kind
    `holder_kind`, and renews it with heartbeats. If its process crashes, the lease expires LEASE
    seconds after the last heartbeat; `orphaned` then lists the run, and `recover` continues it.
    """

    def __init__(
        self,
        *,
        storage: str | ObjectStore,
        metadata: str | MetadataStore,
        max_workers: int = 16,
        isolation: Isolation = "task",
        max_runs: int | None = None,
        when_full: WhenFull = "wait",
        durability: Durability = "power",
        user: str | None = None,
        grace: float = GRACE,
        clock: Clock | None = None,
        holder_kind: str = "coordinator",
    ) -> None:
        self._state: Literal["new", "open", "closed"] = "new"
        self._kind = holder_kind
        self._holder = runs.liveness.holder_named(holder_kind)
        self._storage = storage
        self._metadata = metadata
        self._max_workers = max_workers
        self._isolation = isolation
        self._durability = durability
        self._grace = grace
        self._user = user or Settings.load().user
        self._clock = clock or SystemClock()
        self._admission = Admission(max_runs, when_full)
        self._beginning: set[asyncio.Task[RunHandle]] = set()
        self._runs: set[RunHandle] = set()
        self._store: ObjectStore
        self._records: MetadataStore

    async def __aenter__(self) -> Self:
        check_may_begin()
        if self._state != "new":
            raise InvalidInput("This coordinator was entered before: make another one.")
        self._state = "open"
        try:
            await to_the_end(lambda: in_thread(self._open))
        except asyncio.CancelledError:
            await to_the_end(self._close)
            raise
        return self

    def _check_entered(self) -> None:
        if self._state == "new":
            raise InvalidInput(
                "This coordinator was not entered: use it in a block, `async with "
                "aflow.Coordinator(...) as coordinator:`."
            )
        if self._state == "closed":
            raise CoordinatorClosed("The coordinator was closed: its block has been left.")

    def _open(self) -> None:
        storage, metadata = self._storage, self._metadata
        if hasattr(self, "_creation"):
            return  # already open: an earlier call was cancelled while it waited for this
        self._store = open_store(storage) if isinstance(storage, str) else storage
        self._store.sweep(LEFTOVERS, self._clock.now())
        self._records = (
            open_metadata(metadata, self._durability) if isinstance(metadata, str) else metadata
        )
        self._creation = Creation(
            self._records, self._store, self._durability, self._user, self._clock
        )

    async def __aexit__(self, *exc: object) -> None:
        """Cancel all unfinished runs and release all resources. Callers that wait in `start` get
        CoordinatorClosed. If the caller is cancelled in the meantime, CancelledError is raised once
        everything has been released."""
        await to_the_end(self._close)

    async def _close(self) -> None:
        self._state = "closed"
        self._admission.close()
        # Not asyncio.gather: cancelling a gather cancels the tasks that it waits for.
        if self._beginning:
            await asyncio.wait({*self._beginning})  # their callers get the error
        for run in [*self._runs]:
            run.cancel("The coordinator was closed.")
        if self._runs:
            await asyncio.wait({run.task for run in self._runs})
        if isinstance(self._metadata, str):
            await in_thread(self._records.close)

    @property
    def runs(self) -> tuple[RunHandle, ...]:
        """The unfinished runs of this coordinator, sorted by id."""
        return tuple(sorted(self._runs, key=lambda run: run.id))

    async def start(
        self,
        flow: type[FlowSpec] | FlowDefinition,
        *,
        options: RunOptions | None = None,
        zygote: ZygoteProcess | None = None,
        watch: Watch | None = None,
        **parameters: Any,
    ) -> RunHandle:
        """Start a run of the flow with these parameters.

        Raises InvalidFlow, InvalidParameter, CoordinatorFull, CoordinatorClosed, StorageError and
        MetadataError; no run has been started then. If the call is cancelled, its run is cancelled
        too.

        Args:
            flow: The class of the flow, or its definition.
            options: The options of the run; None for those of the settings.
            zygote: A zygote that has imported the flow already, such as that of the command line;
                None to start one when the first task needs it.
            watch: Called with the events of the run, in order; None for no callback.
            **parameters: The values of the flow's parameters, by name.

        Returns:
            The handle of the run, which has been recorded.
        """
        self._check_entered()
        options = options or RunOptions(max_workers=self._max_workers, isolation=self._isolation)
        # In a thread: parsing the sources of a new flow takes some milliseconds.
        definition = await in_thread(configured, flow) if isinstance(flow, type) else flow
        given = options.parameters | parameters
        return await self._admitted(self._begin(definition, options, given, zygote, watch))

    async def orphaned(self, limit: int = 100) -> list[str]:
        """Return the pathspecs of unfinished runs that have lost their coordinator, which was one
        of the same `holder_kind`; the one lost longest ago comes first. Raises MetadataError.

        Args:
            limit: The maximum number of runs.
        """
        self._check_entered()
        found = await in_thread(self._records.orphaned, self._kind, limit)
        return [f"{flow}/{run}" for flow, run in found]

    async def recover(
        self,
        flow: type[FlowSpec] | FlowDefinition,
        run: str,
        *,
        options: RunOptions | None = None,
        zygote: ZygoteProcess | None = None,
        watch: Watch | None = None,
    ) -> RunHandle:
        """Continue a run of the flow whose coordinator has crashed. Finished tasks are kept.
        Attempts on workers of a queue are awaited; attempts in processes, which ended with their
        coordinator, run again, which does not count as a retry. Also raises the errors of `start`.

        Args:
            flow: The class of the flow, or its definition.
            run: The id of the run.
            options: The options of the run; None for those of the settings.
            zygote: A zygote that has imported the flow already; None to start one when the first
                task needs it.
            watch: Called with the events of the run, in order; None for no callback.

        Returns:
            The handle of the run.

        Raises:
            NotFound: If the run does not exist.
            RunHasCoordinator: If the lease of its coordinator has not expired.
            InvalidInput: If the run has ended, or the steps of the flow have changed.
        """
        self._check_entered()
        options = options or RunOptions(isolation=self._isolation)
        definition = await in_thread(configured, flow) if isinstance(flow, type) else flow
        return await self._admitted(self._go_on(definition, run, options, zygote, watch))

    adopt = recover  # the former name, kept for programs that use it

    async def _admitted(self, begin: Coroutine[Any, Any, RunHandle]) -> RunHandle:
        """Await `begin`, which starts the run, as soon as the coordinator has room for the run."""
        try:
            await self._admission.enter()
        except BaseException:
            begin.close()
            raise
        # A separate task: what a thread is already recording cannot be undone if `start` is
        # cancelled. The task finishes, and the run is then cancelled. __aexit__ waits for it.
        beginning = asyncio.get_running_loop().create_task(begin)
        self._beginning.add(beginning)
        beginning.add_done_callback(self._beginning.discard)
        try:
            return await asyncio.shield(beginning)
        except asyncio.CancelledError:
            beginning.add_done_callback(_stop_unwanted)
            raise

    async def _begin(
        self,
        definition: FlowDefinition,
        options: RunOptions,
        given: Mapping[str, Any],
        zygote: ZygoteProcess | None,
        watch: Watch | None,
    ) -> RunHandle:
        try:
            options, executor = await self._executor(definition, options, zygote)
            driving = Driving(self._holder, executor.lookahead, bounds=executor.bounds)
            new = await in_thread(self._creation.create, definition, options, given, driving)
            machine = _machine(definition, options, new.launch, executor.lookahead, executor.bounds)
            return self._driven(definition, options, new, executor, machine, watch)
        except BaseException:
            self._admission.leave()
            raise

    async def _go_on(
        self,
        definition: FlowDefinition,
        run: str,
        options: RunOptions,
        zygote: ZygoteProcess | None,
        watch: Watch | None,
    ) -> RunHandle:
        try:
            record = await in_thread(self._held, definition, run)
            try:
                # Read again: its coordinator may have written to it until the lease was acquired.
                record = await in_thread(lambda: self._records.run(record.flow, run) or record)
                options = runs.recovery.as_recorded(options, record)
                options = await in_thread(self._with_recorded_locks, options, record)
                options, executor = await self._executor(definition, options, zygote)
                settings = record.settings
                bounds = settings.get("bounds") or {}  # as recorded: the journal is based on these
                machine = _machine(definition, options, None, settings["lookahead"], bounds)
                new, unfinished = await in_thread(self._stood, definition, options, record, machine)
                return self._driven(definition, options, new, executor, machine, watch, unfinished)
            except BaseException:
                await in_thread(self._records.release_lease, record.key, self._holder)
                raise
        except BaseException:
            self._admission.leave()
            raise

    def _with_recorded_locks(self, options: RunOptions, record: RunRecord) -> RunOptions:
        """Return the options with the locks that the run was started with. Blocks."""
        if not record.settings.get("environments"):
            return replace(options, locks={})
        locks = environments.record.recorded_locks(record.settings, self._store)
        return replace(options, locks=locks)

    def _held(self, definition: FlowDefinition, run: str) -> RunRecord:
        """Acquire the lease of the run and return its earlier record. Blocks."""
        record = self._records.run(definition.name, run)
        if record is None:
            raise NotFound(f"There is no run {definition.name}/{run} in {self._records.url}.")
        runs.recovery.check_recoverable(record, definition)
        if not self._records.acquire_lease(record.key, self._holder, LEASE, self._clock.now()).mine:
            raise RunHasCoordinator(
                f"{definition.name}/{run} has a coordinator that drives it: it can be recovered "
                f"{LEASE:g} seconds after that has died."
            )
        return record

    def _stood(
        self,
        definition: FlowDefinition,
        options: RunOptions,
        record: RunRecord,
        machine: Machine,
    ) -> tuple[NewRun, list[Unfinished]]:
        """Return the run in its recorded state, and its unfinished work. Blocks."""
        assert isinstance(machine, RunMachine), "only whole runs are recovered"
        first = self._records.task(record.key, int(PARAMETERS_TASK))
        parameters = first.attempt.manifest if first and first.attempt else None
        assert parameters is not None, "every run has parameters"
        reusable = self._creation.known_to(definition, options, record, parameters)
        unfinished = runs.recovery.replay(machine, self._records, record, reusable)
        fact = MetadataRecord(
            task=int(PARAMETERS_TASK),
            attempt=0,
            field="adopted_by",
            value=self._holder,
            type="adopted_by",
            created_at=self._clock.now(),
        )
        return NewRun(record, parameters, lambda: fact, reusable), unfinished

    async def _executor(
        self, definition: FlowDefinition, options: RunOptions, zygote: ZygoteProcess | None
    ) -> tuple[RunOptions, Executor]:
        """Return the options with the locks of the steps, and the executor of the run."""

        def made_ready() -> tuple[RunOptions, Travelling | None, Mapping[str, Built] | None]:
            known = with_locks(definition, options) if options.locks is None else options
            travels = travelling(definition, known, self._store)
            return known, travels, built_here(definition, known) if known.locks else None

        # In a single thread call: each one costs the start of every run half a millisecond.
        options, travels, built = await in_thread(made_ready)
        executor = executor_for(
            definition,
            options,
            self._store,
            self._records,
            self._clock,
            travels=travels,
            zygote=zygote,
            grace=self._grace,
            built=built,
        )
        return options, executor

    def _driven(
        self,
        definition: FlowDefinition,
        options: RunOptions,
        new: NewRun,
        executor: Executor,
        machine: Machine,
        watch: Watch | None,
        unfinished: Sequence[Unfinished] | None = None,
    ) -> RunHandle:
        """Start to drive the run, and return its handle."""
        listeners: list[Watch] = [] if watch is None else [watch]
        driver = self._driver(definition, options, new, executor, machine, listeners, unfinished)
        handle = RunHandle(new.record, driver, listeners)
        # The run outlives this call; __aexit__ waits for it, so that no task outlives the block.
        handle.task = asyncio.get_running_loop().create_task(driver.run())
        self._runs.add(handle)
        handle.task.add_done_callback(lambda _: self._forget(handle))
        return handle

    def _forget(self, run: RunHandle) -> None:
        self._runs.discard(run)
        self._admission.leave()

    def _driver(
        self,
        definition: FlowDefinition,
        options: RunOptions,
        new: NewRun,
        executor: Executor,
        machine: Machine,
        listeners: list[Watch],
        unfinished: Sequence[Unfinished] | None,
    ) -> RunDriver:
        if options.clone_only:
            assert isinstance(machine, RunMachine), "only whole runs are resumed"
            assert new.reusable is not None, "who resumes a run knows its results"
            clone_only = runs.resume.CloneOnly(machine, new.reusable, _cloned(new.record))
            machine, new = clone_only, new._replace(reusable=clone_only)
        context = RunContext(
            flow=definition.name,
            run=new.record.run,
            run_key=new.record.key,
            user=self._user,
            namespace=f"user:{self._user}"
            if options.namespace is None
            else options.namespace or None,
            tags=new.record.tags,
            storage_url=self._store.url,
            metadata_url=self._records.address,
            durability=self._durability,
            max_num_splits=options.max_num_splits,
            origin_run=new.record.origin_run,
            current_facts=current_facts(new.record),
            persist=options.spin is None or options.spin.persist,
            previews=options.previews,
        )

        def publish(events: Sequence[RunEvent]) -> None:
            for listener in listeners:
                listener(events)

        def takes_end(step: str, reason: str) -> bool:
            retry = definition.steps[step].decorator("retry")
            return retry is None or retry.takes_end(reason)

        return RunDriver(
            new,
            context,
            machine,
            metadata=self._records,
            store=self._store,
            executor=executor,
            clock=self._clock,
            lease_holder=self._holder,
            max_log_size=options.max_log_size,
            watch=publish,
            unfinished=unfinished,
            takes_end=takes_end,
        )


def _cloned(run: RunRecord) -> str:
    return (
        f"What {run.flow}/{run.origin_run} has finished is reused, and nothing else was to be "
        "run (--clone-only)."
    )


def _stop_unwanted(beginning: asyncio.Task[RunHandle]) -> None:
    """Cancel a run whose `start` was cancelled while the run was being started."""
    if not beginning.cancelled() and beginning.exception() is None:
        beginning.result().cancel("The run was cancelled while it began.")


def _machine(
    definition: FlowDefinition,
    options: RunOptions,
    only: LaunchAttempt | None,
    lookahead: int,
    bounds: Mapping[str, int],
) -> Machine:
    """Return the state machine of the run: that of the whole flow, or of a single task."""
    if only is not None:
        return SingleTask(only)
    policies = policies_from(definition, options.retry_wait, options.debug_step)
    for step, bound in bounds.items():
        own = policies[step].max_workers
        policies[step] = replace(policies[step], max_workers=min(bound, own or bound))
    if options.clone_only:  # tasks without a result must not keep others of their step from theirs
        policies = {step: replace(each, max_workers=None) for step, each in policies.items()}
    return RunMachine(
        definition.graph,
        policies,
        max_workers=runs.resume.AT_ONCE if options.clone_only else options.max_workers,
        lookahead=lookahead,
        max_num_splits=options.max_num_splits,
        fail_fast=options.fail_fast,
    )
