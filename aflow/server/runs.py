"""The runs started by the daemon, each in its own child process, which imports the flow's code. The
daemon itself executes no submitted code."""

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

ORDERS = "server/orders/"  # prefix of the submitted run requests in the datastore
_PATIENCE = 120.0
_REMEMBERED = 1000  # runs whose last error is kept
_FORESEEN = 2  # concurrent dry runs: each imports a flow
_LARGEST_FORECAST = 1 << 20  # bytes
_LARGEST_ERROR = 4000  # bytes of stderr shown for a run that did not start


class RunsLocation(NamedTuple):
    """The `.aflow` folder and the environment of runs.

    `root` is the `.aflow` folder. `settings` are environment variables that pass the configuration
    to runs; not arguments, because URLs may contain passwords, and all users of the machine can
    read command lines. `secret` names variables of the server that runs do not inherit."""

    root: Path
    settings: Mapping[str, str]
    secret: Collection[str] = ()

    @property
    def code(self) -> Path:
        """The folder for unpacked code packages; each is in a subfolder named by its key."""
        return self.root / "server" / "code"

    def prepare(self) -> None:
        """Create the folder for code, accessible to this user only, because its files are executed.

        Raises:
            InvalidSetting: If the folder belongs to another user or cannot be created.
            UnsafeFolder: If other users can write to a parent folder, and so replace the folder.
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
        """The environment variables of a run."""
        return environment_with(self.settings, self.secret)


class Runs:
    """Starts and stops runs. At most `limit` are active at a time; each must be recorded within
    `patience` seconds. `place` has their folder and environment; `is_closed` is whether no more
    runs are started."""

    def __init__(
        self, place: RunsLocation, blobs: BlobStore, limit: int, patience: float = _PATIENCE
    ) -> None:
        self._patience = patience
        self.place = place
        self._blobs = blobs
        self._limit = limit
        self._beginning = 0
        self._foreseeing = asyncio.Semaphore(_FORESEEN)
        self.is_closed = False
        self._processes: dict[str, Process] = {}
        self._reporting: set[asyncio.Task[None]] = set()
        self._last_errors: dict[str, str] = {}  # of processes that failed to recover their run

    def going_on(self) -> list[str]:
        """Return the pathspecs (Flow/run) of the active runs."""
        self._processes = {k: p for k, p in self._processes.items() if p.returncode is None}
        return [*self._processes]

    @property
    def has_room(self) -> bool:
        """Whether another run may start."""
        return len(self.going_on()) + self._beginning < self._limit

    async def begin(self, order: RunRequest) -> str:
        """Start a run, and wait until it is recorded.

        Args:
            order: The code package, the flow and the options of the run.

        Returns:
            The pathspec of the run.

        Raises:
            CodePackageError: If the code package does not exist or is damaged.
            InvalidInput: If the package does not contain the script.
            CoordinatorFull: If the limit of active runs is reached.
            CoordinatorClosed: If the server is shutting down.
            CommandFailed: If the run did not start; the error contains its output.
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
        """Return what a run would do (see `aflow.runs.dry_run.counted`), after a check of its
        parameters.

        Imports the flow's file in a child process; nothing is run or recorded. Raises the errors of
        `begin` except CoordinatorFull.

        Args:
            order: The code package, the flow and the options of the run.

        Raises:
            CoordinatorClosed: If the server is shutting down.
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
        except InvalidInput as error:  # the flow's code may write to the file, too
            raise CommandFailed("The dry run ended without a forecast.") from error

    def _refuse_when_closed(self) -> None:
        if self.is_closed:
            raise CoordinatorClosed("The server is being stopped: it begins no more runs.")

    @asynccontextmanager
    async def _code(self, order: RunRequest) -> AsyncIterator[Path]:
        """Yield the folder with the code of a run, protected from garbage collection of unpacked
        packages. A process started in the block keeps the protection by inheriting its
        descriptor."""
        self._check_place()
        await asyncio.to_thread(self._blobs.claim, order.package)
        folder = await asyncio.to_thread(
            code_package.unpacked, self._blobs, order.package, self.place.code
        )
        try:
            if not (folder / order.script).is_file():
                raise InvalidInput(f"The code package has no file {order.script}.")
            yield folder
        finally:
            code_package.release(folder)

    def _check_place(self) -> None:
        """Check the folder for code again, since it may have been replaced. Raises
        StoreUnavailable: the client cannot correct it."""
        try:
            self.place.prepare()
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
        if self.is_closed:
            process.send_signal(signal.SIGHUP)  # it started while the daemon was shutting down
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
        """Start the process of a run request.

        `argv` is passed in an inherited file, because all users can read command lines. The process
        writes its stderr to `stderr` and inherits the descriptors `inherited`, which `options`
        refer to."""
        file = folder / order.script
        target = str(file) if flow is None else f"{file}:{flow}"
        with _file_of(argv) as passed:
            return await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "aflow", order.command, target, "--quiet", *options),
                f"--aflow-argv=/dev/fd/{passed.fileno()}",
                cwd=file.parent,
                stdin=DEVNULL,
                stdout=DEVNULL,  # output of tasks is stored with the tasks
                stderr=stderr,
                pass_fds=[*inherited, passed.fileno(), code_package.descriptor_of(folder)],
                env=self.place.environment,
                start_new_session=True,  # ^C at the terminal must reach the daemon only
            )

    async def _remember(self, pathspec: str, order: RunRequest) -> None:
        """Store the request of a run, to recover it. It is stored in the datastore: others may
        write to the metadata, and must not choose the code that a server runs."""
        data, store = order.encode(pathspec), self._blobs.store
        try:
            await asyncio.to_thread(store.put, _name_of(pathspec), [data], durable=True)
        except StorageError as error:
            _log.error("%s could not be recovered: its order is not kept: %s", pathspec, error)

    def forget(self, pathspec: str) -> None:
        """Delete the stored request of a finished run, which needs no recovery. Blocks.

        Args:
            pathspec: The pathspec of the run, `flow/run`.
        """
        try:
            self._blobs.store.delete(_name_of(pathspec))
        except StorageError as error:
            _log.warning("The order of %s cannot be removed: %s", pathspec, error)

    def remembered(self, most: int) -> Iterator[str]:
        """Yield the pathspecs of runs with stored requests. Blocks. Raises StorageError.

        Args:
            most: The maximum number of stored requests to read.
        """
        for name in islice(self._blobs.store.list(ORDERS), most):
            try:
                run = fields_of(bytes(self._blobs.store.get(name))).get("run")
                if isinstance(run, str) and name == _name_of(run):
                    yield run
            except (ObjectNotFound, InvalidInput):  # deleted in the meantime, or not a run request
                continue

    def ordered(self, pathspec: str) -> RunRequest:
        """Return the stored request of a run. Blocks. Raises StorageError and InvalidInput, too.

        Args:
            pathspec: The pathspec of the run, `flow/run`.

        Raises:
            NotFound: If no server with this datastore has started the run.
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
        """Start the recovery of an orphaned run, with the code and the arguments of its request.
        Errors are logged and available from `last_error`.

        Args:
            pathspec: The pathspec of the run, `flow/run`.
        """
        if self.is_closed:
            return
        try:
            order = await asyncio.to_thread(self.ordered, pathspec)
            async with self._code(order) as folder:
                await self._start_recovery(pathspec, order, folder)
        except AflowError as error:
            self._note_error(pathspec, str(error))
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
        # Ends when the process does, which `close` waits for.
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
                error = _end_of(stderr) or f"its process ended with {code}"
                self._note_error(pathspec, error)
                _log.warning("%s, recovered, ended with %d: %s", pathspec, code, error)

    def _note_error(self, pathspec: str, error: str) -> None:
        """Keep the error for `last_error`, and forget the oldest ones."""
        while len(self._last_errors) >= _REMEMBERED:
            del self._last_errors[next(iter(self._last_errors))]
        self._last_errors[pathspec] = error

    def last_error(self, pathspec: str) -> str | None:
        """Return the error of the last process that failed to recover the run, and clear it; None
        if there is none.

        Args:
            pathspec: The pathspec of the run, `flow/run`.
        """
        return self._last_errors.pop(pathspec, None)

    def kill(self, pathspec: str) -> None:
        """Kill the process of a run with all of its child processes.

        Args:
            pathspec: The pathspec of the run, `flow/run`.
        """
        process = self._processes.get(pathspec)
        if process is not None and process.returncode is None:
            end_group(process.pid)

    def cancel(self, pathspec: str) -> None:
        """Cancel a run by sending SIGTERM to its process, if it has one on this server.

        Args:
            pathspec: The pathspec of the run, `flow/run`.
        """
        process = self._processes.get(pathspec)
        if process is not None and process.returncode is None:
            process.terminate()

    async def wait(self, pathspec: str, at_most: float) -> None:
        """Wait until the process of a run exits, if it is a child of this server.

        Args:
            pathspec: The pathspec of the run, `flow/run`.
            at_most: The maximum time to wait, in seconds.
        """
        if (process := self._processes.get(pathspec)) is not None:
            try:
                await asyncio.wait_for(process.wait(), at_most)
            except TimeoutError:
                return

    async def close(self, grace: float, hurry: asyncio.Event) -> None:
        """Start no more runs, and wait up to `grace` seconds for active ones. Then make the
        processes of the remaining runs release them, for another server to recover, and wait until
        they exit.

        Args:
            grace: The seconds for which active runs may continue.
            hurry: Ends the grace time early when set (by a second signal).
        """
        self.is_closed = True
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
    """Return an unnamed file with these arguments, to be inherited by a child process."""
    file = tempfile.TemporaryFile()  # noqa: SIM115 -- closed by the caller
    file.write(json.dumps([*argv]).encode())
    file.seek(0)
    return file


def _name_of(pathspec: str) -> str:
    """Return the name of the object with the request of a run. It is a hash, because pathspecs may
    contain characters that object names may not."""
    return f"{ORDERS}{hashlib.blake2b(pathspec.encode(), digest_size=16).hexdigest()}"


async def _announced(process: Process, announcement: IO[bytes], patience: float) -> str | None:
    """Return the pathspec of the run once it is recorded; None if the process exits before.

    The process is killed if it does neither in time (the import of its code may hang), or if this
    coroutine is cancelled."""
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
    # Submitted code can write to this descriptor, too.
    try:
        names = json.loads(announced)
        return f"{ids.flow_name(names['flow_name'])}/{ids.run_id(names['run_id'])}"
    except (ValueError, KeyError, TypeError, InvalidInput) as error:
        raise CommandFailed("The run did not start: it announced no run.") from error


async def _first(pipe: IO[bytes]) -> bytes:
    """Return the first data written to the pipe; empty if it is closed without any."""
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
