"""Inside of a process that runs attempts: the user's program up to `MyFlow()`, and then the steps.

The program runs as a fresh interpreter would run it. When it reaches `MyFlow()`, that call runs the
step (or, in a process of isolation `worker`, one step after the other), and then leaves as every
such call leaves: by SystemExit, through the program's own `with`, `except` and `finally`.
"""

from __future__ import annotations

import os
import pickle
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from aflow._core.clock import SystemClock
from aflow._core.records import replace
from aflow._core.system import out_of_the_way
from aflow.executors.local import child, messages
from aflow.executors.local.preload import imported_since
from aflow.flow.decorators.attach import attach
from aflow.flow.spec import define, set_launcher
from aflow.scheduler.states import AttemptState
from aflow.storage.artifacts import Manifest
from aflow.task.config_binding import with_values
from aflow.task.program import check_is_flow, host
from aflow.task.runner import describe, sentence
from aflow.task.spec import GROWN, IMPORTED, AttemptReport, AttemptSpec

if TYPE_CHECKING:
    from aflow.flow.definition import FlowDefinition
    from aflow.flow.graph import Graph
    from aflow.flow.spec import FlowSpec
    from aflow.task.program import LoadRequest, Program
    from aflow.task.runner import AttemptRunner

Steps = Callable[["FlowSpec"], int]  # runs what is to be run with the flow; the exit code


