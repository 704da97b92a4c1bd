"""Definitions of the jobs of AWS Batch that run steps: pure functions of what decorators say.

A definition is named by its content, so that a flow that runs or is deployed again registers
nothing new, and steps that need the same share one.
"""

from __future__ import annotations

import hashlib
import json
import math
import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from aflow.environments.shipping import command
from aflow.errors import InvalidInput, InvalidSetting

if TYPE_CHECKING:
    from aflow.aws.settings import AwsSettings
    from aflow.flow.definition import StepDefinition

LIMIT = 432_000  # seconds that a job may run without @timeout: five days
SHORTEST = 60  # seconds: Batch stops no job earlier
MARGIN = 60  # seconds for the container to start, and to tell how its step ended
PYTHON = "python"

Definition = dict[str, Any]


def definition_of(
    step: StepDefinition | None,
    settings: AwsSettings,
    environment: Mapping[str, str],
    program: str,
    *,
    fargate: bool = False,
) -> Definition:
    """What `register_job_definition` takes for a step; None is what belongs to no step. `program`
    is the module that jobs run.

    Raises InvalidSetting where no image or role is known.
    """
    batch: Any = step.decorator("batch") if step else None
    needs = _resources(step, batch)
    properties: Definition = {
        "image": _image(batch, settings),
        "command": command(shlex.split(_of(batch, "executable", PYTHON)), program),
        "jobRoleArn": _of(batch, "iam_role", None)
        or settings.needed("job_role", "The role of jobs, which may read and write the bucket,"),
        "resourceRequirements": [{"type": kind, "value": each} for kind, each in needs.items()],
        "environment": [{"name": key, "value": environment[key]} for key in sorted(environment)],
    }
    properties |= _linux(batch, fargate=fargate) | _volumes(batch) | _logs(batch)
    if _of(batch, "privileged", False):
        properties["privileged"] = True
    definition: Definition = {
        "type": "container",
        "containerProperties": properties,
        "propagateTags": True,
    }
    execution_role = _of(batch, "execution_role", None) or (fargate and settings.fargate_role)
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
        size = _of(batch, "ephemeral_storage", None)
        if size:
            properties["ephemeralStorage"] = {"sizeInGiB": int(size)}
    return _named(definition)


def gang_definition(definition: Definition, step: str) -> Definition:
    """The same for jobs of several nodes, which start together. Raises InvalidInput where the queue
    cannot run such jobs."""
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
    """The seconds after which Batch stops an attempt of the step's job, which may `wait` before it
    begins. Raises InvalidSetting."""
    timeout = step.decorator("timeout") if step else None
    if timeout is None:
        return _whole(settings.runtime_limit or LIMIT, "AFLOW_DEFAULT_RUNTIME_LIMIT")
    return max(SHORTEST, math.ceil(timeout.total_seconds + wait) + MARGIN)


# ------------------------------------------------------------------ parts


def _of(batch: Any, option: str, default: Any) -> Any:
    value = getattr(batch, option) if batch else None
    return default if value is None else value


def _resources(step: StepDefinition | None, batch: Any) -> dict[str, str]:
    """CPUs, memory in MB and GPUs: the most of what @batch and @resources say."""
    if step is None:
        return {"VCPU": "1", "MEMORY": "2048"}
    resources = step.decorator("resources")

    def most(option: str) -> float:
        given = [_of(batch, option, None), getattr(resources, option) if resources else None]
        return max(
            (_number(each, option, step.name) for each in given if each is not None), default=0
        )

    needs = {"VCPU": f"{most('cpu') or 1:g}", "MEMORY": f"{most('memory') or 4096:.0f}"}
    gpus = most("gpu")
    return {**needs, "GPU": f"{gpus:.0f}"} if gpus else needs


