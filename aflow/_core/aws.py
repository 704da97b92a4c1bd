"""Sessions, credentials and error codes of AWS.

Importing this module raises MissingExtra if aiobotocore is not installed.
"""

from __future__ import annotations

import functools
import re
from typing import Any, NamedTuple, Self

from aflow.errors import MissingExtra

try:
    from aiobotocore.credentials import (
        AioAssumeRoleCredentialFetcher,
        AioDeferredRefreshableCredentials,
    )
    from aiobotocore.session import AioSession
    from botocore import exceptions as faults
    from botocore.credentials import AssumeRoleCredentialFetcher, DeferredRefreshableCredentials
    from botocore.loaders import Loader
    from botocore.session import Session
except ImportError as error:
    raise MissingExtra("AWS needs aiobotocore: install aflow-runtime[aws].") from error

__all__ = [
    "LOST_CREDENTIALS", "NO_CREDENTIALS", "Refusal", "assume_role", "assume_role_async",
    "blocking_session", "faults", "new_session",
]  # fmt: skip

NO_CREDENTIALS = (faults.NoCredentialsError, faults.PartialCredentialsError)
LOST_CREDENTIALS = (faults.SSOError, faults.CredentialRetrievalError)
"""Errors of a source of credentials, which are temporary or last until the user logs in again."""

_BUSY = frozenset({
    "BadDigest", "ConditionalRequestConflict", "InternalError", "NoSuchUpload", "OperationAborted",
    "RequestLimitExceeded", "RequestThrottled", "RequestTimeout", "ServerException",
    "ServiceUnavailable", "SlowDown", "ThrottledException", "Throttling", "ThrottlingException",
    "TooManyRequestsException",
})  # fmt: skip
# Codes for invalid or expired credentials: the call may succeed with others.
_EXPIRED = frozenset({
    "ExpiredToken", "ExpiredTokenException", "InvalidClientTokenId", "RequestExpired",
    "UnrecognizedClientException",
})  # fmt: skip
_DENIED = re.compile(
    "AccessDenied|AllAccessDisabled|AuthFailure|ExpiredToken|InvalidAccessKey|InvalidClientTokenId"
    "|InvalidSecurity|InvalidSignature|InvalidToken|OptInRequired|RequestTimeTooSkewed"
    "|SignatureDoesNotMatch|Unauthorized|UnrecognizedClient|^40[13]$"
)


class Refusal(NamedTuple):
    """The error response of a service: its code, message and HTTP status."""

    code: str
    said: str
    status: int

    @classmethod
    def of(cls, error: Any) -> Self:
        """Return the code, message and status of an error.

        Args:
            error: The ClientError of botocore.
        """
        fault = error.response.get("Error", {})
        said = str(fault.get("Message", "")).strip().rstrip(".")
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") or 0
        return cls(str(fault.get("Code", "")), said, status)

    @property
    def is_busy(self) -> bool:
        """Whether the same call may succeed later."""
        return self.code in _BUSY or self.status == 429 or self.status >= 500

    @property
    def has_expired(self) -> bool:
        """Whether the credentials are invalid or have expired."""
        return self.code in _EXPIRED

    @property
    def is_denied(self) -> bool:
        """Whether access was denied: a permission is missing, or the credentials are invalid."""
        return _DENIED.search(self.code) is not None


class _ServiceLoader(Loader):  # type: ignore[misc]
    """A loader with a fixed list of the services that aflow and its credential providers call.

    The base class lists the folders of all 400 services three times, which takes longer than
    loading the description of S3.
    """

    def list_available_services(self, type_name: str) -> list[str]:
        return [
            "apigateway", "batch", "cloudformation", "dynamodb", "ecr", "events", "iam", "logs",
            "s3", "scheduler", "secretsmanager", "signin", "sqs", "sso", "sso-oidc",
            "stepfunctions", "sts",
        ]  # fmt: skip


@functools.cache
def _loader() -> Loader:
    return _ServiceLoader()


def new_session(service: str, profile: str | None = None) -> AioSession:
    """Return a session for asynchronous clients, with the default credentials of botocore.

    Args:
        service: The service whose description is loaded.
        profile: The profile of AWS; None for the default one.
    """
    for kind in ("service-2", "endpoint-rule-set-1", "paginators-1"):
        # Large files, which are loaded once in each process and inherited by forked tasks.
        _loader().load_service_model(service, kind)
    session = AioSession(profile=profile)
    session.register_component("data_loader", _loader())
    return session


def blocking_session() -> Session:
    """Return a session for clients with blocking calls."""
    session = Session()
    session.register_component("data_loader", _loader())
    return session


def assume_role(session: Session, role: str, region: str | None) -> None:
    """Make a blocking session use the credentials of a role, which are refreshed automatically.

    Exceptions of botocore are raised unchanged.

    Args:
        session: The session, with credentials that can assume the role.
        role: The ARN of the role.
        region: The region of STS; None for the default one.
    """

    def client(service: str, **options: Any) -> Any:
        return session.create_client(service, region_name=region, **options)

    credentials = session.get_credentials()
    if credentials is None:
        raise faults.NoCredentialsError
    fetcher = AssumeRoleCredentialFetcher(client, credentials, role)
    # Fetch them now: later, botocore would log a traceback if the role cannot be assumed.
    fetcher.fetch_credentials()
    session._credentials = DeferredRefreshableCredentials(fetcher.fetch_credentials, "assume-role")


async def assume_role_async(session: AioSession, role: str, region: str | None) -> None:
    """Make a session for asynchronous clients use the credentials of a role, like `assume_role`.

    Args:
        session: The session, with credentials that can assume the role.
        role: The ARN of the role.
        region: The region of STS; None for the default one.
    """

    def client(service: str, **options: Any) -> Any:
        return session.create_client(service, region_name=region, **options)

    fetcher = AioAssumeRoleCredentialFetcher(client, await session.get_credentials(), role)
    held = AioDeferredRefreshableCredentials(fetcher.fetch_credentials, "assume-role")
    await held.get_frozen_credentials()
    session._credentials = held
