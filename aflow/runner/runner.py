"""Runner: run the commands of a flow file from a program."""

from __future__ import annotations

import asyncio
import json
import shlex
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any, Self

from aflow._core.threads import in_thread
from aflow.client import Run
from aflow.client.where import place_at
from aflow.errors import CommandFailed
from aflow.runner.command import Announcement, CleanedUp, FlowCommands, RunningCommand

if TYPE_CHECKING:
    from aflow.client import Task
    from aflow.runner.command import Stream

# The results of a Runner: a run, or a single task, and the process that executes it.


class ExecutingProcess(CleanedUp):
    """A command of a flow and its process. Leaving it as a context manager removes the files of its
    output."""

    def __init__(self, command_obj: RunningCommand, run: Run) -> None:
        self.command_obj = command_obj
        self._run = run

    async def wait(
        self,
        timeout: float | None = None,  # noqa: ASYNC109 -- Metaflow's name
        stream: Stream | None = None,
    ) -> Self:
        """Wait until the process exits. After the timeout the process is stopped, and `status` is
        `timeout`.

        Args:
            timeout: The maximum time to wait, in seconds; None for no limit.
            stream: A stream to print while waiting, `stdout` or `stderr`; None for neither.

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
        """The text that the process has written to stdout."""
        return self.command_obj.output("stdout")

    @property
    def stderr(self) -> str:
        """The text that the process has written to stderr."""
        return self.command_obj.output("stderr")

    def stream_log(
        self, stream: Stream, position: int | None = None
    ) -> AsyncIterator[tuple[int, str]]:
        """Yield the lines of `stdout` or `stderr` as they are written, each with the position after
        it, at which another call may continue.

        Args:
            stream: `stdout` or `stderr`.
            position: The position to start at; None for the beginning.
        """
        return self.command_obj.stream_log(stream, position)

    def cleanup(self) -> None:
        """Remove the files of the output. Does not stop the process."""
        self.command_obj.cleanup()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._run.pathspec}: {self.status}>"


class ExecutingRun(ExecutingProcess):
    """A run and the process that executes it."""

    @property
    def run(self) -> Run:
        """The client object of the run."""
        return self._run


class ExecutingTask(ExecutingProcess):
    """A task of `spin` and the process that executes it."""

    def __init__(self, command_obj: RunningCommand, run: Run, step: str) -> None:
        super().__init__(command_obj, run)
        self._step = step

    @property
    def task(self) -> Task:
        """The client object of the task; raises NotFound if the task has not started."""
        return next(iter(self._run[self._step]))  # type: ignore[no-any-return]


class Runner(FlowCommands):
    """Runs the flow of a file, each time in a new child process.

        with Runner("flow.py", pylint=False) as runner:
            result = runner.run(alpha=0.5, tags=["a"], max_workers=4)
            print(result.run.data.total)

    `show_output` copies the output of `run`, `resume` and `spin`, `env` adds environment variables,
    `cwd` is the working directory. A command of the asynchronous methods must start its run within
    `file_read_timeout` seconds. All other keywords are options before the command (`pylint`,
    `with_`, `branch`, ...). Raises FlowFileError if the file does not exist.

    The methods take the options of their command by name, and the flow's parameters. They raise
    InvalidInput if an option does not exist, and CommandFailed if no run was started. The failure
    of a run raises no error: see `status` and `returncode`.
    """

    # ------------------------------------------------------------ until the run has ended

    def run(self, **kwargs: Any) -> ExecutingRun:
        """Run the flow, and wait until the run has ended.

        Args:
            **kwargs: The options of `run`, and the flow's parameters.

        Returns:
            The run and its process.
        """
        return ExecutingRun(*self._to_the_end("run", [], kwargs))

    def resume(self, **kwargs: Any) -> ExecutingRun:
        """Resume a run (`origin_run_id`, by default the latest), and wait until the new run has
        ended.

        Args:
            **kwargs: The options of `resume`, and the parameters to change.

        Returns:
            The new run and its process.
        """
        return ExecutingRun(*self._to_the_end("resume", [], kwargs))

    def spin(self, pathspec: str, **kwargs: Any) -> ExecutingTask:
        """Run one step again, and wait until it has ended.

        Args:
            pathspec: `step`, `run/step` or `run/step/task`.
            **kwargs: The options of `spin`.

        Returns:
            The task and its process.
        """
        return _spun(pathspec, *self._to_the_end("spin", [pathspec], kwargs))

    # ------------------------------------------------------------ until the run has started

    async def async_run(self, **kwargs: Any) -> ExecutingRun:
        """Start a run of the flow.

        Args:
            **kwargs: The options of `run`, and the flow's parameters.

        Returns:
            The run and its process, once the run has started.
        """
        return ExecutingRun(*await self._begun("run", [], kwargs))

    async def async_resume(self, **kwargs: Any) -> ExecutingRun:
        """Resume a run.

        Args:
            **kwargs: The options of `resume`, and the parameters to change.

        Returns:
            The new run and its process, once the run has started.
        """
        return ExecutingRun(*await self._begun("resume", [], kwargs))

    async def async_spin(self, pathspec: str, **kwargs: Any) -> ExecutingTask:
        """Run one step again.

        Args:
            pathspec: `step`, `run/step` or `run/step/task`.
            **kwargs: The options of `spin`.

        Returns:
            The task and its process, once its run has started.
        """
        return _spun(pathspec, *await self._begun("spin", [pathspec], kwargs))

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
            # In a thread: it may import the flow's file to read its options.
            start = in_thread(self._start, name, arguments, kwargs, announcement)
            starting = asyncio.get_running_loop().create_task(start)
            attributes = b""
            try:
                command = await asyncio.shield(starting)
                attributes = await announcement.wait(command.process, self.file_read_timeout)
            finally:
                if not attributes:  # also if this call is cancelled: nobody knows the run
                    command = await starting
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
    """Return the run that the command has started; raises CommandFailed if it has not."""
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
    return ExecutingTask(command, run, parts[0] if len(parts) == 1 else parts[1])
