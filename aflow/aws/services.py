"""Any service of AWS, asked as somebody and somewhere: one sentence for whatever goes wrong.

Calls block. (Calls of runs and deployments, which want to know what is not there: calls.py.)
"""

from __future__ import annotations

from typing import Any, NamedTuple

from aflow.errors import AwsError, InvalidSetting, MissingExtra

try:
    from botocore import exceptions as faults
    from botocore.config import Config
    from botocore.credentials import AssumeRoleCredentialFetcher, DeferredRefreshableCredentials
    from botocore.session import Session, get_session
except ImportError as error:
    raise MissingExtra("Services of AWS need aiobotocore: install aflow-runtime[aws].") from error

# Throttled calls are sent again, later each time; who waits is told of a network that is not there.
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
        """Whether who asks may not do this, or is not who he says."""
        return self.code in _DENIED


class Answer(NamedTuple):
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
        """What the call gives. Raises AwsRefused, AwsError where there are no credentials or nobody
        answers, and InvalidSetting where the region is not known."""
        return self.answer(service, operation, **values).values

    def answer(self, service: str, operation: str, **values: Any) -> Answer:
        """The same, and what time it is there."""
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
        return Answer(given, given["ResponseMetadata"]["HTTPHeaders"].get("date"))

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
    told = error.response.get("Error", {})
    code, said = str(told.get("Code", "")), str(told.get("Message", "")).strip().rstrip(".")
    who = "sts" if error.operation_name == "AssumeRole" else service
    message = f"{who} of AWS refuses {error.operation_name} ({code}): {said or code}."
    return AwsRefused(message, code, said)


def _sentence(error: Exception) -> str:
    return f"{str(error).strip().rstrip('.')}."
