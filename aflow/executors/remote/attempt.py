"""Run one attempt on a machine that has nothing of its run yet.

A worker (`runtime.py`), a job of a coordinator (`job.py`) and a job of a state machine
(`step_functions/job.py`) share this code: they fetch the run's code, build the step's environment,
and run the attempt in child processes. A job runs one attempt (`JobAttempt`): SIGTERM stops it, and
its output is copied to the job's log. Only the receiver of the reports differs.
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

GRACE = 20.0  # seconds for a step to stop after SIGTERM; job systems allow 30 in total
AGAIN = 1  # the exit code of a job if a retry may succeed
ALL_AT_ONCE = 0.5  # seconds within which a job system sends SIGTERM to all processes of a job
LOOK_FOR_OTHERS = 0.5  # seconds between checks for member 0 of a gang

V = TypeVar("V")


# ------------------------------------------------------------ code and Python


# Returns the directory with the code of a package. Raises CodePackageError.
Unpack = Callable[[BlobStore, str], Path]


def unpacked_in(folder: Path) -> Unpack:
    """Return a function that unpacks code packages into a directory.

    Args:
        folder: The directory; files of earlier packages are overwritten.
    """

    def unpack(blobs: BlobStore, key: str) -> Path:
        code_package.unpack(code_package.fetch(blobs, key), folder)
        return folder

    return unpack


def with_code(
    store: ObjectStore, request: LoadRequest, code: str, script: str, unpack: Unpack
) -> tuple[LoadRequest, Path]:
    """Fetch and unpack a code package. Blocks.

    Args:
        store: The datastore of the package.
        request: How to load the flow.
        code: The key of the code package.
        script: The path of the flow's file within the code package.
        unpack: Unpacks a code package and returns its directory.

    Returns:
        The request with the program's present location, and the directory of the code.

    Raises:
        CodePackageError: If the package cannot be unpacked.
        StorageError: If the package cannot be fetched.
    """
    folder = unpack(BlobStore(store), code)
    source = placed(request.source, folder, code_package.inside(script))
    return request._replace(source=source), folder


def delivered(
    store: ObjectStore, flow: str, run: str, key: str, unpack: Unpack
) -> tuple[Job, Path | None]:
    """Return the description of a run and the directory with its code. Blocks.

    The directory is None if the run has no code package.

    Args:
        store: The datastore of the payload and the code package.
        flow: The name of the flow.
        run: The id of the run.
        key: The key of the payload that describes the run.
        unpack: Unpacks a code package and returns its directory.

    Raises:
        CodePackageError: If the package cannot be unpacked, or the run was started with another
            version of Python.
        StorageError: If the payload or the package cannot be fetched.
        InvalidMessage: If the payload is malformed, or a newer aflow wrote it.
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
    """Return why a step without an environment cannot run in this Python; None if it can.

    Args:
        step: The name of the step, for the sentence.
        python: The version of Python that started the run, such as `3.12`.
    """
    if python == python_version():
        return None
    return (
        f"step {step} was started with Python {python}, and here is {python_version()}: use the "
        "same, or name the packages of the step (@pypi)."
    )


# ------------------------------------------------------------ gangs


async def gang_address(rendezvous: Rendezvous, spec: AttemptSpec) -> str:
    """Return the address of member 0 of the attempt's gang.

    Member 0 publishes its own address; the other members wait for it.

    Args:
        rendezvous: The addresses of the run's gangs, in the datastore.
        spec: The attempt of a member; its `split_index` is the member's number.

    Raises:
        StorageError: If the datastore does not respond.
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
    """Return the address of this machine in its network."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing, but selects the outgoing interface
        except OSError:  # without a network, all members are on this machine
            return "127.0.0.1"
        return str(probe.getsockname()[0])


# ------------------------------------------------------------ jobs


def log_line(text: str) -> None:
    """Write a line to the log of the job.

    Args:
        text: The line, without a newline; it is written to stderr.
    """
    print(f"aflow: {text}", file=sys.stderr, flush=True)  # noqa: T201 -- the log of the job


class Container(NamedTuple):
    """The resources of a job: datastore, temporary directory for the code, and zygote."""

    store: ObjectStore
    folder: Path
    zygote: EarlyZygote


def run_job(
    load: Callable[[], V], storage_of: Callable[[V], str], work: Callable[[V, Container], int]
) -> int:
    """Run a job.

    Args:
        load: Reads the configuration of the job; may raise InvalidInput.
        storage_of: Returns the URL of the datastore from the configuration.
        work: Does the work of the job and returns its exit code.

    Returns:
        The exit code: that of `work`; or on an error 202 if a retry cannot succeed, 1 if it may.
    """
    try:
        variables = load()
        if looked_up("SERVICE_AUTH_KEY_SECRET") is not None:
            from aflow.task.secrets_manager import fetch_service_key  # few jobs use a key

            fetch_service_key()
        # Before the fork, so that the zygote inherits these slow imports.
        store = open_store(storage_of(variables))
        # Before the directory is created: a process forked later would remove it when it exits.
        zygote = EarlyZygote(fork_zygote())
        conceal_secrets()  # which steps could read in /proc
        with ExitStack() as made:
            folder = made.enter_context(tempfile.TemporaryDirectory(prefix="aflow-"))
            made.callback(zygote.close)
            return work(variables, Container(store, Path(folder), zygote))
    except InvalidInput as error:  # a retry would fail in the same way
        log_line(str(error))
        return NO_RETRY_EXIT_CODE
    except AflowError as error:
        log_line(str(error))
        return AGAIN


