"""The code package: the code of a flow as one archive, which is named by its content.

It holds the files below the folder of the program that end with one of the suffixes (`.py`, `.R`
and `.RDS` unless others are asked for), and what mutators add; of a program that is a module of a
package (`python -m package.flow`) the folder is the one that holds the package. Left out are hidden
folders, `__pycache__` and virtual environments. Symbolic links are followed, each folder once.

The format is a POSIX tar (pax), sorted by name, of plain files alone: owners, times and modes are
those of nobody, so that the same code is the same bytes, and is stored once however often it runs.
"""

from __future__ import annotations

import fcntl
import io
import os
import re
import shutil
import sys
import tarfile
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from aflow._core.clock import SystemClock
from aflow._core.ids import blob_key
from aflow._core.modules import file_of
from aflow._core.private_folders import is_foreign, read_regular
from aflow._core.records import NamedTuple
from aflow._core.settings import PACKAGE_SUFFIXES
from aflow.errors import CodePackageError, InvalidName, StorageError
from aflow.flow.custom import FlowMutator, StepMutator
from aflow.storage.names import MAIN, ProgramFile
from aflow.task.program import is_library, started

if TYPE_CHECKING:
    from aflow.flow.definition import FlowDefinition
    from aflow.storage.blobs import BlobStore

_NOT_CODE = frozenset({"__pycache__", "node_modules"})
_LONGEST_NAME = 1000
KEPT_UNUSED = 7 * 86400.0  # seconds after which unpacked code that nobody uses goes


class PackageLimits(NamedTuple):
    """The largest package: how many files and folders are looked at, and bytes in all."""

    entries: int
    size: int


# Kept with each run: it may cost milliseconds at most.
FOR_THE_RECORD = PackageLimits(1_000, 4 << 20)
TO_TRAVEL = PackageLimits(100_000, 512 << 20)


class Package(NamedTuple):
    """A code package in a store: its key, the flow file's name inside of it, and its raw size."""

    key: str
    script: str
    size: int

    def as_dict(self) -> dict[str, Any]:
        """Return the package as plain values, for the settings of a run."""
        return self._asdict()


def members(
    definition: FlowDefinition,
    suffixes: Sequence[str] = PACKAGE_SUFFIXES,
    limits: PackageLimits = TO_TRAVEL,
) -> dict[str, Path]:
    """Return the files of the flow's package, by their names inside of it, sorted.

    Args:
        definition: The flow: its class, steps, parameters and decorators.
        suffixes: Endings of the names of files that are packaged besides those of Python.
        limits: How large a package may be.

    Raises:
        CodePackageError: Where there is no file of the flow, or too much beside it.
    """
    program = program_of(definition)
    if not os.path.isfile(program.file):
        raise CodePackageError(
            f"{definition.name} was defined in no file that could be packaged ({definition.file}): "
            "write the flow to a file."
        )
    root, script = program.place
    found = {script: Path(program.file)}
    for path in _files_of(root, script, limits):
        if path.endswith(tuple(suffixes)):
            found[os.path.relpath(path, root)] = Path(path)
    found |= _elsewhere(definition, root, suffixes, limits)
    found.update(_added(definition))
    return dict(sorted(found.items()))


def program_of(definition: FlowDefinition) -> ProgramFile:
    """Return the program that the flow belongs to, as it is now.

    Args:
        definition: The flow: its class, steps, parameters and decorators.
    """
    start, main = started(), file_of(sys.modules[MAIN])
    if start is not None and main:
        return ProgramFile.of(main, start.module)
    home = definition.cls.__module__
    return ProgramFile.of(definition.file, None if home == MAIN else home)


def _elsewhere(
    definition: FlowDefinition, root: str, suffixes: Sequence[str], limits: PackageLimits
) -> dict[str, Path]:
    """The files beside the flow, where the program has imported it from another folder."""
    file, home = os.path.abspath(definition.file), definition.cls.__module__
    if file.startswith(os.path.join(root, "")) or home == MAIN or is_library(file):
        return {}
    folder, name = ProgramFile(file, None, home).place
    beside = [path for path in _files_of(folder, name, limits) if path.endswith(tuple(suffixes))]
    return {os.path.relpath(path, folder): Path(path) for path in [*beside, file]}


