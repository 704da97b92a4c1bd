"""The delays that a run causes on the event loop of the program that embeds it.

    python -m benchmarks.embedded [--tasks 10000] [--isolation worker] [--workers 16]

A heartbeat is scheduled on the host's loop every millisecond. Its delay is how long a request of an
embedding service would wait. The processor time that the loop's thread used in between is measured
as well, since other processes do not affect it. Prints JSON lines.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from pathlib import Path

from aflow import Coordinator, FlowSpec, Parameter, step
from aflow._core.settings import Isolation, RunOptions

BEAT = 0.001  # seconds between heartbeats of the host


class EmbeddedFan(FlowSpec):
    """Many trivial tasks and a join."""

    n = Parameter("n", default=10)

    @step
    def start(self) -> None:
        self.xs = range(self.n)
        self.next(self.work, foreach="xs")

    @step
    def work(self) -> None:
        self.y = self.input
        self.next(self.join)

    @step
    def join(self, inputs) -> None:
        self.total = sum(each.y for each in inputs)
        self.next(self.end)

    @step
    def end(self) -> None:
        pass


class Heart:
    """A heartbeat on the loop that records (seconds of delay, seconds of processor time)."""

    def __init__(self) -> None:
        self._task = asyncio.get_running_loop().create_task(self._beat())
        self.beats: list[tuple[float, float]] = []

    async def _beat(self) -> None:
        while True:
            due, used = time.perf_counter() + BEAT, time.thread_time()
            await asyncio.sleep(BEAT)
            self.beats.append((time.perf_counter() - due, time.thread_time() - used))

    def stop(self) -> None:
        """Stop the heartbeat."""
        self._task.cancel()


async def measure(tasks: int, isolation: Isolation, workers: int = 16) -> None:
    """Measure one run."""
    idle = Heart()
    await asyncio.sleep(2)
    idle.stop()
    options = RunOptions(
        parameters={"n": tasks}, max_workers=workers, max_num_splits=tasks, isolation=isolation
    )
    with tempfile.TemporaryDirectory() as folder:
        heart, began = Heart(), time.perf_counter()
        async with Coordinator(
            storage=Path(folder).as_uri(), metadata=f"sqlite:///{folder}/metadata.db"
        ) as coordinator:
            run = await coordinator.start(EmbeddedFan, options=options)
            noticed = 0
            async for _ in run.events():
                noticed += 1
            ended = await run.wait()
        seconds = time.perf_counter() - began
        heart.stop()
    assert ended.state.value == "succeeded", ended.reason
    tell("embedded.seconds", seconds, "s")
    tell("embedded.notices", noticed, "notices")
    for name, beats in (("idle", idle.beats), ("embedded", heart.beats)):
        late = sorted(beat[0] for beat in beats)
        tell(f"{name}.longest", late[-1] * 1e3, "ms")
        tell(f"{name}.p99.9", late[int(len(late) * 0.999)] * 1e3, "ms")
        tell(f"{name}.over10", sum(each > 0.01 for each in late), "beats")
        tell(f"{name}.processor", max(beat[1] for beat in beats) * 1e3, "ms")


def tell(name: str, value: float, unit: str) -> None:
    """Print one figure."""
    print(json.dumps({"name": name, "value": round(value, 3), "unit": unit}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tasks", type=int, default=10_000)
    parser.add_argument("--isolation", choices=["task", "worker"], default="worker")
    parser.add_argument("--workers", type=int, default=16)
    read = parser.parse_args()
    asyncio.run(measure(read.tasks, read.isolation, read.workers))


if __name__ == "__main__":
    main()
