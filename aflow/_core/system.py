"""What Linux alone has, and what takes its place on other systems (macOS, sandboxes without /proc).

It is chosen here, once, by what is there; no other module asks which system it runs on. Only
`executors/local/probe.py`, which is about /proc as a whole, and `aflow.testing.chaos` read /proc
besides.

| on Linux | elsewhere |
|---|---|
| pidfd | a thread that waits for a child; other processes are looked for every second |
| PR_SET_PDEATHSIG | a pipe whose other end the parent holds, and a thread that waits at it |
| subreapers, marks on processes | a task ends with its process group |
| SOCK_SEQPACKET | datagrams, the last of which is empty |
| memfd | a temporary file without a name |
| waitid | wait4: the group of a process is ended just after it was reaped |
| /proc | ps for memory; nothing for the rest, each of which says what that means |
| cgroups of our own | memory of tasks is measured, and who has too much is ended |
"""

from __future__ import annotations

# signal's own functions turn each number into an enum, which writes to many more pages.
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

# Where the descriptors of this process can be opened by number; None where that is nowhere.
DESCRIPTORS = "/proc/self/fd" if os.path.isdir("/proc/self/fd") else None
HAS_PROC = DESCRIPTORS is not None
LOOK_AGAIN = (
    1.0  # seconds after which it is looked whether a process that cannot be watched is there
)

_HIGH = 200  # descriptors of ours are above this, so that those of the program begin at 3

# Descriptors that travel over a socket have to stay open here until they have arrived.
NEEDS_RECEIPTS = sys.platform != "linux"


# Functions of os that wait for children: whether any child is meant, by their arguments. (macOS has
# no waitid.)
WAITS_FOR_ANY: dict[str, Callable[..., bool]] = {
    "wait": lambda: True,
    "wait3": lambda *_: True,
    "wait4": lambda pid=0, *_: pid == -1,
    "waitpid": lambda pid=0, *_: pid == -1,
    "waitid": lambda kind=None, *_: kind == os.P_ALL,
}


def read_proc(name: str) -> bytes | None:
    """Return the content of a file of /proc; None where it does not exist, or may not be read.

    Args:
        name: The path inside of /proc, as `self/environ`.
    """
    try:
        with open(f"/proc/{name}", "rb") as file:
            return file.read()
    except OSError:
        return None


def holds_connection(
    users: Collection[int], local: tuple[str, int], remote: tuple[str, int]
) -> bool:
    """Return whether a program of certain users on this machine holds one end of a TCP connection
    over IPv4. True where the system does not say.

    Args:
        users: Their uids.
        local: The address and port of the end in question.
        remote: The address and port of the other end.
    """
    ends = [f"{_in_proc(host)}:{port:04X}" for host, port in (local, remote)]
    # One that was opened by a socket of IPv6 (::ffff:127.0.0.1) is in the other table.
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
    """Four bytes of an address as /proc/net/tcp writes them: in the byte order of the machine."""
    return f"{int.from_bytes(bytes(map(int, host.split('.'))), sys.byteorder):08X}"


def processes() -> list[int]:
    """Return the numbers of all processes of this machine; none where the system does not say."""
    try:
        return [int(name) for name in os.listdir("/proc") if name.isdigit()]
    except OSError:
        return []


def usable_cpus() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def threads_here() -> int:
    """Return how many threads this process has, those that Python does not know included where the
    system says so."""
    if HAS_PROC:
        return len(os.listdir("/proc/self/task"))
    import threading  # where it was not imported yet, there is one

    return threading.active_count()


def affinity() -> frozenset[int]:
    """Return the processors that this process may use; empty where a process has no say in it."""
    return frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else frozenset()


def set_affinity(processors: frozenset[int]) -> None:
    """Use no others than these processors.

    Args:
        processors: The numbers of the processors.
    """
    os.sched_setaffinity(0, processors)


def monotonic_domain() -> str:
    """Return what has to be equal for monotonic times of two processes to be comparable: one start
    of one machine, and its time namespace. Empty where the system does not say."""
    booted = read_proc("sys/kernel/random/boot_id")
    if booted is None:
        return ""
    try:
        return f"{booted.decode().strip()} {os.readlink('/proc/self/ns/time')}"
    except OSError:
        return ""


# ------------------------------------------------------------------ files


