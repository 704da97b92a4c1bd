"""Environments for the packages of steps (`@pypi`, `@conda`): solve, lock and build them."""

from __future__ import annotations

from aflow._core.lazy import modules_of

__all__ = ["asks", "prepare", "record", "shipping", "solve", "spec", "transport"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from aflow.environments import prepare, record, shipping, solve, spec, transport
    from aflow.flow.definition import FlowDefinition
else:
    __getattr__ = modules_of(__name__, [each for each in __all__ if each != "asks"])


def asks(definition: FlowDefinition, kind: str | None = None) -> bool:
    """Return whether any step may have a separate environment. Every run calls this, so it does not
    import the other modules of the package.

    Args:
        definition: The flow: its class, steps, parameters and decorators.
        kind: The kind of environment, `pypi` or `conda`; None for both.
    """
    if kind is not None:
        return kind != "local"
    return any(
        definition.flow_decorators(f"{each}_base")
        or any(step.decorator(each) for step in definition.steps.values())
        for each in ("pypi", "conda")
    )
