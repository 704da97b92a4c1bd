"""Settings of an AWS account for running flows; the names of the keys are Metaflow's."""

from __future__ import annotations

from aflow._core.records import NamedTuple, dataclass
from aflow._core.settings import PartSettings, key, looked_up
from aflow.errors import InvalidSetting

# Settings that jobs inherit from their coordinator. The service key is not passed on, since every
# user with access to the jobs can read their variables. Jobs fetch it from this secret.
KEY_PLACE = "SERVICE_AUTH_KEY_SECRET"
_PASSED_ON = (
    KEY_PLACE, "DATATOOLS_S3ROOT", "DATATOOLS_SYSROOT_S3",
    "DEFAULT_SECRETS_BACKEND_TYPE", "DEFAULT_SECRETS_ROLE", "AWS_SECRETS_MANAGER_DEFAULT_REGION",
    "AWS_SECRETS_MANAGER_DEFAULT_ROLE", "S3_SERVER_SIDE_ENCRYPTION",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class AwsSettings(PartSettings):
    """The settings of an AWS account; None if not set.

    `gpu_queue` is the queue of steps that need GPUs and name no queue, `job_log_group` the
    CloudWatch group of jobs' logs if it is not the default of AWS Batch. `internal_url` is the
    address of the metadata service for jobs, `runtime_limit` the time limit in seconds of a job
    without @timeout, `public_ip` ENABLED or DISABLED for jobs on Fargate. `default_tags` is a JSON
    object of tags of all jobs."""

    queue: str | None = key("BATCH_JOB_QUEUE")
    gpu_queue: str | None = key("BATCH_GPU_JOB_QUEUE")
    image: str | None = key("BATCH_CONTAINER_IMAGE", "DEFAULT_CONTAINER_IMAGE")
    registry: str | None = key("BATCH_CONTAINER_REGISTRY", "DEFAULT_CONTAINER_REGISTRY")
    job_role: str | None = key("ECS_S3_ACCESS_IAM_ROLE")
    fargate_role: str | None = key("ECS_FARGATE_EXECUTION_ROLE")
    machine_role: str | None = key("SFN_IAM_ROLE")
    events_role: str | None = key("EVENTS_SFN_ACCESS_IAM_ROLE")
    machine_prefix: str | None = key("SFN_STATE_MACHINE_PREFIX")
    log_group: str | None = key("SFN_EXECUTION_LOG_GROUP_ARN")
    internal_url: str | None = key("SERVICE_INTERNAL_URL", "SERVICE_URL")
    runtime_limit: str | None = key("DEFAULT_RUNTIME_LIMIT")
    default_tags: str | None = key("BATCH_DEFAULT_TAGS")
    public_ip: str | None = key("BATCH_ASSIGN_PUBLIC_IP")
    job_log_group: str | None = key("BATCH_LOG_GROUP")


class Account(NamedTuple):
    """An AWS account: the partition, the region, the account number, and the queues on Fargate."""

    partition: str
    region: str
    number: str
    fargate: frozenset[str] = frozenset()

    @classmethod
    def of(cls, role: str, region: str) -> Account:
        """Return the account of the role of state machines.

        Args:
            role: The ARN of the role, from the settings.
            region: The region of the state machines.

        Raises:
            InvalidSetting: If it is not the ARN of a role.
        """
        parts = role.split(":")
        if len(parts) < 6 or not parts[4].isdigit():
            raise InvalidSetting(
                f"AFLOW_SFN_IAM_ROLE is {role!r}, which is not an ARN of a role "
                "(arn:aws:iam::123456789012:role/name)."
            )
        return cls(parts[1], region, parts[4])

    def machine_arn(self, name: str) -> str:
        """Return the ARN of a state machine.

        Args:
            name: The name of the state machine.
        """
        return f"arn:{self.partition}:states:{self.region}:{self.number}:stateMachine:{name}"

    def execution_arn(self, machine: str, name: str) -> str:
        """Return the ARN of an execution.

        Args:
            machine: The name of the state machine.
            name: The name of the execution.
        """
        return f"{self.machine_arn(machine).replace(':stateMachine:', ':execution:')}:{name}"


def passed_on() -> dict[str, str]:
    """Return the environment variables with the settings that all jobs inherit."""
    found = {f"AFLOW_{each}": looked_up(each) for each in _PASSED_ON}
    return {name: value for name, value in found.items() if value is not None}


def needs_key_secret(url: str) -> None:
    """Check that the key of the metadata service need not be part of job definitions.

    Args:
        url: The URL of the metadata service for jobs.

    Raises:
        InvalidSetting: If the service needs a key, and no secret is set from which jobs can fetch
            it.
    """
    given = [each for each in ("SERVICE_AUTH_KEY", "SERVICE_HEADERS") if looked_up(each)]
    if given and url.startswith("http") and looked_up(KEY_PLACE) is None:
        raise InvalidSetting(
            f"The metadata service is asked with AFLOW_{given[0]}, which would stand in the "
            "definitions of jobs for all users who may read them: keep the key in AWS Secrets "
            f"Manager, and set AFLOW_{KEY_PLACE} to the secret's ARN, which the role of jobs may "
            "read."
        )


def needs_s3(storage: str) -> None:
    """Check that jobs can reach the datastore.

    Args:
        storage: The URL of the datastore.

    Raises:
        InvalidSetting: If it is not in S3.
    """
    if not storage.startswith("s3://"):
        raise InvalidSetting(
            "Jobs cannot reach a datastore of this machine: use --datastore s3, or set "
            "AFLOW_DEFAULT_DATASTORE=s3 and AFLOW_DATASTORE_SYSROOT_S3."
        )
