"""Find out whether processes can be forked from this one.

Warm zygotes, which have run no user code, and programs with `process="fork"` are checked before
tasks are forked from them. Obstacles are resources that a child would lack, or share with all
others: threads, descriptors with a position or a peer, locks, shared memory, timers, children. All
of them are listed in /proc/self; without /proc, nothing is forked.
"""

from __future__ import annotations

import os
import signal
import stat
import struct
import threading
from collections.abc import Collection, Iterator

from aflow._core.system import HAS_PROC, read_proc

# Libraries that survive the loss of their threads: each child starts new ones on demand.
_SURVIVE = ("libarrow.so",)
_PLAIN = (
    "libc.so", "libc-", "libpthread", "libstdc++", "libgcc", "ld-linux", "[vdso]", "ld-musl",
)  # fmt: skip
_STACK = 2048  # bytes above a thread's stack pointer that are searched for return addresses
_TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
_TRIAL_LIMIT = 5.0  # timeout in seconds of the trial fork


def obstacle(ours: Collection[int] = ()) -> str | None:
    """Return why no process can be forked from this one; None if it can. Forks once, as a trial.

    Args:
        ours: The descriptors that belong to aflow, which forks handle.
    """
    if not HAS_PROC:
        return "this system does not say which threads a process has (there is no /proc)"
    try:
        return _thread_in_trial() or _thread() or _descriptor(ours) or _shared() or _other()
    except OSError as error:
        return f"/proc/self cannot be read ({error})"


# ------------------------------------------------------------------ threads


def _thread_in_trial() -> str | None:
    """Return an obstacle if fork hooks start threads in the child, as in grpc and opentelemetry.

    A child that does not respond is another obstacle.
    """
    import select

    readable, writable = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.write(writable, str(len(os.listdir("/proc/self/task"))).encode())
        finally:
            os._exit(0)
    os.close(writable)
    answered = select.select([readable], [], [], _TRIAL_LIMIT)[0]
    count = os.read(readable, 16) if answered else b""
    os.close(readable)
    if not count:
        os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    if not count:
        return "a process that was forked as a trial does not go on"
    if int(count) > 1:
        names = ", ".join(sorted({name for name, _ in owners()})) or "a library"
        return f"{int(count) - 1} threads of {names} are started in each process that is forked"
    return None


def _thread() -> str | None:
    found = list(owners())
    bad = [(name, owner) for name, owner in found if not _survives(name, owner, found)]
    if not bad:
        return None
    name, owner = bad[0]
    who = f"{owner} (thread {name!r})" if owner else f"the thread {name!r}"
    return f"{who} has {len(bad)} thread{'s' * (len(bad) > 1)}" if owner else f"{who} runs"


def _survives(name: str, owner: str | None, found: list[tuple[str, str | None]]) -> bool:
    if name == "jemalloc_bg_thd" or (owner or "").startswith(_SURVIVE):
        return True
    # Importing polars starts its cleaner; its pool, which a fork breaks, starts on first use.
    return name.startswith("polars-ooc-clea") and not any(
        other.startswith("polars-") and other[7:8].isdigit() for other, _ in found
    )


def owners() -> Iterator[tuple[str, str | None]]:
    """Yield the native threads of this process, except the main thread.

    Each is a name, and the first library, other than those of C, among the return addresses on its
    stack; None if that is Python itself, or unknown.
    """
    maps = _code_maps()
    me = os.getpid()
    names = {each.native_id: each.name for each in threading.enumerate()}
    with open("/proc/self/mem", "rb", 0) as memory:
        for thread in os.listdir("/proc/self/task"):
            if int(thread) == me:
                continue
            name = read_proc(f"self/task/{thread}/comm")
            fields = read_proc(f"self/task/{thread}/syscall")
            if name is None or fields is None:  # it has ended
                continue
            native = os.fsdecode(name.strip())
            yield names.get(int(thread), native), _library(maps, memory, fields.split())


def _library(maps: list[tuple[int, int, str]], memory: object, fields: list[bytes]) -> str | None:
    if not fields or fields[0] == b"running":
        return None
    words = [int(fields[-1], 16)]
    try:
        memory.seek(int(fields[-2], 16))  # type: ignore[attr-defined]
        data = memory.read(_STACK)  # type: ignore[attr-defined]
        words += [word for (word,) in struct.iter_unpack("@N", data[: len(data) // 8 * 8])]
    except (OSError, OverflowError, ValueError):
        pass  # only the instruction pointer is known
    for word in words:
        for first, end, name in maps:
            if first <= word < end and not name.startswith(_PLAIN):
                return None if name.startswith(("libpython", "python")) else name
    return None


def _code_maps() -> list[tuple[int, int, str]]:
    """Return where code is mapped: first address, end, name of the file."""
    found = []
    for fields in _maps():
        if "x" in fields[1] and len(fields) == 6:
            first, end = (int(each, 16) for each in fields[0].split("-"))
            found.append((first, end, os.path.basename(fields[5].strip())))
    return found


def _maps() -> Iterator[list[str]]:
    with open("/proc/self/maps", "rb") as file:
        for line in file:
            yield os.fsdecode(line).split(None, 5)


# ------------------------------------------------------------------ other obstacles


def _descriptor(ours: Collection[int]) -> str | None:
    for number in sorted(map(int, os.listdir("/proc/self/fd"))):
        if number <= 2 or number in ours:
            continue
        info = read_proc(f"self/fdinfo/{number}")
        if info is None:  # the descriptor of this listing
            continue
        target = os.readlink(f"/proc/self/fd/{number}")
        mode = os.fstat(number).st_mode
        if b"lock:" in info:
            return f"a lock on {target} is held"
        flags = int(info.split(b"flags:")[1].split()[0], 8)
        access = flags & os.O_ACCMODE
        if stat.S_ISREG(mode) and (
            access == os.O_RDONLY or (access == os.O_WRONLY and flags & os.O_APPEND)
        ):
            continue  # only a position for reading is shared, and each child gets a new one
        if target in ("/dev/null", "/dev/urandom") or target.startswith("/proc/"):
            continue
        kind = target.split(":")[0] if ":[" in target else target
        return f"{kind} is open (descriptor {number})"
    return None


def _shared() -> str | None:
    for fields in _maps():
        if fields[1][1] == "w" and fields[1][3] == "s":
            name = fields[5].strip() if len(fields) == 6 else "without a name"
            return f"memory is shared with other processes ({name})"
    return None


def _other() -> str | None:
    for thread in os.listdir("/proc/self/task"):
        # None: the thread has ended, or the kernel has no such list.
        children = (read_proc(f"self/task/{thread}/children") or b"").split()
        if children:
            return f"a child process runs ({int(children[0])})"
    if any(signal.getitimer(each)[0] for each in _TIMERS):
        return "a timer of signals is set"
    return None
