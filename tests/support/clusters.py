"""Real local clusters of Dask and Ray with two nodes, one of which can be killed.

As a program (`python -m tests.support.clusters dask`) this module runs a cluster, so that its
threads are not in the test process: it prints its address, and kills a node if it reads a line."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CPUS = 2  # per node; each node also declares one GPU
_PATIENT = {"RAY_raylet_start_wait_time_s": "100"}  # for busy machines


class Nodes:
    """A cluster of two nodes in separate processes."""

    def __init__(self, kind: str, folder: Path) -> None:
        self._log = folder / "log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.clusters", kind],
                cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                env={**os.environ, **_PATIENT, "PYTHONPATH": str(Path(__file__).parents[2])},
            )  # fmt: skip
        assert self._process.stdout is not None
        self.address = ""
        while not self.address:
            line = self._process.stdout.readline()
            if not line:
                self.close()
                raise AssertionError(self.said())
            if line.startswith("address "):
                self.address = line.split()[1]

    def said(self) -> str:
        """Return the log of the cluster's processes."""
        return self._log.read_text()

    def lose_a_node(self) -> None:
        """Kill the second node."""
        assert self._process.stdin is not None
        self._process.stdin.write("kill\n")
        self._process.stdin.flush()

    def close(self) -> None:
        """Stop the cluster."""
        self._process.communicate()


@contextmanager
def cluster(kind: str, folder: Path) -> Iterator[Nodes]:
    """Start a cluster of two nodes, and stop it at the end of the block."""
    nodes = Nodes(kind, folder)
    try:
        yield nodes
    finally:
        nodes.close()


def ray() -> None:
    """Run a Ray cluster until stdin is closed."""
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    nodes = [made.add_node(num_cpus=CPUS, num_gpus=1) for _ in range(2)]
    print("address", made.address, flush=True)
    for _ in sys.stdin:
        made.remove_node(nodes.pop(), allow_graceful=False)
    made.shutdown()


def dask() -> None:
    """Run a Dask cluster until stdin is closed."""
    import distributed

    ways, children = [os.pipe() for _ in range(2)], []
    for number, (readable, writable) in enumerate(ways):
        # Fork before there is an event loop or a thread, so that modules are imported only once.
        child = os.fork()
        if not child:
            os.close(writable)
            os.environ["CUDA_VISIBLE_DEVICES"] = str(number)
            asyncio.run(_be_a_worker(distributed.Worker, readable))
            os._exit(0)
        children.append(child)
    try:
        asyncio.run(_be_a_scheduler(distributed.Scheduler, [each[1] for each in ways], children))
    finally:
        for child in children:
            os.kill(child, signal.SIGKILL)


async def _be_a_worker(kind: Any, readable: int) -> None:
    address = os.read(readable, 1000).decode()
    async with kind(address, nthreads=CPUS, dashboard=False, resources={"GPU": 1}) as worker:
        await worker.finished()


async def _be_a_scheduler(kind: Any, ways: list[int], children: list[int]) -> None:
    async with kind(host="127.0.0.1", port=0, dashboard=False) as scheduler:
        for each in ways:
            os.write(each, scheduler.address.encode())
        while len(scheduler.workers) < len(children):
            await asyncio.sleep(0)
        print("address", scheduler.address, flush=True)
        while await asyncio.to_thread(sys.stdin.readline):
            os.kill(children[1], signal.SIGKILL)


if __name__ == "__main__":
    {"dask": dask, "ray": ray}[sys.argv[1]]()
