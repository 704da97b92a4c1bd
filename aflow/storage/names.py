"""Find the classes and functions that pickles refer to, in any program that loads them.

A pickle refers to a class by module and name. In a task the flow's file is `__main__`, so a class
defined in it is stored as `__main__.X`. A client, a notebook or a test is another program with
another `__main__`. There, `Names` looks for the class

1. in `__main__`, if that is the same file (by path or by content);
2. in any imported module that is the same file;
3. in the code package of the run (`CodeModules`), whose modules are imported as
   `aflow_code_<key>.<module>`. Their imports of modules next to the flow's file use the package,
   too.

So there is only one class object within a program, and `is`, `==` and isinstance work. References
to other modules are imported as usual, and from the code package if that fails.
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
from typing import TYPE_CHECKING, Any

from aflow._core.ids import blob_key
from aflow._core.modules import file_of, found_at
from aflow._core.private_folders import read_regular
from aflow._core.records import NamedTuple
from aflow.compat import metaflow
from aflow.errors import AflowError
from aflow.storage.base import Buffer

# Importing importlib.abc takes 4 ms in each command and each zygote: it imports tempfile, shutil
# and the compression libraries. At run time the base class of its SourceLoader is sufficient.
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
    """The main file of a run's program: its path, the sha256 of its content, and the name of its
    module if it has another one than `__main__`."""

    file: str
    sha: str | None = None
    module: str | None = None

    @classmethod
    def of(cls, file: str, module: str | None) -> ProgramFile:
        """Return the program of this file, with its current content.

        Args:
            file: The path of the file; the digest is None if it cannot be read.
            module: The name of the module; None if the file was run as a script.
        """
        return cls(os.path.abspath(file), _sha_of(file), module)

    @property
    def stem(self) -> str:
        """The name that the file would have as a top-level module."""
        return os.path.basename(self.file).partition(".")[0]

    @property
    def place(self) -> tuple[str, str]:
        """The import root of the program and the path of its file relative to that. The root is the
        folder of a script, or the folder that contains the top-level package of a module."""
        path = (self.module or "").replace(".", "/")
        for name in (f"{path}.py", f"{path}/__init__.py"):
            if path and self.file.endswith(f"/{name}"):
                return self.file.removesuffix(f"/{name}") or "/", name
        return os.path.dirname(self.file), os.path.basename(self.file)

    def is_at(self, file: object) -> bool:
        """Return whether a module was loaded from this file: the same path, or the same content.

        Args:
            file: The `__file__` of the module; not a string if the module has none.
        """
        if not isinstance(file, str) or file.startswith(PREFIX):
            return False
        if os.path.abspath(file) == self.file or _is_same(file, self.file):
            return True
        return self.sha is not None and _sha_of(file) == self.sha


class Names:
    """Finds the classes and functions that the pickles of one run refer to. `code` loads the code
    package of a key (None: the run's own); it returns None if there is none."""

    def __init__(
        self,
        program: ProgramFile,
        code: Callable[[str | None], CodeModules | None] = lambda key: None,
    ) -> None:
        self._program = program
        self._code = lru_cache(maxsize=None)(code)  # caches None, too
        # In a pickle a module's name is followed by the opcode MEMOIZE, 0x94.
        names = {MAIN, program.stem, (program.module or MAIN).rpartition(".")[2]}
        self._signs = [name.encode("utf-8", "surrogateescape") + b"\x94" for name in names]
        self._signs.append(PREFIX.encode())

    def concern(self, data: Buffer) -> bool:
        """Return whether the pickle may refer to names that Python's import system cannot find.

        Args:
            data: The pickle, which is searched but not loaded.
        """
        content = data if isinstance(data, bytes) else bytes(data)
        return any(sign in content for sign in self._signs)

    def find(self, module: str, name: str, usual: Callable[[str, str], Any]) -> Any:
        """Return the class or function. Exceptions of `usual` propagate if there is no other way.

        Args:
            module: The name of the module in the pickle.
            name: The qualified name within the module.
            usual: The `find_class` of the standard unpickler.
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
        """Return whether the module is the run's program, under another name than `__main__`."""
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
        """Yield the modules of this process that were loaded from the file of the run's program."""
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
    """Record that the file is a copy of code in `__main__`, as when a notebook writes a cell to a
    file: classes of the file are looked up in `__main__`.

    Args:
        file: The path of the file; it is identified by its current content.
    """
    sha = _sha_of(file)
    if sha is not None:
        _WRITTEN_BY_MAIN.add(sha)


_WRITTEN_BY_MAIN: set[str] = set()  # sha256 of the content


def is_found_in_main(made: object) -> bool:
    """Return whether a class or function can be found by its name in `__main__`, and `__main__` has
    a file: then other processes find it there, too.

    Args:
        made: A class or a function; False is returned for anything else.
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
    """Return hashlib's sha256 without loading OpenSSL, which takes longer than hashing a file."""
    try:
        found = importlib.import_module("_sha256" if sys.version_info < (3, 12) else "_sha2")
    except ImportError:  # this Python was built without the module
        found = importlib.import_module("hashlib")
    return found.sha256(data)


# ------------------------------------------------------------------ the code of a run


class _FilesOfPackage:
    """The files of a code package, by their paths relative to its root, with `/` as separator."""

    def __init__(self, data: Buffer) -> None:
        import tarfile  # few processes read code

        # Uncompressed archives only: a small compressed one could expand to gigabytes.
        self._archive = tarfile.open(fileobj=io.BytesIO(data), mode="r:")  # noqa: SIM115 -- used by read
        self._members = {each.name: each for each in self._archive if each.isfile()}

    def is_file(self, name: str) -> bool:
        """Return whether there is a file of this name.

        Args:
            name: The path within the code, with `/` between folders.
        """
        return name in self._members

    def is_folder(self, name: str) -> bool:
        """Return whether there is a non-empty folder of this name.

        Args:
            name: The path within the code, with `/` between folders.
        """
        return any(each.startswith(f"{name}/") for each in self._members)

    def read(self, name: str) -> bytes:
        """Return the content of a file.

        Args:
            name: The path within the code, with `/` between folders.
        """
        file = self._archive.extractfile(self._members[name])
        assert file is not None, "it is a plain file"
        return file.read()


class _FilesIn:
    """The files below a folder, like those of a code package."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def is_file(self, name: str) -> bool:
        """Return whether there is a file of this name."""
        return os.path.isfile(os.path.join(self._folder, name))

    def is_folder(self, name: str) -> bool:
        """Return whether there is a folder of this name."""
        return os.path.isdir(os.path.join(self._folder, name))

    def read(self, name: str) -> bytes:
        """Return the content of a file."""
        return read_regular(os.path.join(self._folder, name))


class CodeModules:
    """The code of a run as importable modules of this process. `key` is part of the modules' names;
    `script` is the main file of the run's program, `module` its module name if it has one."""

    def __init__(
        self,
        key: str,
        files: _FilesOfPackage | _FilesIn,
        script: str = "",
        module: str | None = None,
    ) -> None:
        self.prefix = PREFIX + key
        self.files = files
        # The name of a script may contain dots or be an invalid module name.
        name = module or script.removesuffix(".py").replace(".", "_").replace("/", ".")
        self._script = script, name
        _CODES[self.prefix] = self
        if _FINDER not in sys.meta_path:
            sys.meta_path.append(_FINDER)

    @property
    def main(self) -> str:
        """The full name of the module that is the run's program."""
        return f"{self.prefix}.{self._script[1]}"

    def path_of(self, module: str) -> str | None:
        """Return the file or folder of a module; None if the code does not contain the module.

        Args:
            module: The name of the module in the run.
        """
        if self._script[0] and module == self._script[1]:
            return self._script[0]
        path = module.replace(".", "/")
        for each in (f"{path}/__init__.py", f"{path}.py"):
            if self.files.is_file(each):
                return each
        return path if self.files.is_folder(path) else None

    def spec_of(self, module: str) -> ModuleSpec | None:
        """Return the import spec of a module; None if the code does not contain the module.

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
        spec.has_location = True  # sets __file__, with which its source is found
        return spec

    def import_module(
        self,
        name: str,
        globals: Mapping[str, object] | None = None,
        locals: Mapping[str, object] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> ModuleType:
        """Return an imported module, as `__import__` of the code's modules: from the code if it
        contains the module, otherwise by the usual import.

        Args:
            name: The full name of the module, as in `__import__`.
            globals: The globals of the importing module.
            locals: Ignored, as in `__import__`.
            fromlist: The names to import from the module.
            level: The number of dots of a relative import; 0 for an absolute one.
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
    """Return the code package of this key as importable modules; None if it cannot be read.

    Args:
        blobs: The blobs of the datastore, addressed by content.
        key: The key of the package's blob: the blake3 of its bytes in hex.
        script: The path of the program's main file in the package.
        module: The module name of the program; None if it is a script.
    """
    try:
        files = _FilesOfPackage(blobs.get(blob_key(key)))
    except (AflowError, OSError, ValueError):  # a damaged archive makes tarfile raise all of these
        return None
    metaflow.install_if_missing()
    return CodeModules(key, files, script, module)


def code_beside(program: ProgramFile) -> CodeModules | None:
    """Return the current files next to the program's main file as importable modules; None if the
    main file no longer exists.

    Args:
        program: The file of the program when the run started.
    """
    if program.sha is None or not os.path.isfile(program.file):
        return None
    metaflow.install_if_missing()
    root, script = program.place
    return CodeModules(program.sha, _FilesIn(root), script, program.module)


class _CodeLoader(SourceLoader):
    """Loads a module from the code of a run, which may not exist as files."""

    def __init__(self, code: CodeModules, path: str) -> None:
        self._code = code
        self._path = path

    def get_filename(self, fullname: str) -> str:
        """Return the file name that tracebacks show."""
        return f"{self._code.prefix}/{self._path}"

    def get_data(self, path: str | bytes) -> bytes:
        """Return the source. Other files, such as cached bytecode, do not exist."""
        if path != self.get_filename(""):
            raise OSError(f"there is no {path!r} in the code of a run")
        return self._code.files.read(self._path)

    def exec_module(self, module: ModuleType) -> None:
        """Execute the source; its imports look in the code of the run first."""
        from aflow.flow.spec import only_defined  # few processes load code

        own: Any = {**vars(builtins), "__import__": self._code.import_module}
        module.__dict__["__builtins__"] = own
        with only_defined():
            super().exec_module(module)


class _FolderLoader(Loader):
    """Loads a folder without an __init__.py as a package."""

    def create_module(self, spec: ModuleSpec) -> None:
        """Return None: the import system creates an ordinary module."""

    def exec_module(self, module: ModuleType) -> None:
        """Do nothing: there is no code to execute."""


class _CodeFinder:
    """The finder on sys.meta_path for the modules of all CodeModules of this process."""

    def find_spec(
        self, fullname: str, path: object = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the import spec of a module of a run's code; None for any other module."""
        prefix, _, module = fullname.partition(".")
        code = _CODES.get(prefix)
        return None if code is None else code.spec_of(module)


_CODES: dict[str, CodeModules] = {}
_FINDER = _CodeFinder()
