"""What becomes of the tags of a run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from aflow import ids
from aflow.errors import InvalidName


def changed(
    known: Iterable[tuple[str, object]], add: Sequence[str], remove: Sequence[str]
) -> tuple[str, ...]:
    """The user tags of a run after some were removed and then others added. `known` are its tags,
    each with whether it is one of the system: the run has those already, so that adding one changes
    nothing. Raises InvalidName as the port says."""
    of_system = dict(known)
    for tag in remove:
        if of_system.get(tag):
            raise InvalidName(f"{tag!r} is a system tag, which nobody may remove.")
    add = [tag for tag in add if not of_system.get(tag)]
    kept = {tag for tag, is_system in of_system.items() if not is_system}
    tags = tuple(sorted((kept - {*remove}) | {*add}))
    if len(tags) > ids.MAX_TAGS:
        raise InvalidName(f"A run can have at most {ids.MAX_TAGS} tags; it would have {len(tags)}.")
    return tags
