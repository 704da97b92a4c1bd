"""`run` and `arun`: a flow inside of the program that calls them, without a command line."""

from __future__ import annotations

import asyncio
import threading
import warnings
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent import futures
from concurrent.futures import Future
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from aflow._core.process import fastest_loop
from aflow._core.settings import RunOptions, Settings
from aflow._core.threads import in_thread
from aflow.cli.checks import check_graph
from aflow.client import Run
from aflow.client.where import place_at
from aflow.coordinator import Coordinator
from aflow.errors import InvalidInput, RunFailed
from aflow.flow.decorators.attach import attach
from aflow.flow.names import shown
from aflow.flow.spec import FlowSpec
from aflow.runs.exit_hooks import hooks_of, run_hooks
from aflow.scheduler.states import RunState
from aflow.task.config_binding import GivenConfigs, configured

if TYPE_CHECKING:
    from aflow._core.settings import Isolation, ProcessStart
    from aflow.flow.definition import FlowDefinition
    from aflow.runs.events import RunEnded, Watch


def run(flow: type[FlowSpec], **options: Any) -> Run:
    """Run a flow to its end: `run(MyFlow, alpha=0.5, max_workers=4, tags=["a"])`. Works in a script
    and where an event loop is running, as in a notebook; what interrupts it stops the run. Raises
    what `arun` raises.

    Args:
        flow: The class of the flow.
        **options: The options of `arun`.

    Returns:
        What `arun` returns.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        with asyncio.Runner(loop_factory=fastest_loop()) as runner:
            return runner.run(arun(flow, **options))
    return _Aside(lambda: arun(flow, **options)).result()


async def arun(
    flow: type[FlowSpec],
    *,
    tags: Sequence[str] = (),
    max_workers: int | None = None,
    max_num_splits: int | None = None,
    isolation: Isolation | None = None,
    process: ProcessStart | None = None,
    decorators: Sequence[str] = (),
    fail_fast: bool = False,
    namespace: str | None = None,
    branch: str | None = None,
    production: bool | None = None,
    storage: str | None = None,
    metadata: str | None = None,
    watch: Watch | None = None,
    configs: Mapping[str, Any] | None = None,
    **parameters: Any,
) -> Run:
    """Run a flow to its end, in the event loop of the moment.

    All other keywords are parameters of the flow. `decorators` are what `--with` takes, `storage`
    and `metadata` are URLs, `configs` are values by the names of the flow's configs; what is not
    given is as the settings say. `watch` receives the events of the run (aflow.runs.events). Exit
    hooks are called.

    Raises RunFailed, which has the run, for a run without success; InvalidInput, InvalidFlow,
    StorageError or MetadataError where none has begun. Cancelling it stops the run.

    Args:
        flow: The class of the flow.
        tags: The tags.
        max_workers: How many tasks run at a time; None for the setting.
        max_num_splits: How many items a foreach may have; None for the setting.
        isolation: What a task shares with others: `task`, `worker`; None for the setting.
        process: How the processes of tasks begin; None for the default.
        decorators: Decorators for all steps, as `--with` has them.
        fail_fast: Whether the run ends with the first task that fails for good.
        namespace: The namespace: a tag such as `user:ada`; None for all runs.
        branch: The branch of @project; None for the user's own.
        production: Whether it is @project's production; None for not.
        storage: The URL of the datastore; None for the setting.
        metadata: The URL of the metadata store; None for the setting.
        watch: Called with the events of the run, in order; None for nothing.
        configs: The configs, by name; None for the defaults.
        **parameters: The parameters, by name.

    Returns:
        The client's object of the run.
    """
    settings = Settings.load(
        max_workers=max_workers,
        max_num_splits=max_num_splits,
        isolation=isolation,
        process=process,
    )
    decospecs = (*decorators, *settings.default_decospecs)
    definition = _checked(flow, decospecs, configs)
    options = RunOptions.of(
        settings,
        parameters=parameters,
        tags=tags,
        fail_fast=fail_fast,
        decospecs=decospecs,
        namespace=namespace,
        branch=branch,
        production=production,
    )
    async with Coordinator(
        storage=storage or settings.storage_url,
        metadata=metadata or settings.metadata_url,
        durability=settings.durability,
        user=settings.user,
    ) as coordinator:
        handle = await coordinator.start(definition, options=options, watch=watch)
        ended = await handle.wait()
    return await in_thread(_concluded, definition, ended, settings, metadata)


def _checked(
    flow: object, decorators: Sequence[str], configs: Mapping[str, Any] | None
) -> FlowDefinition:
    if not isinstance(flow, type) or not issubclass(flow, FlowSpec):
        raise InvalidInput(f"run takes the class of a flow, not {shown(flow)}.")
    definition = attach(configured(flow, GivenConfigs(values=configs or {})), decorators)
    check_graph(definition, lambda _: None)
    return definition


def _concluded(
    definition: FlowDefinition, ended: RunEnded, settings: Settings, metadata: str | None
) -> Run:
    """The run that has ended, after its exit hooks; raises RunFailed."""
    place = place_at(metadata or settings.place)
    run = Run(f"{definition.name}/{ended.run}", _namespace_check=False, _place=place)
    succeeded = ended.state is RunState.SUCCEEDED
    troubles: list[str] = []
    if hooks_of(definition, succeeded=succeeded):
        url = metadata or settings.metadata_url
        run_hooks(
            definition, run.pathspec, succeeded=succeeded, metadata_url=url, log=troubles.append
        )
    if not succeeded:
        raise _failure(run, ended, troubles)
    for trouble in troubles:
        warnings.warn(trouble, RuntimeWarning, stacklevel=2)
    return run


def _failure(run: Run, ended: RunEnded, troubles: Sequence[str]) -> RunFailed:
    where = "" if ended.step is None else f" in step {ended.step!r} (task {ended.task})"
    error = RunFailed(
        f"{run.pathspec} has {ended.state.value}{where}: {ended.reason}",
        run,
        step=ended.step,
        task=ended.task,
        reason=ended.reason,
    )
    for trouble in troubles:
        error.add_note(trouble)
    return error


class _Aside:
    """A coroutine in a thread with an event loop of its own."""

    def __init__(self, make: Callable[[], Coroutine[Any, Any, Run]]) -> None:
        self._make = make
        self._cancel: Future[Callable[[], object]] = Future()  # once the coroutine has begun
        self._ended: Future[Run] = Future()

    def result(self) -> Run:
        """Wait for its end. What interrupts the waiting cancels it, and is raised when it has
        ended."""
        thread = threading.Thread(target=self._run, name="aflow.run")
        thread.start()
        try:
            # Not join: Python takes a thread for ended when somebody's join was interrupted.
            run = self._ended.result()
        except BaseException:
            either: list[Future[Any]] = [self._cancel, self._ended]
            futures.wait(either, return_when=futures.FIRST_COMPLETED)
            if not self._ended.done():
                self._cancel.result()()
                futures.wait([self._ended])
            raise
        thread.join()
        return run

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=fastest_loop()) as runner:
                run = runner.run(self._main())
        except BaseException as error:  # noqa: BLE001 -- raised again where the caller waits
            self._ended.set_exception(error)
        else:
            self._ended.set_result(run)

    async def _main(self) -> Run:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None, "this is one"

        def cancel() -> None:
            with suppress(RuntimeError):  # the loop is closed: the coroutine has ended by now
                loop.call_soon_threadsafe(task.cancel)

        self._cancel.set_result(cancel)
        return await self._make()
