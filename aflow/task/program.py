"""The user's program, described as plain values, and run again in another process.

A task runs the program from its first line to `MyFlow()`, as a fresh interpreter would. How it does
so depends on how the program was started:

`main`     `python flow.py run`, `aflow run flow.py`, `python -m package.flow run`: the file runs as
           `__main__`, including its guarded block, until it calls `MyFlow()`.
`script`   a program that calls `aflow.run` or a Coordinator with a class that it defines: the file
           runs under another name, so that its guarded block is skipped, and becomes `__main__`
           afterwards, as in multiprocessing.
`module`   the class is in a module that the program has imported: that module is imported.
`pickle`   a class without a file (in a notebook) is sent as bytes of cloudpickle.
"""

from __future__ import annotations

import ast
import builtins
import errno
import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from importlib.machinery import PathFinder, SourceFileLoader
from types import CodeType, FrameType, ModuleType
from typing import TYPE_CHECKING, Any

from aflow._core.modules import file_of, found_at
from aflow._core.records import NamedTuple
from aflow._core.shadowed import keep_hidden_beside, keep_importable
from aflow.errors import InvalidFlow, InvalidInput

if TYPE_CHECKING:
    from aflow.flow.definition import FlowDefinition

_DEEPEST = 20  # maximum nesting of packages
ALIAS = "__aflow_main__"  # `__name__` of a program that runs without its guarded block


class LoadRequest(NamedTuple):
    """How another process loads a flow.

    `source` is the result of `program_of`. `configs` are pickled values, which only the process
    that loads the flow unpickles. `graph` is the graph as plain values. `kept` lists the decorators
    that some steps keep (a step that is spun). `imported` are the imports of the program's first
    run (preload.py); None if it has not run on this machine.
    """

    source: dict[str, Any]
    decospecs: list[str]
    configs: bytes | None
    is_metaflow: bool
    graph: dict[str, Any] | None = None
    kept: dict[str, list[str]] | None = None
    imported: dict[str, Any] | None = None


class Started(NamedTuple):
    """How the program was started whose `MyFlow()` this process has reached.

    `module` is the name after `-m`, None for a file. `folder` and `environment` are those at the
    start. `modules` are the names of the modules that the program has imported. `root` is the
    folder in which the module was found, unless it is `folder`.
    """

    flow: type
    argv: list[str]
    module: str | None
    folder: str | None
    environment: dict[str, str]
    modules: list[str]
    root: str | None = None


_started: Started | None = None


def note_start(started: Started) -> None:
    """Record that this process runs the user's program as `__main__` and has reached `MyFlow()`.

    Args:
        started: How the program was started.
    """
    global _started
    _started = started


def started() -> Started | None:
    """Return how the user's program was started; None if this process runs another program."""
    return _started


_hosted: str | None = None  # the program that this process runs for a task


def host(file: str | None) -> None:
    """Record that this process runs the program of this file for a task.

    Args:
        file: The path of the program's file; None while its step runs, which may start runs.
    """
    global _hosted
    _hosted = file


def check_may_begin() -> None:
    """Check that the program may start a run.

    A program that runs for a task may not, since every task of the new run would start another run.

    Raises:
        InvalidInput: If the program runs for a task.
    """
    if _hosted is not None:
        raise InvalidInput(
            f"{_hosted} begins a run, and each task of that run would begin another one: put what "
            'begins it below `if __name__ == "__main__":`.'
        )


def request_of(
    definition: FlowDefinition,
    decospecs: Sequence[str] = (),
    imported: dict[str, Any] | None = None,
    spun: str | None = None,
) -> LoadRequest:
    """Return how another process loads the flow, as plain values.

    Args:
        definition: The flow: its class, steps, parameters and decorators.
        decospecs: The decorators that were given by `--with`.
        imported: The imports of the file's first run; None if they are unknown.
        spun: The step that `aflow spin` runs, which keeps exactly its decorators in this process;
            None for none.
    """
    left = (
        [] if spun is None else [each.decorator_name for each in definition.steps[spun].decorators]
    )
    return LoadRequest(
        source=program_of(definition.cls),
        decospecs=list(decospecs),
        configs=_configs_of(definition),
        is_metaflow=stands_for_metaflow(),
        graph=definition.graph.as_dict(),
        kept=None if spun is None else {spun: left},
        imported=imported,
    )


