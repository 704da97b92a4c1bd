"""The runs that the daemon has begun: each a process of its own, which reads the flow's code and
its parameters. None of the code that people send runs in the daemon itself."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import stat
import sys
import tempfile
from asyncio.subprocess import DEVNULL, Process
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

from aflow import ids, package
from aflow.config import environment_with
from aflow.errors import (
    CommandFailed,
    CoordinatorClosed,
    CoordinatorFull,
    InvalidInput,
    InvalidSetting,
)
from aflow.server.orders import Order
from aflow.storage.blobs import BlobStore

_log = logging.getLogger("aflow.server")

_PATIENCE = 120.0
_REMEMBERED = 1000  # runs whose last words are kept
_SAID = 4000  # bytes of what a run that did not begin has said


class Place(NamedTuple):
    """Where runs leave what they make. `root` is the `.aflow` folder; `settings` are the variables
    that tell runs of it. (By the environment, since URLs may hold passwords, and everybody who may
    list the processes of the machine can read a command line.) `secret` are variables of the server
    that no run is told."""

    root: Path
    settings: Mapping[str, str]
    secret: Collection[str] = ()

    @property
    def code(self) -> Path:
        """Where packages are unpacked, each below its key."""
        return self.root / "server" / "code"

    def prepare(self) -> None:
        """Make the folder for code, which belongs to this user alone: what is written there is
        run. Raises InvalidSetting where it is somebody else's, or cannot be made."""
        folder = self.code.parent
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
        self, place: Place, blobs: BlobStore, limit: int, patience: float = _PATIENCE
    ) -> None:
        self._patience = patience
        self._place = place
        self._blobs = blobs
        self._limit = limit
        self._beginning = 0
        self._closed = False
        self._processes: dict[str, Process] = {}
        self._telling: set[asyncio.Task[None]] = set()
        self._last_words: dict[str, str] = {}  # of processes that did not go on with their run

    def going_on(self) -> list[str]:
        """The pathspecs (Flow/run) of the runs that go on."""
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

    async def begin(self, order: Order) -> str:
        """Begin the run and give its pathspec: it is recorded when this returns. Raises
        CodePackageError where the package is not there, InvalidInput where it has no such file,
        CoordinatorFull, CoordinatorClosed, and CommandFailed with what the run says where it does
        not begin."""
        if self._closed:
            raise CoordinatorClosed("The server is being stopped: it begins no more runs.")
        if not self.has_room:
            raise CoordinatorFull(
                f"{self._limit} runs go on already, and more are not allowed (--max-runs): "
                "try again when one has ended."
            )
        self._beginning += 1
        try:
            # Nobody collects it while the run, which keeps its own code, begins.
            await asyncio.to_thread(self._blobs.claim, order.package)
            folder = await asyncio.to_thread(
                package.unpacked, self._blobs, order.package, self._place.code
            )
            try:
                file = folder / order.script
                if not file.is_file():
                    raise InvalidInput(f"The code package holds no file {order.script}.")
                return await self._start(folder, order)
            finally:
                package.release(folder)  # the run uses it from now on
        finally:
            self._beginning -= 1

    async def _start(self, folder: Path, order: Order) -> str:
        file = folder / order.script
        target = str(file) if order.flow is None else f"{file}:{order.flow}"
        with tempfile.TemporaryFile() as said:
            reading, writing = os.pipe()
            with os.fdopen(reading, "rb", 0) as told:
                try:
                    process = await asyncio.create_subprocess_exec(
                        *(sys.executable, "-m", "aflow", order.command, target, "--quiet"),
                        *("--runner-attribute-file", f"/dev/fd/{writing}"),
                        *order.words,
                        cwd=file.parent,
                        stdin=DEVNULL,
                        stdout=DEVNULL,  # what tasks print is kept with the tasks
                        stderr=said,
                        pass_fds=[writing, package.descriptor_of(folder)],
                        env=self._place.environment,
                        start_new_session=True,  # ^C at the terminal is for the daemon to handle
                    )
                finally:
                    os.close(writing)
                announced = await _announced(process, told, self._patience)
            if announced is None:
                raise CommandFailed(f"The run has not begun: {_end_of(said)}")
        pathspec = announced
        self._processes[pathspec] = process
        if self._closed:
            process.send_signal(signal.SIGHUP)  # it began while the daemon was being stopped
        return pathspec

    async def take_up(self, pathspec: str) -> None:
        """Go on with a run that nobody drives. Who is too late, or cannot, says why in the log."""
        if self._closed:
            return
        said = tempfile.TemporaryFile()  # noqa: SIM115 -- closed when the process has ended
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "aflow", "adopt", pathspec),
                cwd=self._place.root,
                stdin=DEVNULL,
                stdout=DEVNULL,
                stderr=said,
                env=self._place.environment,
                start_new_session=True,
            )
        except BaseException:
            said.close()
            raise
        _log.info("%s was left by its coordinator: process %d goes on.", pathspec, process.pid)
        self._last_words.pop(pathspec, None)
        self._processes[pathspec] = process
        # Ends with its process, for which `close` waits.
        told = asyncio.get_running_loop().create_task(self._tell_of(process, pathspec, said))
        self._telling.add(told)
        told.add_done_callback(self._telling.discard)

    async def _tell_of(self, process: Process, pathspec: str, said: IO[bytes]) -> None:
        with said:
            code = await process.wait()
            if code:
                while len(self._last_words) >= _REMEMBERED:
                    del self._last_words[next(iter(self._last_words))]
                self._last_words[pathspec] = _end_of(said) or f"its process ended with {code}"
                _log.warning(
                    "%s, taken up, ended with %d: %s", pathspec, code, self._last_words[pathspec]
                )

    def last_words(self, pathspec: str) -> str | None:
        """What the process has said that was last to take the run up, and could not, or ended
        before the run had; None where there is none, or this was asked before."""
        return self._last_words.pop(pathspec, None)

    def kill(self, pathspec: str) -> None:
        """End the process that has the run, with all that it has started, at once."""
        process = self._processes.get(pathspec)
        if process is not None and process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    def cancel(self, pathspec: str) -> bool:
        """Stop the run; False where it is none of those that go on here."""
        process = self._processes.get(pathspec)
        if process is None or process.returncode is not None:
            return False
        process.terminate()
        return True

    async def wait(self, pathspec: str, at_most: float) -> None:
        """Wait for the end of the run, if it goes on here, so many seconds at most."""
        if (process := self._processes.get(pathspec)) is not None:
            try:
                await asyncio.wait_for(process.wait(), at_most)
            except TimeoutError:
                return

    async def close(self, grace: float, hurry: asyncio.Event) -> None:
        """Begin no more runs; wait `grace` seconds, or until there is hurry, for those that go on,
        then leave them for whoever takes them up, and wait for that."""
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
        await asyncio.gather(*self._telling)


async def _announced(process: Process, told: IO[bytes], patience: float) -> str | None:
    """The pathspec of the run, once it is recorded; None where it has ended before. A process that
    does neither is killed (its code, which it imports first, may never come to an end), and so it
    is when this is cancelled."""
    try:
        async with asyncio.timeout(patience):
            first = await _first(told)
            if first:
                return _pathspec(first)
            await process.wait()
            return None
    except BaseException as error:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()
        if isinstance(error, TimeoutError):
            raise CommandFailed(
                f"The run has not begun within {patience:.0f} seconds, and was killed: what its "
                "file does when it is imported takes too long."
            ) from error
        raise


def _pathspec(announced: bytes) -> str:
    # Code that is being imported might write this, too.
    try:
        names = json.loads(announced)
        return f"{ids.flow_name(names['flow_name'])}/{ids.run_id(names['run_id'])}"
    except (ValueError, KeyError, TypeError, InvalidInput) as error:
        raise CommandFailed("The run has not begun: it announced no run.") from error


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


def _end_of(said: IO[bytes]) -> str:
    size = said.seek(0, os.SEEK_END)
    said.seek(max(0, size - _SAID))
    return said.read(_SAID).decode(errors="replace").strip()
