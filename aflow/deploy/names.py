"""Names in AWS of what belongs to a deployed flow, and production tokens: pure functions."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Sequence
from typing import NamedTuple

from aflow.errors import InvalidInput

LONGEST_MACHINE = 80
LONGEST_RULE = 64
LETTERS = 4  # of a token, at its end
_MACHINE = re.compile(r"[A-Za-z0-9_.\-]+\Z")
_TOKEN = re.compile(r"[A-Za-z0-9_.\-]{1,200}\Z")
_MARK = "aflow "


def machine_name(flow: str, project_flow: str | None, prefix: str | None, given: str | None) -> str:
    """The name of the state machine: the one given, else that of the flow (in its project), after
    the prefix that is set. Raises InvalidInput for one that cannot be used."""
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
    """The name of the machine's rule: that of its schedule, or of another kind."""
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

    def comment(self, order: str) -> str:
        """The same as the comment of the definition; `order` is the key of what its jobs do."""
        return _MARK + json.dumps({**self._asdict(), "order": order})


def label_of(definition: str) -> Label | None:
    """What the definition of a state machine says of itself; None for one that is not ours."""
    try:
        comment = json.loads(definition).get("Comment", "")
        said = json.loads(comment.removeprefix(_MARK)) if comment.startswith(_MARK) else None
        return said and Label(said["flow"], said["owner"], said["token"])
    except (ValueError, AttributeError, KeyError, TypeError):  # somebody else wrote it
        return None


def next_token(machine: str, before: str | None, letters: Sequence[str]) -> str:
    """A new production token, of these letters: `<machine>-<number>-<letters>`."""
    found = re.search(r"-(\d+)-[a-z]+\Z", before or "")
    number = int(found[1]) + 1 if found else 0
    return f"{machine.replace('.', '-')}-{number}-{''.join(letters)}".lower()


def checked_token(token: str) -> str:
    """The token, if it can be one; raises InvalidInput."""
    if not _TOKEN.match(token):
        raise InvalidInput(f"{token!r} cannot be a production token: use letters, digits, - _ .")
    return token


def authorized(
    machine: str, deployed: Label, user: str, known: Sequence[str | None], what: str
) -> None:
    """Nothing, if the user may change the machine: it is theirs, or they know its token. Raises
    InvalidInput with what to do."""
    if deployed.owner == user or deployed.token in known:
        return
    raise InvalidInput(
        f"{machine} was deployed by {deployed.owner}: to {what}, ask them for its production token "
        "(`step-functions create` shows it) and give it with --authorize TOKEN."
    )
