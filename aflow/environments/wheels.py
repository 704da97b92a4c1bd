"""Pack aflow and its dependencies as wheels, from their installed files.

The RECORD of an installed distribution lists its files and WHEEL has its tags, which is everything
that a wheel consists of. So a host can ship its installed packages without an index. An editable
installation of aflow, or one that runs from its source tree, is packed from there. Equal files
result in equal bytes.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import platform
import re
import shutil
import sys
import tempfile
import tomllib
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from blake3 import blake3
from packaging.markers import Marker
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from aflow._core.private_folders import read_regular
from aflow._core.version import DISTRIBUTION, __version__
from aflow.environments.files import digest_of_file
from aflow.errors import ShippingError

if TYPE_CHECKING:
    from importlib.metadata import Distribution

_EPOCH = (1980, 1, 1, 0, 0, 0)
_LEVEL = 4  # of zlib: the default level takes two thirds longer for wheels that are 2 % smaller
_OURS = "aflow"
_ROOT = Path(__file__).parents[1]  # the package aflow
_INDEX = "wheel.json"
KEPT = 7 * 86400.0  # seconds for which an unused packed wheel is kept
_NOT_SHIPPED = frozenset({"RECORD", "INSTALLER", "REQUESTED", "direct_url.json"})
_MANYLINUX = re.compile(r"manylinux_(\d+)_(\d+)_|manylinux(1|2010|2014)_")
_OLD = {"1": (2, 5), "2010": (2, 12), "2014": (2, 17)}


class PackedWheel(NamedTuple):
    """A wheel file: its distribution, its size, and the SHA-256 and BLAKE3 (`key`) of its bytes."""

    name: str
    version: str
    path: Path
    size: int
    sha256: str
    key: str

    @property
    def tags(self) -> str:
        """The compatibility tags: Python, ABI and platform, joined by dashes."""
        return self.path.name.removesuffix(".whl").split("-", 2)[2]


class Fit(NamedTuple):
    """The requirements of a set of wheels: the version of Python (`3.11`; `3.13t` without GIL), the
    architecture (`x86_64`), and the C library with its minimum version."""

    python: str
    machine: str
    libc: tuple[str, tuple[int, ...]]


def runtime(extras: Iterable[str], folder: Path, now: float) -> list[PackedWheel]:
    """Pack aflow with these extras and its dependencies as wheels; those that exist are reused.

    Args:
        extras: The extras of aflow to include.
        folder: The folder of packed wheels; those that were not used for a week are deleted.
        now: The present time, in seconds since the epoch.

    Returns:
        The wheels: that of aflow first, then the others in the order of their names.

    Raises:
        ShippingError: If a distribution cannot be packed.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder, now - KEPT)
    except OSError as error:
        raise ShippingError(
            f"aflow cannot be packed for jobs in {folder}: {error.strerror or error}."
        ) from error
    others = [_packed(each, folder) for each in closure(frozenset(extras))]
    return [_packed_aflow(folder), *others]


def fit_of(wheels: Sequence[PackedWheel]) -> Fit:
    """Return the requirements of all these wheels together, which were packed by this Python.

    Args:
        wheels: The wheels of aflow and its dependencies.
    """
    libc, here = platform.libc_ver()
    name = libc or "musl"
    lowest: tuple[int, ...] = ()
    for wheel in wheels:
        kinds = wheel.tags.rpartition("-")[2].split(".")
        if kinds == ["any"]:
            continue
        floors = [_floor(kind) for kind in kinds]
        known = [each for each in floors if each is not None]
        # A wheel without manylinux tag was built here and may need this version of the C library.
        lowest = max(lowest, min(known) if known else _numbers(here))
    version = f"{sys.version_info[0]}.{sys.version_info[1]}{'t' * ('t' in sys.abiflags)}"
    return Fit(version, platform.machine(), (name, lowest))


def _floor(kind: str) -> tuple[int, ...] | None:
    found = _MANYLINUX.match(kind)
    if found is None:
        return None
    return _OLD[found[3]] if found[3] else (int(found[1]), int(found[2]))


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(each) for each in version.split(".") if each.isdigit())


