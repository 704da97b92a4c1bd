"""`current`: what a running step can ask about itself.

The values live in a context variable, so that coroutine steps which run side by side in one
process each see their own. A thread that a step starts begins with an empty context: it sees the
values of the one task that runs in its process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, Token
from typing import Any

from aflow.flow.names import did_you_mean

Values = dict[str, Any]

# What a task always knows. Outside of a task these are None, so that a helper which logs them
# also works in a notebook.
_KNOWN = frozenset({
    "flow_name", "graph", "namespace", "origin_run_id", "parameter_names", "pathspec",
    "retry_count", "run", "run_id", "step_name", "tags", "task", "task_id", "tempdir", "trigger",
    "username",
})  # fmt: skip

_values: ContextVar[Values | None] = ContextVar("aflow_current", default=None)
# What is known while a run is being made, and no task runs yet: see `Current._deploying`.
_deploy_values: ContextVar[Values | None] = ContextVar("aflow_deploying", default=None)
_running: dict[int, Values] = {}  # of all tasks that run in this process, for their threads
_find: Callable[[str], Any] | None = None


def set_lookup(find: Callable[[str], Any]) -> None:
    """Say how `current.run` and `current.task` become client objects: by `find(pathspec)`.

    Args:
        find: Returns the client object of a pathspec; installed by `import aflow`, since this layer
            may not import the client.
    """
    global _find
    _find = find


def look_up(pathspec: str, what: str = "trigger") -> Any:
    """Return the client's object of a run or a task, for `current.<what>`.

    Args:
        pathspec: The pathspec: `flow/run/step/task`, or the beginning of one.
        what: The attribute of `current` that was read, for the error message.

    Raises:
        AttributeError: Where no client was set up.
    """
    if _find is None:
        raise AttributeError(
            f"current.{what} needs the client, which was not set up: import aflow first."
        )
    return _find(pathspec)


class Current:
    """The task that runs here and now.

    flow_name, run_id, step_name, task_id, pathspec, retry_count, origin_run_id, namespace,
    username, tags, parameter_names, graph, tempdir and what the flow's decorators add are what the
    runner passes; `run`, `task` and `trigger` are made when they are first asked for.
    """

    __slots__ = ()

    @property
    def is_running_flow(self) -> bool:
        """Whether this code runs inside a task."""
        return _values.get() is not None or bool(_running)

    def get(self, name: str, default: Any = None) -> Any:
        """Return the value of this name; `default` where there is none, or no task runs.

        Args:
            name: The attribute of `current`, such as `run_id`.
            default: What is returned where there is no such value, or it is None.
        """
        try:
            value = getattr(self, name)
        except AttributeError:
            return default
        return default if value is None else value

    def __contains__(self, name: str) -> bool:
        return self.get(name) is not None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        values = _values.get() or _of_the_thread(name)
        if values is not None and name in values:
            return _settled(values, name)
        if values is None:
            return _outside(name)
        if name in ("run", "task", "pathspec"):
            return _derived(values, name)
        if name in _KNOWN:
            return None
        known = sorted(_KNOWN | values.keys())
        raise AttributeError(
            f"current has no {name!r}.{did_you_mean(name, known)} It has: {', '.join(known)}."
        )

    def _set(self, values: Values) -> Token[Values | None]:
        """A task begins: these are its values. One that is a function is called when it is first
        asked for, and its answer kept. Gives what `_reset` takes."""
        _running[id(values)] = values
        return _values.set(values)

    def _reset(self, token: Token[Values | None]) -> None:
        """The task is over."""
        _running.pop(id(_values.get()), None)
        _values.reset(token)

    @contextmanager
    def _deploying(self, values: Values) -> Iterator[None]:
        """Defaults of parameters that are functions are called inside of this: they see these
        values, though no task runs."""
        token = _deploy_values.set(values)
        try:
            yield
        finally:
            _deploy_values.reset(token)

    def __repr__(self) -> str:
        values = _values.get() or (next(iter(_running.values())) if len(_running) == 1 else None)
        return "<current: no task>" if values is None else f"<current: {_pathspec(values)}>"


def _of_the_thread(name: str) -> Values | None:
    """The values of the task whose step has started this thread; None where no task runs."""
    if not _running:
        return None
    if len(_running) > 1:
        raise AttributeError(
            f"current.{name} is not known in this thread: several coroutine steps run in this "
            "process. Start it with asyncio.to_thread, or in contextvars.copy_context()."
        )
    return next(iter(_running.values()))


def _settled(values: Values, name: str) -> Any:
    value = values[name]
    if callable(value):
        value = values[name] = value()
    return value


def _outside(name: str) -> Any:
    values = _deploy_values.get()
    if values is not None and name in values:
        return values[name]
    if name not in _KNOWN:
        raise AttributeError(
            f"current has no {name!r}: no task runs here.{did_you_mean(name, _KNOWN)}"
        )
    return None


def _derived(values: Values, name: str) -> Any:
    if name == "pathspec":
        values[name] = _pathspec(values)
    else:
        depth = 2 if name == "run" else 4
        values[name] = look_up("/".join(_pathspec(values).split("/")[:depth]), name)
    return values[name]


def _pathspec(values: Values) -> str:
    return "/".join(str(values[part]) for part in ("flow_name", "run_id", "step_name", "task_id"))


current = Current()
