"""The pure Python replacements of compiled packages return the same results."""

from __future__ import annotations

import os
import random
import sys

import blake3
import pytest
import zstandard

from aflow.environments.standins import blake3 as own_blake3
from aflow.environments.standins import zstandard as own_zstandard

SIZES = (0, 1, 63, 64, 65, 1023, 1024, 1025, 2048, 2049, 3072, 5000, 8193, 31744)


@pytest.mark.parametrize("size", SIZES)
def test_a_digest_is_that_of_the_package(size: int) -> None:
    data = random.Random(size).randbytes(size)
    wanted = blake3.blake3(data)
    in_parts = own_blake3.blake3()
    for start in range(0, size, 777):
        in_parts.update(memoryview(data)[start : start + 777])

    assert wanted.hexdigest() == own_blake3.blake3(data, max_threads=1).hexdigest()
    assert wanted.digest(100) == in_parts.digest(100)


def test_what_is_long_is_hashed_by_the_python_that_has_the_package(
    tmp_path: os.PathLike[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    place = os.path.join(tmp_path, "aflow-python")
    with open(place, "w") as file:
        file.write(sys.executable)
    monkeypatch.setattr(own_blake3, "__file__", os.path.join(tmp_path, "blake3.py"))
    data = os.urandom(200_000)

    state = own_blake3.blake3(data[:50_000])
    state.update(data[50_000:])

    assert state._helper is not None
    assert blake3.blake3(data).hexdigest() == state.hexdigest()
    assert blake3.blake3(data).digest(16) == state.digest(16)


def test_frames_are_read_by_either() -> None:
    data = b"a text that repeats itself " * 10_000
    stream = own_zstandard.ZstdCompressor(level=1, threads=-1).compressobj(size=len(data))
    frame = stream.compress(memoryview(data)) + stream.flush()
    room = bytearray(len(data))

    assert len(own_zstandard.compress(data, 1)) < len(data)
    assert data == zstandard.ZstdDecompressor().decompress(frame)
    with own_zstandard.ZstdDecompressor().stream_reader(zstandard.compress(data, 1)) as reader:
        assert len(data) == reader.readinto(memoryview(room))
        assert b"" == reader.read(1)
    assert data == bytes(room)
    with pytest.raises(own_zstandard.ZstdError):
        own_zstandard.ZstdDecompressor().stream_reader(b"no frame").readinto(memoryview(room))
    with pytest.raises(own_zstandard.ZstdError):
        own_zstandard.ZstdDecompressor().stream_reader(frame).readinto(memoryview(bytearray(10)))
