"""Plan a deployment of a flow: all its parts as a value, computed without any request to AWS."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping
from string import ascii_lowercase
from typing import TYPE_CHECKING, Any, NamedTuple

from aflow._core import cron
from aflow._core.secret import revealed
from aflow.aws.settings import needs_key_secret, needs_s3, passed_on
from aflow.environments.prepare import job_python
from aflow.errors import InvalidInput, InvalidSetting
from aflow.executors.jobs.batch.definitions import (
    Definition,
    definition_of,
    limit_of,
    own_queue_of,
    queue_of,
)
from aflow.executors.jobs.options import StepOptions
from aflow.executors.local.executor import needs_of
from aflow.flow.current import current
from aflow.metadata.object_store import SCHEME as STORE
from aflow.scheduler.retry import policies_from, policy_of
from aflow.step_functions.machine import LARGEST, JobOf, Where, checked_target, compiled
from aflow.step_functions.names import DISTRIBUTED_ITEMS, LETTERS, Label, machine_name, next_token
from aflow.step_functions.spec import ENDED, NOBODY, DeploymentSpec, spec_key
from aflow.task.program import for_later, request_of

if TYPE_CHECKING:
    from aflow._core.settings import Settings
    from aflow.aws.settings import Account, AwsSettings
    from aflow.environments.lock import Shipped
    from aflow.flow.definition import FlowDefinition, StepDefinition
    from aflow.task.code_package import Package

# The schedules and events that start executions, in the form of EventBridge: pure functions.


class Ticks(NamedTuple):
    """A schedule. Without a time zone it is an EventBridge rule, in UTC; with a time zone it is a
    schedule in EventBridge Scheduler, because rules do not support time zones."""

    expression: str
    zone: str | None


class Events(NamedTuple):
    """The events that start the flow: the pattern of a rule, the mapping of parameters to fields of
    the event, by the name of the event, and the flows whose end triggers it, by state machine."""

    pattern: dict[str, Any]
    parameters: dict[str, dict[str, str]]
    flows: dict[str, str]


def ticks_of(definition: FlowDefinition) -> Ticks | None:
    """Return the flow's schedule; None if it has none.

    Args:
        definition: The flow: its class, steps, parameters and decorators.

    Raises:
        InvalidInput: If AWS does not support the schedule.
    """
    found: Any = _one(definition, "schedule")
    if found is None or found.schedule is None:
        return None
    if found.timezone is not None:
        cron.zone_of(found.timezone)
    return Ticks(f"cron({aws_cron(found.schedule)})", found.timezone)


def aws_cron(text: str) -> str:
    """Return a cron expression in the syntax of AWS: six fields, with `?` for the days of the month
    or for the days of the week.

    Args:
        text: An expression with the five fields of cron, or the six fields of AWS.

    Raises:
        InvalidInput: If the expression is malformed, or restricts both the days of the month and
            the days of the week, which AWS does not allow.
    """
    cron.parse(text)
    fields = cron.fields_of_aws(text)
    days, weekdays = fields[2], fields[4]
    if "?" not in (days, weekdays):
        if weekdays == "*":
            fields[4] = "?"
        elif days == "*":
            fields[2] = "?"
        else:
            raise InvalidInput(
                f"@schedule: cron={text!r} names days of the month and days of the week, which AWS "
                "cannot do: put a ? for one of them."
            )
    elif days == weekdays:
        raise InvalidInput(f"@schedule: cron={text!r} names no days: only one of them may be ?.")
    return " ".join(fields)


def events_of(
    definition: FlowDefinition, machine_arn: Callable[[str], str], prefix: str | None
) -> Events | None:
    """Return the events that start the flow; None if it has neither @trigger nor
    @trigger_on_finish.

    Args:
        definition: The flow: its class, steps, parameters and decorators.
        machine_arn: Returns the ARN of a state machine by its name.
        prefix: The configured prefix of the names of state machines (`machine_prefix`); None for
            none.

    Raises:
        InvalidInput: If EventBridge cannot start a flow on such events.
    """
    event: Any = _one(definition, "trigger")
    ended: Any = _one(definition, "trigger_on_finish")
    if event is not None and ended is not None:
        raise InvalidInput(
            f"Flow {definition.name} has @trigger and @trigger_on_finish: EventBridge starts a "
            "flow on one event, and cannot wait for both."
        )
    if event is not None:
        return _by_name(definition.name, event.triggers)
    if ended is not None:
        return _by_end(definition.name, ended.triggers, machine_arn, prefix)
    return None


def _one(definition: FlowDefinition, kind: str) -> Any:
    return next(iter(definition.flow_decorators(kind)), None)


def _single(flow: str, decorator: str, triggers: tuple[Any, ...]) -> Mapping[str, Any]:
    if len(triggers) > 1:
        raise InvalidInput(
            f"Flow {flow}: {decorator} names {len(triggers)} events, all of which are to be waited "
            "for: EventBridge starts a flow on one event. Name one."
        )
    trigger = _called(triggers[0])
    if isinstance(trigger, str):
        trigger = {"name": trigger}
    if not isinstance(trigger, Mapping):
        raise InvalidInput(f"Flow {flow}: {decorator} gave {trigger!r}, which is not an event.")
    return trigger


def _by_name(flow: str, triggers: tuple[Any, ...]) -> Events:
    trigger = _single(flow, "@trigger", triggers)
    name, parameters = (_called(trigger.get(each)) for each in ("name", "parameters"))
    if not isinstance(name, str):
        raise InvalidInput(f"Flow {flow}: the name of the event of @trigger is {name!r}.")
    return Events({"detail-type": [name]}, {name: dict(parameters or {})}, {})


def _called(value: Any) -> Any:
    return value() if callable(value) else value


def _by_end(
    flow: str, triggers: tuple[Any, ...], machine_arn: Callable[[str], str], prefix: str | None
) -> Events:
    trigger = _single(flow, "@trigger_on_finish", triggers)
    name = trigger.get("flow") or trigger["name"]
    project = None
    if "project" in trigger:
        project = ".".join(filter(None, [trigger["project"], trigger.get("branch"), name]))
    machine = machine_name(name, project, prefix, None)
    detail = {"status": ["SUCCEEDED"], "stateMachineArn": [machine_arn(machine)]}
    pattern = {"source": ["aws.states"], "detail-type": [ENDED], "detail": detail}
    return Events(pattern, {}, {machine: name})


# The jobs of a state machine.


PROGRAM = ("aflow", "_state")


def job_of(step: StepDefinition | None, definition: str, settings: AwsSettings) -> JobOf:
    """Return the parameters with which the state machine submits a step's job.

    Args:
        step: The step; None for the job that records failures.
        definition: The name of the job definition.
        settings: The AWS settings, with the default job queue.
    """
    if step is None:
        return JobOf(definition, 2, limit_of(None, settings))
    policy = policy_of(step)
    # The job waits for the backoff of @retry in its container, so the timeout includes it.
    wait = policy.wait_before(policy.retries) if policy.retries else 0.0
    return JobOf(
        definition=definition,
        retries=policy.retries,
        limit=limit_of(step, settings, wait),
        catches=policy.catches,
        queue=own_queue_of(step, settings),
        tags=StepOptions(step, "batch").mapping("aws_batch_tags"),
    )


class DeploymentOptions(NamedTuple):
    """The options of `step-functions create`."""

    name: str | None = None
    tags: tuple[str, ...] = ()
    batch_tags: tuple[tuple[str, str], ...] = ()
    namespace: str | None = None
    max_workers: int = 100
    timeout: int | None = None
    distributed: bool = False
    compress: bool = False
    branch: str | None = None
    production: bool | None = None
    decospecs: tuple[str, ...] = ()
    on_error: str | None = None
    on_success: str | None = None


class DeploymentPlan(NamedTuple):
    """A deployment: the state machine with its definition as JSON, the job definitions, the encoded
    spec for jobs with its key, and the schedule and events that start the flow."""

    name: str
    label: Label
    definition: str
    jobs: tuple[Definition, ...]
    spec_key: str
    spec: bytes
    ticks: Ticks | None
    events: Events | None


def name_of(
    definition: FlowDefinition, options: DeploymentOptions, user: str, settings: AwsSettings
) -> str:
    """Return the name of the flow's state machine.

    Args:
        definition: The flow: its class, steps, parameters and decorators.
        options: The options of `step-functions create`.
        user: The user who deploys, for the branch of a flow with @project.
        settings: The AWS settings, with `machine_prefix`.

    Raises:
        InvalidInput: If the name or the branch is invalid.
    """
    full = _place(definition, options, user).get("project_flow_name")
    return machine_name(definition.name, full, settings.machine_prefix, options.name)


def _place(definition: FlowDefinition, options: DeploymentOptions, user: str) -> dict[str, Any]:
    """Return the attributes of `current` for the flow's place in its project; empty without
    @project."""
    project = definition.project
    if project is not None:
        return project.place(definition.name, user, options.branch, options.production)
    if options.branch or options.production:
        raise InvalidInput(f"Flow {definition.name} is in no project: branches need @project.")
    return {}


def token_for(name: str, before: str | None) -> str:
    """Return a new production token.

    Args:
        name: The name of the state machine, with which the token starts.
        before: The previous token, whose number is incremented; None for the first one.
    """
    return next_token(name, before, [secrets.choice(ascii_lowercase) for _ in range(LETTERS)])


def plan(
    definition: FlowDefinition,
    options: DeploymentOptions,
    settings: Settings,
    aws: AwsSettings,
    account: Account,
    code: Package,
    token: str,
    owner: str | None = None,
    *,
    in_store: bool = False,
    shipped: Mapping[str, str] | None = None,
    environments: Mapping[str, Shipped] | None = None,
) -> DeploymentPlan:
    """Return the plan for the deployment of a flow.

    Args:
        definition: The flow: its class, steps, parameters and decorators.
        options: The options of `step-functions create`.
        settings: The settings of the program that deploys; runs use its datastore and metadata.
        aws: The AWS settings: roles, queues, images.
        account: The account and region in which the flow is deployed.
        code: The code package, already stored.
        token: The production token, which is part of the state machine's label.
        owner: The owner of the state machine; None for the user who deploys it.
        in_store: Whether jobs record runs in the object store, because the metadata service is one
            of Metaflow, in which runs are only registered.
        shipped: The environment variables with which jobs find the shipped aflow; None for none.
        environments: The shipped environments, by step; None for none.

    Raises:
        InvalidInput: If Step Functions cannot run the flow.
        InvalidSetting: If a role, a queue or an image is not configured.
    """
    name = name_of(definition, options, settings.user, aws)
    _check_steps(definition)
    # Functions that return names of events may read the project from `current`.
    token_of_current = current._set(_place(definition, options, settings.user))
    try:
        events = events_of(definition, account.machine_arn, aws.machine_prefix)
    finally:
        current._reset(token_of_current)
    spec = _spec(definition, options, settings, name, code, token, events, environments).encode()
    key = spec_key(spec)
    storage = settings.storage_url
    variables = _variables(settings, aws, account, key, storage, in_store=in_store)
    variables |= shipped or {}
    steps: dict[Any, Any] = {**definition.steps, None: None}
    policies = policies_from(definition)
    common = aws.needed("queue", "The job queue of AWS Batch")
    queues = {each: queue_of(step, aws) if step else common for each, step in steps.items()}
    made: dict[Any, Definition] = {
        each: definition_of(
            step,
            aws,
            variables,
            PROGRAM,
            fargate=queues[each] in account.fargate,
            # All attempts share a definition, so resources that grow with the attempt are those of
            # the last one.
            attempt=policies[each].retries if step else 0,
        )
        for each, step in steps.items()
    }
    jobs = {
        each: job_of(step, made[each]["jobDefinitionName"], aws) for each, step in steps.items()
    }
    bucket, prefix = _bucket(storage)
    where = Where(
        partition=account.partition,
        queue=common,
        bucket=bucket,
        prefix=f"{prefix}deploy/results/{definition.name}",
        default=jobs.pop(None),
        max_workers=options.max_workers,
        timeout=options.timeout,
        distributed=options.distributed,
        tags=dict(options.batch_tags),
        on_error=checked_target("--notify-on-error", options.on_error),
        on_success=checked_target("--notify-on-success", options.on_success),
        run_tags=sorted({*options.tags, f"production:{token}"}),
    )
    label = Label(definition.name, owner or settings.user, token)
    machine = compiled(definition.graph, jobs, where, label.comment(key))
    return DeploymentPlan(
        name=name,
        label=label,
        definition=as_text(machine, compress=options.compress),
        jobs=tuple({each["jobDefinitionName"]: each for each in made.values()}.values()),
        spec_key=key,
        spec=spec,
        ticks=ticks_of(definition),
        events=events,
    )


def as_text(machine: dict[str, Any], *, compress: bool = False) -> str:
    """Return the definition as JSON, indented unless it would exceed the size limit.

    Args:
        machine: The definition, from `compiled`.
        compress: Whether to omit all white space in any case.

    Raises:
        InvalidInput: If the definition is larger than Step Functions allows.
    """
    text = json.dumps(machine, indent=None if compress else 2)
    small = json.dumps(machine, separators=(",", ":"))
    if compress or len(text) > LARGEST:
        text = small
    if len(text) > LARGEST:
        raise InvalidInput(
            f"The state machine has {len(text)} bytes, and Step Functions takes {LARGEST}: divide "
            "the flow into several, one started by the end of the other (@trigger_on_finish)."
        )
    return text


def _check_steps(definition: FlowDefinition) -> None:
    for name, step in definition.steps.items():
        for other in ("kubernetes", "parallel"):
            if step.decorator(other) is not None:
                raise InvalidInput(
                    f"Step {name} has @{other}, which Step Functions cannot run: its steps are "
                    "jobs of AWS Batch, each on one machine."
                )


def _spec(
    definition: FlowDefinition,
    options: DeploymentOptions,
    settings: Settings,
    name: str,
    code: Package,
    token: str,
    events: Events | None,
    environments: Mapping[str, Shipped] | None,
) -> DeploymentSpec:
    namespace = f"production:{token}" if options.namespace is None else options.namespace or None
    policies = {step: each.as_dict() for step, each in policies_from(definition).items()}
    return DeploymentSpec(
        flow=definition.name,
        machine=name,
        request=for_later(request_of(definition, options.decospecs), code.script),
        needs=needs_of(definition),
        graph=definition.graph.as_dict(),
        policies=policies,
        code=code.key,
        script=code.script,
        python=job_python(settings),
        user=settings.user,
        namespace=namespace,
        tags=tuple(sorted({*options.tags, f"production:{token}"})),
        branch=options.branch,
        production=bool(options.production),
        token=token,
        distributed=options.distributed,
        max_num_splits=DISTRIBUTED_ITEMS,
        max_log_size=settings.max_log_size << 20,
        events=events.parameters if events else {},
        flows=events.flows if events else {},
        previews=settings.previews,
        environments=environments or {},
    )


def _variables(
    settings: Settings,
    aws: AwsSettings,
    account: Account,
    key: str,
    storage: str,
    *,
    in_store: bool,
) -> dict[str, str]:
    """Return the environment variables of all jobs."""
    return {
        **passed_on(),
        "AWS_DEFAULT_REGION": account.region,
        "AFLOW_SFN_DEPLOYMENT": key,
        "AFLOW_SFN_STORAGE": storage,
        "AFLOW_SFN_METADATA": metadata_of_jobs(settings, aws, in_store=in_store),
        "AFLOW_USER": NOBODY,
    }


def metadata_of_jobs(settings: Settings, aws: AwsSettings, *, in_store: bool) -> str:
    """Return the URL of the metadata store for jobs.

    Args:
        settings: The settings of the program that deploys.
        aws: The AWS settings; `internal_url` is the URL of the metadata service for jobs.
        in_store: Whether jobs record runs in the datastore.

    Raises:
        InvalidSetting: If jobs cannot access the metadata store.
    """
    if in_store:
        service = aws.internal_url if settings.metadata == "service" else None
        return f"{STORE}{settings.storage_url}#{service or settings.metadata_url}"
    if settings.metadata == "service" and aws.internal_url is not None:
        needs_key_secret(aws.internal_url)
        return aws.internal_url
    url = settings.metadata_url
    needs_key_secret(url)
    if not url.startswith(("http://", "https://", "postgres://", "postgresql://")):
        raise InvalidSetting(
            "Jobs cannot reach metadata of this machine: use a metadata service (set "
            "AFLOW_DEFAULT_METADATA=service and AFLOW_SERVICE_URL)."
        )
    if revealed(url) != url and url.startswith("postgres"):
        raise InvalidSetting(
            "The URL of the database has a password, which would stand in the definitions of jobs: "
            "use a metadata service, or an URL without (a role of the database that trusts them)."
        )
    return url


def _bucket(storage: str) -> tuple[str, str]:
    """Return the bucket and the prefix of the store; the prefix is empty or ends with a slash."""
    needs_s3(storage)
    bucket, _, prefix = storage.removeprefix("s3://").partition("?")[0].partition("/")
    prefix = prefix.strip("/")
    return bucket, f"{prefix}/" if prefix else ""
