"""The object store in a bucket of S3, or of what speaks its language.

`s3://bucket/prefix`; `?endpoint=URL&region=NAME` for others than AWS. Credentials and regions come
from where botocore finds them (AWS_* variables, ~/.aws, the role of the machine).

An object is an object. What is larger goes up and comes down in parts, several at a time, and each
part has its own tries (s3_wire.py). `put_if_absent` is a conditional write (`If-None-Match: *`); an
endpoint that ignores the condition is found out at the first such write, and refused. Calls fail at
once: whether another try is worth it says the kind of the error (StoreBusy), and a wrapper makes it
(retrying.py).

A touch writes a mark beside the object, since S3 cannot remove an object on the condition that
nobody has wanted it lately: who removes sets a copy aside, removes the object, looks at the mark
once more, and puts the object back if somebody has wanted it meanwhile.
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

# What an error of S3 means: one sentence, and whether another try is worth it.


try:
    import aiohttp
    from aiobotocore.config import AioConfig
    from aiobotocore.httpsession import AIOHTTPSession
    from aiobotocore.session import AioSession

    from aflow._core.aws import NO_CREDENTIALS, Refusal, faults, new_session
except ImportError as error:
    raise MissingExtra("Storage in S3 needs aiobotocore: install aflow-runtime[aws].") from error


class ConditionFailed(StoreUnavailable):
    """A condition of a write, or of a read, does not hold."""


class OutOfRange(StoreUnavailable):
    """The bytes asked for begin past the end of the object."""


class AccessDenied(StoreUnavailable):
    """Access denied, or the credentials are wrong."""


class NoBucket(StoreUnavailable):
    """There is no such bucket."""


class Subject(NamedTuple):
    """What a request is about, as sentences say it: `place` is the datastore, or the URL of an
    object; `missing` is the sentence where there is no such object."""

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
    """Translate errors of the libraries inside of the block to aflow's.

    Args:
        subject: What is transferred, for the errors.

    Raises:
        ObjectNotFound: S3 has no such object.
        StoreBusy: S3 did not answer, or not whole: another try may succeed.
        StoreUnavailable: S3 refuses.
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


# Objects of S3 on their way: connections, and bodies in parts.
#
# What is larger than two parts goes up and comes down in parts, several at a time, and a part that
# fails is sent or fetched again by itself: of a hundred parts one is likely to fail.


T = TypeVar("T")
Again = Callable[[], Coroutine[Any, Any, Any]]

PART = 8 << 20  # bytes of a part
MOST_PARTS = 10_000  # that S3 takes
PARTS_AT_ONCE = 8
CONNECTIONS = 64
LANES = 3  # threads that the parts of large objects go over
_CHUNK = 1 << 20
_TIMES = {"connect_timeout": 10, "read_timeout": 60}


class UploadSource(Protocol):
    """Bytes that go up."""

    size: int

    def read(self, start: int, length: int) -> bytes:
        """Return exactly that many bytes from a position.

        Args:
            start: The position of the first byte.
            length: How many bytes.
        """


class Sink(Protocol):
    """Where bytes that come down are put. A part that was cut off is put there again."""

    def begin(self, size: int) -> None:
        """Announce the number of bytes. Called again when the transfer begins again.

        Args:
            size: How many bytes will come.
        """

    def write(self, at: int, data: bytes) -> None:
        """Take bytes at a position.

        Args:
            at: The position of the first byte within the object.
            data: The bytes; parts may come in any order.
        """


class BytesSource:
    """Buffers, one after the other."""

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
    """Bytes in memory."""

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
        """What has come, read-only."""
        return memoryview(self._whole).toreadonly()


# ------------------------------------------------------------------ connections


class _Once(AIOHTTPSession):  # type: ignore[misc]
    """Sends each request once. By itself aiohttp sends it again where a connection that it had kept
    breaks before the answer: so a conditional write would find its own object, and take it for
    somebody else's."""

    async def _get_session(self, proxy_url: str | None) -> Any:
        session = await super()._get_session(proxy_url)
        session._retry_connection = False
        return session


