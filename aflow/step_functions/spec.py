"""What the jobs of a deployed flow have to know of it: one object in the store, and variables.

The object holds no secrets and is named by the digest of its bytes. What is pickled in it (values
of configs) is read by the process that runs the flow, and by nobody else.
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
# The user of runs that AWS starts, as in Metaflow: they are in the namespace of production, and not
# among the runs of the user who has deployed the flow.
NOBODY = "SFN"
ENDED = "Step Functions Execution Status Change"  # the kind of an event of EventBridge


class DeploymentSpec(NamedTuple):
    """A deployed flow, as its jobs run it.

    `code` is the key of the code package, `script` the flow file's name inside of it. `graph` and
    `policies` are plain values, as `as_dict` gives them. `branch` and `production` are those of
    the flow's project. `events` are the parameters that events give, by the names of the events:
    {parameter: field of the event's detail}; `flows` are those whose ends start this one, by the
    names of their machines. `environments` are those of steps with packages of their own.
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
        """Return the spec as bytes; the same for the same deployment."""
        return packed(VERSION, self)

    @classmethod
    def decode(cls, data: bytes) -> DeploymentSpec:
        """Return the spec that `encode` gave.

        Args:
            data: The object, as `encode` returned it.

        Raises:
            InvalidMessage: The bytes are not a deployment, or a newer aflow has written them.
        """
        newer = "The flow was deployed by a newer aflow: use an image that has the same."
        with unreadable("A deployed flow's description is damaged"):
            spec = cls(*unpacked_fields(data, VERSION, newer))
            return spec._replace(**unpacked_program(spec))


def spec_key(data: bytes) -> str:
    """Return the key of an encoded spec: its digest.

    Args:
        data: The spec, as `encode` returned it; equal specs have one key, so that a deployment can
            be repeated.
    """
    return digest_of([data], len(data))


def spec_name(key: str) -> str:
    """Return the object, by its name in the store, that holds a spec.

    Args:
        key: The key, as `spec_key` returned it.
    """
    return f"deploy/specs/{blob_key(key)}"


def read_spec(store: ObjectStore, key: str) -> DeploymentSpec:
    """Return the deployment spec of this key.

    Args:
        store: The datastore of the deployment.
        key: The key, which the state machine gives to each job.

    Raises:
        ObjectNotFound: There is no spec of this key.
        CorruptBlob: The bytes of the object do not have this digest.
        InvalidMessage: A newer aflow has written it.
    """
    data = bytes(store.get(spec_name(key)))
    if spec_key(data) != key:
        raise CorruptBlob(f"{spec_name(key)} in {store.url} is damaged.")
    return DeploymentSpec.decode(data)


class StateJobVariables(NamedTuple):
    """What the variables of one job say; the names are those of the state machine (machine.py).

    `step` is None in the job that notes a failure, for which `error` names it. `limit` is how many
    seconds the execution may take, `started` when it began, as Step Functions writes times; None
    without a limit.
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
            InvalidInput: Where it is no such job.
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


# The result of a job, for the state machine: a small object in the bucket, which the next state
# reads. Pure functions.


FAILURE_RESULT = "run-failed"  # stands for a step in the name of the object


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
    """Return the state of the machine as it goes on behind a step; `started` is there if it was
    before.

    Args:
        run: The id of the run.
        step: The name of the step that has ended.
        place: The place of the task: the indices of the foreachs around it.
        started: When the run started, as Step Functions writes times; None to leave it out.
    """
    state: dict[str, Any] = {"run": run, "place": place, "from": {"step": step}}
    return state if started is None else {**state, "started": started}


def switch_result(state: Mapping[str, Any], next_step: str) -> dict[str, Any]:
    """Return the state, and which step follows.

    Args:
        state: What `state_after` has returned.
        next_step: The name of the step that follows.
    """
    return {**state, "next": next_step}


def foreach_result(state: Mapping[str, Any], items: Sequence[int], *, distributed: bool) -> Any:
    """Return the items by their numbers: with the state, or alone for a distributed map, which
    reads them by itself.

    Args:
        state: What `state_after` has returned.
        items: The indices of the items of the foreach, from 0.
        distributed: Whether the foreach is a distributed map, which reads the list from the store.
    """
    return [*items] if distributed else {**state, "items": [*items]}


# What an execution was started with: by `trigger`, by a schedule, by an event, or by the end of
# another run. A pure function of its input.


class TriggerPayload(NamedTuple):
    """Values of parameters by name, the run to resume, and the pathspecs of the runs whose end
    started this one."""

    parameters: dict[str, Any]
    origin: str | None = None
    runs: tuple[str, ...] = ()


def payload_of(
    text: str | None, events: Mapping[str, Mapping[str, str]], flows: Mapping[str, str]
) -> TriggerPayload:
    """Return what the input of an execution asks for.

    `{"Parameters": "{...}"}` is what Metaflow gives, too (the values as a text of JSON); `resume`
    adds `"Origin"`. Else it is an event of EventBridge: the end of an execution of one of the
    machines of `flows`, or one whose detail holds the fields that `events` names.

    Args:
        text: The input as JSON; None and "" count as an empty object.
        events: Which field of an event gives which parameter, by event and parameter.
        flows: The names of flows, by the ARN of their machines.

    Raises:
        InvalidInput: The input is not JSON, or not of one of these forms.
    """
    whole = _object(text or "{}", "The input of the execution")
    if "detail-type" in whole:
        return _by_end(whole, flows) if whole["detail-type"] == ENDED else _by_event(whole, events)
    parameters = whole.get("Parameters", {})
    if isinstance(parameters, str):
        parameters = _object(parameters, "Parameters in the input of the execution")
    if not isinstance(parameters, dict):
        raise InvalidInput("Parameters in the input of the execution have to be values by name.")
    origin = whole.get("Origin")
    if origin is not None and not isinstance(origin, str):
        raise InvalidInput("Origin in the input of the execution has to be the id of a run.")
    return TriggerPayload(parameters, origin)


def _by_end(event: Mapping[str, Any], flows: Mapping[str, str]) -> TriggerPayload:
    detail = event.get("detail")
    detail = detail if isinstance(detail, dict) else {}
    machine = str(detail.get("stateMachineArn", "")).rpartition(":")[2]
    if machine not in flows or "name" not in detail:
        raise InvalidInput(f"The end of an execution of {machine!r} is not what is waited for.")
    return TriggerPayload({}, None, (f"{flows[machine]}/sfn-{detail['name']}",))


def _by_event(event: Mapping[str, Any], events: Mapping[str, Mapping[str, str]]) -> TriggerPayload:
    detail = event.get("detail")
    detail = detail if isinstance(detail, dict) else {}
    mapping = events.get(str(event["detail-type"]), {})
    missing = [each for each in mapping.values() if each not in detail]
    if missing:
        raise InvalidInput(
            f"The event {event['detail-type']!r} has no field {missing[0]!r}, which a parameter is "
            "to be taken from."
        )
    return TriggerPayload({name: detail[each] for name, each in mapping.items()})


def _object(text: str, what: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise InvalidInput(f"{what} is not valid JSON: {error}.") from error
    if not isinstance(value, dict):
        raise InvalidInput(f"{what} has to be an object of JSON.")
    return value
