"""One large object with boto3, which uses s3transfer: MEGABYTES; prints put_seconds, get_seconds.

The object to read must exist already.
"""

import os
import sys
import tempfile
import time

import boto3


def main(megabytes: int) -> None:
    with open("local", "wb") as file:
        for _ in range(megabytes):
            file.write(os.urandom(1 << 20))
    s3 = boto3.client("s3")
    began = time.perf_counter()
    s3.upload_file("local", "bench", "s3transfer-large")
    print("put_seconds", time.perf_counter() - began)
    os.unlink("local")
    began = time.perf_counter()
    s3.download_file("bench", "large", "copy")
    print("get_seconds", time.perf_counter() - began)
    assert os.path.getsize("copy") == megabytes << 20


if __name__ == "__main__":
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    with tempfile.TemporaryDirectory(dir=memory) as name:
        os.chdir(name)
        main(int(sys.argv[1]))
