"""The runs that the daemon has begun: each a process of its own, which reads the flow's code and
its parameters. None of the code that people send runs in the daemon itself."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import signal
import stat
import sys
import tempfile
from asyncio.subprocess import DEVNULL, Process
from collections.abc import AsyncIterator, Collection, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple

from aflow._core import ids
from aflow._core.private_folders import refuse_foreign
from aflow._core.settings import environment_with
from aflow._core.system import end_group
from aflow.errors import (
    AflowError,
    CommandFailed,
    CoordinatorClosed,
    CoordinatorFull,
    InvalidInput,
    InvalidSetting,
    NotFound,
    ObjectNotFound,
    StorageError,
    StoreUnavailable,
    UnsafeFolder,
)
from aflow.server.run_requests import RunRequest, fields_of
from aflow.storage.blobs import BlobStore
from aflow.task import code_package

_log = logging.getLogger("aflow.server")

ORDERS = "server/orders/"  # what was submitted, in the datastore
_PATIENCE = 120.0
_REMEMBERED = 1000  # runs whose last words are kept
_FORESEEN = 2  # dry runs at once: each imports a flow
_LARGEST_FORECAST = 1 << 20  # bytes
_LARGEST_ERROR = 4000  # bytes of the stderr of a run that did not begin


class RunsLocation(NamedTuple):
    """Where runs leave what they make. `root` is the `.aflow` folder; `settings` are the variables
    that tell runs of it. (By the environment, since URLs may hold passwords, and everybody who may
    list the processes of the machine can read a command line.) `secret` are variables of the server
    that no run gets."""

    root: Path
    settings: Mapping[str, str]
    secret: Collection[str] = ()

    @property
    def code(self) -> Path:
        """Where packages are unpacked, each below its key."""
        return self.root / "server" / "code"

    def prepare(self) -> None:
        """Make the folder for code, which belongs to this user alone: what is written there is run.

        Raises:
            InvalidSetting: It belongs to another user, or cannot be made.
            UnsafeFolder: Others may write to the folder above it, and so put another in its place.
        """
        folder = self.code.parent
        refuse_foreign(self.root, self.environment)
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = folder.lstat()
            if stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid():
                folder.chmod(0o700)
                return
        except OSError as error:
            raise InvalidSetting(f"{folder} cannot be made: {error.strerror}.") from error
        raise InvalidSetting(
            f"{folder} is a link, or belongs to another user, who could change the code that the "
            "server runs: remove it, or start the server in another folder."
        )

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a run."""
        return environment_with(self.settings, self.secret)


