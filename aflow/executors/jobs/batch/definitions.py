"""Definitions of the jobs of AWS Batch that run steps: pure functions of what decorators say.

A definition is named by its content, so that a flow that runs or is deployed again registers
nothing new, and steps that need the same share one.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from aflow._core.settings import Settings
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
SHORTEST = 60  # seconds: Batch stops no job earlier
CPU, MEMORY = 1.0, 4096.0  # MB; also what @resources asks for where it does not say it

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
    """Return what `register_job_definition` takes for an attempt of a step; None is what belongs to
    no step. `program` is the module that jobs run, with its arguments.

    Args:
        step: The step; None for the job that belongs to no step.
        settings: The settings of the job system.
        environment: The environment variables of the container, by name.
        program: The module that the interpreter runs, and its arguments.
        fargate: Whether the queue runs jobs on Fargate, which takes other fields than EC2.
        attempt: The number of the attempt, from 0.

    Raises:
        InvalidSetting: No image, or no role for jobs, is set.
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
            from aflow.environments.solve import platform_named  # few say any

            machine = {"aarch64": "ARM64"}.get(platform_named(platform).partition("-")[0])
            properties["runtimePlatform"] = {
                "operatingSystemFamily": "LINUX", "cpuArchitecture": machine or "X86_64"
            }  # fmt: skip
        if size := options.whole("ephemeral_storage"):
            properties["ephemeralStorage"] = {"sizeInGiB": size}
    return _named(definition)


