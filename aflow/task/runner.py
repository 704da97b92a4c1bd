"""Run one attempt inside the process of a task, and report how it ended.

`AttemptRunner.run` has three phases: prepare, call, conclude. The result is always a report: no
exception of a step is raised to the caller.
"""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any

from aflow._core.settings import Settings
from aflow.errors import AflowError, InvalidTransition, TaskTimedOut, clipped
from aflow.flow.current import current
from aflow.flow.decorators.catch import ExceptionWrapper, FailureHandledByCatch
from aflow.flow.graph import Kind, outline
from aflow.flow.spec import NextCall, bind, left_artifacts, new_instance
from aflow.scheduler.messages import decode_inputs
from aflow.scheduler.states import AttemptState
from aflow.storage.artifacts import ArtifactReader, Manifest, PackingWriter
from aflow.storage.items import ItemReader, write_items
from aflow.storage.names import MAIN, Names, ProgramFile, code_in
from aflow.task.environment import Variables
from aflow.task.hooks import HookClasses, Scene, StepHook, await_through, call_through, hook_classes
from aflow.task.inputs import Manifests
from aflow.task.outputs import StepContext, write_streamed
from aflow.task.spec import AttemptReport, AttemptSpec, RunContext, may_be_retried

if TYPE_CHECKING:
    from aflow._core.clock import Clock
    from aflow.flow.definition import FlowDefinition, StepDefinition
    from aflow.flow.spec import FlowSpec
    from aflow.metadata.base import MetadataStore
    from aflow.storage.blobs import BlobStore

ENVIRONMENT = Variables("environment")

_LONGEST_TEXT = (
    200_000  # characters of a message or traceback; the exception itself may be an artifact
)
_AS_IT_IS: AbstractContextManager[None] = nullcontext()
_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep
_GETPASS = os.path.join(os.path.dirname(os.__file__), "getpass.py")
_AFLOW = os.path.dirname(os.path.dirname(_PACKAGE)) + os.sep


def _never() -> bool:
    return False


class Execution:
    """One attempt, while the runner processes it."""

    __slots__ = (
        "error",
        "flow",
        "held",
        "hooks",
        "inputs",
        "is_bound",
        "is_cancelled",
        "pid",
        "spec",
        "started_at",
        "step",
        "task",
        "token",
    )

    def __init__(self, spec: AttemptSpec, step: StepDefinition, started_at: float) -> None:
        self.is_bound = False  # whether the flow can be read and stored
        self.is_cancelled: Callable[[], bool] = _never
        self.spec = spec
        self.step = step
        self.started_at = started_at
        self.pid = os.getpid()
        self.error: BaseException | None = None
        self.hooks: list[StepHook] = []
        self.held: Mapping[str, str] = {}  # environment variables
        self.inputs: Any = None  # of a join
        self.flow: FlowSpec
        self.task: StepContext
        self.token: Any = None

    @contextmanager
    def outcome(self) -> Iterator[None]:
        """Run a part of the attempt in the block: every exception of a step is its outcome.

        A process that the step has forked exits here, as the program would without aflow. The
        attempt is reported by the process that it started in.
        """
        try:
            yield
        except BaseException as error:
            self.error = error
        if os.getpid() != self.pid:
            raise SystemExit(0) if self.error is None else self.error

    @property
    def arguments(self) -> tuple[Any, ...]:
        """The arguments of the step's function."""
        return (self.flow, self.inputs) if self.step.takes_inputs else (self.flow,)


