"""Build environments on this host: once for each lock, cached by content, shared by all runs.

    built/<id>/           an environment: bin/python and packages; always complete
    built/<id>.lock       exclusive lock of the process that builds it
    built/<id>.used.lock  shared lock of processes that use it, so that gc does not delete it
    built/.new-<id>-...   an incomplete environment; the next builder removes those of killed ones
    runtimes/<key>-pyX.Y  aflow and its dependencies for one version of Python
    locks/, wheels/       results of solving (solve.py, files.py)

An environment is built under a temporary name and then renamed, so that it is never incomplete.
aflow and its dependencies are at the end of sys.path of its interpreter: packages of the
environment take precedence, in the versions that the step requests.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from stat import S_ISDIR
from typing import NamedTuple

from aflow._core.clock import SystemClock
from aflow._core.private_folders import HeldDescriptors, refuse_foreign, writable_or_temporary
from aflow._core.settings import Settings, environment_with
from aflow._core.wording import plural
from aflow.environments import conda, wheels
from aflow.environments.files import Files, failing_as
from aflow.environments.lock import WHEEL, Lock, LockedPackage, digest_of_values
from aflow.environments.solve import Solver, Target, tags_of, this_platform
from aflow.environments.spec import Spec
from aflow.environments.uv import (
    Interpreter,
    Report,
    Uv,
    UvFailed,
    interpreter_for,
    own_interpreter,
)
from aflow.errors import EnvironmentFailed, InvalidLock, ShippingError, UnsafeFolder

RUNTIME_VARIABLE = "AFLOW_RUNTIME_FOLDER"
KEPT_UNUSED = 30 * 86400.0  # seconds for which an unused environment is kept
_OWN = Path(__file__).resolve().parents[1]  # the package aflow
_MARKER = "aflow-environment.json"
_NEW = ".new-"  # begins the names of incomplete folders
_FULL = "no space left"
_FORM = 1  # version of the layout of a built environment
# Appends the runtime to sys.path if a run has set the variable, and only in the Python version
# that the runtime was made for.
_PTH = (
    f"import os, sys; p = os.environ.get({RUNTIME_VARIABLE!r}, ''); "
    "p.endswith('-py%d.%d' % sys.version_info[:2]) and p not in sys.path and sys.path.append(p)\n"
)
_PYTHON = "aflow-python"  # the file with the path of the Python that runs blake3 for a stand-in
_AGAIN = 3600.0  # seconds after which installing the packages instead of stand-ins is retried
_STANDING_IN = ("blake3", "zstandard")
_STANDING_IN_FOR = (*_STANDING_IN, "uvloop")  # uvloop needs none: asyncio's event loop is used
# Extras for the stores that tasks open themselves; used if they are installed here.
_EXTRAS = ("aws", "postgres")


class Built(NamedTuple):
    """A built environment. `runtime` is the folder with aflow and its dependencies; `private` are
    the module names of the dependencies that aflow imports from there (private.py)."""

    digest: str
    prefix: Path
    python: str
    runtime: Path
    private: tuple[str, ...] = ()

    def variables(self, environment: dict[str, str]) -> dict[str, str]:
        """Return the environment variables for a process of this environment's interpreter.

        Args:
            environment: The environment variables of the program that starts the tasks.
        """
        bin_folder = os.fspath(self.prefix / "bin")
        kept = {k: v for k, v in environment.items() if k not in ("PYTHONHOME", "VIRTUAL_ENV")}
        path = kept.get("PATH") or os.defpath
        return {
            **kept,
            "PATH": bin_folder + os.pathsep + path,
            "VIRTUAL_ENV": os.fspath(self.prefix),
            RUNTIME_VARIABLE: os.fspath(self.runtime),
        }


def cache_folder(settings: Settings | None = None) -> Path:
    """Return the folder of this user's environments: in the cache folder, or in the temporary
    folder if the cache is not writable (in a job without a home).

    Args:
        settings: The settings; None to read them.

    Raises:
        InvalidSetting: If a setting is invalid.
        EnvironmentFailed: If the folder is not writable, or another user could have put code there.
    """
    settings = settings or Settings.load()
    folder = settings.environments_folder
    try:
        if folder is None:
            found = writable_or_temporary(settings.cache / "environments")
        else:
            found = Path(folder).expanduser()
        refuse_foreign(found, environment_with({}))
    except UnsafeFolder as error:
        raise EnvironmentFailed(
            str(error).replace("--datastore-root", "AFLOW_ENVIRONMENTS_FOLDER")
        ) from error
    except OSError as error:
        raise EnvironmentFailed(
            f"There is no folder for environments that can be written to ({error}): set "
            "AFLOW_ENVIRONMENTS_FOLDER."
        ) from error
    return found.absolute()


class Supplies:
    """What is needed to build an environment and may be missing on this host, without an index.
    This base class has nothing; see `transport.FromStore`."""

    def file(self, package: LockedPackage) -> Path | None:
        """Return the file of a package; None if it is not supplied.

        Args:
            package: The locked package.
        """
        return None

    def runtime(self, minor: str) -> Lock | None:
        """Return the lock of aflow's dependencies for a version of Python; None if not supplied.

        Args:
            minor: The version of Python, for example `3.12`.
        """
        return None

    def uv(self) -> str | None:
        """Return the path of the program uv; None if it is not supplied."""
        return None

    def interpreter(self, asked: str) -> Interpreter | None:
        """Return an interpreter of a version; None if it is not supplied.

        Args:
            asked: The requested version of Python, for example `3.12`.

        Raises:
            EnvironmentFailed: If the supplied interpreter does not run on this host.
        """
        return None


class Environments:
    """The environments on this host, in the folder `cache`. `supplies` provide files that may be
    missing here."""

    def __init__(
        self,
        cache: Path,
        report: Report = lambda line: None,
        supplies: Supplies | None = None,
    ) -> None:
        self._supplies = supplies or Supplies()
        self._cache = cache
        self._built = cache / "built"
        self._runtimes = cache / "runtimes"
        self._report = report
        self._files = Files(cache)

    def built(self, lock: Lock, title: str = "", *, rebuild: bool = False) -> Built:
        """Return the environment of a lock, and build it if it does not exist. Blocks; waits for
        another process that builds the same one. Raises EnvironmentFailed, without leaving an
        incomplete environment.

        Args:
            lock: The locked environment, for this host.
            title: The suffix that identifies the environment in messages, like ` of step train`.
            rebuild: Whether to build the environment even if it exists.
        """
        _check_platform(lock)
        prefix = self._prefix(lock)
        if rebuild or not self._is_complete(prefix):
            _make_folder(self._built)
        _hold(prefix)  # before the check: gc cannot delete the environment after this
        if rebuild or not self._is_complete(prefix):
            with self._alone(prefix, title):
                if rebuild or not self._is_complete(prefix):
                    self._build(lock, prefix, title)
        with suppress(OSError):  # a shared folder may be read-only for this user
            os.utime(prefix / _MARKER)
        python = os.fspath(prefix / "bin" / "python")
        return Built(lock.digest, prefix, python, self.runtime(lock.minor), _private(lock))

    # ------------------------------------------------------------ building

    def _prefix(self, lock: Lock) -> Path:
        return self._built / digest_of_values(_FORM, lock.digest)[:32]

    @staticmethod
    def _is_complete(prefix: Path) -> bool:
        # The interpreter is a symlink, whose target may have been uninstalled.
        return (prefix / _MARKER).is_file() and (prefix / "bin" / "python").exists()

    @contextmanager
    def _alone(self, prefix: Path, title: str) -> Iterator[None]:
        """Hold the exclusive lock for building. The kernel releases it if the process is killed."""
        with failing_as(f"{prefix} cannot be locked"):
            descriptor = _opened(f"{prefix}.lock")
        try:
            with failing_as(f"{prefix} cannot be locked"):
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    self._report(f"Waiting for another process that builds the environment{title}")
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _build(self, lock: Lock, prefix: Path, title: str) -> None:
        for each in self._built.glob(f"{_NEW}{prefix.name}-*"):  # left by killed processes
            shutil.rmtree(each, ignore_errors=True)
        packages = plural(len(lock.packages), "package")
        self._report(f"Building the environment{title}: Python {lock.python}, {packages}")
        began = SystemClock.now()
        beginning = f"{_NEW}{prefix.name}-"
        what = f"The environment{title} cannot be built"
        with _new_folder(self._built, beginning) as new, failing_as(f"{what} in {self._built}"):
            try:
                self._install(lock, new, prefix)
                self._complete(lock, new)
            except EnvironmentFailed as error:
                why = str(error)
                if isinstance(error, UvFailed) and _FULL in error.full.lower():
                    why = f"no space is left on the disk of {self._cache}"
                raise EnvironmentFailed(f"{what}: {why}.") from error
            if prefix.exists():  # damaged, or `rebuild` is True
                with _new_folder(self._built, beginning) as old:
                    os.rename(prefix, old / "old")
            os.rename(new, prefix)
        self._report(f"Built the environment{title} in {SystemClock.now() - began:.1f} s")

    def _install(self, lock: Lock, new: Path, prefix: Path) -> None:
        wheels = [each for each in lock if each.kind == WHEEL]
        if lock.is_conda:
            conda.install(lock, new, prefix, self._files, self._supplies.file)
            if not wheels:
                return
        uv = Uv(self._report, self._supplies.uv)
        if not lock.is_conda:
            found = self._interpreter(lock.python, uv)
            argv = ["venv", "--relocatable", "--no-project", "--python", found.path, "--quiet"]
            uv.run(*argv, "--allow-existing", os.fspath(new))
        python = os.fspath(new / "bin" / "python")
        self._install_wheels(uv, wheels, "--python", python)

    def _install_wheels(self, uv: Uv, packages: Sequence[LockedPackage], *where: str) -> None:
        """Install exactly these wheels and verify their digests. They come from the cache, from the
        supplies, from uv's cache, or else from their index."""
        if not packages:
            return
        local: dict[str, str] = {}
        for each in packages:
            path = self._files.path(each) or self._supplies.file(each)
            if path is not None:
                local[each.file] = path.absolute().as_uri()
            elif not each.url:
                raise EnvironmentFailed(
                    f"{each.file} ({each.source or 'built elsewhere'}) is not available here"
                )
        by_place = _lines(packages, lambda each: local.get(each.file) or each.url)
        # Second form, by name: the URLs of some indexes are valid only for a limited time.
        by_name = _lines(packages, lambda each: local.get(each.file))
        argv = ["pip", "install", "--no-deps", "--require-hashes", "--no-build", *where, "-r", "-"]
        tries = [(by_place, True), (by_place, False), (by_name, False)]
        if len(local) == len(packages):
            tries = [(by_place, True)]
        first: UvFailed | None = None
        for text, offline in tries:
            try:
                uv.run(*argv, stdin=text, index=True, offline=offline)
                return
            except UvFailed as error:
                first = error if first is None or (not offline and first.is_network) else first
                if _FULL in error.full.lower():
                    raise
        assert first is not None, "it was tried"
        raise first

    def _complete(self, lock: Lock, new: Path) -> None:
        """Add the .pth file that makes aflow importable, and last the marker of completeness."""
        for folder in new.glob("lib/python*/site-packages"):
            (folder / "zz_aflow_runtime.pth").write_text(_PTH, "utf-8")
        python = new / "bin" / "python"
        if not python.exists():
            raise EnvironmentFailed(f"it has no interpreter {python.name}")
        marker = {"form": _FORM, "digest": lock.digest, "lock": lock.as_dict()}
        (new / _MARKER).write_text(json.dumps(marker), "utf-8")

    # ------------------------------------------------------------ aflow's own dependencies

    def runtime(self, minor: str) -> Path:
        """Return the folder with aflow and its dependencies for a version of Python: symlinks to
        the packages installed here, or, for another version than this one's, installed packages.

        Args:
            minor: The version of Python, for example `3.12`.
        """
        if minor != own_interpreter().minor:
            return self._runtime_of_another(minor)
        entries = {"aflow": os.fspath(_OWN), **_installed_entries()}
        key = digest_of_values(_FORM, sorted(entries.items()))
        return self._made(f"{key[:24]}-py{minor}", _linked(entries))

    def _runtime_of_another(self, minor: str) -> Path:
        entries = _standing_in()
        key = digest_of_values(_FORM, sys.executable, sorted(entries.items()))
        name = f"{key[:24]}-standins-py{minor}"
        place = self._runtimes / name
        if SystemClock.now() - _time_of(place / _PYTHON) < _AGAIN and _is_runtime(place):
            return place
        try:
            return self._installed_runtime(minor)
        except EnvironmentFailed as error:
            self._report(
                f"{error}; what aflow has for Python {own_interpreter().minor} stands in, and is "
                "slower"
            )

        def make(new: Path) -> None:
            _linked(entries)(new)
            (new / _PYTHON).write_text(sys.executable, "utf-8")

        place = self._made(name, make)
        with suppress(OSError):  # a shared folder may be read-only for this user
            os.utime(place / _PYTHON)
        return place

    def _installed_runtime(self, minor: str) -> Path:
        lock = self._supplies.runtime(minor) or self.runtime_lock(minor)
        key = digest_of_values(_FORM, os.fspath(_OWN), lock.digest)

        def make(new: Path) -> None:
            uv = Uv(self._report, self._supplies.uv)
            self._report(f"Installing what aflow needs for Python {minor}")
            python = self._interpreter(minor, uv).path
            try:
                target = os.fspath(new)
                self._install_wheels(uv, lock.packages, "--target", target, "--python", python)
            except EnvironmentFailed as error:
                raise EnvironmentFailed(_no_runtime(minor, error)) from error
            _linked({"aflow": os.fspath(_OWN)})(new)

        return self._made(f"{key[:24]}-py{minor}", make)

    def runtime_lock(
        self, minor: str, platform: str | None = None, extras: Collection[str] | None = None
    ) -> Lock:
        """Return the lock of aflow's dependencies in a task, for another version of Python or
        another platform than this process has. Blocks.

        Args:
            minor: The version of Python, for example `3.12`.
            platform: uv's name of the platform; None for this one.
            extras: The extras of aflow; None for those that are installed here.

        Raises:
            EnvironmentFailed: If the dependencies cannot be solved.
        """
        uv = Uv(self._report, self._supplies.uv)
        solver = Solver(self._cache, self._cache, uv)
        spec = Spec(requirements=tuple(sorted(_requirements(extras))))
        if platform in (None, this_platform()):
            python = self._interpreter(minor, uv)
            target = Target(python.version, this_platform(), python)
        else:
            target = Target(minor, str(platform))
        try:
            return solver.lock(spec, target)
        except EnvironmentFailed as error:
            raise EnvironmentFailed(_no_runtime(minor, error, platform)) from error

    def _interpreter(self, asked: str, uv: Uv) -> Interpreter:
        """Return an interpreter of this host, else a supplied one, else one that uv downloads."""
        try:
            return interpreter_for(asked, uv, may_download=False)
        except EnvironmentFailed:
            return self._supplies.interpreter(asked) or interpreter_for(asked, uv)

    def _made(self, name: str, make: Callable[[Path], None]) -> Path:
        """Return a folder of runtimes; create it atomically if it does not exist."""
        place = self._runtimes / name
        if _is_runtime(place):
            with suppress(OSError):
                os.utime(place)
            return place
        try:
            # Another user may have built the environments, and this one may only read the folder.
            below = writable_or_temporary(self._cache) / self._runtimes.name
        except (OSError, UnsafeFolder) as error:
            raise EnvironmentFailed(f"{place} cannot be made: {error}") from error
        place = below / name
        if _is_runtime(place):
            return place
        _make_folder(below)
        with _new_folder(below, _NEW) as new, failing_as(f"{place} cannot be made"):
            make(new)
            if place.is_dir() and not _is_runtime(place):  # its symlinks are broken
                shutil.rmtree(place, ignore_errors=True)
            with suppress(OSError):  # another process has created the same folder
                os.rename(new, place)
        return place

    # ------------------------------------------------------------ deleting

    def sweep(self, age: float, now: float, *, dry_run: bool = False) -> tuple[int, int]:
        """Delete environments that were not used for `age` seconds, and the remains of killed
        builders. Environments in use are kept.

        Args:
            age: The minimum time since the last use, in seconds.
            now: The present time, in seconds since the epoch.
            dry_run: Whether to count without deleting.

        Returns:
            The number of environments that were (or would be) deleted, and the number of bytes.
        """
        count = size = 0
        for prefix in _folders(self._built):
            is_new = prefix.name.startswith(_NEW)
            last, limit = (prefix, max(age, 3600.0)) if is_new else (prefix / _MARKER, age)
            if now - _time_of(last) <= limit:
                continue
            # The process that builds the environment, or those that use it, hold this lock.
            file = f"{_of_new(prefix)}.lock" if is_new else _use_file(prefix)
            with _if_free(file) as is_free:
                if is_free:
                    size += _remove(prefix, dry_run=dry_run)
                    count += not is_new
        # What environments refer to is kept as long as there are any.
        is_used = any(not each.name.startswith(_NEW) for each in _folders(self._built))
        for folder in ("wheels", "locks", "tools", *(() if is_used else ("runtimes", "pythons"))):
            for each in _folders(self._cache / folder):
                if now - _time_of(each) > age:
                    size += _remove(each, dry_run=dry_run)
        return count, size