def sync(file: int) -> None:
    """Block until what was written to a file or folder is on the disk.

    Args:
        file: The descriptor of the file or folder.

    Raises:
        OSError: The disk has failed, or is full.
    """
    if _IS_MAC:  # where fsync leaves it in the disk's cache
        import fcntl

        try:
            fcntl.fcntl(file, fcntl.F_FULLFSYNC)  # type: ignore[attr-defined]
            return
        except OSError as error:
            if error.errno not in (errno.ENOTSUP, errno.EINVAL, errno.ENOTTY):
                raise
    os.fsync(file)


def start_sync(file: int) -> None:
    """Have what was written to a file go to the disk soon, where a zygote has prepared that: `sync`
    has less to wait for then, and nothing depends on it.

    Args:
        file: The descriptor of the file or folder.
    """
    if _sync_file_range is not None:
        _sync_file_range(file, 0, 0, _SYNC_FILE_RANGE_WRITE)


def reserve(file: int, size: int) -> None:
    """Reserve disk space for a file, where the system and its disk can.

    Args:
        file: The descriptor of the file or folder.
        size: How many bytes.

    Raises:
        OSError: There is not enough space.
    """
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file, 0, size)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL):  # this file system cannot
                raise


def memory_file(name: str) -> int:
    """Return the descriptor of a file in memory, which is gone when it is closed. The caller closes
    it.

    Args:
        name: A name for the listings of the system.
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
    # That of the listing itself is closed by now.
    return {*filter(is_open, numbers)}


def out_of_the_way(fd: int) -> int:
    """Return the same as a descriptor with a high number, if there is one available.

    Args:
        fd: The descriptor.
    """
    import fcntl  # few programs that import this module move any

    try:
        moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _HIGH)
    except OSError:
        import resource  # where there are no such numbers

        least = min(_HIGH, max(3, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2))
        try:
            moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, least)
        except OSError:
            return fd
    os.close(fd)
    return moved


_MOST_DESCRIPTORS = 1024  # that are looked at where the system has no list


def is_open(number: int) -> bool:
    """Return whether this process has the descriptor open.

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
    """Return the two ends of a socket that preserves message boundaries: each message is received
    as a whole, by one receiver.

    Args:
        largest: How many bytes a message may have.

    Raises:
        OSError: The system cannot make them.
    """
    import socket

    if messages_have_an_end():
        return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    for each in pair:  # macOS has room for 2 and 4 kB
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            each.setsockopt(socket.SOL_SOCKET, option, 2 * largest)
    return pair


@functools.cache
def messages_have_an_end() -> bool:
    """Return whether who receives from a `message_pair` notices that the other end was shut down
    (else an empty message has to say so), and a socket without room can be waited for."""
    import socket

    return not _IS_MAC and hasattr(socket, "SOCK_SEQPACKET")


# ------------------------------------------------------------------ processes


_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_SYNC_FILE_RANGE_WRITE = 2
_prctl: Any = None
_sync_file_range: Any = None


def prepare_forks() -> None:
    """Load what forked processes call, once, before they are forked."""
    global _prctl, _sync_file_range
    import ctypes  # costs start-up time: only a zygote pays it, while nobody waits

    libc = ctypes.CDLL(None, use_errno=True)
    _prctl = getattr(libc, "prctl", None)
    _sync_file_range = getattr(libc, "sync_file_range", None)
    if _sync_file_range is not None:
        _sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)


def adopt_orphans() -> None:
    """Become the parent of all descendants that lose theirs, where the system knows that."""
    if _prctl is not None:
        _prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def lifeline() -> tuple[int, int] | None:
    """Return a pipe for `end_with_parent`, where the kernel does not end processes with their
    parents: the parent keeps both ends, its children the first alone."""
    return os.pipe() if _prctl is None else None


def end_with_parent(parent: int, line: int | None = None) -> None:
    """Have this process, and its group, killed when its parent ends: by the kernel, or when the
    other end of a lifeline is closed. If the parent has ended already, the call does not return.

    Args:
        parent: The process id of the parent.
        line: The descriptor of the lifeline, for systems whose kernel does not do it; None
            elsewhere.
    """
    if _prctl is not None:
        _prctl(_PR_SET_PDEATHSIG, _signal.SIGKILL, 0, 0, 0)
    elif line is not None:
        import threading

        waiting = threading.Thread(target=_wait_at, args=[line], name="aflow-parent", daemon=True)
        waiting.start()
    if os.getppid() != parent:  # it died before that could be known
        os._exit(1)


