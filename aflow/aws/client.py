"""Calls to AWS, by botocore: each is made once, and ends as a value or in words. They block."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

from aflow.errors import AwsBusy, AwsError, AwsUnauthorized, InvalidSetting, MissingExtra

try:
    from botocore import exceptions as faults
    from botocore.config import Config
    from botocore.credentials import AssumeRoleCredentialFetcher, DeferredRefreshableCredentials
    from botocore.parsers import ResponseParserError
    from botocore.session import Session, get_session
except ImportError as error:
    raise MissingExtra("AWS needs aiobotocore: install aflow-runtime[aws].") from error

# The last: an answer that is none, as of a proxy in trouble.
_UNREACHED = faults.HTTPClientError, faults.ConnectionError, OSError, ResponseParserError


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


# What is said of credentials that are none, or none any more: all calls may go well with others.
_EXPIRED = {
    "ExpiredToken", "ExpiredTokenException", "InvalidClientTokenId", "RequestExpired",
    "UnrecognizedClientException",
}  # fmt: skip


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
        """Release connections; the next call makes new ones."""
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
        try:
            return self._try(service, operation, values)
        except AwsUnauthorized:
            # They may have been renewed in their file, or by the program that gives them.
            self.close()
            self._clients, self._session = {}, get_session()
            return self._try(service, operation, values)

    def _try(self, service: str, operation: str, values: Mapping[str, Any]) -> Any:
        client = self._client(service)
        try:
            return getattr(client, operation)(**values)
        except faults.ClientError as error:
            fault = error.response.get("Error", {})
            if fault.get("Code") in _MISSING:
                return None
            said = f"{fault.get('Code')}: {fault.get('Message', '').strip()}"
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            if fault.get("Code") in _EXPIRED:
                raise AwsUnauthorized(
                    f"AWS does not accept the credentials, which may have expired ({said}): log in "
                    "to AWS again."
                ) from error
            later = fault.get("Code") in _LATER or status == 429 or status >= 500
            kind = AwsBusy if later else AwsError
            raise kind(f"AWS refuses {operation} of {service}: {said}") from error
        except _UNREACHED as error:
            raise AwsBusy(f"AWS did not do {operation} of {service}: {error}") from error
        except (faults.SSOError, faults.CredentialRetrievalError) as error:
            raise AwsUnauthorized(
                f"The credentials of AWS are missing or have expired: {_sentence(error)} Log in "
                "to AWS again."
            ) from error
        except faults.BotoCoreError as error:
            raise AwsError(f"AWS did not do {operation} of {service}: {error}") from error

    # ------------------------------------------------------------ AWS Batch

    def is_fargate(self, queue: str) -> bool:
        """Return whether the queue of jobs runs them on Fargate.

        Args:
            queue: The name of the job queue.

        Raises:
            InvalidSetting: Where there is no such queue.
        """
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

    def register(self, definition: Mapping[str, Any]) -> bool:
        """Register a definition of jobs, unless it is there.

        Args:
            definition: The job definition.

        Returns:
            Whether it was not.
        """
        name = definition["jobDefinitionName"]
        found = self._call(
            "batch", "describe_job_definitions", jobDefinitionName=name, status="ACTIVE"
        )
        if found["jobDefinitions"]:
            return False
        self._call("batch", "register_job_definition", **definition)
        return True

    def submit(self, values: Mapping[str, Any]) -> str:
        """Submit a job. AwsBusy leaves open whether it was submitted.

        Args:
            values: The parameters of the call.

        Returns:
            Its id.
        """
        return str(self._call("batch", "submit_job", **values)["jobId"])

    def described(self, jobs: Sequence[str]) -> list[dict[str, Any]]:
        """Return what AWS Batch says of these jobs, of which one call may name 100; of some it may
        know nothing (any more).

        Args:
            jobs: The ids of the jobs.
        """
        found: list[dict[str, Any]] = self._call("batch", "describe_jobs", jobs=[*jobs])["jobs"]
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
            found = self._call(
                "logs", "get_log_events", logGroupName=group, logStreamName=stream, limit=count
            )
        except AwsError as error:
            _log.info("the log %s cannot be read: %s", stream, error)
            return []
        events = (found or {}).get("events", [])[-count:]
        lines = [line for each in events for line in str(each["message"]).splitlines()]
        return [
            line.replace("\t", "    ")[:LONGEST_LINE] for line in lines[-count:] if line.strip()
        ]

    def listed(self, **of: Any) -> Iterator[dict[str, Any]]:
        """Yield the summaries of jobs: of a queue, or of an array, as the API takes it.

        Args:
            **of: The parameters of the call.
        """
        values: dict[str, Any] = of
        while values:
            page = self._call("batch", "list_jobs", **values)
            yield from page["jobSummaryList"]
            following = page.get("nextToken")
            values = {**values, "nextToken": following} if following else {}

    def terminate(self, job: str, reason: str) -> None:
        """End a job: one that runs gets SIGTERM, and SIGKILL 30 seconds later; one that has ended
        already stays as it is.

        Args:
            job: The id of the job.
            reason: Why, in one sentence.
        """
        self._call("batch", "terminate_job", jobId=job, reason=reason)


# Any service of AWS, asked as somebody and somewhere: one sentence for whatever goes wrong.
#
# Calls block. (Calls of runs and deployments, which want to know what is not there: `Calls`.)


# Throttled calls are retried with backoff; a network that cannot be reached is logged.
_PATIENT = {
    "connect_timeout": 10,
    "read_timeout": 30,
    "retries": {"mode": "standard", "total_max_attempts": 6},
}
_DENIED = {
    "403", "AccessDenied", "AccessDeniedException", "ExpiredToken", "ExpiredTokenException",
    "InvalidClientTokenId", "InvalidSignatureException", "SignatureDoesNotMatch",
    "UnauthorizedOperation", "UnrecognizedClientException",
}  # fmt: skip
_QUICK = {"connect_timeout": 4, "read_timeout": 8, "retries": {"total_max_attempts": 2}}


class AwsRefused(AwsError):
    """A service has turned a call down; `code` is its word for why, `said` its sentence."""

    def __init__(self, message: str, code: str, said: str) -> None:
        super().__init__(message)
        self.code = code
        self.said = said

    @property
    def denied(self) -> bool:
        """Whether access was denied: missing permission or invalid credentials."""
        return self.code in _DENIED


class AwsAnswer(NamedTuple):
    """What a call gave; `date` is what the server's clock said (a Date of HTTP), if it said so."""

    values: dict[str, Any]
    date: str | None


