"""One attempt on a machine that has nothing of its run.

A worker (`runtime.py`), a job of a coordinator (`job.py`) and a job of a state machine
(`step_functions/job.py`) do the same: they fetch the run's code and name its program, have the
step's environment built, and run the attempt in processes of this machine. In a job it is one
attempt (`JobAttempt`): SIGTERM stops it, and what it prints goes to the job's log, too. To whom an
attempt is reported is all that differs.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NoReturn, TypeVar

from aflow._core.process import binary, on_signal
from aflow._core.settings import conceal_secrets, looked_up
from aflow._core.threads import in_thread
from aflow.environments import transport
from aflow.errors import AflowError, CodePackageError, InvalidInput
from aflow.executors.local.executor import ProcessExecutor
from aflow.executors.local.zygote_start import EarlyZygote, fork_zygote, spawn_zygote
from aflow.executors.mailbox import WAS_CANCELLED
from aflow.executors.protocol import Job, python_version
from aflow.scheduler.states import AttemptState
from aflow.storage.blobs import BlobStore
from aflow.storage.factory import open_store
from aflow.task import code_package
from aflow.task.program import LoadRequest, placed
from aflow.task.remote import Payloads
from aflow.task.spec import NO_RETRY_EXIT_CODE, AttemptReport, AttemptSpec, RunContext

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aflow._core.clock import Clock
    from aflow.environments.build import Built
    from aflow.environments.lock import Shipped
    from aflow.executors.base import Usage
    from aflow.executors.local.executor import StartZygote, StepNeeds
    from aflow.executors.mailbox import Rendezvous
    from aflow.storage.base import ObjectStore

GRACE = 20.0  # seconds for a step to end when its job is to stop: systems give 30 in all
AGAIN = 1  # the exit code of a job that another try may repair
ALL_AT_ONCE = 0.5  # seconds within which a system's SIGTERM comes to all processes of a job
LOOK_FOR_OTHERS = 0.5  # seconds between looks for member 0 of a gang

V = TypeVar("V")


# ------------------------------------------------------------ code and Python


# Returns the folder with the code of a package. Raises CodePackageError.
Unpack = Callable[[BlobStore, str], Path]


def unpacked_in(folder: Path) -> Unpack:
    """Return a function that unpacks code packages in a folder.

    Args:
        folder: The folder to unpack into; each package overwrites the former one's files.
    """

    def unpack(blobs: BlobStore, key: str) -> Path:
        code_package.unpack(code_package.fetch(blobs, key), folder)
        return folder

    return unpack


def with_code(
    store: ObjectStore, request: LoadRequest, code: str, script: str, unpack: Unpack
) -> tuple[LoadRequest, Path]:
    """Fetch the code package of this key. Blocks.

    Args:
        store: The datastore that has the package.
        request: What has to be known to load the flow.
        code: The key of the code package.
        script: The path of the flow's file within the code package.
        unpack: Unpacks the code package into a folder.

    Returns:
        The request with the program where its file is now, and the folder of the code.

    Raises:
        CodePackageError: The package cannot be unpacked.
        StorageError: The package cannot be fetched.
    """
    folder = unpack(BlobStore(store), code)
    source = placed(request.source, folder, code_package.inside(script))
    return request._replace(source=source), folder


def delivered(
    store: ObjectStore, flow: str, run: str, key: str, unpack: Unpack
) -> tuple[Job, Path | None]:
    """Return the description of a run, which is a payload of this key, and the folder with its
    code, from which the flow is to be imported (None for one that comes without). Blocks.

    Args:
        store: The datastore that has the payload and the code package.
        flow: The name of the flow.
        run: The id of the run.
        key: The key of the payload.
        unpack: Unpacks the code package into a folder.

    Raises:
        CodePackageError: The package cannot be unpacked, or the run was started with another
            Python.
        StorageError: The payload or the package cannot be fetched.
        InvalidMessage: The payload is damaged, or a newer aflow has written it.
    """
    job = Job.decode(Payloads(store, flow, run).get(key))
    if job.python != python_version() and not job.environments:
        raise CodePackageError(
            f"the run was started with Python {job.python}, and here is {python_version()}: use "
            "the same."
        )
    if job.code is None:
        return job, None
    request, folder = with_code(store, job.request, job.code, job.script, unpack)
    return job._replace(request=request), folder


def other_python(step: str, python: str) -> str | None:
    """Return why a step without an environment of its own cannot run here, where it was started
    with this version of Python; None where it can.

    Args:
        step: The name of the step, for the sentence.
        python: The version of Python that the run was started with, as `3.12`.
    """
    if python == python_version():
        return None
    return (
        f"step {step} was started with Python {python}, and here is {python_version()}: use the "
        "same, or name the packages of the step (@pypi)."
    )


# ------------------------------------------------------------ gangs


async def gang_address(rendezvous: Rendezvous, spec: AttemptSpec) -> str:
    """Return the address of member 0 of the gang of this attempt. Member 0 publishes its own; the
    others wait until it has.

    Args:
        rendezvous: The addresses of the run's gangs, in the datastore.
        spec: The attempt of a member; its `split_index` is the member's number.

    Raises:
        StorageError: The datastore does not answer.
    """
    assert spec.split_index is not None, "a member has its place"
    control = spec.task - spec.split_index
    if spec.split_index == 0:
        address = own_address()
        await in_thread(rendezvous.announce, control, spec.attempt, address)
        return address
    while True:
        found = await in_thread(rendezvous.address, control)
        if found is not None:
            return found
        await asyncio.sleep(LOOK_FOR_OTHERS)


def own_address() -> str:
    """Return the address of this machine, as others of its network reach it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing: it only chooses the way out
        except OSError:  # there is none: nobody is elsewhere
            return "127.0.0.1"
        return str(probe.getsockname()[0])


