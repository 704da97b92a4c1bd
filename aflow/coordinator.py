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
import platform
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

from aflow import backends, ids, owner
from aflow.attempt import RunContext
from aflow.clock import SystemClock
from aflow.config import Durability, Isolation, RunOptions, Settings
from aflow.driver import RunDriver, Watch
from aflow.errors import AflowError, InvalidInput, NotFound, VersionConflict
from aflow.executors.process import GRACE, ProcessExecutor
from aflow.executors.spawn import start_template
from aflow.flow.parameters import ParameterContext, resolve
from aflow.flow.spec import define
from aflow.ids import PARAMETERS_STEP
from aflow.metadata.base import RunRecord
from aflow.notices import Notice, RunEnded
from aflow.resumed import ResumedRun, check_blobs, finished_of
from aflow.scheduler.machine import RunMachine
from aflow.scheduler.policy import policies_from
from aflow.scheduler.states import RunState
from aflow.storage.artifacts import ArtifactWriter
from aflow.storage.blobs import BlobStore
from aflow.storage.manifest import Manifest
from aflow.version import __version__

if TYPE_CHECKING:
    from aflow.clock import Clock
    from aflow.executors.link import TemplateProcess
    from aflow.flow.definition import FlowDefinition
    from aflow.flow.spec import FlowSpec
    from aflow.metadata.base import MetadataStore
    from aflow.precedents import Precedents
    from aflow.resumed import Finished
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
        definition = define(flow) if isinstance(flow, type) else flow
        origin = await asyncio.to_thread(self._origin, definition, options)
        given = options.parameters | parameters
        values = self._values(definition, given, origin)
        record, manifest = await asyncio.to_thread(
            self._create, definition, options, values, origin
        )
        precedents: Precedents | None = None
        if origin is not None:
            assert options.origin_run is not None, "an origin has a name"
            precedents = ResumedRun(options.origin_run, origin, definition.graph)
        listeners: list[Watch] = [] if watch is None else [watch]
        driver = self._driver(
            definition, options, record, manifest, template, listeners, precedents
        )
        handle = RunHandle(record, driver, listeners)
        # The run outlives this call; __aexit__ waits for it, so that no task outlives its block.
        handle.task = asyncio.get_running_loop().create_task(driver.run())
        self._runs.add(handle)
        handle.task.add_done_callback(lambda _: self._runs.discard(handle))
        return handle

    def _origin(self, definition: FlowDefinition, options: RunOptions) -> Finished | None:
        """What the run to resume has finished; None where no run is resumed.

        Raises NotFound where there is no such run, InvalidInput where it cannot be resumed.
        """
        if options.origin_run is None:
            return None
        flow, run = definition.name, ids.run_id(options.origin_run)
        origin = self._records.run(flow, run)
        if origin is None:
            raise NotFound(f"There is no run {flow}/{run} to resume in {self._records.url}.")
        driven_by = origin.settings.get("owner")
        if origin.state is RunState.RUNNING and owner.is_alive(
            driven_by, origin.heartbeat_at, self._clock.now()
        ):
            raise InvalidInput(
                f"{flow}/{run} is still running: wait until it has ended, or stop it, before it "
                "is resumed."
            )
        if options.rerun_step is not None and options.rerun_step not in definition.steps:
            raise InvalidInput(
                f"{flow} has no step {options.rerun_step!r} to run again; its steps are: "
                f"{', '.join(definition.steps)}."
            )
        finished = finished_of(self._records, origin, options.rerun_step)
        blobs = BlobStore(self._store)
        check_blobs(finished, blobs, origin, leave_out=options.rerun_missing)
        return finished

    def _values(
        self, definition: FlowDefinition, given: Mapping[str, Any], origin: Finished | None
    ) -> dict[str, Any]:
        """The values of the parameters; of a resumed run those alone that its origin has not."""
        if origin is not None:
            there = Manifest.decode(origin.parameters).artifacts
            new = {name: each for name, each in definition.parameters.items() if name not in there}
            definition = replace(definition, parameters=new)

        def context(name: str) -> ParameterContext:
            return ParameterContext(definition.name, self._user, name, print, "local", {})

        return resolve(definition, given, context)

    def _create(
        self,
        definition: FlowDefinition,
        options: RunOptions,
        values: Mapping[str, Any],
        origin: Finished | None,
    ) -> tuple[RunRecord, bytes]:
        writer = ArtifactWriter(BlobStore(self._store, self._durability == "power"))
        manifest = Manifest(step=PARAMETERS_STEP)
        if origin is not None:
            manifest.artifacts = dict(Manifest.decode(origin.parameters).artifacts)
        for name, value in {**definition.constants, **values}.items():
            manifest.artifacts[name] = writer.save(name, value)
        encoded = manifest.encode()
        now = self._clock.now()
        if options.run_id is not None:
            record = self._record(definition, options, ids.run_id(options.run_id), now)
            return self._records.create_run(record, encoded), encoded
        for number in range(1000):
            record = self._record(definition, options, str(int(now * 1e6) + number), now)
            try:
                return self._records.create_run(record, encoded), encoded
            except VersionConflict:  # another run began in the same microsecond
                continue
        raise AflowError("No free run id was found: a thousand runs began in this millisecond.")

    def _record(
        self, definition: FlowDefinition, options: RunOptions, run: str, now: float
    ) -> RunRecord:
        return RunRecord(
            key=0,
            flow=definition.name,
            run=run,
            state=RunState.RUNNING,
            user=self._user,
            created_at=now,
            finished_at=None,
            version=0,
            tags=tuple(sorted(options.tags)),
            system_tags=(
                f"aflow_version:{__version__}",
                f"python_version:{platform.python_version()}",
                "runtime:dev",
                f"user:{self._user}",
            ),
            graph=definition.graph.as_dict(),
            settings={
                "storage": self._store.url,
                "max_workers": options.max_workers,
                "max_num_splits": options.max_num_splits,
                "isolation": options.isolation,
                "durability": self._durability,
                "script": definition.file,
                "parameters": list(definition.parameters),
                "owner": owner.this_process(),
            },
            origin_run=options.origin_run,
        )

    def _driver(
        self,
        definition: FlowDefinition,
        options: RunOptions,
        record: RunRecord,
        manifest: bytes,
        template: TemplateProcess | None,
        listeners: list[Watch],
        precedents: Precedents | None,
    ) -> RunDriver:
        executor = ProcessExecutor(
            definition,
            lambda: start_template(definition, options.decospecs),
            self._clock,
            first=template,
            max_workers=options.max_workers,
            isolation=options.isolation,
            grace=self._grace,
        )
        machine = RunMachine(
            definition.graph,
            policies_from(definition),
            max_workers=options.max_workers,
            lookahead=executor.lookahead,
            max_num_splits=options.max_num_splits,
            fail_fast=options.fail_fast,
        )
        context = RunContext(
            definition.name,
            record.run,
            record.key,
            self._user,
            f"user:{self._user}" if options.namespace is None else options.namespace or None,
            record.tags,
            self._store.url,
            self._records.url,
            self._durability,
            options.max_num_splits,
            options.origin_run,
        )

        def tell(notices: Sequence[Notice]) -> None:
            for listener in listeners:
                listener(notices)

        return RunDriver(
            machine,
            record,
            context,
            self._records,
            self._store,
            executor,
            self._clock,
            parameters=manifest,
            max_log_size=options.max_log_size,
            watch=tell,
            precedents=precedents,
        )
