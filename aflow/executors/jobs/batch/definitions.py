"""Job definitions of AWS Batch for steps: pure functions of decorators and settings.

The name of a definition is a hash of its content. Therefore a flow that runs or is deployed again
registers nothing new, and steps with equal requirements share a definition.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from aflow._core.settings import Settings, switched_on
from aflow._core.version import __version__
from aflow.environments.shipping import command
from aflow.errors import InvalidInput, InvalidSetting
from aflow.executors.jobs.base import SubmittedJob, counted
from aflow.executors.jobs.batch.status import ENDED
from aflow.executors.jobs.options import (
    MARGIN,
    PROGRAM,
    PYTHON,
    StepOptions,
    as_json,
    with_registry,
)

if TYPE_CHECKING:
    from aflow.aws.client import AwsClient
    from aflow.aws.settings import AwsSettings
    from aflow.flow.definition import StepDefinition

LIMIT = 432_000  # seconds that a job may run without @timeout: five days
SHORTEST = 60  # seconds: the shortest timeout that Batch supports
CPU, MEMORY = 1.0, 4096.0  # MB; the defaults, also for @resources

Definition = dict[str, Any]


def definition_of(
    step: StepDefinition | None,
    settings: AwsSettings,
    environment: Mapping[str, str],
    program: Sequence[str],
    *,
    fargate: bool = False,
    attempt: int = 0,
) -> Definition:
    """Return the arguments of `register_job_definition` for an attempt of a step.

    Args:
        step: The step; None for a job without a step.
        settings: The settings of AWS Batch.
        environment: The environment variables of the container, by name.
        program: The module that the interpreter runs, and its arguments.
        fargate: Whether the queue runs jobs on Fargate, which needs other fields than EC2.
        attempt: The number of the attempt, from 0.

    Raises:
        InvalidSetting: If a required setting, such as the image or the role of jobs, is missing.
    """
    options = StepOptions(step, "batch", settings)
    needs = _resources(options, attempt)
    image = options.text("image") or settings.needed("image", "The image of jobs")
    properties: Definition = {
        "image": with_registry(image, settings.registry),
        "command": command(shlex.split(options.text("executable") or PYTHON), program),
        "jobRoleArn": options.text("iam_role")
        or settings.needed("job_role", "The role of jobs, which may read and write the bucket,"),
        "resourceRequirements": [{"type": kind, "value": each} for kind, each in needs.items()],
        "environment": [{"name": key, "value": environment[key]} for key in sorted(environment)],
    }
    properties |= _linux(options, fargate=fargate) | _volumes(options) | _logs(options, settings)
    if options.value("privileged"):
        properties["privileged"] = True
    definition: Definition = {
        "type": "container",
        "containerProperties": properties,
        "propagateTags": True,
    }
    execution_role = options.text("execution_role") or (fargate and settings.fargate_role)
    if execution_role:
        properties["executionRoleArn"] = execution_role
    if fargate:
        if not execution_role:
            raise InvalidSetting(
                "The queue runs jobs on Fargate, which needs a role to start them: set "
                "AFLOW_ECS_FARGATE_EXECUTION_ROLE."
            )
        definition["platformCapabilities"] = ["FARGATE"]
        assigned = (settings.public_ip or "ENABLED").upper()
        if assigned not in ("ENABLED", "DISABLED"):
            raise InvalidSetting(
                "AFLOW_BATCH_ASSIGN_PUBLIC_IP must be ENABLED or DISABLED, not "
                f"{settings.public_ip!r}."
            )
        properties["networkConfiguration"] = {"assignPublicIp": assigned}
        platform = options.text("platform") or Settings.load().job_platform
        if platform:
            from aflow.environments.solve import platform_named  # few steps set a platform

            machine = {"aarch64": "ARM64"}.get(platform_named(platform).partition("-")[0])
            properties["runtimePlatform"] = {
                "operatingSystemFamily": "LINUX", "cpuArchitecture": machine or "X86_64"
            }  # fmt: skip
        if size := options.whole("ephemeral_storage"):
            properties["ephemeralStorage"] = {"sizeInGiB": size}
    return _named(definition)


def gang_definition(definition: Definition, step: str) -> Definition:
    """Return the job definition for multi-node jobs, whose nodes start together.

    Args:
        definition: The definition for a job of one node.
        step: The name of the step, for the error.

    Raises:
        InvalidInput: If the queue runs jobs on Fargate, which has no multi-node jobs.
    """
    if "platformCapabilities" in definition:
        raise InvalidInput(
            f"Step {step} is a gang (num_parallel), and its queue runs jobs on Fargate, which has "
            "no jobs of several nodes: use a queue of EC2 machines."
        )
    nodes = {"targetNodes": "0:", "container": definition["containerProperties"]}
    return _named(
        {
            "type": "multinode",
            "nodeProperties": {"numNodes": 1, "mainNode": 0, "nodeRangeProperties": [nodes]},
            "propagateTags": True,
        }
    )


def _named(definition: Definition) -> Definition:
    text = json.dumps(definition, sort_keys=True)
    name = f"aflow_{hashlib.sha224(text.encode()).hexdigest()}"
    return {**definition, "jobDefinitionName": name}


def limit_of(step: StepDefinition | None, settings: AwsSettings, wait: float = 0.0) -> int:
    """Return the seconds after which Batch stops an attempt of the step's job.

    Args:
        step: The step; None for a job without a step.
        settings: The settings of AWS Batch.
        wait: Seconds that the attempt may wait in its container before it starts.

    Raises:
        InvalidSetting: If a setting is invalid; the error names its key, source and valid values.
    """
    timeout = step.decorator("timeout") if step else None
    if timeout is None:
        return StepOptions(step, "batch", settings).whole("runtime_limit") or LIMIT
    seconds: float = timeout.total_seconds + wait
    return max(SHORTEST, math.ceil(seconds) + MARGIN)


# ------------------------------------------------------------------ parts


def _resources(options: StepOptions, attempt: int) -> dict[str, str]:
    """Return CPUs, memory in MB and GPUs: the maximum of @batch and @resources."""
    if options.step is None:
        return {"VCPU": "1", "MEMORY": "2048"}
    cpus = options.most("cpu", attempt, unsaid=CPU) or CPU
    memory = options.most("memory", attempt, unsaid=MEMORY) or MEMORY
    needs = {"VCPU": f"{cpus:g}", "MEMORY": f"{memory:.0f}"}
    gpus = options.most("gpu", attempt)
    return {**needs, "GPU": f"{gpus:.0f}"} if gpus else needs


def _linux(options: StepOptions, *, fargate: bool) -> Definition:
    limits = {
        "sharedMemorySize": options.whole("shared_memory"),
        "maxSwap": options.whole("max_swap"),
        "swappiness": options.whole("swappiness"),
    }
    linux: Definition = {name: value for name, value in limits.items() if value is not None}
    accelerators = options.whole("inferentia") or options.whole("trainium") or 0
    devices = [f"/dev/neuron{each}" for each in range(accelerators)]
    devices += [f"/dev/infiniband/uverbs{each}" for each in range(options.whole("efa") or 0)]
    if devices:
        linux["devices"] = [
            {"hostPath": each, "containerPath": each, "permissions": ["READ", "WRITE"]}
            for each in devices
        ]
    size = options.whole("tmpfs_size")
    if options.value("use_tmpfs") or size:
        size = size or max(1, int((options.number("memory") or MEMORY) / 2))
        path = options.text("tmpfs_path") or "/aflow_temp"
        linux["tmpfs"] = [{"containerPath": path, "size": size, "mountOptions": ["mode=1777"]}]
    if linux and fargate:
        raise InvalidInput(
            f"The queue runs jobs on Fargate, which has no {', '.join(sorted(linux))}: use a queue "
            "of EC2 machines."
        )
    return {"linuxParameters": linux} if linux else {}


def _volumes(options: StepOptions) -> Definition:
    volumes: list[Definition] = []
    mounts: list[Definition] = []
    for number, path in enumerate(options.names("host_volumes")):
        volumes.append({"name": f"host-{number}", "host": {"sourcePath": path}})
        mounts.append({"sourceVolume": f"host-{number}", "containerPath": path, "readOnly": False})
    for number, (system, share) in enumerate(_shares(options).items()):
        configuration = {
            "fileSystemId": system,
            "rootDirectory": share.get("root_directory", "/"),
            "transitEncryption": "ENABLED",
        }
        volumes.append({"name": f"efs-{number}", "efsVolumeConfiguration": configuration})
        path = share.get("mount_point", f"/mnt/{system}")
        mounts.append({"sourceVolume": f"efs-{number}", "containerPath": path, "readOnly": False})
    return {"volumes": volumes, "mountPoints": mounts} if volumes else {}


def _shares(options: StepOptions) -> Mapping[str, Mapping[str, str]]:
    """Return the options of each EFS file system, by id."""
    shares = options.value("efs_volumes")
    if not isinstance(shares, Mapping):
        return {each: {} for each in options.names("efs_volumes")}
    if not all(isinstance(each, Mapping) for each in shares.values()):
        raise options.wrong("efs_volumes", "ids of file systems, each with a mapping of options")
    return shares


def _logs(options: StepOptions, settings: AwsSettings) -> Definition:
    driver = options.text("log_driver")
    if driver is None and settings.job_log_group is not None:
        own = {"awslogs-group": settings.job_log_group}
        return {"logConfiguration": {"logDriver": "awslogs", "options": own}}
    if driver is None:
        return {}
    given = options.value("log_options") or {}
    if not isinstance(given, Mapping):
        pairs = [each.partition(":") for each in options.names("log_options")]
        if not all(name and mark for name, mark, _ in pairs):
            raise options.wrong("log_options", "a mapping, or a list of NAME:VALUE")
        given = {name: value for name, _, value in pairs}
    return {"logConfiguration": {"logDriver": driver, "options": dict(given)}}


# Submission of the jobs of a step.


MOST = 10_000  # jobs of an array
MOST_DESCRIBED = 100  # jobs per call
LONGEST_NAME = 128  # the limit of AWS Batch for names of jobs and job definitions
# Parameters of a job, prefixed with `aflow.`.
MARK_NAMES = ("user", "flow_name", "run_id", "step_name")


class Mark(NamedTuple):
    """The user, flow and run of a job; stored in its parameters, by which it is found again."""

    user: str
    flow: str
    run: str

    def parameters(self, step: str) -> dict[str, str]:
        """Return the `parameters` that identify a job of the step as a job of aflow.

        Args:
            step: The name of the step.
        """
        marks = dict(zip(MARK_NAMES, (*self, step), strict=True)) | {"version": __version__}
        return {f"aflow.{name}": value for name, value in marks.items()}


class BatchStepJob(NamedTuple):
    """The properties shared by all jobs of a step. `limit` is the timeout of an attempt in seconds.
    The attempts of a gang are the nodes of one job."""

    step: str
    definition: Definition
    queue: str
    limit: int
    tags: Mapping[str, str]
    emit_tags: bool
    environment: Mapping[str, str]
    is_gang: bool = False


def own_queue_of(step: StepDefinition, settings: AwsSettings) -> str | None:
    """Return the queue of a step's jobs; None for the default queue.

    This is the queue that the step names, or the one for GPUs if the step needs them.

    Args:
        step: The step, with its decorators.
        settings: The settings of AWS Batch.
    """
    options = StepOptions(step, "batch")
    common = settings.gpu_queue if "GPU" in _resources(options, 0) else None
    return options.text("queue") or common


def queue_of(step: StepDefinition, settings: AwsSettings) -> str:
    """Return the queue of a step's jobs.

    This is the queue that the step names, the one for GPUs if the step needs them, or the default
    queue.

    Args:
        step: The step, with its decorators.
        settings: The settings of AWS Batch.

    Raises:
        InvalidSetting: If neither the step nor a setting names a queue.
    """
    return own_queue_of(step, settings) or settings.needed("queue", "The job queue of AWS Batch")


def step_job(
    step: StepDefinition,
    settings: AwsSettings,
    environment: Mapping[str, str],
    *,
    fargate: bool = False,
    is_gang: bool = False,
    attempt: int = 0,
) -> BatchStepJob:
    """Return the job of an attempt of a step.

    Args:
        step: The step, with its decorators.
        settings: The settings of AWS Batch.
        environment: The environment variables of all jobs, by name.
        fargate: Whether the step's queue runs jobs on Fargate.
        is_gang: Whether the attempts start together, on nodes that communicate with each other.
        attempt: The number of the attempt, from 0.

    Raises:
        InvalidSetting: If no queue, image or role is set, or a setting is invalid.
        InvalidInput: If a value of @batch is invalid.
    """
    options = StepOptions(step, "batch")
    definition = definition_of(step, settings, {}, PROGRAM, fargate=fargate, attempt=attempt)
    mounts = definition["containerProperties"].get("linuxParameters", {}).get("tmpfs")
    if mounts and options.value("tmpfs_tempdir"):
        environment = {**environment, "AFLOW_TEMPDIR": mounts[0]["containerPath"]}
    if is_gang:
        definition = gang_definition(definition, step.name)
    return BatchStepJob(
        step=step.name,
        definition=definition,
        queue=queue_of(step, settings),
        limit=limit_of(step, settings),
        tags={**_default_tags(settings), **options.mapping("aws_batch_tags")},
        emit_tags=switched_on("BATCH_EMIT_TAGS"),
        environment=environment,
        is_gang=is_gang,
    )


def submit_values(
    job: BatchStepJob, mark: Mark, name: str, size: int, environment: Mapping[str, str]
) -> dict[str, Any]:
    """Return the arguments of `submit_job` for `size` attempts of the step.

    Those of a gang are nodes; otherwise several attempts form an array.

    Args:
        job: The properties shared by all jobs of the step.
        mark: The user, flow and run.
        name: The unique name of the job.
        size: The number of attempts: the array's members, or the gang's nodes.
        environment: Additional environment variables, by name.
    """
    variables = {**job.environment, **environment}
    parameters = mark.parameters(job.step)
    tags = {**(parameters if job.emit_tags else {}), **job.tags}
    return {
        "jobName": name,
        "jobQueue": job.queue,
        "jobDefinition": job.definition["jobDefinitionName"],
        "parameters": parameters,
        # The run counts attempts; lost ones do not count.
        "retryStrategy": {"attempts": 1},
        "timeout": {"attemptDurationSeconds": job.limit},
        **_containers(job, size, variables),
        **({"tags": tags, "propagateTags": True} if tags else {}),
    }


def name_prefix(user: str, flow: str, run: str | None = None) -> str:
    """Return the prefix of the names of all jobs of a user's flow, or of one run of it.

    Args:
        user: The name of the user.
        flow: The name of the flow.
        run: The id of the run; None for all runs of the flow.
    """
    return valid_name("".join(f"{each}-" for each in (user, flow, run) if each), LONGEST_NAME - 40)


def _containers(job: BatchStepJob, size: int, variables: Mapping[str, str]) -> dict[str, Any]:
    """Return the number of containers and their environment variables."""
    over = {"environment": [{"name": key, "value": variables[key]} for key in sorted(variables)]}
    if job.is_gang:
        nodes = [{"targetNodes": "0:", "containerOverrides": over}]
        return {"nodeOverrides": {"numNodes": size, "nodePropertyOverrides": nodes}}
    array = {"arrayProperties": {"size": size}} if size > 1 else {}
    return {"containerOverrides": over, **array}


def job_name(mark: Mark, step: str, unique: str) -> str:
    """Return the unique name of a job, which ends with `unique`.

    Args:
        mark: The user, flow and run.
        step: The name of the step.
        unique: A text that is unique to the submission; it is never truncated.
    """
    text = f"{name_prefix(*mark)}{step}"
    return f"{valid_name(text, LONGEST_NAME - len(unique) - 1)}-{unique}"


def valid_name(text: str, length: int = LONGEST_NAME) -> str:
    """Return a text as a valid name of a job: truncated, with invalid characters replaced.

    Args:
        text: Any text, such as the names of a flow and a step.
        length: The maximum number of characters.
    """
    fitting = re.sub(r"[^A-Za-z0-9_-]", "-", text)
    return (fitting if fitting[:1].isalnum() else f"a{fitting}")[:length]


def _default_tags(settings: AwsSettings) -> dict[str, str]:
    if settings.default_tags is None:
        return {}
    tags = as_json(settings.default_tags)
    if not isinstance(tags, dict):
        raise InvalidSetting(
            'AFLOW_BATCH_DEFAULT_TAGS must be a JSON object such as {"team": "ads"}, not '
            f"{settings.default_tags!r}."
        )
    return {str(name): str(value) for name, value in tags.items()}


# Jobs of runs in AWS Batch: find them by their parameters.


UNFINISHED = ("SUBMITTED", "PENDING", "RUNNABLE", "STARTING", "RUNNING")


def unfinished(
    calls: AwsClient, queues: Iterable[str], user: str | None, flow: str | None, run: str | None
) -> list[SubmittedJob]:
    """Return the unfinished jobs of aflow in these queues, oldest first. Blocks.

    Args:
        calls: The clients of AWS.
        queues: The names of the job queues.
        user: The name of the user; None for all.
        flow: The name of the flow; None for all.
        run: The id of the run; None for all.

    Raises:
        AwsError: If AWS rejects a call.
    """
    ids = [id for queue in queues for id in _candidates(calls, queue, user, flow, run)]
    found = []
    for at in range(0, len(ids), MOST_DESCRIBED):
        for described in calls.described(ids[at : at + MOST_DESCRIBED]):
            marks = described.get("parameters") or {}
            owner, *path = (marks.get(f"aflow.{name}", "") for name in MARK_NAMES)
            asked = zip((user, flow, run), (owner, *path), strict=False)
            fits = all(expected in (None, there) for expected, there in asked)
            # It may have ended in the meantime, or not belong to a run of aflow.
            if fits and described["status"] not in ENDED and all(path[:2]):
                found.append(_submitted(described, owner, "/".join(path)))
    return sorted(found, key=lambda job: job.created_at)


def _candidates(
    calls: AwsClient, queue: str, user: str | None, flow: str | None, run: str | None
) -> Iterator[str]:
    """Yield the ids of jobs that may match."""
    if user is not None and flow is not None:
        # With a name filter, AWS lists jobs in all states.
        prefix = name_prefix(user, flow, run)
        filters = [{"name": "JOB_NAME", "values": [f"{prefix}*"]}]
        listed = calls.listed(jobQueue=queue, filters=filters)
        yield from (each["jobId"] for each in listed if each["status"] not in ENDED)
        return
    for status in UNFINISHED:
        for each in calls.listed(jobQueue=queue, jobStatus=status):
            yield each["jobId"]


def _submitted(described: dict[str, Any], user: str, path: str) -> SubmittedJob:
    status = described["status"]
    summary = (described.get("arrayProperties") or {}).get("statusSummary") or {}
    states = {state.lower(): summary[state] for state in sorted(summary)}
    return SubmittedJob(
        id=described["jobId"],
        shown=described["jobId"],
        user=user,
        path=path,
        state=counted(states) or status.lower(),
        created_at=(described.get("createdAt") or 0) / 1000,
    )