# ------------------------------------------------------------ jobs


def log_line(text: str) -> None:
    """Write a line of aflow's own to the log of the job.

    Args:
        text: The line, without its end; it goes to stderr.
    """
    print(f"aflow: {text}", file=sys.stderr, flush=True)  # noqa: T201 -- the log of the job


class Container(NamedTuple):
    """What a job has when its variables are read: the store, a folder of its own for the code, and
    the process from which those of the step are forked."""

    store: ObjectStore
    folder: Path
    zygote: EarlyZygote


def run_job(
    load: Callable[[], V], storage_of: Callable[[V], str], work: Callable[[V, Container], int]
) -> int:
    """Do the work of a job.

    Args:
        load: Reads the variables of the job; may raise InvalidInput.
        storage_of: The URL of the store that the variables name.
        work: What the job is for. Returns its exit code.

    Returns:
        The exit code: 202 where another try would end as this one has, 1 where it may go well.
    """
    try:
        variables = load()
        if looked_up("SERVICE_AUTH_KEY_SECRET") is not None:
            from aflow.task.secrets_manager import fetch_service_key  # few jobs have one

            fetch_service_key()
        # Now, for the zygote to have all of it, too: it is what takes longest.
        store = open_store(storage_of(variables))
        # Before the folder is made: a process that was forked after would remove it at its end.
        zygote = EarlyZygote(fork_zygote())
        conceal_secrets()  # of the environment that steps can look up in /proc
        with ExitStack() as made:
            folder = made.enter_context(tempfile.TemporaryDirectory(prefix="aflow-"))
            made.callback(zygote.close)
            return work(variables, Container(store, Path(folder), zygote))
    except InvalidInput as error:  # it is as wrong the next time
        log_line(str(error))
        return NO_RETRY_EXIT_CODE
    except AflowError as error:
        log_line(str(error))
        return AGAIN


