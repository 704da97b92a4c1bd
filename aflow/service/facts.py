"""aflow's records in the words of Metaflow's service."""

from __future__ import annotations

from typing import Any

from aflow.errors import StorageError
from aflow.metadata.base import AttemptRecord, RunRecord
from aflow.scheduler.states import AttemptState
from aflow.storage.manifest import Manifest

_GOES_ON = frozenset({AttemptState.QUEUED, AttemptState.RUNNING})


def run_name(run: str) -> str:
    """The name of a run of aflow's in Metaflow's service, which numbers are not."""
    return f"aflow-{run}"


def task_name(task: int) -> str:
    """The name of a task of aflow's there."""
    return f"aflow-{task}"


def run_body(run: RunRecord) -> dict[str, Any]:
    """A run, as it is registered."""
    return {
        "run_number": run_name(run.run),
        "user_name": plain(run.user),
        "tags": [plain(tag) for tag in run.tags],
        "system_tags": [plain(tag) for tag in run.system_tags],
    }


def facts_of(attempt: AttemptRecord) -> list[dict[str, Any]]:
    """What is said of an attempt: that it is one, and once it has ended, how."""
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
    """One thing that is said of an attempt."""
    tags = [f"attempt_id:{attempt}"]
    return {
        "field_name": plain(name),
        "value": plain(value),
        "type": plain(type_),
        "tags": tags,
        "system_tags": [],
    }


def plain(text: str) -> str:
    """The text without what databases of a service cannot keep."""
    return text.replace("\0", "").encode("utf-8", "backslashreplace").decode()


def artifacts_of(attempt: AttemptRecord) -> list[dict[str, Any]]:
    """The artifacts that an attempt has set: what they are, and in which blob. Only aflow can
    read these."""
    if attempt.manifest is None or attempt.state in _GOES_ON:
        return []
    try:
        manifest = Manifest.decode(attempt.manifest)
    except StorageError:
        return []  # what is damaged is said to who reads it, and keeps no run from going on
    return [
        {
            "name": name,
            "location": f"aflow:{entry.blobs[0][0]}" if entry.blobs else "aflow:",
            "ds_type": "aflow",
            "sha": entry.blobs[0][0] if entry.blobs else "",
            "type": "metaflow.artifact",
            "content_type": entry.encoding,
            "attempt_id": attempt.attempt,
            "tags": [],
            "system_tags": [],
        }
        for name, entry in manifest.artifacts.items()
    ]
