"""@exit_hook: functions that `aflow/runs/exit_hooks.py` calls when a run has ended."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from aflow._core.records import dataclass, field
from aflow.errors import InvalidDecorator
from aflow.flow.decorators.base import FlowDecorator, written

Hook = str | Callable[..., Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExitHook(FlowDecorator):
    """Call functions when a run has succeeded (`on_success`) or failed (`on_error`).

    Each item is a function, the name of one in the flow's file, or `module.function`. `options` are
    accepted for compatibility with Metaflow.
    """

    decorator_name: ClassVar[str] = "exit_hook"
    repeatable: ClassVar[bool] = True
    on_success: Sequence[Hook] = ()
    on_error: Sequence[Hook] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for option in ("on_success", "on_error"):
            hooks = getattr(self, option)
            if not isinstance(hooks, list | tuple) or not all(_is_hook(each) for each in hooks):
                raise self._fault(option, "a list of functions, or names of functions")
            self._set(option, tuple(hooks))
        if not self.on_success and not self.on_error:
            raise InvalidDecorator("@exit_hook: give on_success or on_error.")
        if not isinstance(self.options, Mapping):
            raise self._fault("options", "a dict")


def _is_hook(hook: object) -> bool:
    return callable(hook) or (isinstance(hook, str) and bool(hook))


exit_hook = written(ExitHook)
"""Call functions when a run of the flow has ended; see ExitHook."""
