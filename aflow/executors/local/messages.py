"""Messages over a socket between the coordinator and the zygotes that fork its processes.

The stream consists of msgpack values. File descriptors are sent with the first byte of the message
that they belong to (SCM_RIGHTS), and arrive in the order in which they were sent.
"""

from __future__ import annotations

import errno
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
DEBUG = 11  # [DEBUG, id, environment, learn?, spec] with stdout, stderr, report, stdin
WORK = 2  # [WORK, id, environment, learn?, coroutines?] with tasks, reports, stdout, stderr (twice)
MEMORY_GROUP = "AFLOW_MEMORY_GROUP"  # a variable of RUN: the cgroup that the process joins
KILL = 3  # [KILL, id, signal]
PROGRAM = 4  # [PROGRAM, *Request]: before anything is run
ASK = 6  # [ASK, names]: whether the zygote has imported all of these modules; the response is HAS
# [GROW, environment, imported] with the socket of a zygote that imports these modules or, if
# `imported` is nil, runs the program.
GROW = 5
# [BEGIN, environment] with the socket of a zygote that is a new interpreter with these variables.
BEGIN = 8

# Zygote -> coordinator
FORKED = 0  # [FORKED, id, pid, at]
EXITED = 1  # [EXITED, id, wait status, peak memory in bytes, CPU seconds]
NOT_FORKED = 2  # [NOT_FORKED, id, reason]
COLD = 3  # [COLD, reason, seconds]: each task repeats the imports, which take so many seconds
READY = 5  # [READY]: a grown zygote serves
HAS = 6  # [HAS, all?]
ARRIVED = 7  # [ARRIVED, count]: received descriptors, on systems that require receipts
REFUSED = 4  # [REFUSED, id, reason]: the process cannot be forked from the program

# Coordinator -> process of coroutines: a nil in place of a spec, followed by the [task, attempt] of
# the attempt to cancel.
CANCEL = b"\xc0"

MAX_FDS = 64  # at once in one recvmsg; the kernel allows 253
MAX_MESSAGE = 1 << 18  # bytes of a spec for a worker process; larger manifests are not sent with it
_CHUNK = 1 << 18
_LOOK_AGAIN = 0.05  # seconds until another try to send
# Too many descriptors are under way in all sockets of the user, or the kernel has no memory.
_FULL = (errno.ETOOMANYREFS, errno.ENOBUFS, errno.ENOMEM)


def packed(*message: Any) -> bytes:
    """Return a message as bytes. Names of files in it need not be UTF-8.

    Args:
        *message: The kind and its fields: plain values only.
    """
    return msgpack.packb(message, unicode_errors="surrogatepass")  # type: ignore[no-any-return]


def unpacker() -> msgpack.Unpacker:
    """Return a decoder for a stream of messages from aflow's own processes."""
    return msgpack.Unpacker(
        strict_map_key=False,
        use_list=False,
        max_buffer_size=1 << 31,
        unicode_errors="surrogatepass",
    )


def receive(sock: socket.socket) -> tuple[bytes, list[int]]:
    """Return bytes of the stream and the descriptors sent with them; b"" if the peer has closed it.

    Args:
        sock: The socket; the call blocks if the socket does.
    """
    data, fds, _, _ = socket.recv_fds(sock, _CHUNK, MAX_FDS)
    return data, fds


class SendBuffer:
    """The coordinator's sending side: never blocks the event loop, and keeps the order."""

    def __init__(self, loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._loop = loop
        self._sock = sock
        self._queue: deque[tuple[memoryview, list[int]]] = deque()
        self._waiting = False
        self._travelling: deque[int] = deque()  # descriptors that may not have arrived yet

    def send(self, message: Sequence[Any], fds: Sequence[int] = ()) -> None:
        """Send a message.

        Args:
            message: The kind and its fields.
            fds: Descriptors that are sent with it. The buffer owns them from now on, and closes
                them once they are sent.
        """
        self._queue.append((memoryview(packed(*message)), list(fds)))
        if not self._waiting:
            self._flush()

    def close(self) -> None:
        """Discard unsent messages, and close all descriptors that have not arrived."""
        self._stop_waiting()
        while self._queue:
            close_all(self._queue.popleft()[1])
        self.arrived(len(self._travelling))

    def arrived(self, count: int) -> None:
        """Close the descriptors that the peer has received.

        Args:
            count: How many more it has received, in the order in which they were sent.
        """
        close_all([self._travelling.popleft() for _ in range(count)])

    def _flush(self) -> None:
        while self._queue:
            data, fds = self._queue[0]
            try:
                sent = socket.send_fds(self._sock, [data], fds) if fds else self._sock.send(data)
            except BlockingIOError:
                self._waiting = True
                self._loop.add_writer(self._sock, self._flush)
                return
            except OSError as error:
                if error.errno in _FULL:
                    self._stop_waiting()
                    self._waiting = True
                    self._loop.call_later(_LOOK_AGAIN, self._flush)
                else:  # the zygote is gone, which the reading side notices
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
        self._stop_waiting()

    def _stop_waiting(self) -> None:
        if self._waiting:
            self._loop.remove_writer(self._sock)
            self._waiting = False


def close_all(fds: Sequence[int]) -> None:
    """Close descriptors.

    Args:
        fds: Their numbers; all of them are open.
    """
    for fd in fds:
        os.close(fd)