def stands_for_metaflow() -> bool:
    """Return whether aflow replaces Metaflow in this process."""
    compat = sys.modules.get("aflow.compat.metaflow")
    return compat is not None and compat.is_installed()


def _configs_of(definition: FlowDefinition) -> bytes | None:
    """Return the pickled values of the configs; parsers may return values of any types."""
    if definition.config_values is None:
        return None
    import cloudpickle  # rarely needed, and slow to import

    values: bytes = cloudpickle.dumps(dict(definition.config_values))
    return values


# ------------------------------------------------------------------ describing the program


def program_of(cls: type) -> dict[str, Any]:
    """Return the program that defines a flow class, as plain values; see `Program`."""
    main = sys.modules["__main__"]
    if _started is not None and _started.flow is cls and (file := file_of(main)):
        return {
            "kind": "main",
            "file": file,
            "module": _started.module or "__main__",
            "name": cls.__qualname__,
            "argv": _started.argv,
            "flags": _flags(_argv_of(_started.module or "__main__", _started.argv)),
            **({} if _started.root is None else {"root": _started.root}),
        }
    source = source_of(cls)
    around = {"argv": [*sys.argv], "path": [*sys.path], "command": [*sys.orig_argv]}
    if "pickle" in source:
        return {"kind": "pickle", **source, **around}
    kind = "script" if source["module"] == "__main__" else "module"
    return {"kind": kind, **source, **around}


def _argv_of(module: str, argv: Sequence[str]) -> list[str]:
    """Return the arguments that follow the options of the interpreter."""
    return [*argv] if module == "__main__" else ["-m", module, *argv[1:]]


def _flags(arguments: Sequence[str]) -> list[str]:
    """Return the options of this interpreter, if it was started with these arguments."""
    options = sys.orig_argv[1 : -len(arguments)]
    is_plain = sys.orig_argv[-len(arguments) :] == [*arguments] and "-m" not in options
    return options if is_plain and (not options or options[0].startswith("-")) else []


def source_of(made: Any) -> dict[str, Any]:
    """Return where a class or a function is defined, as plain values; see `class_from`.

    Args:
        made: The class or function.
    """
    home, name = getattr(made, "__module__", None), getattr(made, "__qualname__", "")
    module = sys.modules.get(home or "")
    file = file_of(module)
    if file is None or found_at(module, name) is not made:
        import cloudpickle  # rarely needed, and slow to import

        return {"pickle": cloudpickle.dumps(made)}
    return {"file": os.path.abspath(file), "module": home, "name": name}


def class_from(source: dict[str, Any], code: CodeType | None = None) -> Any:
    """Return the class or function that `source_of` or `program_of` described.

    The guarded block of its program does not run.

    Args:
        source: The plain values that describe it.
        code: The code of its file when the run started; None to read the file.
    """
    if "pickle" in source:
        import pickle

        return pickle.loads(source["pickle"])
    if source["module"] == "__main__":
        return found_at(_run_under_alias(source["file"], None), source["name"])
    return found_at(_import(source["file"], source["module"], code), source["name"])


def _import(file: str, name: str, code: CodeType | None) -> ModuleType:
    """Import a module by name if that finds the same file, else from the file.

    Unless `code` is None, it runs in place of the code in the file.
    """
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):  # its package cannot be found from here
        spec = None
    if spec is not None and spec.origin and _is_same(spec.origin, file):
        if code is None or name in sys.modules:  # its package has imported it
            return importlib.import_module(name)
    else:
        spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    if code is None:
        spec.loader.exec_module(module)
        return module
    exec(code, vars(module))  # noqa: S102 -- the user's own module
    package, _, last = name.rpartition(".")
    if package in sys.modules:
        setattr(sys.modules[package], last, module)
    return module


