"""aflow's records in the format of Metaflow's metadata service."""

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
"""The metadata field by which a task of aflow is found in Metaflow's service."""

_GOES_ON = frozenset({AttemptState.QUEUED, AttemptState.RUNNING})


def run_name(run: str) -> str:
    """Return the name of a run of aflow's in Metaflow's service: not a number, to avoid collisions.

    Args:
        run: The run's id in aflow.
    """
    return f"aflow-{run}"


def task_name(task: int) -> str:
    """Return the name of a task of aflow's in Metaflow's service.

    Args:
        task: The task's number in aflow.
    """
    return f"aflow-{task}"


def mark_of(run: str) -> str:
    """Return the system tag that identifies a run in a service that assigns names itself.

    Args:
        run: The run's id in aflow.
    """
    return f"aflow_run:{run}"


def run_body(run: RunRecord) -> dict[str, Any]:
    """Return the request body that registers a run.

    Args:
        run: The run, with its tags.
    """
    return {
        "run_number": run_name(run.run),
        "user_name": plain(run.user),
        "tags": [plain(tag) for tag in run.tags],
        "system_tags": [*(plain(tag) for tag in run.system_tags), mark_of(run.run)],
    }


def surroundings(run: RunRecord, view: TaskView) -> Iterator[tuple[str, str]]:
    """Yield name and value of Metaflow's metadata that describe the context of a task: Python,
    user, script, origin and foreachs.

    Args:
        run: The run, with its graph.
        view: The task; the foreachs are read from the manifest of its attempt.
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
        return  # clients that read the manifest report the damage
    if not stack:
        return
    following = {node["name"]: node["next"] for node in run.graph["nodes"]}
    yield "foreach-stack", json.dumps([frame._asdict() for frame in stack])
    # The path names the first step inside each foreach, not the step that opens it.
    yield (
        "foreach-execution-path",
        ",".join(f"{following[frame.step][0]}:{frame.index}" for frame in stack),
    )


def copies_metadata(
    attempt: AttemptRecord, copies: Copies, left: Iterable[Copy]
) -> list[dict[str, Any]]:
    """Return the artifacts that Metaflow's client can read, with the location of their values.

    Args:
        attempt: The attempt that has set the artifacts.
        copies: The copies of the run, which give root and kind of the datastore.
        left: The artifacts, as `Copies.artifacts` returns them.
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
    """Return the metadata of an attempt: its number and, once it has finished, its state and
    reason.

    Args:
        attempt: The attempt, finished or not.
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
    """Return one record of metadata about an attempt, in the format of the service.

    Args:
        attempt: The number of the attempt, from 0.
        name: The name of the field, such as `attempt_ok`.
        value: Its value, as text.
        type_: Metaflow's type of the field; often the same as the name.
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
    """Return a text without NUL and surrogates, which the databases of services cannot store.

    Args:
        text: Any text; surrogates become escapes, and NUL is removed.
    """
    return text.replace("\0", "").encode("utf-8", "backslashreplace").decode()


def artifacts_of(attempt: AttemptRecord) -> list[dict[str, Any]]:
    """Return the artifacts that an attempt has set, each with the name of its blob. Only aflow can
    read these.

    Args:
        attempt: The attempt; unless it has finished, it has no artifacts.
    """
    if attempt.manifest is None or attempt.state in _GOES_ON:
        return []
    try:
        manifest = Manifest.decode(attempt.manifest)
    except StorageError:
        return []  # clients that read the manifest report the damage, and the run continues
    found = []
    for name, entry in manifest.artifacts.items():
        blob, sha = (entry.blobs[0][0], keys_of(entry)[0]) if entry.blobs else ("", "")
        found.append(_artifact(attempt, name, f"aflow:{blob}", "aflow", sha, entry.encoding))
    return found
