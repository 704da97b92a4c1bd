"""The part of a step's environment that is in its cache key."""

from __future__ import annotations

from aflow import FlowSpec, UserStepDecorator, step
from aflow.flow.spec import define
from aflow.runs.cache.key import environment_of


class Scaled(UserStepDecorator):
    def init(self, by: int) -> None:
        self.by = by


class Flow(FlowSpec):
    @Scaled(by=1)
    @Scaled(by=2)
    @step
    def start(self) -> None:
        self.next(self.end)

    @Scaled(by=3)
    @Scaled(by=2)
    @step
    def end(self) -> None:
        pass


def test_each_of_several_decorators_of_a_kind_counts() -> None:
    first, second = (environment_of(each) for each in define(Flow).steps.values())
    assert 5 == len(first)
    assert 1 == len(first.items() - second.items())
