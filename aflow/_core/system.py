"""Features of Linux, and their fallbacks on other systems (macOS, sandboxes without /proc).

This module detects which features are available; no other module checks the operating system.
Besides this module, only `executors/local/probe.py`, which tests for /proc, and
`aflow.testing.chaos` read /proc.

| on Linux | elsewhere |
|---|---|
| pidfd | a thread that waits for a child; other processes are polled every second |
| PR_SET_PDEATHSIG | a pipe whose other end the parent holds, and a thread that reads from it |
| subreapers, marks on processes | only the process group of a task is killed |
| SOCK_SEQPACKET | datagrams; an empty one marks the end |
| memfd | an unlinked temporary file |
| waitid | wait4: the group of a process is killed just after the process was reaped |
| /proc | ps for memory; no fallback for the rest (see each function) |
| cgroups | the memory of tasks is measured, and tasks that use too much are killed |
"""

from __future__ import annotations

# The functions of signal convert numbers to enums, which writes to more memory pages after a fork.
import _signal  # type: ignore[import-not-found]
import errno
import functools
import os
import re
import sys
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import resource
    import socket
    import subprocess

_IS_MAC = sys.platform == "darwin"

# The folder in which the descriptors of this process can be opened by number, or None.
DESCRIPTORS = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else None
HAS_PROC = DESCRIPTORS is not None
LOOK_AGAIN = 1.0  # seconds between polls of a process that has no pidfd

_HIGH = 200  # aflow's descriptors are above this, so that those of the user's program start at 3

# Whether a descriptor that is sent over a socket must stay open here until it was received.
NEEDS_RECEIPTS = sys.platform != "linux"


# The functions of os that wait for children, each with a predicate on its arguments: whether the
# call waits for any child. (macOS has no waitid.)
WAITS_FOR_ANY: dict[str, Callable[..., bool]] = {
    "wait": lambda: True,
    "wait3": lambda *_, **__: True,
    "wait4": lambda pid=0, *_, **__: pid == -1,
    "waitpid": lambda pid=0, *_: pid == -1,
    "waitid": lambda kind=None, *_: kind == os.P_ALL,
}


def read_proc(name: str) -> bytes | None:
    """Return the content of a file in /proc; None if it does not exist or cannot be read.

    Args:
        name: The path below /proc, such as `self/environ`.
    """
    try:
        with open(f"/proc/{name}", "rb") as file:
            return file.read()
    except OSError:
        return None


def holds_connection(
    users: Collection[int], local: tuple[str, int], remote: tuple[str, int]
) -> bool:
    """Return whether a process of one of these users holds one end of a TCP connection over IPv4.

    True if the system does not report it.

    Args:
        users: The uids of the users.
        local: The address and port of the end to check.
        remote: The address and port of the other end.
    """
    ends = [f"{_in_proc(host)}:{port:04X}" for host, port in (local, remote)]
    # The connection of an IPv6 socket (::ffff:127.0.0.1) is in the table of IPv6.
    mapped = [f"0000000000000000{_in_proc('0.0.255.255')}{each}" for each in ends]
    tables = [read_proc("net/tcp"), read_proc("net/tcp6")]
    if tables[0] is None:
        return True
    for line in b"".join(each or b"" for each in tables).decode().splitlines():
        fields = line.split()
        if fields[1:3] in (ends, mapped):
            return int(fields[7]) in users
    return False


def _in_proc(host: str) -> str:
    """Return an IPv4 address in the format of /proc/net/tcp: hex, in native byte order."""
    return f"{int.from_bytes(bytes(map(int, host.split('.'))), sys.byteorder):08X}"


