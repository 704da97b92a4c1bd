"""@parallel: a step whose tasks are members of a gang, which all run at the same time."""

from __future__ import annotations

from typing import ClassVar

from aflow._core.records import dataclass
from aflow.flow.decorators.base import StepDecorator, written


@dataclass(frozen=True, slots=True, kw_only=True)
class Parallel(StepDecorator):
    """Mark a step that follows `num_parallel`; `current.parallel` describes the member."""

    decorator_name: ClassVar[str] = "parallel"
    hook_class: ClassVar[str] = "aflow.task.hooks:ParallelHook"


@dataclass(frozen=True, slots=True, kw_only=True)
class PytorchParallel(StepDecorator):
    """Like `@parallel`, with the environment variables that torch.distributed reads.

    They are MASTER_ADDR, MASTER_PORT, WORLD_SIZE, NUM_NODES and NODE_RANK. If `master_port` is
    None, the port is derived from the id of the run.
    """

    decorator_name: ClassVar[str] = "pytorch_parallel"
    hook_class: ClassVar[str] = "aflow.task.hooks:PytorchHook"
    master_port: int | None = None

    def __post_init__(self) -> None:
        if self.master_port is not None and not 0 < int(self._number("master_port")) < 65536:
            raise self._fault("master_port", "a port from 1 to 65535")

    def shapes_result(self) -> None:
        """Return None: the result does not depend on the port."""


parallel = written(Parallel)
"""Make the tasks of the step members of a gang; see Parallel."""


pytorch_parallel = written(PytorchParallel)
"""Make the tasks of the step members of a gang for torch.distributed; see PytorchParallel."""