def _wait_at(line: int) -> None:
    me = os.getpid()
    os.read(line, 1)  # nothing is ever written to it
    if os.getpid() == me:
        os.killpg(os.getpgid(0), _signal.SIGKILL)


def watch(pid: int) -> int | None:
    """Return a descriptor that can be read once a process has ended; the caller closes it. None
    where the system has no such thing: call `is_there` now and then.

    Args:
        pid: The id of the process.

    Raises:
        ProcessLookupError: There is no such process.
    """
    if not hasattr(os, "pidfd_open"):
        return None
    try:
        return os.pidfd_open(pid)
    except ProcessLookupError:
        raise
    except OSError:  # an older kernel, or not allowed in this container
        return None


def is_there(pid: int) -> bool:
    """Return whether there is such a process.

    Args:
        pid: The id of the process.
    """
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is another user's by now
        return True
    return True


def watch_child(process: subprocess.Popen[bytes]) -> int:
    """Return a descriptor, to be closed by the caller, that can be read once this child has ended.

    Args:
        process: The child.
    """
    try:
        watched = watch(process.pid) if process.poll() is None else None
    except ProcessLookupError:  # it was waited for by somebody else meanwhile
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
    """Reap a child that has ended, as os.wait4 does.

    Args:
        at_end: Called with its pid while that cannot be another process's yet, or just after.

    Returns:
        The pid, the status and the usage; None where no child has ended.
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
    """Kill what is left of a process's group with SIGKILL. The id names the group for as long as
    the group has a member.

    Args:
        pid: The id of the process.
    """
    try:
        os.killpg(pid, _signal.SIGKILL)
    except (
        ProcessLookupError,
        PermissionError,
    ):  # none is left, or it is no longer ours; macOS: what is left has ended
        return


def peak_memory(usage: resource.struct_rusage) -> int:
    """Return the peak memory in bytes out of what `getrusage` reports, whose unit differs between
    systems.

    Args:
        usage: The usage of a process.
    """
    return usage.ru_maxrss * (1 if _IS_MAC else 1024)


# ------------------------------------------------------------------ memory


def memory_of(sessions: Sequence[int]) -> dict[int, int]:
    """Return the bytes of memory that all processes of each session have now, by session. Blocks
    for some milliseconds. Memory that several processes share counts once (where there is no /proc:
    as often as it is shared).

    Args:
        sessions: The ids of the sessions.
    """
    return _memory_by_proc({*sessions}) if HAS_PROC else _memory_by_ps({*sessions})


def _memory_by_proc(sessions: set[int]) -> dict[int, int]:
    members: dict[int, list[int]] = {}
    for pid in processes():
        stat = (read_proc(f"{pid}/stat") or b"").rpartition(b")")[2].split()
        session = int(stat[3]) if len(stat) > 3 else 0  # it has ended meanwhile
        if session in sessions:
            members.setdefault(session, []).append(pid)
    return {session: _bytes_of(pids) for session, pids in members.items()}


def _bytes_of(pids: Sequence[int]) -> int:
    file, field = ("status", b"VmRSS") if len(pids) == 1 else ("smaps_rollup", b"Pss")
    total = 0
    for pid in pids:
        status = read_proc(f"{pid}/{file}") or b""  # it has ended meanwhile
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
    except (OSError, subprocess.SubprocessError):  # there is none: nothing is measured
        return {}
    found: dict[int, int] = {}
    for line in listed.stdout.splitlines():
        pid, _, size = line.strip().partition(" ")
        try:
            session = os.getsid(int(pid))
        except (OSError, ValueError):  # it has ended meanwhile
            continue
        if session in sessions:
            found[session] = found.get(session, 0) + int(size) * 1024
    return found


class MemoryGroup:
    """The processes of one task, whose memory the kernel bounds together (a cgroup), and of which
    it kills some where that is not enough."""

    def __init__(self, path: str, *, is_unified: bool) -> None:
        self.path = path
        self._is_unified = is_unified

    def limit(self, size: int) -> None:
        """Limit the memory of the group's processes.

        Args:
            size: How many bytes.

        Raises:
            OSError: The kernel refuses.
        """
        if self._is_unified:
            _write(f"{self.path}/memory.max", size)
            for name, value in (("memory.swap.max", 0), ("memory.oom.group", 1)):
                if os.path.exists(f"{self.path}/{name}"):  # later kernels have more of them
                    _write(f"{self.path}/{name}", value)
            return
        _write(f"{self.path}/memory.limit_in_bytes", size)
        if os.path.exists(f"{self.path}/memory.memsw.limit_in_bytes"):
            _write(f"{self.path}/memory.memsw.limit_in_bytes", size)

    def kills(self) -> int:
        """Return how many of its processes were killed since memory had run out."""
        name = "memory.events" if self._is_unified else "memory.oom_control"
        found = re.search(rb"^oom_kill (\d+)", _read(f"{self.path}/{name}"), re.MULTILINE)
        return 0 if found is None else int(found[1])

    def remove(self) -> bool:
        """Remove the group, if all of its processes have ended.

        Returns:
            Whether it is gone.
        """
        try:
            os.rmdir(self.path)
        except FileNotFoundError:
            return True
        except OSError:  # its last process is on its way out
            return False
        return True


def memory_group(size: int) -> MemoryGroup | None:
    """Make a cgroup whose processes may have so many bytes together.

    Args:
        size: How many bytes.

    Returns:
        The group; None where this process may not make one.
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
    except OSError:  # there are too many, say
        group.remove()
        return None
    return group


