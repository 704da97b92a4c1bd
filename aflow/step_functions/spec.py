"""The inputs of the jobs of a deployed flow: a spec in the datastore, and environment variables.

The spec contains no secrets, and its name is the digest of its bytes. Pickled values in it (of
configs) are unpickled only in the process that runs the flow.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from aflow._core.ids import blob_key
from aflow._core.settings import looked_up, variable_of
from aflow.errors import CorruptBlob, InvalidInput
from aflow.executors.protocol import packed, unpacked_fields, unpacked_program, unreadable
from aflow.storage.blobs import digest_of

if TYPE_CHECKING:
    from aflow.environments.lock import Shipped
    from aflow.executors.local.executor import StepNeeds
    from aflow.storage.base import ObjectStore
    from aflow.task.program import LoadRequest

VERSION = 1
# The user of runs that AWS starts, as in Metaflow: they belong to the production namespace, not to
# the user who deployed the flow.
NOBODY = "SFN"
ENDED = "Step Functions Execution Status Change"  # the detail type of EventBridge events


class DeploymentSpec(NamedTuple):
    """The specification of a deployed flow for its jobs.

    `code` is the key of the code package, `script` the name of the flow's file in it. `graph` and
    `policies` are plain values from `as_dict`. `branch` and `production` are options of @project.
    `events` maps the names of events to {parameter: field of the event's detail}. `flows` are the
    flows whose end triggers this one, by the names of their state machines. `environments` are
    those of the steps that request packages.
    """

    flow: str
    machine: str
    request: LoadRequest
    needs: Mapping[str, StepNeeds]
    graph: dict[str, Any]
    policies: dict[str, dict[str, Any]]
    code: str
    script: str
    python: str
    user: str
    namespace: str | None
    tags: tuple[str, ...]
    branch: str | None
    production: bool
    token: str
    distributed: bool
    max_num_splits: int
    max_log_size: int
    events: dict[str, dict[str, str]]
    flows: dict[str, str]
    previews: bool = True
    environments: Mapping[str, Shipped] = {}

    def encode(self) -> bytes:
        """Return the spec as bytes, which are equal for equal specs."""
        return packed(VERSION, self)

    @classmethod
    def decode(cls, data: bytes) -> DeploymentSpec:
        """Return the spec that `encode` returned as bytes.

        Args:
            data: The encoded spec.

        Raises:
            InvalidMessage: If the bytes are malformed, or were written by a newer aflow.
        """
        newer = "The flow was deployed by a newer aflow: use an image that has the same."
        with unreadable("A deployed flow's description is damaged"):
            spec = cls(*unpacked_fields(data, VERSION, newer))
            return spec._replace(**unpacked_program(spec))


def spec_key(data: bytes) -> str:
    """Return the key of an encoded spec: its digest.

    Args:
        data: The encoded spec; equal specs have the same key, so that deployments are idempotent.
    """
    return digest_of([data], len(data))


def spec_name(key: str) -> str:
    """Return the name of the object in the store that contains a spec.

    Args:
        key: The key, from `spec_key`.
    """
    return f"deploy/specs/{blob_key(key)}"


def read_spec(store: ObjectStore, key: str) -> DeploymentSpec:
    """Return the deployment spec of this key.

    Args:
        store: The datastore of the deployment.
        key: The key, from the variables of the job.

    Raises:
        ObjectNotFound: If there is no spec with this key.
        CorruptBlob: If the digest of the object does not match.
        InvalidMessage: If the spec was written by a newer aflow.
    """
    data = bytes(store.get(spec_name(key)))
    if spec_key(data) != key:
        raise CorruptBlob(f"{spec_name(key)} in {store.url} is damaged.")
    return DeploymentSpec.decode(data)


class StateJobVariables(NamedTuple):
    """The environment variables of one job, which the state machine sets (machine.py).

    `step` is None in the job that records a failure; `error` is then the error of Step Functions.
    `limit` is the timeout of the execution in seconds, and `started` its start time in the format
    of Step Functions; both are None without a timeout.
    """

    deployment: str
    storage: str
    metadata: str
    run: str
    step: str | None
    place: str
    came_from: str
    branches: str | None
    payload: str | None
    error: str | None
    execution: str
    limit: int | None
    started: str | None

    @classmethod
    def load(cls) -> StateJobVariables:
        """Return the variables of this process.

        Raises:
            InvalidInput: If a variable is missing, so that this is not a job of a state machine.
        """
        needed = partial(variable_of, "a job of a state machine")
        started = looked_up("SFN_STARTED")
        return cls(
            needed("SFN_DEPLOYMENT"),
            needed("SFN_STORAGE"),
            needed("SFN_METADATA"),
            needed("SFN_RUN"),
            looked_up("SFN_STEP"),
            looked_up("SFN_PLACE") or "0",
            looked_up("SFN_FROM") or "",
            looked_up("SFN_BRANCHES"),
            looked_up("SFN_INPUT"),
            looked_up("SFN_ERROR"),
            needed("SFN_RUN").removeprefix("sfn-"),
            int(needed("SFN_TIMEOUT")) if started else None,
            started,
        )


# The result of a job for the state machine: a small object in the bucket, which the next state
# reads. Pure functions.


FAILURE_RESULT = "run-failed"  # used instead of a step in the name of the object


def result_name(flow: str, run: str, step: str, place: str) -> str:
    """Return the name of the object in the store that holds the result of a job.

    Args:
        flow: The name of the flow.
        run: The id of the run.
        step: The name of the step; FAILURE_RESULT for the failure of the run.
        place: The place of the task: the indices of the foreachs around it.
    """
    return f"deploy/results/{flow}/{run}/{step}/{place}"


def state_after(run: str, step: str, place: str, started: str | None) -> dict[str, Any]:
    """Return the data that the state machine passes on after a step.

    Args:
        run: The id of the run.
        step: The name of the step that has ended.
        place: The place of the next tasks (see tasks.py).
        started: The start of the execution in the format of Step Functions; None to omit it.
    """
    state: dict[str, Any] = {"run": run, "place": place, "from": {"step": step}}
    return state if started is None else {**state, "started": started}


def switch_result(state: Mapping[str, Any], next_step: str) -> dict[str, Any]:
    """Return the result of a switch: the data to pass on, with the next step.

    Args:
        state: The data from `state_after`.
        next_step: The name of the next step.
    """
    return {**state, "next": next_step}


def foreach_result(state: Mapping[str, Any], items: Sequence[int], *, distributed: bool) -> Any:
    """Return the result of a foreach: the data to pass on, with the indices of the items; only the
    indices for a distributed map, which reads this list itself.

    Args:
        state: The data from `state_after`.
        items: The indices of the items of the foreach, from 0.
        distributed: Whether the foreach is a distributed map.
    """
    return [*items] if distributed else {**state, "items": [*items]}


# The input of an execution, which was started by `trigger`, a schedule, an event, or the end of
# another run. Pure functions.


class TriggerPayload(NamedTuple):
    """The decoded input of an execution: the values of parameters by name, the id of the run to
    resume, and the pathspecs of the runs whose end triggered this one."""

    parameters: dict[str, Any]
    origin: str | None = None
    runs: tuple[str, ...] = ()


def payload_of(
    text: str | None, events: Mapping[str, Mapping[str, str]], flows: Mapping[str, str]
) -> TriggerPayload:
    """Return the decoded input of an execution.

    The input is `{"Parameters": "{...}"}` as in Metaflow, with the values as a JSON string, to
    which `resume` adds `"Origin"`; or an EventBridge event: either the end of an execution of a
    state machine in `flows`, or an event with the fields in `events`.

    Args:
        text: The input as JSON; None or "" for an empty object.
        events: The fields of events, by the name of the event and the parameter.
        flows: The names of flows, by the names of their state machines.

    Raises:
        InvalidInput: If the input is not JSON, or not of one of these forms.
    """
    whole = _object(text or "{}", "The input of the execution")
    if "detail-type" in whole:
        name, detail = whole["detail-type"], whole.get("detail")
        detail = detail if isinstance(detail, dict) else {}
        return _by_end(detail, flows) if name == ENDED else _by_event(str(name), detail, events)
    parameters = whole.get("Parameters", {})
    if isinstance(parameters, str):
        parameters = _object(parameters, "Parameters in the input of the execution")
    if not isinstance(parameters, dict):
        raise InvalidInput("Parameters in the input of the execution have to be values by name.")
    origin = whole.get("Origin")
    if origin is not None and not isinstance(origin, str):
        raise InvalidInput("Origin in the input of the execution has to be the id of a run.")
    return TriggerPayload(parameters, origin)


def _by_end(detail: Mapping[str, Any], flows: Mapping[str, str]) -> TriggerPayload:
    machine = str(detail.get("stateMachineArn", "")).rpartition(":")[2]
    if machine not in flows or "name" not in detail:
        raise InvalidInput(f"The end of an execution of {machine!r} is not what is waited for.")
    return TriggerPayload({}, None, (f"{flows[machine]}/sfn-{detail['name']}",))


def _by_event(
    name: str, detail: Mapping[str, Any], events: Mapping[str, Mapping[str, str]]
) -> TriggerPayload:
    mapping = events.get(name, {})
    missing = [each for each in mapping.values() if each not in detail]
    if missing:
        raise InvalidInput(
            f"The event {name!r} has no field {missing[0]!r}, which a parameter is "
            "to be taken from."
        )
    return TriggerPayload({parameter: detail[each] for parameter, each in mapping.items()})


def _object(text: str, what: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise InvalidInput(f"{what} is not valid JSON: {error}.") from error
    if not isinstance(value, dict):
        raise InvalidInput(f"{what} has to be an object of JSON.")
    return value
