"""Compile a flow's graph to a state machine of AWS Step Functions; a pure function of plain data.

Each step is a state that submits an AWS Batch job and waits for it. The data passed between states
are small: the id of the run, the place of the next tasks (see tasks.py), and the previous step.
Jobs read everything else from the datastore and the metadata store.

A job returns no data to Step Functions. If the state machine needs a value from it (the items of a
foreach, the case of a switch), the job writes a small object to the bucket, its *result*, which the
next state reads.

    linear   step
    split    step -> "step (branches)" Parallel -> join
    foreach  step -> "step (items)" reads the result -> "step (each)" Map -> join
             with a distributed map, the Map reads the items itself
    switch   step -> "step (choice)" reads the result -> "step (next)" Choice -> a case
    failure  any state of the flow itself -> "(failed)", a job -> "(end)" Fail
             if that job fails, too: "(failed)" -> "(unrecorded)", writes an object -> "(end)"
             with notification: "(failed)" -> "(reason)" reads it -> "(note of failure)" -> "(end)"
    success  the last step; with notification: -> "(note of success)" -> "(done)"
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, assert_never

from aflow._core.records import dataclass, field
from aflow.errors import InvalidInput
from aflow.executors.jobs.batch.definitions import valid_name
from aflow.flow.graph import Kind
from aflow.step_functions.names import check_branches
from aflow.step_functions.spec import FAILURE_RESULT
from aflow.step_functions.tasks import ROOT
from aflow.task.spec import NO_RETRY_EXIT_CODE

if TYPE_CHECKING:
    from aflow.flow.graph import Graph, Node

# States that notify of the end of a run: an SNS topic or an EventBridge event bus.
#
# The notification of a failure contains the reason from the job that recorded it. The notification
# of a success is the state after the last step. If a notification cannot be sent, the result of the
# execution does not change.


State = dict[str, Any]

_TARGET = re.compile(
    r"arn:[\w-]+:(sns:[\w-]+:\d{12}:[\w-]+(\.fifo)?|events:[\w-]+:\d{12}:event-bus/[\w./-]+)\Z"
)
REASON_PATH = "$.notified.result.reason"  # set by the state before the notification
_LINK = "$$.Execution.Id"


def checked_target(option: str, arn: str | None) -> str | None:
    """Return the ARN of a notification target, after checking it.

    Args:
        option: The name of the option, for the error message.
        arn: The ARN; None for no notification.

    Raises:
        InvalidInput: If it is not the ARN of an SNS topic or an event bus.
    """
    if arn is not None and not _TARGET.match(arn):
        raise InvalidInput(
            f"{option} takes the ARN of a topic of SNS or of an event bus of EventBridge, not "
            f"{arn!r}."
        )
    return arn


def note(arn: str, partition: str, flow: str, *, succeeded: bool) -> State:
    """Return the state that notifies an SNS topic or an EventBridge bus of the end of the run; the
    caller adds `Next` and `Catch`.

    Args:
        arn: The ARN of the topic or of the bus.
        partition: The AWS partition, for example `aws`.
        flow: The name of the flow, for the text of the notification.
        succeeded: Whether the status in the notification is `succeeded`, else `failed`.
    """
    status = "succeeded" if succeeded else "failed"
    if ":sns:" in arn:
        parameters, resource = _message(arn, flow, status), "sns:publish"
    else:
        parameters, resource = _event(arn, flow, status), "events:putEvents"
    return {
        "Type": "Task",
        "Resource": f"arn:{partition}:states:::{resource}",
        "Parameters": parameters,
        "Retry": [{"ErrorEquals": ["States.TaskFailed"], "IntervalSeconds": 2, "MaxAttempts": 3}],
        "ResultPath": None,
    }


def _message(topic: str, flow: str, status: str) -> State:
    if status == "failed":
        text = f"States.Format('{flow}/{{}} failed: {{}} ({{}})', $.run, {REASON_PATH}, {_LINK})"
    else:
        text = f"States.Format('{flow}/{{}} succeeded ({{}})', $.run, {_LINK})"
    parameters: State = {
        "TopicArn": topic,
        "Subject": f"{flow} {status}"[:100],
        "Message.$": text,
        "MessageAttributes": {
            "flow": {"DataType": "String", "StringValue": flow},
            "run": {"DataType": "String", "StringValue.$": "$.run"},
            "status": {"DataType": "String", "StringValue": status},
        },
    }
    if topic.endswith(".fifo"):
        parameters |= {"MessageGroupId": flow, "MessageDeduplicationId.$": "$.run"}
    return parameters


def _event(bus: str, flow: str, status: str) -> State:
    detail: State = {"flow": flow, "run.$": "$.run", "status": status, "execution.$": _LINK}
    if status == "failed":
        detail["reason.$"] = REASON_PATH
    entry = {
        "Source": "aflow",
        "DetailType": f"{flow} {status}",
        "Detail": detail,
        "EventBusName": bus,
    }
    return {"Entries": [entry]}


States = dict[str, State]

BEGIN, FAILED, END = "(begin)", "(failed)", "(end)"
REASON, NO_REASON, NOTE_OF_FAILURE = "(reason)", "(no reason)", "(note of failure)"
UNRECORDED = "(unrecorded)"
NOTE_OF_SUCCESS, DONE = "(note of success)", "(done)"
LONGEST_NAME = 80  # characters of the name of a state (limit of AWS)
LARGEST = 1 << 20  # bytes of a definition (limit of AWS)
MAX_ATTEMPTS = 10  # of a job (limit of AWS Batch)
LOSSES = 2  # additional attempts of a job if its host is lost
# The errors of Batch when it is throttled; undocumented ones are a general AWSBatchException.
_BUSY = ["Batch.AWSBatchException", "Batch.ServerException", "Batch.TooManyRequestsException"]
_NOT_SUBMITTED = {
    "ErrorEquals": _BUSY,
    "IntervalSeconds": 2,
    "BackoffRate": 2.0,
    "MaxDelaySeconds": 60,
    "MaxAttempts": 10,
    "JitterStrategy": "FULL",
}


@dataclass(frozen=True, slots=True)
class JobOf:
    """The job of a step: the name of its definition, the number of retries after a failure, the
    timeout of an attempt in seconds, and whether @catch needs an additional attempt."""

    definition: str
    retries: int
    limit: int
    catches: bool = False
    queue: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Where:
    """The AWS resources and the settings of a state machine.

    `prefix` is the prefix of job results in the bucket, including the name of the flow, without a
    slash at its end. `default` is the job that belongs to no step, which records failures.
    `timeout` is the timeout of an execution in seconds. `on_error` and `on_success` are the ARNs of
    the notification targets. `tags` are those of jobs, `run_tags` those of runs.
    """

    partition: str
    queue: str
    bucket: str
    prefix: str
    default: JobOf
    max_workers: int = 100
    timeout: int | None = None
    distributed: bool = False
    tags: Mapping[str, str] = field(default_factory=dict)
    on_error: str | None = None
    on_success: str | None = None
    run_tags: Sequence[str] = ()


def compiled(graph: Graph, jobs: Mapping[str, JobOf], where: Where, comment: str = "") -> State:
    """Return the definition of the state machine.

    Args:
        graph: The steps of the flow and the transitions between them.
        jobs: The jobs, by step.
        where: The AWS resources and the settings of the deployment.
        comment: The comment of the state machine.

    Raises:
        InvalidInput: If Step Functions cannot run the flow; the message contains the step.
    """
    compiler = _Compiler(graph, jobs, where)
    states = compiler.flow()
    machine: State = {"Comment": comment} if comment else {}
    machine["StartAt"] = BEGIN
    if where.timeout is not None:
        machine["TimeoutSeconds"] = where.timeout
    machine["States"] = states
    return machine


class _Compiler:
    def __init__(self, graph: Graph, jobs: Mapping[str, JobOf], where: Where) -> None:
        self._graph = graph
        self._jobs = jobs
        self._where = where

    def flow(self) -> States:
        graph, where = self._graph, self._where
        states: States = {BEGIN: self._begin()}
        states.update(self._scope(graph.start, None))
        for state in states.values():
            if state["Type"] in ("Task", "Map", "Parallel"):
                state["Catch"] = _on_any_error("$.error", FAILED)
        if where.on_success is not None:
            last = states[_state(graph.end)]
            del last["End"]
            last["Next"] = NOTE_OF_SUCCESS
            notification = note(where.on_success, where.partition, graph.flow, succeeded=True)
            states[NOTE_OF_SUCCESS] = {
                **notification, "Catch": _on_any_error("$.notified", DONE), "Next": DONE
            }  # fmt: skip
            states[DONE] = {"Type": "Succeed"}
        states.update(self._failure())
        states[END] = {"Type": "Fail", "ErrorPath": "$.error.Error", "CausePath": "$.error.Cause"}
        return states

    def _begin(self) -> State:
        parameters = {
            "run.$": "States.Format('sfn-{}', $$.Execution.Name)",
            "place": ROOT,
            "from": {"step": ""},
            **self._started("$$.Execution.StartTime"),
        }
        return {"Type": "Pass", "Parameters": parameters, "Next": _state(self._graph.start)}

    def _started(self, value: str) -> dict[str, str]:
        """Return the start time of the execution for the state, so that jobs can check the timeout;
        empty without a timeout."""
        return {} if self._where.timeout is None else {"started.$": value}

    def _failure(self) -> States:
        variables = {**_RUN, "AFLOW_SFN_ERROR": "$.error.Error"}
        failed = self._job("failed", self._where.default, variables, "$.notified")
        arn, partition = self._where.on_error, self._where.partition
        if arn is None:
            return {
                FAILED: {**failed, "Catch": _on_any_error("$.notified", UNRECORDED), "Next": END},
                UNRECORDED: self._unrecorded(END),
            }
        reading = {
            **self._reading_of(FAILURE_RESULT, ROOT), "ResultPath": "$.notified",
            "Catch": _on_any_error("$.notified", NO_REASON), "Next": NOTE_OF_FAILURE,
        }  # fmt: skip
        nothing = {"result": {"reason": "the execution tells why"}}
        notification = note(arn, partition, self._graph.flow, succeeded=False)
        return {
            FAILED: {**failed, "Catch": _on_any_error("$.notified", UNRECORDED), "Next": REASON},
            UNRECORDED: self._unrecorded(NO_REASON),
            REASON: reading,
            NO_REASON: {
                "Type": "Pass", "Result": nothing, "ResultPath": "$.notified",
                "Next": NOTE_OF_FAILURE
            },
            NOTE_OF_FAILURE: {**notification, "Catch": _on_any_error("$.notified", END), "Next":
            END},
        }  # fmt: skip

    def _unrecorded(self, next_state: str) -> State:
        """Return a state that writes an object for a run whose failure no job could record; it is
        read by unrecorded.py."""
        base, _, flow = self._where.prefix.rpartition("/results/")
        body = {
            "run.$": "$.run",
            "started.$": "$$.Execution.StartTime",
            "error.$": "$.error",
            "tags": list(self._where.run_tags),
        }
        return {
            "Type": "Task",
            "Resource": f"arn:{self._where.partition}:states:::aws-sdk:s3:putObject",
            "Parameters": {
                "Bucket": self._where.bucket,
                "Key.$": f"States.Format('{base}/unrecorded/{flow}/{{}}', $.run)",
                "Body": body,
            },
            "Retry": [{**_NOT_SUBMITTED, "ErrorEquals": ["States.TaskFailed"]}],
            "ResultPath": "$.notified",
            "Catch": _on_any_error("$.notified", next_state),
            "Next": next_state,
        }

    # ------------------------------------------------------------ scopes

    def _scope(self, first: str, stop: str | None) -> States:
        """Return the states from a step up to, but not including, the join that ends the scope."""
        states: States = {}
        todo, seen = [first], {first}
        while todo:
            node = self._graph[todo.pop()]
            states.update(self._states_of(node, stop))
            for step in (node.join,) if node.join else node.next:
                if step != stop and step not in seen:
                    seen.add(step)
                    todo.append(step)
        return states

    def _states_of(self, node: Node, stop: str | None) -> States:
        match node.kind:
            case Kind.SPLIT:
                return self._split(node)
            case Kind.FOREACH:
                return self._foreach(node)
            case Kind.SWITCH:
                return self._switch(node, stop)
            case Kind.PARALLEL:
                raise InvalidInput(
                    f"Step {node.name} opens a gang (num_parallel), which Step Functions cannot "
                    "run: use a foreach, or run the flow with `run --with batch`."
                )
            case Kind.LINEAR | Kind.END:
                task = self._task(node)
                if node.kind is Kind.END or node.next[0] == stop:
                    return {_state(node.name): {**task, **self._last(node)}}
                return {_state(node.name): {**task, "Next": _state(node.next[0])}}
            case _:
                assert_never(node.kind)

    def _last(self, node: Node) -> State:
        """Return the fields that end a scope. An item of a foreach returns an empty object, because
        the results of all items together are limited to 256 KB."""
        nothing = {"ResultSelector": {}, "ResultPath": "$"} if self._ends_item(node) else {}
        return {**nothing, "End": True}

    def _ends_item(self, node: Node) -> bool:
        """Return whether the innermost scope of a step is an item of a foreach."""
        return bool(node.splits) and self._graph[node.splits[-1]].kind is Kind.FOREACH

    def _split(self, node: Node) -> States:
        assert node.join is not None, "every split has a join"
        check_branches(self._graph, node)
        branches = _state(node.name, "branches")
        return {
            _state(node.name): {**self._task(node), "Next": branches},
            branches: {
                "Type": "Parallel",
                "Branches": [
                    {"StartAt": _state(step), "States": self._scope(step, node.join)}
                    for step in node.next
                ],
                "ResultSelector": {"step.$": "$[*].from.step", "place.$": "$[*].place"},
                "ResultPath": "$.branches",
                "Next": _state(node.join),
            },
        }

    def _foreach(self, node: Node) -> States:
        assert node.join is not None, "every foreach has a join"
        items, each = _state(node.name, "items"), _state(node.name, "each")
        first = node.next[0]
        body = {"StartAt": _state(first), "States": self._scope(first, node.join)}
        loop: State = {
            "Type": "Map",
            "MaxConcurrency": self._where.max_workers,
            "ItemSelector": {
                "run.$": "$.run",
                "place.$": "States.Format('{}.{}', $.place, $$.Map.Item.Value)",
                "from": {"step": node.name},
                **self._started("$.started"),
            },
            # The results of the items are dropped: jobs read them from the datastore, and the data
            # of a state are limited to 256 KiB.
            "ResultSelector": {},
            "ResultPath": "$.items",
            "Next": _state(node.join),
        }
        # A distributed map reads the items from S3, because their list may exceed that limit.
        if self._where.distributed:
            loop["ItemReader"] = {
                "Resource": f"arn:{self._where.partition}:states:::s3:getObject",
                "ReaderConfig": {"InputType": "JSON"},
                "Parameters": self._result_object(node.name),
            }
            mode = {"Mode": "DISTRIBUTED", "ExecutionType": "STANDARD"}
            loop["ItemProcessor"] = {"ProcessorConfig": mode, **body}
            return {_state(node.name): {**self._task(node), "Next": each}, each: loop}
        loop["ItemsPath"] = "$.items"
        loop["ItemProcessor"] = {"ProcessorConfig": {"Mode": "INLINE"}, **body}
        return {
            _state(node.name): {**self._task(node), "Next": items},
            items: {**self._reading(node.name), "Next": each},
            each: loop,
        }

    def _switch(self, node: Node, stop: str | None) -> States:
        reading, choice = _state(node.name, "choice"), _state(node.name, "next")
        done = _state(node.name, "done")

        def state_of(step: str) -> str:
            return done if step == stop else _state(step)

        steps = dict.fromkeys(node.next)
        states: States = {
            _state(node.name): {**self._task(node), "Next": reading},
            reading: {**self._reading(node.name), "Next": choice},
            choice: {
                "Type": "Choice",
                "Choices": [
                    {"Variable": "$.next", "StringEquals": step, "Next": state_of(step)}
                    for step in steps
                ],
            },
        }
        # A Choice state cannot end a scope, so a Pass state follows it.
        if stop in steps:
            result: State = {"Result": {}} if self._ends_item(node) else {}
            states[done] = {"Type": "Pass", **result, "End": True}
        return states

    # ------------------------------------------------------------ states

    def _task(self, node: Node) -> State:
        variables = {"AFLOW_SFN_STEP": node.name, **_RUN, "AFLOW_SFN_PLACE": "$.place"}
        if node.name == self._graph.start:
            variables["AFLOW_SFN_INPUT"] = "States.JsonToString($$.Execution.Input)"
            if node.name in node.next:  # the start step may be its own predecessor, in a loop
                variables["AFLOW_SFN_FROM"] = "$.from.step"
        elif self._joins_branches(node):
            variables["AFLOW_SFN_BRANCHES"] = "States.JsonToString($.branches)"
        else:
            variables["AFLOW_SFN_FROM"] = "$.from.step"
        if self._where.timeout is not None:
            variables["AFLOW_SFN_STARTED"] = "$.started"
            variables["AFLOW_SFN_TIMEOUT"] = str(self._where.timeout)
        state = self._job(node.name, self._jobs[node.name], variables, "$.from")
        state["ResultSelector"] = {"step": node.name}
        return state

    def _joins_branches(self, node: Node) -> bool:
        return node.is_join and any(
            other.join == node.name and other.kind is Kind.SPLIT
            for other in self._graph.nodes.values()
        )

    def _job(self, name: str, job: JobOf, variables: Mapping[str, str], result: str) -> State:
        if job.retries + 1 + job.catches > MAX_ATTEMPTS:
            raise InvalidInput(
                f"Step {name} is to be tried {job.retries} times again: a job of AWS Batch has "
                f"{MAX_ATTEMPTS} attempts at most, so give @retry(times={MAX_ATTEMPTS - 2}) or "
                "less."
            )
        # Additional attempts for lost hosts, which do not count as retries.
        attempts = min(MAX_ATTEMPTS, job.retries + 1 + job.catches + LOSSES)
        parameters: State = {
            "JobName": valid_name(f"{self._graph.flow}-{name}"),
            "JobDefinition": job.definition,
            "JobQueue": job.queue or self._where.queue,
            "ContainerOverrides": {"Environment": [_variable(*pair) for pair in variables.items()]},
            # The job decides whether a retry can succeed; this exit code means that it cannot.
            "RetryStrategy": {
                "Attempts": attempts,
                "EvaluateOnExit": [{"OnExitCode": str(NO_RETRY_EXIT_CODE), "Action": "EXIT"}],
            },
            "Timeout": {"AttemptDurationSeconds": job.limit},
        }
        tags = {**self._where.tags, **job.tags}
        if tags:
            parameters["Tags"] = tags
        return {
            "Type": "Task",
            "Resource": f"arn:{self._where.partition}:states:::batch:submitJob.sync",
            "Parameters": parameters,
            "Retry": [dict(_NOT_SUBMITTED)],
            "ResultPath": result,
        }

    def _reading(self, step: str) -> State:
        """Return a state whose output is the result of the step's job."""
        return {**self._reading_of(step, "$.place"), "ResultPath": "$", "OutputPath": "$.result"}

    def _reading_of(self, step: str, place: str) -> State:
        return {
            "Type": "Task",
            "Resource": f"arn:{self._where.partition}:states:::aws-sdk:s3:getObject",
            "Parameters": self._result_object(step, place),
            "Retry": [{**_NOT_SUBMITTED, "ErrorEquals": ["States.TaskFailed"]}],
            "ResultSelector": {"result.$": "States.StringToJson($.Body)"},
        }

    def _result_object(self, step: str, place: str = "$.place") -> State:
        where, values = (place, "$.run") if place == ROOT else ("{}", f"$.run, {place}")
        key = f"States.Format('{self._where.prefix}/{{}}/{step}/{where}', {values})"
        return {"Bucket": self._where.bucket, "Key.$": key}


def _on_any_error(path: str, next_state: str) -> list[State]:
    return [{"ErrorEquals": ["States.ALL"], "ResultPath": path, "Next": next_state}]


_RUN = {"AFLOW_SFN_RUN": "$.run"}


def _variable(name: str, value: str) -> State:
    """Return a variable of a job; a value that starts with a path or an intrinsic function is
    evaluated by Step Functions."""
    dynamic = value.startswith(("$", "States."))
    return {"Name": name, "Value.$" if dynamic else "Value": value}


def _state(step: str, role: str = "") -> str:
    """Return the name of a state; a long name is cut and a digest is appended."""
    name = f"{step} ({role})" if role else step
    if len(name) <= LONGEST_NAME:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:12]
    return f"{name[: LONGEST_NAME - 13]}-{digest}"