def _check_platform(lock: Lock) -> None:
    """Raise InvalidLock if some files of the lock do not run on this host."""
    here = this_platform()
    if lock.platform == here:
        return
    from packaging.utils import parse_wheel_filename

    known = set(tags_of(Target(lock.python, here)))
    unfit = [
        f": {each.file} does not run here"
        for each in lock
        if each.kind == WHEEL and known.isdisjoint(map(str, parse_wheel_filename(each.file)[3]))
    ]
    if lock.is_conda and lock.platform.partition("-")[0] != here.partition("-")[0]:
        unfit.append("")
    if unfit:
        raise InvalidLock(
            f"The environment was locked for {lock.platform}, and this machine is {here}{unfit[0]}."
            " Say what jobs have (AFLOW_JOB_PLATFORM)."
        )


def _lines(packages: Sequence[LockedPackage], place: Callable[[LockedPackage], str | None]) -> str:
    lines = []
    for each in packages:
        url = place(each)
        named = f"{each.name}=={each.version}" if url is None else f"{each.name} @ {url}"
        lines.append(f"{named} --hash=sha256:{each.sha256}\n")
    return "".join(lines)


# ------------------------------------------------------------------ aflow's own dependencies


def _no_runtime(minor: str, error: EnvironmentFailed, platform: str | None = None) -> str:
    where = f" on {platform}" if platform else ""
    return f"What aflow itself needs for Python {minor}{where} is not available: {error}"


