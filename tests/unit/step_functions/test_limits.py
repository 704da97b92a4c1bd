"""Flows that exceed the limits of state machines are rejected before they are sent to AWS."""

from __future__ import annotations

from dataclasses import replace

import pytest

from aflow.errors import InvalidInput
from aflow.flow.graph import connect
from aflow.flow.spec import define
from aflow.step_functions.machine import JobOf, checked_target, compiled, note
from aflow.step_functions.names import items, too_many_items
from aflow.step_functions.plan import as_text
from tests.machine.graphs import end, foreach, graph, linear, split, switch
from tests.unit.step_functions.flows import Nested
from tests.unit.step_functions.golden import BUS, TOPIC, where

JOB = JobOf("aflow_1", retries=0, limit=60)


def test_a_foreach_has_as_many_items_as_an_execution_has_room_for_their_events() -> None:
    nested = define(Nested).graph
    assert 24_000 // 8 == items(nested, "row", distributed=False)
    assert 24_000 // (2 + 15 + 6 + 6) == items(nested, "start", distributed=False)
    assert 100_000 == items(nested, "start", distributed=True)
    inside = graph(
        foreach("start", "a", join="j"), switch("a", "b", "c"), split("b", "d", "e", join="k"),
        linear("d", "k"), linear("e", "k"), linear("k", "j"), linear("c", "j"), end("j"),
    )  # fmt: skip
    whole = replace(inside, nodes=connect(inside.nodes, "start"))
    assert 24_000 // (2 + 13 + 10 + 4 * 6) == items(whole, "start", distributed=False)


@pytest.mark.parametrize(
    ("step", "count", "distributed", "expected"),
    [
        ("row", 3000, False, None),
        ("row", 3001, False, "Foreach in step row has 3001 items.*--use-distributed-map"),
        ("row", 100_000, True, None),
        ("row", 100_001, True, "it may have 100000: let a task do several"),
        ("cell", None, False, None),
    ],
)
def test_too_many_items_are_reported_with_what_to_do(step, count, distributed, expected) -> None:
    reported = too_many_items(define(Nested).graph, step, count, distributed=distributed)
    if expected is None:
        assert reported is None
    else:
        assert reported is not None
        with pytest.raises(InvalidInput, match=expected):
            raise InvalidInput(reported)


def test_a_join_of_more_branches_than_a_job_can_be_given_is_refused() -> None:
    names = [f"branch{number:03}" for number in range(200)]
    nodes = [split("start", *names, join="join"), *(linear(each, "join") for each in names)]
    wide = graph(*nodes, linear("join", "end"), end())
    with pytest.raises(InvalidInput, match=r"Step start has 200 branches, .* given 181: use a"):
        compiled(wide, dict.fromkeys(wide.nodes, JOB), where("Wide"))


def test_a_machine_that_is_too_large_is_refused_and_one_that_fits_without_spaces_is_not() -> None:
    roomy = {"States": {str(number): {"Type": "Pass"} for number in range(30_000)}}
    assert "\n" not in as_text(roomy)
    with pytest.raises(InvalidInput, match="Step Functions takes 1048576: divide the flow"):
        as_text({"States": {str(number): {"Type": "Pass"} for number in range(60_000)}})


@pytest.mark.parametrize(
    "arn",
    [
        TOPIC,
        BUS,
        "arn:aws-cn:sns:cn-north-1:123456789012:topic.fifo",
        "arn:aws:events:eu-west-1:123456789012:event-bus/aws.partner/x",
    ],
)
def test_notes_go_to_topics_and_event_buses(arn) -> None:
    assert arn == checked_target("--notify-on-error", arn)


@pytest.mark.parametrize(
    "arn", ["", "topic", "arn:aws:sqs:us-east-1:123456789012:queue", TOPIC + " "]
)
def test_notes_go_nowhere_else(arn) -> None:
    with pytest.raises(InvalidInput, match="--notify-on-success takes the ARN of a topic of SNS"):
        checked_target("--notify-on-success", arn)


def test_a_topic_that_keeps_the_order_is_given_what_it_needs() -> None:
    state = note(f"{TOPIC}.fifo", "aws", "Flow", succeeded=True)
    assert "Flow" == state["Parameters"]["MessageGroupId"]
    assert "$.run" == state["Parameters"]["MessageDeduplicationId.$"]
