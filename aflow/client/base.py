"""The base classes of all client objects, and helpers for filters and times."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from enum import StrEnum
from itertools import islice
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar, overload

from aflow._core.clock import shown_time
from aflow._core.ids import Pathspec
from aflow.client.missing import not_in_namespace
from aflow.client.where import get_namespace, place, place_at
from aflow.errors import InvalidInput, InvalidName, NotFound
from aflow.flow.current import current

if TYPE_CHECKING:
    from aflow.client.source import RunSource
    from aflow.client.where import ClientStores

_SHAPES = ("Flow", "Flow/run", "Flow/run/step", "Flow/run/step/task", "Flow/run/step/task/artifact")

_DEPTH_OF_TASKS = 4
_COMPLETED = 100
_COMMITTED_WITHIN = 5.0  # seconds within which the record of a running task is committed
_LOOK_AGAIN = 0.005  # seconds


class ClientObject:
    """A flow, run, step, task or artifact, identified by its pathspec.

    The constructor raises InvalidName if the pathspec is not one of this kind, NotFound if the
    object does not exist, and NamespaceMismatch if it is not in the namespace.
    """

    _depth: ClassVar[int]
    _kinds: ClassVar[dict[int, type[ClientObject]]] = {}
    _spec: Pathspec
    _place: ClientStores
    _attempt: int | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "_depth" in cls.__dict__:
            cls._kinds[cls._depth] = cls

    def __init__(
        self,
        pathspec: str,
        attempt: int | None = None,
        *,
        _namespace_check: bool = True,
        _place: ClientStores | None = None,
    ) -> None:
        self._spec = self._parsed(pathspec)
        self._attempt = self._checked_attempt(attempt)
        self._place = _place or place()
        try:
            self._find()
        except NotFound:
            if not self._holds_running_task():
                raise
            self._await_commit()
        if _namespace_check:
            self._check_namespace()

    @classmethod
    def _parsed(cls, pathspec: object) -> Pathspec:
        kind, shape = cls.__name__, _SHAPES[cls._depth - 1]
        if not isinstance(pathspec, str):
            raise InvalidName(f"{kind} takes a pathspec such as '{shape}', not {pathspec!r}.")
        spec = Pathspec.parse(pathspec)
        if sum(part is not None for part in spec) != cls._depth:
            raise InvalidName(f"{pathspec!r} is not a pathspec of a {kind}: write '{shape}'.")
        return spec

    @classmethod
    def _checked_attempt(cls, attempt: object) -> int | None:
        if attempt is None:
            return None
        if cls._depth < _DEPTH_OF_TASKS:
            raise InvalidInput(f"A {cls.__name__} has no attempts: leave out attempt={attempt!r}.")
        if type(attempt) is not int or not 0 <= attempt < 1 << 31:
            raise InvalidInput(f"attempt={attempt!r} counts no attempt: give 0 or more.")
        return attempt

    @classmethod
    def _blank(cls, spec: Pathspec, place: ClientStores) -> Self:
        """Return an object whose fields the caller sets: it has looked the object up already."""
        self = cls.__new__(cls)
        self._spec, self._place = spec, place
        return self

    def _find(self) -> None:
        """Look the object up; raises NotFound if it does not exist."""
        raise NotImplementedError

    def _holds_running_task(self) -> bool:
        """Return whether this is the task of this process, its step or its run."""
        if current.get("metadata_url") is None:  # no task, or one that is not recorded
            return False
        return str(current.pathspec).split("/")[: self._depth] == self.path_components

    def _await_commit(self) -> None:
        """Look the object up again until the running task has been recorded. The coordinator
        launches a task while it still commits the task's record, so the task may read it too
        early."""
        for _ in range(round(_COMMITTED_WITHIN / _LOOK_AGAIN)):
            time.sleep(_LOOK_AGAIN)
            with suppress(NotFound):
                self._find()
                return
        self._find()

    def _check_namespace(self) -> None:
        if not self.is_in_namespace():
            raise not_in_namespace(repr(self), get_namespace(), self.system_tags)

    # ------------------------------------------------------------ names

    @property
    def id(self) -> str:
        """The last part of the pathspec."""
        return str(self._spec[self._depth - 1])

    @property
    def pathspec(self) -> str:
        """The pathspec of the object: `Flow/run/step/task/artifact`, or a leading part of it."""
        return str(self._spec)

    @property
    def path_components(self) -> list[str]:
        """The parts of the pathspec."""
        return self.pathspec.split("/")

    @property
    def parent(self) -> Any:
        """The object that this one is a part of; None for a flow."""
        kind = self._kinds.get(self._depth - 1)
        if kind is None:
            return None
        above = "/".join(self.path_components[:-1])
        return kind(above, _namespace_check=False, _place=self._place)

    @property
    def origin_pathspec(self) -> str | None:
        """The pathspec of the object of the resumed run that this one reuses; None if there is
        none."""
        return None

    # ------------------------------------------------------------ tags

    @property
    def tags(self) -> frozenset[str]:
        """All tags of the run."""
        return self.user_tags | self.system_tags

    @property
    def user_tags(self) -> frozenset[str]:
        """The tags that users gave to the run."""
        return frozenset()

    @property
    def system_tags(self) -> frozenset[str]:
        """The tags that aflow gave to the run."""
        return frozenset()

    def is_in_namespace(self) -> bool:
        """Return whether the object is in the current namespace."""
        tag = get_namespace()
        return tag is None or tag in self.tags

    # ------------------------------------------------------------ times

    @property
    def created_at(self) -> datetime:
        """The start time, in this machine's time zone."""
        raise NotImplementedError

    @property
    def finished_at(self) -> datetime | None:
        """The end time, in this machine's time zone; None if it has not ended."""
        return None

    # ------------------------------------------------------------ parts

    def __iter__(self) -> Iterator[Any]:
        """Iterate over the parts, newest first."""
        raise NotImplementedError

    def _part(self, name: str) -> Any:
        """Return the part with this id; raises NotFound if it does not exist."""
        raise NotImplementedError

    def __getitem__(self, id: object) -> Any:
        return self._part(str(id))

    def __contains__(self, id: object) -> bool:
        try:
            self._part(str(id))
        except NotFound:
            return False
        return True

    def _ipython_key_completions_(self) -> list[str]:
        """Return the ids of the newest parts, for completion in notebooks."""
        return [part.id for part in islice(self, _COMPLETED)]

    # ------------------------------------------------------------ display and pickling

    def __repr__(self) -> str:
        attempt = "" if self._attempt is None else f", attempt={self._attempt}"
        return f"{type(self).__name__}({self.pathspec!r}{attempt})"

    def _repr_html_(self) -> str:
        """Return the HTML that a notebook displays."""
        return shown_in_notebook(self)

    def _identity(self) -> tuple[object, ...]:
        return (type(self), self._spec, self._attempt, self._place.description)

    def __eq__(self, other: object) -> bool:
        """Return whether both are the same object of the same store, whenever they were read."""
        if not isinstance(other, ClientObject):
            return NotImplemented
        return self._identity() == other._identity()

    def __hash__(self) -> int:
        return hash(self._identity())

    def __reduce__(self) -> Any:
        return _restored, (type(self), self.pathspec, self._attempt, self._place.description)


