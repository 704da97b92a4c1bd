"""The cost of objects in S3: `aflow.S3` compared with s3transfer and Metaflow's S3.

All use the same server, nginx (Debian's nginx-light), which stores and returns objects as fast as
the machine can. It does not join the parts of uploads: objects for downloads are put as a whole.
"""

from __future__ import annotations

import functools
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.measure import Bench, Finished, interleaved
from benchmarks.rows import Row

MANY, SMALL = 1000, 10_000  # number of objects, bytes per object
_CONFIGURATION = """
daemon off; worker_processes 2; pid {folder}/pid; error_log {folder}/error.log; {user}
events {{ worker_connections 1024; }}
http {{
  access_log off; sendfile on; tcp_nopush on; keepalive_requests 100000;
  client_max_body_size 0; client_body_buffer_size 1m; client_body_temp_path {folder}/bodies;
  proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  map $request_method $tag {{ PUT '"00000000000000000000000000000000"'; default $sent_http_etag; }}
  server {{
    listen 127.0.0.1:{port}; root {folder}/root; default_type application/xml;
    location / {{
      dav_methods PUT DELETE; create_full_put_path on; add_header ETag $tag always;
      if ($arg_partNumber) {{ rewrite ^(.*)$ $1.part$arg_partNumber break; }}
      if ($args ~ "^uploads") {{ return 200 '{start}'; }}
      if ($request_method = POST) {{ return 200 '{complete}'; }}
    }}
  }}
}}
"""
_START = "<InitiateMultipartUploadResult><UploadId>u1</UploadId></InitiateMultipartUploadResult>"
_COMPLETE = '<CompleteMultipartUploadResult><ETag>"0-1"</ETag></CompleteMultipartUploadResult>'


def objects(bench: Bench) -> list[Row]:
    """Many small objects, and one large object."""
    megabytes = bench.size(512, 128)
    with server() as (url, root):
        # Both programs read the same object, and write another one.
        with (root / "bench" / "large").open("wb") as large:
            for _ in range(megabytes):
                large.write(os.urandom(1 << 20))
        programs = {
            "many": ("s3_objects.py", "many", MANY, SMALL),
            "metaflow": ("peers/metaflow_s3.py", MANY, SMALL),
            "large": ("s3_objects.py", "large", megabytes),
            "s3transfer": ("peers/s3transfer_large.py", megabytes),
        }
        access = {
            "AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench",
            "AWS_DEFAULT_REGION": "us-east-1", "AWS_ENDPOINT_URL": url,
            "METAFLOW_S3_ENDPOINT_URL": url,
        }  # fmt: skip
        finished: dict[str, list[Finished]] = {name: [] for name in programs}

        def run(name: str) -> float:
            finished[name].append(bench.run(*programs[name], env=access))
            return 0.0

        rounds = bench.size(5, 3)
        interleaved(rounds, {name: functools.partial(run, name) for name in programs})
    rows = []
    for what in ("put", "get"):
        ours, theirs = (
            _median([each.figure(f"{what}_seconds") for each in finished[name]])
            for name in ("many", "metaflow")
        )
        rows.append(
            Row("s3", f"{what} {MANY} objects of {SMALL // 1000} kB", ours, "s", theirs,
                "metaflow", "5x faster", theirs / ours >= 5)
        )  # fmt: skip
    for what in ("put", "get"):
        ours, theirs = (
            megabytes / _median([each.figure(f"{what}_seconds") for each in finished[name]])
            for name in ("large", "s3transfer")
        )
        rows.append(
            Row("s3", f"{what} one object of {megabytes} MB", ours, "MB/s", theirs,
                "s3transfer", "as fast", ours >= theirs, more_is_better=True)
        )  # fmt: skip
    peak = max(each.peak_mb for each in finished["large"])
    theirs = max(each.peak_mb for each in finished["s3transfer"])
    rows.append(Row("s3", "peak memory with that object", peak, "MB", theirs, "s3transfer"))
    return rows


def _median(values: list[float]) -> float:
    return sorted(values)[len(values) // 2]


@contextmanager
def server() -> Iterator[tuple[str, Path]]:
    """Run nginx on a free port; yields its URL and the folder of its buckets, such as `bench`."""
    program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        raise SystemExit("There is no nginx to measure against: install Debian's nginx-light.")
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as name:
        folder = Path(name)
        (folder / "root" / "bench").mkdir(parents=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        user = "user root;" if os.getuid() == 0 else ""
        (folder / "nginx.conf").write_text(
            _CONFIGURATION.format(
                folder=folder, port=port, user=user, start=_START, complete=_COMPLETE
            )
        )
        process = subprocess.Popen(
            [program, "-c", folder / "nginx.conf", "-e", folder / "error.log"],
            stdin=subprocess.DEVNULL,
        )
        try:
            while not _listens(port):
                if process.poll() is not None:
                    raise SystemExit(f"nginx ended: {(folder / 'error.log').read_text()[-2000:]}")
                time.sleep(0.05)
            yield f"http://127.0.0.1:{port}", folder / "root"
        finally:
            process.terminate()
            process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