async def connect(session: AioSession, again: Again | None = None, **options: Any) -> Any:
    """Return a client of S3 with many connections, which makes each call once. It is closed by
    `disconnect`.

    Args:
        session: The session of botocore, with the credentials.
        again: Makes another such client without lanes: large objects go over several, each with a
            thread, since one thread does not keep a fast network busy.
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
        # A body that goes with its checksum needs no second one in its signature.
        made.s3 = {**(made.s3 or {}), "payload_signing_enabled": False}
    return client


def _sends_checksums(s3: Any) -> bool:
    """Whether bodies go with their checksum: AWS_REQUEST_CHECKSUM_CALCULATION=when_required says
    no, for servers that know none."""
    return bool(s3.meta.config.request_checksum_calculation != "when_required")


async def disconnect(client: Any) -> None:
    """Close its connections.

    Args:
        client: The client that `connect` has made.
    """
    for lane in client.aflow_lanes:
        await in_thread(lane.close)
    await client.aflow_stack.aclose()


async def _each_part(
    s3: Any, numbers: Iterable[int], work: Callable[[int, Any], Coroutine[Any, Any, T]]
) -> list[T]:
    """What `work(number, client)` gives for each of these parts of an object: several are on their
    way at a time, and each has its own tries."""
    calls = (
        retried(functools.partial(_in_lane, s3, number, functools.partial(work, number)))
        for number in numbers
    )
    return await some_at_once(calls, PARTS_AT_ONCE)


async def _in_lane(s3: Any, number: int, work: Callable[[Any], Coroutine[Any, Any, T]]) -> T:
    """What `work(client)` gives for part `number` of an object, in one of the client's lanes."""
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
        answer = await in_thread(begin)  # to begin may mean to connect first
    except asyncio.CancelledError:
        # The thread goes on, and what it begins would be an upload of which nobody knows.
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
    """Write an object. `where` is Bucket and Key, `condition` and `about` more arguments of the
    write. Raises what `translated` does; what was not finished is given up.

    Args:
        s3: The client that `connect` has made.
        subject: What is transferred, for the errors.
        where: The arguments `Bucket` and `Key`.
        source: Gives the bytes, a range at a time.
        condition: Headers that make the write conditional.
        about: Headers that are stored with the object.
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
        # In a thread: to read and to sum up a part takes longer than to send it.
        data, checksum = await in_thread(_read, source, (number - 1) * part, part)
        checked = {"ChecksumCRC32": checksum} if is_checked else {}
        with translated(subject):
            answer = await s3.upload_part(**whole, PartNumber=number, Body=data, **checked)
        # S3 wants the checksums again with the list of the parts.
        return {"PartNumber": number, "ETag": answer["ETag"], **checked}

    try:
        count = -(-source.size // part)
        parts = await _each_part(s3, range(1, count + 1), send)
        with translated(subject):
            await s3.complete_multipart_upload(
                **whole, MultipartUpload={"Parts": parts}, **(condition or {})
            )
    except BaseException:
        # What is left of it costs money; but why it failed is what has to be reported.
        with contextlib.suppress(StorageError), translated(subject):
            await s3.abort_multipart_upload(**whole)
        raise


def _read(source: UploadSource, start: int, length: int) -> tuple[bytes, str]:
    """A part, and its checksum as S3 writes it."""
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
    """Fetch an object into the sink. The first answer says how much there is, and is the first
    part; others are fetched at the same time. Raises what `translated` raises.

    Args:
        s3: The client that `connect` has made.
        subject: What is transferred, for the errors.
        where: The arguments `Bucket` and `Key`.
        sink: Takes the bytes, a part at a time.
        range_: The range, as `bytes=0-99`; None for the whole object.

    Returns:
        What S3 answered first.

    Raises:
        StoreBusy: The object was replaced meanwhile, or the answer was cut off.
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
    """`wanted` bytes of the body into the sink."""
    end = at + wanted
    async with body as stream:
        while at < end:
            data = await stream.read(min(_CHUNK, end - at))
            if not data:
                raise StoreBusy("An object was cut off on its way.")
            sink.write(at, data)
            at += len(data)


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
        """`s3://bucket/prefix`, with what else was said."""
        return self._url

    async def _connected(self) -> Any:
        return await self._connect(self._session, self._lane)

    async def _lane(self) -> Any:
        return await self._connect(new_session("s3"), None)

    async def _connect(self, session: Any, again: Again | None) -> Any:
        return await connect(session, again, region_name=self._region, endpoint_url=self._endpoint)

    def close(self) -> None:
        """Release connections; the next call makes new ones. May be called twice."""
        self._portal.close()

    # ------------------------------------------------------------------ writing

    def put(self, name: str, parts: Sequence[Buffer], *, durable: bool = False) -> None:
        """Write the parts as one object; see the port. S3 keeps what it has acknowledged."""
        self._write(name, parts, {})

    def put_if_absent(self, name: str, parts: Sequence[Buffer], *, durable: bool = False) -> bool:
        """The same where no such object is; see the port."""
        self._check_conditions()
        return self._put_new(name, parts)

    def _put_new(self, name: str, parts: Sequence[Buffer]) -> bool:
        try:
            self._write(name, parts, {"IfNoneMatch": "*"})
        except ConditionFailed:
            return False
        return True

    def _check_conditions(self) -> None:
        """See, once, that a write with a condition is refused where there is an object."""
        if self._checks_conditions is None:
            # Where somebody has looked before, the first write is refused, and says it all.
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
        """The bytes from `start`; see the port."""
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
        """How many bytes the object has; see the port."""
        found = self._head(self._key(name))
        return None if found is None else int(found["ContentLength"])

    def _head(self, key: str) -> Any:
        try:
            return self._ask("head_object", Key=key)
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
            page = self._ask("list_objects_v2", Prefix=begin, **token)
            yield from page.get("Contents", ())
            if not page.get("IsTruncated"):
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}

    # ------------------------------------------------------------------ removing

    def delete(self, name: str) -> None:
        """Remove the object, if it is there."""
        self._remove(self._key(name))

    def _remove(self, key: str) -> None:
        self._ask("delete_object", Key=key)

    def touch(self, name: str) -> bool:
        """Say that the object is wanted; see the port."""
        key = self._key(name)
        self._ask("put_object", Key=self._prefix + _MARKS + name, Body=b"")
        return self._head(key) is not None

    def remove_untouched(self, name: str, since: float, *, dry_run: bool = False) -> int | None:
        """Remove the object if nobody has wanted it since then; see the port."""
        key, mark = self._key(name), self._prefix + _MARKS + name
        found = self._head(key)
        if found is None or self._is_younger(found, since):
            return None
        if self._is_younger(self._head(mark), since):
            return None
        size = int(found["ContentLength"])
        if dry_run:
            return size
        aside = self._prefix + _ASIDE + name
        self._copy(key, aside)
        self._remove(key)
        wanted = self._is_younger(self._head(mark), since)
        if wanted:
            self._copy(aside, key)
        self._remove(aside)
        if wanted:
            return None
        self._remove(mark)
        return size

    def _copy(self, key: str, to: str) -> None:
        self._ask("copy_object", Key=to, CopySource={"Bucket": self._bucket, "Key": key})

    @staticmethod
    def _is_younger(found: Any, since: float) -> bool:
        # Times of S3 are whole seconds, rounded down.
        return found is not None and found["LastModified"].timestamp() + 1 > since

    def sweep(self, older_than_s: float, now: float) -> int:
        """Put back what a remover that died has set aside, and give up uploads that nobody goes on
        with; see the port."""
        count = 0
        before = now - older_than_s
        for each in self._listed(self._prefix + _ASIDE):
            if each["LastModified"].timestamp() < before:
                key = self._key(each["Key"][len(self._prefix + _ASIDE) :])
                if self._head(key) is None:
                    self._copy(each["Key"], key)
                self._remove(each["Key"])
                count += 1
        uploads = self._ask("list_multipart_uploads", Prefix=self._prefix)
        for each in uploads.get("Uploads", ()):
            if each["Initiated"].timestamp() < before:
                self._ask("abort_multipart_upload", Key=each["Key"], UploadId=each["UploadId"])
                count += 1
        return count

    # ------------------------------------------------------------------ how

    def _key(self, name: str) -> str:
        return self._prefix + check_name(name)

    def _where(self, name: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._key(name)}

    def _subject(self, name: str) -> Subject:
        return Subject(f"The datastore {self._url}", f"There is no object {name!r} in {self._url}.")

    def _ask(self, operation: str, **values: Any) -> Any:
        """The answer to an operation on the bucket, by its name in botocore."""
        key = str(values.get("Key", self._prefix))
        return self._call(key, lambda s3: getattr(s3, operation)(Bucket=self._bucket, **values))

    def _call(self, name: str, work: Callable[[Any], Coroutine[Any, Any, T]]) -> T:
        """What the coroutine of `work(client)` gives; its errors as ours."""
        with translated(self._subject(name)):
            return self._portal.call(work)
