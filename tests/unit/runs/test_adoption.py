"""Runs that cannot be continued, and unreadable descriptions of runs."""

from __future__ import annotations

import msgpack
import pytest

from aflow import FlowSpec, step
from aflow.errors import InvalidInput, InvalidMessage
from aflow.executors.protocol import VERSION, Job
from aflow.metadata.base import RunRecord
from aflow.runs.recovery import check_recoverable
from aflow.scheduler.states import RunState
from aflow.task.config_binding import configured


class Short(FlowSpec):
    @step
    def start(self) -> None:
        self.next(self.end)

    @step
    def end(self) -> None:
        pass


class Long(FlowSpec):
    @step
    def start(self) -> None:
        self.next(self.middle)

    @step
    def middle(self) -> None:
        self.next(self.end)

    @step
    def end(self) -> None:
        pass


RUN = RunRecord(
    1, "Short", "7", RunState.RUNNING, "me", 1.0, None, 3, (), (),
    configured(Short).graph.as_dict(), {"lookahead": 0},
)  # fmt: skip


def test_a_run_is_gone_on_with_by_a_flow_with_the_same_steps_alone() -> None:
    check_recoverable(RUN, configured(Short))
    with pytest.raises(InvalidInput, match="Short/7 was begun with other steps than Long has now"):
        check_recoverable(RUN, configured(Long))


def test_a_run_that_has_ended_is_not_gone_on_with() -> None:
    with pytest.raises(InvalidInput, match="has ended: it is failed"):
        check_recoverable(RUN._replace(state=RunState.FAILED), configured(Short))


def test_a_run_that_only_reuses_results_is_not_gone_on_with() -> None:
    settings = {**RUN.settings, "clone_only": True}
    with pytest.raises(InvalidInput, match="runs no tasks"):
        check_recoverable(RUN._replace(settings=settings), configured(Short))


def test_a_run_of_an_older_aflow_is_begun_anew() -> None:
    with pytest.raises(InvalidInput, match="begin it again"):
        check_recoverable(RUN._replace(settings={}), configured(Short))


def test_a_description_of_a_newer_aflow_is_refused_by_name() -> None:
    with pytest.raises(InvalidMessage, match="started by a newer aflow: upgrade the worker"):
        Job.decode(msgpack.packb((VERSION + 1, "whatever")))


def test_a_description_that_is_none_is_refused() -> None:
    with pytest.raises(InvalidMessage, match="cannot be read"):
        Job.decode(msgpack.packb((VERSION, "whatever")))