class AttemptRunner:
    """Runs attempts of one run: one after another, or many at a time for coroutine steps."""

    # Set before any attempt runs: the flow is known once the user's program has called it.
    definition: FlowDefinition

    def __init__(
        self,
        context: RunContext,
        blobs: BlobStore,
        open_metadata: Callable[[], MetadataStore],
        clock: Clock,
    ) -> None:
        self.context = context
        self.manifests = Manifests(open_metadata, context.run_key)
        self._blobs = blobs
        self._clock = clock
        self._item_reader = ItemReader(blobs)
        self._hook_classes: dict[str, HookClasses] = {}
        # Creates the flow object of an attempt. Processes of tasks return the one that the user's
        # program has created.
        self.instance: Callable[[], FlowSpec] = lambda: new_instance(self.definition)
        # The variables of @environment that the process was started with; None if they were not
        # set.
        self.environment: Mapping[str, str] | None = None
        # Reports items to the coordinator while a step still generates them: task, attempt, count,
        # manifest. None if there is no coordinator.
        self.announce: Callable[[int, int, int, bytes], None] | None = None

    @cached_property
    def _names(self) -> Names:
        """The resolver of stored classes, whose module may have had another name at the time."""
        home = self.definition.cls.__module__
        file = os.path.abspath(self.definition.file)
        program = ProgramFile(file, None, None if home == MAIN else home)
        # The same store may contain the code of other flows.
        return Names(program, lambda key: None if key is None else code_in(self._blobs, key))

    def expect_many(self) -> None:
        """Prepare to run many attempts in this process: cache inputs that several of them read."""
        self._item_reader = ItemReader(self._blobs, hold=True)

    def remember(self, spec: AttemptSpec) -> None:
        """Keep the manifests that a spec contains.

        Args:
            spec: The spec of the attempt.
        """
        for task, data in spec.manifests.items():
            if not self.manifests.knows(task) or self._has_grown(task, spec):
                self.manifests.remember(task, Manifest.decode(data))

    def _has_grown(self, task: int, spec: AttemptSpec) -> bool:
        """Return whether the known manifest of a task is older than the item of the spec."""
        items = self.manifests.of(task).items if task == spec.split else None
        return items is not None and (spec.split_index or 0) >= items[0]

    def run(self, spec: AttemptSpec) -> AttemptReport:
        """Run one attempt to its end. Exceptions of the step are not raised.

        Args:
            spec: The spec of the attempt.

        Returns:
            The report of its end.
        """
        execution = self._begin(spec)
        with execution.outcome():
            self._prepare(execution)
            if execution.hooks:
                self._surround(execution)
            elif not spec.fallback:
                self._call(execution)
        return self._conclude(execution)

    async def run_async(
        self, spec: AttemptSpec, is_cancelled: Callable[[], bool] = _never
    ) -> AttemptReport:
        """Run one attempt of a coroutine step to its end.

        Args:
            spec: The spec of the attempt.
            is_cancelled: Whether the coordinator has cancelled the attempt. Only then does
                CancelledError mean that it was cancelled.

        Returns:
            The report of its end.
        """
        execution = self._begin(spec)
        execution.is_cancelled = is_cancelled
        with execution.outcome():
            self._prepare(execution)
            if execution.hooks:
                await self._surround_async(execution)
            elif not spec.fallback:
                await self._await(execution)
        return self._conclude(execution)

    # ------------------------------------------------------------ call

    @staticmethod
    def _call(execution: Execution) -> None:
        step = execution.step
        with alarm(step) if step.decorator("timeout") else _AS_IT_IS:
            step.function(*execution.arguments)

    @staticmethod
    async def _await(execution: Execution) -> None:
        import asyncio

        try:
            async with asyncio.timeout(timeout_of(execution.step)) as deadline:
                await execution.step.function(*execution.arguments)
        except TimeoutError:
            if deadline.expired():
                raise timed_out(execution.step) from None
            raise

    def _surround(self, execution: Execution) -> None:
        """Call the step within the hooks of its decorators."""
        begun: list[StepHook] = []
        with execution.outcome():
            self._before(execution, begun)
            call_through(execution.hooks, lambda: self._call(execution))
        self._after(execution, begun)

    async def _surround_async(self, execution: Execution) -> None:
        begun: list[StepHook] = []
        with execution.outcome():
            self._before(execution, begun)
            await await_through(execution.hooks, lambda: self._await(execution))
        self._after(execution, begun)

    @staticmethod
    def _before(execution: Execution, begun: list[StepHook]) -> None:
        for each in execution.hooks:
            begun.append(each)
            each.before()

    @staticmethod
    def _after(execution: Execution, begun: list[StepHook]) -> None:
        for each in reversed(begun):
            try:
                each.after(execution.error)
            except Exception as error:  # an exception of a decorator is the outcome of the step
                execution.error = error

    # ------------------------------------------------------------ prepare

    def _begin(self, spec: AttemptSpec) -> Execution:
        return Execution(spec, self.definition.steps[spec.step], self._clock.now())

    def _prepare(self, execution: Execution) -> None:
        spec, definition = execution.spec, self.definition
        self.remember(spec)
        execution.flow = self.instance()
        reader = ArtifactReader(self._blobs, self._names)
        execution.task = StepContext(
            definition,
            spec,
            decode_inputs(spec.inputs),
            self.manifests,
            self._blobs,
            reader,
            self._item_reader,
        )
        values = self._current_values(spec)
        execution.token = current._set(values)
        bind(execution.flow, execution.task)
        execution.is_bound = True
        if execution.step.takes_inputs:
            execution.inputs = execution.task.join_inputs()
        if not execution.step.decorators:
            return
        environment = execution.step.decorator("environment")
        there = self.environment or {}
        # If the process was started for the step, the variables have the values from the start of
        # the run. The program runs again in this process, and may compute others.
        if environment is not None and not environment.vars.keys() <= there.keys():
            ENVIRONMENT.take(environment.vars)
            execution.held = environment.vars
        if not spec.fallback:
            execution.hooks = self._make_hooks(execution, values)

    def _make_hooks(self, execution: Execution, values: dict[str, Any]) -> list[StepHook]:
        step = execution.step
        classes = self._hook_classes.get(step.name)
        if classes is None:
            classes = self._hook_classes[step.name] = hook_classes(step)
        if not classes:
            return []
        scene = Scene(
            definition=self.definition,
            step=step,
            flow=execution.flow,
            inputs=execution.inputs,
            spec=execution.spec,
            context=self.context,
            blobs=self._blobs,
            clock=self._clock,
            values=values,
        )
        return [kind(decorator, scene) for kind, decorator in classes]

    def _current_values(self, spec: AttemptSpec) -> dict[str, Any]:
        context = self.context
        return {
            "flow_name": context.flow,
            "pathspec": f"{context.flow}/{context.run}/{spec.step}/{spec.task}",
            "run_id": context.run,
            "step_name": spec.step,
            "task_id": str(spec.task),
            "retry_count": spec.attempt,
            "origin_run_id": context.origin_run,
            "namespace": context.namespace,
            "username": context.user,
            "tags": set(context.tags),
            "graph": lambda: outline(self.definition),
            "tempdir": lambda: Settings.load().tempdir,
            "parameter_names": list(self.definition.parameters),
            "metadata_url": context.metadata_url,
            **_current_facts(context.current_facts or {}),
        }

    # ------------------------------------------------------------ conclude

    def _conclude(self, execution: Execution) -> AttemptReport:
        try:
            if execution.spec.fallback:
                return self._settle_by_fallback(execution)
            if execution.error is None:
                return self._succeed(execution)
        except Exception as error:  # storing artifacts can fail like the step itself
            execution.error = error
        finally:
            ENVIRONMENT.release(execution.held)
            if execution.token is not None:
                current._reset(execution.token)
        return self._fail(execution)

    def _succeed(self, execution: Execution) -> AttemptReport:
        catch = execution.step.decorator("catch")
        if catch is not None and catch.var:
            setattr(execution.flow, catch.var, None)
        iterator = self._take_iterator(execution)
        manifest = self._manifest(execution)
        steps, foreach, count = self._transition(execution, manifest, iterator)
        return self._success(execution, manifest, steps, foreach, count)

    def _success(
        self,
        execution: Execution,
        manifest: Manifest,
        steps: tuple[str, ...],
        foreach: str | None = None,
        count: int | None = None,
    ) -> AttemptReport:
        manifest.transition = (steps, foreach, count)
        for each in reversed(execution.hooks):
            each.stored(manifest)
        return AttemptReport(
            execution.spec.task,
            execution.spec.attempt,
            AttemptState.SUCCEEDED.value,
            steps=steps,
            foreach=foreach,
            splits=count,
            manifest=manifest.encode(),
            started_at=execution.started_at,
            finished_at=self._clock.now(),
        )

    def _manifest(self, execution: Execution) -> Manifest:
        task = execution.task
        if self.context.persist:
            with self._blobs.batch() as blobs:
                writer = PackingWriter(blobs, previews=self.context.previews)
                manifest = task.manifest(left_artifacts(execution.flow), writer)
        else:
            manifest = Manifest(step=execution.step.name, stack=task.stack)
        task.verify_mapped()
        return manifest

    @staticmethod
    def _take_iterator(execution: Execution) -> Iterator[Any] | None:
        """Return the iterator of a foreach, if it can be iterated only once (a generator).

        Its items are stored one by one, and it is not stored as an artifact.
        """
        call: NextCall | None = execution.flow.__dict__.get("_aflow_next")
        if call is None or call.foreach is None:
            return None
        value = execution.flow.__dict__.get(call.foreach)
        if not isinstance(value, Iterator):
            return None
        del execution.flow.__dict__[call.foreach]
        return value

    def _transition(
        self, execution: Execution, manifest: Manifest, iterator: Iterator[Any] | None = None
    ) -> tuple[tuple[str, ...], str | None, int | None]:
        call: NextCall | None = execution.flow.__dict__.get("_aflow_next")
        node = self.definition.graph[execution.step.name]
        if call is None:
            if node.kind is Kind.END:
                return (), None, None
            raise InvalidTransition(
                f"Step {node.name!r} ended without calling self.next(): every step except the "
                "last has to name the next step."
            )
        if call.foreach is None:
            return call.steps, None, call.num_parallel
        if iterator is not None and self.announce is not None and self.context.persist:
            count = self._stream(execution, manifest, call, iterator)
        else:
            manifest.items, count = self._items(execution, call.foreach, iterator)
        return call.steps, call.foreach, count

    def _stream(
        self, execution: Execution, manifest: Manifest, call: NextCall, iterator: Iterator[Any]
    ) -> int:
        announce, spec = self.announce, execution.spec
        assert announce is not None, "there is somebody to tell"
        manifest.transition = (call.steps, call.foreach, None)

        def on_items(items: Any, count: int) -> None:
            manifest.items = items
            announce(spec.task, spec.attempt, count, manifest.encode())

        limit = self.context.max_num_splits
        manifest.items, count = write_streamed(iterator, self._blobs, limit, self._clock, on_items)
        return count

    def _items(
        self, execution: Execution, name: str, iterator: Iterator[Any] | None
    ) -> tuple[Any, int]:
        values = getattr(execution.flow, name) if iterator is None else iterator
        try:
            iterator = iter(values)
        except TypeError:
            raise InvalidTransition(
                f"Step {execution.step.name!r} has foreach={name!r}, but self.{name} is of type "
                f"{type(values).__name__}, which cannot be iterated over."
            ) from None
        limit = self.context.max_num_splits
        if not self.context.persist:
            return None, sum(1 for _ in islice(iterator, limit + 1))
        return write_items(iterator, self._blobs, limit)

    def _settle_by_fallback(self, execution: Execution) -> AttemptReport:
        """Settle a step with @catch without running it, since its process has crashed."""
        if execution.error is not None:
            raise execution.error
        reason = FailureHandledByCatch(
            "the process that ran the step died; @catch settled the step"
        )
        return self._caught(execution, reason)

    def _caught(self, execution: Execution, error: BaseException) -> AttemptReport:
        catch = execution.step.decorator("catch")
        if catch is not None and catch.var:
            name = ".".join(name_of(type(error)))
            caught = ExceptionWrapper.of(error, user_traceback(error), name)
            setattr(execution.flow, catch.var, caught)
        manifest = self._manifest(execution)
        manifest.error = describe(error, caught=True)
        return self._success(execution, manifest, self.definition.graph[execution.step.name].next)

    def _fail(self, execution: Execution) -> AttemptReport:
        error = execution.error
        assert error is not None, "an attempt fails with an error"
        catch = execution.step.decorator("catch")
        final = execution.spec.final or not may_be_retried(execution.step, error)
        is_ours = is_cancellation(error) and execution.is_cancelled()
        # Without its inputs the step has no artifacts that @catch could store.
        is_caught = execution.is_bound and catches(error) and not is_ours
        if catch is not None and final and is_caught:
            if catch.print_exception:
                self._print_caught(execution, error)
            try:
                return self._caught(execution, error)
            except Exception as another:  # its artifacts cannot be stored
                error = another
        self._print_failure(execution, error)
        self._run_failure_hooks(execution, error)
        return self._failure(execution, error)

    def _run_failure_hooks(self, execution: Execution, error: BaseException) -> None:
        for each in reversed(execution.hooks):
            try:
                each.failed(error)
            except Exception as another:  # the attempt has already failed, with another exception
                head, name = self._head(execution), each.decorator.decorator_name
                show("stderr", f"{head}: @{name}, too: {sentence(another)}\n")

    def _failure(self, execution: Execution, error: BaseException) -> AttemptReport:
        manifest = Manifest(step=execution.step.name, error=describe(error))
        is_ours = is_cancellation(error) and execution.is_cancelled()
        return AttemptReport(
            execution.spec.task,
            execution.spec.attempt,
            (AttemptState.CANCELLED if is_ours else state_of(error)).value,
            reason=sentence(error, execution.step.name),
            retryable=may_be_retried(execution.step, error),
            manifest=manifest.encode(),
            started_at=execution.started_at,
            finished_at=self._clock.now(),
        )

    # ------------------------------------------------------------ output for users

    def _head(self, execution: Execution) -> str:
        try:
            place = ",".join(str(frame.index) for frame in execution.task.stack)
        except (AttributeError, AflowError):  # its preparation failed, which is reported
            place = ""
        step = f"{execution.step.name}[{place}]" if place else execution.step.name
        return f"<flow {self.context.flow} step {step}>"

    def _print_failure(self, execution: Execution, error: BaseException) -> None:
        if isinstance(error, AflowError):
            lines = [*str(error).splitlines(), *user_lines(error)]
            body = "".join(f"    {line}\n" for line in lines)
        else:
            body = "    Internal error\n" + user_traceback(error)
            if _asks_in_vain(error):
                body += f"    {sentence(error, execution.step.name)}\n"
        show("stderr", f"{self._head(execution)} failed:\n{body}\n")

    def _print_caught(self, execution: Execution, error: BaseException) -> None:
        lines = user_traceback(error).splitlines()
        quoted = "".join(f">  {line}\n" for line in lines)
        show("stdout", f"@catch caught an exception from {self._head(execution)}\n{quoted}")


