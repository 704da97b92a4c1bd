"""The calls of AWS that deploying takes: Step Functions, AWS Batch, EventBridge. Calls block."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from aflow.aws.calls import Calls
from aflow.deploy.names import Label, label_of
from aflow.deploy.plan import Account
from aflow.errors import AwsError, InvalidSetting

if TYPE_CHECKING:
    from aflow.aws.settings import AwsSettings
    from aflow.deploy.starting import Events, Ticks


class Machine(NamedTuple):
    """A state machine that is there. `label` is None for one that aflow has not made."""

    name: str
    arn: str
    definition: str
    label: Label | None


class Execution(NamedTuple):
    """An execution. Times are in seconds since the epoch."""

    arn: str
    name: str
    status: str
    started_at: float
    stopped_at: float | None

    @property
    def run(self) -> str:
        """The id of its run."""
        return f"sfn-{self.name}"


class Aws(Calls):
    """One account, in one region: that of the role of state machines, and of the session."""

    def __init__(self, settings: AwsSettings) -> None:
        super().__init__()
        self._settings = settings

    @cached_property
    def role(self) -> str:
        """The role of state machines. Raises InvalidSetting where it is not set."""
        return self._settings.needed("machine_role", "The role of state machines")

    @cached_property
    def account(self) -> Account:
        """Where we are, as far as that is known without asking."""
        parts = self.role.split(":")
        if len(parts) < 6 or not parts[4].isdigit():
            raise InvalidSetting(
                f"AFLOW_SFN_IAM_ROLE is {self.role!r}, which is no ARN of a role "
                "(arn:aws:iam::123456789012:role/name)."
            )
        region = self._client("stepfunctions").meta.region_name
        return Account(parts[1], region, parts[4])

    def with_platform(self, queue: str) -> Account:
        """The same, with what the queue runs jobs on."""
        return self.account._replace(fargate=self.is_fargate(queue))

    # ------------------------------------------------------------ state machines

    def machine(self, name: str) -> Machine | None:
        """The state machine of this name."""
        arn = self.account.machine_arn(name)
        found = self._call("stepfunctions", "describe_state_machine", stateMachineArn=arn)
        if found is None:
            return None
        definition = found["definition"]
        return Machine(name, arn, definition, label_of(definition))

    def put_machine(self, name: str, definition: str, *, log_history: bool) -> str:
        """Make the state machine, or change the one that is there; its ARN."""
        arn = self.account.machine_arn(name)
        values: dict[str, Any] = {"definition": definition, "roleArn": self.role}
        if log_history:
            group = self._settings.needed("log_group", "The log group of executions")
            values["loggingConfiguration"] = {
                "level": "ALL",
                "includeExecutionData": True,
                "destinations": [{"cloudWatchLogsLogGroup": {"logGroupArn": group}}],
            }
        if self._call("stepfunctions", "describe_state_machine", stateMachineArn=arn) is None:
            made = self._call("stepfunctions", "create_state_machine", name=name, **values)
            return str(made["stateMachineArn"])
        self._call("stepfunctions", "update_state_machine", stateMachineArn=arn, **values)
        return arn

    def delete_machine(self, name: str) -> None:
        """Delete the state machine; executions that run go on to their end."""
        arn = self.account.machine_arn(name)
        self._call("stepfunctions", "delete_state_machine", stateMachineArn=arn)

    # ------------------------------------------------------------ executions

    def start(self, name: str, given: dict[str, Any]) -> Execution:
        """Start an execution with this input."""
        text = json.dumps(given)
        arn = self.account.machine_arn(name)
        made = self._call(
            "stepfunctions",
            "start_execution",
            stateMachineArn=arn,
            name=str(uuid.uuid4()),
            input=text,
        )
        if made is None:
            raise AwsError(f"There is no state machine {name} in {self.account.region}.")
        found = made["executionArn"]
        started = made["startDate"].timestamp()
        return Execution(found, found.rpartition(":")[2], "RUNNING", started, None)

    def execution(self, machine: str, name: str) -> Execution | None:
        """The execution of this name."""
        arn = self.account.machine_arn(machine).replace(":stateMachine:", ":execution:")
        found = self._call("stepfunctions", "describe_execution", executionArn=f"{arn}:{name}")
        return None if found is None else _execution(found)

    def why(self, execution: Execution) -> tuple[str, str]:
        """The error and the cause that an execution has ended with."""
        found = self._call("stepfunctions", "describe_execution", executionArn=execution.arn) or {}
        return str(found.get("error") or execution.status), str(found.get("cause") or "")

    def executions(self, machine: str, states: Sequence[str]) -> Iterator[Execution]:
        """The executions of a state machine in one of these states (all, if none is named), the
        latest first in each."""
        arn = self.account.machine_arn(machine)
        for state in states or ("",):
            values = {"stateMachineArn": arn, **({"statusFilter": state} if state else {})}
            while values:
                page = self._call("stepfunctions", "list_executions", **values) or {}
                yield from map(_execution, page.get("executions", ()))
                following = page.get("nextToken")
                values = {**values, "nextToken": following} if following else {}

    def stop(self, execution: Execution, cause: str) -> None:
        """Stop an execution, and the jobs that it waits for."""
        self._call(
            "stepfunctions",
            "stop_execution",
            executionArn=execution.arn,
            error="aflow.Terminated",
            cause=cause,
        )

    # ------------------------------------------------------------ what starts them

    def _starter(self) -> str:
        return self._settings.needed("events_role", "The role with which EventBridge starts flows")

    def put_rule(self, rule: str, machine: str, what: Ticks | Events) -> None:
        """Start the machine by a rule: at times in UTC, or on events."""
        from aflow.deploy.starting import Ticks

        ticks = isinstance(what, Ticks)
        when: dict[str, str] = (
            {"ScheduleExpression": what.expression}
            if isinstance(what, Ticks)
            else {"EventPattern": json.dumps(what.pattern)}
        )
        target = {
            "Id": "aflow",
            "Arn": self.account.machine_arn(machine),
            "RoleArn": self._starter(),
            **({"Input": json.dumps({"Parameters": "{}"})} if ticks else {}),
        }
        said = f"What starts the flow of the state machine {machine} (aflow)."
        self._call("events", "put_rule", Name=rule, State="ENABLED", Description=said, **when)
        answer = self._call("events", "put_targets", Rule=rule, Targets=[target])
        if answer.get("FailedEntryCount"):
            raise AwsError(f"EventBridge refuses the target of rule {rule}: {answer}.")

    def disable_rule(self, rule: str) -> None:
        """Let the rule start nothing any more; fine if there is none."""
        self._call("events", "disable_rule", Name=rule)

    def delete_rule(self, rule: str) -> None:
        """Delete the rule; fine if there is none."""
        if self._call("events", "describe_rule", Name=rule) is None:
            return
        found = self._call("events", "list_targets_by_rule", Rule=rule) or {"Targets": []}
        ids = [each["Id"] for each in found["Targets"]]
        if ids:
            self._call("events", "remove_targets", Rule=rule, Ids=ids)
        self._call("events", "delete_rule", Name=rule)

    def put_schedule(self, name: str, machine: str, ticks: Ticks) -> None:
        """Start the machine at times in a zone, by EventBridge Scheduler."""
        values = {
            "Name": name,
            "ScheduleExpression": ticks.expression,
            "ScheduleExpressionTimezone": ticks.zone,
            "FlexibleTimeWindow": {"Mode": "OFF"},
            "State": "ENABLED",
            "Target": {
                "Arn": self.account.machine_arn(machine),
                "RoleArn": self._starter(),
                "Input": json.dumps({"Parameters": "{}"}),
            },
        }
        there = self._call("scheduler", "get_schedule", Name=name) is not None
        self._call("scheduler", "update_schedule" if there else "create_schedule", **values)

    def delete_schedule(self, name: str) -> None:
        """Delete the schedule; fine if there is none."""
        self._call("scheduler", "delete_schedule", Name=name)


def _execution(found: Any) -> Execution:
    stopped = found.get("stopDate")
    return Execution(
        found["executionArn"],
        found["executionArn"].rpartition(":")[2],
        found["status"],
        found["startDate"].timestamp(),
        None if stopped is None else stopped.timestamp(),
    )
