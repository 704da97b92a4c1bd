"""Find the task that a process belongs to, even if it has left the session of the task.

A zygote is the *subreaper* of all processes that it has forked: a process that loses its parent
becomes a child of the zygote rather than of init. Its owner is identified by a mark that processes
inherit through fork, exec, new sessions and empty environments: the soft limit of CPU time under
real-time scheduling (RLIMIT_RTTIME), set to about 30,000 years. The kernel enforces this limit only
for real-time processes, and every process can read it.

On systems without these features (macOS, some sandboxes), a task ends with its process group.
"""

from __future__ import annotations

import os
import select
import signal

from aflow._core.system import processes, read_proc

try:
    import resource
except ImportError:  # not supported by this system
    resource = None  # type: ignore[assignment]

_BASE = 1 << 61  # microseconds
_CHILDREN = 1 << 28
_TOKENS = 1 << 31
_LIMIT: int | None = getattr(resource, "RLIMIT_RTTIME", None)
_ROUNDS = 200  # attempts to kill the remaining children: about two seconds


def new_token() -> int:
    """Return a random number that marks the processes of one run."""
    return 1 + int.from_bytes(os.urandom(8), "big") % (_TOKENS - 1)


def mark(token: int, child: int) -> None:
    """Mark this process and all its descendants with the run and the child.

    If the mark cannot be set, the descendants end with the process group.

    Args:
        token: The token of the run.
        child: The number of the child process, as the coordinator counts them.
    """
    if _LIMIT is None:
        return
    try:
        _, hard = resource.getrlimit(_LIMIT)
        resource.setrlimit(_LIMIT, (_BASE + token * _CHILDREN + child % _CHILDREN, hard))
    except (OSError, ValueError):  # a lower hard limit applies to the container
        return


def owner_of(pid: int) -> tuple[int, int] | None:
    """Return the token and the child that a process is marked with; None if it has no mark.

    Args:
        pid: The id of any process of this machine; None is returned if it has exited.
    """
    if _LIMIT is None or not hasattr(resource, "prlimit"):
        return None
    try:
        soft, _ = resource.prlimit(pid, _LIMIT)
    except (OSError, ValueError):  # it has exited, or its id belongs to another user now
        return None
    return divmod(soft - _BASE, _CHILDREN) if soft >= _BASE else None


def children() -> list[int]:
    """Return the children of this single-threaded process; none if /proc does not list them."""
    return [*map(int, (read_proc("thread-self/children") or b"").split())]


def is_tracker(pid: int) -> bool:
    """Return whether a process is a resource tracker of multiprocessing (or of loky).

    It ends once its process has ended, and removes shared memory and folders that it has left.

    Args:
        pid: The id of the process.
    """
    return b".resource_tracker import main" in (read_proc(f"{pid}/cmdline") or b"")


def kill(pid: int) -> bool:
    """Kill a process with SIGKILL.

    Args:
        pid: The id of the process; one that has exited counts as killed.

    Returns:
        False if this user may not kill it.
    """
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return True
    except PermissionError:
        return False
    return True


def end_all_children() -> None:
    """Kill all children of this process and their orphans, and wait until they have exited.

    Resource trackers get some time to end by themselves.
    """
    pause = select.poll()
    for number in range(_ROUNDS):
        is_early = number < _ROUNDS // 2
        mine = [pid for pid in children() if (is_early and is_tracker(pid)) or kill(pid)]
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        if not mine:
            return
        pause.poll(min(10, 1 + number))


def kill_marked(token: int) -> None:
    """Kill every process of this machine with this token: a killed zygote has left them behind.

    Args:
        token: The token of the run.
    """
    for pid in processes():
        owner = owner_of(pid)
        if owner is not None and owner[0] == token:
            kill(pid)