def processes() -> list[int]:
    """Return the pids of all processes of this machine; empty if the system does not list them."""
    try:
        return [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return []


def usable_cpus() -> int:
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_here() -> int:
    """Return the number of threads of this process.

    Includes threads that Python did not start, if the system lists them.
    """
    if HAS_PROC:
        return len(os.listdir("/proc/self/task"))
    import threading  # not a global import, to keep the start fast

    return threading.active_count()


def affinity() -> frozenset[int]:
    """Return the processors that this process may use; empty if the system has no affinity."""
    return frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else frozenset()


def set_affinity(processors: frozenset[int]) -> None:
    """Restrict this process to these processors.

    Args:
        processors: The numbers of the processors.
    """
    os.sched_setaffinity(0, processors)


def monotonic_domain() -> str:
    """Return the boot id and time namespace; empty if the system does not report them.

    Monotonic times of two processes are only comparable if these are equal.
    """
    booted = read_proc("sys/kernel/random/boot_id")
    if booted is None:
        return ""
    try:
        return f"{booted.decode().strip()} {os.readlink('/proc/self/ns/time')}"
    except OSError:
        return ""


# ------------------------------------------------------------------ files


def sync(file: int) -> None:
    """Block until all data written to a file or folder are on the disk.

    Args:
        file: The descriptor of the file or folder.

    Raises:
        OSError: If the disk has failed, or is full.
    """
    if _IS_MAC:  # fsync of macOS does not flush the cache of the disk
        import fcntl

        try:
            fcntl.fcntl(file, fcntl.F_FULLFSYNC)  # type: ignore[attr-defined]
            return
        except OSError as error:
            if error.errno not in (errno.ENOTSUP, errno.EINVAL, errno.ENOTTY):
                raise
    os.fsync(file)


def start_sync(file: int) -> None:
    """Start to write the data of a file to the disk, so that a later `sync` takes less time.

    Has no effect unless the zygote has called `prepare_forks`, or on other systems than Linux.

    Args:
        file: The descriptor of the file.
    """
    if _sync_file_range is not None:
        _sync_file_range(file, 0, 0, _SYNC_FILE_RANGE_WRITE)


def reserve(file: int, size: int) -> None:
    """Reserve disk space for a file, if the system and the file system support it.

    Args:
        file: The descriptor of the file.
        size: The number of bytes.

    Raises:
        OSError: If there is not enough space.
    """
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file, 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # not supported here
                raise


def memory_file(name: str) -> int:
    """Return the descriptor of an in-memory file, which the caller closes.

    Args:
        name: A name that the system shows for it.
    """
    if hasattr(os, "memfd_create"):
        return os.memfd_create(name)
    import tempfile

    number, path = tempfile.mkstemp(prefix=name)
    os.unlink(path)
    return number


def open_descriptors() -> set[int]:
    """Return the descriptors that are open now."""
    try:
        numbers: Sequence[int] = [*map(int, os.listdir(DESCRIPTORS or "/dev/fd"))]
    except OSError:
        import resource

        numbers = range(min(_MOST_DESCRIPTORS, resource.getrlimit(resource.RLIMIT_NOFILE)[0]))
    # Without the descriptor of the listing itself, which is closed by now.
    return {*filter(is_open, numbers)}


def out_of_the_way(fd: int) -> int:
    """Move a descriptor to a high number, if one is available.

    Args:
        fd: The descriptor, which is closed if it was moved.

    Returns:
        The new descriptor, or `fd`.
    """
    import fcntl  # not a global import, because most programs do not need it

    try:
        moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _HIGH)
    except OSError:
        import resource  # the limit of descriptors is low

        least = min(_HIGH, max(3, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2))
        try:
            moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, least)
        except OSError:
            return fd
    os.close(fd)
    return moved


_MOST_DESCRIPTORS = 1024  # the numbers to check if the system does not list open descriptors


def is_open(number: int) -> bool:
    """Return whether a descriptor is open in this process.

    Args:
        number: The descriptor.
    """
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


# ------------------------------------------------------------------ sockets


def message_pair(largest: int) -> tuple[socket.socket, socket.socket]:
    """Return a pair of connected sockets that preserve message boundaries.

    Args:
        largest: The maximum number of bytes of a message.

    Raises:
        OSError: If the system cannot create them.
    """
    import socket

    if messages_have_an_end():
        return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    for each in pair:  # the default buffers of macOS are 2 and 4 kB
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            each.setsockopt(socket.SOL_SOCKET, option, 2 * largest)
    return pair


@functools.cache
def messages_have_an_end() -> bool:
    """Return whether the sockets of a `message_pair` report that the other end was shut down.

    Otherwise an empty message must mark the end, and it is not possible to wait until a full socket
    becomes writable.
    """
    import socket

    return not _IS_MAC and hasattr(socket, "SOCK_SEQPACKET")


# ------------------------------------------------------------------ processes


_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_SYNC_FILE_RANGE_WRITE = 2
_prctl: Any = None
_sync_file_range: Any = None


def prepare_forks() -> None:
    """Load the functions of the C library that forked processes need, before they are forked."""
    global _prctl, _sync_file_range
    import ctypes  # slow, so only the zygote imports it

    libc = ctypes.CDLL(None, use_errno=True)
    _prctl = getattr(libc, "prctl", None)
    _sync_file_range = getattr(libc, "sync_file_range", None)
    if _sync_file_range is not None:
        _sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)


