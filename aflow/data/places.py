"""Which object a key means: URLs of S3, and the prefix that a client was made for."""

from __future__ import annotations

import os
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

from aflow.config import Settings
from aflow.data.objects import S3GetObject
from aflow.errors import InvalidSetting, S3InvalidUrl
from aflow.flow.current import current
from aflow.flow.spec import FlowSpec


class Root(NamedTuple):
    """The prefix of a client, None where keys are whole URLs, and how its server is reached."""

    url: str | None
    endpoint: str | None = None
    region: str | None = None

    def url_of(self, key: str | None) -> str:
        """The URL that a key means; raises S3InvalidUrl."""
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
) -> Root:
    """The prefix of a client that is made with these arguments; raises S3InvalidUrl."""
    endpoint = settings.s3_endpoint
    if run is not None:
        return _of_run(settings, bucket, prefix, run)
    if s3root is None:
        return Root(None, endpoint)
    return _read(s3root, "s3root=", endpoint)


def _of_run(settings: Settings, bucket: str | None, prefix: str | None, run: Any) -> Root:
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


def _read(place: str, what: str, endpoint: str | None) -> Root:
    """s3://bucket/prefix with ?endpoint= and &region=, as datastores are named."""
    parts = urlsplit(place)
    if parts.scheme != "s3" or not parts.netloc:
        raise S3InvalidUrl(f"{what} has to be a URL, s3://bucket/prefix: {place!r} is none.")
    options = {name: values[-1] for name, values in parse_qs(parts.query).items()}
    url = place.partition("?")[0].rstrip("/")
    return Root(url, options.get("endpoint", endpoint), options.get("region"))


class Location(NamedTuple):
    """Where an object is."""

    bucket: str
    key: str

    @property
    def arguments(self) -> dict[str, str]:
        """The same as a request names it."""
        return {"Bucket": self.bucket, "Key": self.key}


def split(url: str) -> Location:
    """The bucket and the key of a URL. All that follows the bucket is the key: ? and # as well."""
    bucket, _, key = url.removeprefix("s3://").partition("/")
    return Location(bucket, key)


def _is_whole(url: str) -> bool:
    return url.startswith("s3://") and all(split(url))


def range_of(asked: str | S3GetObject | None) -> str | None:
    """The range that is asked for, as HTTP says it; None for the whole object."""
    if not isinstance(asked, S3GetObject) or (asked.offset is None and asked.length is None):
        return None
    start, length = asked.offset or 0, asked.length
    if length is None:
        return f"bytes={start}-"
    return f"bytes={length}" if length < 0 else f"bytes={start}-{start + length - 1}"


def key_of(asked: str | S3GetObject | None) -> str | None:
    """The key of what is asked for."""
    return asked.key if isinstance(asked, S3GetObject) else asked
