"""`run` and `arun`: run a flow in the calling program, without a command line."""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
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
    """Run a flow and wait until it has ended: `run(MyFlow, alpha=0.5, max_workers=4, tags=["a"])`.
    Works in a script, and in a thread with a running event loop, as in a notebook. An exception
    that interrupts the wait cancels the run. Raises the errors of `arun`.

    Args:
        flow: The class of the flow.
        **options: The options of `arun`.

    Returns:
        The client object of the run.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        with asyncio.Runner(loop_factory=fastest_loop()) as runner:
            return runner.run(arun(flow, **options))
    return _run_aside(lambda: arun(flow, **options))


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
    """Run a flow in the running event loop, and wait until it has ended.

    All other keywords are parameters of the flow. Options that are None have the value of the
    settings. Exit hooks are called.

    Raises RunFailed, which has the run, if the run does not succeed; InvalidInput, InvalidFlow,
    StorageError or MetadataError if no run was started. Cancelling the call cancels the run.

    Args:
        flow: The class of the flow.
        tags: The tags of the run.
        max_workers: The maximum number of concurrent tasks; None for the setting.
        max_num_splits: The maximum number of items of a foreach; None for the setting.
        isolation: `task` (a process for each task) or `worker` (processes that run many tasks);
            None for the setting.
        process: How the processes of tasks are started, `fresh` or `fork`; None for the setting.
        decorators: Decorators for all steps, in the form of `--with`.
        fail_fast: Whether the run ends when the first task has failed after all of its retries.
        namespace: The namespace of the tasks: a tag such as `user:ada`; None for the user's.
        branch: The branch of @project; None for the user's.
        production: Whether to run in the production branch of @project; None for no.
        storage: The URL of the datastore; None for the setting.
        metadata: The URL of the metadata store; None for the setting.
        watch: Called with the events of the run (aflow.runs.events), in order; None for no
            callback.
        configs: The values of the flow's configs, by name; None for the defaults.
        **parameters: The values of the flow's parameters, by name.

    Returns:
        The client object of the run.
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
    """Call the exit hooks and return the run; raises RunFailed if it did not succeed."""
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


def _run_aside(make: Callable[[], Coroutine[Any, Any, Run]]) -> Run:
    """Run a coroutine in another thread, which has its own event loop. An exception that interrupts
    the wait cancels the coroutine, and is raised once that has ended."""
    begun: Future[Callable[[], object]] = Future()  # set when the coroutine starts

    async def main() -> Run:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None, "this is one"

        def cancel() -> None:
            with suppress(RuntimeError):  # the loop is closed: the coroutine has ended
                loop.call_soon_threadsafe(task.cancel)

        begun.set_result(cancel)
        return await make()

    def work() -> Run:
        with asyncio.Runner(loop_factory=fastest_loop()) as runner:
            return runner.run(main())

    with ThreadPoolExecutor(1, "aflow.run") as threads:
        ended = threads.submit(work)
        try:
            return ended.result()
        except BaseException:
            either: list[Future[Any]] = [begun, ended]
            futures.wait(either, return_when=futures.FIRST_COMPLETED)
            if not ended.done():
                begun.result()()
                futures.wait([ended])
            raise
