"""Owns runs: creates them, gives each its driver and its executor, and lets go of everything.

    async with Coordinator(storage=..., metadata=..., max_workers=5) as coordinator:
        run = await coordinator.start(MyFlow, alpha=0.1)
        async for notice in run.events():
            ...
        await run.wait()

A coordinator lives in somebody's event loop: it never blocks it, installs no signal handlers,
and leaves no process, descriptor or temporary file behind. Several may live in one program.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any, Self

from aflow import backends
from aflow.attempt import RunContext
from aflow.clock import SystemClock
from aflow.cloning import AT_ONCE, CloneOnly
from aflow.config import Durability, Isolation, RunOptions, Settings
from aflow.configured import configured
from aflow.creation import Creation, NewRun
from aflow.driver import RunDriver, Watch
from aflow.executors.process import GRACE, ProcessExecutor, needs_of
from aflow.executors.spawn import start_template
from aflow.flow_values import told
from aflow.metadata.base import RunRecord
from aflow.notices import Notice, RunEnded
from aflow.scheduler.machine import Machine, RunMachine
from aflow.scheduler.policy import policies_from
from aflow.scheduler.single import SingleTask

if TYPE_CHECKING:
    from aflow.clock import Clock
    from aflow.executors.link import TemplateProcess
    from aflow.flow.definition import FlowDefinition
    from aflow.flow.spec import FlowSpec
    from aflow.metadata.base import MetadataStore
    from aflow.scheduler.messages import LaunchAttempt
    from aflow.storage.base import ObjectStore

LEFTOVERS = 86400.0  # seconds after which what a dead writer has left in the store is removed


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
        """Flow and run: what `Run(...)` of the client takes."""
        return f"{self._record.flow}/{self._record.run}"

    async def wait(self) -> RunEnded:
        """Wait for the end of the run and say how it ended; may be awaited by many, and again.

        Cancelling who waits does not stop the run. Raises what the metadata or the store raised,
        if the run could not be recorded any more."""
        return await asyncio.shield(self.task)

    def cancel(self, reason: str = "The run was cancelled.") -> None:
        """Stop the run; `wait` tells when it has stopped. May be called again, and late."""
        if not self.task.done():
            self._driver.cancel(reason)

    async def events(self) -> AsyncIterator[Notice]:
        """The run's notices from now on, until it ends. Several may listen; one who is slow holds
        the others up in nothing, and finds all notices when it comes back."""
        queue: asyncio.Queue[Sequence[Notice]] = asyncio.Queue()
        self._listeners.append(queue.put_nowait)
        self.task.add_done_callback(lambda _: queue.put_nowait(()))
        if self.task.done():
            queue.put_nowait(())
        while notices := await queue.get():
            for notice in notices:
                yield notice


class Coordinator:
    """Runs flows on this machine, in the event loop that it is entered in.

    `storage` and `metadata` are URLs or backends. `max_workers` bounds the live attempts of each
    run, `isolation` is `task` (a fresh process for each) or `worker` (processes that run many).
    """

    def __init__(
        self,
        *,
        storage: str | ObjectStore,
        metadata: str | MetadataStore,
        max_workers: int = 16,
        isolation: Isolation = "task",
        durability: Durability = "power",
        user: str | None = None,
        grace: float = GRACE,
        clock: Clock | None = None,
    ) -> None:
        self._storage = storage
        self._metadata = metadata
        self._max_workers = max_workers
        self._isolation = isolation
        self._durability = durability
        self._grace = grace
        self._user = user or Settings.load().user
        self._clock = clock or SystemClock()
        self._runs: set[RunHandle] = set()
        self._store: ObjectStore
        self._records: MetadataStore

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self._open)
        return self

    def _open(self) -> None:
        storage, metadata = self._storage, self._metadata
        self._store = backends.open_store(storage) if isinstance(storage, str) else storage
        self._store.sweep(LEFTOVERS, self._clock.now())
        self._records = (
            backends.open_metadata(metadata, self._durability)
            if isinstance(metadata, str)
            else metadata
        )
        self._creation = Creation(
            self._records, self._store, self._durability, self._user, self._clock
        )

    async def __aexit__(self, *exc: object) -> None:
        """Stop all runs that are still going on, and let go of everything."""
        for run in [*self._runs]:
            run.cancel("The coordinator was closed.")
        await asyncio.gather(*(run.task for run in self._runs), return_exceptions=True)
        if isinstance(self._metadata, str):
            await asyncio.to_thread(self._records.close)

    async def start(
        self,
        flow: type[FlowSpec] | FlowDefinition,
        *,
        options: RunOptions | None = None,
        template: TemplateProcess | None = None,
        watch: Watch | None = None,
        **parameters: Any,
    ) -> RunHandle:
        """Begin a run of the flow with these parameters. The run is recorded when this returns.

        Raises InvalidFlow, InvalidParameter, StorageError and MetadataError; nothing has begun
        then. `template` is a process that has imported the flow already (the command line has
        one); without it one is started."""
        options = options or RunOptions(max_workers=self._max_workers, isolation=self._isolation)
        definition = configured(flow) if isinstance(flow, type) else flow
        given = options.parameters | parameters
        new = await asyncio.to_thread(self._creation.create, definition, options, given)
        listeners: list[Watch] = [] if watch is None else [watch]
        driver = self._driver(definition, options, new, template, listeners)
        handle = RunHandle(new.record, driver, listeners)
        # The run outlives this call; __aexit__ waits for it, so that no task outlives its block.
        handle.task = asyncio.get_running_loop().create_task(driver.run())
        self._runs.add(handle)
        handle.task.add_done_callback(lambda _: self._runs.discard(handle))
        return handle

    def _driver(
        self,
        definition: FlowDefinition,
        options: RunOptions,
        new: NewRun,
        template: TemplateProcess | None,
        listeners: list[Watch],
    ) -> RunDriver:
        executor = ProcessExecutor(
            needs_of(definition),
            lambda: start_template(definition, options.decospecs),
            self._clock,
            first=template,
            max_workers=options.max_workers,
            isolation=options.isolation,
            grace=self._grace,
        )
        machine = _machine(definition, options, new.launch, executor.lookahead)
        precedents = new.precedents
        if options.clone_only:
            assert isinstance(machine, RunMachine), "only whole runs are resumed"
            assert precedents is not None, "who resumes a run knows its results"
            machine = precedents = CloneOnly(machine, precedents, _cloned(new.record))
        context = RunContext(
            definition.name,
            new.record.run,
            new.record.key,
            self._user,
            f"user:{self._user}" if options.namespace is None else options.namespace or None,
            new.record.tags,
            self._store.url,
            self._records.url,
            self._durability,
            options.max_num_splits,
            new.record.origin_run,
            told(new.record),
            options.spin is None or options.spin.persist,
        )

        def tell(notices: Sequence[Notice]) -> None:
            for listener in listeners:
                listener(notices)

        return RunDriver(
            machine,
            new.record,
            context,
            self._records,
            self._store,
            executor,
            self._clock,
            parameters=new.parameters,
            max_log_size=options.max_log_size,
            watch=tell,
            precedents=precedents,
            facts=(new.facts,),
            settled=new.settled,
        )


def _cloned(run: RunRecord) -> str:
    return (
        f"What {run.flow}/{run.origin_run} has finished is taken over, and nothing else was to be "
        "run (--clone-only)."
    )


def _machine(
    definition: FlowDefinition, options: RunOptions, only: LaunchAttempt | None, lookahead: int
) -> Machine:
    """What decides the run: that of the whole flow, or of the only task that there is."""
    if only is not None:
        return SingleTask(only)
    return RunMachine(
        definition.graph,
        policies_from(definition),
        max_workers=AT_ONCE if options.clone_only else options.max_workers,
        lookahead=lookahead,
        max_num_splits=options.max_num_splits,
        fail_fast=options.fail_fast,
    )
