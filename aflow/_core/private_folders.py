"""Private folders: created with mode 0700, and only used if they have it.

The folder for temporary files is shared: another user may have created a folder or a link there
under a predictable name. So a folder is only trusted if it is a folder (not a link), belongs to the
user, and is closed to other users. It is then used through its descriptor, which always refers to
the folder that was checked.
"""

from __future__ import annotations

import errno
import os
import stat
from _thread import allocate_lock  # threading is not needed by the start of a command
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from aflow.errors import UnsafeFolder

PRIVATE = 0o700
_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def own_folder(path: Path) -> Path:
    """Check a private folder, and create it with mode 0700 if it does not exist.

    Args:
        path: The folder; its parent must exist.

    Returns:
        The path.

    Raises:
        UnsafeFolder: If it is a link or not a folder, belongs to another user, or is open to
            others.
        OSError: If it cannot be created.
    """
    with open_folder(path):
        return path


@contextmanager
def open_folder(path: Path) -> Iterator[int]:
    """Yield the descriptor of `own_folder(path)`, and close it at the end of the block.

    Raises the same errors.

    Args:
        path: The folder.
    """
    with suppress(FileExistsError):
        os.mkdir(path, PRIVATE)
    descriptor = open_checked(path)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def open_checked(path: Path) -> int:
    """Return a descriptor of an existing private folder, which the caller closes.

    Args:
        path: The folder.

    Raises:
        UnsafeFolder: If it is a link or not a folder, belongs to another user, or is open to
            others.
        OSError: If it does not exist.
    """
    try:
        descriptor = os.open(path, _FLAGS)
    except OSError as error:
        if error.errno not in (errno.ENOTDIR, errno.ELOOP):
            raise
        raise UnsafeFolder(f"{path} is a link, or no folder: remove it, and try again.") from error
    try:
        _check(path, os.fstat(descriptor))
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _check(path: Path, found: os.stat_result) -> None:
    if found.st_uid != os.geteuid():
        raise UnsafeFolder(
            f"The folder {path} belongs to another user (uid {found.st_uid}) and is not used: "
            "have it removed, or set TMPDIR to a folder of your own."
        )
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise UnsafeFolder(
            f"The folder {path} is open to other users (mode {stat.S_IMODE(found.st_mode):o}) and "
            f"is not used: close it (chmod 700 {path}), or remove it."
        )


def open_regular(path: str | Path) -> int:
    """Return a descriptor for reading a regular file, which the caller closes.

    Other kinds of files are rejected: opening a FIFO of another user could block forever, and
    reading a device may never end.

    Args:
        path: The file, or a link to it.

    Raises:
        OSError: If it cannot be opened, or is not a regular file.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return descriptor
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, "it is not a regular file", str(path))


def read_regular(path: str | Path) -> bytes:
    """Return the content of a regular file.

    Args:
        path: The file, or a link to it.

    Raises:
        OSError: If it cannot be read, or is not a regular file.
    """
    with os.fdopen(open_regular(path), "rb") as file:
        return file.read()


def make_private(path: Path) -> None:
    """Create a folder that may contain secrets, with mode 0700, and its parents with default mode.

    A new `.aflow` folder is ignored by git. An existing folder is not changed.

    Args:
        path: The folder.

    Raises:
        OSError: If it cannot be created.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.mkdir(path, PRIVATE)
    except FileExistsError:
        if not os.path.isdir(path):
            raise
    else:
        keep_from_git(path)


def refuse_foreign(path: Path, env: Mapping[str, str]) -> None:
    """Check that only the user or root can have written to a folder or file.

    Its content determines which code runs. Under sudo the user that called sudo is also trusted.

    Args:
        path: The folder or file.
        env: The environment variables; AFLOW_SAFE_DIRECTORIES lists paths that are trusted if they
            are `path`, one of its two nearest parents, or `*`.

    Raises:
        UnsafeFolder: If it, or the link to it, belongs to another user, or others can write to it.
    """
    try:
        found = (os.lstat(path), os.stat(path))
    except OSError:
        return  # it does not exist or is not accessible: opening it will raise an error
    trusted = {os.geteuid(), 0}
    caller = env.get("SUDO_UID", "")
    if os.geteuid() == 0 and caller.isascii() and caller.isdecimal():
        trusted.add(int(caller))
    owner = next((each.st_uid for each in found if each.st_uid not in trusted), None)
    mode = stat.S_IMODE(found[1].st_mode)
    if not stat.S_ISDIR(found[1].st_mode) and not os.stat(path.parent).st_mode & 0o011:
        return  # other users cannot access a file in a closed folder, whatever its mode
    if owner is None and not (mode & stat.S_IWOTH or (mode & stat.S_IWGRP and _shares(found[1]))):
        return
    listed = (env.get("AFLOW_SAFE_DIRECTORIES") or "").split(os.pathsep)
    safe = {os.path.realpath(os.path.expanduser(each)) for each in listed if each}
    real = Path(os.path.realpath(path))
    if "*" in listed or safe & {str(each) for each in (real, *real.parents[:2])}:
        return
    if owner is not None:
        why, repair = f"belongs to another user (uid {owner})", ""
    else:
        why, repair = f"lets others write to it (mode {mode:o})", f"chmod go-w {path}, or "
    what = "folder" if stat.S_ISDIR(found[1].st_mode) else "file"
    raise UnsafeFolder(
        f"The {what} {path} {why} and is not used: what is in it decides which code runs. If you "
        f"trust them, {repair}set AFLOW_SAFE_DIRECTORIES={path.parent}; or name another folder "
        "(--datastore-root)."
    )