def leave(code: int) -> NoReturn:
    """End the process at once, without waiting for the threads of clients.

    Args:
        code: The exit status of the job.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class Work(NamedTuple):
    """What an attempt is part of: the run, the steps and the program, and what starts processes."""

    context: RunContext
    needs: Mapping[str, StepNeeds]
    request: LoadRequest
    start: StartZygote


class JobAttempt:
    """Runs the one attempt of a job, from SIGTERM to its end. Subclasses report it.

    It is what the executor publishes to: `started`, `logged`, `grown` and `ended` are its calls."""

    echoes = True  # what the attempt prints is the log of the job, too

    def __init__(self, container: Container, clock: Clock) -> None:
        self._container = container
        self._store = container.store
        self._clock = clock
        self._stopping = asyncio.Event()

    def listen(self) -> None:
        """From now on SIGTERM stops the attempt, also before it has begun. Called in the event
        loop, before all else."""
        loop = asyncio.get_running_loop()
        self._end: asyncio.Future[tuple[AttemptReport, Usage]] = loop.create_future()
        on_signal(loop, signal.SIGTERM, self._stopping.set)

    def start_of(self, step: str, shipped: Shipped | None, python: str) -> StartZygote:
        """Return what starts the processes of a step: in its environment, which is built before, if
        it has one. Blocks.

        Args:
            step: The name of the step.
            shipped: The environment of the step; None where it has none.
            python: The version of Python that the run was started with, as `3.12`.

        Raises:
            CodePackageError: The step has no environment, and this is another Python than that of
                the run.
            EnvironmentFailed: The environment cannot be built.
            StorageError: The environment's files cannot be fetched.
        """
        if shipped is not None:
            built: Built = transport.built(shipped, self._store, log_line, [step])
            return partial(spawn_zygote, built=built)
        why_not = other_python(step, python)
        if why_not is not None:
            raise CodePackageError(why_not)
        return self._container.zygote.start

    async def begin(self, work: Work) -> ProcessExecutor:
        """Start what runs the attempt.

        Args:
            work: What the attempt is part of: the run, the flow's program and what starts its
                processes.

        Returns:
            The executor, started; the caller stops it.

        Raises:
            AflowError: The code or the environment cannot be prepared.
        """
        executor = ProcessExecutor(
            work.needs, work.request, work.start, self._clock, max_workers=1, grace=GRACE
        )
        await executor.start(work.context, self)
        return executor

    async def finish(
        self, executor: ProcessExecutor, spec: AttemptSpec
    ) -> tuple[AttemptReport, Usage]:
        """Run the attempt, and wait for its end.

        Args:
            executor: The executor that `begin` has started; it is stopped here.
            spec: What the attempt is to run.

        Returns:
            How it has ended.
        """
        loop = asyncio.get_running_loop()
        stop = loop.create_task(self._stop(executor, spec))
        try:
            executor.launch(spec)
            return await self._end
        finally:
            stop.cancel()
            await executor.stop()

    async def _stop(self, executor: ProcessExecutor, spec: AttemptSpec) -> None:
        await self._stopping.wait()
        executor.cancel(spec.task, spec.attempt)

    # ------------------------------------------------------------ what the executor publishes

    def handed(self, task: int, attempt: int, handle: str, host: str = "") -> None:
        """Do nothing: the processes of a job end with it, so that nobody has to find them."""

    def started(self, task: int, attempt: int, pid: int | None, at: float) -> None:
        """Note that the attempt runs."""

    def logged(self, task: int, attempt: int, stream: int, at: float, chunk: bytes) -> None:
        """Pass on what the attempt has written."""
        if self.echoes:
            out = binary((sys.stdout, sys.stderr)[stream])
            out.write(chunk)
            out.flush()

    def grown(self, task: int, attempt: int, count: int, manifest: bytes) -> None:
        """Pass on how many items of its foreach the attempt has so far."""

    def ended(self, report: AttemptReport, usage: Usage) -> None:
        """The attempt is over. Where its process died without a report, the job may have been sent
        SIGTERM, as Slurm does to all of its processes: ours comes in a moment."""
        if _is_silent(report) and not self._stopping.is_set():
            loop = asyncio.get_running_loop()
            loop.call_later(ALL_AT_ONCE, self.settle, report, usage)
        else:
            self.settle(report, usage)

    def settle(self, report: AttemptReport, usage: Usage) -> None:
        """Take the first report as the end.

        Args:
            report: How the attempt has ended.
            usage: Memory and CPU of the attempt.
        """
        if _is_silent(report) and self._stopping.is_set():
            # No failure of the step's: the system knows why, or somebody has asked for it.
            report = report._replace(state=AttemptState.CANCELLED.value, reason=WAS_CANCELLED)
        if not self._end.done():
            self._end.set_result((report, usage))


def _is_silent(report: AttemptReport) -> bool:
    """Whether an attempt has ended without saying how: its process died, or what starts it."""
    died = (AttemptState.FAILED.value, AttemptState.LOST.value)
    return report.state in died and report.manifest is None
