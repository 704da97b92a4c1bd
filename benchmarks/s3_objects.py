"""Objects with aflow.S3: `many COUNT BYTES`, or `large MEGABYTES`; prints put_seconds, get_seconds.

The large object to read must exist already.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

import aflow


def many(count: int, size: int) -> None:
    given = [(f"small/{number}", os.urandom(size)) for number in range(count)]
    with aflow.S3(s3root="s3://bench/aflow") as s3:
        began = time.perf_counter()
        s3.put_many(given)
        print("put_seconds", time.perf_counter() - began)
    with aflow.S3(s3root="s3://bench/aflow") as s3:
        began = time.perf_counter()
        found = s3.get_many([key for key, _ in given])
        print("get_seconds", time.perf_counter() - began)
        assert [data for _, data in given] == [each.blob for each in found]


def large(megabytes: int, folder: Path) -> None:
    local = folder / "local"
    with local.open("wb") as file:
        for _ in range(megabytes):
            file.write(os.urandom(1 << 20))
    with aflow.S3(s3root="s3://bench", tmproot=str(folder)) as s3:
        s3.put("connected", b"")  # connect first, as the peer's client is created before, too
        began = time.perf_counter()
        s3.put_files([("aflow-large", str(local))])
        print("put_seconds", time.perf_counter() - began)
        local.unlink()
        began = time.perf_counter()
        found = s3.get("large")
        print("get_seconds", time.perf_counter() - began)
        assert found.size == megabytes << 20


if __name__ == "__main__":
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(dir=memory) as name:
        os.chdir(name)
        what, *numbers = sys.argv[1:]
        if what == "many":
            many(*map(int, numbers))
        else:
            large(int(numbers[0]), Path(name))
