"""What a Runner gives: a run, or one task, that a process executes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from aflow.client import Run, Task
    from aflow.programmatic.command import Command, Stream


class ExecutingProcess:
    """A command of a flow and the process that executes it. As a context, it removes the files of
    its output at the end."""

    def __init__(self, command_obj: Command, run: Run) -> None:
        self.command_obj = command_obj
        self._run = run

    async def wait(
        self,
        timeout: float | None = None,  # noqa: ASYNC109 -- the name that programs know it by
        stream: Stream | None = None,
    ) -> Self:
        """Wait for the end, printing `stdout` or `stderr` meanwhile if one is named; after
        `timeout` seconds the process is stopped, and `status` is `timeout`."""
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
        """The lines of `stdout` or `stderr` as they come, each with the position behind it: from
        there, another call goes on."""
        async for each in self.command_obj.stream_log(stream, position):
            yield each

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.command_obj.cleanup()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
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

    def __init__(self, command_obj: Command, run: Run, find: Callable[[Run], Task]) -> None:
        super().__init__(command_obj, run)
        self._find = find

    @property
    def task(self) -> Task:
        """The task, as the client sees it; raises NotFound if it has not begun."""
        return self._find(self._run)
