"""Which parts of this process's memory are mapped blobs, and whether anybody wrote to them.

A large array comes back as a private copy-on-write mapping of its blob. If the step then leaves
the same array, its key is known: nothing was changed as long as the kernel had to copy no page.
/proc/self/smaps says so: a page of a private mapping that was written to is counted as
`Anonymous` (or `Swap`), one that was only read is not. Where there is no such file, every
mapping counts as written to, and the bytes are hashed again.
"""

from __future__ import annotations

import mmap
import weakref


class Mappings:
    """The mapped blobs that are still alive."""

    def __init__(self) -> None:
        self._at: dict[int, tuple[int, str, weakref.ref[mmap.mmap]]] = {}

    def remember(self, view: memoryview, key: str) -> None:
        """`view` is the bytes of blob `key` as long as nobody writes to it. Views of anything
        but a mapping are ignored."""
        if isinstance(view.obj, mmap.mmap):
            self._forget_the_dead()
            self._at[_address(view)] = (view.nbytes, key, weakref.ref(view.obj))

    def key_of(self, view: memoryview) -> str | None:
        """The blob that exactly these bytes of memory are mapped from and still equal."""
        if not self._at or view.readonly or not view.nbytes:
            return None
        address = _address(view)
        size, key, mapping = self._at.get(address, (0, "", None))
        if mapping is None or mapping() is None or size != view.nbytes:
            return None
        return None if _was_written(address, size) else key

    def _forget_the_dead(self) -> None:
        self._at = {at: entry for at, entry in self._at.items() if entry[2]() is not None}


def _address(view: memoryview) -> int:
    import ctypes  # 15 ms, for those alone who map large arrays

    return ctypes.addressof(ctypes.c_char.from_buffer(view.cast("B")))


def _was_written(address: int, size: int) -> bool:
    try:
        file = open("/proc/self/smaps", "rb")  # noqa: SIM115 (closed below)
    except OSError:
        return True
    inside = found = False
    with file:
        for line in file:
            field, _, value = line.partition(b" ")
            if not field.endswith(b":"):
                first, last = (int(each, 16) for each in field.split(b"-"))
                inside = first < address + size and address < last
                found = found or inside
            elif inside and field in (b"Anonymous:", b"Swap:") and int(value.split()[0]):
                return True
    return not found
