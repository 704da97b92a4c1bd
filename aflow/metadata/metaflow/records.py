"""aflow's records in the words of Metaflow's service."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from aflow._core.ids import PARAMETERS_STEP
from aflow.errors import StorageError
from aflow.metadata.base import AttemptRecord, RunRecord
from aflow.metadata.metaflow.layout import ENCODING
from aflow.scheduler.states import AttemptState
from aflow.storage.artifacts import Manifest, keys_of

if TYPE_CHECKING:
    from aflow.metadata.base import TaskView
    from aflow.metadata.metaflow.copies import Copies, Copy

TASK_MARK = "aflow_task"
"""The fact by which a task is found there."""

_GOES_ON = frozenset({AttemptState.QUEUED, AttemptState.RUNNING})


def run_name(run: str) -> str:
    """Return the name of a run of aflow's in Metaflow's service, which numbers are not.

    Args:
        run: The run's id, the second part of a pathspec.
    """
    return f"aflow-{run}"


def task_name(task: int) -> str:
    """Return the name of a task of aflow's there.

    Args:
        task: The number of the task within its run.
    """
    return f"aflow-{task}"


def mark_of(run: str) -> str:
    """Return the system tag by which a run is found in a service that gives it a name of its own.

    Args:
        run: The run's id, the second part of a pathspec.
    """
    return f"aflow_run:{run}"


def run_body(run: RunRecord) -> dict[str, Any]:
    """Return a run, as it is registered.

    Args:
        run: The record of the run.
    """
    return {
        "run_number": run_name(run.run),
        "user_name": plain(run.user),
        "tags": [plain(tag) for tag in run.tags],
        "system_tags": [*(plain(tag) for tag in run.system_tags), mark_of(run.run)],
    }


def surroundings(run: RunRecord, view: TaskView) -> Iterator[tuple[str, str]]:
    """Yield the metadata of a task that does not depend on its attempts, under Metaflow's names.

    Args:
        run: The record of the run.
        view: The task with the attempt.
    """
    for name in ("runtime", "python_version", "user"):
        value = next((t for t in run.system_tags if t.startswith(f"{name}:")), "")
        if value:
            yield name, value.partition(":")[2]
    script = run.settings.get("script")
    if script:
        yield "script-name", PurePath(str(script)).name
    origin_run, _, origin = view.task.origin.partition("/")
    if origin or run.origin_run:
        yield "origin-run-id", origin_run or str(run.origin_run)
    if origin:
        yield "origin-task-id", origin.rpartition("/")[2]
    nodes = run.graph.get("nodes")
    if nodes and view.task.step == PARAMETERS_STEP:
        yield "start_step", str(run.graph["start"])
        yield "end_step", str(run.graph["end"])
    manifest = view.attempt.manifest if view.attempt is not None else None
    if nodes and manifest is not None:
        yield from _foreachs(run, manifest)


def _foreachs(run: RunRecord, data: bytes) -> Iterator[tuple[str, str]]:
    try:
        stack = Manifest.decode(data).stack
    except StorageError:
        return  # what is damaged is reported to its reader
    if not stack:
        return
    following = {node["name"]: node["next"] for node in run.graph["nodes"]}
    yield "foreach-stack", json.dumps([frame._asdict() for frame in stack])
    # The path names the step that each foreach has led into, not the one that opened it.
    yield (
        "foreach-execution-path",
        ",".join(f"{following[frame.step][0]}:{frame.index}" for frame in stack),
    )


def copies_metadata(
    attempt: AttemptRecord, copies: Copies, left: Iterable[Copy]
) -> list[dict[str, Any]]:
    """Return the artifacts that Metaflow's client can read, and where their values are.

    Args:
        attempt: The record of the attempt.
        copies: The copies of the run, which say where values are.
        left: The artifacts that the attempt has left.
    """
    location = f":root:{copies.root}"
    return [
        _artifact(attempt, each.name, location, copies.kind, each.sha, ENCODING) for each in left
    ]


def _artifact(
    attempt: AttemptRecord, name: str, location: str, ds_type: str, sha: str, content_type: str
) -> dict[str, Any]:
    return {
        "name": name,
        "location": location,
        "ds_type": ds_type,
        "sha": sha,
        "type": "metaflow.artifact",
        "content_type": content_type,
        "attempt_id": attempt.attempt,
        "tags": [],
        "system_tags": [],
    }


def facts_of(attempt: AttemptRecord) -> list[dict[str, Any]]:
    """Return what is said of an attempt: that it is one, and once it has ended, how.

    Args:
        attempt: The record of the attempt.
    """
    facts = [("attempt", str(attempt.attempt), "attempt")]
    if attempt.state not in _GOES_ON:
        succeeded = str(attempt.state is AttemptState.SUCCEEDED)
        facts += [
            ("attempt_ok", succeeded, "internal_attempt_status"),
            ("attempt-done", str(attempt.attempt), "attempt-done"),
            ("aflow_state", attempt.state.value, "aflow_state"),
        ]
    if attempt.reason:
        facts.append(("aflow_reason", attempt.reason, "aflow_reason"))
    return [fact(attempt.attempt, *each) for each in facts]


def fact(attempt: int, name: str, value: str, type_: str) -> dict[str, Any]:
    """Return one record of metadata about an attempt, as the service has it.

    Args:
        attempt: The number of the attempt, from 0.
        name: The name of the field.
        value: Its value.
        type_: Its type, as Metaflow names it.
    """
    tags = [f"attempt_id:{attempt}"]
    return {
        "field_name": plain(name),
        "value": plain(value),
        "type": plain(type_),
        "tags": tags,
        "system_tags": [],
    }


def plain(text: str) -> str:
    """Return a text without the characters that the databases of a service cannot keep.

    Args:
        text: Any text, which may hold surrogates and the character 0.
    """
    return text.replace("\0", "").encode("utf-8", "backslashreplace").decode()


def artifacts_of(attempt: AttemptRecord) -> list[dict[str, Any]]:
    """Return the artifacts that an attempt has set: what they are, and in which blob. Only aflow
    can read these.

    Args:
        attempt: The record of the attempt.
    """
    if attempt.manifest is None or attempt.state in _GOES_ON:
        return []
    try:
        manifest = Manifest.decode(attempt.manifest)
    except StorageError:
        return []  # what is damaged is reported to its reader, and keeps no run from going on
    found = []
    for name, entry in manifest.artifacts.items():
        blob, sha = (entry.blobs[0][0], keys_of(entry)[0]) if entry.blobs else ("", "")
        found.append(_artifact(attempt, name, f"aflow:{blob}", "aflow", sha, entry.encoding))
    return found
