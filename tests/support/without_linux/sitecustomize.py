"""Hides Linux-only features from every Python that has this on its path: /proc, pidfd, prctl,
memfd, waitid and others. aflow then uses its code for macOS, as far as that works on Linux."""

from __future__ import annotations

import builtins
import ctypes
import errno
import io
import os
import resource
import socket
from collections.abc import Callable
from typing import Any

_NAMES = {
    os: (
        "copy_file_range", "eventfd", "memfd_create", "pidfd_open", "posix_fadvise",
        "posix_fallocate", "sched_getaffinity", "sched_setaffinity", "sendfile", "setns", "splice",
        "unshare", "waitid",
    ),
    resource: ("RLIMIT_RTTIME", "prlimit"),
    socket: ("SOCK_CLOEXEC", "SOCK_SEQPACKET"),
}  # fmt: skip


def _without_proc(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(path: Any = ".", *args: Any, **options: Any) -> Any:
        if isinstance(path, str | bytes | os.PathLike):
            name = os.fsdecode(path)
            if name == "/proc" or name.startswith(("/proc/", "/dev/fd")):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
        return function(path, *args, **options)

    for known in (os.supports_dir_fd, os.supports_fd, os.supports_follow_symlinks):
        if function in known:
            known.add(call)
    return call


class _Library(ctypes.CDLL):
    def __getattr__(self, name: str) -> Any:
        if name in ("prctl", "malloc_trim"):
            raise AttributeError(name)
        return super().__getattr__(name)


for module, names in _NAMES.items():
    for each in names:
        if hasattr(module, each):
            delattr(module, each)
for each in ("listdir", "lstat", "open", "readlink", "scandir", "stat"):
    setattr(os, each, _without_proc(getattr(os, each)))
builtins.open = io.open = _without_proc(open)
ctypes.CDLL = _Library  # type: ignore[misc]

try:
    from aflow._core import system
except ImportError:  # aflow is not installed in this Python
    pass
else:
    assert not system.HAS_PROC
    assert not system.messages_have_an_end()
    system.NEEDS_RECEIPTS = True