def gang_definition(definition: Definition, step: str) -> Definition:
    """Return the job definition for jobs of several nodes, which start together.

    Args:
        definition: The definition for a job of one node.
        step: The name of the step, for the error.

    Raises:
        InvalidInput: Where the queue cannot run such jobs.
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
    """Return the seconds after which Batch stops an attempt of the step's job, which may `wait`
    before it begins.

    Args:
        step: The step; None for all steps.
        settings: The settings of the job system.
        wait: Seconds that the attempt may wait in its container before it begins.

    Raises:
        InvalidSetting: The value of a setting cannot be used; the error names the key, the place
            and what is allowed.
    """
    timeout = step.decorator("timeout") if step else None
    if timeout is None:
        return StepOptions(step, "batch", settings).whole("runtime_limit") or LIMIT
    return max(SHORTEST, math.ceil(timeout.total_seconds + wait) + MARGIN)


# ------------------------------------------------------------------ parts


def _resources(options: StepOptions, attempt: int) -> dict[str, str]:
    """CPUs, memory in MB and GPUs: the most of what @batch and @resources say."""
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
    """The file systems of EFS, and how each is mounted."""
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


# How the jobs of a step are submitted to AWS Batch.


MOST = 10_000  # jobs of an array
MOST_DESCRIBED = 100  # jobs of one call
LONGEST_NAME = 128  # characters that AWS Batch allows in names of jobs and job definitions
MARK_NAMES = ("user", "flow_name", "run_id", "step_name")  # parameters of a job, after `aflow.`
_TRUE_TEXTS = frozenset({"1", "true", "yes", "on"})


class Mark(NamedTuple):
    """Whose a job is; jobs say so by parameters, by which they are found again."""

    user: str
    flow: str
    run: str

    def parameters(self, step: str) -> dict[str, str]:
        """Return the `parameters` of a job of the step, by which jobs of aflow are recognised.

        Args:
            step: The name of the step.
        """
        marks = dict(zip(MARK_NAMES, (*self, step), strict=True)) | {"version": __version__}
        return {f"aflow.{name}": value for name, value in marks.items()}

    @property
    def prefix(self) -> str:
        """What the names of all jobs of the run begin with."""
        return name_prefix(self.user, self.flow, self.run)


class BatchStepJob(NamedTuple):
    """What all jobs of a step have in common. `limit` is in seconds, of an attempt. The attempts of
    a gang are nodes of one job."""

    step: str
    definition: Definition
    queue: str
    limit: int
    tags: Mapping[str, str]
    emit_tags: bool
    environment: Mapping[str, str]
    is_gang: bool = False


def own_queue_of(step: StepDefinition, settings: AwsSettings) -> str | None:
    """Return the queue of a step's jobs where that is another than the common one.

    Args:
        step: The step, with its decorators.
        settings: The settings of the job system.
    """
    options = StepOptions(step, "batch")
    common = settings.gpu_queue if "GPU" in _resources(options, 0) else None
    return options.text("queue") or common


def queue_of(step: StepDefinition, settings: AwsSettings) -> str:
    """Return the queue of a step's jobs: the one that it names, that of GPUs for a step that needs
    some, or the common one.

    Args:
        step: The step, with its decorators.
        settings: The settings of the job system.

    Raises:
        InvalidSetting: Neither the step nor a setting names a queue.
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
    """Return how an attempt of a step is submitted; `environment` are the variables of all jobs.

    Args:
        step: The step, with its decorators.
        settings: The settings of the job system.
        environment: The environment variables, by name.
        fargate: Whether the step's queue runs jobs on Fargate.
        is_gang: Whether the attempts start together, on nodes that talk to each other.
        attempt: The number of the attempt, from 0.

    Raises:
        InvalidSetting: A queue, an image or a role is not set.
        InvalidInput: Batch does not take a value of @batch.
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
        emit_tags=(settings.emit_tags or "").lower() in _TRUE_TEXTS,
        environment=environment,
        is_gang=is_gang,
    )


def submit_values(
    job: BatchStepJob, mark: Mark, name: str, size: int, environment: Mapping[str, str]
) -> dict[str, Any]:
    """Return what `submit_job` takes for this many attempts of the step: those of a gang are nodes,
    others an array where there are more than one.

    Args:
        job: What all jobs of the step have in common.
        mark: What the jobs of this run are recognised by.
        name: The name of the job, which is unique.
        size: How many attempts: the array's members, or the gang's nodes.
        environment: The environment variables, by name.
    """
    variables = {**job.environment, **environment}
    parameters = mark.parameters(job.step)
    tags = {**(parameters if job.emit_tags else {}), **job.tags}
    return {
        "jobName": name,
        "jobQueue": job.queue,
        "jobDefinition": job.definition["jobDefinitionName"],
        "parameters": parameters,
        # Attempts are counted by the run: what is lost costs none.
        "retryStrategy": {"attempts": 1},
        "timeout": {"attemptDurationSeconds": job.limit},
        **_containers(job, size, variables),
        **({"tags": tags, "propagateTags": True} if tags else {}),
    }


def name_prefix(user: str, flow: str, run: str | None = None) -> str:
    """Return what the names of all jobs of a user's flow begin with, or of one run of it.

    Args:
        user: The name of the user.
        flow: The name of the flow.
        run: The id of the run; None for what all runs of the flow have.
    """
    return _name("".join(f"{each}-" for each in (user, flow, run) if each), LONGEST_NAME - 40)


def _containers(job: BatchStepJob, size: int, variables: Mapping[str, str]) -> dict[str, Any]:
    """How many containers, and their variables."""
    over = {"environment": [{"name": key, "value": variables[key]} for key in sorted(variables)]}
    if job.is_gang:
        nodes = [{"targetNodes": "0:", "containerOverrides": over}]
        return {"nodeOverrides": {"numNodes": size, "nodePropertyOverrides": nodes}}
    array = {"arrayProperties": {"size": size}} if size > 1 else {}
    return {"containerOverrides": over, **array}


def job_name(mark: Mark, step: str, unique: str) -> str:
    """Return the name of a job, which no other has: `unique` stands at its end.

    Args:
        mark: What the jobs of this run are recognised by.
        step: The name of the step.
        unique: A text that no other submission has; it is never shortened.
    """
    return _name(f"{mark.prefix}{step}", LONGEST_NAME - len(unique) - 1) + f"-{unique}"


def _name(text: str, length: int) -> str:
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


# The jobs of AWS Batch that runs have submitted: found again by their marks, and ended.


UNFINISHED = ("SUBMITTED", "PENDING", "RUNNABLE", "STARTING", "RUNNING")


def unfinished(
    calls: AwsClient, queues: Iterable[str], user: str | None, flow: str | None, run: str | None
) -> list[SubmittedJob]:
    """Return the jobs of aflow in these queues that have not ended, the oldest first; None stands
    for all users, flows, or runs. Blocks.

    Args:
        calls: The clients of AWS.
        queues: The names of the job queues.
        user: The name of the user; None for all.
        flow: The name of the flow; None for all.
        run: The id of the run; None for all.

    Raises:
        AwsError: AWS refuses.
    """
    ids = [id for queue in queues for id in _candidates(calls, queue, user, flow, run)]
    found = []
    for at in range(0, len(ids), MOST_DESCRIBED):
        for described in calls.described(ids[at : at + MOST_DESCRIBED]):
            marks = described.get("parameters") or {}
            owner, *path = (marks.get(f"aflow.{name}", "") for name in MARK_NAMES)
            asked = zip((user, flow, run), (owner, *path), strict=False)
            fits = all(expected in (None, there) for expected, there in asked)
            # It may have ended meanwhile, or be no job of a run of aflow.
            if fits and described["status"] not in ENDED and all(path[:2]):
                found.append(_submitted(described, owner, "/".join(path)))
    return sorted(found, key=lambda job: job.created_at)


def _candidates(
    calls: AwsClient, queue: str, user: str | None, flow: str | None, run: str | None
) -> Iterator[str]:
    """The ids of jobs that may be meant."""
    if user is not None and flow is not None:
        # Asked for by name AWS lists those of all states.
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
