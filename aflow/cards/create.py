"""Creation of cards for finished tasks, with the data that the client reads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from aflow.cards.card import ErrorCard, checked, created, kind_of
from aflow.cards.hooks import in_time
from aflow.storage import cards as store
from aflow.task.runner import sentence

if TYPE_CHECKING:
    from aflow.client import Task


class FinishedTask:
    """A task of the client with additional attributes that built-in cards show."""

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


def page_of(
    task: Task,
    type: str,
    options: Mapping[str, Any],
    timeout: float | None = None,
    *,
    save_errors: bool = False,
) -> str:
    """Return the page of a card. If rendering fails, its error is raised or, with `save_errors`, a
    page that shows it is returned.

    Args:
        task: A finished task of the client.
        type: The card type: `default` or another one.
        options: The options of the card.
        timeout: The time limit for rendering, in seconds; None for no limit.
        save_errors: Whether to return a page with the error if rendering fails.

    Raises:
        InvalidInput: If the card type is unknown.
    """
    made = created(kind_of(type), options, (), None, task._source.graph, None)
    finished = FinishedTask(task)
    try:
        if timeout is None:
            return checked(made.render(finished))
        return checked(in_time(lambda: made.render(finished), timeout))
    except Exception as error:
        if not save_errors:
            raise
        return ErrorCard({"error": sentence(error), "kind": type}).render(finished)


def keep(task: Task, type: str, id: str | None, html: str) -> str:
    """Store a page as an additional card of a task.

    Args:
        task: A task of the client.
        type: The card type, which is part of the name of the object.
        id: The id of the card, or None.
        html: The page.

    Returns:
        The hash of the card.
    """
    place, folder = task._source.blobs.store, store.prefix(*task.pathspec.split("/"))
    number = max((each.number for each in store.listed(place, folder)), default=-1) + 1
    return store.put(place, folder, number, type, id, html)


def _parameters(task: Task) -> dict[str, Any]:
    run = task.parent.parent
    return {each.id: each.data for each in run["_parameters"].task}