def _sweep(folder: Path, before: float) -> None:
    """Remove wheels that were last used before that time."""
    for entry in os.scandir(folder):
        with suppress(FileNotFoundError):  # a concurrent process has removed it
            if entry.stat().st_mtime < before:
                shutil.rmtree(entry.path, ignore_errors=True)


# ------------------------------------------------------------ dependencies


def closure(extras: frozenset[str]) -> list[Distribution]:
    """Return all installed distributions that aflow with these extras depends on, transitively, in
    the order of their canonical names. Raises ShippingError if one is not installed.

    Args:
        extras: The extras of aflow to include.
    """
    found: dict[str, Distribution] = {}
    todo = [*_requirements(needs_of_aflow(), extras)]
    seen: set[tuple[str, frozenset[str]]] = set()
    while todo:
        name, more = todo.pop()
        if name == canonicalize_name(DISTRIBUTION):
            todo += _requirements(needs_of_aflow(), more) if (name, more) not in seen else ()
        elif (name, more) not in seen:
            distribution = found[name] = _distribution(name)
            todo += _requirements(distribution.requires or (), more)
        seen.add((name, more))
    return [found[name] for name in sorted(found)]


def _requirements(
    texts: Iterable[str], extras: frozenset[str]
) -> Iterator[tuple[str, frozenset[str]]]:
    for requirement in map(Requirement, texts):
        if counts(requirement, extras):
            yield canonicalize_name(requirement.name), frozenset(requirement.extras)


# Never private: functions that a step pickles are unpickled by aflow, and vice versa.
_SHARED = frozenset({"cloudpickle"})


def unfit(versions: Mapping[str, str], extras: frozenset[str]) -> list[Distribution]:
    """Return the dependencies of aflow that it cannot share with an environment: those of which the
    environment has an incompatible version, and all that depend on them.

    Args:
        versions: The versions in the environment, by package.
        extras: The extras of aflow to include.
    """
    every = {canonicalize_name(each.name): each for each in closure(extras)}
    if not (every.keys() & versions.keys()) - _SHARED:
        return []
    needs = {name: [*map(Requirement, each.requires or ())] for name, each in every.items()}
    ours = [*map(Requirement, needs_of_aflow())]
    found = {
        name
        for each in [*ours, *(each for needed in needs.values() for each in needed)]
        if (name := canonicalize_name(each.name)) in every
        and name in versions
        and name not in _SHARED
        and counts(each, extras)
        and not each.specifier.contains(versions[name], prereleases=True)
    }
    grown = bool(found)
    while grown:
        dependent = {
            name
            for name, needed in needs.items()
            if any(canonicalize_name(each.name) in found and counts(each, extras)
                   for each in needed)
        } - found - _SHARED  # fmt: skip
        found |= dependent
        grown = bool(dependent)
    return [every[name] for name in sorted(found)]


def counts(requirement: Requirement, extras: Iterable[str]) -> bool:
    """Return whether a requirement of a distribution applies on this host.

    Args:
        requirement: The requirement, with its marker.
        extras: The requested extras of the distribution.
    """
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": each}) for each in ("", *extras))


def top_names(distribution: Distribution) -> set[str]:
    """Return the top-level names of a distribution in site-packages: packages, modules, metadata.

    Args:
        distribution: An installed distribution, whose RECORD is read.
    """
    record = distribution.read_text("RECORD")
    if record is None:
        tops = {each.parts[0] for each in distribution.files or () if each.parts}
    else:  # faster than `files`: some records have thousands of lines
        tops = {re.split(r"[/,]", line, maxsplit=1)[0].strip('"') for line in record.splitlines()}
    return {each for each in tops if each not in ("", "..", "__pycache__", os.sep)}


def needs_of_aflow() -> list[str]:
    """Return the requirements of this aflow: from the pyproject.toml of its source tree, if it runs
    from one, else from its installed metadata."""
    project = _project()
    if project is None:
        return _distribution(DISTRIBUTION).requires or []
    optional: Mapping[str, list[str]] = project.get("optional-dependencies", {})
    of_extras = [_under(text, extra) for extra, texts in optional.items() for text in texts]
    return [*project.get("dependencies", ()), *of_extras]


