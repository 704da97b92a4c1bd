"""What the code and the declared environment of a flow are, as it is recorded with each run."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, NamedTuple

from aflow.caching.fingerprint import Fingerprint, fingerprints
from aflow.ids import PARAMETERS_TASK
from aflow.metadata.base import MetadataRecord
from aflow.storage.blobs import digest_of
from aflow.storage.content import content_digest

if TYPE_CHECKING:
    from aflow.flow.definition import FlowDefinition, StepDefinition
    from aflow.metadata.base import MetadataStore

FIELD = "code-fingerprint"
_DIGITS = 16


class Code(NamedTuple):
    """Per step: its fingerprint (name -> digest), and its environment (what is declared -> a
    digest, or a plain version)."""

    steps: dict[str, Fingerprint]
    environments: dict[str, dict[str, str]]

    def record(self, at: float) -> MetadataRecord:
        """The code as a fact about the run, which is to say about its task 0."""
        # Steps share most of their code: each name stands once, with its digests.
        names: dict[tuple[str, str], int] = {}
        steps = {
            step: [names.setdefault(item, len(names)) for item in fingerprint.items()]
            for step, fingerprint in self.steps.items()
        }
        value = {"names": [*names], "steps": steps, "environments": self.environments}
        text = json.dumps(value, separators=(",", ":"))
        return MetadataRecord(int(PARAMETERS_TASK), 0, FIELD, text, FIELD, at)


def code_of(definition: FlowDefinition) -> Code:
    """The code of every step as it is now."""
    environments = {name: environment_of(step) for name, step in definition.steps.items()}
    return Code(fingerprints(definition), environments)


def recorded_code(metadata: MetadataStore, run_key: int) -> Code | None:
    """The code that a run was started with; None where that was not recorded."""
    for record in metadata.metadata(run_key, int(PARAMETERS_TASK)):
        if record.field == FIELD:
            value = json.loads(record.value)
            names = value["names"]
            steps = {
                step: dict(names[place] for place in places)
                for step, places in value["steps"].items()
            }
            return Code(steps, value["environments"])
    return None


def environment_of(step: StepDefinition) -> dict[str, str]:
    """What the step declares of its environment: Python's version, and a digest of every option
    of its decorators that its result may depend on (digests, since a value may be a secret)."""
    found = {"Python": "{}.{}".format(*sys.version_info[:2])}
    for decorator in step.decorators:
        options = decorator.shapes_result()
        if options is not None:
            label = f"@{decorator.name}"
            while label in found:  # one of several of its kind
                label += "+"
            found[label] = "on"
            for name, value in options.items():
                found[f"{label} {name}"] = _short(value)
    return found


def _short(value: object) -> str:
    # A repr may differ from process to process (sets, addresses): it counts where nothing else can.
    content = content_digest(value)
    if content is None:
        content = digest_of([repr(value).encode("utf-8", "surrogatepass")])
    return content[:_DIGITS]
