"""Which task a process belongs to, also when it has left the task's session and lost its parents.

A zygote is the *subreaper* of all that it has forked: what loses its parent becomes a child of the
zygote, rather than of the system's first process. Its owner is found by a mark that a process
passes on to whatever it starts, through forks, other programs, sessions and empty environments: its
soft limit of CPU time under real-time scheduling (RLIMIT_RTTIME), in the order of 30,000 years. The
kernel heeds it for processes of real-time classes alone, and lets everybody read it.

Where there is none of this (macOS, some sandboxes), a task ends with its process group.
"""

from __future__ import annotations

import os
import select
import signal

from aflow._core.system import processes, read_proc

try:
    import resource
except ImportError:  # no such limits here
    resource = None  # type: ignore[assignment]

_BASE = 1 << 61  # microseconds
_CHILDREN = 1 << 28
_TOKENS = 1 << 31
_LIMIT: int | None = getattr(resource, "RLIMIT_RTTIME", None)
_ROUNDS = 200  # looks for what is left at the end: some two seconds


def new_token() -> int:
    """Return a number for all processes of one run, which hardly any other has."""
    return 1 + int.from_bytes(os.urandom(8), "big") % (_TOKENS - 1)


def mark(token: int, child: int) -> None:
    """Mark this process, and all that it will start, as those of this child. (Where it cannot be,
    they end with its group.)

    Args:
        token: The mark that all descendants inherit.
        child: The number of the child process, as the coordinator counts them.
    """
    if _LIMIT is None:
        return
    try:
        _, hard = resource.getrlimit(_LIMIT)
        resource.setrlimit(_LIMIT, (_BASE + token * _CHILDREN + child % _CHILDREN, hard))
    except (OSError, ValueError):  # a lower limit is set for all of this container
        return


def owner_of(pid: int) -> tuple[int, int] | None:
    """Return the token and the child that a process is marked with; None where it is not, or is
    gone.

    Args:
        pid: The id of any process of this machine.
    """
    if _LIMIT is None or not hasattr(resource, "prlimit"):
        return None
    try:
        soft, _ = resource.prlimit(pid, _LIMIT)
    except (OSError, ValueError):  # it has ended, or is another user's by now
        return None
    return divmod(soft - _BASE, _CHILDREN) if soft >= _BASE else None


def children() -> list[int]:
    """Return the children of this process, which has one thread; none where the system does not
    say."""
    return [*map(int, (read_proc("thread-self/children") or b"").split())]


def kill(pid: int) -> bool:
    """End a process at once.

    Args:
        pid: The id of the process; one that has gone already counts as ended.

    Returns:
        False where it is not ours to end.
    """
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return True


def end_all_children() -> None:
    """End every child of this process, and what these leave behind, and wait for that."""
    pause = select.poll()
    for number in range(_ROUNDS):
        mine = [pid for pid in children() if kill(pid)]
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        if not mine:
            return
        pause.poll(min(10, 1 + number))


def kill_marked(token: int) -> None:
    """End every process of this machine that has this token: those of a zygote that was killed, and
    could not do so itself.

    Args:
        token: The mark that all descendants inherit.
    """
    for pid in processes():
        owner = owner_of(pid)
        if owner is not None and owner[0] == token:
            kill(pid)
