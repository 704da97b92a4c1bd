"""The cost per task of admission to the slots of a machine: requested, granted, released.

    python benchmarks/slots.py [TASKS]

Prints JSON lines of name, value and unit: processor time, with eight kinds of demands. Most of them
wait at any time, so that each decision has several candidates.
"""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from typing import Any

from aflow.executors.local.admission import NVIDIA, Granted, MachineCapacity, SlotQueue
from aflow.scheduler.slots import Slots

IN_HAND = 64  # tasks that are running or waiting at the same time
KINDS: list[dict[str, float]] = [
    {"cpu": 1 + number % 3, "memory": 1000.0 * (1 + number % 4), "gpu": number % 2}
    for number in range(8)
]


def run(tasks: int) -> None:
    """Admit this many tasks, a few at a time."""
    amounts = {"cpu": 16.0, "memory": 24_000.0, "gpu": 4.0}
    devices = ("0", "1", "2", "3")
    queue = SlotQueue(
        Slots(amounts, devices, 16), MachineCapacity(amounts, devices, (NVIDIA,), frozenset())
    )
    running: deque[Any] = deque()

    def begin(spec: Any, granted: Granted) -> None:
        running.append(spec)

    ended = 0
    for number in range(tasks):
        queue.submit([number], [number], KINDS[number % len(KINDS)], begin)  # type: ignore[list-item]
        if number - ended >= IN_HAND:
            queue.release(running.popleft())
            ended += 1
    while running:
        queue.release(running.popleft())
        ended += 1
    assert ended == tasks, "all have run"


def main() -> None:
    """Measure and print the results."""
    tasks = int(sys.argv[1]) if len(sys.argv) > 1 else 100_000
    run(1000)
    began = time.process_time()
    run(tasks)
    took = (time.process_time() - began) / tasks
    print(json.dumps(["slots.microseconds_per_task", took * 1e6, "us"]))


if __name__ == "__main__":
    main()