def leave(code: int) -> NoReturn:
    """Exit immediately, without waiting for the threads of clients.

    Args:
        code: The exit code of the job.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class JobAttempt:
    """Runs the attempt of a job and handles SIGTERM. Subclasses report it.

    Implements `Reports`, to which the executor reports the attempt."""

    echoes = True  # copy the output of the attempt to the log of the job

    def __init__(self, container: Container, clock: Clock) -> None:
        self._container = container
        self._store = container.store
        self._clock = clock
        self._stopping = asyncio.Event()

    def listen(self) -> None:
        """Make SIGTERM stop the attempt, even before its start. Call it first, in the event
        loop."""
        loop = asyncio.get_running_loop()
        self._end: asyncio.Future[tuple[AttemptReport, Usage]] = loop.create_future()
        on_signal(loop, signal.SIGTERM, self._stopping.set)

    def start_of(self, step: str, shipped: Shipped | None, python: str) -> StartZygote:
        """Return the function that starts a zygote for a step. Blocks.

        If the step has an environment, it is built first.

        Args:
            step: The name of the step.
            shipped: The environment of the step; None if it has none.
            python: The version of Python that started the run, such as `3.12`.

        Raises:
            CodePackageError: If the step has no environment, and this is another version of Python.
            EnvironmentFailed: If the environment cannot be built.
            StorageError: If the environment's files cannot be fetched.
        """
        if shipped is not None:
            built: Built = transport.built(shipped, self._store, log_line, [step])
            return partial(spawn_zygote, built=built)
        why_not = other_python(step, python)
        if why_not is not None:
            raise CodePackageError(why_not)
        return self._container.zygote.start

    async def begin(
        self,
        context: RunContext,
        needs: Mapping[str, StepNeeds],
        request: LoadRequest,
        start: StartZygote,
    ) -> ProcessExecutor:
        """Start the executor of the attempt.

        Args:
            context: The run of the attempt.
            needs: The steps of the flow.
            request: How to load the flow.
            start: The starter of zygotes.

        Returns:
            The started executor; the caller stops it.

        Raises:
            AflowError: If the code or the environment cannot be prepared.
        """
        executor = ProcessExecutor(needs, request, start, self._clock, max_workers=1, grace=GRACE)
        await executor.start(context, self)
        return executor

    async def finish(
        self, executor: ProcessExecutor, spec: AttemptSpec
    ) -> tuple[AttemptReport, Usage]:
        """Run the attempt, and wait for its end.

        Args:
            executor: The executor that `begin` started; it is stopped here.
            spec: The attempt to run.

        Returns:
            The report and the resource usage of the attempt.
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

    # ------------------------------------------------------------ reports of the executor

    def handed(self, task: int, attempt: int, handle: str, host: str = "") -> None:
        """Do nothing: the processes of a job end with it, so they need not be found later."""

    def started(self, task: int, attempt: int, pid: int | None, at: float) -> None:
        """Do nothing; subclasses report that the attempt has started."""

    def logged(self, task: int, attempt: int, stream: int, at: float, chunk: bytes) -> None:
        """Copy the output of the attempt to the log of the job."""
        if self.echoes:
            out = binary((sys.stdout, sys.stderr)[stream])
            out.write(chunk)
            out.flush()

    def grown(self, task: int, attempt: int, count: int, manifest: bytes) -> None:
        """Do nothing; subclasses report the number of foreach items so far."""

    def ended(self, report: AttemptReport, usage: Usage) -> None:
        """Handle the end of the attempt.

        If its process ended without a report, SIGTERM may have been sent to all processes of the
        job, as Slurm does. Wait briefly until this process receives it as well."""
        if _is_silent(report) and not self._stopping.is_set():
            loop = asyncio.get_running_loop()
            loop.call_later(ALL_AT_ONCE, self.settle, report, usage)
        else:
            self.settle(report, usage)

    def settle(self, report: AttemptReport, usage: Usage) -> None:
        """Take the first report as the end of the attempt.

        Args:
            report: The result of the attempt.
            usage: Memory and CPU of the attempt.
        """
        if _is_silent(report) and self._stopping.is_set():
            # Not a failure of the step: the job system or a user stopped the job.
            report = report._replace(state=AttemptState.CANCELLED.value, reason=WAS_CANCELLED)
        if not self._end.done():
            self._end.set_result((report, usage))


def _is_silent(report: AttemptReport) -> bool:
    """Return whether an attempt ended without a report: its process or its zygote crashed."""
    died = (AttemptState.FAILED.value, AttemptState.LOST.value)
    return report.state in died and report.manifest is None
