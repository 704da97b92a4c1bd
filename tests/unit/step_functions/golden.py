"""Writes the state machines in golden/: `python -m tests.unit.step_functions.golden`."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from aflow.flow.spec import define
from aflow.step_functions.machine import JobOf, Where, compiled
from tests.unit.step_functions.flows import ALL

FOLDER = Path(__file__).parent / "golden"
TOPIC = "arn:aws:sns:us-east-1:123456789012:failures"
BUS = "arn:aws:events:us-east-1:123456789012:event-bus/default"
JOB = JobOf("aflow_1234", retries=1, limit=600)


def where(flow: str, **more: Any) -> Where:
    """Return the AWS settings to compile for."""
    return Where("aws", "the-queue", "bucket", f"a/deploy/results/{flow}", JOB, **more)


@lru_cache
def machines() -> dict[str, str]:
    """Return the name and the expected content of each file."""
    found = {}
    for flow in ALL:
        graph = define(flow).graph
        jobs = dict.fromkeys(graph.nodes, JOB)
        found[flow.__name__] = compiled(graph, jobs, where(flow.__name__))
        if flow.__name__ == "Nested":
            more = {"distributed": True, "max_workers": 7, "timeout": 3600}
            found["NestedDistributed"] = compiled(
                graph, jobs, where(flow.__name__, **more), "Hello"
            )
        if flow.__name__ == "Linear":
            reported = {"on_error": TOPIC, "on_success": BUS}
            found["LinearNoted"] = compiled(graph, jobs, where(flow.__name__, **reported))
    return {f"{name}.json": json.dumps(each, indent=1) + "\n" for name, each in found.items()}


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, text in machines().items():
        (FOLDER / name).write_text(text)
