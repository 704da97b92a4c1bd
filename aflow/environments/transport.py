"""Transport environments of steps to hosts without a package index, as blobs in the datastore.

For each lock there is a manifest (a blob) that lists the blobs of its files, and a root that keeps
them from `gc` for a month after they were last shipped. To ship a lock that the datastore already
has, neither an index nor the files are needed. Besides the packages, everything is shipped that a
host may lack: aflow's dependencies for another Python than that of the jobs, that Python, and uv.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from aflow._core.wording import plural
from aflow.environments.build import Built, Environments, Supplies, cache_folder
from aflow.environments.files import Files, digest_of_file, temporary_file
from aflow.environments.lock import Lock, LockedPackage, Shipped
from aflow.environments.prepare import of_steps
from aflow.environments.shipping import KEPT, RENEWED
from aflow.environments.solve import Solver, Target, kind_of, this_platform
from aflow.environments.spec import Spec
from aflow.environments.uv import (
    Interpreter,
    Report,
    Uv,
    find_uv,
    interpreter_for,
    own_interpreter,
    version_of,
)
from aflow.errors import CorruptBlob, EnvironmentFailed
from aflow.storage import roots
from aflow.storage.blobs import BlobStore, digest_of

if TYPE_CHECKING:
    from aflow.storage.base import ObjectStore

AT_ONCE = 8
_PIECE = 32 << 20
_FORM = 2  # version of the format of a packed Python
_LEFT_OUT = frozenset(
    {"test", "tests", "idlelib", "tkinter", "turtledemo", "ensurepip", "site-packages",
     "dist-packages", "__pycache__", "lib2to3", "pydoc_data"}
)  # fmt: skip
# The standard modules that aflow requires and that an incomplete Python may lack.
_NEEDED = "import ctypes, hashlib, json, socket, sqlite3, ssl, zlib"


class StoredEnvironments(NamedTuple):
    """The environments of steps in the datastore, and the keys of all their blobs."""

    of_steps: dict[str, Shipped]
    blobs: tuple[str, ...]


# ------------------------------------------------------------------ upload


def ship(
    locks: Mapping[str, Lock],
    store: ObjectStore | None,
    now: float,
    report: Report = lambda line: None,
    python: str | None = None,
) -> StoredEnvironments:
    """Upload the environments of steps to the datastore, for other hosts. Blocks.

    Args:
        locks: The locked environments, by step.
        store: The datastore; None to compute the keys without storing anything.
        now: The present time, in seconds since the epoch.
        report: Called with one line before each operation that takes time.
        python: The version of Python on these hosts, for example `3.12`; None for this process's.

    Returns:
        The blob keys of the environments, by step.

    Raises:
        EnvironmentFailed: If a package cannot be fetched.
        MissingExtra: If uv is not installed.
        StorageError: If the datastore does not respond.
    """
    sender = _Sender(store, now, report, python or own_interpreter().minor)
    by_digest = {
        digest: sender.shipped(lock)
        for digest, lock in {lock.digest: lock for lock in locks.values()}.items()
    }
    of_steps = {name: by_digest[lock.digest] for name, lock in locks.items()}
    return StoredEnvironments(of_steps, tuple(sender.blobs))


class _Sender:
    def __init__(self, store: ObjectStore | None, now: float, report: Report, python: str) -> None:
        self._store = store
        self._python_there = python
        self._now = now
        self._report = report
        cache = cache_folder()
        self._files = Files(cache)
        self._environments = Environments(cache, report)
        self.blobs: dict[str, None] = {}

    def shipped(self, lock: Lock) -> Shipped:
        """Upload the environment of a lock, and what hosts with the Python of jobs may lack."""
        other = lock.minor != self._python_there and not lock.is_conda
        return Shipped(
            self._lock(lock),
            self._runtime(lock) if other else None,
            self._python(lock) if other else None,
            self._uv(lock.platform),
        )

    def _runtime(self, lock: Lock) -> str | None:
        """Upload aflow's dependencies for another Python and return the key of their manifest; None
        if they are not available: stand-ins are used then (see build.py)."""
        try:
            return self._lock(self._environments.runtime_lock(lock.minor, lock.platform))
        except EnvironmentFailed as error:
            self._report(str(error))
            return None

    def _lock(self, lock: Lock) -> str:
        """Upload the files of a lock, and return the key of its manifest."""
        # The lock in the form that is recorded with a run. First, because it creates the folder of
        # a new local store.
        self._put(lock.encode())

        def put() -> list[str]:
            count = len(lock.packages)
            what = f"{plural(count, 'package')} for Python {lock.python}"
            self._report(f"Putting {what} into the datastore")
            with ThreadPoolExecutor(AT_ONCE, "aflow-ship") as threads:
                made = [*threads.map(self._package, lock.packages)]
            files = {each.sha256: entry for each, entry in zip(lock.packages, made, strict=True)}
            text = json.dumps({"lock": lock.as_dict(), "files": files}, sort_keys=True)
            return [self._put(text.encode()), *(each["key"] for each in made)]

        return self._once("environments", lock.digest, put)

    def _package(self, package: LockedPackage) -> dict[str, Any]:
        path = self._files.fetch(package)
        key, size = self._files.blob_key(path), path.stat().st_size
        if self._store is not None and not BlobStore(self._store).claim(key):
            BlobStore(self._store).put_raw(path.read_bytes())
        return {"key": key, "size": size}

    def _uv(self, platform: str) -> str:
        """Upload the program uv for a platform, and return its key."""
        if kind_of(platform) == kind_of(this_platform()):
            path = Path(find_uv())
            return self._once("uv", _identity(path), lambda: [self._put(path.read_bytes())])
        lock = self._of_uv(platform)

        def put() -> list[str]:
            wheel = self._files.fetch(next(iter(lock)))
            with zipfile.ZipFile(wheel) as archive:
                name = next(n for n in archive.namelist() if n.endswith(".data/scripts/uv"))
                return [self._put(archive.read(name))]

        return self._once("uv", lock.digest, put)

    def _of_uv(self, platform: str) -> Lock:
        """Return the lock of uv's wheel for another platform, in the version of the local uv."""
        uv = Uv(self._report)
        version = uv.run("--version").split()[1]
        solver = Solver(cache_folder(), cache_folder(), uv)
        spec = Spec(requirements=(f"uv=={version}",))
        try:
            return solver.lock(spec, Target("3.12", platform))
        except EnvironmentFailed as error:
            raise EnvironmentFailed(
                f"uv {version}, which installs packages in jobs, is not available for {platform}: "
                f"{error}."
            ) from error

    def _python(self, lock: Lock) -> str | None:
        """Upload an interpreter for a lock as a tar file, and return its key; None for another
        platform, because this host has no interpreter for it."""
        if kind_of(lock.platform) != kind_of(this_platform()):
            self._report(
                f"Python {lock.minor} for {lock.platform} does not travel from this machine: the "
                "images of jobs have to have it"
            )
            return None
        path = interpreter_for(lock.python).path
        identity = f"{_FORM} {_identity(Path(path))}"
        return self._once("python", identity, lambda: [self._put(packed_python(path))])

    def _put(self, data: bytes) -> str:
        if self._store is None:
            return digest_of([data], len(data))
        return BlobStore(self._store).put(data)

    def _once(self, kind: str, identity: str, put: Callable[[], list[str]]) -> str:
        """Return the first of the keys that `put` returns, and declare or renew the root of all.

        `put` is called only if the store does not have all blobs of an earlier call.
        """
        name = roots.root_name(kind, identity)
        before = None if self._store is None else roots.declared(self._store, name)
        keys = [*before.blobs] if before is not None and self._are_there(before.blobs) else put()
        self.blobs.update(dict.fromkeys(keys))
        is_kept = before is not None and (before.until or 0) > self._now + KEPT - RENEWED
        if self._store is not None and not (is_kept and before and [*before.blobs] == keys):
            about = f"{kind} that were shipped to jobs"
            root = roots.GcRoot(tuple(keys), about, until=self._now + KEPT)
            roots.declare(self._store, name, root)
        return keys[0]

    def _are_there(self, keys: tuple[str, ...]) -> bool:
        assert self._store is not None, "there is a root in it"
        claim = BlobStore(self._store).claim
        with ThreadPoolExecutor(AT_ONCE, "aflow-ship") as threads:
            return bool(keys) and all(threads.map(claim, keys))


