"""`aflow worker`: run tasks of a queue on this machine; `aflow workers`: list and drain workers,
and start some in a cluster."""

from __future__ import annotations

import asyncio
import json
import os
import queue as queues
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from aflow._core.clock import SystemClock, duration
from aflow._core.private_folders import make_private
from aflow._core.process import fastest_loop, on_signal
from aflow._core.settings import Settings, forget_signing_key
from aflow._core.system import usable_cpus
from aflow._core.wording import plural
from aflow.cli import tables
from aflow.cli.health import beat
from aflow.cli.options import (
    Subcommand,
    command_group,
    count_option,
    flag,
    option,
    resources_option,
    seconds_option,
)
from aflow.cli.queue import queue_and_settings
from aflow.errors import InvalidInput
from aflow.executors.jobs.slurm import submit_workers
from aflow.executors.local.admission import machine_with
from aflow.executors.queue_status import chosen_worker, state_of, worker_as_json
from aflow.metadata.base import registry_of
from aflow.metadata.factory import open_metadata
from aflow.queue.factory import open_queue
from aflow.worker import Worker, WorkerOptions

if TYPE_CHECKING:
    from aflow.executors.clusters import Cluster
    from aflow.metadata.base import WorkerRecord, WorkerRegistry

_MOST_LINES = 10_000  # maximum length of the queue of log lines
_CLOSING = 2.0  # seconds to write these lines at the end
_HELP = """Lease tasks of flows from a queue, and run them on this machine.

Start flows with --executor queue and the same --queue. The datastore of the run has to be reachable
from this machine. On SIGTERM the worker leases nothing more and lets running tasks end within
--grace; the others go back to the queue, without costing an attempt. A second signal ends it at
once.

\b
  aflow worker --queue redis://broker:6379/0 --slots 4
  aflow worker --queue sqlite:////tmp/queue.db --pool gpu --pool default
  aflow workers list                           list all workers, with their running tasks
  aflow workers drain NAME                     end a worker after its running tasks
"""
_HELP_OF_MANY = """List and drain workers, and start some in a cluster of Slurm, Ray or Dask.

Workers register in the metadata (`aflow worker --metadata URL`, or AFLOW_DEFAULT_METADATA; without
these, in the nearest .aflow folder), and send a heartbeat every 5 seconds. A worker without
heartbeats is shown as silent after 15 seconds, and no longer listed after 60.

\b
  aflow workers list
  aflow workers drain host-4242-1f0c9a3b
  aflow workers slurm --count 4 --queue redis://broker:6379/0 --slots 8 -- --partition=main
  aflow workers ray --count 4 --queue redis://broker:6379/0 --slots 8 --resources gpu=1
  aflow workers dask --address tcp://scheduler:8786 --count 4 --queue redis://broker:6379/0
"""
_HELP_OF_DRAIN = """Have workers lease no more tasks, and end after their running ones. An
unambiguous prefix of a name is enough."""
_HELP_OF_SLURM = """Start workers as jobs of Slurm. Arguments after `--` go to sbatch:
`aflow workers slurm --count 4 --slots 8 -- --partition=main --time=8:00:00`. A worker ends with its
job: its running tasks go back to the queue."""
_MOST_LABELS = 20


def worker() -> click.Command:
    """Return the command `worker`."""
    return click.Command("worker", params=_parameters(), callback=_worker, help=_HELP)