def _number(value: Any, option: str, step: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not number >= 0 or math.isinf(number):
        raise InvalidInput(f"Step {step}: {option} must be a number of 0 or more, not {value!r}.")
    return number


def _image(batch: Any, settings: AwsSettings) -> str:
    image: str = _of(batch, "image", None) or settings.needed("image", "The image of jobs")
    return with_registry(image, settings.registry)


def with_registry(image: str, registry: str | None) -> str:
    """The whole name of an image: in this registry, if it names none."""
    host = image.partition("/")[0]
    named = "/" in image and ("." in host or ":" in host or host == "localhost")
    return f"{registry.rstrip('/')}/{image}" if registry and not named else image


def _linux(batch: Any, *, fargate: bool) -> Definition:
    if batch is None:
        return {}
    linux: Definition = {}
    for option, name in (
        ("shared_memory", "sharedMemorySize"),
        ("max_swap", "maxSwap"),
        ("swappiness", "swappiness"),
    ):
        value = _of(batch, option, None)
        if value is not None:
            linux[name] = _whole(value, option)
    accelerators = _whole(_of(batch, "inferentia", None) or _of(batch, "trainium", 0), "inferentia")
    devices = [f"/dev/neuron{each}" for each in range(accelerators)]
    devices += [
        f"/dev/infiniband/uverbs{each}" for each in range(_whole(_of(batch, "efa", 0), "efa"))
    ]
    if devices:
        linux["devices"] = [
            {"hostPath": each, "containerPath": each, "permissions": ["READ", "WRITE"]}
            for each in devices
        ]
    size = _of(batch, "tmpfs_size", None)
    if _of(batch, "use_tmpfs", False) or size:
        size = (
            _whole(size, "tmpfs_size")
            if size
            else max(1, int(float(_of(batch, "memory", 4096)) / 2))
        )
        path = _of(batch, "tmpfs_path", "/aflow_temp")
        linux["tmpfs"] = [{"containerPath": path, "size": size, "mountOptions": ["mode=1777"]}]
    if linux and fargate:
        raise InvalidInput(
            f"The queue runs jobs on Fargate, which has no {', '.join(sorted(linux))}: use a queue "
            "of EC2 machines."
        )
    return {"linuxParameters": linux} if linux else {}


def _volumes(batch: Any) -> Definition:
    hosts, shares = _of(batch, "host_volumes", None), _of(batch, "efs_volumes", None)
    hosts = [hosts] if isinstance(hosts, str) else list(hosts or ())
    volumes: list[Definition] = []
    mounts: list[Definition] = []
    for number, path in enumerate(hosts):
        volumes.append({"name": f"host-{number}", "host": {"sourcePath": path}})
        mounts.append({"sourceVolume": f"host-{number}", "containerPath": path, "readOnly": False})
    for number, (system, options) in enumerate(_shares(shares).items()):
        root = options.get("root_directory", "/")
        configuration = {
            "fileSystemId": system,
            "rootDirectory": root,
            "transitEncryption": "ENABLED",
        }
        volumes.append({"name": f"efs-{number}", "efsVolumeConfiguration": configuration})
        path = options.get("mount_point", f"/mnt/{system}")
        mounts.append({"sourceVolume": f"efs-{number}", "containerPath": path, "readOnly": False})
    return {"volumes": volumes, "mountPoints": mounts} if volumes else {}


def _shares(shares: Any) -> Mapping[str, Mapping[str, str]]:
    if isinstance(shares, Mapping):
        return shares
    return {each: {} for each in ([shares] if isinstance(shares, str) else shares or ())}


def _logs(batch: Any) -> Definition:
    driver = _of(batch, "log_driver", None)
    if driver is None:
        return {}
    given = _of(batch, "log_options", None) or {}
    if not isinstance(given, Mapping):
        given = dict(each.split(":", 1) for each in given)
    return {"logConfiguration": {"logDriver": driver, "options": dict(given)}}


def _whole(value: Any, option: str) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        raise InvalidSetting(f"{option} must be a whole number, not {value!r}.") from None