def _files_of(root: str, script: str, limits: PackageLimits) -> Iterable[str]:
    """All that stands beside the program; the package alone where that is too much."""
    package = script.partition("/")[0]
    try:
        return [*_below(root, limits)]
    except CodePackageError:
        if package == script:
            raise
        return _below(os.path.join(root, package), limits)


def pack(files: Mapping[str, Path], limits: PackageLimits = TO_TRAVEL) -> bytes:
    """Return the archive of these files.

    Args:
        files: The paths of the files, by their names in the package.
        limits: How large a package may be.

    Raises:
        CodePackageError: For what cannot be read, or is too large.
    """
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, path in files.items():
            try:
                content = read_regular(path)
            except OSError as error:
                raise CodePackageError(
                    f"{path} cannot be put into the code package: {error.strerror}."
                ) from error
            if buffer.tell() + len(content) > limits.size:
                raise _too_large(f"more than {limits.size >> 20} MB", path.parent)
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def store(
    definition: FlowDefinition,
    blobs: BlobStore,
    suffixes: Sequence[str] = PACKAGE_SUFFIXES,
    limits: PackageLimits = TO_TRAVEL,
) -> Package:
    """Pack the code of the flow and store the archive. May be called twice: the same code has the
    same key.

    Args:
        definition: The flow: its class, steps, parameters and decorators.
        blobs: The blobs of the datastore, addressed by content.
        suffixes: Endings of the names of files that are packaged besides those of Python.
        limits: How large a package may be.

    Returns:
        The key, the name of the flow's file in it, and its size.

    Raises:
        CodePackageError: The code cannot be read, or is too large.
        StorageError: The datastore does not answer.
    """
    data = pack(members(definition, suffixes, limits), limits)
    return Package(blobs.put(data), program_of(definition).place[1], len(data))


def for_the_record(
    definition: FlowDefinition, blobs: BlobStore, suffixes: Sequence[str]
) -> dict[str, Any]:
    """Return what the settings of a run on this machine say of its code: the package, or why there
    is none (`left_out`), since such a run does not depend on it.

    Args:
        definition: The flow: its class, steps, parameters and decorators.
        blobs: The blobs of the datastore, addressed by content.
        suffixes: Endings of the names of files that are packaged besides those of Python.
    """
    try:
        return store(definition, blobs, suffixes, FOR_THE_RECORD).as_dict()
    except CodePackageError as error:
        return {"left_out": str(error)}


def fetch(blobs: BlobStore, key: str) -> bytes:
    """Return the archive of this key.

    Args:
        blobs: The blobs of the datastore, addressed by content.
        key: The key: the blake3 of the bytes in hex.

    Raises:
        CodePackageError: Where it is not there, or damaged.
    """
    try:
        return bytes(blobs.get(key))
    except StorageError as error:
        raise CodePackageError(f"The code package {key} cannot be read: {error}") from error


def opened(data: bytes) -> tarfile.TarFile:
    """Return the archive, to read from.

    Args:
        data: The bytes of a package, which may come from another machine: its headers are checked.

    Raises:
        CodePackageError: The bytes are not such an archive.
    """
    _check_headers(data)
    try:
        # Plain: a few bytes of an archive that is compressed can be gigabytes.
        return tarfile.open(fileobj=io.BytesIO(data), mode="r:")
    except (tarfile.TarError, ValueError) as error:
        raise CodePackageError(f"This is not a code package: {error}.") from error


_KINDS = frozenset([b"0", b"\0", b"x", b"g", b"L"])  # plain files, and headers of longer names
_BLOCK = 512
_LARGEST_HEADER = 64 << 10
_MOST_CHAINED = 8  # headers of one file
_DIGITS = rb"\d+"
_MOST_DIGITS = 5_000_000  # squares of the lengths of rows of digits, in all headers
_RECORD = rb"([1-9]\d{0,5}) ([^=\n]+)="  # of a pax header: its length, and a keyword
_REFUSED = rb"(?s:size|hdrcharset|GNU\.sparse\..*)\Z"


