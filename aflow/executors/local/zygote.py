"""Zygotes: the processes that the processes of tasks are forked from.

A zygote has aflow and what tasks import of the standard library, one thread, no event loop, and
nothing of the user's: a fork is safe at any time, and the forked process runs the user's whole
program (child_task.py), as a fresh interpreter would. It decides nothing: it forks, kills, and
reports which process has ended, and how. What a task has started ends with it, wherever it has gone
(descendants.py). When the coordinator goes away, it kills all that it has forked, and ends.

A warm zygote has besides imported what the program imports (preload.py), with the variables of one
environment of steps. It is forked from the first zygote, and has a socket of its own.
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
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn

import msgpack

from aflow._core import deferred, ending, process, system
from aflow._core.clock import SystemClock
from aflow._core.ids import PARAMETERS_TASK
from aflow._core.modules import file_of
from aflow._core.records import NamedTuple
from aflow._core.secret import sealed
from aflow._core.settings import environment_with, without_signing_key
from aflow.executors.local import child as inside
from aflow.executors.local import child_task, descendants, messages
from aflow.executors.local.child_task import Host, copies_of
from aflow.executors.local.preload import Generators, import_all, is_unseeded
from aflow.executors.local.probe import obstacle
from aflow.flow.graph import Graph, Kind, Node, connect
from aflow.flow.spec import FlowSpec, set_launcher
from aflow.metadata.base import MetadataStore
from aflow.scheduler.messages import FromTask, NoInputs, encode_inputs
from aflow.storage.artifacts import Manifest
from aflow.storage.blobs import BlobStore
from aflow.storage.memory import MemoryStore
from aflow.task.program import LoadRequest, Program, become_main, is_library
from aflow.task.runner import AttemptRunner, no_metadata
from aflow.task.spec import NO_RUN, AttemptSpec, RunContext

if TYPE_CHECKING:
    from aflow.flow.spec import FlowSpec
    from aflow.metadata.base import MetadataStore
    from aflow.storage.base import ObjectStore

# `process="fork"`: the user's program as the process that tasks are forked from.
#
# It has run up to `MyFlow()` once, and each task goes on from there: for files that work for
# seconds at module level. What tasks would have in common then, and would not have in a fresh
# process, stands in the way, besides what probe.py looks for. What can be put right in the child
# is put right there: files that are open for reading, and the state of `random`.


_IN_MEMORY = ("torch",)  # libraries whose finalizers only tidy up memory


class UserProgram:
    """What a process has from before the user's program runs in it; made before that."""

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
        """Note that the program has reached its flow."""
        atexit.register = self._register
        self._seeded = inside.was_seeded(self._random[1], random.getstate()[1])
        self._random = random.getstate()

    def obstacle(self, ours: Collection[int]) -> str | None:
        """Return why tasks cannot be forked from this process; None where they can be.

        Args:
            ours: The descriptors that are aflow's own.
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
        """Put right what a forked process is to have of its own."""
        if self._seeded:
            random.setstate(self._random)
        for number in _readable_files(self._descriptors):
            _reopen(number)


def _generator() -> str | None:
    """A generator of random numbers in the user's modules that would give all tasks the same."""
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
    """Give a file that is open for reading a position of its own, where it was."""
    try:
        at = os.lseek(number, 0, os.SEEK_CUR)
        again = os.open(f"{system.DESCRIPTORS}/{number}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # it was removed, or may not be opened any more: it stays as it is
        return
    os.lseek(again, at, os.SEEK_SET)
    os.dup2(again, number, inheritable=os.get_inheritable(number))
    os.close(again)


# What a zygote does before its first fork, so that each forked process has less to do.
#
# A process that was just forked shares all memory with the zygote; whatever it writes to is
# copied, page by page, and a page costs as much as a hundred lines of Python. The interpreter
# writes to code when it runs it for the first times (it specialises it), modules write all over
# when they are imported. So the modules are imported here, and the runner's code has run here, on
# a flow of its own whose tasks do what all tasks do.

# What tasks import when they first need it, and what a program has imported by then because aflow
# did. In the zygote nobody waits for it.
_MODULES = ("blake3", "sqlite3", "json", "traceback", "signal", "subprocess")
_ROUNDS = 12  # the interpreter specialises code that has run some eight times


# A foreach over nothing of interest, as a user writes one.
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
    """Import what tasks will need, and run the code that each of them runs, in small steps: tasks
    that are asked for meanwhile do not wait for the end, and do for themselves what is left."""
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
        if number == 0:  # what tasks need sooner than the speed of the rest
            for name in deferred.waiting():  # or each task that uses one of them would load it
                deferred.load(name)
                yield
            for name in _MODULES:
                importlib.import_module(name)
                yield
            is_library("/")  # brings sysconfig, and what that reads
            yield
    # Pages of objects that the collector has moved to its permanent generation stay shared with the
    # forked processes: a collection there does not touch them.
    gc.collect()
    ending.prepare()
    gc.freeze()


class _RehearsedHost(Host):
    """Runs a program as a process of a task does, in this process."""

    def __init__(self) -> None:
        program = Program(_SOURCE, sys.path)
        program.compile(_PROGRAM)
        runner = AttemptRunner(NO_RUN, BlobStore(MemoryStore()), no_metadata, SystemClock())
        graph = _graph()
        request = LoadRequest(_SOURCE, [], None, False)
        super().__init__(program, request, graph, runner, {}, (b"", b""), None)
        self._parameters = Manifest(step="_parameters").encode()

    def rehearse(self) -> None:
        """Run the program, and two of its steps."""
        self._entered, self._code = False, None
        self.run_program(self._steps, lambda *message: None)

    def _steps(self, flow: FlowSpec) -> int:
        runner = self._runner
        runner.instance = copies_of(flow)
        start = _spec("start", 1, encode_inputs(NoInputs()), {PARAMETERS_TASK: self._parameters})
        manifest = runner.run(AttemptSpec.decode(start.encode())).manifest or b""
        along = {PARAMETERS_TASK: self._parameters, 1: manifest}
        work = _spec("work", 2, encode_inputs(FromTask(1)), along, split=1)
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
    """Whether all of these modules are here. What was deferred is loaded sooner or later, and what
    is aflow's own (a decorator, say) may be here: to import that takes less time than to fork a
    zygote that has it."""
    missing = [each for each in modules if each not in sys.modules]
    if missing:
        deferred.load_all()
    for each in missing:
        if each.startswith("aflow.") and each not in sys.modules:
            with suppress(ImportError):  # then a warm zygote, and tasks, do without it
                importlib.import_module(each)
    return all(each in sys.modules for each in missing)


def _never(flow: FlowSpec) -> None:
    raise AssertionError("a zygote runs no flow")


def _spec(
    step_name: str, task: int, inputs: bytes, along: dict[int, bytes], split: int | None = None
) -> AttemptSpec:
    inside = split is not None
    index, count = (0, 2) if inside else (None, None)
    return AttemptSpec(
        step=step_name,
        task=task,
        attempt=0,
        inputs=inputs,
        split=split,
        split_index=index,
        splits=count,
        opens_index=inside,
        final=True,
        fallback=False,
        manifests=along,
    )


OpenStore = Callable[[str], "ObjectStore"]
OpenMetadata = Callable[[str, str], "MetadataStore"]

IMPORT_LIMIT = 300.0  # seconds that the imports of a warm zygote may take
PATIENCE = 5.0  # seconds for which a process is waited for where the system has none to give
_AGAIN = 0.05  # seconds after which it is asked again
_ADVICE = {
    errno.EAGAIN: "use fewer workers, --max-workers, or allow more processes: ulimit -u, pids.max",
    errno.ENOMEM: "use fewer workers, --max-workers, or a machine with more memory",
}


class _Postponed(NamedTuple):
    """A process that could not be forked so far. `fork` tries it again."""

    child: int
    fds: list[int]
    give_up_at: float  # monotonic
    fork: Callable[[], OSError | None]


class Zygote:
    """Forks processes on request, as the messages on the socket `control` say. `parent` is the
    process of the coordinator; `path` what a fresh interpreter has as sys.path, without the
    folder of its script; `command` gives the command that starts another zygote. `open_store`
    and `open_metadata` turn the URLs of a run's context into backends, in the processes that
    need them."""

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
        self._environment: dict[str, str] = {}  # variables of steps that this zygote has already
        self._printed = (b"", b"")  # by the imports of this zygote, to stdout and stderr
        self._zygotes: set[int] = set()  # processes of other zygotes
        self._inherited: set[int] = set()  # descriptors that any program would have here
        self._token = 0  # marks what belongs to the run
        self._user_program: UserProgram | None = None  # where tasks are forked from it
        self._refusal: str | None = None  # why none can be
        self._generators = Generators()  # of random numbers, made by the imports of this zygote
        self._runner: AttemptRunner | None = None
        self._program: Program | None = None
        self._request: LoadRequest
        self._clock = SystemClock()
        self._preparing: Iterator[None] | None = None  # what is left of it
        self._begin_to_serve()

    def _begin_to_serve(self) -> None:
        self._children: dict[int, int] = {}  # pid -> the coordinator's id
        self._pids: dict[int, int] = {}  # the coordinator's id -> pid
        self._unpacker = messages.unpacker()
        self._fds: list[int] = []
        self._postponed: list[_Postponed] = []
        self._wakeup: tuple[int, ...] = ()
        self._line: tuple[int, int] | None = None  # by which children notice our end
        self._pid = os.getpid()

    def serve(self) -> None:
        """Do what the coordinator asks, until it closes its end or dies; then kill all and
        return."""
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
            self._reap()  # what ended before signals woke us
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
            if os.getpid() == self._pid:  # else: the process of a task, which goes on
                self._end_all()

    def _patience(self) -> float | None:
        """Milliseconds after which there is something to do, though nothing has come."""
        if self._preparing is not None:
            return 0
        if self._postponed:
            return _AGAIN * 1000
        return None if self._parent else system.LOOK_AGAIN * 1000

    def _end_all(self) -> None:
        for pid in self._children:
            kill_group(pid, signal.SIGKILL)
        for pid in self._zygotes:  # they end by themselves, as we do
            os.waitpid(pid, 0)
        descendants.end_all_children()
        self._control.close()

    def prepare(self) -> None:
        """Signals, streams and memory, once, before the first fork."""
        signal.signal(signal.SIGCHLD, lambda signum, frame: None)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        system.prepare_forks()
        inside.set_up_streams()
        inside.refuse_breakpoints()  # once: in each task it would copy some sixty pages
        deferred.load("linecache")  # each program that defines a flow has its source read
        self._inherited = system.open_descriptors()
        self._preparing = _preparations()
        while not self._is_asked() and self._prepare_more():
            pass
        process.as_usual()
        gc.freeze()

    def _is_asked(self) -> bool:
        """Whether somebody waits for us."""
        poll = select.poll()  # select cannot be given numbers as high as ours
        for each in (self._control.fileno(), *self._parent):
            poll.register(each, select.POLLIN)
        return bool(poll.poll(0))

    def _prepare_more(self) -> bool:
        """Do a step of the preparations that are left; False where none are."""
        if self._preparing is not None and next(self._preparing, self) is self:
            self._preparing = None
        return self._preparing is not None

    # ------------------------------------------------------------ requests

    def _carry_out_all(self) -> bool:
        """Read and carry out what has come; False when the coordinator is gone."""
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
            # Decoded here, where it stays decoded for all tasks that read the same.
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
                lambda: child_task.ManyAttempts(runner, fds, coroutines=coroutines), is_task=False,
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
            from aflow.compat import metaflow  # few programs import it

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
        # Others that run may end soon. A worker beside others is not needed that much.
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
        """Fork, and report it; the error where the system refuses. Does not come back in the
        child."""
        inside.flush()  # what the program has printed is not to be written by each child
        at = self._clock.now()  # before the child has done anything: it may end before this goes on
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
        """Fork what could not be forked before, the oldest first; give up what has waited for too
        long."""
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
        """Run the body as a process of its own, and leave with the exit code that it gives."""
        code = 1
        try:
            inside.begin(self._pid, self._sigint, self._line and self._line[0])
            descendants.mark(self._token, child)
            self._generators.seed()
            self._release(child)
            code = body()
        except BaseException:  # noqa: BLE001 -- a fault of ours: the coordinator reports it with the exit code
            traceback.print_exc()
        finally:
            self._end(code)
        raise AssertionError("a process that has ended")

    def _end(self, code: int) -> NoReturn:
        """Leave the process."""

        def release() -> None:
            # What we hold of the user's would end later than the modules that it needs for that.
            if self._runner is not None:
                vars(self._runner).clear()
            vars(self).clear()

        inside.end(code, release)

    def _let_program_go_on(
        self, child: int, environment: Mapping[str, str], work: Callable[[], child_task.Work]
    ) -> NoReturn:
        """Let the program, which waits in the call of its flow, go on with this work."""
        inside.begin(self._pid, self._sigint, self._line and self._line[0])
        descendants.mark(self._token, child)
        self._release(child)
        assert self._user_program is not None, "it has run"
        os.environ.update(environment)
        self._user_program.begin_child()
        made = work()
        raise _GoOn(made if made.begin() else None)

    def _release(self, child: int) -> None:
        """Close what belongs to the zygote, and to other processes that it is still to fork."""
        # By its number: the methods of sockets would copy a dozen pages.
        line = () if self._line is None else (self._line[1],)
        messages.close_all(
            [self._control.detach(), *self._wakeup, *line, *self._parent, *self._of_others(child)]
        )

    def _of_others(self, child: int | None = None) -> list[int]:
        """The descriptors of processes that are still to be forked, but for this one."""
        postponed = (each.fds for each in self._postponed if each.child != child)
        return [*self._fds, *itertools.chain.from_iterable(postponed)]

    # ------------------------------------------------------------ other zygotes

    def _grow(
        self, control: int, environment: dict[str, str], imported: Mapping[str, Any] | None
    ) -> None:
        """Fork a zygote for steps with these variables, which imports what the program imports, or
        (None) runs it."""
        if not self._is_new_zygote(control):
            return
        code = 1
        try:
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
            code = 0
        except BaseException:  # noqa: BLE001 -- a fault of ours: the coordinator will say that the zygote has died
            traceback.print_exc()
        finally:
            os._exit(code)

    def _is_new_zygote(self, control: int) -> bool:
        """Fork a process that is to be another zygote, with this socket; whether this is it."""
        try:
            pid = os.fork()
        except OSError:
            pid = -1  # the coordinator sees that its socket is closed
        if pid:
            os.close(control)
            if pid > 0:
                self._zygotes.add(pid)
        return not pid

    def _begin_interpreter(self, control: int, environment: dict[str, str]) -> None:
        """Start a zygote in a fresh interpreter, which has these variables from its beginning."""
        if not self._is_new_zygote(control):
            return
        try:
            inside.begin(self._pid)
            # Another program inherits no handlers, but what is ignored.
            is_ignored = self._sigint == signal.SIG_IGN
            signal.signal(signal.SIGINT, signal.SIG_IGN if is_ignored else signal.SIG_DFL)
            os.set_inheritable(control, True)
            messages.close_all(self._of_others())  # they have come without being closed on exec
            command = [*self._command(), str(control), str(self._coordinator)]
            variables = without_signing_key(environment_with(environment))
            os.execve(command[0], command, variables)  # noqa: S606 -- no shell
        except BaseException:  # noqa: BLE001 -- the coordinator will say that the zygote has died
            traceback.print_exc()
        finally:
            os._exit(1)

    def _become_zygote(self) -> None:
        inside.begin(self._pid, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, lambda signum, frame: None)
        messages.close_all([*self._wakeup, *(self._line or ()), *self._of_others()])
        self._begin_to_serve()

    def _try_to_warm(
        self, imported: Mapping[str, Any], environment: Mapping[str, str]
    ) -> tuple[str, float] | None:
        """Have a fork of this process import everything and take our place. Returns only where that
        cannot be, with the reason and the seconds that it took: this process has imported nothing
        then."""
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
        poll.register(self._control, 0)  # its end alone
        for each in self._parent:
            poll.register(each, select.POLLIN)
        came = {fd for fd, _ in poll.poll(IMPORT_LIMIT * 1000)}
        if came and readable not in came:  # the coordinator is gone
            kill_group(pid, signal.SIGKILL)
            os._exit(0)
        answer = os.read(readable, 1 << 16) if came else b""
        os.close(readable)
        if answer == b"\xc0":  # None: it serves
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
    ) -> NoReturn:
        code = 1
        try:
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
                # Asked after the imports, which may have started threads or opened files.
                reason = obstacle(
                    {self._control.fileno(), writable, *self._parent, *self._inherited}
                )
            os.write(writable, msgpack.packb(reason))
            os.close(writable)
            if reason is None:
                self._known = frozenset(sys.modules)
                self._send_message(messages.READY)
                self.serve()
            code = 0
        except BaseException:  # noqa: BLE001 -- a fault of ours: the coordinator will say that the zygote has died
            traceback.print_exc()
        finally:
            os._exit(code)

    def _serve_from_program(self) -> int:
        """Run the program, and serve where it calls its flow. Comes back in the processes of tasks,
        with their exit codes, when the program has ended."""
        self._user_program = UserProgram()
        self._preparing = None  # from here on the process is the user's
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
            # Outside of the handler: what the step raises has nothing to do with it.
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
        """Report each child that has ended, and end what it left running."""
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
        if pid in self._children or pid in self._zygotes:
            system.end_group(pid)

    def _end_orphans(self) -> None:
        """End what has come to us because its parents are gone, if its task is, too. What it has
        started comes next: its end wakes us again."""
        for pid in descendants.children():
            if pid in self._children or pid in self._zygotes:
                continue
            owner = descendants.owner_of(pid)
            if owner is not None and owner[0] == self._token:
                is_left = owner[1] not in self._pids
            else:  # nobody knows whose it is: of the last task at the latest
                is_left = not self._children
            if is_left:
                descendants.kill(pid)

    def _send_message(self, *message: Any) -> None:
        try:
            self._control.sendall(messages.packed(*message))
        except OSError:  # the coordinator is gone: the next read sees the end and kills all
            return


