"""What an error of S3 means: one sentence, and whether another try is worth it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple

from aflow.errors import MissingExtra, ObjectNotFound, StoreBusy, StoreUnavailable

try:
    import aiohttp
    from botocore import exceptions as faults
except ImportError as error:
    raise MissingExtra("Storage in S3 needs aiobotocore: install aflow-runtime[aws].") from error


class Refused(StoreUnavailable):
    """A condition of a write, or of a read, does not hold."""


class OutOfRange(StoreUnavailable):
    """The bytes asked for begin past the end of the object."""


class AccessDenied(StoreUnavailable):
    """Who asks may not do this, or is not who he says."""


class NoBucket(StoreUnavailable):
    """There is no such bucket."""


class Subject(NamedTuple):
    """What a request is about, as sentences say it: `place` is the datastore, or the URL of an
    object; `missing` is the sentence where there is no such object."""

    place: str
    missing: str


_BUSY_CODES = frozenset(
    [
        "SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout", "BadDigest",
        "Throttling", "ThrottlingException", "OperationAborted", "TooManyRequestsException",
        "ConditionalRequestConflict", "NoSuchUpload",
    ]
)  # fmt: skip
_BUSY_STATUS = frozenset({429, 500, 502, 503, 504})
_MISSING_CODES = frozenset({"NoSuchKey", "404", "NotFound"})
_RANGE_CODES = frozenset({"InvalidRange", "416"})
_DENIED_CODES = frozenset(
    [
        "403", "AccessDenied", "AllAccessDisabled", "ExpiredToken", "InvalidAccessKeyId",
        "InvalidToken", "RequestTimeTooSkewed", "SignatureDoesNotMatch",
    ]
)  # fmt: skip
_BUSY = (
    faults.HTTPClientError,
    faults.ConnectionError,
    faults.FlexibleChecksumError,
    faults.IncompleteReadError,
    faults.ResponseStreamingError,
    aiohttp.ClientError,
    TimeoutError,
    ConnectionError,
)
_OTHER_REGION = "the bucket is in another region: set AWS_REGION, or ?region= in the URL"
_ADVICE = {
    "NoSuchBucket": "there is no such bucket: create it, or correct the URL",
    "AccessDenied": "access is denied: check the policies of the bucket and of the credentials",
    "403": "access is denied: check the credentials, and the policies of the bucket",
    "InvalidAccessKeyId": "the access key is not known: correct AWS_ACCESS_KEY_ID",
    "SignatureDoesNotMatch": "the secret key is wrong: correct AWS_SECRET_ACCESS_KEY",
    "ExpiredToken": "the credentials have expired: get new ones",
    "InvalidToken": "the session token is wrong: correct AWS_SESSION_TOKEN",
    "RequestTimeTooSkewed": "the clock of this machine is wrong by many minutes: set it",
    "PermanentRedirect": _OTHER_REGION,
    "IllegalLocationConstraintException": _OTHER_REGION,
    "301": _OTHER_REGION,
    "AuthorizationHeaderMalformed": "the region is wrong: set AWS_REGION, or ?region= in the URL",
}


@contextlib.contextmanager
def translated(subject: Subject) -> Iterator[None]:
    """Errors of the libraries inside of the block as ours: ObjectNotFound, StoreBusy, and
    StoreUnavailable with the kinds above."""
    try:
        yield
    except faults.ClientError as error:
        raise _refusal(subject, error) from error
    except (faults.NoCredentialsError, faults.PartialCredentialsError) as error:
        raise AccessDenied(
            f"{subject.place} cannot be used: there are no credentials for it. Set "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE."
        ) from error
    except _BUSY as error:
        told = f"{type(error).__name__}: {error}".strip(": ")
        raise StoreBusy(f"{subject.place} does not answer ({told}).") from error
    except faults.BotoCoreError as error:
        raise StoreUnavailable(
            f"{subject.place} cannot be used: {error}. Correct the settings of AWS."
        ) from error


def _refusal(subject: Subject, error: Any) -> Exception:
    code = str(error.response.get("Error", {}).get("Code", ""))
    status = error.response["ResponseMetadata"].get("HTTPStatusCode", 0)
    if code in _MISSING_CODES:
        return ObjectNotFound(subject.missing)
    if code == "PreconditionFailed" or status == 412:
        return Refused(f"{subject.place} has another object there already.")
    if code in _RANGE_CODES:
        return OutOfRange(f"{subject.place} ends before the range that is asked for.")
    if code in _BUSY_CODES or status in _BUSY_STATUS:
        return StoreBusy(f"{subject.place} is busy ({code}): try again later.")
    advice = _ADVICE.get(code) or f"{error}"
    kind = StoreUnavailable
    if code in _DENIED_CODES:
        kind = AccessDenied
    elif code == "NoSuchBucket":
        kind = NoBucket
    return kind(f"{subject.place} cannot be used: {advice}.")
