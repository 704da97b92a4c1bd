"""Calls to AWS through botocore. They block.

Each call returns a value, or raises an error with a message of one sentence.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import cached_property
from threading import Lock
from typing import Any

from botocore.config import Config
from botocore.parsers import ResponseParserError

from aflow._core.aws import (
    LOST_CREDENTIALS,
    NO_CREDENTIALS,
    Refusal,
    assume_role,
    blocking_session,
    faults,
)
from aflow.aws.settings import Account, AwsSettings
from aflow.errors import AwsBusy, AwsError, AwsUnauthorized, InvalidSetting

# The last one: an unparsable response, such as that of a failing proxy.
_UNREACHED = faults.HTTPClientError, faults.ConnectionError, OSError, ResponseParserError
LINES, LONGEST_LINE = 10, 300  # of a quoted log
_MISSING = {"StateMachineDoesNotExist", "ExecutionDoesNotExist", "ResourceNotFoundException"}
_log = logging.getLogger(__name__)

PATIENT = {
    "connect_timeout": 10,
    "read_timeout": 30,
    "retries": {"total_max_attempts": 6},
}
"""Options of botocore's `Config` for background work. They leave the retry mode to the user and to
botocore, whose default also retries HTTP status 429 without a known error code, as from proxies."""
ONCE = {**PATIENT, "retries": {"total_max_attempts": 1}}
"""`PATIENT` without retries, for callers that retry themselves."""
QUICK = {"connect_timeout": 4, "read_timeout": 8, "retries": {"total_max_attempts": 2}}
"""Short timeouts and one retry, for interactive commands."""


class AwsClient:
    """The services of one AWS account.

    Calls use the default credentials, or assume `role`. `region` is by default that of the AWS
    tools; `endpoint` is an alternative server."""

    def __init__(
        self,
        region: str | None = None,
        role: str | None = None,
        *,
        endpoint: str | None = None,
        manner: Mapping[str, Any] = PATIENT,
    ) -> None:
        self._region = region
        self._endpoint = endpoint
        self._role = role
        self._config = Config(**manner)
        self._session: Any = None
        self._clients: dict[str, Any] = {}
        # Sessions of botocore are not safe for threads that create clients; clients are.
        self._lock = Lock()

    @property
    def region(self) -> str:
        """The region. Raises InvalidSetting if none is configured."""
        with _described("batch"):
            return str(self._client("batch").meta.region_name)

    def close(self) -> None:
        """Close the connections; the next call opens new ones."""
        with self._lock:
            clients, self._clients, self._session = self._clients, {}, None
        for client in clients.values():
            client.close()

    def call(self, service: str, operation: str, **values: Any) -> dict[str, Any]:
        """Return the result of a call.

        Args:
            service: The name of the service in botocore.
            operation: The name of the operation in botocore.
            **values: The parameters of the call.

        Raises:
            AwsError: If AWS rejects the call, or does not respond: AwsBusy if a retry may succeed,
                AwsUnauthorized if it may succeed with other credentials.
            InvalidSetting: If no region is configured.
        """
        try:
            return self._made(service, operation, values)
        except AwsUnauthorized:
            # They may have been renewed in their file, or by a credential process.
            self.close()
            return self._made(service, operation, values)

    def try_call(self, service: str, operation: str, **values: Any) -> dict[str, Any] | None:
        """Return the result of a call; None if the resource does not exist.

        Args:
            service: The name of the service in botocore.
            operation: The name of the operation in botocore.
            **values: The parameters of the call.

        Raises:
            AwsError: As `call` does.
        """
        try:
            return self.call(service, operation, **values)
        except AwsError as error:
            if error.code in _MISSING:
                return None
            raise

    def pages(self, service: str, operation: str, **values: Any) -> Iterator[dict[str, Any]]:
        """Yield the pages of a listing; none if the resource does not exist.

        Args:
            service: The name of the service in botocore.
            operation: The name of the operation in botocore.
            **values: The parameters of the call.

        Raises:
            AwsError: As `call` does.
        """
        while (page := self.try_call(service, operation, **values)) is not None:
            yield page
            if not page.get("nextToken"):
                return
            values["nextToken"] = page["nextToken"]

    def _made(self, service: str, operation: str, values: Mapping[str, Any]) -> dict[str, Any]:
        with _described(service):
            found: dict[str, Any] = getattr(self._client(service), operation)(**values)
            return found

    def _client(self, service: str) -> Any:
        with self._lock:
            if self._session is None:
                session = blocking_session()
                if self._role is not None:
                    assume_role(session, self._role, self._region)
                self._session = session
            if service not in self._clients:
                self._clients[service] = self._session.create_client(
                    service, self._region, endpoint_url=self._endpoint, config=self._config
                )
            return self._clients[service]

    # ------------------------------------------------------------ AWS Batch

    def is_fargate(self, queue: str) -> bool:
        """Return whether the job queue runs jobs on Fargate.

        Args:
            queue: The name of the job queue.

        Raises:
            InvalidSetting: If there is no such queue.
        """
        queues = self.call("batch", "describe_job_queues", jobQueues=[queue])["jobQueues"]
        if not queues:
            raise InvalidSetting(
                f"There is no job queue {queue} in {self.region}: see AFLOW_BATCH_JOB_QUEUE, "
                "AFLOW_BATCH_GPU_JOB_QUEUE, and queue= of @batch."
            )
        first = queues[0]["computeEnvironmentOrder"][0]["computeEnvironment"]
        found = self.call("batch", "describe_compute_environments", computeEnvironments=[first])[
            "computeEnvironments"
        ]
        kind = found[0].get("computeResources", {}).get("type", "") if found else ""
        return str(kind).startswith("FARGATE")

    def register(self, definition: Mapping[str, Any]) -> None:
        """Register a job definition, unless it exists.

        Args:
            definition: The job definition.
        """
        name = definition["jobDefinitionName"]
        found = self.call(
            "batch", "describe_job_definitions", jobDefinitionName=name, status="ACTIVE"
        )
        if not found["jobDefinitions"]:
            self.call("batch", "register_job_definition", **definition)

    def submit(self, values: Mapping[str, Any]) -> str:
        """Submit a job. After AwsBusy it is unknown whether the job was submitted.

        Args:
            values: The parameters of the call.

        Returns:
            Its id.
        """
        return str(self.call("batch", "submit_job", **values)["jobId"])

    def described(self, jobs: Sequence[str]) -> list[dict[str, Any]]:
        """Return the descriptions of these jobs. Jobs that AWS Batch does not know are omitted.

        Args:
            jobs: The ids of the jobs, at most 100.
        """
        found: list[dict[str, Any]] = self.call("batch", "describe_jobs", jobs=[*jobs])["jobs"]
        return found

    def last_lines(self, group: str, stream: str) -> list[str]:
        """Return the last lines of a log in CloudWatch; none if it cannot be read.

        Args:
            group: The log group.
            stream: The log stream.
        """
        try:
            # With only a limit, CloudWatch returns the newest events.
            found = self.call(
                "logs", "get_log_events", logGroupName=group, logStreamName=stream, limit=LINES
            )
        except AwsError as error:
            _log.info("the log %s cannot be read: %s", stream, error)
            return []
        events = found.get("events", [])
        lines = [line for each in events for line in str(each["message"]).splitlines()]
        return [
            line.replace("\t", "    ")[:LONGEST_LINE] for line in lines[-LINES:] if line.strip()
        ]

    def listed(self, **of: Any) -> Iterator[dict[str, Any]]:
        """Yield the summaries of the jobs of a queue or an array.

        Args:
            **of: The parameters of `list_jobs`.
        """
        for page in self.pages("batch", "list_jobs", **of):
            yield from page["jobSummaryList"]

    def terminate(self, job: str, reason: str) -> None:
        """End a job by SIGTERM, then SIGKILL after 30 seconds. Has no effect on an ended job.

        Args:
            job: The id of the job.
            reason: The reason, in one sentence.
        """
        self.call("batch", "terminate_job", jobId=job, reason=reason)


def date_of(answer: Mapping[str, Any]) -> str | None:
    """Return the Date header of a response, the time of the server's clock; None if it has none.

    Args:
        answer: The result of `AwsClient.call`.
    """
    date: str | None = answer["ResponseMetadata"]["HTTPHeaders"].get("date")
    return date


@contextmanager
def _described(service: str) -> Iterator[None]:
    """Translate the errors of botocore."""
    try:
        yield
    except faults.ClientError as error:
        raise _refused(error, service) from error
    except faults.NoRegionError as error:
        raise InvalidSetting("The region of AWS is not known: set AWS_DEFAULT_REGION.") from error
    except NO_CREDENTIALS as error:
        raise AwsError(
            "There are no credentials of AWS: set AWS_PROFILE, or AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY."
        ) from error
    except LOST_CREDENTIALS as error:
        raise AwsUnauthorized(
            f"The credentials of AWS are missing or have expired: {_sentence(error)} Log in to AWS "
            "again."
        ) from error
    except _UNREACHED as error:
        raise AwsBusy(f"{service} of AWS cannot be asked: {_sentence(error)}") from error
    except (faults.BotoCoreError, ValueError) as error:  # ValueError: an invalid endpoint
        raise AwsError(f"{service} of AWS cannot be asked: {_sentence(error)}") from error


def _refused(error: Any, service: str) -> AwsError:
    code, reason, _ = refusal = Refusal.of(error)
    asked = "sts" if error.operation_name == "AssumeRole" else service
    message = f"{asked} of AWS refuses {error.operation_name} ({code}): {reason or code}."
    kind = AwsBusy if refusal.is_busy else AwsError
    if refusal.has_expired:
        kind = AwsUnauthorized
        message = (
            "AWS does not accept the credentials, which may have expired "
            f"({code}: {reason}): log in to AWS again."
        )
    return kind(message, code, reason, denied=refusal.is_denied)


def _sentence(error: Exception) -> str:
    return f"{str(error).strip().rstrip('.')}."


# Executions of Step Functions: for deployments, and to check whether a run is still active.


class Executions(AwsClient):
    """Calls about executions, with the account and partition from the role of state machines."""

    def __init__(self, settings: AwsSettings) -> None:
        super().__init__()
        self._settings = settings

    @cached_property
    def role(self) -> str:
        """The role of state machines. Raises InvalidSetting if it is not set."""
        return self._settings.needed("machine_role", "The role of state machines")

    @cached_property
    def account(self) -> Account:
        """The account, as far as it is known without a call. Raises InvalidSetting."""
        return Account.of(self.role, self.region)

    def described_execution(self, arn: str) -> dict[str, Any] | None:
        """Return the description of an execution; None if it does not exist.

        Args:
            arn: The ARN of the execution.
        """
        return self.try_call("stepfunctions", "describe_execution", executionArn=arn)

    def stop_execution(self, arn: str, cause: str) -> None:
        """Stop an execution and the jobs that it waits for. Has no effect if it has ended.

        Args:
            arn: The ARN of the execution.
            cause: The reason, for the history of the execution.
        """
        self.try_call(
            "stepfunctions",
            "stop_execution",
            executionArn=arn,
            error="aflow.Terminated",
            cause=cause,
        )


def execution_status(machine: str, execution: str) -> str | None:
    """Return the status of an execution; None if it does not exist. Blocks.

    It is RUNNING, SUCCEEDED, FAILED, TIMED_OUT or ABORTED.

    Args:
        machine: The name of the state machine.
        execution: The name of the execution.

    Raises:
        AwsError: If AWS rejects the call, or does not respond.
        InvalidSetting: If the account is not configured.
    """
    with closing(Executions(AwsSettings.load())) as calls:
        found = calls.described_execution(calls.account.execution_arn(machine, execution))
    return None if found is None else str(found["status"])


def stop_execution(machine: str, execution: str, cause: str) -> None:
    """Stop an execution and the jobs that it waits for. Has no effect if it has ended.

    Raises as `execution_status` does.

    Args:
        machine: The name of the state machine.
        execution: The name of the execution.
        cause: The reason, for the history of the execution.
    """
    with closing(Executions(AwsSettings.load())) as calls:
        calls.stop_execution(calls.account.execution_arn(machine, execution), cause)
