"""Arguments and results of the S3 client: objects, ranges of objects, and objects to upload."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import parse_qs, urlsplit

from aflow._core.records import NamedTuple, dataclass
from aflow._core.settings import Settings
from aflow.errors import InvalidSetting, S3InvalidRange, S3InvalidUrl
from aflow.flow.current import current
from aflow.flow.spec import FlowSpec

PutValue = str | bytes | bytearray | memoryview | BinaryIO


class S3GetObject(NamedTuple):
    """A range of an object, in bytes: `length` from `offset`.

    A negative length selects the last bytes, None all bytes after the offset."""

    key: str
    offset: int | None = None
    length: int | None = None


class S3PutObject(NamedTuple):
    """An object to upload: a value or the file at `path`, and its attributes."""

    key: str
    value: PutValue | None = None
    path: str | None = None
    content_type: str | None = None
    encryption: str | None = None
    metadata: dict[str, str] | None = None


class RangeInfo(NamedTuple):
    """The downloaded range of an object, in bytes."""

    total_size: int
    request_offset: int = 0
    request_length: int = -1


@dataclass(frozen=True, repr=False)
class S3Object:
    """An object in S3, which may have been downloaded, or a prefix.

    `key` is the requested key, or the name below `prefix`. `size` is in bytes: that of the
    download, else of the object; None if the object does not exist. `last_modified` is in seconds
    since the epoch. Attributes that were not requested are None."""

    url: str
    prefix: str | None = None
    path: str | None = None
    size: int | None = None
    content_type: str | None = None
    metadata: dict[str, str] | None = None
    range_info: RangeInfo | None = None
    last_modified: int | None = None
    encryption: str | None = None

    @property
    def key(self) -> str:
        """The name below the prefix; the URL if there is no prefix."""
        if self.prefix is None or self.prefix == self.url:
            return self.url
        return self.url[len(self.prefix.rstrip("/")) + 1 :].rstrip("/")

    @property
    def exists(self) -> bool:
        """Whether the object exists."""
        return self.size is not None

    @property
    def downloaded(self) -> bool:
        """Whether `path`, `blob` and `text` are available."""
        return self.path is not None

    @property
    def blob(self) -> bytes | None:
        """The bytes; None if they were not downloaded. Closing the client deletes the file."""
        return None if self.path is None else Path(self.path).read_bytes()

    @property
    def text(self) -> str | None:
        """The bytes decoded as UTF-8 (invalid ones replaced); None if not downloaded."""
        blob = self.blob
        return None if blob is None else blob.decode("utf-8", errors="replace")

    @property
    def has_info(self) -> bool:
        """Whether content type, metadata, encryption or the range are known."""
        known: tuple[Any, ...] = (
            self.content_type, self.metadata, self.range_info, self.encryption,
        )  # fmt: skip
        return any(each is not None for each in known)

    def __repr__(self) -> str:
        if self.path is not None:
            state = f"{self.size} bytes, local"
        elif self.size is not None:
            state = f"{self.size} bytes, in S3"
        else:
            state = "object does not exist"
        return f"<S3Object {self.url} ({state})>"


# Resolve keys: S3 URLs, and the prefix of a client.


class S3Prefix(NamedTuple):
    """The prefix of a client, and the endpoint and region of its server.

    The prefix is None if keys are complete URLs."""

    url: str | None
    endpoint: str | None = None
    region: str | None = None

    def url_of(self, key: str | None) -> str:
        """Return the URL of a key.

        Args:
            key: The key, relative to the prefix of this client, or a complete `s3://` URL.

        Raises:
            S3InvalidUrl: If the key is invalid for this client.
        """
        if self.url is None:
            if key and _is_whole(key):
                return key
            raise S3InvalidUrl(_ADVICE_INSIDE if current.is_running_flow else _ADVICE)
        if not key:
            return self.url
        if key.startswith("s3://"):
            raise S3InvalidUrl(
                f"{key} is a whole URL, and this client has a prefix ({self.url}): give the name "
                "below it, or use S3() without a prefix."
            )
        return f"{self.url}/{key.lstrip('/')}"


_ADVICE = "S3() without a prefix takes whole URLs, s3://bucket/key: give one, or s3root= or run=."
_ADVICE_INSIDE = "Inside of a flow use S3(run=self), or give a whole URL, s3://bucket/key."


def root_of(
    settings: Settings,
    bucket: str | None,
    prefix: str | None,
    run: Any,
    s3root: str | None,
) -> S3Prefix:
    """Return the prefix of a client with these arguments.

    Args:
        settings: The settings of this program.
        bucket: Replaces the bucket of the data root, for `run`; None for no change.
        prefix: Replaces the path of the data root, for `run`; None for no change.
        run: The run whose directory contains the keys; None for none.
        s3root: The URL that keys are relative to; None for none.

    Raises:
        S3InvalidUrl: If the prefix or URL is invalid.
    """
    endpoint = settings.s3_endpoint
    if run is not None:
        return _of_run(settings, bucket, prefix, run)
    if s3root is None:
        return S3Prefix(None, endpoint)
    return _read(s3root, "s3root=", endpoint)


def _of_run(settings: Settings, bucket: str | None, prefix: str | None, run: Any) -> S3Prefix:
    try:
        data_root = settings.data_root
    except InvalidSetting as error:
        raise S3InvalidUrl(str(error)) from error
    base = _read(data_root, "AFLOW_DATATOOLS_S3ROOT", settings.s3_endpoint)
    assert base.url is not None, "it was read from a URL"
    parts = split(base.url)
    path = os.path.join(prefix or parts.key, *_names_of(run))
    return base._replace(url=f"s3://{bucket or parts.bucket}/{path.strip('/')}")


def _names_of(run: Any) -> tuple[str, str]:
    if isinstance(run, FlowSpec):
        if not current.is_running_flow:
            raise S3InvalidUrl("S3(run=self) works while the flow runs: give a Run elsewhere.")
        return str(current.flow_name), str(current.run_id)
    try:
        return run.parent.id, run.id
    except AttributeError:
        raise S3InvalidUrl(
            f"S3(run=...) takes self of a step, or a Run: not {type(run).__name__}."
        ) from None


def _read(place: str, what: str, endpoint: str | None) -> S3Prefix:
    """Parse s3://bucket/prefix with ?endpoint= and &region=, the format of datastore URLs."""
    parts = urlsplit(place)
    if parts.scheme != "s3" or not parts.netloc:
        raise S3InvalidUrl(f"{what} has to be a URL, s3://bucket/prefix: {place!r} is none.")
    options = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    url = place.partition("?")[0].rstrip("/")
    return S3Prefix(url, options.get("endpoint", endpoint), options.get("region"))


