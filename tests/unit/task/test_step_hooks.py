"""Decorators with code before and after a step: their order, and the effect of their failures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest

from aflow import FlowSpec, current, step
from aflow._core.records import dataclass
from aflow.flow.decorators.base import StepDecorator, written
from aflow.storage.artifacts import Manifest
from aflow.task.hooks import StepHook
from aflow.testing import run_step

said: list[str] = []


@pytest.fixture(autouse=True)
def _nothing_said() -> None:
    said.clear()


@dataclass(frozen=True, slots=True)
class Noted(StepDecorator):
    """Notes what happens, and fails where the test asks for it."""

    decorator_name: ClassVar[str] = "noted"
    hook_class: ClassVar[str] = f"{__name__}:NotedHook"
    repeatable: ClassVar[bool] = True
    text: str = ""
    fails: str = ""


class NotedHook(StepHook):
    def _note(self, what: str) -> None:
        assert isinstance(self.decorator, Noted)
        said.append(f"{what} {self.decorator.text}")
        if self.decorator.fails == what:
            raise RuntimeError(f"{what} fails")

    def before(self) -> None:
        self.scene.values["noted"] = "by before"
        self._note("before")

    def call(self, step: Callable[[], object]) -> object:
        self._note("call")
        return step()

    async def call_async(self, step: Callable[[], Any]) -> object:
        self._note("call")
        return await step()

    def after(self, error: BaseException | None) -> None:
        self.scene.flow.seen = type(error).__name__
        self._note("after")

    def stored(self, manifest: Manifest) -> None:
        assert "seen" in manifest.artifacts
        self._note("stored")

    def failed(self, error: BaseException) -> None:
        self._note("failed")


def noted(**options: Any) -> Any:
    """Put Noted on a step."""
    return written(Noted)(**options)


class Flow(FlowSpec):
    @noted(text="outer")
    @noted(text="inner")
    @step
    def start(self) -> None:
        said.append(f"step {current.noted}")
        self.next(self.other)

    @noted(text="async")
    @step
    async def other(self) -> None:
        said.append("step")
        self.next(self.end)

    @noted(text="outer")
    @noted(text="inner")
    @step
    def end(self) -> None:
        raise ValueError("broken")


def test_the_outermost_decorator_comes_first_and_goes_last() -> None:
    done = run_step(Flow.start)
    assert [
        "before outer",
        "before inner",
        "call outer",
        "call inner",
        "step by before",
        "after inner",
        "after outer",
        "stored inner",
        "stored outer",
    ] == said
    assert "NoneType" == done.artifacts["seen"]


def test_coroutine_steps_have_the_same() -> None:
    run_step(Flow.other)
    assert ["before async", "call async", "step", "after async", "stored async"] == said


def test_a_step_that_fails_is_over_too() -> None:
    with pytest.raises(ValueError, match="broken"):
        run_step(Flow.end)
    assert ["call inner", "after inner", "after outer"] == said[-3:]


@pytest.mark.parametrize("where", ["before", "call", "after", "stored"])
def test_what_a_decorator_raises_fails_the_step(where: str) -> None:
    class Failing(FlowSpec):
        @noted(text="outer")
        @noted(text="inner", fails=where)
        @step
        def start(self) -> None:
            self.next(self.end)

        @step
        def end(self) -> None:
            pass

    with pytest.raises(RuntimeError, match=f"{where} fails"):
        run_step(Failing.start)
    assert "before outer" in said
    assert "after outer" in said
