"""The environments of a flow's steps: what they ask for, locked, and built on this machine."""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aflow.environments.build import Built, Environments, cache_folder
from aflow.environments.files import Files
from aflow.environments.lock import Lock, LockedPackage
from aflow.environments.shipping import Shipment
from aflow.environments.solve import Solver, Target, project_python, this_platform
from aflow.environments.spec import Spec, specs_of
from aflow.environments.uv import Report, Uv, UvFailed, interpreter_for, own_interpreter
from aflow.environments.wheels import PackedWheel
from aflow.errors import EnvironmentFailed, StorageError
from aflow.storage.blobs import BlobStore

if TYPE_CHECKING:
    from aflow.flow.definition import FlowDefinition
    from aflow.storage.base import ObjectStore

_log = logging.getLogger("aflow.environments")
RUNTIME = "runtime-"  # before the version of Python: names a lock of what aflow needs
_AT_ONCE = 4  # environments that are solved or built at a time; uv itself uses all cores


def to_log(line: str) -> None:
    """Report to the log."""
    _log.info("%s", line)


def locks_of(
    definition: FlowDefinition,
    kind: str | None = None,
    *,
    only: str | None = None,
    platforms: Mapping[str, str] | None = None,
    report: Report = to_log,
    anew: bool = False,
) -> dict[str, Lock]:
    """The locks of the steps that have an environment of their own, as `--environment kind` says;
    of the step `only`, if it is given. `platforms` are those of steps that run elsewhere, by name.
    With `anew` locks that were made before do not count. Blocks.

    Raises InvalidDecorator, MissingExtra and EnvironmentFailed, naming the steps."""
    specs = specs_of(definition, kind, only)
    if not specs:
        return {}
    steps: dict[tuple[Spec, str], list[str]] = {}
    for name, spec in specs.items():
        platform = (platforms or {}).get(name) or this_platform()
        steps.setdefault((spec, platform), []).append(name)
    solving = _Solving(_folder_of(definition), report, anew=anew)
    locks: dict[str, Lock] = {}
    for (key, names), lock in zip(
        steps.items(), _at_once(solving.lock, [(*key, names) for key, names in steps.items()]),
        strict=True,
    ):  # fmt: skip
        _ = key
        locks.update(dict.fromkeys(names, lock))
    return {name: locks[name] for name in specs}


def build_all(
    locks: Mapping[str, Lock],
    steps: Collection[str],
    *,
    report: Report = to_log,
    anew: bool = False,
) -> dict[str, Built]:
    """Build the environments of these steps on this machine, as far as they are not there; by the
    digests of their locks. Blocks. Raises EnvironmentFailed, naming the steps."""
    wanted: dict[str, list[str]] = {}
    by_digest: dict[str, Lock] = {}
    for name in steps:
        if name in locks:
            wanted.setdefault(locks[name].digest, []).append(name)
            by_digest[locks[name].digest] = locks[name]
    if not wanted:
        return {}
    environments = Environments(cache_folder(), report)

    def build(lock: Lock) -> Built:
        return environments.built(lock, of_steps(wanted[lock.digest]), anew=anew)

    return {each.digest: each for each in _at_once(build, [(each,) for each in by_digest.values()])}


def ship(lock: Lock, store: ObjectStore, now: float, about: str) -> dict[str, str]:
    """Put the files of a lock into the datastore, where they may be already, and keep them there
    for a month after they were last used; the keys of the blobs, by the files' sha256. What cannot
    be had here is left out: its index may know it where the environment is built. Blocks. Raises
    StorageError and ShippingError."""
    files = Files(cache_folder())
    packed: list[PackedWheel] = []
    for each in lock:
        try:
            path = files.fetch(each)
        except EnvironmentFailed as error:
            _log.warning("The package %s is not put into the datastore: %s", each.file, error)
            continue
        size, key = path.stat().st_size, files.blob_key(path)
        packed.append(PackedWheel(each.name, each.version, path, size, each.sha256, key))
    Shipment(lock.encode(), tuple(packed), about).put(store, now)
    return {each.sha256: each.key for each in packed}


