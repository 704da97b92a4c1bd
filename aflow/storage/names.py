"""The classes and functions that pickles name, found in whatever program reads them.

A pickle names a class by module and name. In a task the flow's file is `__main__`, so what is
defined there is named `__main__.X`. A client, a notebook or a test is another program, whose
`__main__` is another file: `Names` finds the class there, in this order:

1. in `__main__`, if that is the same file (by its path or its content);
2. in a module of this program that has the same file;
3. in the code of the run (`CodeModules`), which is imported as `aflow_code_<key>.<module>`; imports
   of modules that stood beside the file lead into it as well.

So a class is one class within a program, and `is`, `==` and isinstance hold. What else a pickle
names is imported as usual, and looked for in the code of the run where that fails.
"""

from __future__ import annotations

import builtins
import importlib
import importlib.util
import io
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any, Protocol

from aflow._core.ids import blob_key
from aflow._core.modules import file_of, found_at
from aflow._core.private_folders import read_regular
from aflow._core.records import NamedTuple
from aflow.compat import metaflow
from aflow.errors import AflowError
from aflow.storage.base import Buffer

# The import of importlib.abc takes 4 ms in each command and each zygote: it imports tempfile,
# shutil and the compression libraries. What it has to offer at run time is SourceLoader's own base.
if TYPE_CHECKING:
    from importlib.abc import Loader, SourceLoader

    from aflow.storage.blobs import BlobStore
else:
    from importlib._bootstrap_external import SourceLoader

    Loader = object

PREFIX = "aflow_code_"
MAIN = "__main__"

_MISSING = object()


class ProgramFile(NamedTuple):
    """The file that ran as a run's program: its path, the sha256 of its content, and the name of
    its module, where it has one besides `__main__`."""

    file: str
    sha: str | None = None
    module: str | None = None

    @classmethod
    def of(cls, file: str, module: str | None) -> ProgramFile:
        """Return the program of this file, as it is now.

        Args:
            file: The path of the file; one that cannot be read has no digest.
            module: The name of the module; None where it is a file without one.
        """
        return cls(os.path.abspath(file), _sha_of(file), module)

    @property
    def stem(self) -> str:
        """The name that a script has as a module."""
        return os.path.basename(self.file).partition(".")[0]

    @property
    def place(self) -> tuple[str, str]:
        """The folder that modules are imported from, and the name of the file below it: the folder
        of a script, and for a module of a package the folder that holds the package."""
        path = (self.module or "").replace(".", "/")
        for name in (f"{path}.py", f"{path}/__init__.py"):
            if path and self.file.endswith(f"/{name}"):
                return self.file.removesuffix(f"/{name}") or "/", name
        return os.path.dirname(self.file), os.path.basename(self.file)

    def is_at(self, file: object) -> bool:
        """Return whether a module was made of this file: the same path, or the same content.

        Args:
            file: The `__file__` of the module; anything but a text for a module without one.
        """
        if not isinstance(file, str) or file.startswith(PREFIX):
            return False
        if os.path.abspath(file) == self.file or _is_same(file, self.file):
            return True
        return self.sha is not None and _sha_of(file) == self.sha


class Names:
    """Finds what the pickles of one run name. `code` gives the code of the run, when it is needed,
    or that of another key; None where there is none."""

    def __init__(
        self,
        program: ProgramFile,
        code: Callable[[str | None], CodeModules | None] = lambda key: None,
    ) -> None:
        self._program = program
        self._code = lru_cache(maxsize=None)(code)  # also that there is none
        # As the pickler ends short texts: with a code that keeps them for later.
        names = {MAIN, program.stem, (program.module or MAIN).rpartition(".")[2]}
        self._signs = [name.encode("utf-8", "surrogateescape") + b"\x94" for name in names]
        self._signs.append(PREFIX.encode())

    def concern(self, data: Buffer) -> bool:
        """Return whether the pickle may name what is not found where Python would look.

        Args:
            data: The pickle, which is searched but not loaded.
        """
        content = data if isinstance(data, bytes) else bytes(data)
        return any(sign in content for sign in self._signs)

    def find(self, module: str, name: str, usual: Callable[[str, str], Any]) -> Any:
        """Return the class or function; `usual` is Python's own way. Raises what that raises.

        Args:
            module: The name of the module, as the pickle has it.
            name: The qualified name within the module.
            usual: Python's own way to find it.
        """
        if module == MAIN or self._is_program(module):
            for each in self._programs():
                found = found_at(each, name, _MISSING)
                if found is not _MISSING:
                    return found
        if module == MAIN:
            code = self._code(None)
            return usual(module, name) if code is None else usual(code.main, name)
        if module.startswith(PREFIX):
            self._code(module.partition(".")[0].removeprefix(PREFIX))
            return usual(module, name)
        try:
            return usual(module, name)
        except (ImportError, AttributeError):
            code = self._code(None)
            if code is None or code.path_of(module) is None:
                raise
            return usual(f"{code.prefix}.{module}", name)

    def _is_program(self, module: str) -> bool:
        """Whether the module is the run's program, under another name than `__main__`."""
        if module == self._program.module:
            return True
        if module in sys.modules or module.rpartition(".")[2] != self._program.stem:
            return False
        try:
            spec = importlib.util.find_spec(module)
        except (ImportError, ValueError, AttributeError):
            return False
        return spec is not None and self._program.is_at(spec.origin)

    def _programs(self) -> Iterator[ModuleType]:
        """The modules of this process that are the run's program."""
        main = sys.modules.get(MAIN)
        if main is not None and (
            self._program.sha in _WRITTEN_BY_MAIN or self._program.is_at(file_of(main))
        ):
            yield main
        name = os.path.basename(self._program.file)
        for each in [*sys.modules.values()]:
            file = file_of(each)
            if file is None or not file.endswith(name) or each is main:
                continue
            if self._program.is_at(file):
                yield each