def _parameters() -> list[click.Parameter]:
    return [
        option("--queue", metavar="URL", help="The queue.  [default: AFLOW_QUEUE]"),
        count_option(
            "--slots", help="The number of tasks at a time.  [default: the number of CPUs]"
        ),
        option(
            "--pool",
            "pools",
            multiple=True,
            default=["default"],
            metavar="NAME",
            help="Lease tasks of this pool; may be given several times, in order of priority.",
        ),
        seconds_option("--grace", "Grace time of running tasks after SIGTERM.", default=30.0),
        seconds_option(
            "--lease",
            "Lease time: when a worker is lost, others get its tasks after this time.",
            default=30.0,
            least=1.0,
        ),
        option(
            "--label",
            "labels",
            multiple=True,
            metavar="NAME=VALUE",
            help="A label that `aflow workers list` shows; may be given several times.",
        ),
        option(
            "--metadata",
            metavar="URL",
            help="The metadata in which the worker registers.  [default: those of the settings]",
        ),
        resources_option("resources that the tasks of this worker share"),
        option("--quiet", is_flag=True, help="Do not log each task."),
        option(
            "--until-eof",
            is_flag=True,
            help="End as after SIGTERM when stdin ends, so that a program that starts workers "
            "leaves none behind.",
        ),
    ]


def _worker(
    slots: int | None,
    pools: tuple[str, ...],
    grace: float,
    lease: float,
    labels: tuple[str, ...],
    quiet: bool,
    until_eof: bool,
    **given: Any,
) -> None:
    url, settings = queue_and_settings(**given)
    options = WorkerOptions(
        pools=tuple(dict.fromkeys(pools)),
        slots=slots or usable_cpus(),
        grace=grace,
        lease=lease,
        folder=settings.cache / "code",
        keys=settings.signing_key_bytes,
        quiet=quiet,
        labels=_labels(labels),
        machine=machine_with(settings.resources or {}),
    )
    forget_signing_key()
    options.folder.parent.mkdir(parents=True, exist_ok=True)
    make_private(options.folder)
    health_file = Path(settings.health_file) if settings.health_file else None
    with asyncio.Runner(loop_factory=fastest_loop()) as runner:
        runner.run(_run(url, settings, options, health_file, until_eof))


def _labels(given: Sequence[str]) -> dict[str, str]:
    labels = {}
    for each in given:
        name, equals, value = each.partition("=")
        if not name or not equals or len(name) > 60 or len(value) > 200 or not each.isprintable():
            raise InvalidInput(
                f"--label {each[:80]!r}: write NAME=VALUE, of at most 60 and 200 characters."
            )
        labels[name] = value
    if len(labels) > _MOST_LABELS:
        raise InvalidInput(f"A worker can have {_MOST_LABELS} labels at most.")
    return labels


def _registry(settings: Settings) -> WorkerRegistry | None:
    """Return the registry in which the worker is listed; None if there is no metadata. Does not
    create metadata: workers may be started in any folder."""
    if not settings.has_metadata:
        return None
    return registry_of(open_metadata(settings.metadata_url, settings.durability))


async def _run(
    queue: str,
    settings: Settings,
    options: WorkerOptions,
    health_file: Path | None,
    until_eof: bool,
) -> None:
    log = _WorkerLog()
    registry = partial(_registry, settings)
    made = Worker(open_queue(queue), options, SystemClock(), log.write_line, registry)
    loop = asyncio.get_running_loop()

    def stop() -> None:
        made.drain()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(signum)  # a second signal ends the worker immediately

    for signum in (signal.SIGTERM, signal.SIGINT):
        on_signal(loop, signum, stop)
    if until_eof:
        _at_eof(loop, stop)
    try:
        if health_file is None:
            await made.run()
        else:
            await _with_heartbeat(made.run(), health_file)
    finally:
        log.close()


def _at_eof(loop: asyncio.AbstractEventLoop, stop: Callable[[], None]) -> None:
    """Call `stop` at the end of stdin. Raises InvalidInput if that cannot be detected."""

    def read() -> None:
        if not os.read(0, 1 << 16):
            loop.remove_reader(0)
            stop()

    try:
        loop.add_reader(0, read)
    except OSError as error:  # stdin is a file
        raise InvalidInput("--until-eof needs a pipe as its standard input.") from error