def _is_same(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:  # in an archive, or removed
        return os.path.abspath(one) == os.path.abspath(other)


def placed(source: dict[str, Any], folder: os.PathLike[str], script: str) -> dict[str, Any]:
    """Return the same program for a machine that has its code in this folder.

    Args:
        source: The plain values that describe it.
        folder: The folder.
        script: The name of the flow's file in the code package.
    """
    where = os.fspath(folder)
    return {**source, "file": os.path.join(where, script), "root": where}


def packaged(request: LoadRequest, *, is_here: bool = True) -> LoadRequest:
    """Return the request for an interpreter with other packages.

    Of the entries of sys.path, it keeps only the user's folders, and none on another machine.

    Args:
        request: How another process loads the flow.
        is_here: Whether the interpreter is on this machine.
    """
    source = {**request.source, "packaged": True}
    if "path" in source and not is_here:
        source["path"] = []
    elif "path" in source:
        source["path"] = [
            each
            for each in source["path"]
            if not is_library(os.path.join(each, "_")) and os.path.exists(each or os.curdir)
        ]
    return request._replace(source=source, imported=None)


def for_later(request: LoadRequest, script: str) -> LoadRequest:
    """Return the request for later runs, independent of the command that deploys the flow.

    Args:
        request: How another process loads the flow.
        script: The name of the flow's file in the code package.
    """
    source = request.source
    if "argv" in source:
        source = {**source, "argv": [script], "flags": [], "path": []}
        source.pop("command", None)
    return request._replace(source=source)


# ------------------------------------------------------------------ running it


class Program:
    """A user's program that forks of this process run.

    `source` is the result of `program_of`. `path` is the sys.path of a fresh interpreter, without
    the folder of a script.
    """

    def __init__(self, source: dict[str, Any], path: Sequence[str]) -> None:
        self.source = source
        self._path = list(path)
        self._code: CodeType | None = None

    @property
    def flow(self) -> str:
        """The qualified name of the flow's class; empty for a pickled class."""
        return str(self.source.get("name", ""))

    def compile(self, text: str | None = None) -> None:
        """Compile the file, and import the modules that files next to it would hide.

        Both are done once, for all processes that are forked from this one. Errors of the file are
        raised when it runs.

        Args:
            text: Source code to compile instead of the file; None to read the file.
        """
        if text is not None:
            self._code = compile(text, self.source["file"], "exec", dont_inherit=True)
            return
        file = self.source.get("file")
        if file:  # programs for which this is impossible were rejected at their start
            keep_hidden_beside(file, self.source.get("root") or _folder_of(file))
        if self.source["kind"] != "pickle":
            try:
                self._code = _compiled(self.source["file"])
            except (OSError, SyntaxError, ValueError):
                self._code = None

    @property
    def _argv(self) -> list[str]:
        first, *rest = self.source["argv"]
        return [self.source["file"] if "root" in self.source else first, *rest]

    @property
    def _command(self) -> list[str]:
        """The command line of an equivalent interpreter."""
        return [sys.executable, *self.source["flags"], *_argv_of(self.source["module"], self._argv)]

    def run(self) -> Any:
        """Run the program in this process, up to its end. Raises all exceptions of the program.

        Returns:
            The flow's class, if the program has not called it itself.
        """
        kind = self.source["kind"]
        if kind == "main":
            sys.orig_argv[:] = self._command
            module = run_as_main(
                self.source["file"],
                self._argv,
                self._path,
                None if self.source["module"] == "__main__" else self.source["module"],
                self._code,
                self.source.get("root"),
            )
            return found_at(module, self.source["name"])
        root = self.source.get("root")
        sys.argv[:] = self.source["argv"]
        sys.orig_argv[:] = self.source.get("command") or [sys.executable, *sys.argv]
        if root is not None:
            sys.path[:] = [root, *self._path]
        elif self.source.get("packaged"):
            sys.path[:] = [*self.source["path"], *self._path]
        else:
            sys.path[:] = self.source["path"]
        become_main(ModuleType("__main__"))
        if kind == "script":
            module = _run_under_alias(self.source["file"], self._code)
            return found_at(module, self.source["name"])
        return class_from(self.source, self._code)


def run_as_main(
    file: str,
    argv: Sequence[str],
    path: Sequence[str],
    module: str | None = None,
    code: CodeType | None = None,
    root: str | None = None,
) -> ModuleType:
    """Run a file as `python` does, or a module as `python -m` does.

    `__main__`, sys.argv and sys.path are set accordingly. Raises all exceptions of the program.

    Args:
        file: The path of the program's file.
        argv: sys.argv of the program.
        path: sys.path of the program, without its own folder.
        module: The name of the module, as for `python -m`; None for a file.
        code: The compiled file; None to compile it.
        root: The folder that replaces the working folder; None for the working folder itself.

    Returns:
        The module, when it has ended.
    """
    sys.argv[:] = argv
    main = ModuleType("__main__")
    if module is not None:
        return _run_module(main, module, path, root or os.getcwd(), code)
    if code is None and not os.path.exists(file):
        return _run_archive(main, file, path)
    folder = _folder_of(file)
    keep_importable(os.path.basename(file).removesuffix(".py"), folder)
    sys.path[:] = path if sys.flags.safe_path else [folder, *path]
    _set_up(main, "__main__", file)
    become_main(main)
    exec(code or _compiled(file), vars(main))  # noqa: S102 -- the user's own program
    return main


def become_main(module: ModuleType) -> None:
    """Make this module the `__main__` of the process.

    If multiprocessing was imported before, it has kept the previous main module, to unpickle the
    results of spawned processes.

    Args:
        module: The module that becomes `__main__`.
    """
    sys.modules["__main__"] = module
    if "__mp_main__" in sys.modules:
        sys.modules["__mp_main__"] = module


def _folder_of(file: str) -> str:
    return os.path.dirname(os.path.realpath(file))


def _run_module(
    main: ModuleType, name: str, path: Sequence[str], root: str, code: CodeType | None
) -> ModuleType:
    import runpy  # the implementation of `-m`

    keep_importable(name.partition(".")[0], root)
    vars(main).update(__annotations__={}, __builtins__=builtins)
    become_main(main)
    sys.path[:] = path if sys.flags.safe_path else [root, *path]
    # A module of the standard library with this name may be imported already; `-m` looks for the
    # program before that.
    hidden = sys.modules.pop(name, None)
    try:
        spec: Any = None if code is None else importlib.util.find_spec(name)
        if spec is None:
            _, spec, code = runpy._get_module_details(name)  # type: ignore[attr-defined]
    finally:
        if hidden is not None:
            sys.modules[name] = hidden
    sys.argv[0] = spec.origin
    runpy._run_code(code, vars(main), None, "__main__", spec)  # type: ignore[attr-defined]
    return main


def _run_archive(main: ModuleType, file: str, path: Sequence[str]) -> ModuleType:
    """Run an archive (`python program.pyz`) whose `__main__` is this file."""
    import pkgutil
    import runpy

    archive = _archive_of(file)
    importer: Any = None if archive is None else pkgutil.get_importer(archive)
    spec = None if importer is None else importer.find_spec("__main__")
    if archive is None or spec is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), file)
    vars(main).update(__annotations__={}, __builtins__=builtins)
    become_main(main)
    sys.path[:] = [archive, *path]
    runpy._run_code(  # type: ignore[attr-defined]
        spec.loader.get_code("__main__"), vars(main), None, "__main__", spec
    )
    return main