def _identity(path: Path) -> str:
    status = path.resolve().stat()
    return f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"


def packed_python(python: str) -> bytes:
    """Return a tar file with the program and the standard library of an interpreter, which can be
    unpacked into any folder.

    Args:
        python: The path of the interpreter.

    Raises:
        EnvironmentFailed: If the interpreter cannot be run.
    """
    program = (
        "import json, sys, sysconfig; print(json.dumps([sys._base_executable, "
        "sysconfig.get_path('stdlib'), sysconfig.get_config_var('INSTSONAME') or '', "
        "sysconfig.get_config_var('LIBDIR') or '']))"
    )
    try:
        done = subprocess.run(
            [python, "-I", "-c", program],
            capture_output=True,
            encoding="utf-8",
            timeout=60,
            check=True,
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise EnvironmentFailed(f"The interpreter {python} cannot be asked: {error}") from error
    executable, library, shared, beside = json.loads(done.stdout)
    root = Path(library)
    interpreter = _relocatable(Path(executable).resolve().read_bytes(), beside)
    found: dict[str, Path | bytes] = {f"bin/{root.name}": interpreter}
    if shared.encode() in interpreter and Path(beside, shared).is_file():
        found[f"lib/{shared}"] = Path(beside, shared)
    for place, folders, names in os.walk(root):
        folders[:] = sorted(
            f for f in folders if f not in _LEFT_OUT and not f.startswith("config-")
        )
        for name in sorted(names):
            if not name.endswith((".pyc", ".a")):
                path = Path(place, name)
                found[f"lib/{root.name}/{path.relative_to(root).as_posix()}"] = path
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, each in found.items():
            if isinstance(each, Path) and not each.is_file():
                continue
            content = each if isinstance(each, bytes) else each.read_bytes()
            member = tarfile.TarInfo(name)
            member.size = len(content)
            is_run = isinstance(each, bytes) or each.stat().st_mode & 0o111
            member.mode = 0o755 if is_run else 0o644
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def _relocatable(program: bytes, folder: str) -> bytes:
    """Return the program with its rpath changed from this folder to a path relative to itself.

    A Python that was built with --enable-shared (for example by pyenv) contains the absolute path
    of the folder with its shared library.
    """
    old, new = folder.encode(), b"$ORIGIN/../lib"
    if len(old) < len(new):  # the new path does not fit; `FromStore.interpreter` reports the error
        return program
    return program.replace(b"\0%b\0" % old, b"\0%b\0" % new.ljust(len(old), b"\0"), 1)


# ------------------------------------------------------------------ download


def built(shipped: Shipped, store: ObjectStore, report: Report, steps: Iterable[str]) -> Built:
    """Return the environment of these steps on this host; if it does not exist, build it from the
    files in the datastore, without an index. Blocks.

    Args:
        shipped: The blob keys of the environment.
        store: The datastore to which the environment was shipped.
        report: Called with one line before each operation that takes time.
        steps: The names of the steps, for messages.

    Raises:
        EnvironmentFailed: If the environment cannot be built; the message contains the steps.
        StorageError: If the datastore does not respond.
    """
    cache = cache_folder()
    supplies = FromStore(shipped, store, cache, report)
    return Environments(cache, report, supplies).built(supplies.lock, of_steps(steps))


def locks(environments: Mapping[str, Shipped], store: ObjectStore) -> dict[str, Lock]:
    """Return the locks of shipped environments, by step. Blocks. Raises StorageError and
    InvalidLock.

    Args:
        environments: The blob keys of the environments, by step.
        store: The datastore to which they were shipped.
    """
    blobs = BlobStore(store)
    keys = {shipped.packages for shipped in environments.values()}
    found = {key: Lock.from_dict(_manifest(blobs, key)["lock"]) for key in keys}
    return {name: found[shipped.packages] for name, shipped in environments.items()}


class FromStore(Supplies):
    """Supplies the files to build an environment from the datastore."""

    def __init__(self, shipped: Shipped, store: ObjectStore, cache: Path, report: Report) -> None:
        self._shipped = shipped
        self._store = store
        self._blobs = BlobStore(store)
        self._cache = cache
        self._report = report
        self._files = Files(cache)
        packages = _manifest(self._blobs, shipped.packages)
        self.lock = Lock.from_dict(packages["lock"])
        self._known: dict[str, dict[str, Any]] = dict(packages["files"])

    def file(self, package: LockedPackage) -> Path | None:
        """Return the path of a package's file, after fetching it and verifying its digest; None if
        it was not shipped.

        Args:
            package: The locked package.

        Raises:
            EnvironmentFailed: If the file in the datastore is damaged.
        """
        entry = self._known.get(package.sha256)
        if entry is None:
            return None
        with temporary_file(self._files.folder) as new:
            with new.open("wb") as file:
                for at in range(0, entry["size"], _PIECE):
                    length = min(_PIECE, entry["size"] - at)
                    file.write(self._blobs.get_range(entry["key"], at, length))
            if digest_of_file(new) != package.sha256:
                raise EnvironmentFailed(
                    f"{package.file} is damaged in the datastore {self._store.url}: its digest is "
                    f"another than that of the lock (blob {entry['key']})"
                )
            self._files.add(new, package.file)
        return self._files.path(package)

    def runtime(self, minor: str) -> Lock | None:
        """Return the lock of aflow's dependencies for this Python; None if none were shipped."""
        if self._shipped.runtime is None:
            return None
        manifest = _manifest(self._blobs, self._shipped.runtime)
        self._known.update(manifest["files"])
        lock = Lock.from_dict(manifest["lock"])
        return lock if lock.minor == minor else None

    def uv(self) -> str | None:
        """Return the path of the shipped uv, after fetching it if necessary."""
        place = self._cache / "tools" / self._shipped.uv / "uv"
        if not place.is_file():
            self._report("Fetching uv from the datastore")
            data = self._blobs.get(self._shipped.uv)
            with temporary_file(place.parent) as new:
                new.write_bytes(data)
                new.chmod(0o755)
                os.replace(new, place)
        return os.fspath(place)

    def interpreter(self, asked: str) -> Interpreter | None:
        """Return the shipped Python, after fetching it if necessary; None if none was shipped.
        Raises EnvironmentFailed if it does not run on this host."""
        key = self._shipped.python
        if key is None:
            return None
        folder = self._cache / "pythons" / key
        if not folder.is_dir():
            self._report(f"Fetching Python {asked} from the datastore")
            data = bytes(self._blobs.get(key))
            folder.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".new-", dir=folder.parent) as made:
                _unpack(data, Path(made, "python"))
                try:
                    os.rename(Path(made, "python"), folder)
                except OSError:
                    if not folder.is_dir():  # not just a concurrent process that was faster
                        raise
        path = os.fspath(next(folder.glob("bin/python3*")))
        done = subprocess.run(
            [path, "-I", "-S", "-c", _NEEDED], capture_output=True, encoding="utf-8", check=False
        )
        version = version_of(path)
        if done.returncode or version is None:
            why = (done.stderr.strip().splitlines() or ["it cannot be started"])[-1]
            raise EnvironmentFailed(
                f"Python {asked} was shipped with the run and does not run here ({why}): use an "
                "image that has it, or start the run where uv has installed it (uv python install "
                f"{asked}), whose Pythons need nothing else"
            )
        return Interpreter(path, version)


def _manifest(blobs: BlobStore, key: str) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads(bytes(blobs.get(key)))
    except ValueError as error:
        raise CorruptBlob(f"The manifest {key} of an environment is damaged.") from error
    return manifest


def _unpack(data: bytes, folder: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as archive:
        for member in archive:
            if not member.isfile() or not {"", ".."}.isdisjoint(member.name.split("/")):
                raise EnvironmentFailed(
                    f"A Python of the datastore has {member.name}, no plain file"
                )
        # Python 3.11.3 and older have no filters, and later versions warn if none is set.
        archive.extraction_filter = getattr(tarfile, "data_filter", None)
        archive.extractall(folder)  # noqa: S202 -- all members are plain files below it