class _WorkerLog:
    """Writes lines to stderr in a thread, so that a blocking reader does not delay tasks. If the
    reader is too slow, lines are dropped and counted."""

    def __init__(self) -> None:
        self._lines: queues.Queue[str | None] = queues.Queue(_MOST_LINES)
        self._dropped = 0
        self._thread = threading.Thread(target=self._write, name="aflow-log", daemon=True)
        self._thread.start()

    def write_line(self, text: str) -> None:
        """Queue this line for writing."""
        line = "".join(each if each.isprintable() else " " for each in text)
        try:
            if self._dropped:
                self._lines.put_nowait(f"{self._dropped} lines of the log were dropped.")
                self._dropped = 0
            self._lines.put_nowait(line)
        except queues.Full:
            self._dropped += 1

    def _write(self) -> None:
        while (line := self._lines.get()) is not None:
            data = line.encode("utf-8", "backslashreplace") + b"\n"
            try:
                while data:
                    data = data[os.write(2, data) :]
            except OSError:  # stderr has been closed by its reader
                continue

    def close(self) -> None:
        """Write the queued lines, unless the reader blocks for too long."""
        try:
            self._lines.put(None, timeout=_CLOSING)
        except queues.Full:
            return
        self._thread.join(_CLOSING)


async def _with_heartbeat(work: Coroutine[Any, Any, None], file: Path) -> None:
    """Await the work, and touch the file in the meantime; raises the exception of either."""
    try:
        async with asyncio.TaskGroup() as group:
            beating = group.create_task(beat(file))
            await work
            beating.cancel()
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from failed


# ------------------------------------------------------------ aflow workers


def workers() -> click.Command:
    """Return the command `workers`."""
    place = option(
        "--metadata",
        metavar="URL",
        help="The metadata in which workers register.  [default: those of the settings]",
    )
    names = click.Argument(["names"], nargs=-1, required=True, metavar="NAME...")
    of_slurm = [
        count_option("--count", default=1, help="The number of workers: one array of jobs."),
        *(each for each in _parameters() if each.name in _OF_SLURM),
        click.Argument(["sbatch"], nargs=-1, type=click.UNPROCESSED),
    ]
    as_json = flag("--json", "as_json", help="Print a JSON list.")
    return command_group(
        "workers",
        _HELP_OF_MANY,
        {
            "list": Subcommand("List workers, and what they run.", [as_json, place], _list),
            "drain": Subcommand(_HELP_OF_DRAIN, [names, place], _drain),
            "slurm": Subcommand(_HELP_OF_SLURM, of_slurm, _slurm),
            "ray": Subcommand(_HELP_OF_RAY, _parameters_of("ray"), partial(_keep, "RayCluster")),
            "dask": Subcommand(
                _HELP_OF_DASK, _parameters_of("dask"), partial(_keep, "DaskCluster")
            ),
        },
    )


def _list(as_json: bool, metadata: str | None) -> None:
    with _listed_in(metadata) as registry:
        found = registry.workers()
    now = SystemClock.now()
    if as_json:
        click.echo(json.dumps([worker_as_json(each, now) for each in found], indent=2))
        return
    if not found:
        click.echo("No workers are registered: `aflow worker --queue URL` starts one.")
        return
    rows = [_row(each, now) for each in found]
    head = ("NAME", "STATE", "POOLS", "TASKS", "DONE", "FAILED", "SINCE", "VERSION", "LABELS")
    tables.show(
        head, rows, {"idle": "green", "busy": "cyan", "draining": "yellow", "silent": "red"}
    )


# Options of `aflow worker` that `aflow workers slurm` has as well.
_OF_SLURM = ("queue", "slots", "pools", "labels", "metadata", "resources")


def _slurm(
    count: int,
    slots: int | None,
    resources: Mapping[str, float] | None,
    sbatch: tuple[str, ...],
    **given: Any,
) -> None:
    slots = slots or 1
    worker = _remote_worker(slots, resources, **given)
    folder = worker.settings.root / "slurm"
    argv = [*worker.argv, *_resources_argument(resources)]
    job = submit_workers(count, argv, worker.variables, sbatch, folder, slots)
    click.echo(
        f"Submitted job {job} of Slurm: {plural(count, 'worker')}, "
        f"{plural(slots, 'task')} at a time each. "
        f"`scancel {job}` ends them; their output is in {folder}."
    )


