"""Zygotes: the processes that the processes of tasks are forked from.

A zygote has imported aflow and the modules of the standard library that tasks need. It has one
thread, no event loop, and has run no user code, so a fork is safe at any time, and the forked
process runs the user's whole program (child_task.py) as a fresh interpreter would. A zygote makes
no decisions: it forks, kills, and reports which process has exited, and how. When a task ends, all
its descendants are killed, even those that left its session (descendants.py). When the coordinator
is gone, the zygote kills everything that it has forked, and exits.

A warm zygote has also imported what the program imports (preload.py), with the variables of the
environment of some steps. It is forked from the first zygote, and has a separate socket.
"""

from __future__ import annotations

import atexit
import errno
import fcntl
import gc
import importlib
import itertools
import os
import random
import select
import signal
import socket
import stat
import sys
import threading
import traceback
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, NoReturn

import msgpack

from aflow._core import deferred, ending, process, system
from aflow._core.clock import SystemClock
from aflow._core.ids import PARAMETERS_TASK
from aflow._core.modules import file_of
from aflow._core.records import NamedTuple
from aflow._core.secret import sealed
from aflow._core.settings import environment_with, without_signing_key
from aflow.errors import StorageError
from aflow.executors.local import child as inside
from aflow.executors.local import child_task, descendants, messages
from aflow.executors.local.child_task import Host
from aflow.executors.local.preload import Generators, import_all, is_unseeded
from aflow.executors.local.probe import obstacle
from aflow.flow.graph import Graph, Kind, Node, connect
from aflow.flow.spec import FlowSpec, set_launcher
from aflow.metadata.base import MetadataStore
from aflow.scheduler.messages import FromTask, NoInputs, encode_inputs
from aflow.storage.artifacts import Manifest
from aflow.storage.blobs import BlobStore
from aflow.storage.memory import MemoryStore
from aflow.task.inputs import no_metadata
from aflow.task.program import LoadRequest, Program, become_main, is_library
from aflow.task.runner import AttemptRunner
from aflow.task.spec import NO_RUN, AttemptSpec, RunContext

if TYPE_CHECKING:
    from aflow.flow.spec import FlowSpec
    from aflow.metadata.base import MetadataStore
    from aflow.storage.base import ObjectStore

# `process="fork"`: tasks are forked from a process that has run the user's program.
#
# The program has run once, up to `MyFlow()`, and each task continues from there: this is for files
# whose module level takes seconds. State that tasks would share, but would not share as fresh
# processes, is an obstacle, in addition to those of probe.py. Some of it is repaired in the child
# instead: files that are open for reading, and the state of `random`.


_IN_MEMORY = ("torch",)  # libraries whose finalizers only free memory


class UserProgram:
    """The state of a process before the user's program runs in it, and what the program changes.

    Must be created before the program runs.
    """

    def __init__(self) -> None:
        self._descriptors = system.open_descriptors()
        self._finalizers = {*weakref.finalize._registry}  # type: ignore[attr-defined]
        self._exit_functions: list[Callable[..., Any]] = []
        self._random = random.getstate()
        self._register = atexit.register
        atexit.register = self._note_exit_function  # type: ignore[assignment]

    def _note_exit_function(self, function: Any, *args: Any, **options: Any) -> Any:
        self._exit_functions.append(function)
        return self._register(function, *args, **options)

    def reached(self) -> None:
        """Record the state of `random` when the program has reached its flow."""
        atexit.register = self._register
        self._seeded = inside.was_seeded(self._random[1], random.getstate()[1])
        self._random = random.getstate()

    def obstacle(self, ours: Collection[int]) -> str | None:
        """Return why tasks cannot be forked from this process; None if they can be.

        Args:
            ours: The descriptors that belong to aflow.
        """
        return (
            self._exit_function()
            or self._finalizer()
            or _generator()
            or obstacle({*self._descriptors, *ours})
        )

    def _exit_function(self) -> str | None:
        for each in self._exit_functions:
            code = getattr(each, "__code__", None)
            if code is None or not is_library(code.co_filename):
                name = getattr(each, "__qualname__", repr(each))
                return f"the exit function {name} would run in each task"
        return None

    def _finalizer(self) -> str | None:
        registry: dict[Any, Any] = weakref.finalize._registry  # type: ignore[attr-defined]
        for finalizer, info in [*registry.items()]:
            home = getattr(info.func, "__module__", None) or ""
            if finalizer in self._finalizers or not info.atexit:
                continue
            if home.partition(".")[0] not in _IN_MEMORY:
                name = getattr(info.func, "__qualname__", repr(info.func))
                return f"{home}.{name} (a finalizer) would run in each task"
        return None

    def begin_child(self) -> None:
        """Restore `random` and reopen files, whose state a forked process would share."""
        if self._seeded:
            random.setstate(self._random)
        for number in _readable_files(self._descriptors):
            _reopen(number)


