"""The code package: the code of a flow as one archive, named by its content.

It contains the files below the folder of the program with one of the suffixes (by default `.py`,
`.R` and `.RDS`), and files that mutators add. If the program is a module of a package (`python -m
package.flow`), the folder is the parent of the package. Hidden folders, `__pycache__` and virtual
environments are excluded. Symbolic links are followed, those to one folder once.

The format is a POSIX tar (pax) of regular files, sorted by name. Owners, times and modes (except
whether a file is executable) are constant, so that the same code results in the same bytes, and is
stored only once.
"""

from __future__ import annotations

import fcntl
import io
import os
import re
import shutil
import sys
import tarfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from aflow._core.clock import SystemClock
from aflow._core.ids import blob_key
from aflow._core.modules import file_of
from aflow._core.private_folders import HeldDescriptors, is_foreign, read_regular
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
_READ, _RUN = 0o644, 0o755  # the modes of files in a package
KEPT_UNUSED = 7 * 86400.0  # seconds after which unused unpacked code is removed


class PackageLimits(NamedTuple):
    """The limits of a package: files and folders that are scanned, and bytes in all."""

    entries: int
    size: int


# For the package that is stored with each run, which may take milliseconds at most.
FOR_THE_RECORD = PackageLimits(1_000, 4 << 20)
TO_TRAVEL = PackageLimits(100_000, 512 << 20)


class Package(NamedTuple):
    """A code package in a store: its key, the name of the flow's file in it, and its raw size."""

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
    """Return the files of the flow's package by their names in it, sorted.

    Args:
        definition: The flow: its class, steps, parameters and decorators.
        suffixes: The suffixes of files to include, besides the flow's own file.
        limits: How large a package may be.

    Raises:
        CodePackageError: If the flow has no file, or there are too many files next to it.
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
    """Return the file and module of the flow's program.

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
    """Return the files next to the flow's file, if the program has imported it from elsewhere."""
    file, home = os.path.abspath(definition.file), definition.cls.__module__
    if file.startswith(os.path.join(root, "")) or home == MAIN or is_library(file):
        return {}
    folder, name = ProgramFile(file, None, home).place
    beside = [path for path in _files_of(folder, name, limits) if path.endswith(tuple(suffixes))]
    return {os.path.relpath(path, folder): Path(path) for path in [*beside, file]}


