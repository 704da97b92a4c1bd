"""Load the flow class of `flow.py` or `flow.py:Name`.

To run a flow, its file is executed as Python does it: as `__main__`, including the code below
`if __name__ == "__main__"`, up to the call `MyFlow()`. To only inspect a flow, the file is
imported under its own name, with its folder on sys.path.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.machinery import SourceFileLoader
from pathlib import Path
from threading import RLock
from types import ModuleType
from typing import TYPE_CHECKING

from aflow._core.deferred import loaded
from aflow._core.modules import stated
from aflow._core.process import fill_descriptors
from aflow._core.shadowed import keep_hidden_beside
from aflow.errors import FlowFileError
from aflow.executors.local.zygote_start import environment_at_start, have_zygote, looks_like_a_run
from aflow.task.program import Started, note_start, package_of, program_in, run_as_main

if TYPE_CHECKING:
    from aflow.flow.spec import FlowSpec

_loading = False
_asked_for: str | None = None  # the name of the only flow that may start, if one was chosen
_root: str | None = None  # the folder that contains the package of the file, if it is in one
_begun = False  # whether the file has called a flow
_before: frozenset[str] = frozenset()  # modules that aflow imports anyway
_looking = RLock()  # held while a file is imported under a name that another thread would use, too


def is_target(argument: str) -> bool:
    """Return whether an argument of the command line is a flow file, judged by its suffix.

    Args:
        argument: The argument of the command line.
    """
    return _parted(argument) is not None and not argument.startswith("-")


def is_file(argument: str) -> bool:
    """Return whether an argument names a regular file, of a flow or not: `path[:Name]`.

    Args:
        argument: An argument of the command line that is not an option.
    """
    return _file_and_name(argument) is not None


def _file_and_name(argument: str) -> tuple[str, str | None] | None:
    if os.path.isfile(argument):
        return argument, None
    path, _, name = argument.rpartition(":")
    return (path, name) if name.isidentifier() and os.path.isfile(path) else None


def _path_and_name(target: str) -> tuple[str, str | None]:
    """Return the path of a flow's file, and the name of the flow if there is one. Raises
    FlowFileError if the target has no suffix of a flow file and is not a regular file."""
    parted = _parted(target) or _file_and_name(target)
    if parted is None:
        raise FlowFileError(f"{target!r} is not a flow file: give path/to/flow.py or flow.py:Name.")
    return parted


def _parted(argument: str) -> tuple[str, str | None] | None:
    """Return the path and the name of `path.py[:Name]`; None if the argument has another form."""
    # No regular expression: compiling one takes longer than this code.
    path, colon, name = argument.rpartition(":")
    if argument.endswith(".py"):
        path, name = argument, ""
    elif not colon or not name.replace("_", "a").isalnum():
        return None
    return (path, name or None) if path.endswith(".py") and path != ".py" else None


def note_own(names: Collection[str]) -> None:
    """Record modules that processes of tasks need not import for the program.

    Args:
        names: The names of the modules that aflow itself has imported so far.
    """
    global _before
    _before = frozenset(names)


def begins(
    flow: type[FlowSpec], argv: Sequence[str], folder: str | None, modules: Sequence[str]
) -> bool:
    """Return whether a call of this flow starts its command line. It does not if the file is only
    being imported, or if another flow was chosen; the caller then decides what the call does.

    Records how the program was started, and the modules that it had imported when it called its
    flow, because its tasks run it again. Starts the zygote if the arguments are those of a run.

    Args:
        flow: The class that is called.
        argv: The arguments of the command line.
        folder: The working directory at the start of the program; None if it is unknown.
        modules: The names of all imported modules.
    """
    global _begun
    if _loading or _asked_for not in (None, flow.__name__):
        return False
    _begun = True
    main = program_in(sys._getframe(1))
    if main is not None:
        spec = stated(main, "__spec__")
        _note_program(flow, argv, None if spec is None else spec.name, folder, modules)
    fill_descriptors()
    if looks_like_a_run(sys.argv[1:]):
        with suppress(OSError):  # no process can be started: the command tries again, and reports
            have_zygote()
    return True


def run_file(target: str, arguments: Sequence[str]) -> type[FlowSpec]:
    """Run a flow's file as `python path.py ARGUMENTS` does: the call of its flow runs the command
    line. Exceptions that the file raises after that call are not caught.

    Args:
        target: `path.py` or `path.py:Name`.
        arguments: The arguments of the command line.

    Returns:
        The flow's class, if the file does not call its flow.

    Raises:
        FlowFileError: If the file does not exist or fails before it has called its flow, or if it
            has several flows and none was chosen.
    """
    global _asked_for, _before, _root
    script, flow_name = _path_and_name(target)
    path = Path(script)
    _prepare(path)
    _asked_for = flow_name
    file = os.path.join(os.getcwd(), script)
    rest = sys.path if sys.flags.safe_path else sys.path[1:]
    argv, folder = [script, *arguments], os.getcwd()
    _root, name = package_of(file) or (None, None)
    _keep_importable(target, file, _root)
    _before = frozenset(loaded())
    try:
        with _errors_located(Path(file)):
            module = run_as_main(file, argv, [*rest], name, root=_root)
    except Exception as error:
        if not _begun:
            raise
        sys.excepthook(type(error), error, error.__traceback__)  # as Python does at exit
        sys.exit(1)
    modules = loaded()
    flow = _choose(module, path, flow_name)
    _note_program(flow, argv, name, folder, modules)
    return flow


def _note_program(
    flow: type[FlowSpec],
    argv: Sequence[str],
    module: str | None,
    folder: str | None,
    modules: Iterable[str],
) -> None:
    """Record how the program was started, and which modules it has imported itself."""
    note_start(
        Started(
            flow=flow,
            argv=[*argv],
            module=module,
            folder=folder,
            environment=environment_at_start(),
            modules=[each for each in modules if each not in _before],
            root=_root,
        )
    )


def _keep_importable(target: str, file: str, root: str | None) -> None:
    """Ensure that files next to the flow's file do not hide modules that aflow needs. Raises
    FlowFileError if the program cannot run there."""
    refusal = keep_hidden_beside(file, root or os.path.dirname(os.path.realpath(file)))
    if refusal is not None:
        raise FlowFileError(f"{target}: {refusal}")


def load_flow(target: str) -> type[FlowSpec]:
    """Return the flow class of `path.py[:Name]`.

    Args:
        target: `path.py` or `path.py:Name`.

    Raises:
        FlowFileError: If the file does not exist or cannot be imported, or if it has several
            flows and none was chosen.
    """
    script, flow_name = _path_and_name(target)
    path = Path(script)
    _prepare(path)
    found = package_of(str(path.resolve()))
    name = path.stem if found is None else found[1]
    return _choose(_import(path.resolve(), path, name), path, flow_name)


def look_into(path: Path) -> list[type[FlowSpec]]:
    """Return the flows of a file that no other flow in it derives from, for inspection. Leaves the
    program unchanged: it may have another module with the file's name.

    Args:
        path: The path of the file.

    Raises:
        FlowFileError: If the file cannot be imported, or has no flow.
    """
    from aflow.flow.spec import define

    _prepare(path)
    name = f"_aflow_looks_into_{path.stem}"
    with _looking:
        before = list(sys.path)
        try:
            own = _own_flows(_import(path.resolve(), path, name))
            flows = [own[key] for key in _leaves(own)]
            for flow in flows:
                define(flow)  # while the module can be inspected
        finally:
            sys.path[:] = before
            sys.modules.pop(name, None)
    if not flows:
        raise _no_flow(path)
    return flows


def _prepare(path: Path) -> None:
    """Let a file that imports Metaflow import aflow if Metaflow is not installed. Raises
    FlowFileError if the file cannot be read."""
    from aflow.compat.metaflow import install_if_missing

    if not path.exists():
        here = sorted(each.name for each in path.parent.glob("*.py"))[:8]
        hint = f" Files there: {', '.join(here)}." if here else ""
        raise FlowFileError(f"There is no file {path}.{hint}")
    if not path.is_file():
        what = "a folder" if path.is_dir() else "no regular file"
        raise FlowFileError(f"{path} is {what}, not a flow file.")
    if not os.access(path, os.R_OK):
        raise FlowFileError(f"{path} cannot be read: permission denied.")
    install_if_missing()


def _import(path: Path, shown: Path, name: str) -> ModuleType:
    global _loading
    if name in sys.modules:
        raise FlowFileError(
            f"{shown} has the name of a module that is in use ({name!r}): rename the file."
        )
    root, full = package_of(str(path)) or (str(path.parent), name)
    sys.path.insert(0, root)
    module = ModuleType(name)
    loader = SourceFileLoader(name, str(path))
    module.__loader__ = loader
    module.__file__ = str(path)
    if "." in full:
        module.__package__ = full.rpartition(".")[0]
        with _errors_located(path):
            import_module(module.__package__)
    sys.modules[name] = module
    _loading = True
    try:
        with _errors_located(path):
            loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    finally:
        _loading = False
    return module


@contextmanager
def _errors_located(path: Path) -> Iterator[None]:
    """Turn an exception of the file into a FlowFileError with its location; exceptions after the
    call of the flow are not changed."""
    try:
        yield
    except BaseException as error:
        text = None if _begun or isinstance(error, FlowFileError) else _located(error, path)
        if text is None:
            raise
        raise FlowFileError(text) from error


def _located(error: BaseException, path: Path) -> str | None:
    """Return location and reason of an error of a flow's file; None for one that must end aflow."""
    match error:
        case SyntaxError():
            source = f": {error.text.strip()}" if error.text else ""
            return f"{error.filename or path}, line {error.lineno}: {error.msg}{source}"
        case ModuleNotFoundError():
            return f"{_place(error, path)}: {_lacking(error)}"
        case SystemExit():
            return f"{_place(error, path)}: the file ends the program."
        case Exception():
            return f"{_place(error, path)}: {type(error).__name__}: {error}"
    return None