def written_by_main(file: str) -> None:
    """Note that this program, which has no file, has written what it holds to this file, as a
    notebook writes a cell: classes of the file are its own.

    Args:
        file: The path of the file, whose present content counts.
    """
    sha = _sha_of(file)
    if sha is not None:
        _WRITTEN_BY_MAIN.add(sha)


_WRITTEN_BY_MAIN: set[str] = set()  # sha256


def is_found_in_main(made: object) -> bool:
    """Return whether a class or function is found by its name in the program that runs, which is a
    file: others find it there, too.

    Args:
        made: A class or a function; anything else is not found.
    """
    main = sys.modules.get(MAIN)
    if getattr(made, "__module__", None) != MAIN or not file_of(main):
        return False
    name = getattr(made, "__qualname__", None)
    return isinstance(name, str) and found_at(main, name) is made


def _is_same(one: str, other: str) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False


def _sha_of(file: str) -> str | None:
    try:
        found = os.stat(file)
        return _hashed(file, found.st_mtime_ns, found.st_size)
    except OSError:
        return None


@lru_cache(maxsize=64)
def _hashed(file: str, changed_at: int, size: int) -> str:
    return str(_sha256(read_regular(file)).hexdigest())


def _sha256(data: bytes) -> Any:
    """As in hashlib, without OpenSSL, which takes longer to load than a file to be hashed."""
    try:
        found = importlib.import_module("_sha256" if sys.version_info < (3, 12) else "_sha2")
    except ImportError:  # this Python was built without it
        found = importlib.import_module("hashlib")
    return found.sha256(data)


# ------------------------------------------------------------------ the code of a run


class CodeFiles(Protocol):
    """The files of a run's code, by their names in it, with `/` between folders."""

    def is_file(self, name: str) -> bool:
        """Return whether there is a file of this name.

        Args:
            name: The path within the code, with `/` between folders.
        """

    def is_folder(self, name: str) -> bool:
        """Return whether there is a folder of this name, with something in it.

        Args:
            name: The path within the code, with `/` between folders.
        """

    def read(self, name: str) -> bytes:
        """Return the content of a file.

        Args:
            name: The path within the code, with `/` between folders.
        """


class _FilesOfPackage:
    """The files of a code package."""

    def __init__(self, data: Buffer) -> None:
        import tarfile  # few processes read code

        # Plain: a few bytes of an archive that is compressed can be gigabytes.
        self._archive = tarfile.open(fileobj=io.BytesIO(data), mode="r:")  # noqa: SIM115 -- open as long as we are
        self._members = {each.name: each for each in self._archive if each.isfile()}

    def is_file(self, name: str) -> bool:
        """Whether there is a file of this name."""
        return name in self._members

    def is_folder(self, name: str) -> bool:
        """Whether there is a folder of this name, with something in it."""
        return any(each.startswith(f"{name}/") for each in self._members)

    def read(self, name: str) -> bytes:
        """The content of a file."""
        file = self._archive.extractfile(self._members[name])
        assert file is not None, "it is a plain file"
        return file.read()


