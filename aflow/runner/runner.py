"""Runner: the commands of a flow file, for programs."""

from __future__ import annotations

import json
import shlex
from collections.abc import AsyncIterator, Callable, Mapping
from typing import TYPE_CHECKING, Any, Self

from aflow._core.threads import in_thread
from aflow.client import Run
from aflow.client.where import place_at
from aflow.errors import CommandFailed
from aflow.runner.command import Announcement, CleanedUp, FlowCommands, RunningCommand

if TYPE_CHECKING:
    from aflow.client import Task
    from aflow.runner.command import Stream

# What a Runner gives: a run, or one task, that a process executes.


class ExecutingProcess(CleanedUp):
    """A command of a flow and the process that executes it. As a context, it removes the files of
    its output at the end."""

    def __init__(self, command_obj: RunningCommand, run: Run) -> None:
        self.command_obj = command_obj
        self._run = run

    async def wait(
        self,
        timeout: float | None = None,  # noqa: ASYNC109 -- the name that programs know it by
        stream: Stream | None = None,
    ) -> Self:
        """Wait for the end of the process. After the timeout the process is stopped, and `status`
        is `timeout`.

        Args:
            timeout: After how many seconds it gives up; None for never.
            stream: `stdout` or `stderr`, to be printed meanwhile; None for neither.

        Returns:
            This object.
        """
        await self.command_obj.wait(timeout, stream)
        return self

    @property
    def returncode(self) -> int | None:
        """The exit code of the process; None while it runs."""
        return self.command_obj.returncode

    @property
    def status(self) -> str:
        """running, successful, failed or timeout."""
        if self.command_obj.timeout:
            return "timeout"
        code = self.returncode
        if code is None:
            return "running"
        return "failed" if code else "successful"

    @property
    def stdout(self) -> str:
        """What the process has written to stdout so far."""
        return self.command_obj.output("stdout")

    @property
    def stderr(self) -> str:
        """What the process has written to stderr so far."""
        return self.command_obj.output("stderr")

    async def stream_log(
        self, stream: Stream, position: int | None = None
    ) -> AsyncIterator[tuple[int, str]]:
        """Yield the lines of `stdout` or `stderr` as they come, each with the position behind it:
        from there, another call goes on.

        Args:
            stream: The stream of the log: stdout or stderr.
            position: The position to begin at; None for the start.
        """
        async for each in self.command_obj.stream_log(stream, position):
            yield each

    def cleanup(self) -> None:
        """Remove the files of the output. The process is left alone."""
        self.command_obj.cleanup()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._run.pathspec}: {self.status}>"


class ExecutingRun(ExecutingProcess):
    """A run that a process executes, or has executed."""

    @property
    def run(self) -> Run:
        """The run, as the client sees it."""
        return self._run


class ExecutingTask(ExecutingProcess):
    """A task that `spin` executes, or has executed."""

    def __init__(self, command_obj: RunningCommand, run: Run, find: Callable[[Run], Task]) -> None:
        super().__init__(command_obj, run)
        self._find = find

    @property
    def task(self) -> Task:
        """The task, as the client sees it; raises NotFound if it has not begun."""
        return self._find(self._run)