def _files_of(root: str, script: str, limits: PackageLimits) -> Iterable[str]:
    """Return all files below the program's folder, or only the package if they are too many."""
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
        CodePackageError: If a file cannot be read, or the package is too large.
    """
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, path in files.items():
            try:
                status = os.stat(path)
                if buffer.tell() + status.st_size > limits.size:  # before it is read
                    raise _too_large(f"more than {limits.size >> 20} MB", path.parent)
                content = read_regular(path)
            except OSError as error:
                raise CodePackageError(
                    f"{path} cannot be put into the code package: {error.strerror}."
                ) from error
            member = tarfile.TarInfo(name)
            member.size = len(content)
            member.mode = _RUN if status.st_mode & 0o100 else _READ
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def store(
    definition: FlowDefinition,
    blobs: BlobStore,
    suffixes: Sequence[str] = PACKAGE_SUFFIXES,
    limits: PackageLimits = TO_TRAVEL,
) -> Package:
    """Pack the code of the flow and store the archive. Idempotent: the same code has the same key.

    Args:
        definition: The flow: its class, steps, parameters and decorators.
        blobs: The blobs of the datastore, addressed by content.
        suffixes: The suffixes of files to include, besides the flow's own file.
        limits: How large a package may be.

    Returns:
        The key, the name of the flow's file in it, and its size.

    Raises:
        CodePackageError: If the code cannot be read, or is too large.
        StorageError: If the datastore does not respond.
    """
    data = pack(members(definition, suffixes, limits), limits)
    return Package(blobs.put(data), program_of(definition).place[1], len(data))


def for_the_record(
    definition: FlowDefinition, blobs: BlobStore, suffixes: Sequence[str]
) -> dict[str, Any]:
    """Return the description of the code for the settings of a run on this machine.

    This is the package, or the reason why there is none (`left_out`), since such a run does not
    need it.

    Args:
        definition: The flow: its class, steps, parameters and decorators.
        blobs: The blobs of the datastore, addressed by content.
        suffixes: The suffixes of files to include, besides the flow's own file.
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
        CodePackageError: If it is missing or damaged.
    """
    try:
        return bytes(blobs.get(key))
    except StorageError as error:
        raise CodePackageError(f"The code package {key} cannot be read: {error}") from error


def opened(data: bytes) -> tarfile.TarFile:
    """Return the archive, opened for reading.

    Args:
        data: The bytes of a package, which may come from another machine: its headers are checked.

    Raises:
        CodePackageError: If the bytes are not such an archive.
    """
    _check_headers(data)
    try:
        # Uncompressed only: a few compressed bytes can expand to gigabytes.
        return tarfile.open(fileobj=io.BytesIO(data), mode="r:")
    except (tarfile.TarError, ValueError) as error:
        raise CodePackageError(f"This is not a code package: {error}.") from error


_KINDS = frozenset([b"0", b"\0", b"x", b"g", b"L"])  # regular files, and headers of longer names
_BLOCK = 512
_LARGEST_HEADER = 64 << 10
_MOST_CHAINED = 8  # headers before one file
_DIGITS = rb"\d+"
_MOST_DIGITS = 5_000_000  # sum of the squared lengths of digit sequences in all headers
_RECORD = rb"([1-9]\d{0,5}) ([^=\n]+)="  # start of a pax record: its length and keyword
_REFUSED = rb"(?s:size|hdrcharset|GNU\.sparse\..*)\Z"


def _check_headers(data: bytes) -> None:
    """Check the headers of an archive before tarfile parses them.

    tarfile searches long digit sequences in quadratic time (CVE-2024-6232, in Python before 3.11.10
    and 3.12.6), accepts repeated sizes, and parses sizes with any number of digits.

    Raises:
        CodePackageError: If a header is malformed.
    """
    offset = cost = chained = 0
    while offset + _BLOCK <= len(data):
        head = data[offset : offset + _BLOCK]
        if not head.strip(b"\0"):
            return
        kind, size = head[156:157], head[124:136].partition(b"\0")[0].strip(b" ")
        if kind not in _KINDS or (kind == b"\0" and head[:100].rstrip(b"\0").endswith(b"/")):
            return  # not a regular file: `_members` rejects it before tarfile reads on
        if not re.fullmatch(rb"[0-7]{0,12}", size):
            raise CodePackageError(
                "This is not a code package: the size of a file is not a number."
            )
        length = int(size or b"0", 8)
        if offset + _BLOCK + length > len(data):
            raise CodePackageError("This is not a code package: it is cut off.")
        chained = chained + 1 if kind in (b"x", b"g", b"L") else 0
        if chained > _MOST_CHAINED:  # tarfile recurses for each
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
    """Return whether an extended header is well-formed and does not override sizes or encodings."""
    record_at = re.compile(_RECORD).match
    position = 0 if kind in (b"x", b"g") else len(header)
    while position < len(header):
        record = record_at(header, position)
        end = position + int(record[1]) if record else 0
        if record is None or end > len(header) or end < record.end() + 1:
            return False
        if header[end - 1 : end] != b"\n":
            return False
        # Python writes this value if a name is not UTF-8; it reads each other one as UTF-8.
        is_binary = header[record.start(2) : end] == b"hdrcharset=BINARY\n"
        if re.match(_REFUSED, record[2]) and not is_binary:
            return False
        position = end
    return True


def check(data: bytes) -> None:
    """Check that the bytes are an archive that can be unpacked.

    Args:
        data: The bytes of a package, which may come from another machine.

    Raises:
        CodePackageError: If they are not.
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
        CodePackageError: If the bytes are not such an archive, or cannot be written.
    """
    with opened(data) as archive:
        unpack_from(archive, folder)


def unpacked(blobs: BlobStore, key: str, below: Path) -> Path:
    """Return the folder with the code of a package; unpack the package if it is missing.

    Other processes may do the same at the same time. The folder is in use, and not swept, until
    `release` or the exit of this process. Folders that have been unused for KEPT_UNUSED seconds are
    removed.

    Args:
        blobs: The blobs of the datastore, addressed by content.
        key: The key: the blake3 of the bytes in hex.
        below: The folder that holds the unpacked packages.

    Raises:
        CodePackageError: If the package does not exist, or cannot be unpacked.
    """
    try:
        folder = _own(below / blob_key(key))
    except InvalidName as error:  # the key is from a record that others may write
        raise CodePackageError(f"{str(key)[:200]!r} is not a key of a code package.") from error
    while True:
        if not folder.is_dir():
            sweep(below, KEPT_UNUSED, SystemClock.now())
            _unpack_new(blobs, key, folder)
        if _held(folder):
            return folder


def _own(folder: Path) -> Path:
    """Return the folder, or one next to it if the folder belongs to another user.

    A folder of another user may contain other code.

    Raises:
        CodePackageError: If that one belongs to another user, too.
    """
    if is_foreign(folder):
        folder = folder.with_name(f"{folder.name}-{os.geteuid()}")
        if is_foreign(folder):
            raise CodePackageError(
                f"{folder} belongs to another user, or is open to all: have it removed, or set "
                "AFLOW_CLIENT_CACHE_PATH to a folder of your own."
            )
    return folder


def _unpack_new(blobs: BlobStore, key: str, folder: Path) -> None:
    import tempfile  # not needed to pack

    below = folder.parent
    below.mkdir(parents=True, exist_ok=True)
    fresh = Path(tempfile.mkdtemp(prefix=".new-", dir=below))
    try:
        unpack(fetch(blobs, key), fresh)
        try:
            fresh.rename(folder)
        except OSError:
            if not folder.is_dir():  # else: another process was first
                raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def inside(script: object) -> str:
    """Return the name of a flow's file in a code package, as a record contains it, if it is valid.

    Args:
        script: The name of the flow's file in the code package.

    Raises:
        CodePackageError: If the name is not a path inside of the package.
    """
    path = PurePosixPath(str(script))
    if not isinstance(script, str) or path.is_absolute() or ".." in path.parts or "\0" in script:
        raise CodePackageError(f"{str(script)[:200]!r} names no file of a code package.")
    return script


# ------------------------------------------------------------------ folders of code that are in use

_in_use = HeldDescriptors()


def _held(folder: Path) -> bool:
    """Mark the folder as used by this process; False if it has just been swept."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        with suppress(OSError):  # a file system without locks: the time of last use must suffice
            fcntl.flock(descriptor, fcntl.LOCK_SH)
        there = os.stat(folder)
        found = os.fstat(descriptor)
        if (there.st_dev, there.st_ino) != (found.st_dev, found.st_ino):
            raise FileNotFoundError(folder)
        with suppress(OSError):  # owned by another user, who updates the time of use
            os.utime(folder)
    except FileNotFoundError:
        os.close(descriptor)
        return False
    _in_use.add(folder, descriptor)
    return True


