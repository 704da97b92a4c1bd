"""aflow and what it depends on as wheels: packed again from where they are installed.

An installed distribution says in its RECORD which files it has, and in WHEEL what they fit; that is
all a wheel consists of. So a machine without an index can ship what it runs. An aflow that is
installed as editable, or runs from its source tree, is packed from there. The same files give the
same bytes.
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
_LEVEL = 4  # of zlib: the default one takes two thirds longer, for wheels that are 2 % smaller
_OURS = "aflow"
_ROOT = Path(__file__).parents[1]  # the package aflow
_INDEX = "wheel.json"
KEPT = 7 * 86400.0  # seconds after its last use that a packed wheel is kept
_NOT_SHIPPED = frozenset({"RECORD", "INSTALLER", "REQUESTED", "direct_url.json"})
_MANYLINUX = re.compile(r"manylinux_(\d+)_(\d+)_|manylinux(1|2010|2014)_")
_OLD = {"1": (2, 5), "2010": (2, 12), "2014": (2, 17)}


class PackedWheel(NamedTuple):
    """A wheel in a file: its distribution, the SHA-256 and the BLAKE3 of its bytes (as hex)."""

    name: str
    version: str
    path: Path
    size: int
    sha256: str
    key: str

    @property
    def tags(self) -> str:
        """What it fits: tags of Python, ABI and platform, joined by dashes."""
        return self.path.name.removesuffix(".whl").split("-", 2)[2]


class Fit(NamedTuple):
    """What a set of wheels fits: a Python (`3.11`; `3.13t` without GIL), a machine (`x86_64`), a C
    library and the lowest version of it."""

    python: str
    machine: str
    libc: tuple[str, tuple[int, ...]]


def runtime(extras: Iterable[str], folder: Path, now: float) -> list[PackedWheel]:
    """Pack aflow with these extras and all that it depends on as wheels in a folder, where they may
    be already.

    Args:
        extras: The extras of aflow to include.
        folder: The folder of packed wheels; those that were not used for a week are deleted.
        now: The present time, in seconds since the epoch.

    Returns:
        The wheels: that of aflow first, then the others in the order of their names.

    Raises:
        ShippingError: A distribution cannot be packed.
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
    """Return what all of these wheels fit, packed by this Python.

    Args:
        wheels: The wheels of aflow and of what it depends on.
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
        # What was built here may need all that this machine has.
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
    """Remove what was not used since then."""
    for entry in os.scandir(folder):
        with suppress(FileNotFoundError):  # another program was first
            if entry.stat().st_mtime < before:
                shutil.rmtree(entry.path, ignore_errors=True)


# ------------------------------------------------------------ which distributions


def closure(extras: frozenset[str]) -> list[Distribution]:
    """Return all distributions that aflow with these extras depends on here, by canonical names.

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


# What steps and aflow have to have in common: functions that one pickles are loaded by the other.
_SHARED = frozenset({"cloudpickle"})


def unfit(versions: Mapping[str, str], extras: frozenset[str]) -> list[Distribution]:
    """Return what aflow with these extras cannot share with an environment that has these versions:
    the distributions of which that has one that does not fit, and all that depend on them.

    Args:
        versions: The installed versions, by package.
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
    """Return whether a requirement of a distribution counts on this machine.

    Args:
        requirement: The requirement, with its marker.
        extras: The extras of the distribution that are asked for.
    """
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": each}) for each in ("", *extras))


def top_names(distribution: Distribution) -> set[str]:
    """Return what lies on `sys.path` for a distribution: folders, modules, and its metadata.

    Args:
        distribution: An installed distribution, whose RECORD is read.
    """
    record = distribution.read_text("RECORD")
    if record is None:
        tops = {each.parts[0] for each in distribution.files or () if each.parts}
    else:  # thousands of lines, for some
        tops = {re.split(r"[/,]", line, maxsplit=1)[0].strip('"') for line in record.splitlines()}
    return {each for each in tops if each not in ("", "..", "__pycache__", os.sep)}


def needs_of_aflow() -> list[str]:
    """Return what this aflow requires: as its source tree says, if it runs from one, else as it was
    installed."""
    project = _project()
    if project is None:
        return _distribution(DISTRIBUTION).requires or []
    optional: Mapping[str, list[str]] = project.get("optional-dependencies", {})
    of_extras = [_under(text, extra) for extra, texts in optional.items() for text in texts]
    return [*project.get("dependencies", ()), *of_extras]


def _under(text: str, extra: str) -> str:
    """A requirement of an extra, as metadata have it."""
    requirement = Requirement(text)
    own = f"({requirement.marker}) and " if requirement.marker is not None else ""
    requirement.marker = Marker(f"{own}extra == '{extra}'")
    return str(requirement)


def _project() -> Mapping[str, Any] | None:
    """The table `project` of the source tree that this aflow runs from; None where it was installed
    from a wheel."""
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
    """aflow as it runs: as it was installed, or from the folder of its package, if that is a
    source tree."""
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
        outside = name.startswith(("..", "/"))  # scripts, and what lies beside the packages
        if outside or name.endswith(".pyc") or _is_left_out(name):
            continue
        found[name] = Path(str(distribution.locate_file(file)))
    return found


def _is_left_out(name: str) -> bool:
    folder, _, file = name.rpartition("/")
    return folder.endswith(".dist-info") and "/" not in folder and file in _NOT_SHIPPED


def _of_source(folder: Path) -> PackedWheel:
    """The wheel of the source tree, with the metadata that jobs need."""
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
    """The wheel of these files: made in a folder of its own, named by the identity, unless it is
    there. Others may do the same at the same time."""
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
            if place.exists():  # cut off, or of another kind
                shutil.rmtree(place, ignore_errors=True)
            with suppress(OSError):  # another program was first
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
    except (OSError, ValueError, TypeError, KeyError):  # not there, or not whole
        return None
    return known


def _write(folder: Path, files: Mapping[str, Path | bytes]) -> PackedWheel:
    """Write the wheel of these files, which has the name that its metadata say."""
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
    """Return the wheel in this file, with its digests.

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
    """Tags as the name of a file has them: each part with all that it may be."""
    parts = zip(*(tag.split("-") for tag in tags), strict=True)
    return "-".join(".".join(sorted(set(part))) for part in parts)
