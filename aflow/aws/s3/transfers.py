"""The operations of the S3 client, as coroutines; client.py has the public classes.

Many objects are transferred concurrently, up to `Settings.s3_workers`, and large ones in parts
(aflow/storage/s3.py). Downloads are written to disk as they arrive, and only a few large uploads
are read from disk at a time, so that memory use does not grow with the data. Requests with
transient errors are retried.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, BinaryIO, NamedTuple, TypeVar
from urllib.parse import quote

from aflow._core.aws import assume_role_async, new_session
from aflow._core.threads import some_at_once
from aflow.aws.s3.objects import (
    PutValue,
    RangeInfo,
    S3GetObject,
    S3Object,
    S3Prefix,
    S3PutObject,
    key_of,
    range_of,
    split,
)
from aflow.errors import (
    ObjectNotFound,
    S3AccessDenied,
    S3DiskFull,
    S3Error,
    S3Failed,
    S3InvalidObject,
    S3InvalidRange,
    S3InvalidUrl,
    S3NotFound,
    StorageError,
)
from aflow.storage.retry import retried
from aflow.storage.s3 import (
    AccessDenied,
    BytesSource,
    ConditionFailed,
    NoBucket,
    OutOfRange,
    Subject,
    UploadSource,
    download,
    translated,
    upload,
)
from aflow.storage.s3 import connect as connect_session

# Local files to upload or download: read and written in parts, at any offset.


class FileSource:
    """The bytes of an open file, from its start."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._lock = threading.Lock()
        self.size = file.seek(0, os.SEEK_END)

    def read(self, start: int, length: int) -> bytes:
        """See UploadSource."""
        with self._lock:
            self._file.seek(start)
            return self._file.read(length)


class FileSink:
    """A file that is created or truncated."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._descriptor: int | None = None

    def begin(self, size: int) -> None:
        """See Sink."""
        if self._descriptor is None:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
            with _disk(self.path):
                self._descriptor = os.open(self.path, flags, 0o600)
        os.ftruncate(self._descriptor, 0)

    def write(self, at: int, data: bytes) -> None:
        """See Sink."""
        assert self._descriptor is not None, "it has begun"
        view = memoryview(data)
        with _disk(self.path):
            while view:
                written = os.pwrite(self._descriptor, view, at)
                at, view = at + written, view[written:]

    def close(self) -> None:
        """Close the file."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


