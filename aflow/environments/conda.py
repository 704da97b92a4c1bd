"""Solve and install conda environments with rattler (the extra `conda`).

The channels are those in CONDA_CHANNELS, by default conda-forge; `channel::package` selects the
channel of one package. Python is a package like the others. If a step has both @conda and @pypi,
the packages of @pypi are solved for that Python and installed into the same environment.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from aflow._core.secret import without_credentials
from aflow._core.settings import environment_with
from aflow.environments.files import Files
from aflow.environments.lock import CONDA, Lock, LockedPackage, digest_of_values, lock_of
from aflow.environments.solve import Solver, Target, kept_lock, this_platform
from aflow.environments.spec import Spec
from aflow.environments.uv import Report, Uv, own_interpreter, refuse_older, stamp_of
from aflow.errors import EnvironmentFailed, MissingExtra

_FORM = 2
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
    """Return the channels in CONDA_CHANNELS, in order of priority; by default conda-forge."""
    found = environment_with({}).get("CONDA_CHANNELS", "")
    return found.replace(",", " ").split() or [_DEFAULT]


def lock(
    spec: Spec, folder: Path, platform: str, cache: Path, report: Report, *, rebuild: bool = False
) -> Lock:
    """Return the lock for a step's conda packages and PyPI packages, from the cache if possible.
    Blocks.

    Args:
        spec: The packages that the step requests.
        folder: The folder of the flow, to which relative paths of PyPI packages are relative.
        platform: uv's name of the platform.
        cache: The folder of environments, which contains the cached locks and files.
        report: Called with one line before each operation that takes time.
        rebuild: Whether to solve again even if there is a cached lock.

    Raises:
        MissingExtra: If the extra `conda` is not installed.
        EnvironmentFailed: If the packages cannot be solved.
    """
    rattler = _rattler()
    refuse_older(spec.python or "")
    specs = [*spec.conda, _python_spec(spec.python or own_interpreter().minor)]
    name = digest_of_values(_FORM, specs, platform)

    def solve() -> Lock:
        shown = ", ".join(map(without_credentials, channels()))
        report(f"Solving packages of conda: {', '.join(specs)} ({shown})")
        packages = _solved(rattler, specs, platform)
        version = _python_of(packages)
        if not version:
            raise EnvironmentFailed("none of the channels has python")
        refuse_older(version)
        return lock_of(".".join(version.split(".")[:2]), platform, packages)

    found = kept_lock(cache, f"conda-{name}", _identity(), solve, report, rebuild=rebuild)
    if not spec.requirements:
        return found
    # Cached separately: they have another index, and may be files and folders that change.
    beside = Spec(requirements=spec.requirements, python=spec.python)
    target = Target(_python_of(found), platform)
    solver = Solver(cache, folder, Uv(report), report, rebuild=rebuild)
    return lock_of(found.python, platform, [*found, *solver.lock(beside, target)])


def _python_of(packages: Iterable[LockedPackage]) -> str:
    return next((each.version for each in packages if each.name == "python"), "")


def install(
    lock: Lock,
    new: Path,
    final: Path,
    files: Files,
    fetch: Callable[[LockedPackage], Path | None],
) -> None:
    """Install the conda packages of a lock. Blocks.

    Args:
        lock: The locked environment; its wheels are skipped.
        new: An existing, empty folder to install into.
        final: The folder that `new` will be renamed to; scripts contain its path.
        files: The cache of package files.
        fetch: Returns the file of a package; None if it has to be downloaded.

    Raises:
        MissingExtra: If the extra `conda` is not installed.
        EnvironmentFailed: If a package cannot be fetched or installed.
    """
    rattler = _rattler()
    paths = [
        files.path(each) or fetch(each) or files.fetch(each) for each in lock if each.kind == CONDA
    ]
    try:
        asyncio.run(_installed(rattler, paths, new, final, files.folder.parent / "conda"))
    except Exception as error:  # rattler's errors have no common base class
        raise EnvironmentFailed(
            f"rattler cannot install the packages: {_explanation(error)}"
        ) from error


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
    except Exception as error:  # rattler's errors have no common base class
        raise EnvironmentFailed(_explanation(error)) from error
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
        platform: uv's name of the platform.

    Raises:
        EnvironmentFailed: If conda does not support the platform.
    """
    arch, _, rest = platform.partition("-")
    system = "darwin" if rest == "apple-darwin" else "linux"
    try:
        return _SUBDIRS[f"{arch}-{system}"]
    except KeyError:
        raise EnvironmentFailed(f"conda has no packages for {platform}") from None


def _identity() -> list[str]:
    """Return values that change if the channels change; for local folders, also their contents."""
    found = []
    for each in channels():
        path = Path(each.removeprefix("file://"))
        found.append(without_credentials(each))
        if path.is_dir():
            found += map(stamp_of, sorted(path.iterdir()))
    return found


def _explanation(error: BaseException) -> str:
    """Return the message of an error of rattler as one line, without credentials."""
    text = " ".join(str(error).split())
    return without_credentials(text).rstrip(".") or type(error).__name__
