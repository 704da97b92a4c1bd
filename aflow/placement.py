"""Where the attempts of each step run: in processes of this machine, or by workers of a queue."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from aflow import backends, package
from aflow.errors import CodePackageError, InvalidSetting
from aflow.executors.process import ProcessExecutor, needs_of
from aflow.executors.spawn import request_of, start_template
from aflow.storage.blobs import BlobStore

if TYPE_CHECKING:
    from aflow.attempt import RunContext
    from aflow.clock import Clock
    from aflow.config import RunOptions
    from aflow.executors.base import Executor
    from aflow.executors.job import Job
    from aflow.executors.link import TemplateProcess
    from aflow.executors.spawn import Request
    from aflow.flow.definition import FlowDefinition
    from aflow.metadata.base import MetadataStore
    from aflow.package import Package
    from aflow.storage.base import ObjectStore


class Travelling(NamedTuple):
    """A flow that is run elsewhere: how it is loaded, and its code, if it is in files."""

    request: Request
    code: Package | None


def places(definition: FlowDefinition, options: RunOptions) -> dict[str, str]:
    """Where each step runs: `local`, or `queue` for all where that is asked for, else for those
    with @queue, if the settings name a queue. Raises InvalidSetting where one is asked for and
    none is named."""
    if options.executor == "queue":
        if options.queue is None:
            raise InvalidSetting(
                "--executor queue needs to know which: give --queue URL, or set AFLOW_QUEUE."
            )
        return dict.fromkeys(definition.steps, "queue")
    has_queue = options.queue is not None
    return {
        name: "queue" if has_queue and step.decorator("queue") else "local"
        for name, step in definition.steps.items()
    }


def travelling(
    definition: FlowDefinition, options: RunOptions, store: ObjectStore
) -> Travelling | None:
    """What workers load the flow from, its code in the store; None for a flow that stays here.
    Blocks. Raises InvalidSetting, CodePackageError and StorageError."""
    if set(places(definition, options).values()) == {"local"}:
        return None
    if store.url == "memory:":
        raise InvalidSetting("Workers cannot reach a datastore in memory: use a folder, or S3.")
    request = request_of(definition, options.decospecs)
    if "pickle" in request.source:  # of a notebook, say
        return Travelling(request, None)
    try:
        code = package.store(definition, BlobStore(store), options.package_suffixes)
    except CodePackageError as error:
        raise CodePackageError(f"The flow cannot be sent to workers. {error}") from error
    return Travelling(request, code)


def executor_for(
    definition: FlowDefinition,
    options: RunOptions,
    store: ObjectStore,
    metadata: MetadataStore,
    clock: Clock,
    *,
    travels: Travelling | None,
    template: TemplateProcess | None,
    grace: float,
) -> Executor:
    """What runs the attempts of a run."""
    of_step = places(definition, options)
    made: dict[str, Executor] = {}
    if "local" in of_step.values():
        made["local"] = ProcessExecutor(
            needs_of(definition),
            lambda: start_template(definition, options.decospecs),
            clock,
            first=template,
            max_workers=options.max_workers,
            isolation=options.isolation,
            grace=grace,
        )
    if travels is not None:
        made["queue"] = _queued(definition, options, store, metadata, clock, travels, grace)
    if len(made) == 1:
        return next(iter(made.values()))
    # Few runs have more than one: the others do not pay for it.
    from aflow.executors.by_step import ByStep

    return ByStep({step: made[place] for step, place in of_step.items()})


def _queued(
    definition: FlowDefinition,
    options: RunOptions,
    store: ObjectStore,
    metadata: MetadataStore,
    clock: Clock,
    travels: Travelling,
    grace: float,
) -> Executor:
    # Few runs use a queue: the others do not pay for it.
    from aflow.executors.job import Job, python_version
    from aflow.executors.queued import QueueExecutor, pools_of

    url, request, code = options.queue, travels.request, travels.code
    assert url is not None, "a run that travels has a queue"
    pools = pools_of(definition)

    def job(context: RunContext) -> Job:
        return Job(
            context,
            request,
            needs_of(definition),
            None if code is None else code.key,
            "" if code is None else code.script,
            options.isolation,
            python_version(),
            options.max_log_size,
        )

    return QueueExecutor(
        lambda: backends.open_queue(url),
        store,
        metadata,
        job,
        pools.__getitem__,
        clock,
        key=options.signing_key,
        grace=grace,
    )