class Host:
    """One process that runs attempts. `environment` are the variables that the steps to be run have
    from the start, `printed` what imports have printed that are done already. `before` are the
    modules that were there before the program: where they are given, it is reported what the
    program has imported."""

    def __init__(
        self,
        program: Program,
        request: LoadRequest,
        graph: Graph | None,
        runner: AttemptRunner,
        environment: Mapping[str, str],
        printed: tuple[bytes, bytes],
        before: Collection[str] | None,
    ) -> None:
        self._program = program
        self._request = request
        self._graph = graph
        self._runner = runner
        self._environment = environment
        self._printed = printed
        self._before = before
        self._code: int | None = None  # what the flow's call has left with
        self._entered = False
        self._error: BaseException | None = None
        self._pid = os.getpid()

    def run(self, work: Work) -> int:
        """Run the program in this process, and the work when it comes to its flow.

        Args:
            work: The attempts that this process has been started for.

        Returns:
            The exit code of the process.
        """
        if not work.begin():
            return 0
        begun = SystemClock().now()
        code = self.run_program(work.steps, work.send_message)
        if not self._entered and os.getpid() == self._pid:
            child.flush()
            work.refuse(self.never_reached(work.step, work.attempt_key, begun, code))
        return code

    # ------------------------------------------------------------ the program

    def run_program(self, steps: Steps, send_message: Callable[..., None]) -> int:
        """Run the program, whose flow's call runs `steps`.

        Args:
            steps: The steps of the flow, as they are run.
            send_message: Sends a message to the coordinator.

        Returns:
            The exit code that it ends with.
        """
        os.environ.update(self._environment)
        self.show_printed(self._printed)

        def reached(flow: FlowSpec) -> None:
            self._reached(flow, steps, send_message)

        set_launcher(reached)
        host(str(self._program.source.get("file", "The program")))
        try:
            cls = self._program.run()
            if not self._entered:
                self._call(check_is_flow(cls, self._program.source), reached)
        except BaseException as error:  # noqa: BLE001 -- what the user's program raises ends it, as always
            self._error = error
            return child.ended_by(error)
        finally:
            set_launcher(_over)  # the one above holds the flow, at the end of the interpreter, too
        return 0

    @staticmethod
    def show_printed(printed: tuple[bytes, bytes]) -> None:
        """Show what was printed, to stdout and stderr, by code that has run before the fork.

        Args:
            printed: What was printed to stdout and stderr.
        """
        for number, data in enumerate(printed):
            if data:
                child.write_all(number + 1, data)

    def _call(self, cls: type[FlowSpec], reached: Callable[[FlowSpec], None]) -> None:
        """Do what the program's last line would do: `MyFlow()`."""
        try:
            flow = cls()
        except TypeError:
            if self._entered:
                raise
            flow = object.__new__(cls)  # its __init__ wants arguments that only its caller knows
        if not self._entered:
            reached(flow)

    def _reached(self, flow: FlowSpec, steps: Steps, send_message: Callable[..., None]) -> None:
        """The program has called a flow."""
        name = self._program.flow
        if self._code is not None:
            raise SystemExit(self._code)
        if name and type(flow).__qualname__ != name:
            return  # another flow of the same program
        imported = (
            None if self._before is None else imported_since(self._before, self._start_environment)
        )
        definition = self._defined(type(flow))
        if imported is not None:
            send_message(IMPORTED, imported)
        self._entered = True
        self._runner.definition = definition
        self._runner.environment = self._environment
        self._code = 1
        host(None)
        try:
            self._code = steps(flow)
        finally:
            host(str(self._program.source.get("file", "The program")))
        raise SystemExit(self._code)

    def _defined(self, cls: type[FlowSpec]) -> FlowDefinition:
        request = self._request
        definition = define(cls, self._graph)
        if request.configs is not None:
            definition = with_values(definition, pickle.loads(request.configs))  # noqa: S301 -- from the process that started us
        definition = attach(definition, request.decospecs)
        for name, kept in (request.kept or {}).items():
            step = definition.steps[name]
            left = tuple(each for each in step.decorators if each.decorator_name in kept)
            steps = {**definition.steps, name: replace(step, decorators=left)}
            definition = replace(definition, steps=steps)
        return definition

    @property
    def _start_environment(self) -> Mapping[str, str]:
        return {**_at_start, **self._environment}

    @property
    def entered(self) -> bool:
        """Whether the program has come to its flow."""
        return self._entered

    def why_never_reached(self, code: int) -> str:
        """Return, as a sentence, why the program has ended before it reached its flow.

        Args:
            code: The exit code of the program.
        """
        if self._error is None or isinstance(self._error, SystemExit):
            flow = self._program.flow or "its flow"
            return f"The program ended with exit code {code} before it came to {flow}()."
        return sentence(self._error)

    def never_reached(
        self, step: str, attempt_key: tuple[int, int], begun: float, code: int
    ) -> AttemptReport:
        """Return the report of an attempt whose program has not reached its flow: it has failed.

        Args:
            step: The name of the step.
            attempt_key: The numbers of task and attempt.
            begun: When it began, in seconds since the epoch.
            code: The exit code of the program.
        """
        error = None if self._error is None else describe(self._error)
        return AttemptReport(
            *attempt_key,
            AttemptState.FAILED.value,
            reason=self.why_never_reached(code),
            manifest=Manifest(step=step, error=error).encode(),
            started_at=begun,
            finished_at=SystemClock().now(),
            unreached=True,
        )


def _run(runner: AttemptRunner, spec: AttemptSpec) -> AttemptReport:
    return runner.run(spec)


def _debugged(runner: AttemptRunner, spec: AttemptSpec) -> AttemptReport:
    """Run an attempt without a limit on its time; a coroutine step in an event loop of its own."""
    definition = runner.definition
    step = definition.steps[spec.step]
    unlimited = tuple(each for each in step.decorators if each.decorator_name != "timeout")
    steps = {**definition.steps, spec.step: replace(step, decorators=unlimited)}
    runner.definition = replace(definition, steps=steps)
    if not step.is_async:
        return runner.run(spec)
    import asyncio  # sequential steps have no use for it

    return asyncio.run(runner.run_async(spec))