def built_from(
    lock: Lock,
    shipped: Mapping[str, tuple[Mapping[str, Any], Mapping[str, str]]],
    store: ObjectStore,
    steps: Iterable[str],
    report: Report,
) -> Built:
    """The environment of a lock on this machine, built from files of the datastore where it is not
    there: `shipped` are the locks of a run, each with the keys of its blobs. Blocks. Raises
    EnvironmentFailed, naming the steps, and MissingExtra."""
    cache = cache_folder()
    files, blobs = Files(cache), BlobStore(store)
    keys = {digest: key for _, of_lock in shipped.values() for digest, key in of_lock.items()}
    runtimes = {
        name.removeprefix(RUNTIME): Lock.from_dict(plain)
        for name, (plain, _) in shipped.items()
        if name.startswith(RUNTIME)
    }

    def fetch(package: LockedPackage) -> Path | None:
        key = keys.get(package.sha256)
        if key is None:
            return None
        try:
            return files.keep(package, blobs.get(key))
        except StorageError as error:
            if package.url:  # its index may have it
                return None
            raise EnvironmentFailed(f"{package.file} cannot be had: {error}") from error

    return Environments(cache, report, fetch, runtimes).built(lock, of_steps(steps))


def runtimes_of(locks: Iterable[Lock]) -> dict[str, Lock]:
    """What aflow needs in the environments of these locks that have another Python than this, under
    names for `built_from`. What cannot be had is left out. Blocks."""
    found: dict[str, Lock] = {}
    for minor in {each.minor for each in locks} - {own_interpreter().minor}:
        try:
            found[RUNTIME + minor] = Environments(cache_folder()).runtime_lock(minor)
        except EnvironmentFailed as error:
            _log.warning("%s", error)
    return found


def of_steps(names: Iterable[str]) -> str:
    """Whose environment it is, as messages say it."""
    every = [*names]
    return f" of {'step' if len(every) == 1 else 'steps'} {', '.join(every)}"


class _Solving:
    """Solves for the steps of one flow."""

    def __init__(self, folder: Path, report: Report, *, anew: bool) -> None:
        self._cache = cache_folder()
        self._uv: Uv | None = None
        self._folder = folder
        self._report = report
        self._anew = anew

    def lock(self, spec: Spec, platform: str, names: list[str]) -> Lock:
        try:
            return self._lock(spec, platform, names)
        except UvFailed as error:
            raise EnvironmentFailed(_failed(names, error.explanation)) from error
        except EnvironmentFailed as error:
            raise EnvironmentFailed(_failed(names, str(error))) from error

    def _lock(self, spec: Spec, platform: str, names: list[str]) -> Lock:
        if spec.uses_conda:
            from aflow.environments import conda  # needs py-rattler

            return conda.lock(
                spec, self._folder, platform, self._cache, self._report, anew=self._anew
            )
        asked = spec.python or (project_python(spec.project) if spec.project else None)
        uv = self._uv = self._uv or Uv(self._report)
        python = interpreter_for(asked, uv)
        here = platform == this_platform()
        target = Target(python.version, platform, python if here else None)
        solver = Solver(self._cache, self._folder, uv, self._report, anew=self._anew)
        lock = solver.kept(spec, target)
        if lock is None:
            what = ", ".join(spec.requirements) or (
                "those of its project" if spec.project else "none"
            )
            self._report(f"Solving the packages{of_steps(names)} for Python {target.minor}: {what}")
            lock = solver.solve(spec, target)
        return lock


def _failed(names: list[str], why: str) -> str:
    text = f"The packages{of_steps(names)} cannot be solved: {why}"
    return text if text.endswith((".", "!")) else f"{text}."


def _folder_of(definition: FlowDefinition) -> Path:
    """The folder that relative paths of a flow start from."""
    return Path(os.path.dirname(os.path.abspath(definition.file)) if definition.file else os.curdir)


def _at_once(call: Any, every: Iterable[tuple[Any, ...]]) -> list[Any]:
    """What the calls give, in order; the first error, once all have ended."""
    arguments = [*every]
    if len(arguments) == 1:
        return [call(*arguments[0])]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return [*pool.map(lambda each: call(*each), arguments)]
