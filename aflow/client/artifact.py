"""Artifacts: DataArtifact is a single one, TaskData has all of a task as attributes."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any, Self

from aflow.client.base import PartOfRun
from aflow.client.missing import MissingArtifact, MissingObject
from aflow.storage.artifacts import digest

if TYPE_CHECKING:
    from aflow.client.task import Task
    from aflow.storage.artifacts import Entry


class DataArtifact(PartOfRun):
    """A named value that a task has stored: `DataArtifact("Flow/run/step/task/name")`."""

    _depth = 5
    _task: Task
    _entry: Entry

    def _find(self) -> None:
        task = "/".join(self.path_components[:-1])
        self._task = self._kinds[4](task, self._attempt, _namespace_check=False, _place=self._place)  # type: ignore[assignment]  # the class of depth 4 is Task
        self._source = self._task._source
        self._look_up()

    @classmethod
    def _of(cls, task: Task, name: str) -> Self:
        self = cls._blank(task._spec._replace(artifact=name), task._place)
        self._task, self._source, self._attempt = task, task._source, task._attempt
        self._look_up()
        return self

    def _look_up(self) -> None:
        name = self.id
        entry = self._task._entry(name)
        if entry is None:
            raise MissingObject(self._task._no_artifact(name))
        self._entry = entry

    @property
    def data(self) -> Any:
        """The value, loaded at each access. Raises ArtifactNotLoadable (a class or module is
        missing here), CorruptBlob and StoreUnavailable."""
        return self._source.load(self.id, self._entry)

    @property
    def sha(self) -> str:
        """The digest of the stored value, 64 hex digits. Equal values that were stored in the same
        form have the same digest."""
        return digest(self._entry)

    @property
    def size(self) -> int:
        """The uncompressed size of the value's pickle and its out-of-band buffers, in bytes."""
        return self._entry.size

    @property
    def type(self) -> str:
        """The qualified name of the value's class; does not load the value."""
        return self._entry.type

    @property
    def preview(self) -> dict[str, Any]:
        """The properties of the value that were recorded when it was stored: those of `repr`,
        `len`, `shape`, `dtype` and `columns` that apply. Does not load the value."""
        return dict(self._entry.preview)

    @property
    def created_at(self) -> datetime:
        """When the task was created."""
        return self._task.created_at

    @property
    def finished_at(self) -> datetime | None:
        """When the task ended, and with it stored the artifact; None if it has not."""
        return self._task.finished_at

    @property
    def origin_pathspec(self) -> str | None:
        """The pathspec of the artifact whose task's result this one reuses; None if there is
        none."""
        origin = self._task.origin_pathspec
        return None if origin is None else f"{origin}/{self.id}"

    def __iter__(self) -> Iterator[Any]:
        """Return an empty iterator: an artifact has no parts."""
        return iter(())

    def _part(self, name: str) -> Any:
        raise MissingObject(f"{self!r} is an artifact, which has no parts: its .data may have.")


class TaskData:
    """The artifacts of a task as attributes: `task.data.x`; `"x" in task.data`.

    A value is loaded at each access. Raises MissingArtifact, an AttributeError, if the artifact
    does not exist.
    """

    __slots__ = ("_aflow_task",)

    def __init__(self, task: Task) -> None:
        self._aflow_task = task

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        task = self._aflow_task
        entry = task._entry(name)
        if entry is None:
            raise MissingArtifact(task._no_artifact(name))
        return task._source.load(name, entry)

    def __contains__(self, name: object) -> bool:
        return name in self._aflow_task._names()

    def __dir__(self) -> list[str]:
        return sorted(self._aflow_task._names())

    def __repr__(self) -> str:
        return f"<TaskData: {', '.join(dir(self))}>"

    def __reduce__(self) -> Any:
        return TaskData, (self._aflow_task,)
