"""Cards of tasks that have run: made from what the client reads."""

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


def page_of(
    task: Task,
    type: str,
    options: Mapping[str, Any],
    timeout: float | None = None,
    *,
    save_errors: bool = False,
) -> str:
    """Return the page of a card of this kind, which may take `timeout` seconds. Where it fails:
    what the kind raises, or with `save_errors` a page that says why.

    Args:
        task: A task of the client, which has ended.
        type: The type of card, `default` or one that a package adds.
        options: The options of the card, as its decorator has them.
        timeout: How many seconds the card may take; None for no limit.
        save_errors: Whether a page about the error is written where the card fails.

    Raises:
        InvalidInput: For an unknown kind.
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
    """Keep the page as one more card of the task.

    Args:
        task: A task of the client, whose cards this one is added to.
        type: The type of card, which the name of its file has.
        id: The id of the card; None for none.
        html: The page.

    Returns:
        Its hash.
    """
    place, folder = task._source.blobs.store, store.prefix(*task.pathspec.split("/"))
    number = max((each.number for each in store.listed(place, folder)), default=-1) + 1
    return store.put(place, folder, number, type, id, html)


def _parameters(task: Task) -> dict[str, Any]:
    run = task.parent.parent
    return {each.id: each.data for each in run["_parameters"].task}
