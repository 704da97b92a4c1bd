"""Folders that belong to the user alone: made with mode 0700, and used only where they are so.

Temporary folders are shared: anybody may have made a folder there under a name that can be known
before, and a link may lead anywhere. So a folder is trusted only if it is a folder (no link), ours,
and closed to others; it is then worked in by its descriptor, which names the same folder whatever
is done to its path.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from aflow.errors import UnsafeFolder

PRIVATE = 0o700
_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def own_folder(path: Path) -> Path:
    """Return a folder that is the user's own, and make it with mode 0700 if it does not exist. Its
    parent has to exist.

    Args:
        path: The folder.

    Raises:
        UnsafeFolder: It is a link, not a folder, another user's, or open to others.
        OSError: It cannot be made.
    """
    with open_folder(path):
        return path


@contextmanager
def open_folder(path: Path) -> Iterator[int]:
    """Yield the descriptor of `own_folder(path)`, and close it at the end of the block. It raises
    the same errors.

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
    """Return a descriptor of an existing folder that is the user's own. The caller closes it.

    Args:
        path: The folder.

    Raises:
        UnsafeFolder: It is a link, not a folder, another user's, or open to others.
        OSError: It does not exist.
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
    """Return a descriptor to read a regular file by; the caller closes it.

    Opening a FIFO that another user has put there would block for ever, and reading a device would
    never end: anything but a regular file, or a link to one, is refused.

    Args:
        path: The file, or a link to it.

    Raises:
        OSError: It cannot be opened, or is not a regular file.
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
        OSError: As `open_regular` does.
    """
    with os.fdopen(open_regular(path), "rb") as file:
        return file.read()


def make_private(path: Path) -> None:
    """Make a folder that may hold secrets, with mode 0700, and its parents with the usual mode; a
    new `.aflow` is kept from git. An existing folder stays as it is.

    Args:
        path: The folder.

    Raises:
        OSError: It cannot be made.
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
    """Check that only the user, or root, can have filled a folder, since its content decides which
    code runs. Under sudo the user that called sudo counts, too.

    Args:
        path: The folder.
        env: The variables: a folder that AFLOW_SAFE_DIRECTORIES names, itself or by its parent, or
            by `*`, is allowed.

    Raises:
        UnsafeFolder: It, or the link to it, belongs to another user, or others may write to it.
    """
    try:
        found = (os.lstat(path), os.stat(path))
    except OSError:
        return  # gone, or not readable: opening it raises the error
    trusted = {os.geteuid(), 0}
    caller = env.get("SUDO_UID", "")
    if os.geteuid() == 0 and caller.isascii() and caller.isdecimal():
        trusted.add(int(caller))
    owner = next((each.st_uid for each in found if each.st_uid not in trusted), None)
    mode = stat.S_IMODE(found[1].st_mode)
    if not stat.S_ISDIR(found[1].st_mode) and not os.stat(path.parent).st_mode & 0o011:
        return  # nobody else reaches a file in a closed folder, whatever its own mode
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
    """Whether the group of a file has, or may have, others than the user in it."""
    import grp
    import pwd

    try:
        group, user = grp.getgrgid(found.st_gid), pwd.getpwuid(found.st_uid)
    except KeyError:  # of another machine: its members are unknown
        return True
    # The group that many systems make for each user alone: umask 002 is usual there.
    return group.gr_name != user.pw_name or bool(set(group.gr_mem) - {user.pw_name})


def is_foreign(path: Path) -> bool:
    """Return whether `path` exists and is anything but a folder that only the user, or root, can
    have filled.

    Args:
        path: The folder.

    Raises:
        OSError: It cannot be examined.
    """
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return False
    is_ours = stat.S_ISDIR(found.st_mode) and found.st_uid in (os.geteuid(), 0)
    return not is_ours or bool(found.st_mode & stat.S_IWOTH)


def runtime_folder(*names: str) -> Path:
    """Return a folder of the user for sockets and the like, which belongs to this machine and may
    be gone after a restart. It is in `aflow` in XDG_RUNTIME_DIR (or /run/user/UID) where that is
    the user's own, else in `aflow-UID` in the folder for temporary files. It is made and checked as
    `own_folder` does.

    Args:
        *names: The names of the folders inside of it, from the top.

    Raises:
        UnsafeFolder: Another user can have filled it.
        OSError: It cannot be made.
    """
    folder = own_folder(_base())
    for name in names:
        folder = own_folder(folder / name)
    return folder


def writable_or_temporary(path: Path) -> Path:
    """Return the folder at `path` if it can be written to, and make it if necessary; else one of
    the same name in the user's own folder for temporary files. Jobs need that which have no home,
    or may not write there.

    Args:
        path: The folder.

    Raises:
        UnsafeFolder: Another user can have filled the temporary one.
        OSError: Neither can be made.
    """
    there = next((each for each in (path, *path.parents) if each.is_dir()), path)
    if path.is_absolute() and os.access(there, os.W_OK | os.X_OK):
        return path
    import tempfile  # it takes a while, and few have no home

    return own_folder(Path(tempfile.gettempdir()) / f"aflow-{os.geteuid()}") / path.name


_IGNORED = """\
# Made by aflow: runs and their results are not part of the project. Settings may be.
*
!config.json
"""


def keep_from_git(folder: str | Path) -> None:
    """Have git leave out what is in a `.aflow` folder that was made just now, as it does with the
    folders of virtual environments and caches. Other folders are left alone.

    Args:
        folder: The new folder; only one that is called `.aflow` gets a `.gitignore`.
    """
    if os.path.basename(folder) != ".aflow":
        return
    with suppress(OSError):  # without it git shows the folder, which does no harm
        descriptor = os.open(
            os.path.join(folder, ".gitignore"), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666
        )
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(_IGNORED)


def _base() -> Path:
    import tempfile  # it takes a while, and most programs need no such folder

    user = os.geteuid()
    session = os.environ.get("XDG_RUNTIME_DIR")  # noqa: TID251 -- the session's, no setting of ours
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
