"""Where a run has failed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aflow.scheduler.states import RunState, TaskState

if TYPE_CHECKING:
    from aflow.metadata.base import MetadataStore, RunRecord, TaskView

_LOOKED_AT = 100


def failed_task(metadata: MetadataStore, run: RunRecord) -> TaskView | None:
    """The task that the run has failed of; None where it has not, or where no task is to blame.

    The run's reason is that of this task. Of several with the same reason, the first to fail."""
    if run.state is not RunState.FAILED:
        return None
    failed = metadata.newest_tasks(run.key, states=[TaskState.FAILED], limit=_LOOKED_AT, light=True)
    return min(
        (view for view in failed if view.attempt and view.attempt.reason == run.reason),
        key=lambda view: (view.attempt and view.attempt.finished_at) or 0.0,
        default=None,
    )


def why(run: RunRecord, task: TaskView | None) -> str:
    """Why a run has not succeeded, in one line that begins with the task; "" where it did not
    say."""
    first = next(iter(run.reason.strip().splitlines()), "")
    return first if task is None else f"{task.task.step}/{task.task.task}: {first}"