def _generator() -> str | None:
    """Return why a random generator of a user's module would repeat its numbers in all tasks."""
    numpy_random = sys.modules.get("numpy.random")
    kinds = () if numpy_random is None else (numpy_random.Generator, numpy_random.RandomState)
    for name, module in [*sys.modules.items()]:
        file = file_of(module)
        if name != "__main__" and (file is None or is_library(file) or name.startswith("aflow.")):
            continue
        for key, value in [*vars(module).items()]:
            if type(value) is random.Random:
                return f"{key} (random.Random) would give all tasks the same numbers"
            if type(value) in kinds and is_unseeded(value):
                return f"{key} (of numpy.random) would give all tasks the same numbers"
    return None


def _readable_files(but: Collection[int]) -> Iterator[int]:
    for number in system.open_descriptors():
        if number <= 2 or number in but:
            continue
        mode = os.fstat(number).st_mode
        flags = fcntl.fcntl(number, fcntl.F_GETFL)
        if stat.S_ISREG(mode) and flags & os.O_ACCMODE == os.O_RDONLY:
            yield number


def _reopen(number: int) -> None:
    """Replace a file that is open for reading by a new one with an unshared position."""
    try:
        at = os.lseek(number, 0, os.SEEK_CUR)
        again = os.open(f"{system.DESCRIPTORS}/{number}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # it was removed, or may not be opened again: it stays shared
        return
    os.lseek(again, at, os.SEEK_SET)
    os.dup2(again, number, inheritable=os.get_inheritable(number))
    os.close(again)


# Preparations before the first fork, so that each forked process has less to do.
#
# A forked process shares all memory with the zygote. A page that it writes to is copied, which
# costs as much as a hundred lines of Python. The interpreter writes to code objects when it runs
# them for the first times (specialisation), and imports write to many pages. So the zygote imports
# the modules, and runs the runner's code on a small flow whose tasks do what all tasks do.

# Modules that tasks import on first use, and that aflow has imported in the process of a program.
# The imports delay no task here.
_MODULES = ("blake3", "sqlite3", "json", "traceback", "signal", "subprocess")
_ROUNDS = 12  # the interpreter specialises code after about eight runs


# A minimal foreach, as a user writes it.
_PROGRAM = """
from aflow import FlowSpec, Parameter, current, step

class WarmUp(FlowSpec):
    @step
    def start(self):
        self.xs = [0, 1]
        self.next(self.work, foreach="xs")
    @step
    def work(self):
        self.y = self.input
        self.next(self.join)
    @step
    def join(self, inputs):
        self.next(self.end)
    @step
    def end(self):
        pass

if __name__ == "__main__":
    WarmUp()
"""
_SOURCE = {
    "kind": "main",
    "file": "/<aflow>",  # absolute: it needs no working folder
    "module": "__main__",
    "name": "WarmUp",
    "argv": [""],
    "flags": [],
}


def _preparations() -> Iterator[None]:
    """Import what tasks need and run the code that all of them run, in small steps.

    Requests are served between the steps. A task that is forked before the last step does the rest
    itself.
    """
    for _ in range(_ROUNDS):
        threading._after_fork()  # type: ignore[attr-defined]  # what each fork does anyway
    host = _RehearsedHost()
    for number in range(_ROUNDS):
        kept = [*sys.argv], [*sys.orig_argv], [*sys.path], sys.modules["__main__"]
        host.rehearse()
        sys.argv[:], sys.orig_argv[:], sys.path[:], main = kept
        become_main(main)
        set_launcher(_never)
        yield
        if number == 0:  # imports matter more than the remaining rounds
            # Otherwise each task that uses one of them would load it.
            for name in deferred.waiting():
                deferred.load(name)
                yield
            for name in _MODULES:
                importlib.import_module(name)
                yield
            is_library("/")  # imports sysconfig and its data
            yield
    # The collector does not touch objects of its permanent generation, so their pages stay shared
    # with the forked processes.
    gc.collect()
    ending.prepare()
    gc.freeze()


class _RehearsedHost(Host):
    """Runs a program in this process, as a process of a task does."""

    def __init__(self) -> None:
        program = Program(_SOURCE, sys.path)
        program.compile(_PROGRAM)
        runner = AttemptRunner(NO_RUN, BlobStore(MemoryStore()), no_metadata, SystemClock())
        graph = _graph()
        request = LoadRequest(_SOURCE, [], None, False)
        super().__init__(program, request, graph, runner, {}, (b"", b""), None)
        self._parameters = Manifest(step="_parameters").encode()

    def rehearse(self) -> None:
        """Run the program and two of its steps."""
        self.entered, self._code = False, None
        self.run_program(self._steps, lambda *message: None)

    def _steps(self, flow: FlowSpec) -> int:
        runner = self._runner
        runner.instance = inside.copies_of(flow)
        start = _FIRST._replace(manifests={PARAMETERS_TASK: self._parameters})
        manifest = runner.run(AttemptSpec.decode(start.encode())).manifest or b""
        work = _FIRST._replace(
            step="work",
            task=2,
            inputs=encode_inputs(FromTask(1)),
            split=1,
            split_index=0,
            splits=2,
            opens_index=True,
            manifests={PARAMETERS_TASK: self._parameters, 1: manifest},
        )
        runner.run(AttemptSpec.decode(work.encode())).message()
        return 0


def _graph() -> Graph:
    successors = {"start": "work", "work": "join", "join": "end", "end": ""}
    nodes = {
        name: Node(
            name,
            Kind.FOREACH if name == "start" else Kind.END if name == "end" else Kind.LINEAR,
            is_join=name == "join",
            next=(successor,) if successor else (),
            foreach="xs" if name == "start" else None,
        )
        for name, successor in successors.items()
    }
    return Graph("WarmUp", "start", "end", connect(nodes, "start"))


def _has(modules: Iterable[str]) -> bool:
    """Return whether all of these modules are imported.

    Deferred modules are loaded first, since some task would load them anyway. Missing modules of
    aflow (a decorator, for example) are imported: that takes less time than forking a warm zygote
    for them.
    """
    missing = [each for each in modules if each not in sys.modules]
    if missing:
        deferred.load_all()
    for each in missing:
        if each.startswith("aflow.") and each not in sys.modules:
            with suppress(ImportError):  # warm zygotes and tasks do without it
                importlib.import_module(each)
    return all(each in sys.modules for each in missing)


def _never(flow: FlowSpec) -> None:
    raise AssertionError("a zygote runs no flow")


_FIRST = AttemptSpec(
    step="start",
    task=1,
    attempt=0,
    inputs=encode_inputs(NoInputs()),
    split=None,
    split_index=None,
    splits=None,
    opens_index=False,
    final=True,
    fallback=False,
    manifests={},
)


OpenStore = Callable[[str], "ObjectStore"]
OpenMetadata = Callable[[str, str], "MetadataStore"]

IMPORT_LIMIT = 300.0  # seconds that the imports of a warm zygote may take
PATIENCE = 5.0  # seconds for which a fork is retried if the system has no resources for it
_AGAIN = 0.05  # seconds between two tries
_LATE = 2.0  # seconds after which a zygote that has not exited is killed
_ADVICE = {
    errno.EAGAIN: "use fewer workers, --max-workers, or allow more processes: ulimit -u, pids.max",
    errno.ENOMEM: "use fewer workers, --max-workers, or a machine with more memory",
}


class _Postponed(NamedTuple):
    """A process that could not be forked yet; `fork` tries again."""

    child: int
    fds: list[int]
    give_up_at: float  # monotonic
    fork: Callable[[], OSError | None]


class Zygote:
    """Forks processes as the messages on the socket `control` request.

    `parent` is the process id of the coordinator. `path` is the sys.path of a fresh interpreter,
    without the folder of its script. `command` returns the command that starts another zygote.
    `open_store` and `open_metadata` turn the URLs of a run's context into backends, in the
    processes that need them.
    """

    def __init__(
        self,
        control: socket.socket,
        parent: int,
        path: list[str],
        command: Callable[[], list[str]],
        open_store: OpenStore,
        open_metadata: OpenMetadata,
    ) -> None:
        self._control = socket.socket(fileno=system.out_of_the_way(control.detach()))
        self._path = path
        self._command = command
        self._open_store = open_store
        self._open_metadata = open_metadata
        self._coordinator = parent
        self._parent = tuple(map(system.out_of_the_way, _watch(parent)))
        self._sigint = signal.getsignal(signal.SIGINT)
        self._environment: dict[str, str] = {}  # variables of steps that are set in this zygote
        self._printed = (b"", b"")  # output of this zygote's imports, to stdout and stderr
        self._zygotes: set[int] = set()  # process ids of other zygotes
        self._inherited: set[int] = set()  # descriptors that any program would have here
        self._token = 0  # marks the processes of the run
        self._user_program: UserProgram | None = None  # set if tasks are forked from it
        self._refusal: str | None = None  # why tasks cannot be forked from it
        self._generators = Generators()  # random generators that this zygote's imports have created
        self._runner: AttemptRunner | None = None
        self._program: Program | None = None
        self._request: LoadRequest
        self._clock = SystemClock()
        self._preparing: Iterator[None] | None = None  # the remaining steps
        self._begin_to_serve()

    def _begin_to_serve(self) -> None:
        self._children: dict[int, int] = {}  # pid -> the coordinator's id
        self._pids: dict[int, int] = {}  # the coordinator's id -> pid
        self._unpacker = messages.unpacker()
        self._fds: list[int] = []
        self._postponed: list[_Postponed] = []
        self._wakeup: tuple[int, ...] = ()
        # A pipe that closes when the zygote exits; children watch it.
        self._line: tuple[int, int] | None = None
        self._pid = os.getpid()

    def serve(self) -> None:
        """Carry out requests until the coordinator is gone; then kill all children and return."""
        readable, writable = self._wakeup = tuple(map(system.out_of_the_way, os.pipe()))
        os.set_blocking(writable, False)
        signal.set_wakeup_fd(writable, warn_on_full_buffer=False)
        system.adopt_orphans()
        line = system.lifeline()
        if line is not None:
            self._line = system.out_of_the_way(line[0]), system.out_of_the_way(line[1])
        poll = select.poll()
        for each in (self._control.fileno(), readable, *self._parent):
            poll.register(each, select.POLLIN)
        try:
            self._reap()  # children that exited before SIGCHLD wrote to the pipe
            while True:
                ready = {fd for fd, _ in poll.poll(self._patience())}
                if not ready:
                    self._prepare_more()
                if ready & {*self._parent}:
                    return
                if not self._parent and not system.is_there(self._coordinator):
                    return
                if readable in ready:
                    os.read(readable, 4096)
                    self._reap()
                if self._control.fileno() in ready and not self._carry_out_all():
                    return
                if self._postponed:
                    self._try_again()
        finally:
            if os.getpid() == self._pid:  # else: the process of a task, which continues
                self._end_all()

    def _patience(self) -> float | None:
        """Return the timeout of poll in milliseconds; None to wait for events."""
        if self._preparing is not None:
            return 0
        if self._postponed:
            return _AGAIN * 1000
        return None if self._parent else system.LOOK_AGAIN * 1000

    def _end_all(self) -> None:
        for pid in self._children:
            kill_group(pid, signal.SIGKILL)
        self._end_zygotes()
        descendants.end_all_children()
        self._control.close()

    def _end_zygotes(self) -> None:
        """Wait until the other zygotes have exited, which they do when the coordinator is gone.

        One that still runs the program of the user does not notice that, and is killed.
        """
        late = self._clock.monotonic() + _LATE
        for pid in self._zygotes:
            watched = system.watch(pid)  # not reaped yet, so it exists
            if watched is not None:
                poll = select.poll()
                poll.register(watched, select.POLLIN)
                if not poll.poll(max(0.0, late - self._clock.monotonic()) * 1000):
                    os.kill(pid, signal.SIGKILL)
                os.close(watched)
            os.waitpid(pid, 0)

    def prepare(self) -> None:
        """Set up signals, streams and memory, once, before the first fork."""
        signal.signal(signal.SIGCHLD, lambda signum, frame: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        system.prepare_forks()
        inside.set_up_streams()
        inside.refuse_breakpoints()  # once: doing it in each task would copy about sixty pages
        deferred.load("linecache")  # reads the source of each flow that a program defines
        self._inherited = system.open_descriptors()
        self._preparing = _preparations()
        while not self._is_asked() and self._prepare_more():
            pass
        process.as_usual()
        gc.freeze()

    def _is_asked(self) -> bool:
        """Return whether a message is waiting, or the coordinator is gone."""
        poll = select.poll()  # the descriptors are too high for select
        for each in (self._control.fileno(), *self._parent):
            poll.register(each, select.POLLIN)
        return bool(poll.poll(0))

    def _prepare_more(self) -> bool:
        """Do the next step of the preparations; False if none is left."""
        if self._preparing is not None and next(self._preparing, self) is self:
            self._preparing = None
        return self._preparing is not None

    # ------------------------------------------------------------ requests

    def _carry_out_all(self) -> bool:
        """Read and carry out the waiting messages; False if the coordinator is gone."""
        data, fds = messages.receive(self._control)
        if not data:
            return False
        self._fds += fds
        if fds and system.NEEDS_RECEIPTS:
            self._send_message(messages.ARRIVED, len(fds))
        self._unpacker.feed(data)
        for message in self._unpacker:
            self._carry_out(message)
        return True

    def _carry_out(self, message: tuple[Any, ...]) -> None:
        kind, *rest = message
        if kind in (messages.RUN, messages.DEBUG):
            child, environment, learn, spec = rest
            fds = self._take(3 if kind == messages.RUN else 4)
            attempt = AttemptSpec.decode(spec)
            # Decoded in the zygote, so that tasks that read the same manifests share the result.
            with suppress(StorageError):  # a damaged one is an error of the task
                self._configured.remember(attempt)
            runner = self._configured
            group = environment.pop(messages.MEMORY_GROUP, "")

            def one() -> child_task.Work:
                if group:
                    system.join_memory_group(group)
                return child_task.OneAttempt(runner, attempt, fds)

            self._fork(child, fds, environment, learn, one, is_task=True)
        elif kind == messages.KILL:
            child, signum = rest
            if child in self._pids:
                kill_group(self._pids[child], signum)
            else:
                self._forget_postponed(child)
        elif kind == messages.WORK:
            child, environment, learn, coroutines = rest
            fds = self._take(6)
            runner = self._configured
            self._fork(
                child, fds, environment, learn,
                lambda: child_task.many_attempts(runner, fds, coroutines=coroutines), is_task=False,
            )  # fmt: skip
        elif kind == messages.ASK:
            self._send_message(messages.HAS, _has(rest[0]))
        elif kind == messages.GROW:
            self._grow(self._take(1)[0], *rest)
        elif kind == messages.BEGIN:
            self._begin_interpreter(self._take(1)[0], *rest)
        elif kind == messages.CONFIGURE:
            self._token = rest[1]
            self._configure(RunContext(*rest[0]))
        elif kind == messages.PROGRAM:
            self._load(LoadRequest(*rest))
        else:
            raise AssertionError(f"no such request: {kind}")

    def _take(self, count: int) -> list[int]:
        taken, self._fds = self._fds[:count], self._fds[count:]
        return taken

    def _load(self, request: LoadRequest) -> None:
        self._request = request
        if request.is_metaflow:
            from aflow.compat import metaflow  # few programs import Metaflow

            metaflow.install()
        self._program = Program(request.source, self._path)
        self._program.compile()
        self._graph = None if request.graph is None else Graph.from_dict(request.graph)
        self._known = frozenset(sys.modules)
        gc.freeze()

    def _configure(self, context: RunContext) -> None:
        context = context._replace(metadata_url=sealed(context.metadata_url))
        blobs = BlobStore(self._open_store(context.storage_url), context.durability == "power")
        if context.remote:
            from aflow.task.remote import RemoteRunner  # only workers of a queue need it

            self._runner = RemoteRunner(context, blobs, self._clock)
            return
        self._runner = AttemptRunner(
            context,
            blobs,
            lambda: self._open_metadata(context.metadata_url, context.durability),
            self._clock,
        )

    @property
    def _configured(self) -> AttemptRunner:
        assert self._runner is not None, "CONFIGURE comes first"
        return self._runner

    def _host(self, environment: Mapping[str, str], learn: bool) -> child_task.Host:
        assert self._program is not None, "PROGRAM comes first"
        before = self._known if learn else None
        variables = {**self._environment, **environment}
        return child_task.Host(
            self._program,
            self._request,
            self._graph,
            self._configured,
            variables,
            self._printed,
            before,
        )

    def _fork(
        self,
        child: int,
        fds: list[int],
        environment: Mapping[str, str],
        learn: bool,
        work: Callable[[], child_task.Work],
        *,
        is_task: bool,
    ) -> None:
        if self._refusal is not None:
            messages.close_all(fds)
            self._send_message(messages.REFUSED, child, self._refusal)
            return

        def fork() -> OSError | None:
            return self._try_to_fork(child, environment, learn, work)

        error = fork()
        # Running processes may exit soon, so a task can wait. An additional worker is not
        # essential.
        if error is not None and (is_task or not self._children):
            give_up_at = self._clock.monotonic() + PATIENCE
            self._postponed.append(_Postponed(child, fds, give_up_at, fork))
            return
        if error is not None:
            self._send_message(messages.NOT_FORKED, child, _no_process(error))
        messages.close_all(fds)

    def _try_to_fork(
        self,
        child: int,
        environment: Mapping[str, str],
        learn: bool,
        work: Callable[[], child_task.Work],
    ) -> OSError | None:
        """Fork and report the process; return the error if the fork failed.

        Does not return in the child.
        """
        inside.flush()  # otherwise each child would write the buffered output again
        # Taken before the fork: the child may finish before the parent continues.
        at = self._clock.now()
        try:
            pid = os.fork()
        except OSError as error:
            return error
        if pid == 0 and self._user_program is not None:
            self._let_program_go_on(child, environment, work)
        elif pid == 0:
            self._become(child, lambda: self._host(environment, learn).run(work()))
        self._children[pid] = child
        self._pids[child] = pid
        self._send_message(messages.FORKED, child, pid, at)
        return None

    def _try_again(self) -> None:
        """Fork postponed processes, oldest first, and report those that have waited too long."""
        while self._postponed:
            first = self._postponed[0]
            error = first.fork()
            if error is not None and self._clock.monotonic() < first.give_up_at:
                return
            del self._postponed[0]
            if error is not None:
                self._send_message(messages.NOT_FORKED, first.child, _no_process(error))
            messages.close_all(first.fds)

    def _forget_postponed(self, child: int) -> None:
        for each in self._postponed:
            if each.child == child:
                self._postponed.remove(each)
                messages.close_all(each.fds)
                self._send_message(messages.NOT_FORKED, child, "it was no longer needed")
                return

    # ------------------------------------------------------------ in the forked process

    def _become(self, child: int, body: Callable[[], int]) -> NoReturn:
        """Run the body in the forked process, and exit with the code that it returns."""
        code = 1
        try:
            inside.begin(self._pid, self._sigint, self._line and self._line[0])
            descendants.mark(self._token, child)
            self._generators.seed()
            self._release(child)
            code = body()
        except BaseException:  # noqa: BLE001 -- an error of aflow: the coordinator reports it with the exit code
            traceback.print_exc()
        finally:
            self._end(code)
        raise AssertionError("a process that has ended")

    def _end(self, code: int) -> NoReturn:
        """Exit from the process."""

        def release() -> None:
            # Objects of the user's must be released before the modules that their finalizers need.
            if self._runner is not None:
                vars(self._runner).clear()
            vars(self).clear()

        ending.leave(code, release)

    def _let_program_go_on(
        self, child: int, environment: Mapping[str, str], work: Callable[[], child_task.Work]
    ) -> NoReturn:
        """Continue the program, which waits in the call of its flow, with this work."""
        inside.begin(self._pid, self._sigint, self._line and self._line[0])
        descendants.mark(self._token, child)
        self._release(child)
        assert self._user_program is not None, "it has run"
        os.environ.update(environment)
        self._user_program.begin_child()
        made = work()
        raise _GoOn(made if made.begin() else None)

    def _release(self, child: int) -> None:
        """Close the descriptors of the zygote and of processes that it has not forked yet."""
        # By number: the methods of sockets would write to a dozen pages.
        line = () if self._line is None else (self._line[1],)
        messages.close_all(
            [self._control.detach(), *self._wakeup, *line, *self._parent, *self._of_others(child)]
        )

    def _of_others(self, child: int | None = None) -> list[int]:
        """Return the descriptors of all processes that are not forked yet, except this one."""
        postponed = (each.fds for each in self._postponed if each.child != child)
        return [*self._fds, *itertools.chain.from_iterable(postponed)]

    # ------------------------------------------------------------ other zygotes

    def _grow(
        self, control: int, environment: dict[str, str], imported: Mapping[str, Any] | None
    ) -> None:
        """Fork a zygote for steps with these variables.

        It imports the modules that the program imports, or runs the program if `imported` is None.
        """
        if not self._is_new_zygote(control):
            return
        with _exiting():
            self._become_zygote()
            self._control.close()
            self._control = socket.socket(fileno=system.out_of_the_way(control))
            self._zygotes = set()
            before = dict(os.environ)
            os.environ.update(environment)
            self._environment = environment
            if imported is None:
                self._end(self._serve_from_program())
            cold = None
            if any(each not in sys.modules for each in imported["modules"]):
                cold = self._try_to_warm(imported, {**before, **environment})
            self._send_message(*((messages.READY,) if cold is None else (messages.COLD, *cold)))
            self.serve()

    def _is_new_zygote(self, control: int) -> bool:
        """Fork another zygote, which gets this socket; return whether this is the new process."""
        try:
            pid = os.fork()
        except OSError:
            pid = -1  # the coordinator notices that the socket is closed
        if pid:
            os.close(control)
            if pid > 0:
                self._zygotes.add(pid)
        return not pid

    def _begin_interpreter(self, control: int, environment: dict[str, str]) -> None:
        """Start a zygote in a fresh interpreter, with these variables set from the start."""
        if not self._is_new_zygote(control):
            return
        with _exiting():
            inside.begin(self._pid)
            # exec resets handlers, but not ignored signals
            is_ignored = self._sigint == signal.SIG_IGN
            signal.signal(signal.SIGINT, signal.SIG_IGN if is_ignored else signal.SIG_DFL)
            os.set_inheritable(control, True)
            messages.close_all(self._of_others())  # they were received without close-on-exec
            command = [*self._command(), str(control), str(self._coordinator)]
            variables = without_signing_key(environment_with(environment))
            os.execve(command[0], command, variables)  # noqa: S606 -- no shell

    def _become_zygote(self) -> None:
        inside.begin(self._pid, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, lambda signum, frame: None)
        messages.close_all([*self._wakeup, *(self._line or ()), *self._of_others()])
        self._begin_to_serve()

    def _try_to_warm(
        self, imported: Mapping[str, Any], environment: Mapping[str, str]
    ) -> tuple[str, float] | None:
        """Replace this process by a fork that has imported everything.

        Returns only if that fails, with the reason and the seconds that it took. This process has
        imported nothing in that case.
        """
        began = self._clock.now()
        readable, writable = os.pipe()
        try:
            pid = os.fork()
        except OSError as error:
            messages.close_all([readable, writable])
            return _no_process(error), self._clock.now() - began
        if not pid:
            os.close(readable)
            self._be_warm(writable, imported, environment)
        os.close(writable)
        poll = select.poll()
        poll.register(readable, select.POLLIN)
        poll.register(self._control, 0)  # hangup only
        for each in self._parent:
            poll.register(each, select.POLLIN)
        came = {fd for fd, _ in poll.poll(IMPORT_LIMIT * 1000)}
        if came and readable not in came:  # the coordinator is gone
            kill_group(pid, signal.SIGKILL)
            os._exit(0)
        answer = os.read(readable, 1 << 16) if came else b""
        os.close(readable)
        if answer == b"\xc0":  # None: the fork serves
            os.waitpid(pid, 0)
            os._exit(0)
        kill_group(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        if answer:
            reason = str(msgpack.unpackb(answer))
        else:
            reason = "importing " + ("ended the process" if came else "did not come to an end")
        return reason, self._clock.now() - began

    def _be_warm(
        self, writable: int, imported: Mapping[str, Any], environment: Mapping[str, str]
    ) -> None:
        """Import everything, and serve; exit if that is not possible, or when it is over."""
        with _exiting():
            self._become_zygote()
            with inside.CapturedOutput() as printed, Generators() as self._generators:
                reason = import_all(imported, environment)
            self._printed = printed.bytes
            if reason is None:
                # Garbage is collected before the freeze: frozen objects are never freed, and
                # children share their pages copy-on-write.
                gc.collect()
                ending.prepare()
                gc.freeze()
                # Checked after the imports, which may have started threads or opened files.
                reason = obstacle(
                    {self._control.fileno(), writable, *self._parent, *self._inherited}
                )
            os.write(writable, msgpack.packb(reason))
            os.close(writable)
            if reason is None:
                self._known = frozenset(sys.modules)
                self._send_message(messages.READY)
                self.serve()

    def _serve_from_program(self) -> int:
        """Run the program, and serve when it calls its flow.

        Returns only in the processes of tasks, with their exit code, when the program has finished.
        """
        self._user_program = UserProgram()
        self._preparing = None  # from here on, this process runs user code
        host = self._host({}, learn=False)
        printed = inside.CapturedOutput()

        def serve(flow: FlowSpec) -> int:
            printed.__exit__()
            self._printed = printed.bytes
            assert self._user_program is not None, "it was made before"
            self._user_program.reached()
            reason = self._user_program.obstacle({self._control.fileno(), *self._parent})
            if reason is not None:
                self._refusal = _refused(reason)
            try:
                self.serve()
            except _GoOn as going_on:
                work = going_on.work
            else:
                os._exit(0)
            # Outside of the handler, so that errors of the step have no context.
            if work is None:
                return 0
            host.show_printed(self._printed)
            return work.steps(flow)

        printed.__enter__()
        code = host.run_program(serve, lambda *message: None)
        if not host.entered:
            printed.__exit__()
            self._refusal = _refused(host.why_never_reached(code))
            self.serve()
            os._exit(0)
        return code

    # ------------------------------------------------------------ ends

    def _reap(self) -> None:
        """Report each child that has exited, and kill what is left of its group."""
        exits, has_ended = [], False
        while (ended := system.reap(self._end_group_of)) is not None:
            has_ended = True
            pid, status, usage = ended
            self._zygotes.discard(pid)
            child = self._children.pop(pid, None)
            if child is not None:
                del self._pids[child]
                cpu = usage.ru_utime + usage.ru_stime
                exits.append((child, status, system.peak_memory(usage), cpu))
        if has_ended:
            self._end_orphans()
        for each in exits:
            self._send_message(messages.EXITED, *each)

    def _end_group_of(self, pid: int) -> None:
        if pid not in self._children and pid not in self._zygotes:
            return
        if not any(map(descendants.is_tracker, self._adopted())):  # else see `_end_orphans`
            system.end_group(pid)

    def _adopted(self) -> list[int]:
        """Return the children that this process has not forked itself."""
        mine = self._children.keys() | self._zygotes
        return [pid for pid in descendants.children() if pid not in mine]

    def _end_orphans(self) -> None:
        """Kill adopted orphans whose task has ended.

        Their children are adopted in turn, and the SIGCHLD of each orphan calls this function
        again. Resource trackers, which clean up after the task, end by themselves.
        """
        for pid in self._adopted():
            owner = descendants.owner_of(pid)
            if owner is not None and owner[0] == self._token:
                is_left = owner[1] not in self._pids
            else:  # no owner known: killed once no task is left
                is_left = not self._children
            if is_left and not descendants.is_tracker(pid):
                descendants.kill(pid)

    def _send_message(self, *message: Any) -> None:
        try:
            self._control.sendall(messages.packed(*message))
        except OSError:  # the coordinator is gone, which the next read notices
            return


@contextmanager
def _exiting() -> Iterator[None]:
    """Exit from this process at the end of the block. The coordinator reports that it has."""
    code = 1
    try:
        yield
        code = 0
    except BaseException:  # noqa: BLE001 -- an error of aflow
        traceback.print_exc()
    finally:
        os._exit(code)


class _GoOn(BaseException):
    """Raised in a fork of the user's program, to leave `serve` with the work of the process."""

    def __init__(self, work: child_task.Work | None) -> None:
        super().__init__()
        self.work = work


def _refused(reason: str) -> str:
    return (
        f"Tasks cannot be forked from the program (process=fork): {reason}. Leave it at "
        "process=fresh, or make what stands in the way inside of the step."
    )


def _no_process(error: OSError) -> str:
    """Return why no process could be forked, with advice."""
    advice = _ADVICE.get(error.errno or 0)
    sentence = f"no process could be started: {error.strerror}"
    return sentence if advice is None else f"{sentence} ({advice})"


def kill_group(pid: int, signum: int) -> None:
    """Send a signal to a process and its group, if any of it is left.

    Args:
        pid: The leader of a process group, a child of this process that was not waited for.
        signum: The number of the signal.
    """
    gone = (ProcessLookupError, PermissionError)  # macOS: PermissionError if all have exited
    try:
        os.killpg(pid, signum)
    except gone:
        try:
            os.kill(pid, signum)  # it was just forked, and has not created its group yet
        except gone:
            return


def _watch(parent: int) -> tuple[int, ...]:
    """Return a descriptor that is readable once the process has exited; none if not supported.

    The socket reports the same, unless a process that the parent has forked keeps it open.
    """
    try:
        watched = system.watch(parent)
    except ProcessLookupError:
        os._exit(0)  # it has exited already
    return () if watched is None else (watched,)
