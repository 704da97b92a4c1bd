"""Record runs that failed before a job could record them, for example because the image, the code,
the datastore or the metadata store was not available.

For such a run the state machine itself writes an object with the error of AWS to the bucket. The
next program that lists runs records it as a failed run, with the reason and the end of the job's
log.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from contextlib import closing
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any

from aflow._core import ids
from aflow._core.clock import SystemClock
from aflow.aws.settings import AwsSettings
from aflow.errors import (
    AflowError,
    AwsError,
    InvalidName,
    InvalidSetting,
    MetadataError,
    MissingExtra,
    ObjectNotFound,
    StorageError,
    VersionConflict,
)
from aflow.executors.jobs.batch import status
from aflow.flow.graph import Graph
from aflow.metadata.base import Batch, RunRecord, RunUpdate
from aflow.scheduler.states import RunState
from aflow.step_functions.records import open_records
from aflow.step_functions.spec import NOBODY
from aflow.storage.artifacts import Manifest
from aflow.storage.factory import open_store

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from aflow._core.settings import Settings
    from aflow.metadata.base import MetadataStore
    from aflow.storage.base import ObjectStore

FOLDER = "deploy/unrecorded"
_log = logging.getLogger(__name__)


def _record(
    metadata: MetadataStore,
    store: ObjectStore,
    names: Sequence[str],
    last_lines: Callable[[Mapping[str, Any]], Sequence[str]],
    now: float,
) -> None:
    """Record the runs of these objects and delete the objects. Missing and malformed objects are
    skipped."""
    for name in names:
        *_, flow, run = name.split("/")
        try:
            note = json.loads(bytes(store.get(name)))
            while isinstance(note, str):  # some emulators of AWS encode the body twice
                note = json.loads(note)
            ids.flow_name(flow), ids.run_id(run)
            tags = tuple(sorted(map(str, note.get("tags") or ())))
        except (ObjectNotFound, InvalidName, ValueError, AttributeError, TypeError):
            continue  # recorded by another process, or malformed
        reason = "The run failed before it was recorded. " + why(note.get("error"), last_lines)
        at = _time(note.get("started"), now)
        made = RunRecord(
            key=0,
            flow=flow,
            run=run,
            state=RunState.RUNNING,
            user=NOBODY,
            created_at=at,
            finished_at=None,
            version=0,
            tags=tags,
            system_tags=(f"user:{NOBODY}",),
            graph=Graph(flow, "start", "end").as_dict(),
            settings={"storage": store.url},
        )
        try:
            key = metadata.create_run(made, Manifest("_parameters").encode()).key
            metadata.commit(key, 0, Batch(run=RunUpdate(RunState.FAILED, now, reason)))
        except VersionConflict:  # the run is already recorded
            pass
        store.delete(name)


def why(error: Any, last_lines: Callable[[Mapping[str, Any]], Sequence[str]]) -> str:
    """Return the reason of a failed state as a sentence.

    Args:
        error: The error of the state, with `Error` and `Cause`.
        last_lines: Returns the last lines of a job's log.
    """
    details = error if isinstance(error, Mapping) else {}
    cause = str(details.get("Cause") or "")
    try:
        job = _as_described(json.loads(cause))
        end = (
            status.end_of({**job, "status": "FAILED"}, last_lines(job)) if "jobId" in job else None
        )
    except (AflowError, ValueError, TypeError, AttributeError, KeyError):
        end = None
    if end is not None:
        return end.reason
    return f"Step Functions says {details.get('Error') or 'nothing'}: {cause[:1000]}"


def _as_described(value: Any) -> Any:
    """Return the description of a job by Step Functions with keys as in `describe_jobs`."""
    if isinstance(value, Mapping):
        return {key[:1].lower() + key[1:]: _as_described(each) for key, each in value.items()}
    return [_as_described(each) for each in value] if isinstance(value, list) else value


def _time(value: Any, now: float) -> float:
    try:
        return datetime.fromisoformat(str(value).strip('"')).timestamp()
    except ValueError:
        return now


def look(settings: Settings, flow: str | None = None) -> None:
    """Record the runs for which state machines have left objects. Called before runs are listed;
    if a service does not respond, that is logged and nothing is recorded.

    Args:
        settings: The settings of this program; nothing is done unless a role for state machines is
            configured and the datastore is in S3.
        flow: The name of the flow; None for all flows.
    """
    if AwsSettings.load().machine_role is None or not settings.storage_url.startswith("s3://"):
        return
    from aflow.aws.client import AwsClient

    try:
        store = open_store(settings.storage_url)
        names = list(store.list(f"{FOLDER}/{flow}/" if flow else f"{FOLDER}/"))
        if not names:
            return
        with closing(open_records(settings)) as metadata, closing(AwsClient()) as calls:
            _record(metadata, store, names, partial(status.last_lines, calls), SystemClock.now())
    except (AwsError, MetadataError, StorageError, InvalidSetting, MissingExtra) as error:
        _log.warning("Runs that failed before they were recorded are not shown: %s", error)
