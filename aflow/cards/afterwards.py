"""Cards of tasks that have run: made from what the client reads."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aflow.cards.card import kind_of

if TYPE_CHECKING:
    from aflow.client import Task


class FinishedTask:
    """A task of the client with what our cards show, beside all that it has."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self.parameters = _parameters(task)
        own = {each.id: each.data for each in task if not each.id.startswith("_")}
        self.own_artifacts = {
            name: value for name, value in own.items() if name not in self.parameters
        }
        self.started_at = task.created_at.timestamp()
        ended = task.finished_at
        self.finished_at = None if ended is None else ended.timestamp()
        tags = (tag for tag in task.tags if tag.startswith("user:"))
        self.user = next(tags, "user:").removeprefix("user:")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def __getitem__(self, name: str) -> Any:
        return self._task[name]


def page_of(task: Task, type: str) -> str:
    """The page of a card of this kind. Raises InvalidInput for an unknown kind, and what the kind
    raises."""
    kind = kind_of(type)
    return kind({}, (), task._source.graph).render(FinishedTask(task))


def _parameters(task: Task) -> dict[str, Any]:
    run = task.parent.parent
    return {each.id: each.data for each in run["_parameters"].task}
