"""Objects of S3 on their way: connections, and bodies in parts.

What is larger than two parts goes up and comes down in parts, several at a time, and a part that
fails is sent or fetched again by itself: of a hundred parts one always fails in bad weather.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import zlib
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from aflow.errors import MissingExtra, StorageError, StoreBusy
from aflow.storage.base import Buffer
from aflow.storage.portal import Portal
from aflow.storage.retrying import retried
from aflow.storage.s3_errors import Refused, Subject, translated
from aflow.threads import in_thread

try:
    from aiobotocore.config import AioConfig
    from aiobotocore.httpsession import AIOHTTPSession
    from aiobotocore.session import AioSession
    from botocore.loaders import Loader
except ImportError as error:
    raise MissingExtra("Storage in S3 needs aiobotocore: install aflow-runtime[aws].") from error

T = TypeVar("T")
Again = Callable[[], Coroutine[Any, Any, Any]]

PART = 8 << 20  # bytes of a part
MOST_PARTS = 10_000  # that S3 takes
PARTS_AT_ONCE = 8
CONNECTIONS = 64
LANES = 3  # threads that the parts of large objects go over
_CHUNK = 1 << 20
_TIMES = {"connect_timeout": 10, "read_timeout": 60}


class Source(Protocol):
    """Bytes that go up."""

    size: int

    def read(self, start: int, length: int) -> bytes:
        """That many bytes from there; they are there."""


class Sink(Protocol):
    """Where bytes that come down are put. A part that was cut off is put there again."""

    def begin(self, size: int) -> None:
        """So many bytes will come. May be said again, when all begins anew."""

    def write(self, at: int, data: bytes) -> None:
        """These are the bytes from there."""


class BytesSource:
    """Buffers, one after the other."""

    def __init__(self, parts: Sequence[Buffer]) -> None:
        self._views = [memoryview(part).cast("B") for part in parts]
        self.size = sum(view.nbytes for view in self._views)

    def read(self, start: int, length: int) -> bytes:
        """See Source."""
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


class _Loader(Loader):  # type: ignore[misc]
    """Knows S3, and what gives credentials for it. To find out which of 400 services there are, it
    would look into the folder of each, three times, which takes longer than reading what S3 is."""

    def list_available_services(self, type_name: str) -> list[str]:
        return ["s3", "signin", "sso", "sso-oidc", "sts"]


@functools.cache
def _loader() -> Loader:
    """Reads what botocore knows of S3, once a process: tasks that are forked find it there."""
    loader = _Loader()
    for kind in ("service-2", "endpoint-rule-set-1", "paginators-1"):
        loader.load_service_model("s3", kind)
    return loader


def new_session(profile: str | None = None) -> AioSession:
    """Where credentials are found, as botocore finds them."""
    session = AioSession(profile=profile)
    session.register_component("data_loader", _loader())
    return session


class _Once(AIOHTTPSession):  # type: ignore[misc]
    """Sends each request once. By itself aiohttp sends it again where a connection that it had kept
    breaks before the answer: so a conditional write would find its own object, and take it for
    somebody else's."""

    async def _get_session(self, proxy_url: str | None) -> Any:
        session = await super()._get_session(proxy_url)
        session._retry_connection = False
        return session


async def connect(session: AioSession, again: Again | None = None, **options: Any) -> Any:
    """A client of S3 with many connections, which makes each call once. `options` are those of
    create_client; `config` may hold more. It is let go of with `disconnect`.

    `again` makes another such client without lanes of its own: large objects go over several, each
    with a thread, since one thread does not keep a fast network busy."""
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
    """Close its connections."""
    for lane in client.aflow_lanes:
        await in_thread(lane.close)
    await client.aflow_stack.aclose()


async def _in_lane(s3: Any, number: int, work: Callable[[Any], Coroutine[Any, Any, T]]) -> T:
    """What `work(client)` gives for part `number` of an object, in one of the client's lanes."""
    turn = number % (len(s3.aflow_lanes) + 1)
    if turn == 0:
        return await work(s3)
    # To begin may mean to connect first.
    answer = await in_thread(s3.aflow_lanes[turn - 1].begin, work)
    return await asyncio.wrap_future(answer)


# ------------------------------------------------------------------ up


async def upload(
    s3: Any,
    subject: Subject,
    where: Mapping[str, str],
    source: Source,
    condition: Mapping[str, str] | None = None,
    about: Mapping[str, Any] | None = None,
) -> None:
    """Write an object. `where` is Bucket and Key, `condition` and `about` more arguments of the
    write. Raises what `translated` does; what was not finished is given up."""
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
        parts = await some_at_once(
            retried(functools.partial(_in_lane, s3, number, functools.partial(send, number)))
            for number in range(1, count + 1)
        )
        with translated(subject):
            await s3.complete_multipart_upload(
                **whole, MultipartUpload={"Parts": parts}, **(condition or {})
            )
    except BaseException:
        # What is left of it costs money; but why it failed is what has to be told.
        with contextlib.suppress(StorageError), translated(subject):
            await s3.abort_multipart_upload(**whole)
        raise


def _read(source: Source, start: int, length: int) -> tuple[bytes, str]:
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
    """Fetch an object, or a range of it ("bytes=0-99"), into the sink; what S3 said of it. Raises
    what `translated` does.

    The first answer tells how much there is, and is the first part; others come beside it."""
    asked = {} if range_ is None else {"Range": range_}
    with translated(subject):
        answer = await s3.get_object(**where, **asked)
    size = int(answer["ContentLength"])
    begin = int(answer["ContentRange"].split()[1].split("-")[0]) if "ContentRange" in answer else 0
    sink.begin(size)
    part = PART if size > 2 * PART else max(size, 1)
    bodies = {0: answer["Body"]}
    same = {"IfMatch": answer["ETag"]} if "ETag" in answer else {}

    async def fill(at: int, s3: Any) -> None:
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
        await some_at_once(
            retried(functools.partial(_in_lane, s3, at // part, functools.partial(fill, at)))
            for at in range(0, size, part)
        )
    except Refused as error:
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


async def some_at_once(
    work: Iterable[Coroutine[Any, Any, T]], width: int = PARTS_AT_ONCE
) -> list[T]:
    """The answers of all, in order; `width` of them are on their way at a time, and no other is
    begun, which bounds the memory. Raises the first error, when all others have ended."""
    answers: dict[int, T] = {}
    numbered = enumerate(work)

    async def go_on() -> None:
        for number, each in numbered:
            answers[number] = await each

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(width):
                group.create_task(go_on())
    except BaseExceptionGroup as several:
        raise several.exceptions[0] from several
    return [answers[number] for number in sorted(answers)]
