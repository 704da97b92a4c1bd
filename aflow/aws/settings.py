"""What has to be known of an account of AWS to run flows there; names of keys are Metaflow's."""

from __future__ import annotations

from aflow._core.records import NamedTuple, dataclass
from aflow._core.settings import PartSettings, key, looked_up
from aflow.errors import InvalidSetting

# Settings that jobs inherit from their coordinator. A key is not among them: everybody who may look
# at jobs reads their variables. Jobs fetch it from where this secret is.
KEY_PLACE = "SERVICE_AUTH_KEY_SECRET"
_PASSED_ON = (
    KEY_PLACE, "DATATOOLS_S3ROOT", "DATATOOLS_SYSROOT_S3",
    "DEFAULT_SECRETS_BACKEND_TYPE", "DEFAULT_SECRETS_ROLE", "AWS_SECRETS_MANAGER_DEFAULT_REGION",
    "AWS_SECRETS_MANAGER_DEFAULT_ROLE", "S3_SERVER_SIDE_ENCRYPTION",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class AwsSettings(PartSettings):
    """The settings, as they were found; None where one is not set. `gpu_queue` is the queue of
    steps that need GPUs and name no queue, `job_log_group` the group of CloudWatch that jobs log
    to, where that is not the one of AWS Batch. `internal_url` is the address of the metadata
    service as jobs see it, `runtime_limit` the seconds of a job without @timeout, `public_ip`
    ENABLED or DISABLED for jobs on Fargate. With `emit_tags` jobs of runs are marked with the run;
    `default_tags` are a JSON object of further marks."""

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
    emit_tags: str | None = key("BATCH_EMIT_TAGS")
    default_tags: str | None = key("BATCH_DEFAULT_TAGS")
    public_ip: str | None = key("BATCH_ASSIGN_PUBLIC_IP")
    job_log_group: str | None = key("BATCH_LOG_GROUP")


class Account(NamedTuple):
    """Where in AWS: the partition, the region, the account, and which queues are Fargate's."""

    partition: str
    region: str
    number: str
    fargate: frozenset[str] = frozenset()

    @classmethod
    def of(cls, role: str, region: str) -> Account:
        """Return the account of the role of state machines.

        Args:
            role: The ARN of the role, as the setting has it.
            region: The region of the state machines.

        Raises:
            InvalidSetting: It is not an ARN of a role.
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
    """Return the variables of all jobs that are settings of this program."""
    found = {f"AFLOW_{each}": looked_up(each) for each in _PASSED_ON}
    return {name: value for name, value in found.items() if value is not None}


def needs_key_secret(url: str) -> None:
    """Check that jobs need no key of the metadata service in their definitions.

    Args:
        url: The URL of the metadata, as jobs reach it.

    Raises:
        InvalidSetting: The service wants a key, and no secret is set from which jobs fetch it.
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
        InvalidSetting: It is not in S3.
    """
    if not storage.startswith("s3://"):
        raise InvalidSetting(
            "Jobs cannot reach a datastore of this machine: use --datastore s3, or set "
            "AFLOW_DEFAULT_DATASTORE=s3 and AFLOW_DATASTORE_SYSROOT_S3."
        )