class _GoOn(BaseException):
    """In a process that was forked from the user's program: do this work."""

    def __init__(self, work: child_task.Work | None) -> None:
        super().__init__()
        self.work = work


def _refused(reason: str) -> str:
    return (
        f"Tasks cannot be forked from the program (process=fork): {reason}. Leave it at "
        "process=fresh, or make what stands in the way inside of the step."
    )


def _no_process(error: OSError) -> str:
    """Why there is no process, and what to do."""
    advice = _ADVICE.get(error.errno or 0)
    sentence = f"no process could be started: {error.strerror}"
    return sentence if advice is None else f"{sentence} ({advice})"


def kill_group(pid: int, signum: int) -> None:
    """Send a signal to a process and all that it has started, if there is any left.

    Args:
        pid: The leader of a process group, a child of this process that was not waited for.
        signum: The number of the signal.
    """
    gone = (ProcessLookupError, PermissionError)  # macOS: the second where all have ended
    try:
        os.killpg(pid, signum)
    except gone:
        try:
            os.kill(pid, signum)  # it was just forked and has no group of its own yet
        except gone:
            return


def _watch(parent: int) -> tuple[int, ...]:
    """A descriptor that can be read once the process has ended; none where there is no such thing.
    The end of the socket says the same, unless a process that the parent has forked holds it."""
    try:
        watched = system.watch(parent)
    except ProcessLookupError:
        os._exit(0)  # it has ended already
    return () if watched is None else (watched,)