class Runs:
    """Begins runs, and ends them. `limit` is how many may go on at once; each has `patience`
    seconds until it has to be recorded."""

    def __init__(
        self, place: RunsLocation, blobs: BlobStore, limit: int, patience: float = _PATIENCE
    ) -> None:
        self._patience = patience
        self._place = place
        self._blobs = blobs
        self._limit = limit
        self._beginning = 0
        self._foreseeing = asyncio.Semaphore(_FORESEEN)
        self._closed = False
        self._processes: dict[str, Process] = {}
        self._reporting: set[asyncio.Task[None]] = set()
        self._last_errors: dict[str, str] = {}  # of processes that did not go on with their run

    @property
    def environment(self) -> dict[str, str]:
        """The environment of the runs that it begins."""
        return self._place.environment

    def going_on(self) -> list[str]:
        """Return the pathspecs (Flow/run) of the runs that go on."""
        self._processes = {k: p for k, p in self._processes.items() if p.returncode is None}
        return [*self._processes]

    @property
    def is_closed(self) -> bool:
        """Whether it begins no more runs."""
        return self._closed

    @property
    def has_room(self) -> bool:
        """Whether one more run may begin."""
        return len(self.going_on()) + self._beginning < self._limit

    async def begin(self, order: RunRequest) -> str:
        """Begin a run. Its record exists when this returns.

        Args:
            order: The code package, the flow and the options of the run.

        Returns:
            The pathspec of the run.

        Raises:
            CodePackageError: The code package was not sent, or is damaged.
            InvalidInput: The package has no such file.
            CoordinatorFull: The limit of runs at a time is reached.
            CoordinatorClosed: The server is being stopped.
            CommandFailed: The run did not begin; the error has its output.
        """
        self._refuse_when_closed()
        if not self.has_room:
            raise CoordinatorFull(
                f"{self._limit} runs go on already, and more are not allowed (--max-runs): "
                "try again when one has ended."
            )
        self._beginning += 1
        try:
            async with self._code(order) as folder:
                pathspec = await self._start(folder, order)
                await self._remember(pathspec, order)
                return pathspec
        finally:
            self._beginning -= 1

    async def foresee(self, order: RunRequest) -> dict[str, Any]:
        """Return what a run would begin with and do (see `aflow.runs.dry_run.counted`), with its
        parameters checked. The flow's file is imported; nothing is run or recorded. It raises what
        `begin` raises, but for CoordinatorFull.

        Args:
            order: The code package, the flow and the options of the run.

        Raises:
            CoordinatorClosed: The server is being stopped.
        """
        self._refuse_when_closed()
        async with self._foreseeing, self._code(order) as folder:
            return await self._foreseen(folder, order)

    async def _foreseen(self, folder: Path, order: RunRequest) -> dict[str, Any]:
        with tempfile.TemporaryFile() as stderr, tempfile.TemporaryFile() as found:
            process = await self._process(
                folder, order, order.flow, (*order.parameters, *order.argv), stderr,
                "--dry-run", f"--aflow-forecast=/dev/fd/{found.fileno()}",
                inherited=[found.fileno()],
            )  # fmt: skip
            try:
                async with asyncio.timeout(self._patience):
                    code = await process.wait()
            except TimeoutError as error:
                raise CommandFailed(
                    f"The dry run has not ended within {self._patience:.0f} seconds, and was "
                    "killed: what its file does when it is imported takes too long."
                ) from error
            finally:
                if process.returncode is None:
                    end_group(process.pid)
                    await process.wait()
            if code:
                raise CommandFailed(f"The run would not start: {_end_of(stderr)}")
            found.seek(0)
            data = found.read(_LARGEST_FORECAST + 1)
        try:
            return fields_of(data)
        except InvalidInput as error:  # the flow's own code may write anything
            raise CommandFailed("The dry run ended without a forecast.") from error

    def _refuse_when_closed(self) -> None:
        if self._closed:
            raise CoordinatorClosed("The server is being stopped: it begins no more runs.")

    @asynccontextmanager
    async def _code(self, order: RunRequest) -> AsyncIterator[Path]:
        """The folder with the code of a run, which no collection removes meanwhile. A process that
        was started in it keeps it from then on."""
        self._check_place()
        await asyncio.to_thread(self._blobs.claim, order.package)
        folder = await asyncio.to_thread(
            code_package.unpacked, self._blobs, order.package, self._place.code
        )
        try:
            if not (folder / order.script).is_file():
                raise InvalidInput(f"The code package has no file {order.script}.")
            yield folder
        finally:
            code_package.release(folder)

    def _check_place(self) -> None:
        """Check that the folder for code is what it was when the server began. Raises
        StoreUnavailable: the caller that asks for a run can do nothing about it."""
        try:
            self._place.prepare()
        except (InvalidSetting, UnsafeFolder) as error:
            raise StoreUnavailable(str(error)) from error

    async def _start(self, folder: Path, order: RunRequest) -> str:
        with tempfile.TemporaryFile() as stderr:
            reading, writing = os.pipe()
            with os.fdopen(reading, "rb", 0) as announcement:
                try:
                    process = await self._process(
                        folder, order, order.flow, (*order.parameters, *order.argv), stderr,
                        "--runner-attribute-file", f"/dev/fd/{writing}", inherited=[writing],
                    )  # fmt: skip
                finally:
                    os.close(writing)
                pathspec = await _announced(process, announcement, self._patience)
            if pathspec is None:
                raise CommandFailed(f"The run did not start: {_end_of(stderr)}")
        self._processes[pathspec] = process
        if self._closed:
            process.send_signal(signal.SIGHUP)  # it began while the daemon was being stopped
        return pathspec

    async def _process(
        self,
        folder: Path,
        order: RunRequest,
        flow: str | None,
        argv: Sequence[str],
        stderr: IO[bytes],
        *options: str,
        inherited: Sequence[int] = (),
    ) -> Process:
        """Start the order's command for a flow of its script. The process reads the arguments from
        a file, since a command line is seen by all users; what it writes to stderr goes to
        `stderr`, and it inherits the descriptors that `options` name."""
        file = folder / order.script
        target = str(file) if flow is None else f"{file}:{flow}"
        with _file_of(argv) as passed:
            return await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "aflow", order.command, target, "--quiet", *options),
                f"--aflow-argv=/dev/fd/{passed.fileno()}",
                cwd=file.parent,
                stdin=DEVNULL,
                stdout=DEVNULL,  # what tasks print is kept with the tasks
                stderr=stderr,
                pass_fds=[*inherited, passed.fileno(), code_package.descriptor_of(folder)],
                env=self._place.environment,
                start_new_session=True,  # ^C at the terminal is for the daemon to handle
            )

    async def _remember(self, pathspec: str, order: RunRequest) -> None:
        """Keep what was ordered, to recover the run. It is kept in the datastore: the metadata may
        be written by others, who are not to say which code a server runs."""
        data, store = order.encode(pathspec), self._blobs.store
        try:
            await asyncio.to_thread(store.put, _name_of(pathspec), [data], durable=True)
        except StorageError as error:
            _log.error("%s could not be recovered: its order is not kept: %s", pathspec, error)

    def forget(self, pathspec: str) -> None:
        """Drop the request of a run that has ended: it is not to be recovered. Blocks.

        Args:
            pathspec: The pathspec of the run, `flow/run`.
        """
        try:
            self._blobs.store.delete(_name_of(pathspec))
        except StorageError as error:
            _log.warning("The order of %s cannot be removed: %s", pathspec, error)

    def remembered(self, most: int) -> Iterator[str]:
        """Yield the pathspecs of runs whose requests are kept, `most` at most. Blocks. Raises
        StorageError.

        Args:
            most: How many objects to read at most.
        """
        for name in islice(self._blobs.store.list(ORDERS), most):
            try:
                run = fields_of(bytes(self._blobs.store.get(name))).get("run")
                if isinstance(run, str) and name == _name_of(run):
                    yield run
            except (ObjectNotFound, InvalidInput):  # gone meanwhile, or none of ours
                continue

    def ordered(self, pathspec: str) -> RunRequest:
        """Return what was ordered when a run began. Blocks.

        Args:
            pathspec: The pathspec of the run, `flow/run`.

        Raises:
            NotFound: For a run that no server with this datastore has begun, StorageError, and
                InvalidInput.
        """
        try:
            data = bytes(self._blobs.store.get(_name_of(pathspec)))
        except ObjectNotFound as error:
            raise NotFound(
                f"{pathspec} was not submitted to a server with the datastore "
                f"{self._blobs.store.url}: its code is not run here."
            ) from error
        return RunRequest.decode(data)

    async def recover(self, pathspec: str) -> None:
        """Recover an orphaned run, with the code and the arguments of its request.
        What keeps it from that is in the log, and in `last_error`.

        Args:
            pathspec: The pathspec of the run, `flow/run`.
        """
        if self._closed:
            return
        try:
            order = await asyncio.to_thread(self.ordered, pathspec)
            async with self._code(order) as folder:
                await self._start_recovery(pathspec, order, folder)
        except AflowError as error:
            self._last_errors[pathspec] = str(error)
            _log.warning("%s cannot be recovered: %s", pathspec, error)

    async def _start_recovery(self, pathspec: str, order: RunRequest, folder: Path) -> None:
        flow, _, run = pathspec.partition("/")
        stderr = tempfile.TemporaryFile()  # noqa: SIM115 -- closed when the process has ended
        try:
            argv = [*order.argv, "--aflow-recover", run]
            process = await self._process(folder, order, flow, argv, stderr)
        except BaseException:
            stderr.close()
            raise
        _log.info("%s was left by its coordinator: process %d goes on.", pathspec, process.pid)
        self._last_errors.pop(pathspec, None)
        self._processes[pathspec] = process
        # Ends with its process, for which `close` waits.
        task = asyncio.get_running_loop().create_task(self._report_end(process, pathspec, stderr))
        self._reporting.add(task)
        task.add_done_callback(self._note_reported)

    def _note_reported(self, task: asyncio.Task[None]) -> None:
        self._reporting.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("The end of a recovered run cannot be reported.", exc_info=error)

    async def _report_end(self, process: Process, pathspec: str, stderr: IO[bytes]) -> None:
        with stderr:
            code = await process.wait()
            if code:
                while len(self._last_errors) >= _REMEMBERED:
                    del self._last_errors[next(iter(self._last_errors))]
                self._last_errors[pathspec] = _end_of(stderr) or f"its process ended with {code}"
                _log.warning(
                    "%s, recovered, ended with %d: %s", pathspec, code, self._last_errors[pathspec]
                )

    def last_error(self, pathspec: str) -> str | None:
        """Return the error of the process that last tried to recover the run, and could not, or
        ended before the run had; None where there is none, or this was asked before.

        Args:
            pathspec: The pathspec of the run, `flow/run`.
        """
        return self._last_errors.pop(pathspec, None)

    def kill(self, pathspec: str) -> None:
        """End the process that has the run, with all that it has started, at once.

        Args:
            pathspec: The pathspec of the run, `flow/run`.
        """
        process = self._processes.get(pathspec)
        if process is not None and process.returncode is None:
            end_group(process.pid)

    def cancel(self, pathspec: str) -> bool:
        """Cancel a run: SIGTERM to its process.

        Args:
            pathspec: The pathspec of the run, `flow/run`.

        Returns:
            True if the process was sent the signal; False where it does not run on this server.
        """
        process = self._processes.get(pathspec)
        if process is None or process.returncode is not None:
            return False
        process.terminate()
        return True

    async def wait(self, pathspec: str, at_most: float) -> None:
        """Wait for the end of the run, if it goes on here, at most this many seconds.

        Args:
            pathspec: The pathspec of the run, `flow/run`.
            at_most: How many seconds to wait at most.
        """
        if (process := self._processes.get(pathspec)) is not None:
            try:
                await asyncio.wait_for(process.wait(), at_most)
            except TimeoutError:
                return

    async def close(self, grace: float, hurry: asyncio.Event) -> None:
        """Begin no more runs; wait `grace` seconds, or until `hurry` is set, for those that are
        running, then leave them to the server that recovers them, and wait for their processes.

        Args:
            grace: How many seconds running runs have to end by themselves.
            hurry: Set on a second signal: the rest of the grace time is not waited for.
        """
        self._closed = True
        ended = asyncio.gather(*(self._processes[name].wait() for name in self.going_on()))
        hurried = asyncio.get_running_loop().create_task(hurry.wait())
        both: list[asyncio.Future[Any]] = [ended, hurried]
        try:
            await asyncio.wait(both, timeout=grace, return_when=asyncio.FIRST_COMPLETED)
        finally:
            hurried.cancel()
        for name in self.going_on():
            self._processes[name].send_signal(signal.SIGHUP)
        await ended
        await asyncio.gather(*self._reporting, return_exceptions=True)  # they were logged


