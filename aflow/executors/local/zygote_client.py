"""The coordinator's side of the zygotes of a run: sends requests and handles reports."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from aflow._core.records import NamedTuple
from aflow._core.secret import revealed
from aflow._core.system import usable_cpus
from aflow.executors.base import ended_by
from aflow.executors.local import descendants, messages
from aflow.executors.local.zygote_start import keep_from_forks

if TYPE_CHECKING:
    from aflow.task.program import LoadRequest
    from aflow.task.spec import RunContext

UNREPORTED = 0.05  # seconds of imports below which a cold start is not reported
MOST_ZYGOTES = 8  # warm zygotes of a run: tasks of further environments start cold

_log = logging.getLogger("aflow.processes")


class ZygoteProcess(Protocol):
    """A zygote that has been started."""

    is_lent: bool  # its lender, rather than the run, waits for its exit

    @property
    def control(self) -> socket.socket:
        """The coordinator's end of its socket."""

    @property
    def pid(self) -> int:
        """Its process id."""

    def reap(self) -> int | None:
        """Wait until the process exits; closing its socket has made it exit.

        Returns:
            The wait status, as os.waitpid returns it; None if it is unknown.
        """


class Children(Protocol):
    """Receives the reports of zygotes about the processes that they have forked."""

    def forked(self, child: int, pid: int, at: float) -> None:
        """Handle a process that has been forked.

        Args:
            child: The number of the child process, as the coordinator counts them.
            pid: The id of the new process.
            at: When it happened, in seconds since the epoch.
        """

    def exited(self, child: int, status: int, max_rss: int, cpu: float) -> None:
        """Handle a process that has ended.

        Args:
            child: The number of the child process, as the coordinator counts them.
            status: The exit status, as os.waitpid returns it.
            max_rss: Its peak resident memory, in bytes.
            cpu: The processor time of the process and its children, in seconds.
        """

    def not_forked(self, child: int, reason: str) -> None:
        """Handle a request whose fork failed; another try may succeed.

        Args:
            child: The number of the child process, as the coordinator counts them.
            reason: Why, in one sentence.
        """

    def refused(self, child: int, reason: str) -> None:
        """Handle a request for a process that can never be forked from the program.

        Args:
            child: The number of the child process, as the coordinator counts them.
            reason: Why, in one sentence.
        """

    def zygote_lost(self, reason: str) -> None:
        """Handle the end of the first zygote, with which every process has ended.

        Args:
            reason: Why, in one sentence.
        """


class _RequestedProcess(NamedTuple):
    """A requested process, which may wait until the imports of the program are known."""

    child: int
    kind: int
    start: str
    environment: dict[str, str]
    detail: Any
    fds: list[int]
    late: dict[str, str]  # variables that are set after the fork


