"""Inside of a process that runs attempts: the user's program up to `MyFlow()`, and then the steps.

The program runs as a fresh interpreter would run it. When it reaches `MyFlow()`, that call runs the
step (or, in a process of isolation `worker`, one step after the other), and then leaves as every
such call leaves: by SystemExit, through the program's own `with`, `except` and `finally`.
"""

from __future__ import annotations

import fcntl
import os
import pickle
import resource
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from aflow import ending
from aflow.attempt.runner import describe, sentence
from aflow.attempt.spec import GROWN, IMPORTED, MISFIT, AttemptReport, AttemptSpec
from aflow.clock import SystemClock
from aflow.configured import with_values
from aflow.executors.local import inside, terminal, wire
from aflow.executors.local.program import check_is_flow, host
from aflow.executors.local.warm import imported_since
from aflow.flow.decorators.attach import attach
from aflow.flow.spec import define, set_launcher
from aflow.scheduler.states import AttemptState
from aflow.storage.manifest import Manifest

if TYPE_CHECKING:
    from aflow.attempt.runner import Runner
    from aflow.executors.local.program import Program, Request
    from aflow.flow.definition import FlowDefinition
    from aflow.flow.graph import Graph
    from aflow.flow.spec import FlowSpec

Steps = Callable[["FlowSpec"], int]  # runs what is to be run with the flow; the exit code

_HIGH = 900  # descriptors of ours are above this, so that those of the program begin at 3


