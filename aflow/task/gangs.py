"""How the members of a gang know each other: `current.parallel`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from aflow.errors import InvalidTransition
from aflow.task.environment import Variables
from aflow.task.hooks import Around

_VARIABLES = Variables("pytorch_parallel")
_PORTS = 51_000, 10_000  # the first, and how many: above those that systems hand out


class Gang(NamedTuple):
    """One member's place: the address of member 0, how many members there are, which one this is,
    and the task of member 0."""

    main_ip: str
    num_nodes: int
    node_index: int
    control_task_id: str


class AroundParallel(Around):
    """Tells the step about its gang."""

    def before(self) -> None:
        """Set `current.parallel`; raises InvalidTransition in a step that is in no gang."""
        spec = self.scene.spec
        if not spec.opens_index or spec.split_index is None or spec.splits is None:
            raise InvalidTransition(
                f"Step {spec.step!r} has @{self.decorator.name}, and was not started with "
                f"self.next(self.{spec.step}, num_parallel=...)."
            )
        # Members start together, so their tasks are numbered one after the other.
        control = str(spec.task - spec.split_index)
        address = spec.address or self.scene.context.address
        self.gang = Gang(address, spec.splits, spec.split_index, control)
        self.scene.values["parallel"] = self.gang


class AroundPytorch(AroundParallel):
    """The same, with variables for torch.distributed."""

    _found: Mapping[str, str] = {}

    def before(self) -> None:
        """Set `current.parallel` and the variables."""
        super().before()
        decorator: Any = self.decorator
        run = "".join(filter(str.isdigit, self.scene.context.run)) or "0"
        first, count = _PORTS
        port = decorator.master_port or first + int(run) % count
        found = {
            "MASTER_ADDR": self.gang.main_ip,
            "MASTER_PORT": str(int(port)),
            "NODE_RANK": str(self.gang.node_index),
            "NUM_NODES": str(self.gang.num_nodes),
            "WORLD_SIZE": str(self.gang.num_nodes),
        }
        _VARIABLES.take(found)
        self._found = found

    def after(self, error: BaseException | None) -> None:
        """Put back the variables that were there."""
        _VARIABLES.release(self._found)
        self._found = {}
