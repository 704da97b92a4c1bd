"""Run the user's program up to `MyFlow()`, and then the steps, in the process of a task.

The program runs as in a fresh interpreter. The call `MyFlow()` runs the step (or, with isolation
`worker`, one step after another), and then raises SystemExit, as every call of a flow does, so that
the program's `with`, `except` and `finally` blocks run.
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
from aflow.task.spec import GROWN, IMPORTED, REACHED, AttemptReport, AttemptSpec

if TYPE_CHECKING:
    from aflow.flow.definition import FlowDefinition
    from aflow.flow.graph import Graph
    from aflow.flow.spec import FlowSpec
    from aflow.task.program import LoadRequest, Program
    from aflow.task.runner import AttemptRunner

Steps = Callable[["FlowSpec"], int]  # runs the steps with the flow; returns the exit code


class Host:
    """One process that runs attempts.

    `environment` are the variables that its steps have from the start. `printed` is the output of
    imports that were done before the fork. `before` are the modules that were imported before the
    program; unless it is None, the imports of the program are reported.
    """

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
        self._code: int | None = None  # exit code of the flow's call
        self.entered = False  # whether the program has called its flow
        self._error: BaseException | None = None
        self._pid = os.getpid()

    def run(self, work: Work) -> int:
        """Run the program in this process, and the work when the program calls its flow.

        Args:
            work: The attempts that this process was started for.

        Returns:
            The exit code of the process.
        """
        if not work.begin():
            return 0
        begun = SystemClock().now()
        code = self.run_program(work.steps, work.send_message)
        if not self.entered and os.getpid() == self._pid:
            child.flush()
            work.refuse(self.never_reached(work.step, work.attempt_key, begun, code))
        return code

    # ------------------------------------------------------------ the program

    def run_program(self, steps: Steps, send_message: Callable[..., None]) -> int:
        """Run the program; the call of its flow runs `steps`.

        Args:
            steps: Runs the steps of the flow.
            send_message: Sends a message to the coordinator.

        Returns:
            The exit code of the program.
        """
        os.environ.update(self._environment)
        self.show_printed(self._printed)

        def reached(flow: FlowSpec) -> None:
            self._reached(flow, steps, send_message)

        set_launcher(reached)
        host(str(self._program.source.get("file", "The program")))
        try:
            cls = self._program.run()
            if not self.entered:
                self._call(check_is_flow(cls, self._program.source), reached)
        except BaseException as error:  # noqa: BLE001 -- an error of the user's program ends it, as without aflow
            self._error = error
            return child.ended_by(error)
        finally:
            set_launcher(_over)  # `reached` would keep the flow alive until the interpreter exits
        return 0

    @staticmethod
    def show_printed(printed: tuple[bytes, bytes]) -> None:
        """Write the output of code that ran before the fork to stdout and stderr.

        Args:
            printed: The output to stdout and stderr.
        """
        for number, data in enumerate(printed):
            if data:
                child.write_all(number + 1, data)

    def _call(self, cls: type[FlowSpec], reached: Callable[[FlowSpec], None]) -> None:
        """Call the flow, as the last line of a program does: `MyFlow()`."""
        try:
            flow = cls()
        except TypeError:
            if self.entered:
                raise
            flow = object.__new__(cls)  # only the program knows the arguments of its __init__
        if not self.entered:
            reached(flow)

    def _reached(self, flow: FlowSpec, steps: Steps, send_message: Callable[..., None]) -> None:
        """Handle the call of a flow by the program."""
        name = self._program.flow
        if self._code is not None:
            raise SystemExit(self._code)
        if name and type(flow).__qualname__ != name:
            return  # another flow in the same program
        imported = (
            None if self._before is None else imported_since(self._before, self._start_environment)
        )
        definition = self._defined(type(flow))
        if imported is not None:
            send_message(IMPORTED, imported)
        self.entered = True
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
            definition = with_values(definition, pickle.loads(request.configs))  # noqa: S301 -- from the process that started this one
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

    def why_never_reached(self, code: int) -> str:
        """Return why the program ended before it called its flow, as a sentence.

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
        """Return the report of a failed attempt whose program did not call its flow.

        Args:
            step: The name of the step.
            attempt_key: The numbers of task and attempt.
            begun: When it started, in seconds since the epoch.
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


def _debugged(runner: AttemptRunner, spec: AttemptSpec) -> AttemptReport:
    """Run an attempt without a time limit; a coroutine step in a new event loop."""
    definition = runner.definition
    step = definition.steps[spec.step]
    unlimited = tuple(each for each in step.decorators if each.decorator_name != "timeout")
    steps = {**definition.steps, spec.step: replace(step, decorators=unlimited)}
    runner.definition = replace(definition, steps=steps)
    if not step.is_async:
        return runner.run(spec)
    import asyncio  # sequential steps do not need it

    return asyncio.run(runner.run_async(spec))


class Work(Protocol):
    """The attempts that a process runs once the program has called its flow."""

    step: str
    attempt_key: tuple[int, int]  # task and attempt of the first one

    def begin(self) -> bool:
        """Connect the streams of this process to the coordinator, before the user's program runs.

        Returns:
            False if there is no attempt to run; the process then exits.
        """

    def send_message(self, *message: Any) -> None:
        """Send a message to the coordinator.

        Args:
            *message: The kind and its fields.
        """

    def refuse(self, report: AttemptReport) -> None:
        """Report the end of the first attempt, since the program has not called its flow.

        Args:
            report: How the attempt has ended.
        """

    def steps(self, flow: FlowSpec) -> int:
        """Run the attempts of this process when the user's program calls its flow.

        Args:
            flow: The flow instance that the user's program has called.

        Returns:
            The exit code of the process.
        """


class OneAttempt:
    """Isolation `task`: one attempt, which has the process to itself.

    `fds` are its pipes for stdout, stderr and the report. A fourth one becomes stdin: the attempt
    is then debugged, may read from it, and has no time limit.
    """

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
            from aflow.executors.local import terminal  # imports asyncio, which tasks do not need

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
        spec = self._spec
        if runner.definition.steps[spec.step].decorator("timeout") is not None:
            self.send_message(REACHED)
        ended = _debugged(runner, spec) if self._is_debugged else runner.run(spec)
        child.flush()
        self.send_message(*ended.message())
        return 0 if ended.state == AttemptState.SUCCEEDED.value else 1


def many_attempts(runner: AttemptRunner, fds: Sequence[int], *, coroutines: bool) -> Work:
    """Return the work of a process of isolation `worker`, or of coroutine steps.

    Args:
        runner: Runs the attempts that the coordinator sends.
        fds: The descriptors of `messages.WORK`.
        coroutines: Whether the attempts are coroutines, which run concurrently.
    """
    # Only these processes need the module, which imports asyncio.
    from aflow.executors.local.child_worker import CoroutineWorker, SequentialWorker

    return (CoroutineWorker if coroutines else SequentialWorker)(runner, fds)


_at_start = dict(os.environ)


def _over(flow: FlowSpec) -> None:
    """Ignore a call of the flow after the end of the program, by an exit function."""
