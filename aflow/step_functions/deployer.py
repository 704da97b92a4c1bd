"""The `step-functions` commands: deploy and delete a flow; start, list, stop and resume its runs.

A state machine is owned by the user who deployed it first. Other users must give its production
token to change it. The token prevents accidental changes (it is readable in the AWS account) and is
stored for the user. The owner stays the same unless the token is replaced.
"""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from aflow._core.clock import SystemClock
from aflow._core.settings import ConfigFile, config_file, expanded, looked_up
from aflow.aws.client import Executions
from aflow.aws.settings import AwsSettings, needs_s3
from aflow.environments import asks, prepare, transport
from aflow.environments.shipping import runtime_shipment
from aflow.environments.spec import job_targets
from aflow.errors import (
    AwsError,
    InvalidInput,
    InvalidSetting,
    MetadataError,
    NotFound,
    StorageError,
)
from aflow.executors.jobs.batch.definitions import queue_of
from aflow.executors.jobs.batch.status import last_lines
from aflow.flow.parameters import unconverted
from aflow.metadata.factory import open_metadata
from aflow.metadata.metaflow.service import RegisteringMetadata
from aflow.scheduler.states import TERMINAL_RUN_STATES, RunState
from aflow.step_functions import plan as planning
from aflow.step_functions import unrecorded
from aflow.step_functions.names import Label, authorized, checked_token, label_of, rule_name
from aflow.step_functions.plan import DeploymentOptions, DeploymentPlan, Ticks, name_of
from aflow.step_functions.records import Records, open_records
from aflow.step_functions.spec import spec_name
from aflow.storage import roots
from aflow.storage.blobs import BlobStore, digest_of
from aflow.storage.factory import open_store
from aflow.task import code_package
from aflow.task.code_package import Package

if TYPE_CHECKING:
    from aflow._core.clock import Clock
    from aflow._core.settings import Settings
    from aflow.aws.settings import Account
    from aflow.environments.shipping import Shipment
    from aflow.environments.transport import StoredEnvironments as EnvironmentShipment
    from aflow.flow.definition import FlowDefinition
    from aflow.step_functions.plan import Events
    from aflow.storage.base import ObjectStore

# The AWS API calls for deployments: Step Functions, AWS Batch, EventBridge. They block.


class StateMachine(NamedTuple):
    """An existing state machine. `label` is None if aflow did not create it."""

    definition: str
    label: Label | None


class StateMachineExecution(NamedTuple):
    """An execution. Times are in seconds since the epoch."""

    arn: str
    name: str
    status: str
    started_at: float
    stopped_at: float | None

    @property
    def run(self) -> str:
        """The id of the run that this is the execution of."""
        return f"sfn-{self.name}"