class Location(NamedTuple):
    """The location of an object."""

    bucket: str
    key: str

    @property
    def arguments(self) -> dict[str, str]:
        """The location as arguments of a request."""
        return {"Bucket": self.bucket, "Key": self.key}


def split(url: str) -> Location:
    """Return the bucket and the key of a URL. The key may contain ? and #.

    Args:
        url: The URL.
    """
    bucket, _, key = url.removeprefix("s3://").partition("/")
    return Location(bucket, key)


def _is_whole(url: str) -> bool:
    return url.startswith("s3://") and all(split(url))


def range_of(asked: str | S3GetObject | None) -> str | None:
    """Return the requested range as an HTTP header value; None for the whole object.

    Args:
        asked: The key, or a key with a range of bytes.

    Raises:
        S3InvalidRange: If the range begins before the object, or is empty.
    """
    if not isinstance(asked, S3GetObject) or (asked.offset is None and asked.length is None):
        return None
    start, length = asked.offset or 0, asked.length
    if start < 0 or length == 0:  # a server that cannot read a range sends the whole object
        raise S3InvalidRange(
            f"{asked.key} has no range with offset={asked.offset} and length={length}: the "
            "offset is at least 0, the length at least 1, or negative for the last bytes."
        )
    if length is None:
        return f"bytes={start}-"
    return f"bytes={length}" if length < 0 else f"bytes={start}-{start + length - 1}"


def key_of(asked: str | S3GetObject | None) -> str | None:
    """Return the requested key.

    Args:
        asked: The key, or a key with a range of bytes.
    """
    return asked.key if isinstance(asked, S3GetObject) else asked
