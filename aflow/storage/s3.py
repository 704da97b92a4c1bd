"""The object store in a bucket of S3, or of what speaks its language.

`s3://bucket/prefix`; `?endpoint=URL&region=NAME` for others than AWS. Credentials and regions come
from where botocore finds them (AWS_* variables, ~/.aws, the role of the machine).

An object is an object. What is larger than a part goes up and comes down in parts, several at a
time. `put_if_absent` is a conditional write (`If-None-Match: *`); an endpoint that ignores the
condition is found out at the first such write, and refused. Calls fail at once: whether another try
is worth it says the kind of the error (StoreBusy), and a wrapper makes it (retrying.py).

A touch writes a mark beside the object, since S3 cannot remove an object on the condition that
nobody has wanted it lately: who removes sets a copy aside, removes the object, looks at the mark
once more, and puts the object back if somebody has wanted it meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Iterator, Sequence
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit

from aflow.errors import (
    InvalidSetting,
    MissingExtra,
    ObjectNotFound,
    StoreBusy,
    StoreUnavailable,
)
from aflow.storage.base import Buffer, check_name, check_prefix
from aflow.storage.portal import Portal

try:
    import aiohttp
    from aiobotocore.config import AioConfig
    from aiobotocore.session import AioSession
    from botocore import exceptions as faults
except ImportError as error:
    raise MissingExtra("Storage in S3 needs aiobotocore: install aflow[aws].") from error

T = TypeVar("T")

PART = 8 << 20  # bytes of a part
PARTS_AT_ONCE = 8
CONNECTIONS = 64
_MARKS, _ASIDE, _PROBE = "touched/", "aside/", "probe/conditional"
_BUSY_CODES = frozenset(
    [
        "SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout", "BadDigest",
        "RequestTimeTooSkewed", "Throttling", "ThrottlingException", "OperationAborted",
        "TooManyRequestsException", "ConditionalRequestConflict",
    ]
)  # fmt: skip
_MISSING_CODES = frozenset({"NoSuchKey", "404", "NotFound"})
_BUSY = (
    faults.HTTPClientError,
    faults.ConnectionError,
    faults.IncompleteReadError,
    faults.ResponseStreamingError,
    aiohttp.ClientError,
    TimeoutError,
    ConnectionError,
)
_ADVICE = {
    "NoSuchBucket": "there is no such bucket: create it, or correct the URL",
    "AccessDenied": "access is denied: check the policies of the bucket and of the credentials",
    "403": "access is denied: check the credentials, and the policies of the bucket",
    "InvalidAccessKeyId": "the access key is not known: correct AWS_ACCESS_KEY_ID",
    "SignatureDoesNotMatch": "the secret key is wrong: correct AWS_SECRET_ACCESS_KEY",
    "ExpiredToken": "the credentials have expired: get new ones",
    "PermanentRedirect": "the bucket is in another region: set AWS_REGION, or ?region= in the URL",
    "AuthorizationHeaderMalformed": "the region is wrong: set AWS_REGION, or ?region= in the URL",
}


class S3Store:
    """Objects in a bucket, below a prefix."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        options = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        self._endpoint = options.pop("endpoint", None)
        self._region = options.pop("region", None)
        if parts.scheme != "s3" or not parts.netloc or options:
            raise InvalidSetting(
                f"{url!r} is no place in S3: write s3://bucket/prefix, with ?endpoint= and "
                "&region= where it is not AWS."
            )
        self._bucket = parts.netloc
        self._prefix = parts.path.strip("/") + "/" if parts.path.strip("/") else ""
        self._url = url
        self._session = AioSession()
        # Read once, by the process from which tasks are forked: they find it there.
        loader = self._session.get_component("data_loader")
        for kind in ("service-2", "endpoint-rule-set-1", "paginators-1"):
            loader.load_service_model("s3", kind)
        self._portal: Portal[Any] = Portal("aflow-s3", self._connected, self._disconnected)
        self._checks_conditions: bool | None = None

    @property
    def url(self) -> str:
        """`s3://bucket/prefix`, with what else was said."""
        return self._url

    async def _connected(self) -> Any:
        config = AioConfig(
            max_pool_connections=CONNECTIONS,
            retries={"total_max_attempts": 1},
            connect_timeout=10,
            read_timeout=60,
        )
        stack = contextlib.AsyncExitStack()
        client = await stack.enter_async_context(
            self._session.create_client(
                "s3", region_name=self._region, endpoint_url=self._endpoint, config=config
            )
        )
        client.aflow_stack = stack
        return client

    @staticmethod
    async def _disconnected(client: Any) -> None:
        await client.aflow_stack.aclose()

    def close(self) -> None:
        """Let go of connections; the next call makes new ones. May be called twice."""
        self._portal.close()

    # ------------------------------------------------------------------ writing

    def put(self, name: str, parts: Sequence[Buffer], *, durable: bool = False) -> None:
        """Write the parts as one object; see the port. S3 keeps what it has acknowledged."""
        key = self._key(name)
        self._call(name, lambda s3: self._write(s3, key, parts, {}))

    def put_if_absent(self, name: str, parts: Sequence[Buffer], *, durable: bool = False) -> bool:
        """The same where no such object is; see the port."""
        self._check_conditions()
        return self._put_new(name, parts)

    def _put_new(self, name: str, parts: Sequence[Buffer]) -> bool:
        key = self._key(name)
        try:
            self._call(name, lambda s3: self._write(s3, key, parts, {"IfNoneMatch": "*"}))
        except _Refused:
            return False
        return True

    def _check_conditions(self) -> None:
        """See, once, that a write with a condition is refused where there is an object."""
        if self._checks_conditions is None:
            self._put_new(_PROBE, [b"aflow"])
            self._checks_conditions = not self._put_new(_PROBE, [b"aflow"])
        if not self._checks_conditions:
            raise StoreUnavailable(
                f"The datastore {self._url} ignores the conditions of writes (If-None-Match), on "
                "which the commits of tasks rest: use one that keeps them, as S3 does."
            )

    async def _write(
        self, s3: Any, key: str, parts: Sequence[Buffer], condition: dict[str, str]
    ) -> None:
        views = [memoryview(part).cast("B") for part in parts]
        place = {"Bucket": self._bucket, "Key": key}
        if sum(view.nbytes for view in views) <= 2 * PART:
            await s3.put_object(**place, Body=b"".join(views), **condition)
            return
        started = await s3.create_multipart_upload(**place)
        upload = {**place, "UploadId": started["UploadId"]}
        try:
            tags = await _some_at_once(
                self._write_part(s3, upload, number, data)
                for number, data in enumerate(_pieces(views), 1)
            )
            listed = [{"PartNumber": number, "ETag": tag} for number, tag in enumerate(tags, 1)]
            await s3.complete_multipart_upload(
                **upload, MultipartUpload={"Parts": listed}, **condition
            )
        except BaseException:
            # What is left of it costs money; but why it failed is what has to be told.
            with contextlib.suppress(faults.ClientError, *_BUSY):
                await s3.abort_multipart_upload(**upload)
            raise

    @staticmethod
    async def _write_part(s3: Any, upload: dict[str, str], number: int, data: bytes) -> str:
        answer = await s3.upload_part(**upload, PartNumber=number, Body=data)
        tag: str = answer["ETag"]
        return tag

    # ------------------------------------------------------------------ reading

    def get(self, name: str, start: int = 0, length: int | None = None) -> Buffer:
        """The bytes from `start`; see the port."""
        if length == 0:
            if self.size(name) is None:
                raise self._missing(name)
            return b""
        key = self._key(name)
        found: Buffer = self._call(name, lambda s3: self._read(s3, key, start, length))
        return found

    async def _read(self, s3: Any, key: str, start: int, length: int | None) -> Buffer:
        """The first part tells how much there is; the others come side by side."""
        wanted = PART if length is None else min(length, PART)
        place = {"Bucket": self._bucket, "Key": key}
        try:
            answer = await s3.get_object(**place, Range=f"bytes={start}-{start + wanted - 1}")
        except faults.ClientError as error:
            if _code(error) in ("InvalidRange", "416"):
                return b""  # it begins past the end
            raise
        first: bytes = await _body(answer)
        total = int(answer["ContentRange"].rpartition("/")[2]) if "ContentRange" in answer else 0
        end = total if length is None else min(total, start + length)
        if start + len(first) >= end:
            return first
        whole = memoryview(bytearray(end - start))
        whole[: len(first)] = first

        async def fill(at: int) -> None:
            last = min(at + PART, end) - 1
            part = await s3.get_object(**place, Range=f"bytes={at}-{last}", IfMatch=answer["ETag"])
            data = await _body(part)
            if len(data) != last + 1 - at:
                raise StoreBusy(f"A part of {key} was cut off on its way.")
            whole[at - start : at - start + len(data)] = data

        await _some_at_once(fill(at) for at in range(start + len(first), end, PART))
        return whole.toreadonly()

    def size(self, name: str) -> int | None:
        """How many bytes the object has; see the port."""
        found = self._head(name, self._key(name))
        return None if found is None else int(found["ContentLength"])

    def _head(self, name: str, key: str) -> Any:
        try:
            return self._call(name, lambda s3: s3.head_object(Bucket=self._bucket, Key=key))
        except ObjectNotFound:
            return None

    def list(self, prefix: str) -> Iterator[str]:
        """The names that begin with `prefix`; see the port."""
        return self._names(self._prefix + check_prefix(prefix))

    def _names(self, begin: str) -> Iterator[str]:
        for each in self._listed(begin):
            name = each["Key"][len(self._prefix) :]
            if not name.startswith((_MARKS, _ASIDE)) and name != _PROBE:
                yield name

    def _listed(self, begin: str) -> Iterator[Any]:
        token: dict[str, str] = {}
        while True:
            page = self._page(begin, token)
            yield from page.get("Contents", ())
            if not page.get("IsTruncated"):
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}

    def _page(self, begin: str, token: dict[str, str]) -> Any:
        return self._call(
            begin, lambda s3: s3.list_objects_v2(Bucket=self._bucket, Prefix=begin, **token)
        )

    # ------------------------------------------------------------------ removing

    def delete(self, name: str) -> None:
        """Remove the object, if it is there."""
        self._remove(self._key(name))

    def _remove(self, key: str) -> None:
        self._call(key, lambda s3: s3.delete_object(Bucket=self._bucket, Key=key))

    def touch(self, name: str) -> bool:
        """Say that the object is wanted; see the port."""
        key = self._key(name)
        mark = self._prefix + _MARKS + name
        self._call(name, lambda s3: s3.put_object(Bucket=self._bucket, Key=mark, Body=b""))
        return self._head(name, key) is not None

    def remove_untouched(self, name: str, since: float, *, dry_run: bool = False) -> int | None:
        """Remove the object if nobody has wanted it since then; see the port."""
        key, mark = self._key(name), self._prefix + _MARKS + name
        found = self._head(name, key)
        if found is None or self._is_younger(found, since):
            return None
        if self._is_younger(self._head(name, mark), since):
            return None
        size = int(found["ContentLength"])
        if dry_run:
            return size
        aside = self._prefix + _ASIDE + name
        self._copy(name, key, aside)
        self._remove(key)
        wanted = self._is_younger(self._head(name, mark), since)
        if wanted:
            self._copy(name, aside, key)
        self._remove(aside)
        if wanted:
            return None
        self._remove(mark)
        return size

    def _copy(self, name: str, key: str, to: str) -> None:
        source = {"Bucket": self._bucket, "Key": key}
        self._call(name, lambda s3: s3.copy_object(Bucket=self._bucket, Key=to, CopySource=source))

    @staticmethod
    def _is_younger(found: Any, since: float) -> bool:
        # Times of S3 are whole seconds, rounded down.
        return found is not None and found["LastModified"].timestamp() + 1 > since

    def sweep(self, older_than_s: float, now: float) -> int:
        """Put back what a remover that died has set aside, remove old marks, and give up uploads
        that nobody goes on with; how many things these were."""
        count = 0
        before = now - older_than_s
        for each in self._listed(self._prefix + _ASIDE):
            if each["LastModified"].timestamp() < before:
                name = each["Key"][len(self._prefix + _ASIDE) :]
                if self._head(name, self._key(name)) is None:
                    self._copy(name, each["Key"], self._key(name))
                self._remove(each["Key"])
                count += 1
        uploads = self._call(
            self._prefix,
            lambda s3: s3.list_multipart_uploads(Bucket=self._bucket, Prefix=self._prefix),
        )
        for each in uploads.get("Uploads", ()):
            if each["Initiated"].timestamp() < before:
                self._abort(each["Key"], each["UploadId"])
                count += 1
        return count

    def _abort(self, key: str, upload: str) -> None:
        self._call(
            key,
            lambda s3: s3.abort_multipart_upload(Bucket=self._bucket, Key=key, UploadId=upload),
        )

    # ------------------------------------------------------------------ how

    def _key(self, name: str) -> str:
        return self._prefix + check_name(name)

    def _missing(self, name: str) -> ObjectNotFound:
        return ObjectNotFound(f"There is no object {name!r} in {self._url}.")

    def _call(self, name: str, work: Any) -> Any:
        """What the coroutine of `work(client)` gives; its errors as ours."""
        try:
            return self._portal.call(work)
        except faults.ClientError as error:
            raise self._fault(name, error) from error
        except StoreBusy:
            raise
        except (faults.NoCredentialsError, faults.PartialCredentialsError) as error:
            raise StoreUnavailable(
                f"The datastore {self._url} cannot be used: there are no credentials for it. Set "
                "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE."
            ) from error
        except (faults.FlexibleChecksumError, *_BUSY) as error:
            told = f"{type(error).__name__}: {error}".strip(": ")
            raise StoreBusy(f"The datastore {self._url} does not answer ({told}).") from error
        except faults.BotoCoreError as error:
            raise StoreUnavailable(
                f"The datastore {self._url} cannot be used: {error}. Correct the settings of AWS."
            ) from error

    def _fault(self, name: str, error: Any) -> Exception:
        code, status = _code(error), error.response["ResponseMetadata"].get("HTTPStatusCode", 0)
        if code in _MISSING_CODES:
            return self._missing(name)
        if code == "PreconditionFailed" or status == 412:
            return _Refused(f"There is an object {name!r} in {self._url} already.")
        if code in _BUSY_CODES or status in (429, 500, 502, 503, 504):
            return StoreBusy(f"The datastore {self._url} is busy ({code}): try again later.")
        advice = _ADVICE.get(code) or f"{error}"
        return StoreUnavailable(f"The datastore {self._url} cannot be used: {advice}.")


