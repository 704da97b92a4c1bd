"""NBRunner and NBDeployer: write a flow from a notebook cell to a file, and run or deploy it."""

from __future__ import annotations

import ast
import inspect
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aflow.errors import FlowFileError
from aflow.flow.spec import FlowSpec
from aflow.runner.command import FlowCommands, RunningCommand
from aflow.runner.deployer import Deployer
from aflow.runner.runner import Runner
from aflow.storage.names import MAIN, written_by_main

if TYPE_CHECKING:
    from aflow.client import Run


class _OfCell(FlowCommands):
    """Commands of a flow whose class is in a cell of this notebook.

    The cell up to the end of the class is written to a file in `base_dir` (by default the working
    directory), which is run. Raises FlowFileError if the source of the class is not available.
    """

    def __init__(
        self,
        flow: type[FlowSpec],
        show_output: bool = True,
        profile: str | None = None,
        env: Mapping[str, str] | None = None,
        base_dir: str | os.PathLike[str] | None = None,
        **rest: Any,
    ) -> None:
        self.flow = flow
        self._source = flow_file_of(flow)
        folder = Path.cwd() if base_dir is None else Path(base_dir)
        try:
            descriptor, path = tempfile.mkstemp(".py", flow.__name__, folder, text=True)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(self._source)
        except OSError as error:
            raise FlowFileError(
                f"The flow cannot be written to a file in {folder}: {error.strerror}."
            ) from error
        if flow.__module__ == MAIN:
            written_by_main(path)
        # Without the kernel's own variable: a server that a flow starts would watch the wrong
        # process.
        env = {"JPY_PARENT_PID": "", **(env or {})}
        super().__init__(path, show_output, profile, env, folder, **rest)

    def _command(self, *command: Any) -> RunningCommand:
        if not os.path.exists(self.flow_file):  # `cleanup` removed it after an earlier command
            Path(self.flow_file).write_text(self._source, "utf-8")
        return super()._command(*command)

    def cleanup(self) -> None:
        """Remove the flow's file and the files of all output. May be called twice."""
        Path(self.flow_file).unlink(missing_ok=True)
        super().cleanup()


class NBRunner(_OfCell, Runner):
    """Runs a flow whose class is in a cell of this notebook: `NBRunner(MyFlow).nbrun(alpha=0.5)`.

    The cell up to the end of the class is written to a file in `base_dir` (by default the working
    directory), which is run; the other arguments are those of Runner. The cell must contain all
    imports that the flow needs. Outside of a notebook the file of the class replaces the cell.

    Raises FlowFileError if the source of the class is not available.
    """

    @property
    def runner(self) -> Runner:
        """The runner of the flow's file."""
        return self

    def nbrun(self, **kwargs: Any) -> Run:
        """Run the flow, wait until the run has ended, and clean up.

        Args:
            **kwargs: The options of `run`, and the flow's parameters.

        Returns:
            The client object of the run.
        """
        with self:
            return self.run(**kwargs).run

    def nbresume(self, **kwargs: Any) -> Run:
        """Resume a run, wait until the new run has ended, and clean up.

        Args:
            **kwargs: The options of `resume`, and the parameters to change.

        Returns:
            The client object of the new run.
        """
        with self:
            return self.resume(**kwargs).run

    def nbspin(self, pathspec: str, **kwargs: Any) -> Any:
        """Run one step again, wait until it has ended, and clean up.

        Args:
            pathspec: `step`, `run/step` or `run/step/task`.
            **kwargs: The options of `spin`.

        Returns:
            The client object of the task.
        """
        with self:
            return self.spin(pathspec, **kwargs).task


class NBDeployer(_OfCell, Deployer):
    """Deploys a flow whose class is in a cell of this notebook, like NBRunner:
    `NBDeployer(MyFlow).step_functions().create()`. `cleanup` removes the file."""


def flow_file_of(flow: type[FlowSpec]) -> str:
    """Return the text of a file that runs the flow: the code before the class, the class, and a
    call of it.

    Args:
        flow: The class of the flow.

    Raises:
        FlowFileError: If no cell or file that defines the class was found.
    """
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
    """Yield texts that may define the class: the cells of the notebook, latest first, and its
    file."""
    ipython: Any = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    if shell is not None:
        for cell in reversed(shell.history_manager.input_hist_raw):
            yield without_magic(cell, shell.transform_cell)
    try:
        yield Path(inspect.getfile(flow)).read_text("utf-8")
    except (TypeError, OSError):  # the class has no file: the caller reports it
        return


def without_magic(cell: str, transform: Callable[[str], str]) -> str:
    """Return the cell without the syntax of notebooks (`%magic`, `!command`, `help?`).

    `transform` turns this syntax, and nothing else, into calls of `get_ipython()`: it ignores a `%`
    at the start of a line within an expression or a string. Statements with such a call become
    `pass`. If the cell starts with a `%%magic`, only the lines after it are used.

    Args:
        cell: The text of the cell.
        transform: IPython's function for this.
    """
    first, _, rest = cell.lstrip().partition("\n")
    if first.startswith("%%"):
        return "\n" + without_magic(rest, transform)
    text = transform(cell)
    lines = text.split("\n")
    for node in _for_the_notebook(text):
        assert node.end_lineno is not None
        start = lines[node.lineno - 1].encode()[: node.col_offset].decode()
        end = lines[node.end_lineno - 1].encode()[node.end_col_offset :].decode()
        blank = [""] * (node.end_lineno - node.lineno)
        lines[node.lineno - 1 : node.end_lineno] = [f"{start}pass{end}", *blank]
    return "\n".join(lines)


def _for_the_notebook(text: str) -> list[ast.stmt]:
    """Return the simple statements that call `get_ipython()`; none if the text is not Python."""
    tree = _parsed(text)
    found = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr | ast.Assign | ast.AnnAssign | ast.AugAssign)
        and any(_is_notebook_call(each) for each in ast.walk(node))
    ]
    # The last comes first, so that replacing it does not move the others.
    return sorted(found, key=lambda node: (node.lineno, node.col_offset), reverse=True)


def _is_notebook_call(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "get_ipython"
    )


def _parsed(text: str) -> ast.Module:
    """Parse a cell, which may use `await` at its top level. Returns an empty module if the text is
    not Python, as in a cell that never ran."""
    flags = ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
    try:
        tree = compile(text, "<cell>", "exec", flags, dont_inherit=True)
    except (SyntaxError, ValueError):
        return ast.Module([], [])
    assert isinstance(tree, ast.Module)
    return tree


def _end_of_class(text: str, name: str) -> int | None:
    """Return the last line of the class; None if the text does not define it."""
    body = _parsed(text).body
    ends = [
        each.end_lineno for each in body if isinstance(each, ast.ClassDef) and each.name == name
    ]
    return ends[-1] if ends else None
