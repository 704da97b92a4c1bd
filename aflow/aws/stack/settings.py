"""What the outputs of a stack mean as settings. Pure.

An output is the value of the setting that its description names in brackets, as in
`[METAFLOW_BATCH_JOB_QUEUE] the job queue of steps`, both in our template and in Metaflow's own.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from aflow.errors import InvalidInput

_NAMED = re.compile(r"\[((?:METAFLOW|AFLOW)_[A-Z0-9_]+)\]")
_KEY = "METAFLOW_SERVICE_AUTH_KEY"
_KEY_PLACE = "AFLOW_SERVICE_AUTH_KEY_SECRET"
# What is to be used at all, where the stack says where it is.
_CHOSEN = {
    "METAFLOW_DATASTORE_SYSROOT_S3": ("METAFLOW_DEFAULT_DATASTORE", "s3"),
    "METAFLOW_SERVICE_URL": ("METAFLOW_DEFAULT_METADATA", "service"),
}


class StackOutput(NamedTuple):
    """An output of a stack."""

    name: str
    value: str
    description: str = ""


def is_of_metaflow(outputs: Iterable[StackOutput]) -> bool:
    """Return whether a stack is made of Metaflow's own template, whose metadata service is
    Metaflow's.

    Args:
        outputs: The outputs of the stack.
    """
    return any(each.name in ("MetaflowDataStoreS3Url", "MigrationFunctionName") for each in outputs)


def settings_of(
    stack: str, outputs: Iterable[StackOutput], fetched: Callable[[str], str]
) -> dict[str, str]:
    """Return the settings that the outputs stand for. For the key of the metadata service the
    output names a secret (an ARN), or a key of API Gateway (an id): `fetched` gives what is kept
    there.

    Args:
        stack: The name of the stack.
        outputs: The outputs of the stack.
        fetched: Returns a key's value, by the URL of the key.

    Raises:
        InvalidInput: For a stack whose outputs are not settings.
    """
    found = {
        named[1]: each.value
        for each in outputs
        if (named := _NAMED.search(each.description)) and each.value
    }
    if "METAFLOW_DATASTORE_SYSROOT_S3" not in found:
        raise InvalidInput(
            f"The stack {stack} says nowhere where artifacts are: none of its outputs is described "
            "as [METAFLOW_DATASTORE_SYSROOT_S3]. Is it made of the template of `aflow stack "
            "template`, or of Metaflow's?"
        )
    if _KEY in found:
        place = found[_KEY]
        found[_KEY] = fetched(place)
        if place.startswith("arn:"):  # jobs fetch it themselves: their definitions hold no key
            found[_KEY_PLACE] = place
    for key, (chosen, value) in _CHOSEN.items():
        if key in found:
            found[chosen] = value
    return dict(sorted(found.items()))
