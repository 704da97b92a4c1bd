"""@exit_hook: functions that are called when a run has ended (by `aflow/runs/exit_hooks.py`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from aflow._core.records import dataclass, field
from aflow.errors import InvalidDecorator
from aflow.flow.decorators.flow_base import FlowDecorator, decorate_flow

Hook = str | Callable[..., Any]


@dataclass(frozen=True, slots=True)
class ExitHook(FlowDecorator):
    """The functions to call when a run has ended well, or not.

    A hook is a function, its name in the flow's file, or `module.function`. `options` are for
    schedulers.
    """

    kind: ClassVar[str] = "exit_hook"
    repeatable: ClassVar[bool] = True
    on_success: tuple[Hook, ...] = ()
    on_error: tuple[Hook, ...] = ()
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


def exit_hook(flow: object = None, /, **options: Any) -> Any:
    """Call functions when a run of the flow has ended; see ExitHook.

    Args:
        flow: The class of the flow; None where the decorator is called with options.
        **options: The options, by name.

    Returns:
        The decorated class; with options alone, what decorates one.
    """
    return decorate_flow(ExitHook, flow, options)
