"""A step of a run, with all its tasks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any, Self

from aflow._core import ids
from aflow.client.base import PartOfRun, checked_limit, checked_tags, local_time, statuses
from aflow.client.missing import checked, missing_step
from aflow.client.source import RunSource
from aflow.client.task import Task
from aflow.flow.graph import Kind
from aflow.scheduler.states import TaskState

if TYPE_CHECKING:
    from aflow.metadata.base import TaskView

# The maximum number of tasks that one query lists and that are in memory at a time.
_WINDOW = 10_000
# The number of adjacent tasks whose inherited artifacts are read in one query.
_PAGE = 200
# States of tasks that exist only in the coordinator and are never recorded.
_NEVER_RECORDED = frozenset({TaskState.WAITING})


class Step(PartOfRun):
    """A step of a run that has started: `Step("Flow/run/step")`. Its parts are its tasks.

    `for task in step` costs one query for up to 10,000 tasks, which includes their manifests.
    """

    _depth = 3
    _created_at: float

    def _find(self) -> None:
        flow, run, step = self.path_components
        self._source = RunSource.find(self._place, flow, run)
        self._created_at = _begun_at(self._source, step)

    @classmethod
    def _of(cls, source: RunSource, name: str, created_at: float) -> Self:
        record = source.record
        spec = ids.Pathspec(ids.FlowName(record.flow), ids.RunId(record.run), ids.StepName(name))
        self = cls._blank(spec, source.place)
        self._source, self._created_at = source, created_at
        return self

    @classmethod
    def _found_in(cls, source: RunSource, name: str) -> Self:
        return cls._of(source, name, _begun_at(source, name))

    @property
    def created_at(self) -> datetime:
        """When the first task of the step was created."""
        return local_time(self._created_at)

    @property
    def finished_at(self) -> datetime | None:
        """When the last task of the step ended; None if one of them has not ended."""
        last = 0.0
        for view in self._source.metadata.tasks(self._source.key, step=self.id, light=True):
            if view.attempt is None or view.attempt.finished_at is None:
                return None
            last = max(last, view.attempt.finished_at)
        return local_time(last)

    @property
    def environment_info(self) -> dict[str, Any]:
        """The environment of its tasks; see `Task.environment_info`."""
        return self.task.environment_info

    # ------------------------------------------------------------ tasks

    @property
    def task(self) -> Task:
        """The task of the step; the newest one if there are several."""
        [view] = self._newest(limit=1)
        return Task._of(self._source, view, settled=self._source.is_over)

    def tasks(
        self,
        *tags: str,
        status: str | Iterable[str] | None = None,
        limit: int | None = None,
    ) -> Iterator[Task]:
        """Return the tasks, newest first, read lazily; none if the run lacks one of the tags.

        Args:
            *tags: Tags that the run must have, all of them.
            status: One of ready, running, succeeded, failed and cancelled, or several of them; None
                for any.
            limit: The maximum number of tasks; None for all.

        Raises:
            InvalidInput: If a tag is not a text, the status is unknown or the limit is negative.
        """
        states = statuses(TaskState, status, "a task", without=_NEVER_RECORDED)
        limit = checked_limit(limit)
        if not self.tags.issuperset(checked_tags(tags)):
            return iter(())
        return self._in_windows(states, limit)

    def __iter__(self) -> Iterator[Task]:
        return self.tasks()

    def _in_windows(self, states: list[TaskState], limit: int | None) -> Iterator[Task]:
        settled = self._source.is_over
        before: int | None = None
        while limit is None or limit > 0:
            size = _WINDOW if limit is None else min(_WINDOW, limit)
            # One more than is shown, to find out whether another query is needed.
            window = list(self._newest(states=states, before=before, limit=size + 1))
            shown = window[:size]
            for start in range(0, len(shown), _PAGE):
                page = shown[start : start + _PAGE]
                for view in page:
                    yield Task._of(self._source, view, settled=settled, page=page)
            if len(window) <= size:
                return
            before = shown[-1].task.task
            limit = None if limit is None else limit - size

    def _newest(self, **how: Any) -> Iterator[TaskView]:
        return self._source.metadata.newest_tasks(self._source.key, step=self.id, **how)

    def _part(self, name: str) -> Any:
        checked("task", ids.task_id, name)
        return Task._found_in(self._source, self._spec, int(name))

    # ------------------------------------------------------------ gangs

    @property
    def control_task(self) -> Task | None:
        """The task that leads a gang (num_parallel); None if the step is not in one."""
        return next(self.control_tasks(), None)

    def control_tasks(self, *tags: str) -> Iterator[Task]:
        """Yield the tasks that lead a gang (those with index 0), newest first.

        Args:
            *tags: Tags that the run must have, all of them.
        """
        node = self._source.graph.nodes.get(self.id)
        around = node.splits[-1:] if node else ()
        if any(self._source.graph[split].kind is Kind.PARALLEL for split in around):
            yield from (task for task in self.tasks(*tags) if task.index == 0)

    # ------------------------------------------------------------ parents and children

    @property
    def parent_steps(self) -> Iterator[Step]:
        """The started steps that have this one as a next step."""
        node = self._source.graph.nodes.get(self.id)
        return self._begun(node.previous if node else ())

    @property
    def child_steps(self) -> Iterator[Step]:
        """The started steps that are next steps of this one."""
        node = self._source.graph.nodes.get(self.id)
        return self._begun(node.next if node else ())

    def _begun(self, names: tuple[str, ...]) -> Iterator[Step]:
        begun = {name: at for name, at, _ in self._source.metadata.steps(self._source.key)}
        for name in names:
            if name in begun:
                yield Step._of(self._source, name, begun[name])


def _begun_at(source: RunSource, step: str) -> float:
    """Return when the step's first task was created; raises MissingObject if there is none."""
    first = next(source.metadata.tasks(source.key, step=step, limit=1, light=True), None)
    if first is None:
        raise missing_step(source, step)
    return first.task.created_at
