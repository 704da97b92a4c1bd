"""Start the first zygote of a run.

It is forked from a process that has run no user code yet. If there are threads, an event loop, or
the user's program, it is spawned as a fresh interpreter.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from functools import wraps
from importlib import import_module
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from aflow._core.process import delegate_if_first
from aflow._core.settings import environment_with, secret_variables, without_signing_key
from aflow._core.system import WAITS_FOR_ANY, open_descriptors, out_of_the_way, read_proc
from aflow.task.program import started

if TYPE_CHECKING:
    from aflow.environments.build import Built

# Finds this installation of aflow, wherever it is, and leaves sys.path as a fresh interpreter has
# it. Everything that steps start would inherit an environment variable, and may be another Python.
_PROGRAM = """\
import sys
module, own, *sys.argv[1:] = sys.argv[1:]
path = sys.path[:]
if not sys.flags.safe_path:
    del sys.path[0]  # a file of the user's in the working folder may have the name of a module
from importlib.util import find_spec
found = find_spec("aflow")
if found is None or found.origin is None or not found.origin.startswith(own):
    sys.path.insert(0, own)
from importlib import import_module
import_module("aflow._core.deferred").defer_all()
main = import_module(module).main
sys.path[:] = path
main()
"""


# Runs before _PROGRAM if aflow needs other versions of some packages than the environment has.
_PRIVATE = """\
import sys
names = {}
with open(sys.argv[2] + "aflow/environments/private.py", encoding="utf-8") as file:
    exec(compile(file.read(), file.name, "exec"), names)
