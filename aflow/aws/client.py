"""Calls to AWS, by botocore: each ends as a value, or in one sentence. They block."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import cached_property
from typing import Any, NamedTuple

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

# The last: an answer that is none, as of a proxy in trouble.
_UNREACHED = faults.HTTPClientError, faults.ConnectionError, OSError, ResponseParserError
LINES, LONGEST_LINE = 10, 300  # of a log, where its end is quoted
_MISSING = {"StateMachineDoesNotExist", "ExecutionDoesNotExist", "ResourceNotFoundException"}
_log = logging.getLogger(__name__)

PATIENT = {
    "connect_timeout": 10,
    "read_timeout": 30,
    "retries": {"total_max_attempts": 6},
}
"""Throttled calls are made again, with backoff, in the mode of the user's own settings of AWS:
botocore's default goes by the HTTP status, too, where a proxy answers 429 without a known code."""
ONCE = {**PATIENT, "retries": {"total_max_attempts": 1}}
"""For callers that try again themselves."""
QUICK = {"connect_timeout": 4, "read_timeout": 8, "retries": {"total_max_attempts": 2}}
"""For people who wait: it gives up within seconds."""


class AwsAnswer(NamedTuple):
    """What a call gave; `date` is the header Date, the time by the clock of the server."""

    values: dict[str, Any]
    date: str | None