def release(folder: Path) -> None:
    """End one use of a folder that `unpacked` has returned.

    Does nothing if this process does not use it.

    Args:
        folder: A folder that `unpacked` has returned.
    """
    _in_use.release(folder)


def descriptor_of(folder: Path) -> int:
    """Return the descriptor that a child must inherit to keep the folder in use while it lives.

    Args:
        folder: A folder that `unpacked` has returned, and that was not released.
    """
    return _in_use.descriptor_of(folder)


def sweep(below: Path, unused_for: float, now: float, *, dry_run: bool = False) -> tuple[int, int]:
    """Remove unpacked code that no process uses. Folders of other users are kept.

    Args:
        below: The folder that holds the unpacked packages.
        unused_for: The seconds for which no process has started to use it.
        now: The current time, in seconds since the epoch.
        dry_run: Whether to count the folders without removing them.

    Returns:
        The number of removed folders, and their size in bytes.
    """
    count = size = 0
    try:
        found = [Path(each) for each in os.scandir(below) if each.is_dir(follow_symlinks=False)]
    except OSError:  # missing or unreadable
        return 0, 0
    for folder in found:
        try:
            removed = _removed(folder, now - unused_for, dry_run=dry_run)
        except OSError:  # owned by another user, or swept by another process
            continue
        if removed is not None:
            count, size = count + 1, size + removed
    return count, size


