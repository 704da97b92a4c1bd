"""Names of AWS resources of a deployed flow, production tokens, and limits; pure functions."""

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

LONGEST_MACHINE = 80  # characters of the name of a state machine (limit of AWS)
LONGEST_RULE = 64  # characters of the name of a rule or schedule (limit of EventBridge)
LETTERS = 4  # random letters at the end of a token
_MACHINE = re.compile(r"[A-Za-z0-9_.\-]+\Z")
_TOKEN = re.compile(r"[A-Za-z0-9_.\-]{1,200}\Z")
_MARK = "aflow "


def machine_name(flow: str, project_flow: str | None, prefix: str | None, given: str | None) -> str:
    """Return the name of the state machine: the given name, else the flow's name in its project,
    else the flow's name; with the configured prefix.

    Args:
        flow: The name of the flow's class.
        project_flow: The name of the flow within its project; None without @project.
        prefix: The configured prefix of names; None for none.
        given: The value of `--name`; None if it was not given.

    Raises:
        InvalidInput: If the name is too long, has characters that AWS does not allow, or `--name`
            was given to a flow with @project.
    """
    if given is not None and project_flow is not None:
        raise InvalidInput("--name cannot be given to a flow with @project, which names it.")
    name = given or project_flow or flow
    name = f"{prefix}_{name}" if prefix else name
    if len(name) > LONGEST_MACHINE and project_flow is not None:
        name = _cut(name, 60)
    if len(name) > LONGEST_MACHINE or not _MACHINE.match(name):
        option = "--name" if project_flow is None else "--branch"
        raise InvalidInput(
            f"{name!r} cannot be the name of a state machine: 1 to {LONGEST_MACHINE} letters, "
            f"digits, or - _ . are allowed. Give {option}."
        )
    return name


def rule_name(machine: str, kind: str = "") -> str:
    """Return the name of a state machine's rule or schedule.

    Args:
        machine: The name of the state machine.
        kind: The kind of rule, which is appended to the machine's name; "" for the schedule.
    """
    name = f"{machine}-{kind}" if kind else machine
    return name if len(name) <= LONGEST_RULE else _cut(name, 47)


def _cut(name: str, length: int) -> str:
    digest = base64.b32encode(hashlib.sha256(name.encode()).digest()).decode().lower()[:16]
    return f"{name[:length]}-{digest}"


class Label(NamedTuple):
    """The metadata in the comment of a state machine: the flow, the owner and the token."""

    flow: str
    owner: str
    token: str

    def comment(self, spec_key: str) -> str:
        """Return the comment for the definition of the state machine.

        Args:
            spec_key: The key of the deployment spec that jobs read from the datastore.
        """
        return _MARK + json.dumps({**self._asdict(), "spec": spec_key})


def label_of(definition: str) -> Label | None:
    """Return the label in the definition of a state machine; None if aflow did not create it.

    Args:
        definition: The definition of the state machine, as JSON.
    """
    try:
        comment = json.loads(definition).get("Comment", "")
        if not comment.startswith(_MARK):
            return None
        fields = json.loads(comment.removeprefix(_MARK))
        return Label(fields["flow"], fields["owner"], fields["token"])
    except (ValueError, AttributeError, KeyError, TypeError):  # not created by aflow
        return None


def next_token(machine: str, before: str | None, letters: Sequence[str]) -> str:
    """Return a new production token: `<machine>-<number>-<letters>`.

    Args:
        machine: The name of the state machine.
        before: The previous token, whose number is incremented; None for none.
        letters: Random lowercase letters; drawn by the caller, so that this function stays pure.
    """
    found = re.search(r"-(\d+)-[a-z]+\Z", before or "")
    number = int(found[1]) + 1 if found else 0
    return f"{machine.replace('.', '-')}-{number}-{''.join(letters)}".lower()


def checked_token(token: str) -> str:
    """Return the token, after checking it.

    Args:
        token: The token, as given by the user.

    Raises:
        InvalidInput: If the token is empty or too long, or has other characters than letters,
            digits, `-`, `_` and `.`.
    """
    if not _TOKEN.match(token):
        raise InvalidInput(f"{token!r} cannot be a production token: use letters, digits, - _ .")
    return token


def authorized(
    machine: str, deployed: Label, user: str, known: Sequence[str | None], what: str
) -> None:
    """Check that the user may change the state machine, as its owner or with its token.

    Args:
        machine: The name of the state machine.
        deployed: The label of the deployed state machine.
        user: The user who requests the change.
        known: The production tokens that this user has given or stored; None is ignored.
        what: The requested change, for the error message.

    Raises:
        InvalidInput: If the user is not authorized; the message contains the owner.
    """
    if deployed.owner == user or deployed.token in known:
        return
    raise InvalidInput(
        f"{machine} was deployed by {deployed.owner}: to {what}, ask them for its production token "
        "(`step-functions create` shows it) and give it with --authorize TOKEN."
    )


# Checks of a flow against the limits of Step Functions and AWS Batch: pure functions of the graph.


EVENTS = 25_000  # in the history of an execution (limit of AWS)
DISTRIBUTED_ITEMS = 100_000  # of one foreach, with a distributed map
LONGEST_VARIABLE = 6000  # bytes of one variable of a job, which has 8 KB for all of them
_OTHER_EVENTS = 1000  # reserved for the steps outside of a foreach
_OF_JOB = 6  # events: entered, scheduled, started, submitted, succeeded, exited
_OF_READING = 5  # events of a state that reads a result
_OF_PARALLEL = 4  # events of a Parallel or Map state
_OF_ITEM = 2  # events of an item: started, succeeded
_BESIDE_JOB = {  # events of the other states of a step
    Kind.SPLIT: _OF_PARALLEL,
    Kind.FOREACH: _OF_READING + _OF_PARALLEL,
    Kind.SWITCH: _OF_READING + 2,
}
_PLACE = 24  # bytes of a place, and of the JSON syntax around the name of a step


def items(graph: Graph, step: str, *, distributed: bool) -> int:
    """Return the maximum number of items of a foreach. With an inline map, the items share the
    event history of one execution; a nested foreach is assumed to have one item.

    Args:
        graph: The steps of the flow and the transitions between them.
        step: The name of the step that opens the foreach.
        distributed: Whether foreachs are distributed maps.
    """
    if distributed:
        return DISTRIBUTED_ITEMS
    inside = [each for each in graph.nodes.values() if step in each.splits]
    events = sum(_OF_JOB + _BESIDE_JOB.get(each.kind, 0) for each in inside)
    return (EVENTS - _OTHER_EVENTS) // (_OF_ITEM + events)


def too_many_items(graph: Graph, step: str, count: int | None, *, distributed: bool) -> str | None:
    """Return an error message if a foreach has too many items for Step Functions; else None.

    Args:
        graph: The steps of the flow and the transitions between them.
        step: The name of the step; one that opens no foreach has no limit.
        count: The number of items; None if unknown.
        distributed: Whether foreachs are distributed maps.
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
    """Check that the ends of all branches fit into a variable of the join's job.

    Args:
        graph: The steps of the flow and the transitions between them.
        node: The step that opens the branches.

    Raises:
        InvalidInput: If there are too many branches.
    """
    longest = max(len(each.name) for each in graph.nodes.values() if node.join in each.next)
    most = LONGEST_VARIABLE // (longest + _PLACE)
    if len(node.next) > most:
        raise InvalidInput(
            f"Step {node.name} has {len(node.next)} branches, and the job that joins them can be "
            f"given {most}: use a foreach, or split in two levels."
        )