def _check_headers(data: bytes) -> None:
    """Look at the headers of an archive before tarfile does, which searches long rows of digits in
    quadratic time (CVE-2024-6232, in Python before 3.11.10 and 3.12.6), follows sizes that are said
    twice, and takes sizes of any number of digits. Raises CodePackageError."""
    offset = cost = chained = 0
    while offset + _BLOCK <= len(data):
        head = data[offset : offset + _BLOCK]
        if not head.strip(b"\0"):
            return
        kind, size = head[156:157], head[124:136].partition(b"\0")[0].strip(b" ")
        if kind not in _KINDS or (kind == b"\0" and head[:100].rstrip(b"\0").endswith(b"/")):
            return  # no plain file: a reader of the archive refuses it, and reads no further
        if not re.fullmatch(rb"[0-7]{0,12}", size):
            raise CodePackageError(
                "This is not a code package: the size of a file is not a number."
            )
        length = int(size or b"0", 8)
        if offset + _BLOCK + length > len(data):
            raise CodePackageError("This is not a code package: it is cut off.")
        chained = chained + 1 if kind in (b"x", b"g", b"L") else 0
        if chained > _MOST_CHAINED:  # tarfile calls itself for each
            raise CodePackageError("This is not a code package: a file has too many headers.")
        if chained:
            more = data[offset + _BLOCK : offset + _BLOCK + length]
            cost += sum(len(each) ** 2 for each in re.findall(_DIGITS, more))
            if length > _LARGEST_HEADER or cost > _MOST_DIGITS or not _is_sound(kind, more):
                raise CodePackageError(
                    "This is not a code package: a header is too long, or damaged."
                )
        offset += _BLOCK + -(-length // _BLOCK) * _BLOCK


def _is_sound(kind: bytes, header: bytes) -> bool:
    """Whether a header of longer names has the form of one, and says nothing else of the file."""
    record_at = re.compile(_RECORD).match
    position = 0 if kind in (b"x", b"g") else len(header)
    while position < len(header):
        record = record_at(header, position)
        end = position + int(record[1]) if record else 0
        if record is None or end > len(header) or end < record.end() + 1:
            return False
        if header[end - 1 : end] != b"\n" or re.match(_REFUSED, record[2]):
            return False
        position = end
    return True


def check(data: bytes) -> None:
    """Raises CodePackageError for what is not an archive that could be unpacked.

    Args:
        data: The bytes of a package, which may come from another machine.
    """
    with opened(data) as archive, _named("This is not a code package"):
        for _ in _members(archive):
            pass


def unpack(data: bytes, folder: Path) -> None:
    """Write the files of the archive below the folder, and nothing outside of it.

    Args:
        data: The bytes of a package, which may come from another machine.
        folder: An existing folder.

    Raises:
        CodePackageError: The bytes are not such an archive, or cannot be written.
    """
    with opened(data) as archive:
        unpack_from(archive, folder)


def unpacked(blobs: BlobStore, key: str, below: Path) -> Path:
    """Return the folder with the code of a package, and unpack it if it is not there yet; other
    processes may do the same at the same time.

    The folder is in use, and not swept, until `release` or the end of this process. A folder that
    has been unused for KEPT_UNUSED seconds is removed.

    Args:
        blobs: The blobs of the datastore, addressed by content.
        key: The key: the blake3 of the bytes in hex.
        below: The folder that holds the unpacked packages.

    Raises:
        CodePackageError: The package does not exist, or cannot be unpacked.
    """
    try:
        folder = _own(below / blob_key(key))
    except InvalidName as error:  # it comes out of a record, which others may write
        raise CodePackageError(f"{str(key)[:200]!r} is not a key of a code package.") from error
    while True:
        if not folder.is_dir():
            sweep(below, KEPT_UNUSED, SystemClock.now())
            _unpack_new(blobs, key, folder)
        if _held(folder):
            return folder


def _own(folder: Path) -> Path:
    """The folder; where another user has made one there, which may hold other code, one of our
    own beside it. Raises CodePackageError."""
    if is_foreign(folder):
        folder = folder.with_name(f"{folder.name}-{os.geteuid()}")
        if is_foreign(folder):
            raise CodePackageError(
                f"{folder} belongs to another user, or is open to all: have it removed, or set "
                "AFLOW_CLIENT_CACHE_PATH to a folder of your own."
            )
    return folder


def _unpack_new(blobs: BlobStore, key: str, folder: Path) -> None:
    import tempfile  # not for those who only pack

    below = folder.parent
    below.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=".new-", dir=below))
    try:
        unpack(fetch(blobs, key), fresh)
        try:
            fresh.rename(folder)
        except OSError:
            if not folder.is_dir():  # else: somebody else was first
                raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def inside(script: object) -> str:
    """Return the name of a flow's file in a folder of code, as a record has it.

    Args:
        script: The name of the flow's file in the code package.

    Raises:
        CodePackageError: For one that leads elsewhere.
    """
    path = PurePosixPath(str(script))
    if not isinstance(script, str) or path.is_absolute() or ".." in path.parts or "\0" in script:
        raise CodePackageError(f"{str(script)[:200]!r} names no file of a code package.")
    return script