def _archive_of(file: str) -> str | None:
    """Return the archive (zipapp, or wheel on sys.path) that contains a file; None if none does."""
    while file and not os.path.exists(file):
        folder = os.path.dirname(file)
        file = "" if folder == file else folder
    return file if os.path.isfile(file) else None


def _set_up(module: ModuleType, name: str, file: str) -> None:
    """Set the attributes that Python gives to a program that is a file."""
    vars(module).update(
        __name__=name,
        __doc__=None,
        __package__=None,
        __loader__=SourceFileLoader(name, file),
        __spec__=None,
        __annotations__={},
        __builtins__=builtins,
        __file__=file,
        __cached__=None,
    )


def _run_under_alias(file: str, code: CodeType | None) -> ModuleType:
    """Run a file without its guarded block; it is `__main__` while and after it runs."""
    module = ModuleType(ALIAS)
    _set_up(module, ALIAS, file)
    sys.modules[ALIAS] = module
    become_main(module)
    exec(code or _compiled(file), vars(module))  # noqa: S102 -- the user's own program
    _rename(module)
    return module


def _rename(module: ModuleType) -> None:
    """Set `__module__` of all definitions in the file to `__main__`, as in the original program.

    Pickles of either process then refer to the same names.
    """
    module.__name__ = "__main__"
    todo: list[Any] = [*vars(module).values()]
    seen: set[int] = set()
    while todo:
        each = todo.pop()
        if id(each) in seen or getattr(each, "__module__", None) != ALIAS:
            continue
        seen.add(id(each))
        if isinstance(each, type):
            todo += vars(each).values()
        try:
            each.__module__ = "__main__"
        except (AttributeError, TypeError):  # an instance, which has the attribute from its class
            continue


