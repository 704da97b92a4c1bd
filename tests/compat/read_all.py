"""Prints a run's data as JSON, read with Metaflow's client, or aflow's if Metaflow is missing."""

import json
import sys

try:
    from metaflow import Flow, Run, Task, namespace
    from metaflow.cards import get_cards
except ImportError:
    from aflow import Flow, Run, Task, get_cards, namespace

namespace(None)
run = Run(sys.argv[1])


def place(pathspec: str) -> str:
    task = Task(pathspec)
    return f"{task.parent.id}[{task.index}]"


def reported(task: Task) -> dict[str, object]:
    facts = task.metadata_dict
    return {
        "values": {each.id: repr(each.data) for each in task if each.id[0] != "_"},
        "successful": task.successful,
        "finished_at": task.finished_at is not None,
        "attempt": task.current_attempt,
        "stdout": task.stdout,
        "stderr": [line for line in task.stderr.splitlines() if line == "to stderr"],
        "exception": task.exception and [task.exception.type, task.exception.exception],
        "parents": sorted(map(place, task.parent_task_pathspecs)),
        "children": sorted(map(place, task.child_task_pathspecs)),
        "cards": [each.type for each in get_cards(task)] if task.parent.id == "left" else [],
        "page": get_cards(task)[0].get() if task.parent.id == "left" else "",
        "facts": [facts.get(name) for name in ("runtime", "python_version", "script-name")],
    }


print(
    json.dumps(
        {
            "runs": [each.id for each in Flow(run.pathspec.partition("/")[0])],
            "tags": sorted(run.tags),
            "parents": {step.id: sorted(each.id for each in step.parent_steps) for step in run},
            "successful": run.successful,
            "finished_at": run.finished_at is not None,
            "tasks": {f"{step.id}[{task.index}]": reported(task) for step in run for task in step},
        }
    )
)
