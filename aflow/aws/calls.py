"""Calls to AWS, by botocore: each is made once, and ends as a value or in words. They block."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from aflow.aws.ends import log_of
from aflow.errors import AwsBusy, AwsError, InvalidSetting, MissingExtra

try:
    from botocore import exceptions as faults
    from botocore.config import Config
    from botocore.parsers import ResponseParserError
    from botocore.session import Session, get_session
except ImportError as error:
    raise MissingExtra("AWS needs aiobotocore: install aflow-runtime[aws].") from error

# The last: an answer that is none, as of a proxy in trouble.
_UNREACHED = faults.HTTPClientError, faults.ConnectionError, OSError, ResponseParserError

if TYPE_CHECKING:
    from aflow.aws.definitions import Definition

MOST_DESCRIBED = 100  # jobs a call
LINES, LONGEST_LINE = 10, 300  # of a log, where its end is quoted
_log = logging.getLogger(__name__)
_LATER = {
    "TooManyRequestsException", "ThrottlingException", "Throttling", "ThrottledException",
    "RequestLimitExceeded", "RequestThrottled", "SlowDown", "ServerException",
}  # fmt: skip
_MISSING = {"StateMachineDoesNotExist", "ExecutionDoesNotExist", "ResourceNotFoundException"}


@cache
def _session() -> Session:
    """One for all: what it has read of the services of AWS it reads once."""
    return get_session()


class Calls:
    """The services of one account, in the region of the session. With `once` a call is made a
    single time, for those who try again themselves; else botocore tries a few times."""

    def __init__(self, *, once: bool = False) -> None:
        self._session = _session()
        self._clients: dict[str, Any] = {}
        retries = {"retries": {"total_max_attempts": 1}} if once else {}
        self._config = Config(connect_timeout=10, read_timeout=30, **retries)

    @property
    def region(self) -> str:
        """The region. Raises InvalidSetting where none is known."""
        return str(self._client("batch").meta.region_name)

    def close(self) -> None:
        """Let go of connections; the next call makes new ones."""
        for client in self._clients.values():
            client.close()

    def _client(self, service: str) -> Any:
        if service not in self._clients:
            try:
                self._clients[service] = self._session.create_client(service, config=self._config)
            except faults.NoRegionError as error:
                raise InvalidSetting("The region of AWS is not known: set AWS_REGION.") from error
        return self._clients[service]

    def _call(self, service: str, operation: str, **values: Any) -> Any:
        """What the call gives, None for what is not there. Raises AwsError, AwsBusy where it may
        go well later."""
        client = self._client(service)
        try:
            return getattr(client, operation)(**values)
        except faults.ClientError as error:
            told = error.response.get("Error", {})
            if told.get("Code") in _MISSING:
                return None
            said = f"{told.get('Code')}: {told.get('Message', '').strip()}"
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            later = told.get("Code") in _LATER or status == 429 or status >= 500
            kind = AwsBusy if later else AwsError
            raise kind(f"AWS refuses {operation} of {service}: {said}") from error
        except _UNREACHED as error:
            raise AwsBusy(f"AWS did not do {operation} of {service}: {error}") from error
        except faults.BotoCoreError as error:
            raise AwsError(f"AWS did not do {operation} of {service}: {error}") from error

    # ------------------------------------------------------------ AWS Batch

    def is_fargate(self, queue: str) -> bool:
        """Whether the queue of jobs runs them on Fargate. Raises InvalidSetting where there is no
        such queue."""
        queues = self._call("batch", "describe_job_queues", jobQueues=[queue])["jobQueues"]
        if not queues:
            raise InvalidSetting(
                f"AFLOW_BATCH_JOB_QUEUE names {queue}, and there is no such queue in {self.region}."
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

    def submit(self, values: Mapping[str, Any]) -> str:
        """Submit a job; its id. AwsBusy leaves open whether it was submitted."""
        return str(self._call("batch", "submit_job", **values)["jobId"])

    def described(self, jobs: Sequence[str]) -> list[dict[str, Any]]:
        """What AWS Batch says of these jobs, MOST_DESCRIBED at most; of some it may know nothing
        (any more)."""
        found: list[dict[str, Any]] = self._call("batch", "describe_jobs", jobs=[*jobs])["jobs"]
        return found

    def last_lines(self, job: Mapping[str, Any], count: int = LINES) -> list[str]:
        """The last lines that the job has printed, which `describe_jobs` describes so; none where
        it has no log, or nobody lets us read it."""
        stream = log_of(job)
        if stream is None:
            return []
        try:
            # With a limit alone it gives what is newest.
            found = self._call(
                "logs", "get_log_events",
                logGroupName=stream.group, logStreamName=stream.name, limit=count,
            )  # fmt: skip
        except AwsError as error:
            _log.info("the log %s cannot be read: %s", stream.name, error)
            return []
        events = (found or {}).get("events", [])[-count:]
        lines = [line for each in events for line in str(each["message"]).splitlines()]
        return [
            line.replace("\t", "    ")[:LONGEST_LINE] for line in lines[-count:] if line.strip()
        ]

    def listed(self, **of: Any) -> Iterator[dict[str, Any]]:
        """The summaries of jobs: of a queue, or of an array, as the API takes it."""
        values: dict[str, Any] = of
        while values:
            page = self._call("batch", "list_jobs", **values)
            yield from page["jobSummaryList"]
            following = page.get("nextToken")
            values = {**values, "nextToken": following} if following else {}

    def terminate(self, job: str, reason: str) -> None:
        """End a job: one that runs is told so, and killed 30 seconds later; one that has ended
        already stays as it is."""
        self._call("batch", "terminate_job", jobId=job, reason=reason)
