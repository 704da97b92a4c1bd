"""Messages over a socket between the coordinator and the zygotes that fork its processes.

A stream of msgpack values; file descriptors travel beside the first byte of the message that
they belong to (SCM_RIGHTS), and arrive in the order in which they were sent.
"""

from __future__ import annotations

import os
import socket
from collections import deque
from typing import TYPE_CHECKING, Any

import msgpack

from aflow._core.system import NEEDS_RECEIPTS

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Sequence

# Coordinator -> zygote
CONFIGURE = 0  # [CONFIGURE, RunContext, token]
RUN = 1  # [RUN, id, environment, learn?, spec] with stdout, stderr, report
DEBUG = 11  # [DEBUG, id, environment, learn?, spec] with stdin besides
WORK = 2  # [WORK, id, environment, learn?, coroutines?] with tasks, reports, stdout, stderr (twice)
MEMORY_GROUP = "AFLOW_MEMORY_GROUP"  # among the variables of RUN: the cgroup that it is to join
KILL = 3  # [KILL, id, signal]
PROGRAM = 4  # [PROGRAM, *Request]: before anything is run
ASK = 6  # [ASK, names]: whether the zygote has all of these modules; answered by HAS
GROW = 5  # [GROW, environment, imported] with the socket of a zygote that has imported that, or
# (nil) has run the program
BEGIN = 8  # [BEGIN, environment] with the socket of a zygote that is a new interpreter with them

# Zygote -> coordinator
FORKED = 0  # [FORKED, id, pid, at]
EXITED = 1  # [EXITED, id, wait status, peak memory in bytes, CPU seconds]
NOT_FORKED = 2  # [NOT_FORKED, id, reason]
COLD = 3  # [COLD, reason, seconds]: tasks import by themselves what they need, which takes so long
READY = 5  # [READY]: a zygote that was grown serves
HAS = 6  # [HAS, all?]
ARRIVED = 7  # [ARRIVED, count]: of descriptors, where these stay open until then
REFUSED = 4  # [REFUSED, id, reason]: the process cannot be forked from the program

# Coordinator -> process of coroutines: msgpack's nil precedes [task, attempt] of one that is to be
# cancelled, where a spec would stand.
CANCEL = b"\xc0"

MAX_FDS = 64  # at once in one recvmsg; the kernel allows 253
MAX_MESSAGE = 1 << 18  # bytes of a spec for a worker; bigger manifests do not travel with it
_CHUNK = 1 << 18


def packed(*message: Any) -> bytes:
    """Return a message as bytes. Names of files in it need not be UTF-8.

    Args:
        *message: The kind, and what belongs to it: plain values only.
    """
    return msgpack.packb(message, unicode_errors="surrogatepass")  # type: ignore[no-any-return]


def unpacker() -> msgpack.Unpacker:
    """Return a reader of a stream of messages from our own processes."""
    return msgpack.Unpacker(
        strict_map_key=False,
        use_list=False,
        max_buffer_size=1 << 31,
        unicode_errors="surrogatepass",
    )


def receive(sock: socket.socket) -> tuple[bytes, list[int]]:
    """Return bytes of the stream and the descriptors that came with them; b"" once the other side
    has closed it.

    Args:
        sock: The socket; it blocks if it is a blocking one.
    """
    data, fds, _, _ = socket.recv_fds(sock, _CHUNK, MAX_FDS)
    return data, fds


class SendBuffer:
    """The coordinator's sending side: never blocks the event loop, keeps the order."""

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._loop = loop
        self._sock = sock
        self._queue: deque[tuple[memoryview, list[int]]] = deque()
        self._waiting = False
        self._travelling: deque[int] = deque()  # descriptors that may not have arrived

    def send(self, message: Sequence[Any], fds: Sequence[int] = ()) -> None:
        """Send a message; the descriptors are ours from now on and closed once they are sent.

        Args:
            message: The kind, and what belongs to it.
            fds: Descriptors that travel with it; from now on they belong to this buffer, which
                closes them.
        """
        self._queue.append((memoryview(packed(*message)), list(fds)))
        if not self._waiting:
            self._flush()

    def close(self) -> None:
        """Forget what has not been sent, or has not arrived."""
        if self._waiting:
            self._loop.remove_writer(self._sock)
            self._waiting = False
        while self._queue:
            close_all(self._queue.popleft()[1])
        self.arrived(len(self._travelling))

    def arrived(self, count: int) -> None:
        """The other side has received this many more descriptors: their copies here are closed.

        Args:
            count: How many, in the order in which they were sent.
        """
        close_all([self._travelling.popleft() for _ in range(count)])

    def _flush(self) -> None:
        while self._queue:
            data, fds = self._queue[0]
            try:
                sent = socket.send_fds(self._sock, [data], fds) if fds else self._sock.send(data)
            except BlockingIOError:
                self._wait()
                return
            except OSError:  # the zygote is gone; its end is noticed on the reading side
                self.close()
                return
            if NEEDS_RECEIPTS:
                self._travelling.extend(fds)
            else:
                close_all(fds)
            if sent == len(data):
                self._queue.popleft()
            else:
                self._queue[0] = (data[sent:], [])
        if self._waiting:
            self._loop.remove_writer(self._sock)
            self._waiting = False

    def _wait(self) -> None:
        if not self._waiting:
            self._waiting = True
            self._loop.add_writer(self._sock, self._flush)


def close_all(fds: Sequence[int]) -> None:
    """Close descriptors.

    Args:
        fds: Their numbers; all of them are open.
    """
    for fd in fds:
        os.close(fd)