class Services:
    """Those of an account, asked as who the credentials are of, or as `role`, which is then
    assumed; in `region`, else in that of all tools of AWS; at `endpoint`, if it is not AWS itself.
    `quick` gives up within seconds."""

    def __init__(
        self,
        region: str | None = None,
        role: str | None = None,
        *,
        endpoint: str | None = None,
        quick: bool = False,
    ) -> None:
        self._region = region
        self._endpoint = endpoint
        self._role = role
        self._config = Config(**(_QUICK if quick else _PATIENT))
        self._session: Session | None = None

    def call(self, service: str, operation: str, **values: Any) -> dict[str, Any]:
        """Return what the call gives.

        Args:
            service: The name of the service, as botocore has it.
            operation: The name of the operation, as botocore has it.
            **values: The parameters of the call.

        Raises:
            AwsRefused: Where there are no credentials or nobody answers, and InvalidSetting where
                the region is not known.
            AwsError: Where there are no credentials or nobody answers, and InvalidSetting where the
                region is not known.
        """
        return self.answer(service, operation, **values).values

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
            session = self._opened()
            client = session.create_client(
                service, self._region, endpoint_url=self._endpoint, config=self._config
            )
            given = getattr(client, operation)(**values)
        except faults.ClientError as error:
            raise _refused(error, service) from error
        except faults.NoRegionError as error:
            raise InvalidSetting(
                "The region of AWS is not known: set AWS_DEFAULT_REGION."
            ) from error
        except faults.NoCredentialsError as error:
            raise AwsError(
                "There are no credentials of AWS: set AWS_PROFILE, or AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY."
            ) from error
        except (faults.BotoCoreError, ValueError) as error:  # ValueError: an endpoint that is none
            raise AwsError(f"{service} of AWS cannot be asked: {_sentence(error)}") from error
        return AwsAnswer(given, given["ResponseMetadata"]["HTTPHeaders"].get("date"))

    def _opened(self) -> Session:
        if self._session is None:
            session = get_session()
            if self._role is not None:
                _assume(session, self._role, self._region)
            self._session = session
        return self._session


def _assume(session: Session, role: str, region: str | None) -> None:
    """Let the session have the credentials of the role. Raises what botocore does."""

    def client(service: str, **options: Any) -> Any:
        return session.create_client(service, region_name=region, **options)

    credentials = session.get_credentials()
    if credentials is None:
        raise faults.NoCredentialsError
    fetcher = AssumeRoleCredentialFetcher(client, credentials, role)
    # Here, since botocore logs a traceback where the role is refused when it is first needed.
    fetcher.fetch_credentials()
    session._credentials = DeferredRefreshableCredentials(fetcher.fetch_credentials, "assume-role")


def _refused(error: Any, service: str) -> AwsRefused:
    fault = error.response.get("Error", {})
    code, said = str(fault.get("Code", "")), str(fault.get("Message", "")).strip().rstrip(".")
    who = "sts" if error.operation_name == "AssumeRole" else service
    message = f"{who} of AWS refuses {error.operation_name} ({code}): {said or code}."
    return AwsRefused(message, code, said)


def _sentence(error: Exception) -> str:
    return f"{str(error).strip().rstrip('.')}."
