"""The inputs of a task's cache key, in a form that can be compared and displayed."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, TypeVar

from aflow._core.ids import PARAMETERS_TASK
from aflow._core.records import NamedTuple
from aflow.errors import MetadataError
from aflow.metadata.base import MetadataRecord
from aflow.runs.cache.fingerprint import Fingerprint, fingerprints
from aflow.scheduler.messages import FromBranches, FromForeach, FromTask, Inputs, NoInputs
from aflow.storage.artifacts import digest
from aflow.storage.blobs import digest_of
from aflow.storage.identity import content_digest
from aflow.task.inputs import TaskArtifacts

if TYPE_CHECKING:
    from aflow.environments.lock import Lock
    from aflow.flow.definition import FlowDefinition, StepDefinition
    from aflow.metadata.base import MetadataStore
    from aflow.storage.artifacts import ArtifactReader, Entry, Manifest
    from aflow.task.inputs import Manifests

T = TypeVar("T")
FIELD = "code-fingerprint"
PACKAGE = "package "  # prefix of package names in an environment
_DIGITS = 16


class CodeFingerprints(NamedTuple):
    """By step: its fingerprint (name -> digest), and its environment (name of a package, option or
    "Python" -> digest or version)."""

    steps: dict[str, Fingerprint]
    environments: dict[str, dict[str, str]]

    def record(self, at: float) -> MetadataRecord:
        """Return the fingerprints as a metadata record of the run's task 0.

        Args:
            at: The time of the record, in seconds since the epoch.
        """
        # Steps share most of their code, so each pair of name and digest is stored once.
        names: dict[tuple[str, str], int] = {}
        steps = {
            step: [names.setdefault(item, len(names)) for item in fingerprint.items()]
            for step, fingerprint in self.steps.items()
        }
        value = {"names": [*names], "steps": steps, "environments": self.environments}
        text = json.dumps(value, separators=(",", ":"))
        return MetadataRecord(
            task=int(PARAMETERS_TASK), attempt=0, field=FIELD, value=text, type=FIELD, created_at=at
        )


def code_of(
    definition: FlowDefinition, locks: Mapping[str, Lock] | None = None
) -> CodeFingerprints:
    """Return the fingerprints of the current code of every step.

    Args:
        definition: The flow: its class, steps, parameters and decorators.
        locks: The locks of the steps that have a separate environment, by step; None if none has.
    """
    locks = locks or {}
    environments = {
        name: environment_of(step, locks.get(name)) for name, step in definition.steps.items()
    }
    return CodeFingerprints(fingerprints(definition, locks), environments)


def recorded_code(metadata: MetadataStore, run_key: int) -> CodeFingerprints | None:
    """Return the fingerprints of the code that a run was started with; None if not recorded.

    Args:
        metadata: The metadata store that has the run.
        run_key: The key of the run in the metadata store.

    Raises:
        MetadataError: If the record is damaged.
    """
    for record in metadata.metadata(run_key, int(PARAMETERS_TASK)):
        if record.field == FIELD:
            try:
                value = json.loads(record.value)
                names = value["names"]
                steps = {
                    step: dict(names[place] for place in places)
                    for step, places in value["steps"].items()
                }
                return CodeFingerprints(steps, value["environments"])
            except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
                raise MetadataError("The record of a run's code is damaged.") from error
    return None


def environment_of(step: StepDefinition, lock: Lock | None = None) -> dict[str, str]:
    """Return the step's environment: the version of Python, the packages of its lock, if any, and a
    digest of each decorator option that the result may depend on (the value may be a secret).

    Args:
        step: The step, with its decorators.
        lock: The lock of the step's environment; None for a step without one.
    """
    if lock is None:
        found = {"Python": "{}.{}".format(*sys.version_info[:2])}
    else:
        found = {"Python": lock.python}
        found |= {PACKAGE + each.name: f"{each.version} {each.sha256[:_DIGITS]}" for each in lock}
    for decorator in step.decorators:
        if lock is not None and decorator.decorator_name in ("pypi", "conda"):
            continue  # the packages of the lock count instead
        options = decorator.shapes_result()
        if options is not None:
            label = f"@{decorator.decorator_name}"
            while label in found:  # the same decorator is used several times
                label += "+"
            found[label] = "on"
            for name, value in options.items():
                found[f"{label} {name}"] = _short(value)
    return found


def _short(value: object) -> str:
    # A repr may differ between processes (sets, addresses), so it is only the fallback.
    content = content_digest(value)
    if content is None:
        content = digest_of([repr(value).encode("utf-8", "surrogatepass")])
    return content[:_DIGITS]


class Value(NamedTuple):
    """One value: its digest, and a short text that shows it; empty if there is none."""

    digest: str
    shown: str


class KeyInputs(NamedTuple):
    """Everything that the result of a task depends on.

    `code` is None if it was not recorded; `inputs` are the step and the artifacts of every input
    task, in order; `item` is the item of a task that opens an iteration of a foreach.
    """

    code: Fingerprint | None
    environment: Mapping[str, str]
    inputs: tuple[tuple[str, dict[str, Value]], ...]
    item: Value | None


def key_inputs_of(
    step: str,
    inputs: Inputs,
    item: Value | None,
    code: CodeFingerprints | None,
    manifests: Manifests,
    reader: ArtifactReader,
) -> KeyInputs:
    """Return the inputs of the cache key of a task of the step.

    Args:
        step: The name of the step.
        inputs: The tasks whose artifacts are the inputs.
        item: The item of the foreach; None outside of one.
        code: The fingerprints of the steps' code; None if they are unknown.
        manifests: The manifests of the run's tasks.
        reader: Reads the values of parameters and of small artifacts.
    """
    found = tuple(
        (manifest.step, _values(task, manifest, manifests, reader))
        for task, manifest in input_manifests(inputs, manifests)
    )
    if code is None:
        return KeyInputs(None, {}, found, item)
    return KeyInputs(code.steps.get(step, {}), code.environments.get(step, {}), found, item)


def input_manifests(inputs: Inputs, manifests: Manifests) -> Iterator[tuple[int, Manifest]]:
    """Return the number and the manifest of every input task, in order.

    Args:
        inputs: The tasks whose artifacts are the inputs.
        manifests: The manifests of the run's tasks.
    """
    if isinstance(inputs, FromForeach):
        start = 0
        while page := manifests.page(inputs, start):
            yield from ((task, manifest) for _, task, _, manifest in page)
            start = page[-1][0] + 1
        return
    for task in input_tasks(inputs):
        yield task, manifests.of(task)


def input_tasks(inputs: FromTask | FromBranches | NoInputs) -> tuple[int, ...]:
    """Return the numbers of the input tasks, in order; for the first task that of the parameters.

    Args:
        inputs: The tasks whose artifacts are the inputs.
    """
    match inputs:
        case FromTask(task):
            return (task,)
        case FromBranches(tasks):
            return tuple(tasks)
        case NoInputs():
            return (int(PARAMETERS_TASK),)


def _values(
    task: int, manifest: Manifest, manifests: Manifests, reader: ArtifactReader
) -> dict[str, Value]:
    entries = TaskArtifacts(task, manifest, manifests, reader).entries()
    return {name: Value(digest(entry), _shown(entry)) for name, (_, entry) in entries.items()}


def _shown(entry: Entry) -> str:
    preview = entry.preview
    if "repr" in preview:
        return str(preview["repr"])
    if "shape" in preview:
        return f"{entry.type} of shape {tuple(preview['shape'])}"
    return ""


# ------------------------------------------------------------------ comparison


def changes(before: KeyInputs, now: KeyInputs) -> list[str]:
    """Return the differences as texts: "lr changed 0.1 -> 0.2", "utils.f changed"; empty if there
    are none.

    Args:
        before: The inputs of the earlier task's cache key.
        now: The inputs of the present task's cache key.
    """
    return [
        *_of_items(before.item, now.item),
        *_of_inputs(before.inputs, now.inputs),
        *_of_code(before.code, now.code),
        *_of_environments(before.environment, now.environment),
    ]


def _of_items(before: Value | None, now: Value | None) -> Iterator[str]:
    if before is None or now is None:
        if before is not now:
            yield "it stands in a foreach now" if before is None else "it stood in a foreach"
    elif before.digest != now.digest:
        yield f"its item changed{_from_to(before, now)}"


def _differing(
    before: Mapping[str, T], now: Mapping[str, T]
) -> Iterator[tuple[str, T | None, T | None]]:
    """Yield the names whose values differ, with the earlier and the present value; None for a
    missing value."""
    for name in sorted(before.keys() | now.keys()):
        was, is_ = before.get(name), now.get(name)
        if was != is_:
            yield name, was, is_


def _of_code(before: Fingerprint | None, now: Fingerprint | None) -> Iterator[str]:
    if before is None or now is None:
        yield "its code is not known: an older aflow has recorded none"
        return
    for name, was, is_ in _differing(before, now):
        if was is None:
            yield f"{name} is new in its code"
        elif is_ is None:
            yield f"{name} is no longer in its code"
        else:
            yield f"{name} changed"


def _of_environments(before: Mapping[str, str], now: Mapping[str, str]) -> Iterator[str]:
    for name, was, is_ in _differing(before, now):
        if name == "Python":
            yield f"Python changed {was} -> {is_}"
        elif name.startswith(PACKAGE):
            yield _of_package(name.removeprefix(PACKAGE), was, is_)
        elif was is None or is_ is None:
            yield f"{name} was {'added' if was is None else 'taken away'}"
        elif " " in name:  # a value of a decorator may be a secret
            yield f"{name} changed"


def _of_package(name: str, was: str | None, is_: str | None) -> str:
    """Return how a package of the step's environment differs: in its version or its digest."""
    before, now = (None if each is None else each.split(" ")[0] for each in (was, is_))
    if before is None:
        return f"package {name} {now} is new in its environment"
    if now is None:
        return f"package {name} {before} is no longer in its environment"
    if before == now:
        return f"package {name} {now} changed: it is another file"
    return f"package {name} changed {before} -> {now}"