def _lacking(error: ModuleNotFoundError) -> str:
    from aflow.compat import metaflow

    if metaflow.is_installed() and str(error.name).startswith("metaflow."):
        return str(error)
    return (
        f"there is no module {error.name!r}. Install it for {sys.executable}, or correct the name."
    )


def _place(error: BaseException, path: Path) -> str:
    """Return the innermost line of the flow's file in the traceback of the error."""
    line = None
    frames = error.__traceback__
    while frames is not None:
        if frames.tb_frame.f_code.co_filename == str(path):
            line = frames.tb_lineno
        frames = frames.tb_next
    return f"{path}, line {line}" if line else str(path)


def _choose(module: ModuleType, path: Path, name: str | None) -> type[FlowSpec]:
    flows = _flows_of(module)
    if name is not None:
        if name not in flows:
            known = f"flows in it: {', '.join(flows)}" if flows else "there is no flow in it"
            raise FlowFileError(f"{path} holds no flow {name!r}; {known}.")
        return flows[name]
    own = _own_flows(module)
    leaves = _leaves(own)
    if not leaves:
        raise _no_flow(path)
    if len(leaves) > 1:
        raise FlowFileError(
            f"{path} holds several flows: {', '.join(leaves)}. Choose one: {path}:{leaves[0]}"
        )
    return own[leaves[0]]


def _own_flows(module: ModuleType) -> dict[str, type[FlowSpec]]:
    """Return the flows that the file defines; if it defines none, those that it imports."""
    flows = _flows_of(module)
    return {key: flow for key, flow in flows.items() if flow.__module__ == module.__name__} or flows


def _leaves(flows: dict[str, type[FlowSpec]]) -> list[str]:
    """Return the names of the flows that no other one derives from; base classes are not run."""

    def is_base(flow: type[FlowSpec]) -> bool:
        return any(each is not flow and issubclass(each, flow) for each in flows.values())

    return [key for key, flow in flows.items() if not is_base(flow)]


def _no_flow(path: Path) -> FlowFileError:
    return FlowFileError(f"{path} holds no flow: no class in it derives from FlowSpec.")


def _flows_of(module: ModuleType) -> dict[str, type[FlowSpec]]:
    from aflow.flow.spec import FlowSpec

    return {
        key: value
        for key, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, FlowSpec) and value is not FlowSpec
    }