def _under(text: str, extra: str) -> str:
    """Return a requirement of an extra in the form of package metadata, with a marker."""
    requirement = Requirement(text)
    own = f"({requirement.marker}) and " if requirement.marker is not None else ""
    requirement.marker = Marker(f"{own}extra == '{extra}'")
    return str(requirement)


def _project() -> Mapping[str, Any] | None:
    """Return the table `project` of the source tree that this aflow runs from; None if it was
    installed from a wheel."""
    try:
        text = (_ROOT.parent / "pyproject.toml").read_text(encoding="utf-8")
        project: Mapping[str, Any] = tomllib.loads(text).get("project", {})
    except (OSError, ValueError):
        return None
    return project if project.get("name") == DISTRIBUTION else None


def _distribution(name: str) -> Distribution:
    try:
        return metadata.distribution(name)
    except metadata.PackageNotFoundError as error:
        raise ShippingError(
            f"{name} is not installed here, so that it cannot be shipped to jobs: "
            f"pip install '{DISTRIBUTION}[aws]'."
        ) from error


# ------------------------------------------------------------ packing


def _packed(distribution: Distribution, folder: Path) -> PackedWheel:
    name, version = distribution.metadata["Name"], distribution.version
    record, wheel = distribution.read_text("RECORD"), distribution.read_text("WHEEL")
    if record is None or wheel is None:
        raise ShippingError(
            f"{name} {version} was not installed from a wheel (by the system's package manager?), "
            "so that it cannot be shipped to jobs: install aflow in a virtual environment."
        )
    return _in_folder(folder, f"{name} {version}", record.encode(), lambda: _files(distribution))


def _packed_aflow(folder: Path) -> PackedWheel:
    """Return the wheel of this aflow: from its source tree, if it runs from one, else from its
    installed files."""
    if _project() is not None:
        return _of_source(folder)
    distribution = _distribution(DISTRIBUTION)
    files = {each.as_posix(): each for each in distribution.files or ()}
    package = files.get(f"{_OURS}/__init__.py")
    if package is None or not _is_same(Path(str(distribution.locate_file(package)))):
        raise ShippingError(
            f"The aflow that runs ({_ROOT}) is not the one that is installed as {DISTRIBUTION}: "
            "install it, or run it from its source tree."
        )
    return _packed(distribution, folder)


def _is_same(file: Path) -> bool:
    return file.exists() and file.samefile(_ROOT / "__init__.py")


def _files(distribution: Distribution) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for file in distribution.files or ():
        name = file.as_posix()
        outside = name.startswith(("..", "/"))  # scripts and data files outside of site-packages
        if outside or name.endswith(".pyc") or _is_left_out(name):
            continue
        found[name] = Path(str(distribution.locate_file(file)))
    return found


def _is_left_out(name: str) -> bool:
    folder, _, file = name.rpartition("/")
    return folder.endswith(".dist-info") and "/" not in folder and file in _NOT_SHIPPED


def _of_source(folder: Path) -> PackedWheel:
    """Return the wheel of the source tree, with the metadata that jobs need."""
    info = f"{DISTRIBUTION.replace('-', '_')}-{__version__}.dist-info"
    described = [
        "Metadata-Version: 2.1",
        f"Name: {DISTRIBUTION}",
        f"Version: {__version__}",
        *(f"Requires-Dist: {each}" for each in needs_of_aflow()),
    ]
    tag = "Wheel-Version: 1.0\nGenerator: aflow\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    entry = f"[console_scripts]\n{_OURS} = {_OURS}.__main__:main\n"
    files: dict[str, Path | bytes] = {
        f"{info}/METADATA": "\n".join([*described, ""]).encode(),
        f"{info}/WHEEL": tag.encode(),
        f"{info}/entry_points.txt": entry.encode(),
    }
    stamps: list[Any] = [*described]
    for path in sorted(_source_files(_ROOT)):
        status = path.stat()
        files[f"{_OURS}/{path.relative_to(_ROOT).as_posix()}"] = path
        stamps.append((str(path), status.st_size, status.st_mtime_ns))
    identity = json.dumps(stamps).encode()
    return _in_folder(folder, f"{DISTRIBUTION} {__version__}", identity, lambda: files)