def adopt_orphans() -> None:
    """Become the subreaper of all orphaned descendants, if the system supports it."""
    if _prctl is not None:
        _prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def lifeline() -> tuple[int, int] | None:
    """Return a pipe for `end_with_parent`; None if the kernel can kill a child with its parent.

    The parent keeps both ends open, its children only the first one.
    """
    return os.pipe() if _prctl is None else None


def end_with_parent(parent: int, line: int | None = None) -> None:
    """Arrange that this process is killed when its parent exits; exit if it already has.

    The kernel kills the process; if it cannot, a thread kills the process group when the other end
    of a lifeline is closed.

    Args:
        parent: The process id of the parent.
        line: The first descriptor of the `lifeline`; None if there is none.
    """
    if _prctl is not None:
        _prctl(_PR_SET_PDEATHSIG, _signal.SIGKILL, 0, 0, 0)
    elif line is not None:
        import threading

        waiting = threading.Thread(target=_wait_at, args=[line], name="aflow-parent", daemon=True)
        waiting.start()
    if os.getppid() != parent:  # the parent exited before the call took effect
        os._exit(1)


def _wait_at(line: int) -> None:
    me = os.getpid()
    os.read(line, 1)  # returns when the parent exits: nothing is written to the pipe
    if os.getpid() == me:
        os.killpg(os.getpgid(0), _signal.SIGKILL)


def watch(pid: int) -> int | None:
    """Return a descriptor that becomes readable when a process exits; the caller closes it.

    None if the system does not support it; the caller must then poll `is_there`.

    Args:
        pid: The id of the process.

    Raises:
        ProcessLookupError: If there is no such process.
    """
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        raise
    except OSError:  # an older kernel, or forbidden in this container
        return None


def is_there(pid: int) -> bool:
    """Return whether a process exists.

    Args:
        pid: The id of the process.
    """
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it belongs to another user
        return True
    return True


def watch_child(process: subprocess.Popen[bytes]) -> int:
    """Return a descriptor that becomes readable when a child process exits; the caller closes it.

    Args:
        process: The child process.
    """
    try:
        watched = watch(process.pid) if process.poll() is None else None
    except ProcessLookupError:  # other code has reaped it
        watched = None
    if watched is not None:
        return watched
    readable, writable = os.pipe()
    if process.returncode is not None:
        os.close(writable)
        return readable
    import threading

    def wait() -> None:
        try:
            process.wait()
        finally:
            os.close(writable)

    threading.Thread(target=wait, name="aflow-child", daemon=True).start()
    return readable


def reap(
    at_end: Callable[[int], object],
) -> tuple[int, int, resource.struct_rusage] | None:
    """Reap one child that has exited, without blocking.

    Args:
        at_end: Called with the pid before the child is reaped, so that the pid cannot have been
            reused; just after that on systems without waitid.

    Returns:
        The pid, the wait status and the resource usage; None if no child has exited.
    """
    try:
        if not hasattr(os, "waitid"):
            ended = os.wait4(-1, os.WNOHANG)
            if not ended[0]:
                return None
            at_end(ended[0])
            return ended
        info = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return None
    if info is None:
        return None
    at_end(info.si_pid)
    return os.wait4(info.si_pid, 0)


def end_group(pid: int) -> None:
    """Kill the remaining processes of a process group with SIGKILL.

    Args:
        pid: The id of the process that led the group, which remains valid while the group has
            members.
    """
    try:
        os.killpg(pid, _signal.SIGKILL)
    except (
        ProcessLookupError,
        PermissionError,
    ):  # empty, or no longer our group; on macOS also if only zombies are left
        return


def peak_memory(usage: resource.struct_rusage) -> int:
    """Return the peak memory in bytes; the unit in `usage` depends on the system.

    Args:
        usage: The resource usage of a process.
    """
    return usage.ru_maxrss * (1 if _IS_MAC else 1024)


# ------------------------------------------------------------------ memory


def memory_of(sessions: Sequence[int]) -> dict[int, int]:
    """Return the memory, in bytes, that all processes of each session use, by session.

    Blocks for some milliseconds. Memory that is shared by several processes counts once, or,
    without /proc, once for each process.

    Args:
        sessions: The ids of the sessions.
    """
    return _memory_by_proc({*sessions}) if HAS_PROC else _memory_by_ps({*sessions})