class AwsClient:
    """The services of one account, asked as who the credentials are of, or as `role`, which is then
    assumed; in `region`, else in that of all tools of AWS; at `endpoint`, if it is not AWS itself.
    """

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

    @property
    def region(self) -> str:
        """The region. Raises InvalidSetting where none is known."""
        with _described("batch"):
            return str(self._client("batch").meta.region_name)

    def close(self) -> None:
        """Release connections; the next call makes new ones."""
        for client in self._clients.values():
            client.close()
        self._clients, self._session = {}, None

    def call(self, service: str, operation: str, **values: Any) -> dict[str, Any]:
        """Return what the call gives.

        Args:
            service: The name of the service, as botocore has it.
            operation: The name of the operation, as botocore has it.
            **values: The parameters of the call.

        Raises:
            AwsError: AWS refuses, or does not answer: AwsBusy where the same call may go well
                later, AwsUnauthorized where it may go well with other credentials.
            InvalidSetting: The region is not known.
        """
        return self.answer(service, operation, **values).values

    def try_call(self, service: str, operation: str, **values: Any) -> dict[str, Any] | None:
        """Return what the call gives; None where what it is about does not exist.

        Args:
            service: The name of the service, as botocore has it.
            operation: The name of the operation, as botocore has it.
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
        """Yield the pages of a listing; none where what it is about does not exist.

        Args:
            service: The name of the service, as botocore has it.
            operation: The name of the operation, as botocore has it.
            **values: The parameters of the call.

        Raises:
            AwsError: As `call` does.
        """
        while (page := self.try_call(service, operation, **values)) is not None:
            yield page
            if not page.get("nextToken"):
                return
            values["nextToken"] = page["nextToken"]

    def answer(self, service: str, operation: str, **values: Any) -> AwsAnswer:
        """Call AWS as `call` does.

        Args:
            service: The name of the service, as botocore has it.
            operation: The name of the operation, as botocore has it.
            **values: The parameters of the call.

        Returns:
            The answer, and the time of AWS in seconds since the epoch.

        Raises:
            AwsError: AWS refuses, or does not answer.
            InvalidSetting: A setting that this needs is missing.
        """
        try:
            found = self._made(service, operation, values)
        except AwsUnauthorized:
            # They may have been renewed in their file, or by the program that gives them.
            self.close()
            found = self._made(service, operation, values)
        return AwsAnswer(found, found["ResponseMetadata"]["HTTPHeaders"].get("date"))

    def _made(self, service: str, operation: str, values: Mapping[str, Any]) -> dict[str, Any]:
        with _described(service):
            found: dict[str, Any] = getattr(self._client(service), operation)(**values)
            return found

    def _client(self, service: str) -> Any:
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
        """Return whether the queue of jobs runs them on Fargate.

        Args:
            queue: The name of the job queue.

        Raises:
            InvalidSetting: Where there is no such queue.
        """
        queues = self.call("batch", "describe_job_queues", jobQueues=[queue])["jobQueues"]
        if not queues:
            raise InvalidSetting(
                f"AFLOW_BATCH_JOB_QUEUE names {queue}, and there is no such queue in {self.region}."
            )
        first = queues[0]["computeEnvironmentOrder"][0]["computeEnvironment"]
        found = self.call("batch", "describe_compute_environments", computeEnvironments=[first])[
            "computeEnvironments"
        ]
        kind = found[0].get("computeResources", {}).get("type", "") if found else ""
        return str(kind).startswith("FARGATE")

    def register(self, definition: Mapping[str, Any]) -> bool:
        """Register a definition of jobs, unless it is there.

        Args:
            definition: The job definition.

        Returns:
            Whether it was not.
        """
        name = definition["jobDefinitionName"]
        found = self.call(
            "batch", "describe_job_definitions", jobDefinitionName=name, status="ACTIVE"
        )
        if found["jobDefinitions"]:
            return False
        self.call("batch", "register_job_definition", **definition)
        return True

    def submit(self, values: Mapping[str, Any]) -> str:
        """Submit a job. AwsBusy leaves open whether it was submitted.

        Args:
            values: The parameters of the call.

        Returns:
            Its id.
        """
        return str(self.call("batch", "submit_job", **values)["jobId"])

    def described(self, jobs: Sequence[str]) -> list[dict[str, Any]]:
        """Return what AWS Batch says of these jobs, of which one call may name 100; of some it may
        know nothing (any more).

        Args:
            jobs: The ids of the jobs.
        """
        found: list[dict[str, Any]] = self.call("batch", "describe_jobs", jobs=[*jobs])["jobs"]
        return found

    def last_lines(self, group: str, stream: str, count: int = LINES) -> list[str]:
        """Return the last lines of a log in CloudWatch; none where it cannot be read.

        Args:
            group: The log group.
            stream: The log stream.
            count: How many lines.
        """
        try:
            # With a limit alone it gives what is newest.
            found = self.call(
                "logs", "get_log_events", logGroupName=group, logStreamName=stream, limit=count
            )
        except AwsError as error:
            _log.info("the log %s cannot be read: %s", stream, error)
            return []
        events = found.get("events", [])[-count:]
        lines = [line for each in events for line in str(each["message"]).splitlines()]
        return [
            line.replace("\t", "    ")[:LONGEST_LINE] for line in lines[-count:] if line.strip()
        ]

    def listed(self, **of: Any) -> Iterator[dict[str, Any]]:
        """Yield the summaries of jobs: of a queue, or of an array, as the API takes it.

        Args:
            **of: The parameters of the call.
        """
        for page in self.pages("batch", "list_jobs", **of):
            yield from page["jobSummaryList"]

    def terminate(self, job: str, reason: str) -> None:
        """End a job: one that runs gets SIGTERM, and SIGKILL 30 seconds later; one that has ended
        already stays as it is.

        Args:
            job: The id of the job.
            reason: Why, in one sentence.
        """
        self.call("batch", "terminate_job", jobId=job, reason=reason)


@contextmanager
def _described(service: str) -> Iterator[None]:
    """The errors of botocore as ours."""
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
    except (faults.BotoCoreError, ValueError) as error:  # ValueError: an endpoint that is none
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


# Executions of Step Functions, for the deployment and for those who ask whether a run goes on.


class Executions(AwsClient):
    """The account and the partition of the role of state machines, in the region of the session."""

    def __init__(self, settings: AwsSettings) -> None:
        super().__init__()
        self._settings = settings

    @cached_property
    def role(self) -> str:
        """The role of state machines. Raises InvalidSetting where it is not set."""
        return self._settings.needed("machine_role", "The role of state machines")

    @cached_property
    def account(self) -> Account:
        """The account, as far as it is known without a call. Raises InvalidSetting."""
        return Account.of(self.role, self.region)

    def described_execution(self, arn: str) -> dict[str, Any] | None:
        """Return what Step Functions says of an execution; None where there is none (any more).

        Args:
            arn: The ARN of the execution.
        """
        return self.try_call("stepfunctions", "describe_execution", executionArn=arn)

    def stop_execution(self, arn: str, cause: str) -> None:
        """Stop an execution, and the jobs that it waits for; one that has ended stays as it is.

        Args:
            arn: The ARN of the execution.
            cause: Why, for the history of the execution.
        """
        self.try_call(
            "stepfunctions",
            "stop_execution",
            executionArn=arn,
            error="aflow.Terminated",
            cause=cause,
        )


def execution_status(machine: str, execution: str) -> str | None:
    """Return the status of an execution (RUNNING, SUCCEEDED, FAILED, TIMED_OUT, ABORTED); None
    where there is no such execution (any more). Blocks.

    Args:
        machine: The name of the state machine.
        execution: The name of the execution.

    Raises:
        AwsError: AWS refuses, or does not answer.
        InvalidSetting: The account is not known.
    """
    with closing(Executions(AwsSettings.load())) as calls:
        found = calls.described_execution(calls.account.execution_arn(machine, execution))
    return None if found is None else str(found["status"])


def stop_execution(machine: str, execution: str, cause: str) -> None:
    """Stop an execution, and the jobs that it waits for; fine if it has ended. Raises as
    `execution_status` does.

    Args:
        machine: The name of the state machine.
        execution: The name of the execution.
        cause: Why, for the history of the execution.
    """
    with closing(Executions(AwsSettings.load())) as calls:
        calls.stop_execution(calls.account.execution_arn(machine, execution), cause)