def _shares(found: os.stat_result) -> bool:
    """Return whether the group of a file has, or may have, other members than the user."""
    import grp
    import pwd

    try:
        group, user = grp.getgrgid(found.st_gid), pwd.getpwuid(found.st_uid)
    except KeyError:  # not an account of this machine: the members are not known
        return True
    # Many systems create a group for each user, and have a umask of 002.
    return group.gr_name != user.pw_name or bool(set(group.gr_mem) - {user.pw_name})


def is_foreign(path: Path) -> bool:
    """Return whether a path exists and is not a folder that only the user or root can write to.

    Args:
        path: The path.

    Raises:
        OSError: If the path is not accessible.
    """
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return False
    is_ours = stat.S_ISDIR(found.st_mode) and found.st_uid in (os.geteuid(), 0)
    return not is_ours or bool(found.st_mode & stat.S_IWOTH)


def runtime_folder(*names: str) -> Path:
    """Return a private folder for sockets and other files that need not survive a reboot.

    It is below `aflow` in XDG_RUNTIME_DIR (or /run/user/UID) if that is private, or else below
    `aflow-UID` in the folder for temporary files. It is created and checked by `own_folder`.

    Args:
        *names: The names of nested folders, outermost first.

    Raises:
        UnsafeFolder: If another user can have written to it.
        OSError: If it cannot be created.
    """
    folder = own_folder(_base())
    for name in names:
        folder = own_folder(folder / name)
    return folder


def writable_or_temporary(path: Path) -> Path:
    """Return a folder if it is writable, or else one of the same name in the temporary folder.

    For jobs that have no home directory, or cannot write to it. The folder itself is not created.

    Args:
        path: The folder.

    Returns:
        `path` if it, or its nearest existing parent, is writable; otherwise a path in the private
        folder `aflow-UID` for temporary files.

    Raises:
        UnsafeFolder: If another user can have written to the temporary folder.
        OSError: If the temporary folder cannot be created.
    """
    # Not Path.is_dir, which raises PermissionError below a folder that is closed to this user.
    there = next((each for each in (path, *path.parents) if os.path.isdir(each)), path)
    if path.is_absolute() and os.access(there, os.W_OK | os.X_OK):
        return path
    import tempfile  # slow to import, and rarely needed

    return own_folder(Path(tempfile.gettempdir()) / f"aflow-{os.geteuid()}") / path.name


class HeldDescriptors:
    """Descriptors with the locks of folders that this process uses, and the numbers of uses."""

    def __init__(self) -> None:
        self._held: dict[Path, tuple[int, int]] = {}
        self._lock = allocate_lock()

    def add(self, folder: Path, descriptor: int) -> None:
        """Count one more use of a folder. Of several descriptors the first is kept open.

        Args:
            folder: The folder.
            descriptor: A descriptor that holds a lock of it.
        """
        with self._lock:
            before, count = self._held.get(folder, (descriptor, 0))
            if before != descriptor:
                os.close(descriptor)
            self._held[folder] = (before, count + 1)

    def release(self, folder: Path) -> None:
        """End one use; the last one closes the descriptor. No effect if the folder is not held.

        Args:
            folder: The folder.
        """
        with self._lock:
            descriptor, count = self._held.pop(folder, (-1, 0))
            if count > 1:
                self._held[folder] = (descriptor, count - 1)
            elif count == 1:
                os.close(descriptor)

    def descriptor_of(self, folder: Path) -> int:
        """Return the descriptor of a folder that is held.

        Args:
            folder: The folder.
        """
        return self._held[folder][0]


_IGNORED = """\
# Made by aflow: runs and their results are not part of the project. Settings may be.
*
!config.json
"""


def keep_from_git(folder: str | Path) -> None:
    """Make git ignore a new `.aflow` folder, by a `.gitignore` in it.

    Args:
        folder: The new folder; no effect if its name is not `.aflow`.
    """
    if os.path.basename(folder) != ".aflow":
        return
    with suppress(OSError):  # optional: without it git lists the folder as untracked
        descriptor = os.open(
            os.path.join(folder, ".gitignore"), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666
        )
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(_IGNORED)


def _base() -> Path:
    import tempfile  # slow to import, and most programs need no such folder

    user = os.geteuid()
    session = os.environ.get("XDG_RUNTIME_DIR")  # noqa: TID251 -- not a setting of aflow
    for place in (session, f"/run/user/{user}"):
        if place and _is_usable(Path(place)):
            return Path(place) / "aflow"
    return Path(tempfile.gettempdir()) / f"aflow-{user}"


def _is_usable(path: Path) -> bool:
    if not path.is_absolute():
        return False
    try:
        os.close(open_checked(path))
    except (OSError, UnsafeFolder):
        return False
    return os.access(path, os.W_OK | os.X_OK)
