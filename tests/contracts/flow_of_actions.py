"""A flow whose steps do what a test tells them to; the processes of the attempts import it."""

from __future__ import annotations

import asyncio
import inspect
import io
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from aflow.flow.decorators.timeout import timeout
from aflow.flow.spec import FlowSpec, step

NOBODY = 54321  # a user without processes

if os.environ.get("ACTIONS_CANNOT_BE_IMPORTED"):
    raise ImportError("this file is in no mood")
if os.environ.get("ACTIONS_DIE_AT_IMPORT"):
    os._exit(7)
if os.environ.get("ACTIONS_EXIT_AT_IMPORT"):
    sys.exit(3)
if seconds := os.environ.get("ACTIONS_TAKE_TIME_AT_IMPORT"):
    threading.Event().wait(float(seconds))
if os.environ.get("ACTIONS_LEAVE_A_THREAD"):
    threading.Thread(target=threading.Event().wait, daemon=True).start()


class ActionFlow(FlowSpec):
    """`self.action` is the name of a function below and its arguments."""

    @step
    def start(self) -> None:
        self.next(self.act)

    @step
    def act(self) -> None:
        name, *args = self.action
        self.result = ACTIONS[name](*args)
        self.next(self.act_async)

    @step
    async def act_async(self) -> None:
        name, *args = self.action
        self.result = ACTIONS[name](*args)
        if inspect.isawaitable(self.result):
            self.result = await self.result
        self.next(self.hurry)

    @timeout(seconds=1)
    @step
    def hurry(self) -> None:
        name, *args = self.action
        self.result = ACTIONS[name](*args)
        self.next(self.end)

    @step
    def end(self) -> None:
        """Do nothing."""


def speak() -> str:
    print("to stdout")
    print("to stderr", file=sys.stderr)
    os.write(1, b"past Python\n")
    return "spoken"


def fail(message: str) -> None:
    raise ValueError(message)


def leave(code: int) -> None:
    os._exit(code)


def leave_politely(code: int) -> None:
    sys.exit(code)


def kill_yourself(number: int) -> None:
    os.kill(os.getpid(), number)
    signal.pause()


def wait() -> None:
    """Wait forever; any signal ends the wait."""
    print("waiting")
    while True:
        signal.pause()


def ignore_the_polite() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    wait()


def be_deaf() -> None:
    """Wait forever, and ignore all signals except SIGKILL."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    wait()


async def wait_async() -> None:
    print("waiting")
    await asyncio.Event().wait()


async def ignore_the_polite_async() -> None:
    print("waiting")
    while True:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            continue


def write(data: bytes, repeat: int = 1, times: int = 1, stream: str = "stdout") -> None:
    """Write bytes unchanged through Python's stream: this many copies at once, this many times."""
    for _ in range(times):
        getattr(sys, stream).buffer.write(data * repeat)


def write_lines(count: int) -> None:
    for number in range(count):
        print("line", number)


def fork() -> int:
    """Fork a child that returns from the step, like its parent."""
    child = os.fork()
    if child == 0:
        print("the child")
        return 0
    os.waitpid(child, 0)
    print("the parent")
    return child


def sing_in_chorus(voices: int, lines: int) -> None:
    """Start several processes that print concurrently."""
    children = []
    for voice in range(1, voices):
        child = os.fork()
        if child == 0:
            sing(voice, lines)
            sys.stdout.flush()
            os._exit(0)
        children.append(child)
    sing(0, lines)
    for child in children:
        os.waitpid(child, 0)


def sing(voice: int, lines: int) -> None:
    for number in range(lines):
        print(f"voice {voice} line {number}\n", end="")


def leave_a_daemon() -> int:
    """Start a grandchild in a separate session that keeps stdout open forever; return its id."""
    readable, writable = os.pipe()
    child = os.fork()
    if child == 0:
        os.setsid()
        daemon = os.fork()
        if daemon == 0:
            signal.pause()
        os.write(writable, b"%d" % daemon)
        os._exit(0)
    os.waitpid(child, 0)
    return int(os.read(readable, 100))


def leave_a_child() -> int:
    """Start a process that outlives the step, and return its id."""
    return subprocess.Popen(["tail", "-f", "/dev/null"]).pid


def leave_a_child_and_wait() -> None:
    print(leave_a_child(), flush=True)
    wait()


def leave_memory_and_die() -> None:
    """Leave shared memory behind, of which the tracker of multiprocessing knows."""
    from multiprocessing import resource_tracker, shared_memory  # the other actions need less

    print(shared_memory.SharedMemory(create=True, size=1).name)
    tracker = Path(f"/proc/{resource_tracker._resource_tracker._pid}/cmdline")  # type: ignore[attr-defined]
    while b"resource_tracker" not in tracker.read_bytes():
        threading.Event().wait(0.01)
    os.kill(os.getpid(), signal.SIGKILL)


def spoil(what: str) -> None:
    """Change state of the process that must not affect the next task."""
    SPOILS[what]()


def spoil_and_fail(what: str) -> None:
    spoil(what)
    raise ValueError(what)


def _close_descriptors() -> None:
    os.close(1)
    os.close(2)


def _remove_streams() -> None:
    del sys.stdout, sys.stderr


def _replace_streams() -> None:
    sys.stdout = sys.stderr = io.StringIO()


SPOILS: dict[str, Callable[[], Any]] = {
    "folder": lambda: os.chdir("/"),
    "variable": lambda: os.environ.update(SPOILT="yes"),
    "no variables": lambda: os.environ.clear(),
    "umask": lambda: os.umask(0o777),
    "SIGTERM": lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN),
    "SIGINT": lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    "SIGPIPE": lambda: signal.signal(signal.SIGPIPE, signal.SIG_DFL),
    "SIGUSR1": lambda: signal.signal(signal.SIGUSR1, print),
    "alarm": lambda: signal.alarm(1000),
    "closed descriptors": _close_descriptors,
    "closed streams": lambda: (sys.stdout.close(), sys.stderr.close()),
    "other streams": _replace_streams,
    "no streams": _remove_streams,
}


def look() -> dict[str, Any]:
    """Return the state of the process that a step could have changed."""
    umask = os.umask(0)
    os.umask(umask)
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGPIPE, signal.SIGUSR1)
    return {
        "pid": os.getpid(),
        "folder": os.getcwd(),
        "environment": dict(os.environ),
        "umask": umask,
        "signals": [repr(signal.getsignal(number)) for number in numbers],
        "alarm": signal.alarm(0),
        "descriptors": [os.readlink(f"/proc/self/fd/{number}") for number in range(3)],
        "spoken": speak(),
    }


ACTIONS: dict[str, Callable[..., Any]] = {
    each.__name__: each
    for each in (
        speak, fail, leave, leave_politely, kill_yourself, wait, ignore_the_polite, be_deaf,
        wait_async, ignore_the_polite_async, write, write_lines, fork, sing_in_chorus,
        leave_a_daemon, leave_a_child, leave_a_child_and_wait, leave_memory_and_die, spoil,
        spoil_and_fail, look,
    )
}  # fmt: skip