class Aws(Executions):
    """The AWS API calls for deployments."""

    # ------------------------------------------------------------ state machines

    def machine(self, name: str) -> StateMachine | None:
        """Return the state machine of this name; None if it does not exist.

        Args:
            name: The name, not the ARN.
        """
        arn = self.account.machine_arn(name)
        found = self.try_call("stepfunctions", "describe_state_machine", stateMachineArn=arn)
        if found is None:
            return None
        definition = found["definition"]
        return StateMachine(definition, label_of(definition))

    def put_machine(self, name: str, definition: str, *, log_history: bool) -> None:
        """Create or update the state machine.

        Args:
            name: The name, not the ARN.
            definition: The definition of the state machine, as JSON.
            log_history: Whether to send the events of executions to the configured log group.
        """
        arn = self.account.machine_arn(name)
        values: dict[str, Any] = {"definition": definition, "roleArn": self.role}
        if log_history:
            group = self._settings.needed("log_group", "The log group of executions")
            values["loggingConfiguration"] = {
                "level": "ALL",
                "includeExecutionData": True,
                "destinations": [{"cloudWatchLogsLogGroup": {"logGroupArn": group}}],
            }
        update = partial(self.try_call, "stepfunctions", "update_state_machine")
        if update(stateMachineArn=arn, **values) is None:
            self.call("stepfunctions", "create_state_machine", name=name, **values)

    def delete_machine(self, name: str) -> None:
        """Delete the state machine; running executions continue.

        Args:
            name: The name, not the ARN; ignored if there is no such state machine.
        """
        arn = self.account.machine_arn(name)
        self.try_call("stepfunctions", "delete_state_machine", stateMachineArn=arn)

    # ------------------------------------------------------------ executions

    def start(self, name: str, given: dict[str, Any]) -> StateMachineExecution:
        """Start an execution.

        Args:
            name: The name of the state machine.
            given: The input of the execution, as a value that can be encoded as JSON.

        Returns:
            The execution that was started.

        Raises:
            AwsError: If there is no such state machine, or AWS refuses the request.
        """
        text = json.dumps(given)
        arn = self.account.machine_arn(name)
        made = self.try_call(
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
        return StateMachineExecution(found, found.rpartition(":")[2], "RUNNING", started, None)

    def execution(self, machine: str, name: str) -> StateMachineExecution | None:
        """Return the execution of this name; None if it does not exist.

        Args:
            machine: The name of the state machine.
            name: The name of the execution: the id of the run without `sfn-`.
        """
        found = self.described_execution(self.account.execution_arn(machine, name))
        return None if found is None else _execution(found)

    def why(self, execution: StateMachineExecution) -> tuple[str, str]:
        """Return the error and the cause with which an execution ended.

        Args:
            execution: An execution that has ended. If AWS reports no error, or no longer knows the
                execution, its status is returned as the error.
        """
        found = self.described_execution(execution.arn) or {}
        return str(found.get("error") or execution.status), str(found.get("cause") or "")

    def executions(self, machine: str, states: Sequence[str]) -> Iterator[StateMachineExecution]:
        """Yield the executions of a state machine in one of these states, the latest of each state
        first.

        Args:
            machine: The name of the state machine.
            states: The states of executions; empty for all.
        """
        arn = self.account.machine_arn(machine)
        for state in states or ("",):
            values = {"stateMachineArn": arn, **({"statusFilter": state} if state else {})}
            for page in self.pages("stepfunctions", "list_executions", **values):
                yield from map(_execution, page["executions"])

    # ------------------------------------------------------------ rules and schedules

    def _target(self, machine: str) -> dict[str, str]:
        """Return the state machine as the target of a rule or a schedule, without parameters."""
        return {
            "Arn": self.account.machine_arn(machine),
            "RoleArn": self._settings.needed(
                "events_role", "The role with which EventBridge starts flows"
            ),
            "Input": json.dumps({"Parameters": "{}"}),
        }

    def put_rule(self, rule: str, machine: str, what: Ticks | Events) -> None:
        """Create or replace a rule that starts the state machine at times in UTC, or on events.

        Args:
            rule: The name of the rule.
            machine: The name of the state machine.
            what: A schedule in UTC, or a pattern of events.

        Raises:
            AwsError: If AWS refuses the rule or its target.
        """
        target = {"Id": "aflow", **self._target(machine)}
        if isinstance(what, Ticks):
            when = {"ScheduleExpression": what.expression}
        else:  # the event itself is the input of the execution
            when = {"EventPattern": json.dumps(what.pattern)}
            del target["Input"]
        about = f"What starts the flow of the state machine {machine} (aflow)."
        self.call("events", "put_rule", Name=rule, State="ENABLED", Description=about, **when)
        answer = self.call("events", "put_targets", Rule=rule, Targets=[target])
        if answer.get("FailedEntryCount"):
            raise AwsError(f"EventBridge refuses the target of rule {rule}: {answer}.")

    def disable_rule(self, rule: str) -> None:
        """Disable the rule, if it exists.

        Args:
            rule: The name of the rule.
        """
        self.try_call("events", "disable_rule", Name=rule)

    def delete_rule(self, rule: str) -> None:
        """Delete the rule and its targets, if it exists.

        Args:
            rule: The name of the rule.
        """
        found = self.try_call("events", "list_targets_by_rule", Rule=rule)
        if found is None:
            return
        # EventBridge does not delete a rule that still has targets.
        ids = [each["Id"] for each in found["Targets"]]
        if ids:
            self.try_call("events", "remove_targets", Rule=rule, Ids=ids)
        self.try_call("events", "delete_rule", Name=rule)

    def put_schedule(self, name: str, machine: str, ticks: Ticks) -> None:
        """Create or update a schedule in EventBridge Scheduler that starts the state machine.

        Args:
            name: The name of the schedule.
            machine: The name of the state machine.
            ticks: The schedule expression of AWS and the time zone.
        """
        values = {
            "Name": name,
            "ScheduleExpression": ticks.expression,
            "ScheduleExpressionTimezone": ticks.zone,
            "FlexibleTimeWindow": {"Mode": "OFF"},
            "State": "ENABLED",
            "Target": self._target(machine),
        }
        if self.try_call("scheduler", "update_schedule", **values) is None:
            self.call("scheduler", "create_schedule", **values)

    def delete_schedule(self, name: str) -> None:
        """Delete the schedule, if it exists.

        Args:
            name: The name of the schedule.
        """
        self.try_call("scheduler", "delete_schedule", Name=name)


def _execution(found: Any) -> StateMachineExecution:
    stopped = found.get("stopDate")
    return StateMachineExecution(
        found["executionArn"],
        found["executionArn"].rpartition(":")[2],
        found["status"],
        found["startDate"].timestamp(),
        None if stopped is None else stopped.timestamp(),
    )


# The production tokens with which a user has deployed, in a file next to the user's settings.


_log = logging.getLogger(__name__)


class Tokens:
    """The production tokens that are stored for one user, by the ARN of the state machine."""

    def __init__(self, file: ConfigFile) -> None:
        self._file = file

    @classmethod
    def of_user(cls) -> Tokens:
        """Return the production tokens that are stored for the user of this program."""
        home = looked_up("TOKEN_HOME")
        folder = expanded(home) if home else config_file().path.parent
        return cls(ConfigFile(folder / "production_tokens.json"))

    def remembered(self, machine: str) -> str | None:
        """Return the stored token of a state machine; None if there is none.

        Args:
            machine: The ARN of the state machine.
        """
        token = self._read().get(machine)
        return token if isinstance(token, str) else None

    def remember(self, machine: str, token: str) -> None:
        """Store the token of a state machine. If the file cannot be written, that is only logged,
        because the deployment has succeeded.

        Args:
            machine: The ARN of the state machine.
            token: The production token, which replaces an earlier one.
        """
        known = self._read()
        if known.get(machine) == token:
            return
        try:
            self._file.write({**known, machine: token})
        except InvalidSetting as error:
            _log.warning("The production token is not remembered: %s", error)

    def _read(self) -> dict[str, object]:
        try:
            return self._file.read() or {}
        except InvalidSetting as error:
            _log.warning("Production tokens are not remembered: %s", error)
            return {}


LONGEST_EXECUTION = 366 * 86400.0  # seconds: more than the limit of Step Functions
_ASKED = 20  # failed executions for which AWS is queried for the reason
LONGEST_INPUT = 6000  # bytes of parameters: a variable of a job, which has 8 KB for all variables


class Deployed(NamedTuple):
    """The result of `create`: the plan, whether the state machine is new, and its previous label;
    None if there was none."""

    plan: DeploymentPlan
    new_machine: bool
    before: Label | None


class StateMachineDeployer:
    """Deploys one flow, and manages its executions. All methods block.

    `records_in_store` is whether jobs record runs in the object store; known after `create` or
    `differences`."""

    def __init__(
        self, definition: FlowDefinition, settings: Settings, options: DeploymentOptions
    ) -> None:
        self._definition = definition
        self._settings = settings
        self._options = options
        self._known = AwsSettings.load()
        self._aws = Aws(self._known)
        self._tokens = Tokens.of_user()
        self.records_in_store = False
        self.flow = definition.name
        self.name = name_of(definition, options, settings.user, self._known)

    # ------------------------------------------------------------ create

    def definition_alone(self, token: str | None) -> str:
        """Return the definition of the state machine as JSON, without any request to AWS: all job
        queues are assumed to run on EC2.

        Args:
            token: The production token for the label; None for a placeholder.

        Raises:
            InvalidInput: If Step Functions cannot run the flow, or the token is malformed.
        """
        token = checked_token(token) if token else f"{self.name}-0-none"
        return self._unstored(self._aws.account, token, None)

    def _unstored(self, account: Account, token: str, owner: str | None) -> str:
        """Return the definition of the state machine without storing anything."""
        files = code_package.members(self._definition, self._settings.package_suffixes)
        data = code_package.pack(files)
        script = code_package.program_of(self._definition).place[1]
        code = Package(digest_of([data], len(data)), script, len(data))
        shipment, environments = self._shipment(), self._environments(None)
        return self._planned(account, code, token, owner, shipment, environments).definition

    def _account(self) -> Account:
        """Return the account, with the queues of this flow that run jobs on Fargate."""
        # The job that records a failure runs in the common queue.
        queues = {self._known.needed("queue", "The job queue of AWS Batch")}
        queues |= {queue_of(step, self._known) for step in self._definition.steps.values()}
        return self._aws.account._replace(fargate=frozenset(filter(self._aws.is_fargate, queues)))

    def _shipment(self) -> Shipment | None:
        targets = job_targets(self._definition, self._definition.steps, self._settings)
        return runtime_shipment(self._settings.cache / "wheels", SystemClock.now(), targets)

    def _environments(self, store: ObjectStore | None) -> EnvironmentShipment | None:
        """Return the environments of steps that request packages, and upload them if a store is
        given. Raises EnvironmentFailed, InvalidDecorator and MissingExtra."""
        if not asks(self._definition, self._settings.environment):
            return None
        settings = self._settings
        platforms = prepare.platforms_of(self._definition, self._definition.steps, settings)
        locks = prepare.locks_of(self._definition, settings.environment, platforms=platforms)
        python = prepare.job_python(settings)
        return transport.ship(locks, store, SystemClock.now(), prepare.to_log, python)

    def _planned(
        self,
        account: Account,
        code: Package,
        token: str,
        owner: str | None,
        shipment: Shipment | None,
        environments: EnvironmentShipment | None,
    ) -> DeploymentPlan:
        return planning.plan(
            self._definition,
            self._options,
            self._settings,
            self._known,
            account,
            code,
            token,
            owner,
            in_store=self.records_in_store,
            shipped=shipment and shipment.variables(self._settings.storage_url),
            environments=environments and environments.of_steps,
        )

    def create(
        self,
        *,
        authorize: str | None = None,
        new_token: str | None = None,
        generate: bool = False,
        log_history: bool = False,
    ) -> Deployed:
        """Deploy the flow, or a new version of it.

        Args:
            authorize: The production token of another user's deployment; None for your own.
            new_token: The token to set; None for the present one, or a new one for a new flow.
            generate: Whether to generate a new token.
            log_history: Whether to send the history of executions to CloudWatch Logs.

        Returns:
            What was deployed.

        Raises:
            InvalidInput: If the flow cannot be deployed, or belongs to another user.
            AwsError: If AWS refuses a request or does not respond.
            StorageError: If the datastore does not respond.
        """
        there = self._aws.machine(self.name)
        token = self._token(there, authorize, new_token, generate=generate)
        before = there.label if there is not None else None
        # A new token makes this user the owner; the old token is no longer accepted.
        owner = before.owner if before is not None and before.token == token else None
        account = self._account()
        needs_s3(self._settings.storage_url)
        self._check_metadata()
        store = open_store(self._settings.storage_url)
        code = code_package.store(
            self._definition, BlobStore(store, durable=True), self._settings.package_suffixes
        )
        shipment, environments = self._shipment(), self._environments(store)
        needed = [code.key]
        for each in (shipment, environments):
            needed += each.blobs if each is not None else ()
        self._keep(store, needed)  # before anything refers to these blobs
        if shipment is not None:
            shipment.put(store, SystemClock.now())
        made = self._planned(account, code, token, owner, shipment, environments)
        store.put(spec_name(made.spec_key), [made.spec])
        for job in made.jobs:
            self._aws.register(job)
        self._aws.put_machine(self.name, made.definition, log_history=log_history)
        self._start_by(made)
        self._tokens.remember(self._arn, token)
        if not self._has_running():
            self._keep(store, needed, only=True)
        return Deployed(made, there is None, before)

    def _keep(self, store: ObjectStore, blobs: Sequence[str], *, only: bool = False) -> None:
        """Declare the blobs that the state machine needs (its code, the shipped aflow) as a root,
        so that `gc` keeps them. Unless `only`, also keep those of earlier versions, which may still
        have running executions."""
        name = self._root()
        before = None if only else roots.declared(store, name)
        former = () if before is None else before.blobs
        about = f"the state machine {self.name}, of flow {self.flow}"
        roots.declare(store, name, roots.GcRoot(tuple(dict.fromkeys([*blobs, *former])), about))

    def _root(self) -> str:
        return roots.root_name("deployments", self._aws.account.machine_arn(self.name))

    def _has_running(self) -> bool:
        return next(self._aws.executions(self.name, ["RUNNING"]), None) is not None

    def _check_metadata(self) -> None:
        """Check that the metadata store responds, and determine where jobs record runs: in the
        object store if the metadata service is one of Metaflow, which cannot store aflow's
        records."""
        with closing(open_metadata(self._settings.metadata_url)) as metadata:
            self.records_in_store = isinstance(metadata, RegisteringMetadata)
            metadata.run(self.flow, "none")

    def _token(
        self, there: StateMachine | None, authorize: str | None, new: str | None, *, generate: bool
    ) -> str:
        """Return the token for the new version. Raises InvalidInput if the user is not
        authorized."""
        label = None if there is None else self._ours(there, authorize, "change it")
        if new is not None:
            return checked_token(new)
        if label is None or generate:
            return planning.token_for(self.name, label and label.token)
        return label.token

    @property
    def _arn(self) -> str:
        return self._aws.account.machine_arn(self.name)

    def _ours(self, machine: StateMachine, token: str | None, what: str) -> Label:
        if machine.label is None:
            raise InvalidInput(
                f"The state machine {self.name} was not made by aflow, and is left as it is: "
                "deploy the flow under another name (--name)."
            )
        # A token may be given as its namespace, `production:TOKEN`.
        given = None if token is None else token.removeprefix("production:")
        known = [given or self._tokens.remembered(self._arn)]
        authorized(self.name, machine.label, self._settings.user, known, what)
        if given == machine.label.token:
            self._tokens.remember(self._arn, given)
        return machine.label

    def _start_by(self, made: DeploymentPlan) -> None:
        """Create the schedule and the rules of the flow's decorators, and remove or disable the
        others of this state machine."""
        ticks, events = made.ticks, made.events
        if ticks is not None and ticks.zone is not None:
            self._aws.put_schedule(rule_name(self.name), self.name, ticks)
        else:
            self._aws.delete_schedule(rule_name(self.name))
        if ticks is not None and ticks.zone is None:
            self._aws.put_rule(rule_name(self.name), self.name, ticks)
        else:
            self._aws.disable_rule(rule_name(self.name))
        if events is not None:
            self._aws.put_rule(rule_name(self.name, "events"), self.name, events)
        else:
            self._aws.disable_rule(rule_name(self.name, "events"))

    def differences(self) -> tuple[str, str]:
        """Return the deployed definition ("" if there is none), and the one that `create` would
        deploy."""
        there = self._aws.machine(self.name)
        self._check_metadata()
        label = there and there.label
        token = label.token if label else f"{self.name}-0-none"
        planned = self._unstored(self._account(), token, label.owner if label else None)
        return _readable(there.definition) if there else "", _readable(planned)

    # ------------------------------------------------------------ executions

    def machine(self) -> StateMachine:
        """Return the deployed state machine.

        Raises:
            NotFound: If the flow is not deployed.
        """
        found = self._aws.machine(self.name)
        if found is None:
            raise NotFound(
                f"{self._definition.name} is not deployed (there is no state machine {self.name}): "
                "deploy it with `step-functions create`."
            )
        return found

    def trigger(self, parameters: Mapping[str, Any]) -> StateMachineExecution:
        """Start a run.

        Args:
            parameters: The values of the parameters, by name. A ConvertedValue is replaced by the
                value that it was made of, because the run converts it again.

        Returns:
            The execution that was started.

        Raises:
            InvalidInput: If the parameters are too large.
        """
        self.machine()
        declared = self._definition.parameters
        text = json.dumps(
            {name: unconverted(declared.get(name), value) for name, value in parameters.items()}
        )
        if len(text.encode()) > LONGEST_INPUT:
            raise InvalidInput(
                f"The parameters have {len(text.encode())} bytes, and a job of AWS Batch can be "
                f"given {LONGEST_INPUT}: put what is large into the datastore, and give its name."
            )
        return self._aws.start(self.name, {"Parameters": text})

    def executions(self, states: Sequence[str]) -> list[StateMachineExecution]:
        """Return the executions in one of these states. Raises NotFound if the flow is not
        deployed.

        Args:
            states: The states of executions; empty for all.
        """
        self.machine()
        return [*self._aws.executions(self.name, states)]

    def reasons(self, executions: Sequence[StateMachineExecution]) -> dict[str, str]:
        """Return the reasons why runs did not succeed, by run id: from their records, else from
        AWS. Runs that failed before a job could record them are recorded first.

        Args:
            executions: Executions of this state machine; those that are running or have succeeded
                are skipped.
        """
        ended = [e for e in executions if e.status in ("FAILED", "TIMED_OUT", "ABORTED")]
        if not ended:
            return {}
        found: dict[str, str] = {}
        unrecorded.look(self._settings, self.flow)
        try:
            with closing(open_records(self._settings)) as metadata:
                states = [RunState.FAILED, RunState.CANCELLED]
                since = min(each.started_at for each in ended) - 60
                runs = metadata.runs(self.flow, states=states, since=since)
                found = {run.run: run.reason for run in runs}
        except (MetadataError, StorageError) as error:
            _log.warning("Reasons are those of AWS alone: %s", error)
        for each in [each for each in ended if each.run not in found][:_ASKED]:
            name, cause = self._aws.why(each)
            failure = {"Error": name, "Cause": cause}
            found[each.run] = unrecorded.why(failure, partial(last_lines, self._aws))
        return found

    def _execution(self, run: str) -> StateMachineExecution:
        found = self._aws.execution(self.name, run.removeprefix("sfn-"))
        if found is None or not run.startswith("sfn-"):
            raise NotFound(
                f"{self.name} has no run {run!r}: `step-functions list-runs` shows those that it "
                "has."
            )
        return found

    def terminate(self, run: str, authorize: str | None, clock: Clock) -> StateMachineExecution:
        """Cancel a run by stopping its execution, and record its end. If the execution has ended
        without a record of that, only record the end.

        Args:
            run: The id of the run: `sfn-` and the name of the execution.
            authorize: The production token of another user's deployment; None for your own.
            clock: The source of the time.

        Returns:
            The execution, as it was before it was stopped.

        Raises:
            InvalidInput: If the end of the run is already recorded.
        """
        self._ours(self.machine(), authorize, "stop its runs")
        execution = self._execution(run)
        user = self._settings.user
        if execution.status == "RUNNING":
            self._aws.stop_execution(execution.arn, f"Terminated by {user}.")
            self._note_end(run, RunState.CANCELLED, f"The run was terminated by {user}.", clock)
        elif not self._note_end(run, *_end_in_aws(execution), clock):
            raise InvalidInput(f"{run} has ended already ({execution.status}).")
        return execution

    def _note_end(self, run: str, state: RunState, reason: str, clock: Clock) -> bool:
        """Record the end of the run. Returns False if it is recorded already, or the run is not."""
        with closing(open_records(self._settings)) as metadata:
            if metadata.run(self.flow, run) is None:
                return False  # its first job has not started
            records = Records.of(metadata, self.flow, run)
            if records.run.state in TERMINAL_RUN_STATES:
                return False
            records.end(state, reason, clock.now(), of_tasks=reason)
            return True

    def resume(self, run: str) -> StateMachineExecution:
        """Start a run that reuses the finished tasks of another one.

        Args:
            run: The id of a run that ended without success.

        Returns:
            The execution of the new run.

        Raises:
            InvalidInput: If the run is still running or has succeeded.
        """
        self.machine()
        execution = self._execution(run)
        if execution.status == "RUNNING":
            raise InvalidInput(f"{run} is still running: terminate it before it is resumed.")
        if execution.status == "SUCCEEDED":
            raise InvalidInput(f"{run} has succeeded: there is nothing to resume.")
        return self._aws.start(self.name, {"Parameters": "{}", "Origin": run})

    def delete(self, authorize: str | None, clock: Clock) -> None:
        """Delete the state machine, its rules and its schedule.

        Args:
            authorize: The production token of another user's deployment; None for your own.
            clock: The source of the time.
        """
        self._ours(self.machine(), authorize, "delete it")
        self._aws.delete_schedule(rule_name(self.name))
        for kind in ("", "events"):
            self._aws.delete_rule(rule_name(self.name, kind))
        running = self._has_running()
        self._aws.delete_machine(self.name)
        store, name = open_store(self._settings.storage_url), self._root()
        root = roots.declared(store, name)
        if running and root is not None:  # running executions continue, and need their code
            roots.declare(store, name, root._replace(until=clock.now() + LONGEST_EXECUTION))
        else:
            roots.withdraw(store, name)


def _end_in_aws(execution: StateMachineExecution) -> tuple[RunState, str]:
    """Return the final state and the reason of a run whose execution has ended in AWS."""
    if execution.status == "ABORTED":
        return RunState.CANCELLED, "The execution was stopped in AWS."
    return RunState.FAILED, f"Step Functions ended the execution with {execution.status}."


def starts(made: DeploymentPlan) -> list[str]:
    """Return sentences about the schedule and the events that start the flow.

    Args:
        made: The plan of the deployment, with its schedule and its events.
    """
    sentences = []
    if isinstance(made.ticks, Ticks):
        sentences.append(
            f"It runs by the schedule {made.ticks.expression} ({made.ticks.zone or 'UTC'})."
        )
    if made.events is not None:
        sentences.append(f"It runs on events such as {json.dumps(made.events.pattern)}.")
    return sentences


def _readable(definition: str) -> str:
    return json.dumps(json.loads(definition), indent=2)