class _RemoteWorker(NamedTuple):
    """The configuration of workers on other machines: the settings of this machine, and the options
    and environment variables of `aflow worker` there. URLs and keys may be secrets: they are passed
    as variables, which other users cannot read."""

    settings: Settings
    argv: list[str]
    variables: dict[str, str]


def _remote_worker(
    slots: int,
    resources: Mapping[str, float] | None,
    *,
    pools: Sequence[str],
    labels: Sequence[str],
    queue: str | None,
    metadata: str | None,
) -> _RemoteWorker:
    _labels(labels)  # reports invalid labels here, rather than in a log of another machine
    url, settings = queue_and_settings(queue=queue, metadata=metadata, resources=resources)
    argv = [f"--slots={slots}"]
    argv += [f"--pool={each}" for each in pools]
    argv += [f"--label={each}" for each in labels]
    variables = {"AFLOW_QUEUE": url}
    if metadata is not None:
        variables["AFLOW_DEFAULT_METADATA"] = metadata
    if settings.signing_keys:
        keys = ",".join(each.reveal() for each in settings.signing_keys)
        variables["AFLOW_SIGNING_KEY"] = keys
    return _RemoteWorker(settings, argv, variables)


def _resources_argument(resources: Mapping[str, float] | None) -> list[str]:
    if resources is None:
        return []
    return ["--resources=" + ",".join(f"{key}={each:g}" for key, each in resources.items())]


# ------------------------------------------------------------ clusters of Ray and Dask

_OF_CLUSTERS = """Workers run as long as this command. On SIGTERM or Ctrl-C they lease nothing
more, let running tasks end within --grace, and give back the others; a second signal ends them at
once. A worker that is lost with its node is started on another one. Nodes need aflow, the packages
of flows, and access to the queue and the datastore.
"""
_HELP_OF_RAY = f"""Start workers in a cluster of Ray. Each worker is an actor that requests as many
CPUs as the worker has slots, or the CPUs, GPUs and memory of --resources.

{_OF_CLUSTERS}
\b
  aflow workers ray --count 4 --queue redis://broker:6379/0 --slots 8
  aflow workers ray --address 10.0.0.1:6379 --pool gpu --slots 1 --resources cpu=4,gpu=1
"""
_HELP_OF_DASK = f"""Start workers in a cluster of Dask. Each worker is a task that occupies one
thread of a Dask worker. GPUs (--resources gpu=1) are the resource GPU of Dask.

{_OF_CLUSTERS}
\b
  aflow workers dask --address tcp://scheduler:8786 --count 4 --queue redis://broker:6379/0
"""
_OF_PLACES = (*_OF_SLURM, "grace", "lease", "quiet")


def _parameters_of(kind: str) -> list[click.Parameter]:
    address = {
        "ray": "Address of the cluster: HOST:PORT, or ray://HOST:10001.  [default: RAY_ADDRESS, "
        "else the cluster of this machine]",
        "dask": "Address of the scheduler: tcp://HOST:8786.  [default: DASK_SCHEDULER_ADDRESS]",
    }
    ask = {
        "ray": "A custom resource of Ray for each worker; may be given several times.",
        "dask": "A resource of Dask (dask worker --resources) for each worker; may be given "
        "several times.",
    }
    return [
        option("--address", metavar="ADDRESS", help=address[kind]),
        count_option(
            "--count", default=1, help="Number of workers to keep running while nodes come and go."
        ),
        option("--ask", "asked", multiple=True, metavar="NAME=AMOUNT", help=ask[kind]),
        flag("--wait", "may_wait", help="Wait if the cluster is too small now."),
        *(each for each in _parameters() if each.name in _OF_PLACES),
    ]


