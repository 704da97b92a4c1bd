"""How the jobs of a step are submitted to AWS Batch."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from aflow.aws.definitions import Definition, definition_of, gang_definition, limit_of
from aflow.aws.settings import passed_on
from aflow.config import Settings
from aflow.errors import InvalidSetting
from aflow.version import __version__

if TYPE_CHECKING:
    from aflow.aws.settings import AwsSettings
    from aflow.flow.definition import StepDefinition

MOST = 10_000  # jobs of an array
LONGEST_NAME = 128
PROGRAM = "aflow.remote.in_job"
SAID = ("user", "flow_name", "run_id", "step_name")  # parameters of a job, after `aflow.`
_SAYS_YES = frozenset({"1", "true", "yes", "on"})


class Mark(NamedTuple):
    """Whose a job is; jobs say so by parameters, by which they are found again."""

    user: str
    flow: str
    run: str

    def parameters(self, step: str) -> dict[str, str]:
        """What a job of the step says."""
        said = dict(zip(SAID, (*self, step), strict=True)) | {"version": __version__}
        return {f"aflow.{name}": value for name, value in said.items()}

    @property
    def prefix(self) -> str:
        """What the names of all jobs of the run begin with."""
        return name_prefix(self.user, self.flow, self.run)


class StepJob(NamedTuple):
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


def queue_of(step: StepDefinition, settings: AwsSettings) -> str:
    """The queue of a step's jobs. Raises InvalidSetting where none is known."""
    batch: Any = step.decorator("batch")
    given = batch.queue if batch else None
    return str(given or settings.needed("queue", "The job queue of AWS Batch"))


def step_job(
    step: StepDefinition,
    settings: AwsSettings,
    environment: Mapping[str, str],
    *,
    fargate: bool = False,
    is_gang: bool = False,
) -> StepJob:
    """How the jobs of a step are submitted; `environment` are the variables of all jobs. Raises
    InvalidSetting for what is not set, and InvalidInput for what Batch does not take."""
    batch: Any = step.decorator("batch")
    definition = definition_of(step, settings, {}, PROGRAM, fargate=fargate)
    mounts = definition["containerProperties"].get("linuxParameters", {}).get("tmpfs")
    if mounts and batch.tmpfs_tempdir:
        environment = {**environment, "AFLOW_TEMPDIR": mounts[0]["containerPath"]}
    if is_gang:
        definition = gang_definition(definition, step.name)
    return StepJob(
        step.name,
        definition,
        queue_of(step, settings),
        limit_of(step, settings),
        {**_default_tags(settings), **((batch.aws_batch_tags if batch else None) or {})},
        (settings.emit_tags or "").lower() in _SAYS_YES,
        environment,
        is_gang,
    )


def variables_of(settings: AwsSettings, metadata: str, storage: str, region: str) -> dict[str, str]:
    """The variables of all jobs of a run: what the client inside of a step needs to find what it
    finds here. `metadata` is the setting, `storage` the URL of the store."""
    found = {
        **passed_on(),
        "AWS_DEFAULT_REGION": region,
        "AFLOW_DEFAULT_DATASTORE": "s3",
        "AFLOW_DATASTORE_SYSROOT_S3": storage,
        "AFLOW_USER": Settings.load().user,
    }
    if metadata == "service" and settings.internal_url is not None:
        found |= {"AFLOW_DEFAULT_METADATA": metadata, "AFLOW_SERVICE_URL": settings.internal_url}
    elif metadata.startswith(("http://", "https://")):
        found["AFLOW_DEFAULT_METADATA"] = metadata
    return found


def submission(
    job: StepJob, mark: Mark, name: str, size: int, environment: Mapping[str, str]
) -> dict[str, Any]:
    """What `submit_job` takes for so many attempts of the step: those of a gang are nodes, others
    an array where there are more than one."""
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
    """What the names of all jobs of a user's flow begin with, or of one run of it."""
    return _name("".join(f"{each}-" for each in (user, flow, run) if each), LONGEST_NAME - 40)


def _containers(job: StepJob, size: int, variables: Mapping[str, str]) -> dict[str, Any]:
    """How many containers, and their variables."""
    over = {"environment": [{"name": key, "value": variables[key]} for key in sorted(variables)]}
    if job.is_gang:
        nodes = [{"targetNodes": "0:", "containerOverrides": over}]
        return {"nodeOverrides": {"numNodes": size, "nodePropertyOverrides": nodes}}
    array = {"arrayProperties": {"size": size}} if size > 1 else {}
    return {"containerOverrides": over, **array}


def job_name(mark: Mark, step: str, unique: str) -> str:
    """The name of a job, which no other has: `unique` stands at its end."""
    return _name(f"{mark.prefix}{step}", LONGEST_NAME - len(unique) - 1) + f"-{unique}"


def _name(text: str, length: int) -> str:
    fitting = re.sub(r"[^A-Za-z0-9_-]", "-", text)
    return (fitting if fitting[:1].isalnum() else f"a{fitting}")[:length]


def _default_tags(settings: AwsSettings) -> dict[str, str]:
    if settings.default_tags is None:
        return {}
    try:
        tags = json.loads(settings.default_tags)
    except ValueError:
        tags = None
    if not isinstance(tags, dict):
        raise InvalidSetting(
            'AFLOW_BATCH_DEFAULT_TAGS must be a JSON object such as {"team": "ads"}, not '
            f"{settings.default_tags!r}."
        )
    return {str(name): str(value) for name, value in tags.items()}
