"""`current` describes each task to itself, and never another task."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from aflow.flow import current as module
from aflow.flow.current import current, set_lookup


def values(**more: Any) -> dict[str, Any]:
    names = {"flow_name": "F", "run_id": "7", "step_name": "a", "task_id": "3", "retry_count": 0}
    return {**names, **more}


@contextmanager
def task(**more: Any) -> Iterator[None]:
    token = current._set(values(**more))
    try:
        yield
    finally:
        current._reset(token)


def test_a_task_sees_its_values() -> None:
    with task(tags=("x",)):
        assert current.is_running_flow
        assert ("F", "7", "a", "3", 0, ("x",)) == (
            current.flow_name,
            current.run_id,
            current.step_name,
            current.task_id,
            current.retry_count,
            current.tags,
        )
        assert "F/7/a/3" == current.pathspec
        assert "<current: F/7/a/3>" == repr(current)


def test_outside_of_a_task_what_is_known_is_none() -> None:
    assert not current.is_running_flow
    assert (None, None, "none") == (current.run_id, current.pathspec, current.get("run_id", "none"))
    assert "run_id" not in current
    assert "<current: no task>" == repr(current)


def test_outside_of_a_task_an_unknown_name_is_reported() -> None:
    with pytest.raises(AttributeError) as caught:
        current.runid  # noqa: B018
    assert "current has no 'runid': no task runs here. Did you mean 'run_id'?" == str(caught.value)


def test_an_unknown_name_is_reported_with_those_there_are() -> None:
    with task(card=1), pytest.raises(AttributeError) as caught:
        current.stepname  # noqa: B018
    assert "no 'stepname'. Did you mean 'step_name'? It has: card, flow_name," in str(caught.value)


def test_names_of_python_are_not_asked_for() -> None:
    with task():
        assert not hasattr(current, "__array__")


def test_get_gives_the_default_for_what_is_not_there() -> None:
    with task():
        assert ("a", 5, None) == (
            current.get("step_name"),
            current.get("card", 5),
            current.get("origin_run_id"),
        )
        assert "step_name" in current
        assert "card" not in current


def test_a_value_that_is_a_function_is_called_once_when_it_is_asked_for() -> None:
    calls: list[int] = []

    def make() -> str:
        calls.append(1)
        return "/tmp/x"

    with task(tempdir=make):
        assert [] == calls
        assert ("/tmp/x", "/tmp/x") == (current.tempdir, current.tempdir)
    assert [1] == calls


def test_run_and_task_are_looked_up_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(module, "_find", None)

    def find(pathspec: str) -> str:
        asked.append(pathspec)
        return pathspec.upper()

    set_lookup(find)

    with task():
        assert ("F/7", "F/7/A/3") == (current.run, current.task)
        assert "F/7" == current.run
    assert ["F/7", "F/7/a/3"] == asked


def test_without_the_client_run_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_find", None)

    with task(), pytest.raises(AttributeError, match=r"current\.run needs the client"):
        current.run  # noqa: B018


async def test_coroutines_side_by_side_each_see_their_own() -> None:
    both_began = asyncio.Barrier(2)
    seen = []

    async def one(number: str) -> None:
        with task(task_id=number):
            await both_began.wait()
            seen.append((number, current.task_id))

    async with asyncio.TaskGroup() as group:
        group.create_task(one("1"))
        group.create_task(one("2"))

    assert [("1", "1"), ("2", "2")] == sorted(seen)
    assert not current.is_running_flow


def in_a_thread(read: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(read).result()


def test_a_thread_sees_the_task_that_has_started_it() -> None:
    def seen() -> tuple[Any, ...]:
        return current.run_id, current.pathspec, current.is_running_flow, repr(current)

    with task():
        assert seen() == in_a_thread(seen) == ("7", "F/7/a/3", True, "<current: F/7/a/3>")
    assert in_a_thread(seen) == (None, None, False, "<current: no task>")


def test_a_thread_among_several_tasks_gets_an_error_that_it_cannot_know_which() -> None:
    with task(), task(task_id="4"):
        assert "4" == current.task_id
        with pytest.raises(AttributeError, match="several coroutine steps run in this process"):
            in_a_thread(lambda: current.task_id)
        assert "4" == asyncio.run(asyncio.to_thread(lambda: current.task_id))


def test_values_of_a_run_that_is_being_made_are_seen_outside_of_tasks_alone() -> None:
    with current._deploying({"project_name": "demo"}):
        assert ("demo", None, False) == (
            current.project_name,
            current.run_id,
            current.is_running_flow,
        )
        with task(project_name="other"):
            assert "other" == current.project_name
    assert current.get("project_name") is None
