"""Settings from the outputs of a stack. Pure.

An output is the value of the setting whose name its description contains in brackets, such as
`[METAFLOW_BATCH_JOB_QUEUE] the job queue of steps`. This applies to our template and to Metaflow's.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from aflow.errors import InvalidInput

_NAMED = re.compile(r"\[((?:METAFLOW|AFLOW)_[A-Z0-9_]+)\]")
_KEY = "METAFLOW_SERVICE_AUTH_KEY"
_KEY_PLACE = "AFLOW_SERVICE_AUTH_KEY_SECRET"
# Settings that select a backend if the stack has its location.
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
    """Return whether a stack was created from Metaflow's template.

    Such a stack has Metaflow's own metadata service.

    Args:
        outputs: The outputs of the stack.
    """
    return any(each.name in ("MetaflowDataStoreS3Url", "MigrationFunctionName") for each in outputs)


def settings_of(
    stack: str, outputs: Iterable[StackOutput], fetched: Callable[[str], str]
) -> dict[str, str]:
    """Return the settings from the outputs of a stack.

    The output for the key of the metadata service is not the key, but the ARN of a secret or the id
    of a key of API Gateway.

    Args:
        stack: The name of the stack.
        outputs: The outputs of the stack.
        fetched: Returns the key, by the ARN or id in the output.

    Raises:
        InvalidInput: If the outputs are not settings.
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
        # Jobs fetch it themselves, so that their definitions do not contain it.
        if place.startswith("arn:"):
            found[_KEY_PLACE] = place
    for key, (chosen, value) in _CHOSEN.items():
        if key in found:
            found[chosen] = value
    return dict(sorted(found.items()))