class PartOfRun(ClientObject):
    """A run, or a part of one."""

    _source: RunSource

    @property
    def user_tags(self) -> frozenset[str]:
        """The tags that users gave to the run."""
        return frozenset(self._source.record.tags)

    @property
    def system_tags(self) -> frozenset[str]:
        """The tags that aflow gave to the run."""
        return frozenset(self._source.record.system_tags)

    @property
    def origin_pathspec(self) -> str | None:
        """The pathspec of the object of the resumed run that this one reuses; None if there is
        none."""
        origin = self._source.record.origin_run
        if origin is None:
            return None
        return "/".join((self._spec.flow, origin, *self.path_components[2:]))


def _restored(
    kind: type[ClientObject], pathspec: str, attempt: int | None, description: str
) -> ClientObject:
    """Return an unpickled object. The namespace was checked when the original was created."""
    return kind(pathspec, attempt, _namespace_check=False, _place=place_at(description))


def shown_in_notebook(shown: object) -> str:
    """Return the HTML that a notebook displays for an object.

    Args:
        shown: A client object.
    """
    from aflow.client import notebook  # only notebooks need it

    return notebook.html_of(shown)


# Checked filters of listings of runs and tasks.


_State = TypeVar("_State", bound=StrEnum)


def statuses(
    states: type[_State],
    names: str | Iterable[str] | None,
    what: str,
    without: Collection[_State] = (),
) -> list[_State]:
    """Return the states with these names; [] for None.

    Args:
        states: The enumeration of the states, RunState or TaskState.
        names: The name of a state, or several names; None for any state.
        what: The noun for the error, such as "a run".
        without: States that are not allowed.

    Raises:
        InvalidInput: If a name is not that of an allowed state.
    """
    if names is None:
        return []
    known = [state for state in states if state not in without]
    names = [names] if isinstance(names, str) else list(names)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise InvalidInput(f"{unknown[0]!r} is not a status of {what}: use {', '.join(known)}.")
    return [states(name) for name in names]


def checked_tags(tags: Iterable[object]) -> list[str]:
    """Return the tags by which a listing is filtered.

    Args:
        tags: The tags, each an argument of its own.

    Raises:
        InvalidInput: If one of them is not a text, such as a list of tags.
    """
    found: list[str] = []
    for tag in tags:
        if not isinstance(tag, str):
            raise InvalidInput(f"{tag!r} is not a tag: give each tag as an argument of its own.")
        found.append(tag)
    return found


def checked_limit(limit: int | None) -> int | None:
    """Return the limit.

    Args:
        limit: The maximum number of results; None for all.

    Raises:
        InvalidInput: If it is not an integer, or negative.
    """
    if limit is not None and (type(limit) is not int or limit < 0):
        raise InvalidInput(f"limit={limit!r} counts nothing: give 0 or more.")
    return limit


def seconds(name: str, at: datetime | float | None) -> float | None:
    """Return a time as seconds since the epoch; a datetime without a zone is in local time.

    Args:
        name: The name of the argument, for the error.
        at: Seconds since the epoch, or a datetime; None for no time.

    Raises:
        InvalidInput: If it is not a time.
    """
    if isinstance(at, datetime):
        return at.timestamp()
    if at is not None and (isinstance(at, bool) or not isinstance(at, int | float)):
        raise InvalidInput(f"{name}={at!r} is not a time: give a datetime, or seconds since 1970.")
    return at


# Times to display, in this machine's time zone.


@overload
def local_time(at: float) -> datetime: ...
@overload
def local_time(at: None) -> None: ...
def local_time(at: float | None) -> datetime | None:
    """Return seconds since the epoch as a datetime in this machine's zone; None for None.

    Args:
        at: Seconds since the epoch; None for no time.
    """
    return None if at is None else datetime.fromtimestamp(shown_time(at), UTC).astimezone()
