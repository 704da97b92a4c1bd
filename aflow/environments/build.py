"""Environments on this machine: built once from a lock, kept by its content, shared by all runs.

    built/<id>/           an environment: bin/python and packages, complete as soon as it is there
    built/<id>.lock       locked by who builds it
    built/<id>.used.lock  locked, with others, by processes that use it: gc leaves it alone
    built/.new-<id>-...   one that is being built; what a killed builder has left goes with the next
    runtimes/<key>-pyX.Y  what aflow itself needs there
    locks/, wheels/       what solving has made (solve.py, files.py)

An environment is built under another name and renamed, so that there is never half of one. Its
interpreter finds aflow and what that needs at the end of sys.path: what the environment has itself
comes first, in the version that the step asks for.
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
from aflow._core.private_folders import refuse_foreign, writable_or_temporary
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
KEPT_UNUSED = 30 * 86400.0  # seconds for which an environment is kept that nobody uses
_OWN = Path(__file__).resolve().parents[1]  # the package aflow
_MARKER = "aflow-environment.json"
_FULL = "no space left"
_FORM = 1  # of a built environment
# Appended to sys.path where a run says so, and only by the Python that it was made for.
_PTH = (
    f"import os, sys; p = os.environ.get({RUNTIME_VARIABLE!r}, ''); "
    "p.endswith('-py%d.%d' % sys.version_info[:2]) and p not in sys.path and sys.path.append(p)\n"
)
_PYTHON = "aflow-python"  # the file that names the Python which hashes for a stand-in
_AGAIN = 3600.0  # seconds after which it is tried again to have the packages themselves
_STANDING_IN = ("blake3", "zstandard")
_STANDING_IN_FOR = (*_STANDING_IN, "uvloop")  # asyncio has an event loop of its own
# Stores and metadata that tasks open by themselves: only what is installed here.
_EXTRAS = ("aws", "postgres")


class Built(NamedTuple):
    """An environment that is there. `runtime` is the folder of what aflow needs in it; of the
    packages `private`, which can be imported by these names, aflow has its own (private.py)."""

    digest: str
    prefix: Path
    python: str
    runtime: Path
    private: tuple[str, ...] = ()

    def variables(self, environment: dict[str, str]) -> dict[str, str]:
        """Return an environment of variables for a process of its interpreter.

        Args:
            environment: The variables of the program that starts the tasks.
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
    """Return the folder of environments of this user: below the cache folder, or, where that cannot
    be written to (a job without a home), among temporary files.

    Args:
        settings: The settings; None to read them.

    Raises:
        InvalidSetting: Where somebody else may have filled it: code runs from there.
        EnvironmentFailed: Where somebody else may have filled it: code runs from there.
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
    """What building an environment takes, where this machine may lack it and no index is asked:
    nothing, unless a subclass has it."""

    def file(self, package: LockedPackage) -> Path | None:
        """Return the file of a package.

        Args:
            package: The package, as it is locked.
        """
        return None

    def runtime(self, minor: str) -> Lock | None:
        """Return what aflow needs for this version of Python.

        Args:
            minor: The version of Python, as `3.12`.
        """
        return None

    def uv(self) -> str | None:
        """Return the path of uv."""
        return None

    def interpreter(self, asked: str) -> Interpreter | None:
        """Return an interpreter of that version.

        Args:
            asked: The version of Python that was asked for, as `3.12`.

        Raises:
            EnvironmentFailed: There is one, and it does not run here.
        """
        return None


class Environments:
    """The environments of this machine, below the folder `cache`. `supplies` have what may be
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
        """Return the environment of a lock, built if it is not there. Blocks; somebody else who
        builds the same is waited for. Raises EnvironmentFailed; nothing is left half built then.

        Args:
            lock: The locked environment, for this machine.
            title: Whose environment it is, for the report, as ` of step train`.
            rebuild: Whether to build again what exists already.
        """
        _check_platform(lock)
        prefix = self._prefix(lock)
        if rebuild or not self._is_complete(prefix):
            _make_folder(self._built)
        _hold(prefix)  # first: what is there now stays there
        if rebuild or not self._is_complete(prefix):
            with self._alone(prefix, title):
                if rebuild or not self._is_complete(prefix):
                    self._build(lock, prefix, title)
        with suppress(OSError):  # of a folder that others share with us
            os.utime(prefix / _MARKER)
        python = os.fspath(prefix / "bin" / "python")
        return Built(lock.digest, prefix, python, self.runtime(lock.minor), _private(lock))

    # ------------------------------------------------------------ building

    def _prefix(self, lock: Lock) -> Path:
        return self._built / digest_of_values(_FORM, lock.digest)[:32]

    @staticmethod
    def _is_complete(prefix: Path) -> bool:
        # The interpreter is a link to one of this machine, which may have been removed.
        return (prefix / _MARKER).is_file() and (prefix / "bin" / "python").exists()

    @contextmanager
    def _alone(self, prefix: Path, title: str) -> Iterator[None]:
        """Be the only process that builds this. The kernel releases the lock of a killed
        process."""
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
        for each in self._built.glob(f".new-{prefix.name}-*"):  # of a builder that was killed
            shutil.rmtree(each, ignore_errors=True)
        packages = plural(len(lock.packages), "package")
        self._report(f"Building the environment{title}: Python {lock.python}, {packages}")
        began = SystemClock.now()
        beginning = f".new-{prefix.name}-"
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
            if prefix.exists():  # it was damaged, or is to be built again
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
        """Install exactly these wheels, checked by their digests: from files that are kept here or
        supplied, or from their index, which is asked only for what uv has not in its cache."""
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
        # An index may give its files under addresses that are good for a while only.
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
        """What makes it an environment of aflow; the marker comes last."""
        for folder in new.glob("lib/python*/site-packages"):
            (folder / "zz_aflow_runtime.pth").write_text(_PTH, "utf-8")
        python = new / "bin" / "python"
        if not python.exists():
            raise EnvironmentFailed(f"it has no interpreter {python.name}")
        marker = {"form": _FORM, "digest": lock.digest, "lock": lock.as_dict()}
        (new / _MARKER).write_text(json.dumps(marker), "utf-8")

    # ------------------------------------------------------------ what aflow needs there

    def runtime(self, minor: str) -> Path:
        """Return the folder with aflow and what it needs, for an interpreter of this version: links
        to what is installed here, or, for another Python than this, packages of their own.

        Args:
            minor: The version of Python, as `3.12`.
        """
        if minor != own_interpreter().minor:
            return self._runtime_of_another(minor)
        entries = {"aflow": os.fspath(_OWN), **_installed_entries()}
        key = digest_of_values(_FORM, sorted(entries.items()))
        return self._made(f"{key[:24]}-py{minor}", _linked(entries))

    def _runtime_of_another(self, minor: str) -> Path:
        key = digest_of_values(_FORM, sys.executable, __file__)
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
            shutil.rmtree(place, ignore_errors=True)
            return self._standing_in(name)

    def _standing_in(self, name: str) -> Path:
        """Links to what is installed here, as far as it is not compiled code of this Python alone;
        and modules that stand in for the rest."""
        entries = {"aflow": os.fspath(_OWN)}
        for each in _STANDING_IN:
            entries[f"{each}.py"] = os.fspath(_OWN / "environments" / "standins" / f"{each}.py")
        entries |= {
            entry: target
            for entry, target in _installed_entries().items()
            if entry.partition("-")[0] not in _STANDING_IN_FOR  # nor their metadata
        }

        def make(new: Path) -> None:
            _linked(entries)(new)
            (new / _PYTHON).write_text(sys.executable, "utf-8")

        return self._made(name, make)

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
        """Return the lock of the packages that aflow itself needs in a task with another Python, or
        on another platform, than this one's. Blocks.

        Args:
            minor: The version of Python, as `3.12`.
            platform: The platform, as uv names it; None for this one.
            extras: The extras of aflow; None for those that are installed here.

        Raises:
            EnvironmentFailed: They cannot be solved.
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
        """An interpreter of this machine, else one of the supplies, else one that uv downloads."""
        try:
            return interpreter_for(asked, uv, may_download=False)
        except EnvironmentFailed:
            return self._supplies.interpreter(asked) or interpreter_for(asked, uv)

    def _made(self, name: str, make: Callable[[Path], None]) -> Path:
        """A folder of runtimes, made at once or not at all."""
        place = self._runtimes / name
        if _is_runtime(place):
            with suppress(OSError):
                os.utime(place)
            return place
        try:
            # Others may have built the environments, and let this user read alone.
            below = writable_or_temporary(self._cache) / self._runtimes.name
        except (OSError, UnsafeFolder) as error:
            raise EnvironmentFailed(f"{place} cannot be made: {error}") from error
        place = below / name
        if _is_runtime(place):
            return place
        _make_folder(below)
        with _new_folder(below, ".new-") as new, failing_as(f"{place} cannot be made"):
            make(new)
            if place.is_dir() and not _is_runtime(place):  # its links lead nowhere any more
                shutil.rmtree(place, ignore_errors=True)
            with suppress(OSError):  # somebody else was faster: it is the same
                os.rename(new, place)
        return place

    # ------------------------------------------------------------ deleting

    def sweep(self, age: float, now: float, *, dry_run: bool = False) -> tuple[int, int]:
        """Delete what nobody has used for `age` seconds, and what killed builders have left. What
        is in use stays.

        Args:
            age: For how many seconds it was not used at least.
            now: The present time, in seconds since the epoch.
            dry_run: Whether only to say what would be done.

        Returns:
            How many environments were deleted, or would be, and how many bytes.
        """
        count = size = 0
        for prefix in _folders(self._built):
            if prefix.name.startswith(".new-"):
                if now - _time_of(prefix) > max(age, 3600.0):
                    size += _remove(prefix, dry_run=dry_run)
                continue
            if now - _time_of(prefix / _MARKER) <= age:
                continue
            descriptor = _opened(_use_file(prefix))
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                size += _remove(prefix, dry_run=dry_run)
                count += 1
            except BlockingIOError:  # it is in use
                continue
            finally:
                os.close(descriptor)
        # As long as an environment is left, its processes may need a runtime.
        is_used = any(not each.name.startswith(".new-") for each in _folders(self._built))
        for folder in ("wheels", "locks") if is_used else ("runtimes", "wheels", "locks"):
            for each in _folders(self._cache / folder):
                if now - _time_of(each) > age:
                    size += _remove(each, dry_run=dry_run)
        return count, size


def _check_platform(lock: Lock) -> None:
    """Raises InvalidLock for a lock of which this machine cannot run all files."""
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


# ------------------------------------------------------------------ what aflow needs


def _no_runtime(minor: str, error: EnvironmentFailed, platform: str | None = None) -> str:
    where = f" on {platform}" if platform else ""
    return f"What aflow itself needs for Python {minor}{where} is not available: {error}"


def _linked(entries: Mapping[str, str]) -> Callable[[Path], None]:
    """Makes links in a folder: name -> where it leads."""

    def make(new: Path) -> None:
        for name, target in entries.items():
            os.symlink(target, new / name)

    return make


def _is_runtime(place: Path) -> bool:
    return (place / "aflow" / "__init__.py").is_file()


def _requirements(extras: Collection[str] | None = None) -> list[str]:
    """What aflow needs in a task, as requirements, with these extras; None for those of them that
    are installed here."""
    from packaging.requirements import Requirement

    found = []
    for requirement in map(Requirement, wheels.needs_of_aflow()):
        if wheels.counts(requirement, _extras() if extras is None else extras):
            requirement.marker = None
            found.append(str(requirement))
    return found


@cache
def _extras() -> tuple[str, ...]:
    """Those of the extras that tasks may use which are installed here as a whole."""
    found = []
    for extra in _EXTRAS:
        with suppress(ShippingError):
            wheels.closure(frozenset({extra}))
            found.append(extra)
    return tuple(found)


@cache
def _installed_entries() -> Mapping[str, str]:
    """What lies on sys.path for all that aflow depends on: name -> path."""
    entries: dict[str, str] = {}
    for found in wheels.closure(frozenset(_extras())):
        for top in wheels.top_names(found):
            if not top.endswith(".pth"):
                entries.setdefault(top, os.fspath(Path(str(found.locate_file(top)))))
    return entries


def _private(lock: Lock) -> tuple[str, ...]:
    """The names of the packages of which aflow needs another version than the environment has."""
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
    """A folder that others may read, removed at the end if it was not renamed."""
    with failing_as(f"{below} cannot be written"):
        new = Path(tempfile.mkdtemp(prefix=beginning, dir=below))
        new.chmod(0o755)
    try:
        yield new
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _use_file(prefix: Path) -> str:
    return f"{prefix}.used.lock"


def _opened(file: str) -> int:
    return os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)


_held: dict[Path, int] = {}  # what this process uses, until it ends: nobody deletes it meanwhile


def _hold(prefix: Path) -> None:
    if prefix in _held:
        return
    with failing_as(f"{prefix} cannot be locked"):
        try:
            descriptor = _opened(_use_file(prefix))
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EROFS):
                raise
            # Of another user, who lets us read. Where it is missing nobody can delete anything.
            try:
                descriptor = os.open(_use_file(prefix), os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                return
        fcntl.flock(descriptor, fcntl.LOCK_SH)
    _held[prefix] = descriptor


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
    """Remove a file or folder; how many bytes its files take."""
    is_folder = path.is_dir() and not path.is_symlink()
    size = 0
    for each in path.rglob("*") if is_folder else [path]:
        with suppress(OSError):
            found = each.lstat()
            size += 0 if S_ISDIR(found.st_mode) else found.st_size
    if dry_run:
        return size
    if is_folder:
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()
    return size