def join_memory_group(path: str) -> None:
    """Have the memory of this process, and of all that it starts, bounded by a group. Where that
    fails it is measured, as where there are no groups.

    Args:
        path: The folder of the group.
    """
    try:
        _write(f"{path}/cgroup.procs", 0)
    except OSError:  # the group was removed, or belongs to somebody else by now
        return


_GROUP = "aflow"
_groups = 0  # that this process has made


@functools.cache
def _home_of_groups() -> tuple[str, bool] | None:
    """The cgroup in which this process may make others with a limit of memory, and whether it is of
    version 2; None where there is none."""
    for mount, own, is_unified in _memory_controllers():
        home = _unified_home(mount, own) if is_unified else f"{mount}{own}"
        if home is not None and os.access(home, os.W_OK):
            _remove_old_groups(home)
            return home, is_unified
    return None


def _memory_controllers() -> list[tuple[str, str, bool]]:
    """Where cgroups that can bound memory are mounted, this process's own below that, and whether
    they are of version 2."""
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
        # In a container what is mounted is often the container's own group.
        below = path.removeprefix(root) if f"{path}/".startswith(f"{root}/") else ""
        found.append((mount, below, is_unified))
    return sorted(found, key=lambda each: not each[2])


def _mount_of(line: str) -> tuple[list[str], str, list[str]]:
    before, middle, after = line.partition(" - ")
    return before.split(), middle, [*after.split(), "", "", ""]


def _unified_home(mount: str, own: str) -> str | None:
    """The same of version 2, where a group has either processes or groups with limits. Its rule is
    that one program alone writes to a group: ours are those that were delegated to us, by an owner
    that is not an administrator, or with the mark that systemd leaves; the root of a
    container's."""
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
    except OSError:  # a process came meanwhile, or something forbids it
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
    """Whether a process is this one, or was started by it."""
    while pid > 1 and pid != os.getpid():
        stat = (read_proc(f"{pid}/stat") or b"").rpartition(b")")[2].split()
        pid = int(stat[1]) if len(stat) > 1 else 0
    return pid == os.getpid()


def _remove_old_groups(home: str) -> None:
    """Remove what programs have left that were killed."""
    for name in os.listdir(home):
        found = re.fullmatch(rf"{_GROUP}-(\d+)-\d+", name)
        if found is not None and not is_there(int(found[1])):
            try:
                os.rmdir(f"{home}/{name}")
            except OSError:  # somebody still has a process there
                continue


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:  # it is not there, or not for us
        return b""


def _write(path: str, value: object) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.write(str(value))


def kills_for_memory() -> int | None:
    """Return how many processes the system has killed since memory ran out, of the container or
    cgroup that this one is in, else of this machine; None where it does not say."""
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