names["keep"](sys.argv.pop(3).split(","), sys.argv[2])
"""


# By name, since the main program of a zygote is in a layer above this one.
ZYGOTE = "aflow.executors.local.zygote_main"


_ours: WeakSet[socket.socket] = WeakSet()  # sockets that forked processes must close


def keep_from_forks(control: socket.socket) -> socket.socket:
    """Close this end of a zygote's socket in every process that this program forks.

    A zygote exits when the socket is closed, so no other process may keep it open or be mistaken
    for the coordinator.

    Args:
        control: This process's end of a socket to a zygote.

    Returns:
        The same socket.
    """
    _ours.add(control)
    return control


def _close_in_forks() -> None:
    global _early
    _early = None  # it belongs to the parent
    _as_usual()
    for each in [*_ours]:
        each.close()


os.register_at_fork(after_in_child=_close_in_forks)


class ForkedZygote:
    """A zygote forked from this process, before it had a second thread or an event loop."""

    is_lent = False

    def __init__(self, control: socket.socket, pid: int) -> None:
        self.control = control
        self.pid = pid

    def reap(self) -> int | None:
        """Wait until it exits; return its wait status, or None if other code has waited for it."""
        try:
            return os.waitpid(self.pid, 0)[1]
        except ChildProcessError:  # other code has waited for all children
            return None


class SpawnedZygote:
    """A zygote in a fresh interpreter."""

    is_lent = False

    def __init__(self, control: socket.socket, process: subprocess.Popen[bytes]) -> None:
        self.control = control
        self._process = process

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def reap(self) -> int | None:
        """Wait until it exits; closing its socket has made it exit. Return its wait status."""
        code = self._process.wait()
        return code << 8 if code >= 0 else -code


def fork_zygote(*, inherits: bool = True) -> ForkedZygote:
    """Fork a zygote from this process.

    This process has one thread and no event loop, and has run no user code.

    Args:
        inherits: Whether the zygote keeps the descriptors that this process has open, in addition
            to its standard streams.

    Returns:
        The zygote, as its parent sees it. The child does not return.
    """
    ours, theirs = socket.socketpair()
    parent = os.getpid()
    pid = os.fork()
    if pid:
        theirs.close()
        # Moved to a high number, since the user's program may run in this process.
        ours = socket.socket(fileno=out_of_the_way(ours.detach()))
        return ForkedZygote(keep_from_forks(ours), pid)
    code = 1
    try:
        os.setsid()  # Ctrl-C on the terminal reaches the coordinator only
        ours.close()
        if not inherits:
            for each in open_descriptors() - {0, 1, 2, theirs.fileno()}:
                os.close(each)
        # Imported here, in parallel with the imports of the coordinator.
        path = sys.path if sys.flags.safe_path else sys.path[1:]
        import_module(ZYGOTE).serve(theirs, parent, path, lambda: command_of(ZYGOTE))
        code = 0
    except BaseException:  # noqa: BLE001 -- an error of aflow: the coordinator reports that the zygote has exited
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def command_of(module: str, built: Built | None = None) -> list[str]:
    """Return the command that calls `main` of a module of aflow in a fresh interpreter.

    Args:
        module: The module of aflow whose `main` is called.
        built: The environment of the step; None for an interpreter like this one.
    """
    flags: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    if built is not None:
        place = os.path.join(built.runtime, "")
        if built.private:
            names = ",".join(built.private)
            return [built.python, *flags, "-c", _PRIVATE + _PROGRAM, module, place, names]
        return [built.python, *flags, "-c", _PROGRAM, module, place]
    own = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(__file__))))
    return [sys.executable, *flags, "-c", _PROGRAM, module, os.path.join(own, "")]


def spawn_zygote(
    environment: Mapping[str, str] | None = None,
    folder: str | None = None,
    built: Built | None = None,
) -> SpawnedZygote:
    """Start a zygote in a fresh interpreter. Does not wait until it is ready.

    Args:
        environment: The environment variables; None for those of this process.
        folder: The working folder; None for that of this process.
        built: The environment of a step, whose interpreter is started; None for an interpreter like
            this one.

    Returns:
        The zygote; its socket accepts requests immediately.

    Raises:
        OSError: If the process cannot be started.
    """
    variables = dict(environment_with({}) if environment is None else environment)
    if built is not None:
        variables = built.variables(variables)
    with ExitStack() as made:
        ours, theirs = socket.socketpair()
        made.enter_context(ours)
        with theirs:
            process = subprocess.Popen(
                [
                    *command_of(ZYGOTE, built),
                    str(theirs.fileno()),
                    str(os.getpid()),
                ],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=without_signing_key(variables),
                cwd=folder,
                start_new_session=True,  # Ctrl-C on the terminal reaches the coordinator only
            )
        made.pop_all()
        return SpawnedZygote(keep_from_forks(ours), process)


def spawn_here(built: Built | None = None) -> SpawnedZygote:
    """Start a zygote with the environment and folder that this program was started with.

    Args:
        built: The environment of a step, whose interpreter is started; None for an interpreter like
            this one.

    Returns:
        The zygote; its socket accepts requests immediately.
    """
    start = started()
    if start is None:
        return spawn_zygote(built=built)
    return spawn_zygote(start.environment, start.folder, built)


_OF_TOOLS = ("COVERAGE_PROCESS_CONFIG", "COVERAGE_PROCESS_START")


def environment_at_start() -> dict[str, str]:
    """Return the environment variables that this program was started with, as far as known."""
    # The kernel's copy: os.environ contains later changes.
    environ = read_proc("self/environ")
    if environ is None:
        return environment_with({})
    pairs = [each.partition(b"=") for each in environ.split(b"\0") if b"=" in each]
    found = {os.fsdecode(key): os.fsdecode(value) for key, _, value in pairs}
    # Tools that measure child processes set these variables after the start, and concealed secrets
    # (conceal_secrets) are no longer in the kernel's copy.
    now = environment_with({})
    concealed = (name for name in secret_variables(now) if found.get(name) is not None)
    return found | {name: now[name] for name in (*_OF_TOOLS, *concealed) if name in now}


STARTING = frozenset({"run", "resume", "spin"})  # commands that start a run

_NOT_STARTING = frozenset({"--help", "-h", "--dry-run"})


def looks_like_a_run(argv: Sequence[str]) -> bool:
    """Return whether the arguments seem to start a run.

    If the guess is wrong, the zygote is not used and exits with the command.

    Args:
        argv: The arguments of the command line, which are not parsed yet.
    """
    words = {*argv}
    return bool(STARTING & words) and not _NOT_STARTING & words


_early: EarlyZygote | None = None  # the zygote for the run that this command is about to start


def have_zygote(*, fork: bool = False, inherits: bool = True) -> None:
    """Start a zygote for the run that this command is about to start, if there is none yet.

    Args:
        fork: Whether this process may be forked for it (see `fork_zygote`); it has run no user
            code.
        inherits: Whether the child keeps what this process has imported and opened.
    """
    global _early
    if _early is None:
        delegate_if_first()  # now, since the zygote must be a child of the delegate
        # Debuggers and profilers do not expect a fork of the traced process.
        alone = fork and sys.gettrace() is None and sys.getprofile() is None
        _early = EarlyZygote(fork_zygote(inherits=inherits) if alone else spawn_here())
        if alone:
            _give_way_to_waits()


def drop_zygote() -> None:
    """End the zygote if the run was not started."""
    taken = take_zygote()
    if taken is not None:
        taken.close()


def take_zygote() -> EarlyZygote | None:
    """Return the zygote that was started for this run; None if there is none, or it was taken."""
    global _early
    taken, _early = _early, None
    _as_usual()
    return taken


# A program, or a module that it imports, may wait for any child process before it calls its flow.
# That call must not wait for the zygote, which exits only with the program, or take its exit
# status.

_replaced: dict[str, Callable[..., Any]] = {}  # original functions of `os`, by name


def _give_way_to_waits() -> None:
    """End the zygote before this process waits for any child process.

    Another zygote is started when the run starts.
    """
    for name, means_any in WAITS_FOR_ANY.items():
        own = getattr(os, name, None)
        if own is not None and name not in _replaced:
            _replaced[name] = own
            setattr(os, name, _giving_way(own, means_any))


def _giving_way(own: Callable[..., Any], means_any: Callable[..., bool]) -> Callable[..., Any]:
    @wraps(own)
    def wait(*args: Any, **options: Any) -> Any:
        if means_any(*args, **options):
            drop_zygote()
        return own(*args, **options)

    return wait


def _as_usual() -> None:
    """Restore the functions of `os`."""
    while _replaced:
        setattr(os, *_replaced.popitem())


class EarlyZygote:
    """A zygote that is started before it is needed. Further ones, after a crash, are spawned."""

    def __init__(self, zygote: ForkedZygote | SpawnedZygote | None = None) -> None:
        self._zygote = zygote
        self._lent: ForkedZygote | SpawnedZygote | None = None

    def start(self) -> ForkedZygote | SpawnedZygote:
        """Return the zygote; a new one if it was returned before."""
        zygote, self._zygote = self._zygote, None
        return zygote or spawn_zygote()

    def lend(self) -> ForkedZygote | SpawnedZygote:
        """Return the zygote for a run; `close`, rather than the run, waits for its exit.

        The coordinator can therefore record the end of the run while the zygote exits.
        """
        self._lent = self.start()
        self._lent.is_lent = True
        return self._lent

    def close(self) -> None:
        """Ensure that the zygote has exited. May be called twice.

        An unused zygote is killed: it has no children, and waiting for its imports would take time.
        """
        zygote, self._zygote = self._zygote, None
        lent, self._lent = self._lent, None
        if zygote is not None:
            with suppress(ProcessLookupError):  # it has crashed, and other code has waited for it
                os.kill(zygote.pid, signal.SIGKILL)
        for each in (zygote, lent):
            if each is not None:
                each.control.close()
                each.reap()
