"""Names in AWS of what belongs to a deployed flow, and production tokens: pure functions."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from aflow.errors import InvalidInput
from aflow.flow.graph import Kind

if TYPE_CHECKING:
    from aflow.flow.graph import Graph, Node

LONGEST_MACHINE = 80  # characters that AWS allows in names of state machines
LONGEST_RULE = 64  # characters that EventBridge allows in names of rules and schedules
LETTERS = 4  # of a token, at its end
_MACHINE = re.compile(r"[A-Za-z0-9_.\-]+\Z")
_TOKEN = re.compile(r"[A-Za-z0-9_.\-]{1,200}\Z")
_MARK = "aflow "


def machine_name(flow: str, project_flow: str | None, prefix: str | None, given: str | None) -> str:
    """Return the name of the state machine: the one given, else that of the flow (in its project),
    after the prefix that is set.

    Args:
        flow: The name of the flow's class.
        project_flow: The name of the flow within its project; None outside of one.
        prefix: What the names begin with; None for nothing.
        given: `--name`; None where it was not given. A flow with @project refuses it.

    Raises:
        InvalidInput: The name is too long, has characters that AWS does not allow, or `--name` was
            given to a flow with @project.
    """
    if given is not None and project_flow is not None:
        raise InvalidInput("--name cannot be given to a flow with @project, which names it.")
    name = given or project_flow or flow
    name = f"{prefix}_{name}" if prefix else name
    if len(name) > LONGEST_MACHINE and project_flow is not None:
        name = _cut(name, 60)
    if len(name) > LONGEST_MACHINE or not _MACHINE.match(name):
        raise InvalidInput(
            f"{name!r} cannot be the name of a state machine: 1 to {LONGEST_MACHINE} letters, "
            "digits, or - _ . are allowed. Give --name."
        )
    return name


def rule_name(machine: str, kind: str = "") -> str:
    """Return the name of the machine's rule: that of its schedule, or of another kind.

    Args:
        machine: The name of the state machine.
        kind: What the rule is for; "" for the schedule. It is appended to the machine's name.
    """
    name = f"{machine}-{kind}" if kind else machine
    return name if len(name) <= LONGEST_RULE else _cut(name, 47)


def _cut(name: str, length: int) -> str:
    digest = base64.b32encode(hashlib.sha256(name.encode()).digest()).decode().lower()[:16]
    return f"{name[:length]}-{digest}"


class Label(NamedTuple):
    """What a state machine says of itself: the flow, who deployed it, and its token."""

    flow: str
    owner: str
    token: str

    def comment(self, spec_key: str) -> str:
        """Return the label as the comment of the machine's definition.

        Args:
            spec_key: The key of the deployment spec that the jobs read from the datastore.
        """
        return _MARK + json.dumps({**self._asdict(), "spec": spec_key})


def label_of(definition: str) -> Label | None:
    """Return what the definition of a state machine says of itself; None for one that is not ours.

    Args:
        definition: The definition of the state machine, or its name.
    """
    try:
        comment = json.loads(definition).get("Comment", "")
        if not comment.startswith(_MARK):
            return None
        fields = json.loads(comment.removeprefix(_MARK))
        return Label(fields["flow"], fields["owner"], fields["token"])
    except (ValueError, AttributeError, KeyError, TypeError):  # somebody else wrote it
        return None


def next_token(machine: str, before: str | None, letters: Sequence[str]) -> str:
    """Return a new production token, of these letters: `<machine>-<number>-<letters>`.

    Args:
        machine: The state machine: its name, ARN or record.
        before: The token of the deployment that is replaced; None for none.
        letters: Random small letters; the caller draws them, so that this function stays pure.
    """
    found = re.search(r"-(\d+)-[a-z]+\Z", before or "")
    number = int(found[1]) + 1 if found else 0
    return f"{machine.replace('.', '-')}-{number}-{''.join(letters)}".lower()


def checked_token(token: str) -> str:
    """Return the token, after a check that it is allowed.

    Args:
        token: The text that the user wants as the token.

    Raises:
        InvalidInput: It has other characters, or is too long.
    """
    if not _TOKEN.match(token):
        raise InvalidInput(f"{token!r} cannot be a production token: use letters, digits, - _ .")
    return token


def authorized(
    machine: str, deployed: Label, user: str, known: Sequence[str | None], what: str
) -> None:
    """Check that the user may change the machine: they have deployed it, or know its token.

    Args:
        machine: The state machine: its name, ARN or record.
        deployed: The label of the deployed state machine.
        user: The user who asks for the change.
        known: The production tokens that this user has given or has stored; None among them is no
            token.
        what: What is to be done, for the error message.

    Raises:
        InvalidInput: The user may not; the error says whom to ask for the token.
    """
    if deployed.owner == user or deployed.token in known:
        return
    raise InvalidInput(
        f"{machine} was deployed by {deployed.owner}: to {what}, ask them for its production token "
        "(`step-functions create` shows it) and give it with --authorize TOKEN."
    )


# What Step Functions and AWS Batch can hold, against what a flow may ask of them: pure functions
# of the graph.


EVENTS = 25_000  # of an execution
DISTRIBUTED_ITEMS = 100_000  # of one foreach, with a distributed map
LONGEST_VARIABLE = 6000  # bytes of one variable of a job, which has 8 KB for all of them
_OTHER_EVENTS = 1000  # of the steps around a foreach
_OF_JOB = 6  # events: entered, scheduled, started, submitted, succeeded, exited
_OF_READING = 5
_OF_PARALLEL = 4
_OF_ITEM = 2  # that it begins, and that it has ended
_PLACE = 24  # bytes of a place and what is around a step's name


def items(graph: Graph, step: str, *, distributed: bool) -> int:
    """Return how many items a foreach may have. Each takes events of the execution, unless it is
    one of its own; a foreach inside of another one is counted as if it had one item.

    Args:
        graph: The steps of the flow and the transitions between them.
        step: The name of the step that opens the foreach.
        distributed: Whether a foreach is a distributed map.
    """
    if distributed:
        return DISTRIBUTED_ITEMS
    inside = [each for each in graph.nodes.values() if step in each.splits]
    return (EVENTS - _OTHER_EVENTS) // (_OF_ITEM + sum(map(_events, inside)))


def _events(node: Node) -> int:
    if node.kind is Kind.SPLIT:
        return _OF_JOB + _OF_PARALLEL
    if node.kind is Kind.FOREACH:
        return _OF_JOB + _OF_READING + _OF_PARALLEL
    if node.kind is Kind.SWITCH:
        return _OF_JOB + _OF_READING + 2
    return _OF_JOB


def too_many_items(graph: Graph, step: str, count: int | None, *, distributed: bool) -> str | None:
    """Return a sentence if a foreach has more items than Step Functions allows; None otherwise.

    Args:
        graph: The steps of the flow and the transitions between them.
        step: The name of the step; one that opens no foreach has no limit.
        count: How many items there are; None where that is not known.
        distributed: Whether a foreach is a distributed map.
    """
    limit = items(graph, step, distributed=distributed)
    if graph[step].kind is not Kind.FOREACH or count is None or count <= limit:
        return None
    if distributed:
        return (
            f"Foreach in step {step} has {count} items, and on Step Functions it may have {limit}: "
            "let a task do several of them."
        )
    return (
        f"Foreach in step {step} has {count} items, and one execution of Step Functions has room "
        f"for the events of {limit}: deploy the flow with --use-distributed-map, or let a task do "
        "several of them."
    )


def check_branches(graph: Graph, node: Node) -> None:
    """Check that the job of a join can be given where all branches have ended.

    Args:
        graph: The steps of the flow and the transitions between them.
        node: The step that opens the branches.

    Raises:
        InvalidInput: The names of the branches' ends do not fit into a variable of the join's job.
    """
    longest = max(len(each.name) for each in graph.nodes.values() if node.join in each.next)
    most = LONGEST_VARIABLE // (longest + _PLACE)
    if len(node.next) > most:
        raise InvalidInput(
            f"Step {node.name} has {len(node.next)} branches, and the job that joins them can be "
            f"given {most}: use a foreach, or split in two levels."
        )
