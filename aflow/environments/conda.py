"""Conda environments, by rattler (the extra `conda`).

Channels are those of CONDA_CHANNELS, conda-forge where nothing is set; `channel::package` names the
channel of one package. Python is a package like the others. Packages of @pypi beside @conda are
solved for that Python, and installed into the same environment.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aflow._core.settings import environment_with
from aflow.environments.files import Files
from aflow.environments.lock import CONDA, Lock, LockedPackage, digest_of_values, lock_of
from aflow.environments.solve import Solver, Target, kept_lock, this_platform
from aflow.environments.spec import Spec
from aflow.environments.uv import (
    Report,
    Uv,
    own_interpreter,
    refuse_older,
    stamp_of,
    without_credentials,
)
from aflow.errors import EnvironmentFailed, MissingExtra

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
        folder: The folder of the flow, which relative paths of packages of PyPI start from.
        platform: The platform, as uv names it.
        cache: The folder of environments, below which locks and files are kept.
        report: Takes one line for each thing that takes time.
        rebuild: Whether to solve and build again what exists already.

    Raises:
        MissingExtra: The extra `conda` is not installed.
        EnvironmentFailed: The packages cannot be solved.
    """
    rattler = _rattler()
    refuse_older(spec.python or "")
    specs = [*spec.conda, _python_spec(spec.python or own_interpreter().minor)]
    name = digest_of_values(_FORM, specs, spec.requirements, platform)

    def solve() -> Lock:
        shown = ", ".join(map(without_credentials, channels()))
        report(f"Solving packages of conda: {', '.join(specs)} ({shown})")
        packages = _solved(rattler, specs, platform)
        version = next((each.version for each in packages if each.name == "python"), "")
        if not version:
            raise EnvironmentFailed("none of the channels has python")
        refuse_older(version)
        if spec.requirements:
            beside = Spec(requirements=spec.requirements, python=spec.python)
            solver = Solver(cache, folder, Uv(report), report, rebuild=rebuild)
            packages += solver.lock(beside, Target(version, platform)).packages
        return lock_of(".".join(version.split(".")[:2]), platform, packages)

    return kept_lock(cache, f"conda-{name}", _identity(), solve, report, rebuild=rebuild)


def install(
    lock: Lock,
    new: Path,
    final: Path,
    files: Files,
    fetch: Callable[[LockedPackage], Path | None],
) -> None:
    """Install the conda packages of a lock. Blocks.

    Args:
        lock: The locked environment; its wheels are left out.
        new: An existing, empty folder, which is filled.
        final: The folder that `new` will be renamed to: scripts name it.
        files: The files of packages that are kept here.
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
    except Exception as error:  # its errors have no class of their own
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


def _identity() -> list[str]:
    """What says which channels are asked; folders count with what is in them."""
    found = []
    for each in channels():
        path = Path(each.removeprefix("file://"))
        found.append(without_credentials(each))
        if path.is_dir():
            found += map(stamp_of, sorted(path.iterdir()))
    return found


def _explanation(error: BaseException) -> str:
    """What rattler says, in one line."""
    text = " ".join(str(error).split())
    return without_credentials(text).rstrip(".") or type(error).__name__
