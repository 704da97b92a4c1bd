"""`current`: information about the running task.

The values are in a context variable, so that each coroutine step sees its own values if several run
in one process. A thread that a step starts has an empty context: it gets the values of the only
task in its process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar, Token
from typing import Any

from aflow.flow.names import did_you_mean

Values = dict[str, Any]

# The attributes that every task has. Outside of a task they are None, so that a helper that logs
# them also works in a notebook.
_KNOWN = frozenset({
    "flow_name", "graph", "namespace", "origin_run_id", "parameter_names", "pathspec",
    "retry_count", "run", "run_id", "step_name", "tags", "task", "task_id", "tempdir", "trigger",
    "username",
})  # fmt: skip

_values: ContextVar[Values | None] = ContextVar("aflow_current", default=None)
# The values while a run is being created, before any task runs: see `Current._deploying`.
_deploy_values: ContextVar[Values | None] = ContextVar("aflow_deploying", default=None)
_running: dict[int, Values] = {}  # of all tasks that run in this process, for their threads
_find: Callable[[str], Any] | None = None


def set_lookup(find: Callable[[str], Any]) -> None:
    """Set the function that creates the client objects for `current.run` and `current.task`.

    `import aflow` calls this, because this layer must not import the client.

    Args:
        find: Returns the client object of a pathspec.
    """
    global _find
    _find = find


def look_up(pathspec: str, what: str = "trigger") -> Any:
    """Return the client object of a run or a task, for `current.<what>`.

    Args:
        pathspec: The pathspec: `flow/run/step/task`, or the beginning of one.
        what: The attribute of `current` that was read, for the error message.

    Raises:
        AttributeError: If `set_lookup` was not called.
    """
    if _find is None:
        raise AttributeError(
            f"current.{what} needs the client, which was not set up: import aflow first."
        )
    return _find(pathspec)


class Current:
    """The task that runs in the current context.

    The runner sets flow_name, run_id, step_name, task_id, pathspec, retry_count, origin_run_id,
    namespace, username, tags, parameter_names, graph, tempdir and the attributes that decorators
    add. `run`, `task` and `trigger` are created when they are first read.
    """

    __slots__ = ()

    @property
    def is_running_flow(self) -> bool:
        """Whether this code runs inside a task."""
        return _values.get() is not None or bool(_running)

    def get(self, name: str, default: Any = None) -> Any:
        """Return the value of an attribute, or a default.

        Args:
            name: The attribute of `current`, such as `run_id`.
            default: The result if there is no such attribute, or if its value is None.
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
        """Set the values of a task that starts; return the token for `_reset`.

        A value that is a function is called when it is first read, and its result is stored.
        """
        _running[id(values)] = values
        return _values.set(values)

    def _reset(self, token: Token[Values | None]) -> None:
        """Remove the values of a task that has ended."""
        _running.pop(id(_values.get()), None)
        _values.reset(token)

    @contextmanager
    def _deploying(self, values: Values) -> Iterator[None]:
        """Make these values visible while functions compute the defaults of parameters.

        No task runs then.
        """
        token = _deploy_values.set(values)
        try:
            yield
        finally:
            _deploy_values.reset(token)

    def __repr__(self) -> str:
        values = _values.get() or (next(iter(_running.values())) if len(_running) == 1 else None)
        return "<current: no task>" if values is None else f"<current: {_pathspec(values)}>"


def _of_the_thread(name: str) -> Values | None:
    """Return the values of the task that has started this thread; None if no task runs."""
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