def package_of(file: str) -> tuple[str, str] | None:
    """Return how to run a file that works only as a module of its package.

    Such a file has relative imports, or imports from its package, which is not on sys.path.

    Args:
        file: The path of the file.

    Returns:
        The folder that contains the package, and the module's name; None for any other file.
    """
    folder, base = os.path.split(os.path.abspath(file))
    names = [base.removesuffix(".py")]
    while os.path.isfile(os.path.join(folder, "__init__.py")) and len(names) < _DEEPEST:
        folder, name = os.path.split(folder)
        names.insert(0, name)
    if len(names) == 1 or not all(map(str.isidentifier, names)):
        return None
    try:
        with open(file, "rb") as opened:
            tree = ast.parse(opened.read())
    except (OSError, SyntaxError, ValueError):  # running the file reports it
        return None
    return (folder, ".".join(names)) if _imports_from(tree, names[0]) else None


def _imports_from(tree: ast.AST, package: str) -> bool:
    """Return whether the code imports from its package, which cannot be found otherwise."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            return True
        found = [node.module] if isinstance(node, ast.ImportFrom) else []
        if isinstance(node, ast.Import):
            found = [each.name for each in node.names]
        if any((name or "").partition(".")[0] == package for name in found):
            return PathFinder.find_spec(package, sys.path[1:]) is None
    return False


def _compiled(file: str) -> CodeType:
    with open(file, "rb") as opened:
        return compile(opened.read(), file, "exec", dont_inherit=True)


# ------------------------------------------------------------------ the current program


def program_in(frame: FrameType | None) -> ModuleType | None:
    """Return `__main__` if this frame was called by the top level of a user's program.

    Args:
        frame: The frame of the call.

    Returns:
        None under a tool (pytest, a console script), or if there is no file.
    """
    main = sys.modules.get("__main__")
    file = file_of(main)
    if main is None or not file or is_library(file):
        return None
    if not os.path.isfile(file) and _archive_of(file) is None:
        return None
    while frame is not None:
        if frame.f_globals is vars(main) and frame.f_code.co_name == "<module>":
            return main
        frame = frame.f_back
    return None


def is_library(file: str) -> bool:
    """Return whether a file belongs to Python or an installed package, rather than to the user.

    Args:
        file: The path of the file.
    """
    return os.path.abspath(file).startswith(library_folders())


def library_folders() -> tuple[str, ...]:
    """Return the folders of Python and of installed packages, with and without resolved links.

    Each ends with a separator.
    """
    global _folders
    if not _folders:
        import site

        # The same as in sysconfig, which would load all build variables of Python.
        library = os.path.dirname(os.__file__)
        of_prefix = os.path.join(sys.prefix, sys.platlibdir, os.path.basename(library))
        scripts = os.path.join(sys.prefix, "bin")
        user = site.getusersitepackages() if site.ENABLE_USER_SITE else None
        every = [library, of_prefix, *site.getsitepackages(), scripts, user]
        both = {path for each in every if each for path in (each, os.path.realpath(each))}
        _folders = tuple(os.path.join(each, "") for each in both)
    return _folders


_folders: tuple[str, ...] = ()


def check_is_flow(cls: object, source: dict[str, Any]) -> Any:
    """Return the flow's class.

    Args:
        source: The plain values that describe the program.

    Raises:
        InvalidFlow: If the program no longer defines it.
    """
    if not isinstance(cls, type):
        raise InvalidFlow(
            f"{source.get('file')} neither calls the flow {source.get('name')} nor holds it: it "
            "was another file when the run began."
        )
    return cls
