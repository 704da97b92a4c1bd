"""The object store in a bucket of S3 or of an S3-compatible service.

URLs are `s3://bucket/prefix`, with `?endpoint=URL&region=NAME` for services other than AWS. The
credentials and the region are found by botocore (AWS_* variables, ~/.aws, role of the machine).

Each object of the port is one object in the bucket. Large objects are uploaded and downloaded in
parts, several concurrently, and each part is retried separately. `put_if_absent` is a conditional
write (`If-None-Match: *`); the first such write checks that the endpoint honours the condition, and
raises an error if it does not. Other calls are not retried here: errors after which a retry may
succeed are StoreBusy, and a wrapper retries them (retry.py).

S3 cannot remove an object on the condition that it was not used recently. Therefore a touch writes
a mark with the object's name. A removal copies the object aside, deletes it, reads the mark again,
and restores the object if it was touched in the meantime.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import threading
import zlib
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple, Protocol, TypeVar
from urllib.parse import parse_qs, urlsplit

from aflow._core.secret import as_mentioned
from aflow._core.threads import Portal, in_thread, some_at_once
from aflow.errors import (
    InvalidSetting,
    MissingExtra,
    ObjectNotFound,
    StorageError,
    StoreBusy,
    StoreUnavailable,
)
from aflow.storage.base import Buffer, ObjectStore, check_name, check_prefix
from aflow.storage.retry import retried

# Translation of S3's errors to a message and an error class that tells whether to retry.


try:
    import aiohttp
    from aiobotocore.config import AioConfig
    from aiobotocore.httpsession import AIOHTTPSession
    from aiobotocore.session import AioSession

    from aflow._core.aws import NO_CREDENTIALS, Refusal, faults, new_session
except ImportError as error:
    raise MissingExtra("Storage in S3 needs aiobotocore: install aflow-runtime[aws].") from error


class ConditionFailed(StoreUnavailable):
    """The condition of a conditional write or read is not met."""


class OutOfRange(StoreUnavailable):
    """The requested range starts after the end of the object."""


class AccessDenied(StoreUnavailable):
    """Access is denied, or the credentials are missing or wrong."""


class NoBucket(StoreUnavailable):
    """There is no such bucket."""


class Subject(NamedTuple):
    """The subject of a request in error messages: `place` is the datastore or the URL of an object,
    `missing` the message if there is no such object."""

    place: str
    missing: str


_MISSING_CODES = frozenset({"NoSuchKey", "404", "NotFound"})
_RANGE_CODES = frozenset({"InvalidRange", "416"})
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
    """Translate exceptions of the libraries within the block to aflow's.

    Args:
        subject: The subject of the request, for errors.

    Raises:
        ObjectNotFound: If S3 has no such object.
        StoreBusy: If S3 did not respond, or not completely: a retry may succeed.
        StoreUnavailable: If S3 rejects the request.
    """
    try:
        yield
    except faults.ClientError as error:
        raise _refusal(subject, error) from error
    except NO_CREDENTIALS as error:
        raise AccessDenied(
            f"{subject.place} cannot be used: there are no credentials for it. Set "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE."
        ) from error
    except _BUSY as error:
        detail = f"{type(error).__name__}: {error}".strip(": ")
        raise StoreBusy(f"{subject.place} does not answer ({detail}).") from error
    except faults.BotoCoreError as error:
        raise StoreUnavailable(
            f"{subject.place} cannot be used: {error}. Correct the settings of AWS."
        ) from error


def _refusal(subject: Subject, error: Any) -> Exception:
    refusal = Refusal.of(error)
    code = refusal.code
    if code in _MISSING_CODES:
        return ObjectNotFound(subject.missing)
    if code == "PreconditionFailed" or refusal.status == 412:
        return ConditionFailed(f"{subject.place} has another object there already.")
    if code in _RANGE_CODES:
        return OutOfRange(f"{subject.place} ends before the range that is asked for.")
    if refusal.is_busy:
        return StoreBusy(f"{subject.place} is busy ({code}): try again later.")
    advice = _ADVICE.get(code) or f"{error}"
    kind = StoreUnavailable
    if refusal.is_denied:
        kind = AccessDenied
    elif code == "NoSuchBucket":
        kind = NoBucket
    return kind(f"{subject.place} cannot be used: {advice}.")


# Transfers: connections, and uploads and downloads in parts.
#
# Objects larger than two parts are transferred in parts, several concurrently. A part that fails is
# retried separately: of a hundred parts one is likely to fail.


T = TypeVar("T")
Again = Callable[[], Coroutine[Any, Any, Any]]

PART = 8 << 20  # bytes of a part
MOST_PARTS = 10_000  # S3's limit
PARTS_AT_ONCE = 8
CONNECTIONS = 64
LANES = 3  # threads that transfer the parts of large objects
_CHUNK = 1 << 20
_TIMES = {"connect_timeout": 10, "read_timeout": 60}


class UploadSource(Protocol):
    """The source of an upload."""

    size: int

    def read(self, start: int, length: int) -> bytes:
        """Return exactly `length` bytes.

        Args:
            start: The offset of the first byte.
            length: The number of bytes.
        """


class Sink(Protocol):
    """The destination of a download. If a part is retried, its bytes are written again."""

    def begin(self, size: int) -> None:
        """Prepare for a number of bytes. Called again if the transfer is restarted.

        Args:
            size: The total number of bytes.
        """

    def write(self, at: int, data: bytes) -> None:
        """Write bytes at an offset.

        Args:
            at: The offset of the first byte within the transferred range.
            data: The bytes; parts arrive in any order.
        """


class BytesSource:
    """An UploadSource of consecutive buffers."""

    def __init__(self, parts: Sequence[Buffer]) -> None:
        self._views = [memoryview(part).cast("B") for part in parts]
        self.size = sum(view.nbytes for view in self._views)

    def read(self, start: int, length: int) -> bytes:
        """See UploadSource."""
        taken = []
        for view in self._views:
            piece = view[start : start + length]
            taken.append(piece)
            start = max(0, start - view.nbytes)
            length -= piece.nbytes
        return b"".join(taken)


class BytesSink:
    """A Sink in memory."""

    def __init__(self) -> None:
        self._whole = bytearray()

    def begin(self, size: int) -> None:
        """See Sink."""
        self._whole = bytearray(size)

    def write(self, at: int, data: bytes) -> None:
        """See Sink."""
        self._whole[at : at + len(data)] = data

    @property
    def data(self) -> memoryview:
        """The downloaded bytes, read-only."""
        return memoryview(self._whole).toreadonly()


# ------------------------------------------------------------------ connections


class _Once(AIOHTTPSession):  # type: ignore[misc]
    """An HTTP session that sends each request once. By default, aiohttp resends a request if a
    kept-alive connection breaks before the response: a conditional write would then find the object
    of its own first request, and report a conflict."""

    async def _get_session(self, proxy_url: str | None) -> Any:
        session = await super()._get_session(proxy_url)
        session._retry_connection = False
        return session


async def connect(session: AioSession, again: Again | None = None, **options: Any) -> Any:
    """Return a client of S3 that makes each call once, without retries. Close it with `disconnect`.

    Args:
        session: The session of botocore, with the credentials.
        again: Creates another such client without lanes. Large objects are transferred by several
            clients in separate threads (lanes), since one thread cannot saturate a fast network.
        **options: Options of botocore's create_client.
    """
    config = AioConfig(
        max_pool_connections=CONNECTIONS,
        retries={"total_max_attempts": 1},
        http_session_cls=_Once,
        **_TIMES,
    )
    more = options.pop("config", None)
    stack = contextlib.AsyncExitStack()
    client = await stack.enter_async_context(
        session.create_client("s3", config=config.merge(more) if more else config, **options)
    )
    client.aflow_stack = stack
    lanes = range(1, LANES)
    client.aflow_lanes = (
        [Portal(f"aflow-s3-{number}", again, disconnect) for number in lanes] if again else []
    )
    made = client.meta.config
    if _sends_checksums(client) and "payload_signing_enabled" not in (made.s3 or {}):
        # A body with a checksum needs no second one in its signature.
        made.s3 = {**(made.s3 or {}), "payload_signing_enabled": False}
    return client


def _sends_checksums(s3: Any) -> bool:
    """Return whether uploads include checksums. AWS_REQUEST_CHECKSUM_CALCULATION=when_required
    turns them off, for servers that do not support them."""
    return bool(s3.meta.config.request_checksum_calculation != "when_required")


async def disconnect(client: Any) -> None:
    """Close a client's connections and lanes.

    Args:
        client: The client that `connect` returned.
    """
    for lane in client.aflow_lanes:
        await in_thread(lane.close)
    await client.aflow_stack.aclose()


async def _each_part(
    s3: Any, numbers: Iterable[int], work: Callable[[int, Any], Coroutine[Any, Any, T]]
) -> list[T]:
    """Return the results of `work(number, client)` for each of these parts of an object. Several
    are transferred concurrently, and each is retried separately."""
    calls = (
        retried(functools.partial(_in_lane, s3, number, functools.partial(work, number)))
        for number in numbers
    )
    return await some_at_once(calls, PARTS_AT_ONCE)


async def _in_lane(s3: Any, number: int, work: Callable[[Any], Coroutine[Any, Any, T]]) -> T:
    """Return the result of `work(client)` for part `number` of an object, in one of the lanes."""
    turn = number % (len(s3.aflow_lanes) + 1)
    if turn == 0:
        return await work(s3)
    lane: Portal[Any] = s3.aflow_lanes[turn - 1]
    begun: list[Future[T]] = []
    is_given_up = threading.Event()

    def begin() -> Future[T]:
        answer = lane.begin(work)
        begun.append(answer)
        if is_given_up.is_set():
            answer.cancel()
        return answer

    try:
        answer = await in_thread(begin)  # in a thread: the lane may have to connect first
    except asyncio.CancelledError:
        # The thread is still running, and could start an upload that is never awaited.
        is_given_up.set()
        for each in begun:
            each.cancel()
        raise
    return await asyncio.wrap_future(answer)


# ------------------------------------------------------------------ up


async def upload(
    s3: Any,
    subject: Subject,
    where: Mapping[str, str],
    source: UploadSource,
    condition: Mapping[str, str] | None = None,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write an object. Raises the errors of `translated`. A failed multipart upload is aborted.

    Args:
        s3: The client that `connect` returned.
        subject: The subject of the upload, for errors.
        where: The arguments `Bucket` and `Key`.
        source: The bytes, read range by range.
        condition: Arguments that make the write conditional, such as `IfNoneMatch`.
        about: Arguments that are stored with the object, such as `ContentType`.
    """
    if source.size <= 2 * PART:
        with translated(subject):
            body = source.read(0, source.size)
            await s3.put_object(**where, Body=body, **(condition or {}), **(about or {}))
        return

    is_checked = _sends_checksums(s3)
    algorithm = {"ChecksumAlgorithm": "CRC32"} if is_checked else {}

    async def start() -> str:
        with translated(subject):
            answer = await s3.create_multipart_upload(**where, **algorithm, **(about or {}))
        return str(answer["UploadId"])

    whole = {**where, "UploadId": await retried(start)}
    part = max(PART, -(-source.size // MOST_PARTS))

    async def send(number: int, s3: Any) -> dict[str, Any]:
        # In a thread: reading a part and computing its checksum takes longer than sending it.
        data, checksum = await in_thread(_read, source, (number - 1) * part, part)
        checked = {"ChecksumCRC32": checksum} if is_checked else {}
        with translated(subject):
            answer = await s3.upload_part(**whole, PartNumber=number, Body=data, **checked)
        # S3 requires the checksums again in the list of the parts.
        return {"PartNumber": number, "ETag": answer["ETag"], **checked}

    try:
        count = -(-source.size // part)
        parts = await _each_part(s3, range(1, count + 1), send)
        with translated(subject):
            await s3.complete_multipart_upload(
                **whole, MultipartUpload={"Parts": parts}, **(condition or {})
            )
    except BaseException:
        # S3 charges for the parts of unfinished uploads. The original error is the one to report.
        with contextlib.suppress(StorageError), translated(subject):
            await s3.abort_multipart_upload(**whole)
        raise


def _read(source: UploadSource, start: int, length: int) -> tuple[bytes, str]:
    """Return the bytes of a part and their checksum in S3's format."""
    data = source.read(start, length)
    return data, base64.b64encode(zlib.crc32(data).to_bytes(4)).decode()


# ------------------------------------------------------------------ down


async def download(
    s3: Any,
    subject: Subject,
    where: Mapping[str, str],
    sink: Sink,
    range_: str | None = None,
) -> Any:
    """Download an object into the sink. The first response contains the size, and its body is the
    first part; other parts are requested concurrently. Also raises the errors of `translated`.

    Args:
        s3: The client that `connect` returned.
        subject: The subject of the download, for errors.
        where: The arguments `Bucket` and `Key`.
        sink: The destination of the bytes.
        range_: The range, such as `bytes=0-99`; None for the whole object.

    Returns:
        The first response of S3.

    Raises:
        StoreBusy: If the object was replaced during the download, or a response was truncated.
    """
    asked = {} if range_ is None else {"Range": range_}
    with translated(subject):
        answer = await s3.get_object(**where, **asked)
    size = int(answer["ContentLength"])
    begin = int(answer["ContentRange"].split()[1].split("-")[0]) if "ContentRange" in answer else 0
    sink.begin(size)
    part = PART if size > 2 * PART else max(size, 1)
    bodies = {0: answer["Body"]}
    same = {"IfMatch": answer["ETag"]} if "ETag" in answer else {}

    async def fill(number: int, s3: Any) -> None:
        at = number * part
        wanted = min(part, size - at)
        with translated(subject):
            body = bodies.pop(at, None)
            if body is None:
                again = (
                    {"Range": f"bytes={begin + at}-{begin + at + wanted - 1}"}
                    if range_ or part < size
                    else {}
                )
                found = await s3.get_object(**where, **again, **same)
                body = found["Body"]
            await _pour(body, sink, at, wanted)

    try:
        await _each_part(s3, range(-(-size // part)), fill)
    except ConditionFailed as error:
        raise StoreBusy(f"{subject.place} changed while it was read.") from error
    if not size:
        bodies.pop(0).close()
    return answer


async def _pour(body: Any, sink: Sink, at: int, wanted: int) -> None:
    """Copy `wanted` bytes of the body to the sink."""
    end = at + wanted
    async with body as stream:
        while at < end:
            data = await stream.read(min(_CHUNK, end - at))
            if not data:
                raise StoreBusy("An object was cut off on its way.")
            sink.write(at, data)
            at += len(data)


COPIED_AT_ONCE = 1 << 30  # bytes; S3 copies up to 5 GB in one request
_MARKS, _ASIDE, _PROBE = "touched/", "aside/", "probe/conditional"


class S3Store(ObjectStore):
    """Objects in a bucket, below a prefix."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        options = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        self._endpoint = options.pop("endpoint", None)
        self._region = options.pop("region", None)
        if parts.scheme != "s3" or not parts.netloc or "@" in parts.netloc or options:
            raise InvalidSetting(
                f"{as_mentioned(url)!r} is not a place in S3: write s3://bucket/prefix, with "
                "?endpoint= and &region= where it is not AWS. Credentials come from variables "
                "(AWS_*) and ~/.aws."
            )
        self._bucket = parts.netloc
        self._prefix = parts.path.strip("/") + "/" if parts.path.strip("/") else ""
        self._url = url
        self._session = new_session("s3")
        self._portal: Portal[Any] = Portal("aflow-s3", self._connected, disconnect)
        self._checks_conditions: bool | None = None

    @property
    def url(self) -> str:
        """`s3://bucket/prefix`, with the options of the URL."""
        return self._url

    async def _connected(self) -> Any:
        return await self._connect(self._session, self._lane)

    async def _lane(self) -> Any:
        return await self._connect(new_session("s3"), None)

    async def _connect(self, session: Any, again: Again | None) -> Any:
        return await connect(session, again, region_name=self._region, endpoint_url=self._endpoint)

    def close(self) -> None:
        """Close the connections; the next call opens new ones. May be called twice."""
        self._portal.close()

    # ------------------------------------------------------------------ writing

    def put(self, name: str, parts: Sequence[Buffer], *, durable: bool = False) -> None:
        """Write the parts as one object; see the port. Every acknowledged write is durable."""
        self._write(name, parts, {})

    def put_if_absent(self, name: str, parts: Sequence[Buffer], *, durable: bool = False) -> bool:
        """Write an object unless it exists; see the port."""
        self._check_conditions()
        return self._put_new(name, parts)

    def _put_new(self, name: str, parts: Sequence[Buffer]) -> bool:
        try:
            self._write(name, parts, {"IfNoneMatch": "*"})
        except ConditionFailed:
            return False
        return True

    def _check_conditions(self) -> None:
        """Check, once, that the endpoint rejects a conditional write if the object exists."""
        if self._checks_conditions is None:
            # If the probe object exists already, the first write is rejected, which is sufficient.
            there = not self._put_new(_PROBE, [b"aflow"])
            self._checks_conditions = there or not self._put_new(_PROBE, [b"aflow"])
        if not self._checks_conditions:
            raise StoreUnavailable(
                f"The datastore {self._url} ignores the conditions of writes (If-None-Match), on "
                "which the commits of tasks rest: use one that keeps them, as S3 does."
            )

    def _write(self, name: str, parts: Sequence[Buffer], condition: dict[str, str]) -> None:
        source, where, subject = BytesSource(parts), self._where(name), self._subject(name)
        self._call(name, lambda s3: upload(s3, subject, where, source, condition))

    # ------------------------------------------------------------------ reading

    def get(self, name: str, start: int = 0, length: int | None = None) -> Buffer:
        """Return the bytes from `start` on; see the port."""
        if length == 0:
            if self.size(name) is None:
                raise ObjectNotFound(self._subject(name).missing)
            return b""
        range_ = None
        if start or length is not None:
            range_ = f"bytes={start}-" if length is None else f"bytes={start}-{start + length - 1}"
        sink, where, subject = BytesSink(), self._where(name), self._subject(name)
        try:
            self._call(name, lambda s3: download(s3, subject, where, sink, range_))
        except OutOfRange:
            return b""
        return sink.data

    def size(self, name: str) -> int | None:
        """Return the size of the object in bytes; see the port."""
        found = self._head(self._key(name))
        return None if found is None else int(found["ContentLength"])

    def _head(self, key: str) -> Any:
        try:
            return self._ask("head_object", Key=key)
        except ObjectNotFound:
            return None

    def list(self, prefix: str) -> Iterator[str]:
        """Return the names that begin with `prefix`; see the port."""
        return self._names(self._prefix + check_prefix(prefix))

    def _names(self, begin: str) -> Iterator[str]:
        for each in self._listed(begin):
            name = each["Key"][len(self._prefix) :]
            if not name.startswith((_MARKS, _ASIDE)) and name != _PROBE:
                yield name

    def _listed(self, begin: str) -> Iterator[Any]:
        token: dict[str, str] = {}
        while True:
            page = self._ask("list_objects_v2", Prefix=begin, **token)
            yield from page.get("Contents", ())
            if not page.get("IsTruncated"):
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}

    # ------------------------------------------------------------------ removing

    def delete(self, name: str) -> None:
        """Remove the object if it exists."""
        self._remove(self._key(name))

    def _remove(self, key: str) -> None:
        self._ask("delete_object", Key=key)

    def touch(self, name: str) -> bool:
        """Set the object's time of last use to now, by writing its mark; see the port."""
        key = self._key(name)
        self._ask("put_object", Key=self._prefix + _MARKS + name, Body=b"")
        return self._head(key) is not None

    def remove_untouched(self, name: str, since: float, *, dry_run: bool = False) -> int | None:
        """Remove the object if it was neither written nor touched after `since`; see the port."""
        key, mark = self._key(name), self._prefix + _MARKS + name
        aside = self._prefix + _ASIDE + name
        try:
            found = self._head(key)
            if found is None:  # an earlier try may have been interrupted before the second look
                found = None if dry_run else self._head(aside)
                if found is None:
                    return None
                size = int(found["ContentLength"])
            else:
                if self._is_younger(found, since) or self._is_younger(self._head(mark), since):
                    return None
                size = int(found["ContentLength"])
                if dry_run:
                    return size
                self._copy(key, aside, size)
                self._remove(key)
            wanted = self._is_younger(self._head(mark), since)
            if wanted:
                self._copy(aside, key, size)
        except ObjectNotFound:  # another process is removing it, too
            return None
        self._remove(aside)
        if wanted:
            return None
        self._remove(mark)
        return size

    def _copy(self, key: str, to: str, size: int) -> None:
        source = {"Bucket": self._bucket, "Key": key}
        if size <= COPIED_AT_ONCE:
            self._ask("copy_object", Key=to, CopySource=source)
            return
        upload = self._ask("create_multipart_upload", Key=to)["UploadId"]
        parts = []
        for number, start in enumerate(range(0, size, COPIED_AT_ONCE), 1):
            answer = self._ask(
                "upload_part_copy",
                Key=to,
                UploadId=upload,
                PartNumber=number,
                CopySource=source,
                CopySourceRange=f"bytes={start}-{min(start + COPIED_AT_ONCE, size) - 1}",
            )
            parts.append({"PartNumber": number, "ETag": answer["CopyPartResult"]["ETag"]})
        self._ask(
            "complete_multipart_upload",
            Key=to,
            UploadId=upload,
            MultipartUpload={"Parts": parts},
        )

    @staticmethod
    def _is_younger(found: Any, since: float) -> bool:
        # S3 rounds times down to whole seconds.
        return found is not None and found["LastModified"].timestamp() + 1 > since

    def sweep(self, older_than_s: float, now: float) -> int:
        """Restore objects that a killed process copied aside to remove them, and abort abandoned
        multipart uploads; see the port."""
        count = 0
        before = now - older_than_s
        for each in self._listed(self._prefix + _ASIDE):
            if each["LastModified"].timestamp() < before:
                key = self._key(each["Key"][len(self._prefix + _ASIDE) :])
                with contextlib.suppress(ObjectNotFound):  # another process sweeps, too
                    if self._head(key) is None:
                        self._copy(each["Key"], key, each["Size"])
                    self._remove(each["Key"])
                    count += 1
        # Without the permission to list uploads they are left to the lifecycle rules of the bucket.
        with contextlib.suppress(AccessDenied):
            count += self._abort_uploads(before)
        return count

    def _abort_uploads(self, before: float) -> int:
        count = 0
        while True:
            page = self._ask("list_multipart_uploads", Prefix=self._prefix)
            uploads = page.get("Uploads", ())
            old = [each for each in uploads if each["Initiated"].timestamp() < before]
            for each in old:
                self._ask("abort_multipart_upload", Key=each["Key"], UploadId=each["UploadId"])
            count += len(old)
            # Aborted uploads are listed no more: the next ones are then on the first page.
            if not old or not page.get("IsTruncated"):
                return count

    # ------------------------------------------------------------------ how

    def _key(self, name: str) -> str:
        return self._prefix + check_name(name)

    def _where(self, name: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._key(name)}

    def _subject(self, name: str) -> Subject:
        return Subject(f"The datastore {self._url}", f"There is no object {name!r} in {self._url}.")

    def _ask(self, operation: str, **values: Any) -> Any:
        """Call an operation on the bucket, by its name in botocore, and return the response."""
        key = str(values.get("Key", self._prefix))
        return self._call(key, lambda s3: getattr(s3, operation)(Bucket=self._bucket, **values))

    def _call(self, name: str, work: Callable[[Any], Coroutine[Any, Any, T]]) -> T:
        """Return the result of the coroutine of `work(client)`, with translated errors."""
        with translated(self._subject(name)):
            return self._portal.call(work)