class Host:
    """One process that runs attempts. `environment` are the variables that the steps to be run have
    from the start, `printed` what imports have printed that are done already. `before` are the
    modules that were there before the program: where they are given, it is reported what the
    program has imported."""

    def __init__(
        self,
        program: Program,
        request: Request,
        graph: Graph | None,
        runner: Runner,
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

    # ------------------------------------------------------------ isolation `task`

    def run_one(
        self, spec: AttemptSpec, stdout: int, stderr: int, report: int, stdin: int | None = None
    ) -> int:
        """Run the program, and this attempt in it; the exit code of the process. With a `stdin` the
        attempt is debugged: it may ask there, and takes as long as it takes."""
        inside.redirect(stdout, stderr)
        if stdin is not None:
            terminal.take(stdin)
        os.close(stdout)
        os.close(stderr)
        report = out_of_the_way(report)

        def say(*message: Any) -> None:
            inside.write_all(report, wire.packed(*message))

        def steps(flow: FlowSpec) -> int:
            runner = self._runner
            environment = variables_of(runner.definition, spec.step)
            if self._before is not None and environment != self._environment:
                say(MISFIT, environment)  # another process takes the attempt, which has them
                return 0
            runner.announce = lambda *grown: say(GROWN, *grown)
            runner.instance = lambda: flow
            if stdin is None:
                ended = runner.run(spec)
            else:
                ended = _debugged(runner, spec)
            if os.getpid() != self._pid:
                return 0  # the step forked, and this is its child: it has nothing to report
            inside.flush()
            say(*ended.message())
            return 0 if ended.state == AttemptState.SUCCEEDED.value else 1

        if stdin is None:
            inside.refuse_breakpoints()
        begun = SystemClock().now()
        code = self._run_program(steps, say)
        if not self._entered and os.getpid() == self._pid:
            say(*self.never_reached(spec, begun, code).message())
        return code

    # ------------------------------------------------------------ isolation `worker`

    def work(self, coroutines: bool, *fds: int) -> int:
        """Run the program, and in it one attempt after the other (coroutines: side by side), until
        the coordinator closes its end; the exit code of the process."""
        # Only these processes need the modules (asyncio among them, for the coroutines).
        if coroutines:
            from aflow.executors.local.coroutines import CoroutineWorker as Worker
        else:
            from aflow.executors.local.work import SequentialWorker as Worker  # type: ignore[assignment]

        inside.refuse_breakpoints()
        worker = Worker(self._runner, [out_of_the_way(each) for each in fds])
        spec = worker.first()
        if spec is None:
            return 0
        begun = SystemClock().now()

        def steps(flow: FlowSpec) -> int:
            self._runner.instance = copies_of(flow)
            worker.serve()
            return 0

        code = self._run_program(steps, worker.say)
        if not self._entered and os.getpid() == self._pid:
            inside.flush()
            worker.refuse(self.never_reached(spec, begun, code))
        return code

    # ------------------------------------------------------------ the program

    def _run_program(self, steps: Steps, say: Callable[..., None]) -> int:
        """Run the program, whose flow's call runs `steps`; the exit code that it ends with."""
        os.environ.update(self._environment)
        for number, data in enumerate(self._printed):
            if data:
                inside.write_all(number + 1, data)

        def reached(flow: FlowSpec) -> None:
            self._reached(flow, steps, say)

        set_launcher(reached)
        host(str(self._program.source.get("file", "The program")))
        try:
            cls = self._program.run()
            if not self._entered:
                self._call(check_is_flow(cls, self._program.source), reached)
        except SystemExit as error:
            self._error = error
            return ending.exit_code(error)
        except BaseException as error:  # noqa: BLE001 -- what the user's program raises ends it, as always
            self._error = error
            _show(error)
            return 130 if isinstance(error, KeyboardInterrupt) else 1
        return 0

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

    def _reached(self, flow: FlowSpec, steps: Steps, say: Callable[..., None]) -> None:
        """The program has called a flow."""
        wanted = self._program.flow
        if self._code is not None:
            raise SystemExit(self._code)
        if wanted and type(flow).__qualname__ != wanted:
            return  # another flow of the same program
        imported = (
            None if self._before is None else imported_since(self._before, self._start_environment)
        )
        definition = self._defined(type(flow))
        if imported is not None:
            every = {name: variables_of(definition, name) for name in definition.steps}
            say(IMPORTED, imported, every)
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
            left = tuple(each for each in step.decorators if each.name in kept)
            steps = {**definition.steps, name: replace(step, decorators=left)}
            definition = replace(definition, steps=steps)
        return definition

    @property
    def _start_environment(self) -> Mapping[str, str]:
        return {**_at_start, **self._environment}

    def never_reached(self, spec: AttemptSpec, begun: float, code: int) -> AttemptReport:
        """The report of an attempt whose program has not come to its flow."""
        error = self._error
        if error is None or isinstance(error, SystemExit):
            reason = (
                f"The program ended with exit code {code} before it came to "
                f"{self._program.flow or 'its flow'}()."
            )
        else:
            reason = sentence(error)
        told = None if error is None else describe(error)
        return AttemptReport(
            spec.task,
            spec.attempt,
            AttemptState.FAILED.value,
            reason=reason,
            manifest=Manifest(step=spec.step, error=told).encode(),
            started_at=begun,
            finished_at=SystemClock().now(),
            unreached=True,
        )


def _debugged(runner: Runner, spec: AttemptSpec) -> AttemptReport:
    """Run an attempt without a limit on its time; a coroutine step in an event loop of its own."""
    definition = runner.definition
    step = definition.steps[spec.step]
    unlimited = tuple(each for each in step.decorators if each.name != "timeout")
    steps = {**definition.steps, spec.step: replace(step, decorators=unlimited)}
    runner.definition = replace(definition, steps=steps)
    if not step.is_async:
        return runner.run(spec)
    import asyncio  # sequential steps have no use for it

    return asyncio.run(runner.run_async(spec))


_at_start = dict(os.environ)


def variables_of(definition: FlowDefinition, step: str) -> dict[str, str]:
    """The variables of a step's @environment."""
    found = definition.steps[step].decorator("environment")
    return {} if found is None else dict(found.vars)


def copies_of(flow: FlowSpec) -> Callable[[], FlowSpec]:
    """Makes flows that have what the __init__ of this one has given it."""
    cls, state = type(flow), dict(flow.__dict__)

    def copy() -> FlowSpec:
        made = object.__new__(cls)
        made.__dict__.update(state)
        return made

    return copy


def _show(error: BaseException) -> None:
    """Show what a program has ended by, as Python does."""
    try:
        sys.excepthook(type(error), error, _of_the_program(error))
    except Exception:  # noqa: BLE001 -- a hook of the user's
        sys.__excepthook__(type(error), error, error.__traceback__)


def _of_the_program(error: BaseException) -> Any:
    """The traceback from the program's first line on."""
    here = os.path.dirname(os.path.abspath(__file__))
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename.startswith((here, "<frozen")):
        trace = trace.tb_next
    return trace or error.__traceback__


def out_of_the_way(fd: int) -> int:
    """The same as a descriptor with a high number, if there is one to be had."""
    least = min(_HIGH, max(3, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2))
    try:
        moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, least)
    except OSError:
        return fd
    os.close(fd)
    return moved