def _keep(
    kind: str,
    *,
    address: str | None,
    count: int,
    asked: Sequence[str],
    may_wait: bool,
    slots: int | None,
    resources: Mapping[str, float] | None,
    grace: float,
    lease: float,
    quiet: bool,
    **given: Any,
) -> int:
    from aflow.executors import clusters  # few machines have clusters

    slots = slots or 1
    worker = _remote_worker(slots, resources, **given)
    # A worker has only the resources that it requests of its node, which others use as well.
    has = {"cpu": float(slots), "gpu": 0.0, **(worker.settings.resources or {})}
    argv = [*worker.argv, *_resources_argument(has), f"--grace={grace:g}", f"--lease={lease:g}"]
    request = clusters.WorkerRequest(
        argv=(*argv, *(["--quiet"] if quiet else [])),
        variables=worker.variables,
        cpu=has["cpu"],
        gpu=has["gpu"],
        memory=has.get("memory"),
        more=_amounts(asked),
    )
    cluster: Cluster = getattr(clusters, kind)(address, request)
    signals = 0

    def note(signum: int, frame: object) -> None:
        nonlocal signals
        signals += 1
        if signals == 1:
            click.echo("Workers take nothing new, and end; a second signal ends them at once.")

    try:
        lacking = cluster.lacking(count)
        if lacking is not None and not may_wait:
            raise InvalidInput(f"{lacking}. Ask for less, or use --wait if the cluster will grow.")
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, note)
        click.echo(
            f"{plural(count, 'worker')}, {plural(slots, 'task')} at a time each, in {cluster.name}."
        )
        crew = clusters.Crew(count, click.echo)
        clusters.keep(cluster, crew, SystemClock(), lambda: signals)
    finally:
        cluster.close()
    return 0


def _amounts(asked: Sequence[str]) -> dict[str, float]:
    amounts = {}
    for each in asked:
        name, _, amount = each.partition("=")
        try:
            amounts[name] = float(amount)
        except ValueError:
            amounts[name] = 0.0
        if not name or not 0 < amounts[name] < float("inf"):
            raise InvalidInput(f"--ask {each[:80]!r}: write NAME=AMOUNT, with an amount above 0.")
    return amounts


def _row(worker: WorkerRecord, now: float) -> tuple[str, ...]:
    begun = sum(each.begun for each in worker.running)
    return (
        worker.name,
        state_of(worker),
        ", ".join(worker.pools),
        f"{begun}/{worker.slots}",
        str(worker.done),
        str(worker.failed),
        duration(max(now - worker.started_at, 0.0)),
        f"{worker.version}, Python {worker.python}",
        " ".join(f"{name}={value}" for name, value in sorted(worker.labels.items())),
    )


def _drain(names: tuple[str, ...], metadata: str | None) -> None:
    settings = Settings.load()
    with _listed_in(metadata) as registry:
        found = registry.workers()
        chosen = [chosen_worker(found, each) for each in names]
        for each in chosen:
            registry.drain_worker(each.name, f"{settings.user} has asked for it (aflow workers).")
            tasks = sum(task.begun for task in each.running)
            click.echo(
                f"{each.name} takes no more tasks from its next heartbeat on, and ends when "
                f"{'its task has' if tasks == 1 else f'its {tasks} tasks have'} ended."
                if tasks
                else f"{each.name} ends with its next heartbeat."
            )


@contextmanager
def _listed_in(metadata: str | None) -> Iterator[WorkerRegistry]:
    """Yield the registry of the settings. Raises InvalidInput if the metadata has none."""
    settings = Settings.load(metadata=metadata)
    if not settings.has_metadata:
        raise InvalidInput(
            f"There are no metadata in {settings.root}, so no worker has registered there: name "
            "those that workers are given with --metadata URL."
        )
    with closing(open_metadata(settings.metadata_url, settings.durability)) as store:
        registry = registry_of(store)
        if registry is None:
            raise InvalidInput(f"Workers do not register in {store.url}.")
        yield registry