@contextmanager
def _disk(path: str) -> Iterator[None]:
    """Translate errors of writing local files to those of S3."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise S3DiskFull(
                f"There is no room on the disk for {path}: make some, or give another tmproot=."
            ) from error
        raise S3Failed(f"{path} cannot be written: {error.strerror}.") from error


def _opened(path: str) -> BinaryIO:
    try:
        return open(path, "rb")
    except OSError as error:
        raise S3NotFound(f"The local file {path} cannot be read: {error.strerror}.") from error


def source_of(key: str, value: PutValue | None) -> UploadSource:
    """Return the bytes of a value to upload.

    Args:
        key: The key, for the error message.
        value: The value: text, bytes or an open file.

    Raises:
        S3InvalidObject: If it is neither text nor bytes nor a file opened for reading bytes.
    """
    if isinstance(value, str):
        return BytesSource([value.encode()])
    if isinstance(value, bytes | bytearray | memoryview):
        return BytesSource([value])
    if value is None or not hasattr(value, "read") or not hasattr(value, "seekable"):
        raise S3InvalidObject(
            f"The value for {key!r} is {type(value).__name__}: give a text, bytes or a file "
            "that is open for reading."
        )
    if hasattr(value, "encoding") or not value.readable() or not value.seekable():
        raise S3InvalidObject(
            f"The file that is to be put as {key!r} has to be open for reading bytes ('rb'), and "
            "allow to seek."
        )
    return FileSource(value)


# The temporary directory of a client.


class Folder:
    """A directory below `parent` that is created on first use, and deleted with its content."""

    def __init__(self, parent: str) -> None:
        self._parent = os.path.abspath(parent)
        self._path: str | None = None
        self._numbers = itertools.count()
        self._closed = False

    def new_file(self, url: str) -> str:
        """Return a new path for the object at `url`.

        Args:
            url: The URL.

        Raises:
            S3Failed: If the client is closed, or the directory cannot be created.
        """
        if self._closed:
            raise S3Failed("This client of S3 has been closed: make another one.")
        if self._path is None:
            with _disk(self._parent):
                self._path = tempfile.mkdtemp(dir=self._parent, prefix="aflow.s3.")
        name = quote(url.rpartition("/")[2], safe="")[-100:]
        return os.path.join(self._path, f"{next(self._numbers)}-{name}")

    def close(self) -> None:
        """Delete the directory. May be called twice."""
        self._closed = True
        if self._path is not None:
            shutil.rmtree(self._path)
            self._path = None


T = TypeVar("T")
Asked = str | S3GetObject | None
Put = tuple[str, PutValue] | S3PutObject
PutFile = tuple[str, str | os.PathLike[str]] | S3PutObject

PAGE = 1000  # names per listing request
_LARGE = 1 << 20  # bytes; uploads above this are limited to a few at a time
_LARGE_AT_ONCE = 4
# Metaflow's key of user metadata, so that both read each other's objects.
_ATTRIBUTES = "metaflow-user-attributes"


class _WasThere(S3Failed):
    """An object exists that must not be overwritten."""


_KINDS: tuple[tuple[type[StorageError], type[S3Error]], ...] = (
    (ConditionFailed, _WasThere),
    (ObjectNotFound, S3NotFound),
    (AccessDenied, S3AccessDenied),
    (OutOfRange, S3InvalidRange),
    (NoBucket, S3InvalidUrl),
    (StorageError, S3Failed),
)


class Transfers:
    """The methods of the S3 client, on an open client `s3` of botocore."""

    def __init__(
        self, s3: Any, root: S3Prefix, folder: Folder, encryption: str | None, workers: int
    ) -> None:
        self.s3 = s3
        self._root = root
        self._folder = folder
        self._encryption = encryption
        self._workers = workers
        self._large = asyncio.Semaphore(_LARGE_AT_ONCE)

    # -------------------------------------------------------------- reading

    async def get(self, asked: Asked, return_missing: bool, return_info: bool) -> S3Object:
        """Return one object; see S3.get.

        Args:
            asked: The key, or a key with a range of bytes.
            return_missing: Whether to return an object with `exists` False instead of raising
                S3NotFound.
            return_info: Whether to include attributes such as content type and metadata.
        """
        url = self._root.url_of(key_of(asked))
        fetching = self._fetch(url, self._root.url, range_of(asked), return_info)
        return await _or_missing(fetching, url, self._root.url, return_missing)

    async def get_recursive(self, keys: Iterable[str | None], return_info: bool) -> list[S3Object]:
        """Return all objects below some prefixes; see S3.get_recursive.

        Args:
            keys: The keys, relative to the prefix of this client, or complete `s3://` URLs.
            return_info: Whether to include attributes such as content type and metadata.
        """
        listed = await self.listings(keys, "")
        return await self.all(
            self._fetch(each.url, each.prefix, None, return_info) for each in listed
        )

    async def info(self, key: str | None, return_missing: bool) -> S3Object:
        """Return the attributes of an object; see S3.info.

        Args:
            key: The key, relative to the prefix of this client, or a complete `s3://` URL.
            return_missing: Whether to return an object with `exists` False instead of raising
                S3NotFound.
        """
        url = self._root.url_of(key)
        return await _or_missing(self._head(url), url, self._root.url, return_missing)

    async def _fetch(
        self, url: str, prefix: str | None, range_: str | None, return_info: bool
    ) -> S3Object:
        sink = FileSink(self._folder.new_file(url))
        try:
            answer = await self._tried(
                url,
                lambda subject, where: download(self.s3, subject, where, sink, range_),
            )
        finally:
            sink.close()
        if not return_info:
            return S3Object(url, prefix, sink.path, int(answer["ContentLength"]))
        return _described(url, prefix, answer, sink.path)

    async def _head(self, url: str) -> S3Object:
        answer = await self._asked(url, "head_object", split(url).arguments)
        return _described(url, self._root.url, answer)

    # -------------------------------------------------------------- listing

    async def listings(self, keys: Iterable[str | None] | None, delimiter: str) -> list[S3Object]:
        """Return what is below some prefixes; see S3.list_paths and S3.list_recursive.

        Args:
            keys: The keys, relative to the prefix of this client, or complete `s3://` URLs.
            delimiter: `/` for what is directly below the prefixes, empty for all objects.
        """
        begins = [
            self._root.url_of(key).rstrip("/") + "/" for key in ([None] if keys is None else keys)
        ]
        found = await self.all(self._listing(begin, delimiter) for begin in begins)
        return [each for listing in found for each in listing]

    async def _listing(self, begin: str, delimiter: str) -> list[S3Object]:
        bucket, prefix = split(begin)
        found: list[S3Object] = []
        asked = {"Bucket": bucket, "Prefix": prefix, "Delimiter": delimiter, "MaxKeys": PAGE}
        while True:
            page = await self._asked(begin, "list_objects_v2", asked)
            here = [
                S3Object(f"s3://{bucket}/{each['Key']}", begin, size=each["Size"])
                for each in page.get("Contents", ())
            ]
            here += [
                S3Object(f"s3://{bucket}/{each['Prefix']}", begin)
                for each in page.get("CommonPrefixes", ())
            ]
            found += sorted(here, key=lambda each: each.url)
            if not page.get("IsTruncated"):
                return found
            asked["ContinuationToken"] = page["NextContinuationToken"]

    # -------------------------------------------------------------- writing

    async def put(self, given: S3PutObject, overwrite: bool) -> str | None:
        """Upload a value; see S3.put.

        Args:
            given: The key, the value and its attributes.
            overwrite: Whether to replace an existing object.

        Returns:
            The URL; None if an object exists and must not be replaced.
        """
        url = self._root.url_of(given.key)
        return await self._send(url, given, source_of(given.key, given.value), overwrite)

    async def put_many(self, given: Iterable[Put], overwrite: bool) -> list[tuple[str, str]]:
        """Upload many values; see S3.put_many.

        Args:
            given: Pairs of a key and a value, or S3PutObjects.
            overwrite: Whether to replace existing objects.

        Returns:
            Key and URL of the objects that were written.
        """
        objects = [
            each if isinstance(each, S3PutObject) else S3PutObject(each[0], value=each[1])
            for each in given
        ]
        return await self._sent(objects, lambda each: self.put(each, overwrite))

    async def put_files(self, given: Iterable[PutFile], overwrite: bool) -> list[tuple[str, str]]:
        """Upload many files; see S3.put_files.

        Args:
            given: Pairs of a key and the path of a file, or S3PutObjects with a path.
            overwrite: Whether to replace existing objects.

        Returns:
            Key and URL of the objects that were written.
        """
        objects = [
            each if isinstance(each, S3PutObject) else S3PutObject(each[0], path=os.fspath(each[1]))
            for each in given
        ]
        return await self._sent(objects, lambda each: self._put_file(each, overwrite))

    async def _put_file(self, given: S3PutObject, overwrite: bool) -> str | None:
        if given.path is None:
            raise S3NotFound(f"No local file is given for {given.key!r}.")
        with _opened(given.path) as file:
            url = self._root.url_of(given.key)
            return await self._send(url, given, FileSource(file), overwrite)

    async def _sent(
        self,
        objects: list[S3PutObject],
        send: Callable[[S3PutObject], Coroutine[Any, Any, str | None]],
    ) -> list[tuple[str, str]]:
        urls = await self.all(send(each) for each in objects)
        return [(each.key, url) for each, url in zip(objects, urls, strict=True) if url is not None]

    async def _send(
        self, url: str, given: S3PutObject, source: UploadSource, overwrite: bool
    ) -> str | None:
        condition: dict[str, str] = {}
        if not overwrite:
            # Check first: this avoids the upload of an existing object, and works on servers
            # without conditional writes.
            if (await _or_missing(self._head(url), url, None, True)).exists:
                return None
            condition = {"IfNoneMatch": "*"}
        about = _about(given, self._encryption)
        lane: AbstractAsyncContextManager[Any] = (
            self._large if source.size > _LARGE else nullcontext()
        )
        async with lane:
            try:
                await self._tried(
                    url,
                    lambda subject, where: upload(
                        self.s3, subject, where, source, condition, about
                    ),
                )
            except _WasThere:
                return None
        return url

    # -------------------------------------------------------------- helpers

    async def all(self, work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
        """Return the results of coroutines, in their order. Several run concurrently.

        Args:
            work: The coroutines, read one by one.
        """
        return await some_at_once(iter(work), self._workers)

    async def _asked(self, url: str, operation: str, values: Mapping[str, Any]) -> Any:
        """Return the response to an operation, by its name in botocore."""

        async def ask(subject: Subject, where: Mapping[str, str]) -> Any:
            with translated(subject):
                return await getattr(self.s3, operation)(**values)

        return await self._tried(url, ask)

    async def _tried(self, url: str, act: _Act[T]) -> T:
        """Return the result of `act` for the object at `url`, with retries and the errors of S3."""
        place = split(url)
        subject = Subject(url, f"There is no object {url}.")
        try:
            return await retried(lambda: act(subject, place.arguments))
        except StorageError as error:
            kind = next(kind for storage, kind in _KINDS if isinstance(error, storage))
            raise kind(str(error)) from error


_Act = Callable[[Subject, Mapping[str, str]], Awaitable[T]]


async def _or_missing(
    work: Awaitable[S3Object], url: str, prefix: str | None, return_missing: bool
) -> S3Object:
    try:
        return await work
    except S3NotFound:
        if not return_missing:
            raise
        return S3Object(url, prefix)


def _about(given: S3PutObject, encryption: str | None) -> dict[str, Any]:
    """Return the attributes of an object to upload."""
    about: dict[str, Any] = {}
    if given.content_type:
        about["ContentType"] = given.content_type
    if given.metadata:
        about["Metadata"] = {_ATTRIBUTES: json.dumps(given.metadata)}
    if given.encryption or encryption:
        about["ServerSideEncryption"] = given.encryption or encryption
    return about


def _described(url: str, prefix: str | None, answer: Any, path: str | None = None) -> S3Object:
    """Return the object that a response of S3 describes."""
    size = int(answer["ContentLength"])
    attributes = answer.get("Metadata", {}).get(_ATTRIBUTES)
    range_info = None
    if path is not None:
        range_info = RangeInfo(size, 0, size)
        if "ContentRange" in answer:  # for example bytes 0-99/1000
            span, _, total = answer["ContentRange"].split()[1].partition("/")
            range_info = RangeInfo(int(total), int(span.partition("-")[0]), size)
    return S3Object(
        url=url,
        prefix=prefix,
        path=path,
        size=size,
        content_type=answer.get("ContentType"),
        metadata=None if attributes is None else json.loads(attributes),
        range_info=range_info,
        last_modified=int(answer["LastModified"].timestamp()) if "LastModified" in answer else None,
        encryption=answer.get("ServerSideEncryption"),
    )


# How an S3 client reaches its server, and with which credentials.


class Identity(NamedTuple):
    """The credentials of a client.

    These are a role to assume, arguments of a session (`profile_name`, `region_name`,
    `aws_access_key_id`...) and of a client (`endpoint_url`, `verify`, `config`...), named as in
    boto3."""

    role: str | None = None
    session_vars: Mapping[str, Any] | None = None
    client_params: Mapping[str, Any] | None = None


async def connect(root: S3Prefix, identity: Identity, has_lanes: bool = True) -> Any:
    """Return a client of S3, which `storage.s3.disconnect` closes.

    Args:
        root: The prefix of the client, with its endpoint and region.
        identity: The credentials and further arguments.
        has_lanes: Whether large objects are transferred by several clients.

    Raises:
        AccessDenied: If the role cannot be assumed. The errors of `translated` are raised as well.
    """
    of_session = dict(identity.session_vars or {})
    subject = Subject(root.url or "S3", "")
    with translated(subject):
        session = new_session("s3", of_session.pop("profile_name", None))
        options = {
            "endpoint_url": root.endpoint,
            "region_name": root.region,
            **of_session,
            **(identity.client_params or {}),
        }
        if identity.role is not None:
            if of_session.get(_KEYS[0]):
                session.set_credentials(*(of_session.get(name) for name in _KEYS))
            await assume_role_async(session, identity.role, of_session.get("region_name"))
            options = {name: value for name, value in options.items() if name not in _KEYS}
        again = partial(connect, root, identity, False) if has_lanes else None
        return await connect_session(session, again, **options)


_KEYS = ("aws_access_key_id", "aws_secret_access_key", "aws_session_token")
