"""The cost of the scheduler: a wide foreach and its join in a RunMachine alone.

    python benchmarks/machine.py [TASKS]

Prints JSON lines of name, value and unit. Every task has two events (started, finished). Times are
processor time, since nothing waits here; they include creating the events, which is the smaller
part.
"""

from __future__ import annotations

import json
import sys
import time
import tracemalloc

from aflow.flow.graph import Graph, Kind, Node
from aflow.scheduler.machine import RunMachine
from aflow.scheduler.messages import (
    AttemptEnded,
    AttemptStarted,
    Event,
    LaunchAttempt,
    Outcome,
    RunStarted,
    Transition,
    decode_events,
    encode_events,
)
from aflow.scheduler.states import AttemptState, RunState

WORKERS = 16
BATCH = 100


def wide(flow: str = "Wide") -> Graph:
    """start, a foreach over body, join, end."""
    nodes = [
        Node("start", Kind.FOREACH, next=("body",), join="join", foreach="xs"),
        Node("body", Kind.LINEAR, next=("join",), previous=("start",), splits=("start",)),
        Node("join", Kind.LINEAR, is_join=True, next=("end",), previous=("body",)),
        Node("end", Kind.END, previous=("join",)),
    ]
    return Graph(flow, "start", "end", {node.name: node for node in nodes})


def outcomes(tasks: int) -> dict[str, Outcome]:
    """Return the outcome of each step."""
    done = AttemptState.SUCCEEDED
    return {
        "start": Outcome(done, Transition(("body",), "xs", tasks)),
        "body": Outcome(done, Transition(("join",))),
        "join": Outcome(done, Transition(("end",))),
        "end": Outcome(done, Transition()),
    }


def run(tasks: int) -> tuple[RunMachine, int]:
    """Drive a run to its end, and return the machine and the number of events."""
    machine = RunMachine(wide(), {}, max_workers=WORKERS, max_num_splits=tasks)
    ends = outcomes(tasks)
    todo = machine.handle(RunStarted(), 0.0)
    events = 1
    while todo:
        commands = []
        for launch in todo:
            if type(launch) is LaunchAttempt:
                task, attempt = launch.task, launch.attempt
                machine.handle(AttemptStarted(task, attempt), 0.0)
                ended = AttemptEnded(task, attempt, ends[launch.step])
                commands += machine.handle(ended, 0.0)
                events += 2
        todo = commands
    assert machine.state is RunState.SUCCEEDED, machine.stopping
    return machine, events


def grown(tasks: int) -> int:
    """Return the growth of the machine in bytes once all items but the last few have finished."""
    tracemalloc.start()
    machine = RunMachine(wide(), {}, max_workers=WORKERS, max_num_splits=tasks)
    ends = outcomes(tasks)
    live = [
        command
        for command in machine.handle(RunStarted(), 0.0)
        if isinstance(command, LaunchAttempt)
    ]
    before, _ = tracemalloc.get_traced_memory()
    for _ in range(tasks - WORKERS):
        launch = live.pop()
        ended = AttemptEnded(launch.task, launch.attempt, ends[launch.step])
        commands = machine.handle(ended, 0.0)
        live += [command for command in commands if isinstance(command, LaunchAttempt)]
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return after - before


def journal() -> tuple[float, float, int]:
    """Return the milliseconds to encode and to decode a batch of events, and its size in bytes."""
    ends = [Outcome(AttemptState.SUCCEEDED, Transition(("join",))) for _ in range(BATCH)]
    events: list[tuple[float, Event]] = [
        (1.7e9, AttemptEnded(100_000 + n, 0, outcome)) for n, outcome in enumerate(ends)
    ]
    rounds = 200
    data = b""
    began = time.process_time()
    for _ in range(rounds):
        data = encode_events(events)
    between = time.process_time()
    for _ in range(rounds):
        decode_events(data)
    ended = time.process_time()
    return (between - began) / rounds * 1e3, (ended - between) / rounds * 1e3, len(data)


def report(name: str, value: float, unit: str) -> None:
    """Print one figure."""
    print(json.dumps({"name": name, "value": round(value, 3), "unit": unit}), flush=True)


def main() -> None:
    tasks = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    began = time.process_time()
    _, events = run(tasks)
    seconds = time.process_time() - began
    report("machine.tasks", tasks, "tasks")
    report("machine.events_per_second", events / seconds, "1/s")
    report("machine.microseconds_per_event", seconds / events * 1e6, "us")
    report("machine.microseconds_per_task", seconds / tasks * 1e6, "us")
    report("machine.bytes_per_finished_task", grown(tasks) / tasks, "bytes")
    encode, decode, size = journal()
    report("journal.encode_100_events", encode, "ms")
    report("journal.decode_100_events", decode, "ms")
    report("journal.bytes_per_event", size / BATCH, "bytes")


if __name__ == "__main__":
    main()