InputValues = tuple[tuple[str, dict[str, Value]], ...]


def _of_inputs(before: InputValues, now: InputValues) -> Iterator[str]:
    if len(before) != len(now):
        yield f"its input tasks are {len(now)}, and were {len(before)}"
        return
    if len(now) == 1:
        yield from _of_artifacts(before[0][1], now[0][1])
        return
    if len({step for step, _ in now}) == len(now):  # branches: every input is of another step
        parts = dict(before)
        for step, artifacts in now:
            for change in _of_artifacts(parts.get(step, {}), artifacts):
                yield f"{change} (from {step})"
        return
    yield from _of_many([(was, is_) for (_, was), (_, is_) in zip(before, now, strict=True)])


def _of_many(pairs: list[tuple[dict[str, Value], dict[str, Value]]]) -> Iterator[str]:
    """Yield the differences in the inputs of a foreach join, grouped by the artifact's name."""
    differing: dict[str, list[tuple[Value, Value]]] = {}
    for was, is_ in pairs:
        for name in was.keys() | is_.keys():
            pair = was.get(name, _NOTHING), is_.get(name, _NOTHING)
            if pair[0].digest != pair[1].digest:
                differing.setdefault(name, []).append(pair)
    for name, values in sorted(differing.items()):
        if len(values) == len(pairs) and len(set(values)) == 1:  # for example, a parameter
            yield f"{name} changed{_from_to(*values[0])}"
        else:
            yield f"{name} changed in {len(values)} of {len(pairs)} input tasks"


_NOTHING = Value("", "")


def _of_artifacts(before: dict[str, Value], now: dict[str, Value]) -> Iterator[str]:
    for name, was, is_ in _differing(before, now):
        if was is None:
            yield f"{name} is new"
        elif is_ is None:
            yield f"{name} no longer exists"
        elif was.digest != is_.digest:
            yield f"{name} changed{_from_to(was, is_)}"


def _from_to(was: Value, is_: Value) -> str:
    differ = was.shown and is_.shown and was.shown != is_.shown
    return f" {was.shown} -> {is_.shown}" if differ else ""
