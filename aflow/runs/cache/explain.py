"""Explain in text why a task ran or reused a result."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from aflow.errors import AflowError, MetadataUnavailable, StoreUnavailable
from aflow.runs.cache.fingerprint import untellable
from aflow.runs.cache.history import History, RecordedRun, TaskPosition
from aflow.runs.cache.key import changes

if TYPE_CHECKING:
    from aflow.metadata.base import MetadataStore, RunRecord, TaskRecord
    from aflow.runs.cache.key import KeyInputs
    from aflow.storage.blobs import BlobStore

CACHING_IS_OFF = "caching is off for this step (@cache or run --cache turns it on)"


class Explanation(NamedTuple):
    """The explanation for one task: which task it is, and why it ran or reused a result."""

    step: str
    task: int
    pathspec: str
    text: str


def explain(
    metadata: MetadataStore,
    blobs: BlobStore,
    run: RunRecord,
    *,
    step: str | None = None,
    task: int | None = None,
) -> Iterator[Explanation]:
    """Yield an explanation for each task of the run, in the order of the task numbers.

    A task is compared with the latest task in the same position that finished in an earlier run. If
    a record or an object of either is damaged or missing, the text reports that.

    Args:
        metadata: The metadata store, which has the earlier runs, too.
        blobs: The blobs of the datastore, addressed by content.
        run: The run whose tasks are explained; it may still be running.
        step: The name of the step; None for all.
        task: The number of the task; None for all.

    Raises:
        StoreUnavailable: If the datastore does not respond, or refuses the request.
        MetadataUnavailable: If the metadata store does not respond, or is damaged.
    """
    earlier = (each for each in metadata.runs(run.flow) if each.key < run.key)
    history = History(metadata, blobs, earlier)
    this = RecordedRun(metadata, blobs, run)
    for place, view in this.tasks():
        if step in (None, place.step) and task in (None, view.task.task):
            try:
                text = _of_task(this, place, view.task, history)
            except (StoreUnavailable, MetadataUnavailable):
                raise
            except AflowError as error:  # damage in one task must not hide the other explanations
                text = f"it cannot be known: {error}"
            except (ValueError, TypeError, LookupError, AttributeError):  # malformed records
                text = "it cannot be known: the records of what it has read are damaged"
            yield Explanation(place.step, view.task.task, this.pathspec(view.task), text)


def _of_task(run: RecordedRun, place: TaskPosition, task: TaskRecord, history: History) -> str:
    flow = run.record.flow
    if task.origin:
        origin = f"{flow}/{task.origin}"
        resumed = run.record.origin_run
        if resumed is not None and task.origin.startswith(f"{resumed}/"):
            return f"did not run: {flow}/{resumed} was resumed, in which it had finished"
        return f"did not run: nothing has changed since {_run_of(origin)}, whose result it has"
    found = history.find(place)
    return "ran: " + why(run.key_inputs(task), task.cache_key, found, flow)


def why(
    now: KeyInputs,
    cache_key: bytes | None,
    found: tuple[RecordedRun, TaskRecord] | None,
    flow: str,
) -> str:
    """Return why a task runs although an earlier task exists in its position, or that none exists.

    Args:
        now: The current inputs of the task's cache key.
        cache_key: The cache key with which the cache was queried; None if it was not queried.
        found: The latest finished task in the same position, with its run; None if there is none.
        flow: The name of the flow, for the sentence.
    """
    if found is None:
        return f"no earlier run of {flow} has finished this task"
    run, task = found
    differences = changes(run.key_inputs(task), now)
    since = f"since {_run_of(run.pathspec(task))}"
    not_cached = CACHING_IS_OFF
    unknown = untellable(now.code or {})
    if unknown:
        not_cached = (
            f"this step cannot be cached: neither the value nor the source of "
            f"{' and '.join(unknown)} can be hashed"
        )
    if differences:
        reason = f"{'; '.join(differences)} ({since})"
        return reason if cache_key is not None else f"{reason}; {not_cached}"
    if cache_key is None:
        what = "nothing else" if unknown else "nothing"
        return f"{what} has changed {since}, but {not_cached}"
    if task.cache_key is None:
        return f"nothing has changed {since}, but that task ran without caching"
    if task.cache_key != cache_key:
        return f"nothing has changed {since}, but another version of aflow has run that task"
    return f"nothing has changed {since}, but its result is incomplete in the store"


def _run_of(pathspec: str) -> str:
    """Return the run of a pathspec. Without the task, tasks with the same reason share one line."""
    return "/".join(pathspec.split("/")[:2])