def _memory_by_proc(sessions: set[int]) -> dict[int, int]:
    members: dict[int, list[int]] = {}
    for pid in processes():
        stat = (read_proc(f"{pid}/stat") or b"").rpartition(b")")[2].split()
        session = int(stat[3]) if len(stat) > 3 else 0  # 0: the process has exited
        if session in sessions:
            members.setdefault(session, []).append(pid)
    return {session: _bytes_of(pids) for session, pids in members.items()}


def _bytes_of(pids: Sequence[int]) -> int:
    file, field = ("status", b"VmRSS") if len(pids) == 1 else ("smaps_rollup", b"Pss")
    total = 0
    for pid in pids:
        status = read_proc(f"{pid}/{file}") or b""  # empty: the process has exited
        found = re.search(rb"^%s:\s+(\d+) kB" % field, status, re.MULTILINE)
        total += int(found[1]) * 1024 if found is not None else 0
    return total


def _memory_by_ps(sessions: set[int]) -> dict[int, int]:
    import subprocess

    command = ["ps", "-axo", "pid=,rss="]
    try:
        listed = subprocess.run(
            command, capture_output=True, encoding="utf-8", timeout=10, check=False
        )
    except (OSError, subprocess.SubprocessError):  # there is no ps
        return {}
    found: dict[int, int] = {}
    for line in listed.stdout.splitlines():
        pid, _, size = line.strip().partition(" ")
        try:
            session = os.getsid(int(pid))
        except (OSError, ValueError):  # the process has exited
            continue
        if session in sessions:
            found[session] = found.get(session, 0) + int(size) * 1024
    return found


class MemoryGroup:
    """A cgroup that limits the total memory of the processes of one task.

    If they need more, the kernel kills some or all of them.
    """

    def __init__(self, path: str, *, is_unified: bool) -> None:
        self.path = path
        self._is_unified = is_unified

    def limit(self, size: int) -> None:
        """Limit the total memory of the group's processes.

        Args:
            size: The maximum number of bytes.

        Raises:
            OSError: If the kernel rejects the limit.
        """
        if self._is_unified:
            _write(f"{self.path}/memory.max", size)
            for name, value in (("memory.swap.max", 0), ("memory.oom.group", 1)):
                if os.path.exists(f"{self.path}/{name}"):  # not in older kernels
                    _write(f"{self.path}/{name}", value)
            return
        _write(f"{self.path}/memory.limit_in_bytes", size)
        if os.path.exists(f"{self.path}/memory.memsw.limit_in_bytes"):
            _write(f"{self.path}/memory.memsw.limit_in_bytes", size)

    def kills(self) -> int:
        """Return how many of its processes the kernel killed because memory ran out."""
        name = "memory.events" if self._is_unified else "memory.oom_control"
        found = re.search(rb"^oom_kill (\d+)", _read(f"{self.path}/{name}"), re.MULTILINE)
        return 0 if found is None else int(found[1])

    def remove(self) -> bool:
        """Remove the group, if all of its processes have exited.

        Returns:
            Whether it no longer exists.
        """
        try:
            os.rmdir(self.path)
        except FileNotFoundError:
            return True
        except OSError:  # it still has a process
            return False
        return True


def memory_group(size: int) -> MemoryGroup | None:
    """Create a cgroup with a limit for the total memory of its processes.

    Args:
        size: The maximum number of bytes.

    Returns:
        The group; None if this process cannot create one.
    """
    global _groups
    found = _home_of_groups()
    if found is None:
        return None
    home, is_unified = found
    _groups += 1
    group = MemoryGroup(f"{home}/{_GROUP}-{os.getpid()}-{_groups}", is_unified=is_unified)
    try:
        os.mkdir(group.path)
        group.limit(size)
    except OSError:  # for example, there are too many
        group.remove()
        return None
    return group


def join_memory_group(path: str) -> None:
    """Move this process, and thereby its future children, into a cgroup.

    If that fails, the memory is only measured, as on systems without cgroups.

    Args:
        path: The folder of the group.
    """
    try:
        _write(f"{path}/cgroup.procs", 0)
    except OSError:  # the group was removed, or belongs to another user
        return


_GROUP = "aflow"
_groups = 0  # the number of groups that this process has created


@functools.cache
def _home_of_groups() -> tuple[str, bool] | None:
    """Return the cgroup in which this process can create others with a memory limit, or None.

    The second value is whether the cgroup is of version 2.
    """
    for mount, own, is_unified in _memory_controllers():
        home = _unified_home(mount, own) if is_unified else f"{mount}{own}"
        if home is not None and os.access(home, os.W_OK):
            _remove_old_groups(home)
            return home, is_unified
    return None