class Work(Protocol):
    """What a process runs when the program has come to its flow."""

    step: str
    attempt_key: tuple[int, int]  # task and attempt: of the first one

    def begin(self) -> bool:
        """Connect this process's streams to the coordinator, before the user's program runs.

        Returns:
            False where there is no attempt to run: the process ends at once.
        """

    def send_message(self, *message: Any) -> None:
        """Send a message to the coordinator.

        Args:
            *message: The kind, and what belongs to it.
        """

    def refuse(self, report: AttemptReport) -> None:
        """Say how the first attempt has ended, since the program has not come to its flow.

        Args:
            report: How the attempt has ended.
        """

    def steps(self, flow: FlowSpec) -> int:
        """Run the attempts of this process, now that the user's program has called its flow.

        Args:
            flow: The flow instance that the user's program has called.

        Returns:
            The exit code of the process.
        """


class OneAttempt:
    """Isolation `task`: one attempt, which has the process to itself. `fds` are its pipes for
    stdout, stderr and the report; with a fourth, which is to be stdin, it is debugged: it may ask
    there, and takes as long as it takes."""

    def __init__(self, runner: AttemptRunner, spec: AttemptSpec, fds: Sequence[int]) -> None:
        self.step = spec.step
        self.attempt_key = spec.attempt_key
        self._runner = runner
        self._spec = spec
        self._fds = fds

    def begin(self) -> bool:
        stdout, stderr, report, *stdin = self._fds
        child.redirect(stdout, stderr)
        self._is_debugged = bool(stdin)
        if stdin:
            from aflow.executors.local import terminal  # has asyncio, which tasks do not need

            terminal.take(stdin[0])
            sys.breakpointhook = sys.__breakpointhook__
        os.close(stdout)
        os.close(stderr)
        self._report = out_of_the_way(report)
        return True

    def send_message(self, *message: Any) -> None:
        child.write_all(self._report, messages.packed(*message))

    def refuse(self, report: AttemptReport) -> None:
        self.send_message(*report.message())

    def steps(self, flow: FlowSpec) -> int:
        runner = self._runner
        runner.announce = lambda *grown: self.send_message(GROWN, *grown)
        runner.instance = lambda: flow
        run = _debugged if self._is_debugged else _run
        ended = run(runner, self._spec)
        child.flush()
        self.send_message(*ended.message())
        return 0 if ended.state == AttemptState.SUCCEEDED.value else 1


class ManyAttempts:
    """Isolation `worker`: one attempt after the other (coroutines: side by side), until the
    coordinator closes its end."""

    def __init__(self, runner: AttemptRunner, fds: Sequence[int], *, coroutines: bool) -> None:
        self._runner = runner
        self._fds = fds
        self._coroutines = coroutines

    def begin(self) -> bool:
        # Only these processes need the modules (asyncio among them, for the coroutines).
        if self._coroutines:
            from aflow.executors.local.child_worker import CoroutineWorker as Worker  # by need
        else:
            from aflow.executors.local.child_worker import SequentialWorker as Worker  # type: ignore[assignment]

        self._worker = Worker(self._runner, [out_of_the_way(each) for each in self._fds])
        spec = self._worker.first()
        if spec is None:
            return False
        self.step = spec.step
        self.attempt_key = spec.attempt_key
        return True

    def send_message(self, *message: Any) -> None:
        self._worker.send_message(*message)

    def refuse(self, report: AttemptReport) -> None:
        self._worker.refuse(report)

    def steps(self, flow: FlowSpec) -> int:
        self._runner.instance = copies_of(flow)
        self._worker.serve()
        return 0


_at_start = dict(os.environ)


def _over(flow: FlowSpec) -> None:
    """The program has come to its end: a flow that an exit function calls has nothing to run."""


def copies_of(flow: FlowSpec) -> Callable[[], FlowSpec]:
    """Return a function that makes flows with what the __init__ of this one has set.

    Args:
        flow: The instance that the user's program has made; its attributes are shared, not copied.
    """
    cls, state = type(flow), dict(flow.__dict__)

    def copy() -> FlowSpec:
        made = object.__new__(cls)
        made.__dict__.update(state)
        return made

    return copy