# ------------------------------------------------------------------ folders of code that are in use

_in_use: dict[Path, tuple[int, int]] = {}  # their descriptors, and how often they were asked for
_in_use_lock = threading.Lock()


def _held(folder: Path) -> bool:
    """Say that this process uses the folder; False where it was swept a moment ago."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        with suppress(OSError):  # a file system without locks: the time of use has to do
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        there = os.stat(folder)
        found = os.fstat(descriptor)
        if (there.st_dev, there.st_ino) != (found.st_dev, found.st_ino):
            raise FileNotFoundError(folder)
        with suppress(OSError):  # of another user: its owner records when it was used
            os.utime(folder)
    except FileNotFoundError:
        os.close(descriptor)
        return False
    with _in_use_lock:
        before, count = _in_use.get(folder, (descriptor, 0))
        if before != descriptor:
            os.close(descriptor)
        _in_use[folder] = (before, count + 1)
    return True


def release(folder: Path) -> None:
    """End one use of a folder that `unpacked` returned. Does nothing if this process does not use
    it.

    Args:
        folder: A folder that `unpacked` has returned.
    """
    with _in_use_lock:
        descriptor, count = _in_use.pop(folder, (-1, 0))
        if count > 1:
            _in_use[folder] = (descriptor, count - 1)
        elif count == 1:
            os.close(descriptor)


def descriptor_of(folder: Path) -> int:
    """Return what a child has to inherit so that the folder is in use for as long as the child
    lives.

    Args:
        folder: A folder that `unpacked` has returned, and that was not released.
    """
    return _in_use[folder][0]


def sweep(below: Path, unused_for: float, now: float, *, dry_run: bool = False) -> tuple[int, int]:
    """Remove the folders of code that no process uses. Those of other users stay.

    Args:
        below: The folder that holds the unpacked packages.
        unused_for: For how many seconds nothing has begun to use it.
        now: The present time, in seconds since the epoch.
        dry_run: Whether only to say what would be done.

    Returns:
        How many were removed, and their bytes.
    """
    count = size = 0
    try:
        found = [Path(each) for each in os.scandir(below) if each.is_dir(follow_symlinks=False)]
    except OSError:  # it is not there, or not ours to read
        return 0, 0
    for folder in found:
        try:
            removed = _removed(folder, now - unused_for, dry_run=dry_run)
        except OSError:  # another user's, or swept by another process
            continue
        if removed is not None:
            count, size = count + 1, size + removed
    return count, size


def _removed(folder: Path, since: float, *, dry_run: bool) -> int | None:
    if folder.stat().st_mtime > since:
        return None
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # refused while somebody uses it
        size = sum(each.lstat().st_size for each in folder.rglob("*") if each.is_file())
        if not dry_run:
            # Renamed first: a process that asks for it from here on unpacks it again.
            away = folder.with_name(f".old-{folder.name[:16]}-{os.getpid()}")
            folder.rename(away)
            shutil.rmtree(away, ignore_errors=True)
        return size
    finally:
        os.close(descriptor)


def unpack_from(archive: tarfile.TarFile, folder: Path) -> None:
    """Write the files of an open archive below the folder, and nothing outside of it.

    Args:
        archive: What `opened` has returned.
        folder: An existing folder.
    """
    # Not extractall: it is safe with a filter alone, which Python has since 3.11.4 only.
    with _named(f"The code cannot be unpacked to {folder}"):
        for member, path in _members(archive):
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            content = archive.extractfile(member)
            assert content is not None, "it is a plain file"
            with content, target.open("wb") as file:
                shutil.copyfileobj(content, file)


def _members(archive: tarfile.TarFile) -> Iterator[tuple[tarfile.TarInfo, PurePosixPath]]:
    """The files of the archive, and where they belong below a folder. Each is a plain file, of as
    many bytes as the archive has of it: no link, no device, and none with holes."""
    for count, member in enumerate(archive):
        path = PurePosixPath(member.name)
        is_plain = member.type in (tarfile.REGTYPE, tarfile.AREGTYPE) and not member.issparse()
        is_below = path.parts and not path.is_absolute() and ".." not in path.parts
        if not is_plain or not is_below or "\0" in member.name or len(member.name) > _LONGEST_NAME:
            name = member.name[:200]
            raise tarfile.ExtractError(f"{name!r} is not a plain file below the package's folder")
        if count >= TO_TRAVEL.entries:
            raise tarfile.ExtractError(f"there are more than {TO_TRAVEL.entries} files")
        yield member, path


@contextmanager
def _named(what: str) -> Iterator[None]:
    try:
        yield
    except (tarfile.TarError, OSError, ValueError) as error:  # tarfile lets some of each out
        raise CodePackageError(f"{what}: {error}.") from error


# ------------------------------------------------------------------ which files


def _below(folder: str, limits: PackageLimits) -> Iterator[str]:
    """The files below the folder, whatever they are."""
    todo, seen, entries = [folder], {os.path.realpath(folder)}, 0
    while todo:
        where = todo.pop()
        for entry in _entries(where):
            entries += 1
            if entries > limits.entries:
                raise _too_large(f"more than {limits.entries} files", folder)
            if entry.name.startswith(".") or entry.name in _NOT_CODE:
                continue
            if not _is_folder(entry):
                if _is_file(entry):
                    yield entry.path
                continue
            real = os.path.realpath(entry.path)
            if real not in seen and not os.path.exists(os.path.join(real, "pyvenv.cfg")):
                seen.add(real)
                todo.append(entry.path)


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise CodePackageError(
            f"The folder {folder} cannot be put into the code package: {error.strerror}."
        ) from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that goes round in circles: nobody can read it as a file either
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Whether it can be packed: FIFOs, sockets and devices hold no code. A link that leads nowhere
    counts: reading it gives the reason why the package cannot be made."""
    try:
        return entry.is_file() or not os.path.exists(entry.path)
    except OSError:
        return True