class _Refused(StoreUnavailable):
    """A condition of a write does not hold."""


def _code(error: Any) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


async def _body(answer: Any) -> bytes:
    async with answer["Body"] as stream:
        data: bytes = await stream.read()
    if len(data) != answer["ContentLength"]:
        raise StoreBusy("An object was cut off on its way.")
    return data


def _pieces(views: Sequence[memoryview]) -> Iterator[bytes]:
    """The bytes of the views in parts of PART; each is made when its turn comes."""
    piece = bytearray()
    for view in views:
        at = 0
        while at < view.nbytes:
            taken = view[at : at + PART - len(piece)]
            piece += taken
            at += taken.nbytes
            if len(piece) == PART:
                yield bytes(piece)
                piece.clear()
    if piece:
        yield bytes(piece)


async def _some_at_once(work: Iterator[Coroutine[Any, Any, T]]) -> list[T]:
    """The answers of all, in order; PARTS_AT_ONCE of them are on their way at a time, and no other
    is begun, which bounds the memory."""
    answers: dict[int, T] = {}
    numbered = enumerate(work)

    async def go_on() -> None:
        for number, each in numbered:
            answers[number] = await each

    async with asyncio.TaskGroup() as group:
        for _ in range(PARTS_AT_ONCE):
            group.create_task(go_on())
    return [answers[number] for number in sorted(answers)]