def _source_files(folder: Path) -> Iterator[Path]:
    for entry in os.scandir(folder):
        if entry.name.startswith(".") or entry.name == "__pycache__":
            continue
        if entry.is_dir():
            yield from _source_files(Path(entry.path))
        elif not entry.name.endswith(".pyc"):
            yield Path(entry.path)


def _in_folder(
    folder: Path, label: str, identity: bytes, files: Callable[[], Mapping[str, Path | bytes]]
) -> PackedWheel:
    """Return the wheel of these files; it is written to a subfolder named by the identity, unless
    it exists there. Safe against concurrent processes."""
    place = folder / hashlib.sha256(identity).hexdigest()[:32]
    known = _known(place)
    if known is not None:
        return known
    try:
        made = Path(tempfile.mkdtemp(prefix=".new-", dir=folder))
        try:
            wheel = _write(made, files())
            index = {**wheel._asdict(), "path": wheel.path.name}
            (made / _INDEX).write_text(json.dumps(index), "utf-8")
            # A concurrent process may have created the same folder, whose wheel it uses.
            if (known := _known(place)) is not None:
                return known
            if place.exists():  # incomplete, or in another format
                shutil.rmtree(place, ignore_errors=True)
            with suppress(OSError):
                made.rename(place)
        finally:
            shutil.rmtree(made, ignore_errors=True)
    except OSError as error:
        raise ShippingError(
            f"{label} cannot be packed for jobs in {folder}: {error.strerror or error}."
        ) from error
    return wheel._replace(path=place / wheel.path.name)


def _known(place: Path) -> PackedWheel | None:
    try:
        index = json.loads(read_regular(place / _INDEX))
        known = PackedWheel(**{**index, "path": place / index["path"]})
        if known.path.stat().st_size != known.size:
            return None
        os.utime(place)
    except (OSError, ValueError, TypeError, KeyError):  # missing or incomplete
        return None
    return known


def _write(folder: Path, files: Mapping[str, Path | bytes]) -> PackedWheel:
    """Write the wheel of these files; its file name is derived from its metadata."""
    contents = {
        name: each if isinstance(each, bytes) else each.read_bytes() for name, each in files.items()
    }
    info = next(name.partition("/")[0] for name in contents if name.endswith(".dist-info/WHEEL"))
    tags = re.findall(r"^Tag: *(\S+)", contents[f"{info}/WHEEL"].decode(), re.MULTILINE)
    rows = [f"{name},{_row(data)}" for name, data in sorted(contents.items())]
    contents[f"{info}/RECORD"] = "\n".join([*rows, f"{info}/RECORD,,", ""]).encode()
    name, _, version = info.removesuffix(".dist-info").rpartition("-")
    path = folder / f"{name}-{version}-{_compressed(tags)}.whl"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for member, data in contents.items():
            source = files.get(member)
            is_run = isinstance(source, Path) and source.stat().st_mode & 0o111
            described = zipfile.ZipInfo(member, _EPOCH)
            described.external_attr = (0o100755 if is_run else 0o100644) << 16
            described.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(described, data, compresslevel=_LEVEL)
    return described_wheel(name.replace("_", "-"), version, path)


def described_wheel(name: str, version: str, path: Path) -> PackedWheel:
    """Return the description of a wheel file, with its digests.

    Args:
        name: The name of the distribution.
        version: The version of the distribution.
        path: The file, which is read completely.
    """
    hasher = blake3(max_threads=1)
    hasher.update_mmap(path)
    size, sha256 = path.stat().st_size, digest_of_file(path)
    return PackedWheel(name, version, path, size, sha256, key=hasher.hexdigest())


def _row(data: bytes) -> str:
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
    return f"sha256={digest},{len(data)}"


def _compressed(tags: Sequence[str]) -> str:
    """Return the compressed tag set of a file name (PEP 425): `py2.py3-none-any`."""
    parts = zip(*(tag.split("-") for tag in tags), strict=True)
    return "-".join(".".join(sorted(set(part))) for part in parts)