class Runner(FlowCommands, CleanedUp):
    """Runs the flow of a file, each time in a process of its own.

        with Runner("flow.py", pylint=False) as runner:
            result = runner.run(alpha=0.5, tags=["a"], max_workers=4)
            print(result.run.data.total)

    `show_output` copies what `run`, `resume` and `spin` print, `env` adds to the environment, `cwd`
    is the working directory. What the asynchronous methods start must begin its run within
    `file_read_timeout` seconds. All else are options that stand before the command (`pylint`,
    `with_`, `branch`, ...). Raises FlowFileError where there is no such file.

    The methods take the options of their command by name, and the flow's parameters. They raise
    InvalidInput for one that is not there, and CommandFailed where no run came about; a run that
    fails is shown by `status` and `returncode`.
    """

    # ------------------------------------------------------------ to the end

    def run(self, **kwargs: Any) -> ExecutingRun:
        """Run the flow to its end.

        Args:
            **kwargs: The options of the command.

        Returns:
            The run, with its process.
        """
        return ExecutingRun(*self._to_the_end("run", [], kwargs))

    def resume(self, **kwargs: Any) -> ExecutingRun:
        """Resume a run (`origin_run_id`, else the latest), to its end.

        Args:
            **kwargs: The options of the command.

        Returns:
            The run, with its process.
        """
        return ExecutingRun(*self._to_the_end("resume", [], kwargs))

    def spin(self, pathspec: str, **kwargs: Any) -> ExecutingTask:
        """Run one step again (`step`, `run/step` or `run/step/task`), to its end.

        Args:
            pathspec: The pathspec: `flow/run/step/task`, or the beginning of one.
            **kwargs: The options of the command.

        Returns:
            The task, with its process.
        """
        return _spun(pathspec, *self._to_the_end("spin", [pathspec], kwargs))

    # ------------------------------------------------------------ until it has begun

    async def async_run(self, **kwargs: Any) -> ExecutingRun:
        """Run the flow.

        Args:
            **kwargs: The options of the command.

        Returns:
            The run as soon as it has begun.
        """
        return ExecutingRun(*await self._begun("run", [], kwargs))

    async def async_resume(self, **kwargs: Any) -> ExecutingRun:
        """Resume a run.

        Args:
            **kwargs: The options of the command.

        Returns:
            The new one as soon as it has begun.
        """
        return ExecutingRun(*await self._begun("resume", [], kwargs))

    async def async_spin(self, pathspec: str, **kwargs: Any) -> ExecutingTask:
        """Run one step again.

        Args:
            pathspec: The pathspec: `flow/run/step/task`, or the beginning of one.
            **kwargs: The options of the command.

        Returns:
            The task as soon as its run has begun.
        """
        return _spun(pathspec, *await self._begun("spin", [pathspec], kwargs))

    # ------------------------------------------------------------ the end

    def cleanup(self) -> None:
        """Remove the files of all output. What still runs is left alone."""
        while self._commands:
            self._commands.pop().cleanup()

    # ------------------------------------------------------------ the process

    def _to_the_end(
        self, name: str, arguments: list[str], kwargs: Mapping[str, Any]
    ) -> tuple[RunningCommand, Run]:
        with Announcement() as announcement:
            command = self._start(name, arguments, kwargs, announcement)
            command.wait_here(self.show_output)
            return command, _announced(announcement.read(), command)

    async def _begun(
        self, name: str, arguments: list[str], kwargs: Mapping[str, Any]
    ) -> tuple[RunningCommand, Run]:
        with Announcement() as announcement:
            # The flow's file may be imported, to see its options: that takes its time.
            command = await in_thread(self._start, name, arguments, kwargs, announcement)
            attributes = await announcement.wait(command.process, self.file_read_timeout)
            if not attributes:
                await in_thread(command.kill)
            return command, _announced(attributes, command)

    def _start(
        self,
        name: str,
        arguments: list[str],
        kwargs: Mapping[str, Any],
        announcement: Announcement,
    ) -> RunningCommand:
        file = announcement.path
        attributes = f"--runner-attribute-file={file}"
        command = self._command(name, arguments, kwargs, file.parent, attributes)
        self._commands.append(command)
        return command


def _announced(attributes: bytes, command: RunningCommand) -> Run:
    """The run that the command has begun; raises CommandFailed where it has not."""
    if not attributes:
        code = command.process.wait()
        raise CommandFailed(
            f"{shlex.join(command.command[1:-1])} has begun no run (exit code {code}). It said:\n"
            f"{command.last_output()}"
        )
    facts = json.loads(attributes)
    pathspec = f"{facts['flow_name']}/{facts['run_id']}"
    return Run(
        pathspec, _namespace_check=False, _place=place_at(command.metadata or facts["metadata"])
    )


def _spun(pathspec: str, command: RunningCommand, run: Run) -> ExecutingTask:
    parts = pathspec.removeprefix(f"{run.path_components[0]}/").split("/")
    step = parts[0] if len(parts) == 1 else parts[1]

    def find(run: Run) -> Task:
        return next(iter(run[step]))  # type: ignore[no-any-return]

    return ExecutingTask(command, run, find)
