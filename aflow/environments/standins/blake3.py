"""BLAKE3 in pure Python, as far as aflow uses it: the same digests, many times slower.

Long data are hashed in a process of the Python that aflow itself runs with, which has the compiled
package. The file `aflow-python` next to this module contains its path.
"""

from __future__ import annotations

import os
import struct
import subprocess
from typing import Any

_LONG = 64 << 10  # bytes from which a helper process is faster
_PROGRAM = """\
import sys
from blake3 import blake3
state = blake3()
while data := sys.stdin.buffer.read(1 << 20):
    state.update(data)
print(state.hexdigest(4096))
"""

_IV = (
    0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19,
)  # fmt: skip
_PERMUTATION = (2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)
_CHUNK_START, _CHUNK_END, _PARENT, _ROOT = 1, 2, 4, 8
_BLOCK, _CHUNK, _MASK = 64, 1024, 0xFFFFFFFF
# The indexes of the state's words that are mixed: columns, then diagonals.
_MIXED = (
    (0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15),
    (0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14),
)  # fmt: skip


def _schedule() -> list[tuple[int, ...]]:
    """Return the order of the words of a block in each of the seven rounds."""
    order = tuple(range(16))
    rounds = []
    for _ in range(7):
        rounds.append(order)
        order = tuple(order[each] for each in _PERMUTATION)
    return rounds


_ROUNDS = _schedule()


def _compress(
    value: tuple[int, ...], block: tuple[int, ...], counter: int, length: int, flags: int
) -> list[int]:
    """The compression function of BLAKE3. Returns sixteen words."""
    v = [*value, *_IV[:4], counter & _MASK, counter >> 32, length, flags]
    for order in _ROUNDS:
        for place, (a, b, c, d) in enumerate(_MIXED):
            va = (v[a] + v[b] + block[order[2 * place]]) & _MASK
            vd = v[d] ^ va
            vd = (vd >> 16) | (vd << 16) & _MASK
            vc = (v[c] + vd) & _MASK
            vb = v[b] ^ vc
            vb = (vb >> 12) | (vb << 20) & _MASK
            va = (va + vb + block[order[2 * place + 1]]) & _MASK
            vd ^= va
            vd = (vd >> 8) | (vd << 24) & _MASK
            vc = (vc + vd) & _MASK
            vb ^= vc
            v[a], v[b], v[c], v[d] = va, (vb >> 7) | (vb << 25) & _MASK, vc, vd
    return [v[i] ^ v[i + 8] for i in range(8)] + [v[i + 8] ^ value[i] for i in range(8)]


class _Node:
    """The pending last compression of a chunk or a parent node, which may turn out to be the
    root."""

    def __init__(
        self, value: tuple[int, ...], block: tuple[int, ...], counter: int, length: int, flags: int
    ) -> None:
        self._inputs = value, block, counter, length, flags

    def chain(self) -> tuple[int, ...]:
        """Return the chaining value for the parent node."""
        return tuple(_compress(*self._inputs)[:8])

    def root(self, length: int) -> bytes:
        """Return this many bytes of the digest, for the root node."""
        value, block, _, size, flags = self._inputs
        out = b""
        counter = 0
        while len(out) < length:
            words = _compress(value, block, counter, size, flags | _ROOT)
            out += struct.pack("<16I", *words)
            counter += 1
        return out[:length]


def _chunk(data: bytes, number: int) -> _Node:
    value: tuple[int, ...] = _IV
    last = max(0, (len(data) - 1) // _BLOCK)
    for place in range(last + 1):
        part = data[place * _BLOCK : (place + 1) * _BLOCK]
        flags = (_CHUNK_START if place == 0 else 0) | (_CHUNK_END if place == last else 0)
        block = struct.unpack("<16I", part.ljust(_BLOCK, b"\0"))
        if place == last:
            return _Node(value, block, number, len(part), flags)
        value = tuple(_compress(value, block, number, _BLOCK, flags)[:8])
    raise AssertionError("a chunk has a last block")


def _parent(left: tuple[int, ...], right: tuple[int, ...]) -> _Node:
    return _Node(_IV, left + right, 0, _BLOCK, _PARENT)


def _helper() -> subprocess.Popen[bytes] | None:
    """Start a process that hashes its stdin; None if it cannot be started."""
    try:
        with open(
            os.path.join(os.path.dirname(os.path.abspath(__file__)), "aflow-python"),
            encoding="utf-8",
        ) as file:
            python = file.read()
        return subprocess.Popen(
            [python, "-I", "-c", _PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
    except OSError:
        return None


class blake3:  # noqa: N801 -- the name that it stands in for
    """A hash object with the interface of the package's class; `max_threads` is ignored."""

    AUTO = -1

    def __init__(self, data: Any = b"", /, *, max_threads: int = 1) -> None:
        self._helper: subprocess.Popen[bytes] | None = None
        self._digest = b""  # the first bytes of the digest, from the helper process
        self._rest = bytearray()
        self._chunks = 0
        self._stack: list[tuple[int, ...]] = []  # values of complete subtrees, the largest first
        self.update(data)

    def update(self, data: Any, /) -> blake3:
        """Add bytes to the hashed data.

        Args:
            data: The bytes, as any object with the buffer protocol.

        Returns:
            This object.
        """
        view = memoryview(data).cast("B")
        if self._helper is not None:
            self._write(view)
            return self
        self._rest += view
        if len(self._rest) >= _LONG and not self._chunks:
            self._helper = _helper()
            if self._helper is not None:
                self._write(self._rest)
                self._rest.clear()
                return self
        if len(self._rest) >= _LONG:
            self._absorb()
        return self

    def _write(self, data: Any) -> None:
        assert self._helper is not None, "it was started"
        assert self._helper.stdin is not None, "it is a pipe"
        self._helper.stdin.write(data)

    def _absorb(self) -> None:
        """Hash complete chunks except the last one, which may be the root."""
        done = 0
        while len(self._rest) - done > _CHUNK:
            node = _chunk(bytes(self._rest[done : done + _CHUNK]), self._chunks)
            done += _CHUNK
            self._chunks += 1
            value, count = node.chain(), self._chunks
            while not count & 1:
                value = _parent(self._stack.pop(), value).chain()
                count >>= 1
            self._stack.append(value)
        del self._rest[:done]

    def digest(self, length: int = 32) -> bytes:
        """Return the digest of the data added so far; no more may be added after it.

        Args:
            length: The size of the digest in bytes, at most 4096.
        """
        if self._helper is not None:
            if not self._digest:
                printed, _ = self._helper.communicate()
                self._digest = bytes.fromhex(printed.decode())
            return self._digest[:length]
        self._absorb()
        node = _chunk(bytes(self._rest), self._chunks)
        for left in reversed(self._stack):
            node = _parent(left, node.chain())
        return node.root(length)

    def hexdigest(self, length: int = 32) -> str:
        """Return the digest in hex.

        Args:
            length: The size of the digest in bytes; the result has twice as many digits.
        """
        return self.digest(length).hex()