def _memory_controllers() -> list[tuple[str, str, bool]]:
    """Return the mounted cgroup hierarchies that can limit memory, those of version 2 first.

    Each is (mount point, path of this process's cgroup below it, whether it is of version 2).
    """
    own = {}
    for line in (read_proc("self/cgroup") or b"").decode("utf-8", "replace").splitlines():
        _, controllers, path = line.split(":", 2)
        own.update(dict.fromkeys(controllers.split(","), path))
    found = []
    for line in (read_proc("self/mountinfo") or b"").decode("utf-8", "replace").splitlines():
        fields, _, (kind, _, options, *_) = _mount_of(line)
        root, mount = fields[3].rstrip("/"), fields[4]
        is_unified = kind == "cgroup2"
        if not is_unified and (kind != "cgroup" or "memory" not in options.split(",")):
            continue
        path = own.get("" if is_unified else "memory", "/").rstrip("/")
        # In a container the mounted root is often the cgroup of the container.
        below = path.removeprefix(root) if f"{path}/".startswith(f"{root}/") else ""
        found.append((mount, below, is_unified))
    return sorted(found, key=lambda each: not each[2])


def _mount_of(line: str) -> tuple[list[str], str, list[str]]:
    before, middle, after = line.partition(" - ")
    return before.split(), middle, [*after.split(), "", "", ""]


def _unified_home(mount: str, own: str) -> str | None:
    """Return the cgroup of version 2 in which this process can create others, or None.

    In version 2 a group contains either processes or groups with limits, and only one program may
    write to it. So only groups that were delegated to us are used: those that belong to a user
    other than root, those with the delegation mark of systemd, and the root of a container.
    """
    here = f"{mount}{own}"
    if b"memory" not in _read(f"{here}/cgroup.controllers").split():
        return None
    if b"memory" in _read(f"{here}/cgroup.subtree_control").split():
        return here
    if os.geteuid() != 0:
        above = os.path.dirname(here)
        enabled = _read(f"{above}/cgroup.subtree_control").split()
        if b"memory" in enabled and os.access(f"{above}/cgroup.procs", os.W_OK):
            return above
    elif own and not _was_delegated(here):
        return None
    members = [int(each) for each in _read(f"{here}/cgroup.procs").split()]
    if not os.access(here, os.W_OK) or not all(map(_is_ours, members)):
        return None
    ours = f"{here}/{_GROUP}-{os.getpid()}-0"
    try:
        os.mkdir(ours)
        for pid in members:
            _write(f"{ours}/cgroup.procs", pid)
        _write(f"{here}/cgroup.subtree_control", "+memory")
    except OSError:  # a process was added meanwhile, or permission is denied
        return None
    return here


def _was_delegated(path: str) -> bool:
    for name in ("user.delegate", "trusted.delegate"):
        try:
            if os.getxattr(path, name) == b"1":
                return True
        except OSError:
            continue
    return False


def _is_ours(pid: int) -> bool:
    """Return whether a process is this one or a descendant of it."""
    while pid > 1 and pid != os.getpid():
        stat = (read_proc(f"{pid}/stat") or b"").rpartition(b")")[2].split()
        pid = int(stat[1]) if len(stat) > 1 else 0
    return pid == os.getpid()


def _remove_old_groups(home: str) -> None:
    """Remove the groups of processes that were killed."""
    for name in os.listdir(home):
        found = re.fullmatch(rf"{_GROUP}-(\d+)-\d+", name)
        if found is not None and not is_there(int(found[1])):
            try:
                os.rmdir(f"{home}/{name}")
            except OSError:  # it still has a process
                continue


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:  # it does not exist, or access is denied
        return b""


def _write(path: str, value: object) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(str(value))


def kills_for_memory() -> int | None:
    """Return how many processes the kernel has killed because memory ran out.

    Counts those in the cgroup or container of this process, or else those of the machine. None if
    the system does not report it.
    """
    for line in _read(_where_kills_are_counted()).splitlines():
        if line.startswith(b"oom_kill "):
            return int(line.split()[1])
    return None


@functools.cache
def _where_kills_are_counted() -> str:
    for mount, own, is_unified in _memory_controllers():
        for name in (
            ("memory.events.local", "memory.events") if is_unified else ("memory.oom_control",)
        ):
            if b"oom_kill " in _read(f"{mount}{own}/{name}"):
                return f"{mount}{own}/{name}"
    return "/proc/vmstat"
