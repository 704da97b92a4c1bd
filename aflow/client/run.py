"""One execution of a flow."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any, Self

from aflow._core import ids
from aflow.client.base import PartOfRun, local_time
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
    """A run: `Run("Flow/run")`. Its parts are the steps that have begun.

    While it goes on, `status`, `successful`, `finished`, `finished_at`, `data` and the steps are
    those of the moment; tags are those of when the object was made, and what it changed itself.
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

    # ------------------------------------------------------------ how it goes

    @property
    def status(self) -> str:
        """pending, running, succeeded, failed or cancelled."""
        return self._source.refresh().state.value

    @property
    def successful(self) -> bool:
        """Whether the run has ended well."""
        return self._source.refresh().state is RunState.SUCCEEDED

    @property
    def finished(self) -> bool:
        """Whether the run has ended, well or not."""
        return self._source.refresh().state in TERMINAL_RUN_STATES

    @property
    def created_at(self) -> datetime:
        """When the run began."""
        return local_time(self._source.record.created_at)

    @property
    def finished_at(self) -> datetime | None:
        """When the run ended, well or not; None if it has not."""
        return local_time(self._source.refresh().finished_at)

    # ------------------------------------------------------------ what it left

    @property
    def end_task(self) -> Task | None:
        """The task of the last step; None if the run has not come there."""
        try:
            step = Step._found_in(self._source, self._source.graph.end)
        except MissingObject:
            return None
        return step.task

    @property
    def data(self) -> TaskData | None:
        """The artifacts of the last step; None if the run has not come there."""
        end = self.end_task
        return None if end is None else end.data

    @property
    def code(self) -> RunCode | None:
        """The code of the run, as it was when it began; None where it was not kept: the flow was
        in no file, or there was too much beside it."""
        return code_of(self._source)

    @property
    def trigger(self) -> Trigger | None:
        """What started the run, as `current.trigger` was in its tasks; None if nothing did."""
        facts = self._source.setting("trigger")
        if not facts:
            return None
        return Trigger(facts, lambda path: Run(path, _namespace_check=False, _place=self._place))

    # ------------------------------------------------------------ steps

    def steps(self, *tags: str) -> Iterator[Step]:
        """Yield the steps that have begun, newest first; none if the run lacks one of the tags.

        Args:
            *tags: Tags that the run has to have, all of them.
        """
        if not self.tags.issuperset(tags):
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
        """Give the run a tag, or several as `add_tags` does.

        Args:
            tag: The tag, or several.
        """
        self.replace_tags((), tag)

    def add_tags(self, tags: Tags) -> None:
        """Give the run these tags, in one step; one text is one tag.

        Args:
            tags: One tag, or several.

        Raises:
            InvalidName: A tag is not allowed, or there are too many.
        """
        self.replace_tags((), tags)

    def remove_tag(self, tag: Tags) -> None:
        """Take a tag away, or several as `remove_tags` does.

        Args:
            tag: The tag, or several.
        """
        self.replace_tags(tag, ())

    def remove_tags(self, tags: Tags) -> None:
        """Take these tags away, those that are there, in one step; one text is one tag.

        Args:
            tags: One tag, or several.

        Raises:
            InvalidName: One of them is a system tag.
        """
        self.replace_tags(tags, ())

    def replace_tag(self, tag_to_remove: Tags, tag_to_add: Tags) -> None:
        """Take one tag away and give another, in one step.

        Args:
            tag_to_remove: The tag to remove, or several.
            tag_to_add: The tag to add, or several.
        """
        self.replace_tags(tag_to_remove, tag_to_add)

    def replace_tags(self, tags_to_remove: Tags, tags_to_add: Tags) -> None:
        """Remove tags, then add others, in one transaction. Raises what `add_tags` and
        `remove_tags` raise.

        Args:
            tags_to_remove: One tag, or several; empty for none.
            tags_to_add: One tag, or several; empty for none.

        Raises:
            InvalidInput: Both are empty.
        """
        add, remove = _listed(tags_to_add), _listed(tags_to_remove)
        if not add and not remove:
            raise InvalidInput("Say which tags to add or to remove: there are none in the lists.")
        self._source.change_tags(add, remove)


def _listed(tags: object) -> list[str]:
    if isinstance(tags, str):  # not a tag for each of its letters
        return [tags]
    if isinstance(tags, bytes) or not isinstance(tags, Iterable):
        raise InvalidInput(f"{tags!r} is neither a tag nor a list of tags.")
    return list(tags)
