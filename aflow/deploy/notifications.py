"""Notes of how a run ended, as states: to a topic of SNS, or to an event bus of EventBridge.

The note of a failure says what the job that records it has found out, and the note of a success is
the state after the last step. A note that cannot be sent changes nothing of how the run ended.
"""

from __future__ import annotations

import re
from typing import Any

from aflow.errors import InvalidInput

State = dict[str, Any]

_TARGET = re.compile(
    r"arn:[\w-]+:(sns:[\w-]+:\d{12}:[\w-]+(\.fifo)?|events:[\w-]+:\d{12}:event-bus/[\w./-]+)\Z"
)
REASON = "$.told.said.reason"  # where the states before it have put it
_LINK = "$$.Execution.Id"


def checked_target(option: str, arn: str | None) -> str | None:
    """The ARN, if notes can be sent there; raises InvalidInput."""
    if arn is not None and not _TARGET.match(arn):
        raise InvalidInput(
            f"{option} takes the ARN of a topic of SNS or of an event bus of EventBridge, not "
            f"{arn!r}."
        )
    return arn


def note(arn: str, partition: str, flow: str, *, succeeded: bool) -> State:
    """The state that sends the note; where it goes on is for the caller to say."""
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
        text = f"States.Format('{flow}/{{}} failed: {{}} ({{}})', $.run, {REASON}, {_LINK})"
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
        detail["reason.$"] = REASON
    entry = {
        "Source": "aflow",
        "DetailType": f"{flow} {status}",
        "Detail": detail,
        "EventBusName": bus,
    }
    return {"Entries": [entry]}