class _FilesIn:
    """The files below a folder."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def is_file(self, name: str) -> bool:
        """Whether there is a file of this name."""
        return os.path.isfile(os.path.join(self._folder, name))

    def is_folder(self, name: str) -> bool:
        """Whether there is a folder of this name."""
        return os.path.isdir(os.path.join(self._folder, name))

    def read(self, name: str) -> bytes:
        """The content of a file."""
        return read_regular(os.path.join(self._folder, name))


class CodeModules:
    """The code of a run as modules of this process. `key` names it; `script` is the file of the
    run's program in it, `module` the program's name where it has one."""

    def __init__(
        self, key: str, files: CodeFiles, script: str = "", module: str | None = None
    ) -> None:
        self.prefix = PREFIX + key
        self._files = files
        # A script may have a name that is none of a module, and dots in it.
        name = module or script.removesuffix(".py").replace(".", "_").replace("/", ".")
        self._script = script, name
        _CODES[self.prefix] = self
        if _FINDER not in sys.meta_path:
            sys.meta_path.append(_FINDER)

    @property
    def main(self) -> str:
        """The name of the module that is the run's program."""
        return f"{self.prefix}.{self._script[1]}"

    def path_of(self, module: str) -> str | None:
        """Return the file or folder of a module, by its name in the run; None where it has none.

        Args:
            module: The name of the module in the run.
        """
        if self._script[0] and module == self._script[1]:
            return self._script[0]
        path = module.replace(".", "/")
        for each in (f"{path}/__init__.py", f"{path}.py"):
            if self._files.is_file(each):
                return each
        return path if self._files.is_folder(path) else None

    def spec_of(self, module: str) -> ModuleSpec | None:
        """Return how the import system loads the module of this name in the run.

        Args:
            module: The name of the module in the run.
        """
        name = f"{self.prefix}.{module}" if module else self.prefix
        path = self.path_of(module) if module else ""
        if path is None:
            return None
        if not path.endswith(".py"):
            return ModuleSpec(name, _FolderLoader(), is_package=True)
        is_package = path.endswith("/__init__.py")
        origin = f"{self.prefix}/{path}"
        spec = ModuleSpec(name, _CodeLoader(self, path), origin=origin, is_package=is_package)
        spec.has_location = True  # so that it has a __file__, by which its source is found
        return spec

    def read(self, path: str) -> bytes:
        """Return the content of a file.

        Args:
            path: The path below the root of the code.
        """
        return self._files.read(path)

    def import_module(
        self,
        name: str,
        globals: Mapping[str, object] | None = None,
        locals: Mapping[str, object] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        """Return what `__import__` is in the code: modules that stood beside the program come from
        it.

        Args:
            name: The full name of the module, as `__import__` gets it.
            globals: The globals of the importing module.
            locals: Ignored, as Python does.
            fromlist: The names that are imported from it.
            level: How many packages up a relative import begins.
        """
        top = name.partition(".")[0]
        if level or top in sys.stdlib_module_names or self.path_of(top) is None:
            return builtins.__import__(name, globals, locals, fromlist or (), level)
        module = importlib.import_module(f"{self.prefix}.{name}")
        if not fromlist:
            return sys.modules[f"{self.prefix}.{top}"]
        for each in fromlist:
            if not hasattr(module, each) and self.path_of(f"{name}.{each}") is not None:
                importlib.import_module(f"{self.prefix}.{name}.{each}")
        return module


def code_in(
    blobs: BlobStore, key: str, script: str = "", module: str | None = None
) -> CodeModules | None:
    """Return the code package of this key as modules of this process; None where it cannot be read.

    Args:
        blobs: The blobs of the datastore, addressed by content.
        key: The key of the blob: the blake3 of its bytes in hex.
        script: The name of the program's file in the package.
        module: The name of the module; None where it is a file without one.
    """
    try:
        files = _FilesOfPackage(blobs.get(blob_key(key)))
    except (AflowError, OSError, ValueError):  # tarfile lets some of each out
        return None
    metaflow.install_if_missing()
    return CodeModules(key, files, script, module)


def code_beside(program: ProgramFile) -> CodeModules | None:
    """Return what stands beside the program's file now; None where it no longer exists.

    Args:
        program: The file of the program, as it was when it began.
    """
    if program.sha is None or not os.path.isfile(program.file):
        return None
    metaflow.install_if_missing()
    root, script = program.place
    return CodeModules(program.sha, _FilesIn(root), script, program.module)


class _CodeLoader(SourceLoader):
    """Loads a module from the code of a run, which is in no folder."""

    def __init__(self, code: CodeModules, path: str) -> None:
        self._code = code
        self._path = path

    def get_filename(self, fullname: str) -> str:
        """What tracebacks call the file."""
        return f"{self._code.prefix}/{self._path}"

    def get_data(self, path: str | bytes) -> bytes:
        """The source; there are no other files, and none compiled before."""
        if path != self.get_filename(""):
            raise OSError(f"there is no {path!r} in the code of a run")
        return self._code.read(self._path)

    def exec_module(self, module: ModuleType) -> None:
        """Run the source, whose imports lead into the code first."""
        from aflow.flow.spec import only_defined  # few processes load code

        own: Any = {**vars(builtins), "__import__": self._code.import_module}
        module.__dict__["__builtins__"] = own
        with only_defined():
            super().exec_module(module)


class _FolderLoader(Loader):
    """Makes a module of a folder without an __init__.py."""

    def create_module(self, spec: ModuleSpec) -> None:
        """An ordinary module is made."""

    def exec_module(self, module: ModuleType) -> None:
        """There is nothing to run."""


class _CodeFinder:
    """Finds the modules of the codes that are known here, also for pickles that name them."""

    def find_spec(
        self, fullname: str, path: object = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """How a module of a run's code is loaded; None for any other."""
        prefix, _, module = fullname.partition(".")
        code = _CODES.get(prefix)
        return None if code is None else code.spec_of(module)


_CODES: dict[str, CodeModules] = {}
_FINDER = _CodeFinder()