def _removed(folder: Path, since: float, *, dry_run: bool) -> int | None:
    if folder.stat().st_mtime > since:
        return None
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # fails while a process uses it
        size = sum(each.lstat().st_size for each in folder.rglob("*") if each.is_file())
        if not dry_run:
            # Renamed first: a process that needs it from now on unpacks it again.
            away = folder.with_name(f".old-{folder.name[:16]}-{os.getpid()}")
            folder.rename(away)
            shutil.rmtree(away, ignore_errors=True)
        return size
    finally:
        os.close(descriptor)


def unpack_from(archive: tarfile.TarFile, folder: Path) -> None:
    """Write the files of an open archive below the folder, and nothing outside of it.

    Args:
        archive: The result of `opened`.
        folder: An existing folder.

    Raises:
        CodePackageError: If a member is not a regular file below the folder, or cannot be written.
    """
    # Not extractall, which is safe only with a filter: Python supports filters since 3.11.4.
    with _named(f"The code cannot be unpacked to {folder}"):
        for member, path in _members(archive):
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            content = archive.extractfile(member)
            assert content is not None, "it is a plain file"
            with content, target.open("wb") as file:
                shutil.copyfileobj(content, file)
            if member.mode & 0o100:
                target.chmod(_RUN)


def _members(archive: tarfile.TarFile) -> Iterator[tuple[tarfile.TarInfo, PurePosixPath]]:
    """Yield the files of the archive with their relative paths.

    Only regular files are accepted: no links, no devices, and no sparse files. Raises
    tarfile.ExtractError for others.
    """
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
    except (tarfile.TarError, OSError, ValueError) as error:  # tarfile raises any of them
        raise CodePackageError(f"{what}: {error}.") from error


# ------------------------------------------------------------------ file selection


def _below(folder: str, limits: PackageLimits) -> Iterator[str]:
    """Yield the files below the folder, regardless of their suffixes."""
    todo, linked, entries = [folder], {os.path.realpath(folder)}, 0
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
            if entry.is_symlink():
                real = os.path.realpath(entry.path)
                if real in linked or os.path.realpath(where).startswith(os.path.join(real, "")):
                    continue  # a circle, or a second link to the same folder
                linked.add(real)
            if not os.path.exists(os.path.join(entry.path, "pyvenv.cfg")):
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
    except OSError:  # a circular link, which cannot be read as a file either
        return False


def _is_file(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry can be packed: not FIFOs, sockets and devices.

    A broken link is packed, so that reading it fails with the reason.
    """
    try:
        return entry.is_file() or not os.path.exists(entry.path)
    except OSError:
        return True


def _too_large(what: str, folder: str | Path) -> CodePackageError:
    return CodePackageError(
        f"There is {what} to package below {folder}: put the flow into a folder of its own."
    )


# ------------------------------------------------------------------ files of mutators


def _added(definition: FlowDefinition) -> dict[str, Path]:
    """Return the files that mutators add, each as a pair of path and name in the package."""
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
    if os.path.isabs(name) or name == os.curdir or name.split(os.sep)[0] == os.pardir:
        raise CodePackageError(
            f"add_to_package of {type(mutator).__name__}: {name} is outside of the package."
        )
    return name, Path(given[0])
