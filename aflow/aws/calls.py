"""Calls to AWS, by botocore: each is made once, and ends as a value or in words. They block."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from aflow.errors import AwsError, InvalidSetting, MissingExtra

try:
    from botocore import exceptions as faults
    from botocore.session import Session, get_session
except ImportError as error:
    raise MissingExtra("AWS needs aiobotocore: install aflow[aws].") from error

if TYPE_CHECKING:
    from aflow.aws.definitions import Definition

_MISSING = {"StateMachineDoesNotExist", "ExecutionDoesNotExist", "ResourceNotFoundException"}


class Calls:
    """The services of one account, in the region of the session."""

    def __init__(self) -> None:
        self._session: Session = get_session()
        self._clients: dict[str, Any] = {}

    def _client(self, service: str) -> Any:
        if service not in self._clients:
            try:
                self._clients[service] = self._session.create_client(service)
            except faults.NoRegionError as error:
                raise InvalidSetting("The region of AWS is not known: set AWS_REGION.") from error
        return self._clients[service]

    def _call(self, service: str, operation: str, **values: Any) -> Any:
        """What the call gives, None for what is not there. Raises AwsError."""
        client = self._client(service)
        try:
            return getattr(client, operation)(**values)
        except faults.ClientError as error:
            told = error.response.get("Error", {})
            if told.get("Code") in _MISSING:
                return None
            said = f"{told.get('Code')}: {told.get('Message', '').strip()}"
            raise AwsError(f"AWS refuses {operation} of {service}: {said}") from error
        except faults.BotoCoreError as error:
            raise AwsError(f"AWS did not do {operation} of {service}: {error}") from error

    # ------------------------------------------------------------ AWS Batch

    def is_fargate(self, queue: str) -> bool:
        """Whether the queue of jobs runs them on Fargate. Raises InvalidSetting where there is no
        such queue."""
        queues = self._call("batch", "describe_job_queues", jobQueues=[queue])["jobQueues"]
        if not queues:
            region = self._client("batch").meta.region_name
            raise InvalidSetting(
                f"AFLOW_BATCH_JOB_QUEUE names {queue}, and there is no such queue in {region}."
            )
        first = queues[0]["computeEnvironmentOrder"][0]["computeEnvironment"]
        found = self._call("batch", "describe_compute_environments", computeEnvironments=[first])[
            "computeEnvironments"
        ]
        kind = found[0].get("computeResources", {}).get("type", "") if found else ""
        return str(kind).startswith("FARGATE")

    def register(self, definition: Definition) -> bool:
        """Register a definition of jobs, unless it is there; whether it was not."""
        name = definition["jobDefinitionName"]
        found = self._call(
            "batch", "describe_job_definitions", jobDefinitionName=name, status="ACTIVE"
        )
        if found["jobDefinitions"]:
            return False
        self._call("batch", "register_job_definition", **definition)
        return True
