"""Many small objects with Metaflow's S3: COUNT BYTES; prints put_seconds and get_seconds."""

import os
import sys
import tempfile
import time

from metaflow import S3


def main(count: int, size: int) -> None:
    given = [(f"small/{number}", os.urandom(size)) for number in range(count)]
    with S3(s3root="s3://bench/metaflow") as s3:
        began = time.perf_counter()
        s3.put_many(given)
        print("put_seconds", time.perf_counter() - began)
    with S3(s3root="s3://bench/metaflow") as s3:
        began = time.perf_counter()
        found = s3.get_many([key for key, _ in given])
        print("get_seconds", time.perf_counter() - began)
        assert [data for _, data in given] == [each.blob for each in found]


if __name__ == "__main__":
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(dir=memory) as name:
        os.chdir(name)
        main(*map(int, sys.argv[1:]))