def _linked(entries: Mapping[str, str]) -> Callable[[Path], None]:
    """Return a function that creates symlinks in a folder: name -> target."""

    def make(new: Path) -> None:
        for name, target in entries.items():
            os.symlink(target, new / name)

    return make


def _is_runtime(place: Path) -> bool:
    return (place / "aflow" / "__init__.py").is_file()


def _requirements(extras: Collection[str] | None = None) -> list[str]:
    """Return aflow's dependencies in a task as requirements, with these extras; None for those
    extras that are installed here."""
    from packaging.requirements import Requirement

    found = []
    for requirement in map(Requirement, wheels.needs_of_aflow()):
        if wheels.counts(requirement, _extras() if extras is None else extras):
            requirement.marker = None
            found.append(str(requirement))
    return found


@cache
def _extras() -> tuple[str, ...]:
    """Return the extras in _EXTRAS that are completely installed here."""
    found = []
    for extra in _EXTRAS:
        with suppress(ShippingError):
            wheels.closure(frozenset({extra}))
            found.append(extra)
    return tuple(found)


def _standing_in() -> Mapping[str, str]:
    """Return the entries of a runtime of the packages installed here, with stand-ins (pure Python)
    for packages that are compiled for this version of Python only: name -> path."""
    entries = {"aflow": os.fspath(_OWN)}
    for each in _STANDING_IN:
        entries[f"{each}.py"] = os.fspath(_OWN / "environments" / "standins" / f"{each}.py")
    return entries | {
        entry: target
        for entry, target in _installed_entries().items()
        if entry.partition("-")[0] not in _STANDING_IN_FOR  # including their .dist-info
    }


