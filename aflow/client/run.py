"""A run: one execution of a flow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any, Self

from aflow._core import ids
from aflow.client.base import PartOfRun, checked_tags, local_time
from aflow.client.code import RunCode, code_of
from aflow.client.missing import MissingObject, checked
from aflow.client.source import RunSource
from aflow.client.step import Step
from aflow.errors import InvalidInput
from aflow.flow.trigger_events import Trigger
from aflow.scheduler.states import TERMINAL_RUN_STATES, RunState

if TYPE_CHECKING:
    from aflow.client.artifact import TaskData
    from aflow.client.task import Task

Tags = str | Iterable[str]


class Run(PartOfRun):
    """A run: `Run("Flow/run")`. Its parts are the steps that have started.

    While the run continues, `status`, `successful`, `finished`, `finished_at`, `data` and the steps
    are read at each access. Tags are those at the creation of the object, with its own changes.
    """

    _depth = 2

    def _find(self) -> None:
        flow, run = self.path_components
        self._source = RunSource.find(self._place, flow, run)

    @classmethod
    def _of(cls, source: RunSource) -> Self:
        record = source.record
        spec = ids.Pathspec(ids.FlowName(record.flow), ids.RunId(record.run))
        self = cls._blank(spec, source.place)
        self._source = source
        return self

    # ------------------------------------------------------------ state

    @property
    def status(self) -> str:
        """pending, running, succeeded, failed or cancelled."""
        return self._source.refresh().state.value

    @property
    def successful(self) -> bool:
        """Whether the run has succeeded."""
        return self._source.refresh().state is RunState.SUCCEEDED

    @property
    def finished(self) -> bool:
        """Whether the run has ended, successfully or not."""
        return self._source.refresh().state in TERMINAL_RUN_STATES

    @property
    def created_at(self) -> datetime:
        """When the run started."""
        return local_time(self._source.record.created_at)

    @property
    def finished_at(self) -> datetime | None:
        """When the run ended, successfully or not; None if it has not."""
        return local_time(self._source.refresh().finished_at)

    # ------------------------------------------------------------ results

    @property
    def end_task(self) -> Task | None:
        """The task of the last step; None if it has not started."""
        try:
            step = Step._found_in(self._source, self._source.graph.end)
        except MissingObject:
            return None
        return step.task

    @property
    def data(self) -> TaskData | None:
        """The artifacts of the last step; None if it has not started."""
        end = self.end_task
        return None if end is None else end.data

    @property
    def code(self) -> RunCode | None:
        """The code of the run when it started; None if it was not stored, because the flow has no
        file, or because the files next to it are too large."""
        return code_of(self._source)

    @property
    def trigger(self) -> Trigger | None:
        """The event that started the run, as `current.trigger` in its tasks; None if there is
        none."""
        facts = self._source.setting("trigger")
        if not facts:
            return None
        return Trigger(facts, lambda path: Run(path, _namespace_check=False, _place=self._place))

    # ------------------------------------------------------------ steps

    def steps(self, *tags: str) -> Iterator[Step]:
        """Yield the steps that have started, newest first; none if the run lacks one of the tags.

        Args:
            *tags: Tags that the run must have, all of them.
        """
        if not self.tags.issuperset(checked_tags(tags)):
            return
        for name, created_at, _ in self._source.metadata.steps(self._source.key):
            yield Step._of(self._source, name, created_at)

    def __iter__(self) -> Iterator[Step]:
        return self.steps()

    def _part(self, name: str) -> Any:
        checked("step", ids.step_name, name)
        return Step._found_in(self._source, name)

    # ------------------------------------------------------------ tags

    def add_tag(self, tag: Tags) -> None:
        """Add a tag to the run, or several, like `add_tags`.

        Args:
            tag: The tag, or several.
        """
        self.replace_tags((), tag)

    def add_tags(self, tags: Tags) -> None:
        """Add these tags to the run in one transaction; a string is one tag.

        Args:
            tags: One tag, or several.

        Raises:
            InvalidName: If a tag is not allowed, or the run would have too many tags.
        """
        self.replace_tags((), tags)

    def remove_tag(self, tag: Tags) -> None:
        """Remove a tag from the run, or several, like `remove_tags`.

        Args:
            tag: The tag, or several.
        """
        self.replace_tags(tag, ())

    def remove_tags(self, tags: Tags) -> None:
        """Remove those of these tags that the run has, in one transaction; a string is one tag.

        Args:
            tags: One tag, or several.

        Raises:
            InvalidName: If one of them is a system tag.
        """
        self.replace_tags(tags, ())

    def replace_tag(self, tag_to_remove: Tags, tag_to_add: Tags) -> None:
        """Replace a tag by another in one transaction.

        Args:
            tag_to_remove: The tag to remove, or several.
            tag_to_add: The tag to add, or several.
        """
        self.replace_tags(tag_to_remove, tag_to_add)

    def replace_tags(self, tags_to_remove: Tags, tags_to_add: Tags) -> None:
        """Remove tags, then add others, in one transaction. Also raises the errors of `add_tags`
        and `remove_tags`.

        Args:
            tags_to_remove: One tag, or several; empty for none.
            tags_to_add: One tag, or several; empty for none.

        Raises:
            InvalidInput: If both are empty.
        """
        add, remove = _listed(tags_to_add), _listed(tags_to_remove)
        if not add and not remove:
            raise InvalidInput("Say which tags to add or to remove: there are none in the lists.")
        self._source.change_tags(add, remove)


def _listed(tags: object) -> list[str]:
    if isinstance(tags, str):  # one tag, not an iterable of characters
        return [tags]
    if isinstance(tags, bytes) or not isinstance(tags, Iterable):
        raise InvalidInput(f"{tags!r} is neither a tag nor a list of tags.")
    return list(tags)