class Zygotes:
    """The zygotes of one run: the first one, which all others are forked from, and the warm ones.

    The modules that the program imports are known from the start of the run (`request.imported`),
    or reported by the first processes, which are forked from the first zygote. If the first zygote
    has imported all of them, no warm zygote is needed: the coordinator asks it.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        process: ZygoteProcess,
        children: Children,
        request: LoadRequest,
        context: RunContext,
    ) -> None:
        self._loop = loop
        self._process = process
        self._children = children
        self._context = context
        self._request = request._replace(imported=None)
        self._imported: Mapping[str, Any] | None = request.imported
        # Whether the first zygote has all imports of the program; None if not known yet.
        self._is_warm: bool | None = None
        self._token = descendants.new_token()
        self._ids = 0
        self._open = True
        self._learning: set[int] = set()  # processes that will report their imports
        # Held back until a process has reported its imports, and the first zygote has responded.
        self._held: deque[_RequestedProcess] = deque()
        self._interpreters: dict[tuple[Any, ...], _ZygoteSocket] = {}  # by their variables
        self._grown: dict[tuple[Any, ...], _ZygoteSocket] = {}  # by start method and variables
        self._of: dict[int, _ZygoteSocket] = {}  # child -> the zygote that forks it
        self._first = self._introduced(process.control)
        self._ask()

    def _introduced(self, control: socket.socket) -> _ZygoteSocket:
        """Return the socket of a zygote with its own interpreter, and send it the run."""
        link = _ZygoteSocket(self, control)
        link.send(messages.PROGRAM, *self._request)
        # Revealed, since the zygote connects itself; what it receives stays in its memory.
        whole = self._context._replace(metadata_url=revealed(self._context.metadata_url))
        link.send(messages.CONFIGURE, whole, self._token)
        return link

    def _interpreter(self, environment: Mapping[str, str]) -> _ZygoteSocket:
        """Return the zygote whose interpreter was started with these variables.

        This is the first zygote, unless Python or the C library reads one of them only at program
        start.
        """
        own = {name: each for name, each in environment.items() if read_at_start(name)}
        if not own:
            return self._first
        key = (*sorted(own.items()),)
        link = self._interpreters.get(key)
        if link is None or not link.is_open:
            try:
                ours, theirs = socket.socketpair()
            except OSError:  # out of descriptors
                return self._first
            self._first.send(messages.BEGIN, own, fds=[theirs.detach()])
            link = self._interpreters[key] = self._introduced(ours)
        return link

    def _ask(self) -> None:
        """Ask the first zygote if it has the imports of the program, once these are known."""
        if self._imported is None:
            return
        if self._imported["modules"]:
            self._first.send(messages.ASK, self._imported["modules"])
        else:
            self._is_warm = True

    def fork(
        self,
        kind: int,
        start: str,
        environment: Mapping[str, str],
        detail: Any,
        fds: Sequence[int],
        late: Mapping[str, str] | None = None,
    ) -> int:
        """Request a process with these variables: a `fresh` one, or a `fork` of the program.

        Args:
            kind: Which child program it becomes: that of a task or of a worker.
            start: `fresh` or `fork`.
            environment: The environment variables, by name.
            detail: What the child program needs; plain values.
            fds: Descriptors for the child; closed here once they are sent, or the request is
                dropped.
            late: Variables that are set after the fork, since they differ between tasks.

        Returns:
            The number of the child, which the methods of `Children` receive.
        """
        self._ids += 1
        request = _RequestedProcess(
            child=self._ids,
            kind=kind,
            start=start,
            environment=dict(environment),
            detail=detail,
            fds=[*fds],
            late=dict(late or {}),
        )
        if not self._sends(request):
            self._held.append(request)
        return request.child

    def _sends(self, request: _RequestedProcess) -> bool:
        """Send the request; False if the imports of the program must be known first."""
        if self._is_warm is not None or request.start == "fork":
            self._send(self._zygote_of(request), request)
        elif self._imported is None and len(self._learning) < usable_cpus():
            self._learning.add(request.child)
            self._send(self._interpreter(request.environment), request, learn=True)
        else:
            return False
        return True

    def _send(
        self, link: _ZygoteSocket, request: _RequestedProcess, *, learn: bool = False
    ) -> None:
        self._of[request.child] = link
        environment = request.late
        if link is self._first or link in self._interpreters.values():
            environment = {**request.environment, **request.late}
        link.send(request.kind, request.child, environment, learn, request.detail, fds=request.fds)

    def _zygote_of(self, request: _RequestedProcess) -> _ZygoteSocket:
        """Return the zygote for a request; a cold one if there is nothing to import."""
        forks = request.start == "fork"
        interpreter = self._interpreter(request.environment)
        if not forks:
            assert self._imported is not None, "it is known"
            if not self._imported["modules"] or (self._is_warm and not request.environment):
                return interpreter
        key = (forks, *sorted(request.environment.items()))
        link = self._grown.get(key)
        if link is not None and link.is_open:
            return link
        if not forks and (link is not None or len(self._grown) >= MOST_ZYGOTES):
            return interpreter
        try:
            ours, theirs = socket.socketpair()
        except OSError:  # out of descriptors: each task repeats the imports
            return interpreter
        imported = None if forks else self._imported
        interpreter.send(messages.GROW, request.environment, imported, fds=[theirs.detach()])
        link = self._grown[key] = _ZygoteSocket(self, ours)
        return link

    def learn(self, imported: Mapping[str, Any]) -> None:
        """Record the imports of the program, as one of its processes has reported them.

        Args:
            imported: The modules that the first run of the file has imported.
        """
        if self._imported is None:
            self._imported = imported
            self._ask()
            self._release()

    def _release(self) -> None:
        """Send the requests that were held back."""
        while self._held and self._open and self._sends(self._held[0]):
            self._held.popleft()

    def kill(self, child: int, signum: signal.Signals) -> None:
        """Request a signal to a process and its group.

        Args:
            child: The number of the child process, as the coordinator counts them.
            signum: The signal; a process whose request was not sent yet is never started instead.
        """
        link = self._of.get(child)
        if link is not None:
            link.send(messages.KILL, child, signum.value)
            if signum == signal.SIGKILL and link in self._grown.values() and not link.is_ready:
                # It still runs the program or its imports, and reads no messages meanwhile.
                self._loop.call_soon(self._abandon, link)
            return
        for request in self._held:
            if request.child == child:
                self._loop.call_soon(self._withdraw, request, signum)
                return

    def _withdraw(self, request: _RequestedProcess, signum: signal.Signals) -> None:
        """Drop a request that was not sent; kill its process if it was sent meanwhile."""
        if request in self._held:
            self._held.remove(request)
            messages.close_all(request.fds)
            self._children.not_forked(request.child, "it was no longer needed")
        else:
            self.kill(request.child, signum)

    def _abandon(self, link: _ZygoteSocket) -> None:
        """Give up a zygote that is not ready to fork; it is killed with the first zygote."""
        if link.is_open:
            self._drop(link, "the process that starts tasks was not ready yet")

    # ------------------------------------------------------------ what zygotes report

    def receive(self, link: _ZygoteSocket, kind: int, *rest: Any) -> None:
        """Handle a message from a zygote.

        Args:
            link: The connection to the zygote that has sent the message.
            kind: The kind of the message, from `messages`.
            *rest: The fields of that kind.
        """
        link.is_ready = True
        if kind == messages.FORKED:
            self._children.forked(*rest)
        elif kind == messages.HAS:
            self._is_warm = rest[0]
            self._release()
        elif kind == messages.COLD:
            note = cold_note(*rest)
            if note is not None:
                _log.warning("%s", note)
        elif kind != messages.READY:
            child = rest[0]
            self._of.pop(child, None)
            self._forget_learner(child)
            if kind == messages.EXITED:
                self._children.exited(*rest)
            elif kind == messages.REFUSED:
                self._children.refused(*rest)
            else:
                self._children.not_forked(*rest)

    def _forget_learner(self, child: int) -> None:
        if child in self._learning:
            self._learning.discard(child)
            self._release()

    def lost(self, link: _ZygoteSocket) -> None:
        """Handle the unexpected end of a zygote: its children are reported as lost.

        Args:
            link: The connection to the zygote; all zygotes end with the first one.
        """
        reason = "the process that starts tasks has died"
        if link is self._first:
            self.close()
            status = self.reap()
            if status is not None:
                reason = f"{reason} ({_how(status)})"
            descendants.kill_marked(self._token)
            self._children.zygote_lost(reason)
            return
        for key, each in self._interpreters.items():
            if each is link:
                names = ", ".join(name for name, _ in key)
                reason = f"the Python that was started with the step's {names} has ended"
        self._drop(link, reason)

    def _drop(self, link: _ZygoteSocket, reason: str) -> None:
        """Close the socket of a zygote, and report the processes that it was to fork."""
        link.close()
        for child in [child for child, of in self._of.items() if of is link]:
            del self._of[child]
            self._forget_learner(child)
            self._children.not_forked(child, reason)

    def close(self) -> None:
        """Release the zygotes: they kill what they have forked, and exit.

        May be called twice; `reap` waits for their exit.
        """
        self._open = False
        for link in (*self._grown.values(), *self._interpreters.values(), self._first):
            link.close()
        while self._held:
            messages.close_all(self._held.popleft().fds)

    def reap(self) -> int | None:
        """Wait until released zygotes have exited; return the wait status of the first, if known.

        Blocks, for some milliseconds since they have memory to free. May be called in any thread.
        """
        return self._process.reap()

    @property
    def is_lent(self) -> bool:
        """Whether the lender waits for their exit once they are released."""
        return self._process.is_lent


def read_at_start(name: str) -> bool:
    """Return whether Python, the C library or the dynamic linker reads a variable at program start.

    A change of such a variable has no effect in a forked process.

    Args:
        name: The name of the environment variable.
    """
    return name.startswith(_READ_AT_START)


# Options of Python, the time zone, the locale, library paths, the allocator.
_READ_AT_START = ("PYTHON", "TZ", "LANG", "LC_", "LD_", "DYLD_", "MALLOC_", "GLIBC_TUNABLES")


def _how(status: int) -> str:
    """Return how a zygote has ended, from its wait status."""
    how = ended_by(status).rstrip(".")
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
        return f"{how}: by somebody, or by the system, for want of memory"
    return how


def cold_note(reason: str, seconds: float) -> str | None:
    """Return the warning for tasks that repeat the imports; None if these are too short to matter.

    Args:
        reason: Why no task can be forked from a warm process, as the end of the sentence.
        seconds: How long the imports take, in seconds.
    """
    if seconds < UNREPORTED:
        return None
    return (
        f"Tasks start cold, about {seconds:.1f} s each, to import what the file imports: {reason}."
    )


def check_warm(process: ZygoteProcess, request: LoadRequest) -> str | None:
    """Return a warning if tasks of a program would start cold, else None.

    Blocks while the zygote imports what the program has imported; then releases it.

    Args:
        process: A zygote that was just started; it is released here.
        request: What is needed to load the flow.
    """
    ours, theirs = socket.socketpair()
    with ours, process.control as control:
        unpacker = messages.unpacker()
        program = messages.packed(messages.PROGRAM, *request._replace(imported=None))
        grow = messages.packed(messages.GROW, {}, request.imported)
        with theirs:
            control.sendall(program)
            socket.send_fds(control, [grow], [theirs.fileno()])
        answer = None
        while answer is None and (data := ours.recv(1 << 16)):
            unpacker.feed(data)
            answer = next(iter(unpacker), None)
    process.reap()
    if answer is None or answer[0] != messages.COLD:  # it is ready, or was killed from outside
        return None
    return cold_note(*answer[1:])


class _ZygoteSocket:
    """The socket of one zygote."""

    def __init__(self, zygotes: Zygotes, control: socket.socket) -> None:
        self._zygotes = zygotes
        self._loop = asyncio.get_running_loop()
        self._control = keep_from_forks(control)
        self._unpacker = messages.unpacker()
        self._unsent = messages.SendBuffer(self._loop, control)
        self.is_open = True
        self.is_ready = False  # whether the zygote has sent a message
        self._loop.add_reader(control, self._read)

    def send(self, *message: Any, fds: Sequence[int] = ()) -> None:
        """Send a message; the descriptors are closed once they are sent."""
        self._unsent.send(message, fds)

    def _read(self) -> None:
        try:
            data = self._control.recv(1 << 18)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._zygotes.lost(self)
            return
        self._unpacker.feed(data)
        for message in self._unpacker:
            if message[0] == messages.ARRIVED:
                self._unsent.arrived(message[1])
            else:
                self._zygotes.receive(self, *message)

    def close(self) -> None:
        """Release the zygote. May be called twice."""
        if not self.is_open:
            return
        self.is_open = False
        self._loop.remove_reader(self._control)
        self._unsent.close()
        self._control.close()