@cache
def _installed_entries() -> Mapping[str, str]:
    """Return the top-level files and folders of all dependencies of aflow: name -> path."""
    entries: dict[str, str] = {}
    for found in wheels.closure(frozenset(_extras())):
        for top in wheels.top_names(found):
            if not top.endswith(".pth"):
                entries.setdefault(top, os.fspath(Path(str(found.locate_file(top)))))
    return entries


def _private(lock: Lock) -> tuple[str, ...]:
    """Return the module names of packages whose version in the environment does not meet aflow's
    requirements."""
    found = wheels.unfit(lock.versions, frozenset(_extras()))
    tops = {name.partition(".")[0] for each in found for name in wheels.top_names(each)
            if not name.endswith((".dist-info", ".pth"))}  # fmt: skip
    return tuple(sorted(tops))


# ------------------------------------------------------------------ folders


def _make_folder(folder: Path) -> None:
    with failing_as(f"{folder} cannot be made"):
        folder.mkdir(parents=True, exist_ok=True)


@contextmanager
def _new_folder(below: Path, beginning: str) -> Iterator[Path]:
    """Yield a new folder that other users can read; it is removed at the end unless renamed."""
    with failing_as(f"{below} cannot be written"):
        new = Path(tempfile.mkdtemp(prefix=beginning, dir=below))
        new.chmod(0o755)
    try:
        yield new
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _use_file(prefix: Path) -> str:
    return f"{prefix}.used.lock"