def show(stream: str, text: str) -> None:
    """Write to sys.stdout or sys.stderr, if possible: the step may have closed or replaced them.

    Args:
        stream: `stdout` or `stderr`.
        text: The text, with its newlines.
    """
    try:
        target = getattr(sys, stream)
        encoding = getattr(target, "encoding", None) or "utf-8"
        target.write(text.encode(encoding, "backslashreplace").decode(encoding))
        target.flush()
    except Exception:  # the step has closed or replaced it
        return


def _current_facts(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that the flow's decorators add to `current`."""
    if "trigger" not in facts:
        return dict(facts)
    from aflow.flow.trigger_events import Trigger  # few runs have one

    return {**facts, "trigger": Trigger(facts["trigger"])}


# ------------------------------------------------------------------ errors as values


def catches(error: BaseException) -> bool:
    """Return whether @catch handles an exception: not SystemExit, KeyboardInterrupt and the like.

    Args:
        error: The exception of the step.
    """
    return isinstance(error, Exception) or is_cancellation(error)


def state_of(error: BaseException) -> AttemptState:
    """Return the terminal state of an attempt that ended with this exception.

    Args:
        error: The exception that ended the attempt.
    """
    return AttemptState.TIMED_OUT if isinstance(error, TaskTimedOut) else AttemptState.FAILED


def is_cancellation(error: BaseException) -> bool:
    """Return whether an exception is asyncio's CancelledError; does not import asyncio.

    Args:
        error: Any exception.
    """
    asyncio = sys.modules.get("asyncio")
    return asyncio is not None and isinstance(error, asyncio.CancelledError)


def no_terminal(step: str) -> str:
    """Return the explanation that a step has no terminal, with advice.

    Args:
        step: The name of the step, for the command in the advice.
    """
    return (
        f"a step has no terminal. Run the flow with `--debug {step}`, which gives yours to this "
        "step, or call the step with aflow.testing.run_step in a debugger (docs/debugging.md)"
    )


def _asks_in_vain(error: BaseException) -> bool:
    """Return whether the step failed because pdb or input() found no terminal."""
    kind = type(error)
    if (kind.__module__, kind.__name__) != ("bdb", "BdbQuit") and kind is not EOFError:
        return False
    frames = traceback.extract_tb(error.__traceback__)
    last = frames[-1] if frames else None
    asks = last is not None and ("input(" in (last.line or "") or last.filename == _GETPASS)
    if kind is EOFError and not asks:
        return False
    try:
        return os.path.samestat(os.fstat(0), os.stat(os.devnull))
    except OSError:
        return True


def sentence(error: BaseException, step: str = "STEP") -> str:
    """Return one line that describes why the step failed.

    Args:
        error: The exception of the step.
        step: The name of the step, for the command in the advice.
    """
    if _asks_in_vain(error):
        what = "input() has nobody to ask" if isinstance(error, EOFError) else "pdb cannot stop"
        return f"{type(error).__name__}: {what}: {no_terminal(step)}."
    if isinstance(error, SystemExit):
        return f"The step called sys.exit({error.code!r}); a step ends by returning."
    if isinstance(error, AflowError):
        return clipped(safe_text(error))
    text = " ".join(clipped(safe_text(error)).split())
    if not text and is_cancellation(error):
        text = "what the step awaited was cancelled, by the step or a library."
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def name_of(kind: type[BaseException]) -> tuple[str, str]:
    """Return module and name of an exception class.

    For a class of aflow that replaces one of Metaflow, these are the names in Metaflow, since flows
    compare them.

    Args:
        kind: The class of the exception.
    """
    # If it is not imported, aflow replaces no class of Metaflow.
    compat = sys.modules.get("aflow.compat.metaflow")
    known = None if compat is None else compat.name_in_metaflow(kind)
    return known or (kind.__module__, kind.__name__)


def describe(error: BaseException, *, caught: bool = False) -> dict[str, Any]:
    """Return the exception as plain values, for the manifest.

    Args:
        error: The exception of the step.
        caught: Whether @catch has handled it.
    """
    module, kind = name_of(type(error))
    return {
        "type": kind,
        "module": module,
        "message": clipped(safe_text(error), _LONGEST_TEXT),
        "traceback": user_traceback(error),
        "caught": caught,
    }


def safe_text(error: BaseException) -> str:
    """Return str(error), also if that raises.

    Args:
        error: Any exception; its `__str__` may raise.

    Returns:
        The text; characters that cannot be stored are escaped.
    """
    try:
        return storable(str(error))
    except Exception as another:
        return f"<its text cannot be shown: {type(another).__name__}>"


def storable(text: str) -> str:
    """Return the text with lone surrogates escaped, as `\\udce9`.

    Args:
        text: Any text; bytes that Python could not decode, in the name of a file for example, are
            lone surrogates.
    """
    return text.encode("utf-8", "backslashreplace").decode()


def user_traceback(error: BaseException) -> str:
    """Return the traceback from the first frame of the step, without the frames of the runner.

    Args:
        error: The exception of the step, with its traceback.
    """
    try:
        frames = traceback.TracebackException.from_exception(error)
        own = [frame for frame in frames.stack if not frame.filename.startswith(_PACKAGE)]
        if own:
            frames.stack = traceback.StackSummary.from_list(own)
        return clipped(storable("".join(frames.format())), _LONGEST_TEXT)
    except Exception as another:  # an exception whose `__str__` raises
        return f"{type(error).__name__} (no traceback: {type(another).__name__})\n"


def user_lines(error: AflowError) -> list[str]:
    """Return the lines of the traceback of an error of aflow that are in the user's code.

    Args:
        error: The error, with its traceback.
    """
    frames = _own(traceback.extract_tb(error.__traceback__))
    return storable("".join(traceback.format_list(frames))).splitlines()


def _own(frames: traceback.StackSummary) -> list[traceback.FrameSummary]:
    """Return the frames that belong neither to aflow nor to the start of the interpreter."""
    hidden = (_AFLOW, "<frozen runpy>")
    return [frame for frame in frames if not frame.filename.startswith(hidden)]


# ------------------------------------------------------------------ timeouts


def timeout_of(step: StepDefinition) -> float | None:
    """Return the seconds that @timeout allows the step; None without it.

    Args:
        step: The step, with its decorators.
    """
    decorator = step.decorator("timeout")
    return None if decorator is None else float(decorator.total_seconds)


def timed_out(step: StepDefinition) -> TaskTimedOut:
    """Return the exception of a step that has timed out.

    Args:
        step: The step, with its decorators.
    """
    timeout = step.decorator("timeout")
    assert timeout is not None, "only a step with @timeout times out"
    return TaskTimedOut(
        f"Step {step.name!r} timed out after {timeout.hours} hours, {timeout.minutes} minutes, "
        f"{timeout.seconds} seconds."
    )


@contextmanager
def alarm(step: StepDefinition) -> Iterator[None]:
    """Raise TaskTimedOut in the step when its time is up.

    Code that does not return to the interpreter is killed from outside, by the executor, and so is
    a step that runs in another thread, because the program has called its flow there.

    Args:
        step: The step, with its decorators.
    """
    seconds = timeout_of(step)
    assert seconds is not None, "only a step with @timeout has an alarm"
    import signal
    import threading

    if threading.current_thread() is not threading.main_thread():
        yield  # no signal reaches another thread: the executor ends the step
        return

    def ring(signum: int, frame: Any) -> None:
        frames = traceback.format_list(_own(traceback.extract_stack(frame)))
        show("stderr", "".join(frames))
        raise timed_out(step)

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
