"""Conda environments, by rattler (the extra `conda`).

Channels are those of CONDA_CHANNELS, conda-forge where nothing is set; `channel::package` names the
channel of one package. Python is a package like the others. Packages of @pypi beside @conda are
solved for that Python, and installed into the same environment.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aflow._core.private_folders import read_regular
from aflow._core.settings import environment_with
from aflow.environments.files import Files
from aflow.environments.lock import CONDA, Lock, LockedPackage, lock_of
from aflow.environments.solve import Solver, Target, this_platform
from aflow.environments.spec import Spec
from aflow.environments.uv import Report, Uv, own_interpreter, stamp_of, without_credentials
from aflow.errors import EnvironmentFailed, InvalidLock, MissingExtra

_FORM = 1
_DEFAULT = "conda-forge"
_SUBDIRS = {
    "x86_64-linux": "linux-64",
    "aarch64-linux": "linux-aarch64",
    "ppc64le-linux": "linux-ppc64le",
    "x86_64-darwin": "osx-64",
    "aarch64-darwin": "osx-arm64",
}


def _rattler() -> Any:
    try:
        import rattler
    except ImportError as error:
        raise MissingExtra(
            "Packages of conda (@conda) are solved and installed by rattler, which is not here: "
            "install aflow-runtime[conda], name the packages by @pypi, or run with --environment "
            "local to use what is installed."
        ) from error
    return rattler


def channels() -> list[str]:
    """Return the channels that are set, the first before the others."""
    found = environment_with({}).get("CONDA_CHANNELS", "")
    return found.replace(",", " ").split() or [_DEFAULT]


def lock(
    spec: Spec, folder: Path, platform: str, cache: Path, report: Report, *, rebuild: bool = False
) -> Lock:
    """Return the lock for what a step asks of conda, and of PyPI beside it: one that was made
    before, or a new one. Blocks.

    Args:
        spec: The packages that a step asks for.
        folder: The folder.
        platform: The platform, as uv names it.
        cache: The folder for what was downloaded.
        report: Takes one line for each thing that takes time.
        rebuild: Whether to solve and build again what exists already.

    Raises:
        MissingExtra: The extra `conda` is not installed.
        EnvironmentFailed: The packages cannot be solved.
    """
    rattler = _rattler()
    python = spec.python or own_interpreter().minor
    specs = [*spec.conda, _python_spec(python)]
    files = Files(cache)
    asked = json.dumps([_FORM, specs, spec.requirements, platform])
    place = cache / "locks" / f"conda-{hashlib.sha256(asked.encode()).hexdigest()}.json"
    index = _identity()
    kept = None if rebuild else _read(place)
    if kept is not None and kept[0] == index:
        return kept[1]
    try:
        report(
            f"Solving packages of conda: {', '.join(specs)} ({', '.join(map(_shown, channels()))})"
        )
        packages = _solved(rattler, specs, platform)
        version = next((each.version for each in packages if each.name == "python"), "")
        if not version:
            raise EnvironmentFailed("none of the channels has python")
        minor = ".".join(version.split(".")[:2])
        if spec.requirements:
            beside = Spec(requirements=spec.requirements, python=spec.python)
            solver = Solver(cache, folder, Uv(report), report, rebuild=rebuild)
            target = Target(version, platform, None)
            found = solver.kept(beside, target) or solver.solve(beside, target)
            packages += found.packages
    except EnvironmentFailed:
        if kept is None:
            raise
        return kept[1]
    made = lock_of(minor, platform, packages)
    data = {"index": index, "lock": made.as_dict()}
    files.write(place, json.dumps(data).encode())
    return made


def install(
    lock: Lock,
    new: Path,
    final: Path,
    files: Files,
    fetch: Callable[[LockedPackage], Path | None],
) -> None:
    """Install the conda packages of a lock. Blocks.

    Args:
        lock: The locked environment.
        new: The folder to fill.
        final: The folder that `new` will be renamed to: scripts name it.
        files: The files by digest.
        fetch: Returns the file of a package, or None where it has to be downloaded.

    Raises:
        MissingExtra: The extra `conda` is not installed.
        EnvironmentFailed: A package cannot be fetched or installed.
    """
    rattler = _rattler()
    paths = [
        files.path(each) or fetch(each) or files.fetch(each) for each in lock if each.kind == CONDA
    ]
    try:
        asyncio.run(_installed(rattler, paths, new, final, files.folder.parent / "conda"))
    except Exception as error:  # its errors have no class of their own
        raise EnvironmentFailed(f"rattler cannot install the packages: {_said(error)}") from error


async def _installed(rattler: Any, paths: list[Path], new: Path, final: Path, cache: Path) -> None:
    records = [await rattler.RepoDataRecord.from_package_archive(each) for each in paths]
    await rattler.install(
        rattler.PackageRecord.sort_topologically(records),
        target_prefix=new,
        alternative_target_prefix=final,
        cache_dir=cache,
        execute_link_scripts=False,
        show_progress=False,
    )


def _python_spec(asked: str) -> str:
    return f"python {asked}" if asked[:1] in "<>=!~" else f"python {asked}.*"


def _solved(rattler: Any, specs: list[str], platform: str) -> list[LockedPackage]:
    subdir = subdir_of(platform)
    options: dict[str, Any] = {"platforms": [subdir, "noarch"]}
    if platform == this_platform():
        options["virtual_packages"] = rattler.VirtualPackage.detect()
    elif "manylinux" in platform:
        glibc = platform.rpartition("manylinux_")[2].replace("_", ".")
        options["virtual_packages"] = [
            rattler.GenericVirtualPackage(rattler.PackageName(name), rattler.Version(version), "0")
            for name, version in (("__unix", "0"), ("__linux", "5.10"), ("__glibc", glibc))
        ]
    try:
        records = asyncio.run(rattler.solve(channels(), specs, **options))
    except Exception as error:  # its errors have no class of their own
        raise EnvironmentFailed(_said(error)) from error
    return [_locked(each) for each in records]


def _locked(record: Any) -> LockedPackage:
    name = str(record.name.normalized)
    if record.sha256 is None:
        raise EnvironmentFailed(f"the channel gives no sha256 of {record.file_name}")
    return LockedPackage(
        name=name,
        version=str(record.version),
        file=record.file_name,
        sha256=record.sha256.hex(),
        url=without_credentials(str(record.url)),
        kind=CONDA,
    )


def subdir_of(platform: str) -> str:
    """Return conda's name of a platform.

    Args:
        platform: The platform, as uv names it.

    Raises:
        EnvironmentFailed: conda has none.
    """
    arch, _, rest = platform.partition("-")
    system = "darwin" if rest == "apple-darwin" else "linux"
    try:
        return _SUBDIRS[f"{arch}-{system}"]
    except KeyError:
        raise EnvironmentFailed(f"conda has no packages for {platform}") from None


def _identity() -> str:
    """What says which channels are asked; folders count with what is in them."""
    found = []
    for each in channels():
        path = each.removeprefix("file://")
        found.append(_shown(each))
        if os.path.isdir(path):
            subdirs = (os.path.join(path, name) for name in sorted(os.listdir(path)))
            found += [stamp_of(place) for place in subdirs if os.path.isdir(place)]
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


def _shown(channel: str) -> str:
    return without_credentials(channel)


def _read(place: Path) -> tuple[str, Lock] | None:
    try:
        found = json.loads(read_regular(place))
        return found["index"], Lock.from_dict(found["lock"])
    except (OSError, ValueError, KeyError, TypeError, InvalidLock):
        return None


def _said(error: BaseException) -> str:
    """What rattler says, in one line."""
    text = " ".join(str(error).split())
    return without_credentials(text).rstrip(".") or type(error).__name__
