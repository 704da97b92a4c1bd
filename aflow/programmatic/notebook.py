"""NBRunner and NBDeployer: a flow that was written in a cell of a notebook, used as a file."""

from __future__ import annotations

import ast
import inspect
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aflow.errors import FlowFileError
from aflow.flow.spec import FlowSpec
from aflow.programmatic.deployer import Deployer
from aflow.programmatic.runner import Runner

if TYPE_CHECKING:
    from aflow.client import Run
    from aflow.programmatic.executing import ExecutingRun, ExecutingTask


class NBRunner:
    """Runs a flow whose class is in a cell of this notebook: `NBRunner(MyFlow).nbrun(alpha=0.5)`.

    The cell up to the end of the class becomes a file in `base_dir` (else the working directory),
    which a Runner runs; the other arguments are Runner's. Imports that the flow needs have to
    stand in the same cell. Outside of a notebook the file of the class takes the cell's place.

    Raises FlowFileError where the source of the class cannot be had.
    """

    def __init__(
        self,
        flow: type[FlowSpec],
        show_output: bool = True,
        profile: str | None = None,
        env: Mapping[str, str] | None = None,
        base_dir: str | os.PathLike[str] | None = None,
        file_read_timeout: float = 3600,
        **top_level_kwargs: Any,
    ) -> None:
        self.flow = flow
        self.flow_file, folder = _write(flow, base_dir)
        self.runner = Runner(
            self.flow_file,
            show_output,
            profile,
            _environment(env),
            folder,
            file_read_timeout,
            **top_level_kwargs,
        )

    def nbrun(self, **kwargs: Any) -> Run:
        """Run the flow to its end and clean up; gives the client's object of the run."""
        try:
            return self.runner.run(**kwargs).run
        finally:
            self.cleanup()

    def nbresume(self, **kwargs: Any) -> Run:
        """Resume a run to its end and clean up; gives the client's object of the new run."""
        try:
            return self.runner.resume(**kwargs).run
        finally:
            self.cleanup()

    def nbspin(self, pathspec: str, **kwargs: Any) -> Any:
        """Run one step again and clean up; gives the client's object of the task."""
        try:
            return self.runner.spin(pathspec, **kwargs).task
        finally:
            self.cleanup()

    def run(self, **kwargs: Any) -> ExecutingRun:
        """Runner.run."""
        return self.runner.run(**kwargs)

    def resume(self, **kwargs: Any) -> ExecutingRun:
        """Runner.resume."""
        return self.runner.resume(**kwargs)

    def spin(self, pathspec: str, **kwargs: Any) -> ExecutingTask:
        """Runner.spin."""
        return self.runner.spin(pathspec, **kwargs)

    async def async_run(self, **kwargs: Any) -> ExecutingRun:
        """Runner.async_run."""
        return await self.runner.async_run(**kwargs)

    async def async_resume(self, **kwargs: Any) -> ExecutingRun:
        """Runner.async_resume."""
        return await self.runner.async_resume(**kwargs)

    async def async_spin(self, pathspec: str, **kwargs: Any) -> ExecutingTask:
        """Runner.async_spin."""
        return await self.runner.async_spin(pathspec, **kwargs)

    def cleanup(self) -> None:
        """Remove the flow's file and the files of all output. May be called twice."""
        Path(self.flow_file).unlink(missing_ok=True)
        self.runner.cleanup()


class NBDeployer(Deployer):
    """A Deployer of a flow whose class is in a cell of this notebook, as NBRunner takes it:
    `NBDeployer(MyFlow).step_functions().create()`. `cleanup` removes the file."""

    def __init__(
        self,
        flow: type[FlowSpec],
        show_output: bool = True,
        profile: str | None = None,
        env: Mapping[str, str] | None = None,
        base_dir: str | os.PathLike[str] | None = None,
        **top_level_kwargs: Any,
    ) -> None:
        self.flow = flow
        file, folder = _write(flow, base_dir)
        super().__init__(file, show_output, profile, _environment(env), folder, **top_level_kwargs)

    def cleanup(self) -> None:
        """Remove the flow's file. May be called twice."""
        Path(self.flow_file).unlink(missing_ok=True)


def _write(flow: type[FlowSpec], base_dir: str | os.PathLike[str] | None) -> tuple[str, Path]:
    """Write the flow's file; its path and the folder that it is in."""
    source = flow_file_of(flow)
    folder = Path(base_dir) if base_dir is not None else Path.cwd()
    descriptor, path = tempfile.mkstemp(".py", flow.__name__, folder, text=True)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(source)
    return path, folder


def _environment(env: Mapping[str, str] | None) -> dict[str, str]:
    # The kernel's own: a server that is started by a flow would watch the wrong process.
    return {"JPY_PARENT_PID": "", **(env or {})}


def flow_file_of(flow: type[FlowSpec]) -> str:
    """The text of a file that runs the flow: what stands before the class, the class, and its
    call. Raises FlowFileError."""
    for text in _sources(flow):
        end = _end_of_class(text, flow.__name__)
        if end is not None:
            lines = text.splitlines()[:end]
            return "\n".join(
                [*lines, "", 'if __name__ == "__main__":', f"    {flow.__name__}()", ""]
            )
    raise FlowFileError(
        f"The source of {flow.__name__} was found in no cell and no file: define the flow in a "
        "cell of its own, and run the cell again."
    )


def _sources(flow: type[FlowSpec]) -> Iterator[str]:
    """The texts that may hold the class: the cells of the notebook, latest first, or its file."""
    ipython: Any = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if shell is not None:
        yield from map(without_magic, reversed(shell.history_manager.input_hist_raw))
    try:
        yield Path(inspect.getfile(flow)).read_text("utf-8")
    except (TypeError, OSError):  # it is in no file: said by who asked
        return


def without_magic(cell: str) -> str:
    """The cell with its lines for the notebook alone (`%...`, `!...`, `?`) made empty."""
    lines = cell.splitlines()
    return "\n".join("" if line.lstrip().startswith(("%", "!", "?")) else line for line in lines)


def _end_of_class(text: str, name: str) -> int | None:
    """The last line of the class; None where the text has none of the name."""
    try:
        body = ast.parse(text).body
    except SyntaxError:  # another cell, which never ran
        return None
    ends = [
        each.end_lineno for each in body if isinstance(each, ast.ClassDef) and each.name == name
    ]
    return ends[-1] if ends else None