def _of_new(folder: Path) -> Path:
    """Return the folder of the environment whose builder has created this incomplete one."""
    return folder.with_name(folder.name.removeprefix(_NEW).partition("-")[0])


def _opened(file: str) -> int:
    return os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)


@contextmanager
def _if_free(file: str) -> Iterator[bool]:
    """Hold an exclusive lock for the block; yield False if it is not available."""
    try:
        descriptor = _opened(file)
    except OSError:  # the folder belongs to another user
        yield False
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        is_free = True
    except OSError:
        is_free = False
    try:
        yield is_free
    finally:
        os.close(descriptor)


_held = HeldDescriptors()  # of the locks of environments that this process uses


def _hold(prefix: Path) -> None:
    with failing_as(f"{prefix} cannot be locked"):
        try:
            descriptor = _opened(_use_file(prefix))
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EROFS):
                raise
            # The folder belongs to another user and is readable. If it has no lock file, this user
            # cannot create one, and nothing prevents the owner from deleting the environment.
            try:
                descriptor = os.open(_use_file(prefix), os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                return
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        except BaseException:
            os.close(descriptor)
            raise
    _held.add(prefix, descriptor)


def release(built: Built) -> None:
    """End one use of an environment by this process: `gc` may delete it when no process uses it.

    Args:
        built: The result of `Environments.built`; its interpreters must have exited.
    """
    _held.release(built.prefix)


def _folders(folder: Path) -> list[Path]:
    try:
        return sorted(each for each in folder.iterdir() if each.suffix != ".lock")
    except OSError:
        return []


def _time_of(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def _remove(path: Path, *, dry_run: bool) -> int:
    """Remove a file or folder and return the size of its files in bytes."""
    is_folder = path.is_dir() and not path.is_symlink()
    size = 0
    for each in path.rglob("*") if is_folder else [path]:
        with suppress(OSError):
            found = each.lstat()
            size += 0 if S_ISDIR(found.st_mode) else found.st_size
    if dry_run:
        return size
    if is_folder:
        if not path.name.startswith("."):
            # Renamed first: if this process is killed meanwhile, the rest must not look complete.
            with suppress(OSError):
                path = path.rename(path.with_name(f"{_NEW}{path.name}-old"))
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()
    return size
