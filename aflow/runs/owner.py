"""Which process drives a run, and whether it still does.

A process is known by host, pid and the time it began at (field 22 of /proc/<pid>/stat, in ticks
since the machine started): a pid alone is given to another process sooner or later.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import Any

SILENCE = 60.0  # seconds without a sign of life after which a run of another host counts as left


def this_process() -> dict[str, Any]:
    """This process, as plain values for a run's settings."""
    pid = os.getpid()
    return {"host": socket.gethostname(), "pid": pid, "began": _began(pid)}


def is_alive(owner: Mapping[str, Any] | None, heartbeat_at: float | None, now: float) -> bool:
    """Whether the process still lives. On another host its signs of life have to tell."""
    if owner is None or owner.get("host") != socket.gethostname():
        return heartbeat_at is not None and now - heartbeat_at < SILENCE
    began = _began(int(owner["pid"]))
    return began is not None and began == owner.get("began", began)


def _began(pid: int) -> int | None:
    """When a process began; None where there is none (or only what is left of one)."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            # The second field is the program's name in parentheses, which may hold anything.
            fields = file.read().rpartition(b")")[2].split()
    except FileNotFoundError:
        return None if os.path.isdir("/proc/self") else _by_signal(pid)
    except (ProcessLookupError, PermissionError):
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def _by_signal(pid: int) -> int | None:
    """Where there is no /proc (macOS): whether there is such a process at all."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        return 0  # somebody else's: it lives
    return 0
