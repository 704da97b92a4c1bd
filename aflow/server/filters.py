"""The filter syntax of the list of runs: `flow:Train state:failed tag:prod user:ann since:7d`.

Pure functions: text in, a filter out; the current time is an argument.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from aflow._core import ids
from aflow._core.clock import timespan
from aflow._core.records import dataclass, field
from aflow.errors import InvalidInput
from aflow.scheduler.states import RunState

if TYPE_CHECKING:
    from aflow.metadata.base import RunRecord

WORDS = ("flow:", "state:", "tag:", "user:", "since:", "until:", "id:", "artifact:", "param.NAME:")
_LONGEST = 1000  # maximum length of the filter, in characters
_MOST = 20
_PARAMETER = re.compile(r"param\.([A-Za-z_][A-Za-z0-9_]{0,199})\Z")


@dataclass(frozen=True, slots=True)
class RunFilter:
    """The conditions of a list of runs.

    Each string of `text` must occur in the flow's name, the run's id, its user or one of its tags,
    ignoring case. `parameters` maps names to the text of their values. `artifacts` are names; a
    step of the run must have stored each of them."""

    flow: str | None = None
    run: str | None = None
    states: tuple[RunState, ...] = ()
    tags: tuple[str, ...] = ()
    users: tuple[str, ...] = ()
    since: float | None = None
    until: float | None = None
    text: tuple[str, ...] = ()
    parameters: dict[str, str] = field(default_factory=dict)
    artifacts: tuple[str, ...] = ()

    @property
    def is_indexed(self) -> bool:
        """Whether a query of the metadata store is sufficient, without a check of each run."""
        return not (self.text or self.parameters or self.artifacts or self.run)

    def takes(self, run: RunRecord) -> bool:
        """Return whether a run matches the conditions that the metadata store evaluates.

        Args:
            run: The current record of the run; it may have changed since the list was read.
        """
        return (
            (not self.states or run.state in self.states)
            and (not self.users or run.user in self.users)
            and set(self.tags) <= {*run.tags, *run.system_tags}
            and (self.since is None or run.created_at >= self.since)
            and (self.until is None or run.created_at < self.until)
            and not run.kind
        )


def parse(words: str, now: float) -> RunFilter:
    """Return the filter described by the words.

    Args:
        words: The user's input: plain words, `state:failed`, `since:7d` and the like.
        now: The current time, in seconds since the epoch; `since:7d` is relative to it.

    Raises:
        InvalidInput: If a word is invalid; the error names it and the allowed values.
    """
    if len(words) > _LONGEST:
        raise InvalidInput(f"The filter is too long: {_LONGEST} characters is the most.")
    if re.search(r"[\0\ud800-\udfff]", words):  # JSON can contain them, databases cannot
        raise InvalidInput("The filter has characters that are not allowed in texts.")
    parts = words.split()
    if len(parts) > _MOST:
        raise InvalidInput(f"The filter has too many words: {_MOST} is the most.")
    found: dict[str, list[str]] = {}
    parameters: dict[str, str] = {}
    for part in parts:
        name, colon, value = part.partition(":")
        parameter = _PARAMETER.match(name)
        if not colon:
            found.setdefault("text", []).append(part.lower())
        elif not value:
            raise InvalidInput(f"{part!r} has no value: write {name}:VALUE.")
        elif parameter:
            parameters[parameter[1]] = value
        elif f"{name}:" in WORDS:
            found.setdefault(name, []).append(value)
        else:
            raise InvalidInput(f"There is no filter {name!r}: use {', '.join(WORDS)}.")
    flow, run = _one(found, "flow"), _one(found, "id")
    return RunFilter(
        flow=None if flow is None else str(ids.flow_name(flow)),
        run=run,
        states=tuple(_state(each) for each in found.get("state", ())),
        tags=tuple(str(ids.tag(each)) for each in found.get("tag", ())),
        users=tuple(found.get("user", ())),
        since=_time(_one(found, "since"), now),
        until=_time(_one(found, "until"), now),
        text=tuple(found.get("text", ())),
        parameters=parameters,
        artifacts=tuple(str(ids.artifact_name(each)) for each in found.get("artifact", ())),
    )


def _one(found: dict[str, list[str]], name: str) -> str | None:
    values = found.get(name, [])
    if len(values) > 1:
        raise InvalidInput(f"{name}: is there twice: name one.")
    return values[0] if values else None


def _state(value: str) -> RunState:
    try:
        return RunState(value)
    except ValueError as error:
        known = ", ".join(each.value for each in RunState)
        raise InvalidInput(f"state:{value[:40]} is unknown: use one of {known}.") from error


def _time(value: str | None, now: float) -> float | None:
    if value is None:
        return None
    ago = timespan(value)
    if ago is not None:
        return now - ago
    try:
        at = datetime.fromisoformat(value)
    except ValueError as error:
        raise InvalidInput(
            f"{value[:40]!r} is not a time: write a span as 90m, 12h or 7d, or a date as "
            "2026-01-31."
        ) from error
    return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