def _file_of(argv: Sequence[str]) -> IO[bytes]:
    """A file without a name that holds these arguments, for a process that inherits it."""
    file = tempfile.TemporaryFile()  # noqa: SIM115 -- closed by the caller
    file.write(json.dumps([*argv]).encode())
    file.seek(0)
    return file


def _name_of(pathspec: str) -> str:
    """The object that keeps the order of a run: names of runs hold characters that no name of an
    object may."""
    return f"{ORDERS}{hashlib.blake2b(pathspec.encode(), digest_size=16).hexdigest()}"


async def _announced(process: Process, announcement: IO[bytes], patience: float) -> str | None:
    """The pathspec of the run, once it is recorded; None where it has ended before. A process that
    does neither is killed (its code, which it imports first, may never come to an end), and so it
    is when this is cancelled."""
    try:
        async with asyncio.timeout(patience):
            first = await _first(announcement)
            if first:
                return _pathspec(first)
            await process.wait()
            return None
    except BaseException as error:
        end_group(process.pid)
        await process.wait()
        if isinstance(error, TimeoutError):
            raise CommandFailed(
                f"The run did not start within {patience:.0f} seconds, and was killed: what its "
                "file does when it is imported takes too long."
            ) from error
        raise


def _pathspec(announced: bytes) -> str:
    # Code that is being imported might write this, too.
    try:
        names = json.loads(announced)
        return f"{ids.flow_name(names['flow_name'])}/{ids.run_id(names['run_id'])}"
    except (ValueError, KeyError, TypeError, InvalidInput) as error:
        raise CommandFailed("The run did not start: it announced no run.") from error


async def _first(pipe: IO[bytes]) -> bytes:
    """What is written into the pipe first; empty if it is closed without a word."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def see() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(pipe.fileno(), see)
    try:
        await ready
    finally:
        loop.remove_reader(pipe.fileno())
    return os.read(pipe.fileno(), 1 << 16)


def _end_of(stderr: IO[bytes]) -> str:
    size = stderr.seek(0, os.SEEK_END)
    stderr.seek(max(0, size - _LARGEST_ERROR))
    return stderr.read(_LARGEST_ERROR).decode(errors="replace").strip()