def _too_large(what: str, folder: str | Path) -> CodePackageError:
    return CodePackageError(
        f"There is {what} to package below {folder}: put the flow into a folder of its own."
    )


# ------------------------------------------------------------------ what mutators add


def _added(definition: FlowDefinition) -> dict[str, Path]:
    """What mutators add: each gives pairs of (path, name inside of the package)."""
    found: dict[str, Path] = {}
    for mutator in _mutators(definition):
        for given in mutator.add_to_package() or ():
            name, path = _pair(mutator, given)
            if found.setdefault(name, path) != path:
                raise CodePackageError(
                    f"{name} of the code package would be both {found[name]} and {path}: "
                    "mutators have to choose other names."
                )
    return found


def _mutators(definition: FlowDefinition) -> Iterator[FlowMutator | StepMutator]:
    yield from definition.mutators
    for step in definition.steps.values():
        on_step: list[Any] = [*step.decorators]  # a mutator among them is not a decorator
        yield from (each for each in on_step if isinstance(each, StepMutator))


def _pair(mutator: object, given: Any) -> tuple[str, Path]:
    usable = isinstance(given, tuple) and len(given) in (2, 3)
    if not usable or not all(isinstance(each, str | os.PathLike) for each in given[:2]):
        raise CodePackageError(
            f"add_to_package of {type(mutator).__name__} gave {given!r}: it has to give pairs of "
            "(path of a file, its name in the package)."
        )
    name = os.path.normpath(os.fspath(given[1]))
    if os.path.isabs(name) or name.startswith(".."):
        raise CodePackageError(
            f"add_to_package of {type(mutator).__name__}: {name} is outside of the package."
        )
    return name, Path(given[0])
