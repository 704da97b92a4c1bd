"""What the client of S3 does, as coroutines on one connection: its faces are in s3.py.

Many objects go side by side, as many as `Settings.s3_workers` says; large ones in parts
(s3_wire.py). Those that come are written to disk as they come, and only a few large ones are read
from disk at a time: memory does not grow with what there is. A request that fails for the moment is
made again.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Any, TypeVar

from aflow.data.files import FileSink, opened, source_of
from aflow.data.folder import Folder
from aflow.data.objects import PutValue, RangeInfo, S3GetObject, S3Object, S3PutObject
from aflow.data.places import Root, key_of, range_of, split
from aflow.errors import (
    ObjectNotFound,
    S3AccessDenied,
    S3Error,
    S3Failed,
    S3InvalidRange,
    S3InvalidUrl,
    S3NotFound,
    StorageError,
)
from aflow.storage import s3_wire
from aflow.storage.retrying import retried
from aflow.storage.s3_errors import (
    AccessDenied,
    NoBucket,
    OutOfRange,
    Refused,
    Subject,
    translated,
)

T = TypeVar("T")
Asked = str | S3GetObject | None
Put = tuple[str, PutValue] | S3PutObject
PutFile = tuple[str, str | os.PathLike[str]] | S3PutObject

PAGE = 1000  # names that S3 gives at a time
_LARGE = 1 << 20  # bytes of a body of which only a few are in memory at a time
_LARGE_AT_ONCE = 4
# Where Metaflow keeps what its users say of an object, so that either reads the other's.
_ATTRIBUTES = "metaflow-user-attributes"
_KINDS: tuple[tuple[type[StorageError], type[S3Error]], ...] = (
    (ObjectNotFound, S3NotFound),
    (AccessDenied, S3AccessDenied),
    (OutOfRange, S3InvalidRange),
    (NoBucket, S3InvalidUrl),
    (StorageError, S3Failed),
)


class Transfers:
    """The methods of S3, on the client `s3` of botocore, which is open."""

    def __init__(
        self, s3: Any, root: Root, folder: Folder, encryption: str | None, workers: int
    ) -> None:
        self.s3 = s3
        self._root = root
        self._folder = folder
        self._encryption = encryption
        self._workers = workers
        self._large = asyncio.Semaphore(_LARGE_AT_ONCE)

    # -------------------------------------------------------------- reading

    async def get(self, asked: Asked, return_missing: bool, return_info: bool) -> S3Object:
        """One object; see S3.get."""
        url = self._root.url_of(key_of(asked))
        fetching = self._fetch(url, self._root.url, range_of(asked), return_info)
        return await _or_missing(fetching, url, self._root.url, return_missing)

    async def get_many(
        self, keys: Iterable[Asked], return_missing: bool, return_info: bool
    ) -> list[S3Object]:
        """Many objects; see S3.get_many."""
        return await self._all(self.get(key, return_missing, return_info) for key in keys)

    async def get_recursive(self, keys: Iterable[str | None], return_info: bool) -> list[S3Object]:
        """All below some prefixes; see S3.get_recursive."""
        listed = await self.list_recursive(keys)
        return await self._all(
            self._fetch(each.url, each.prefix, None, return_info) for each in listed
        )

    async def info(self, key: str | None, return_missing: bool) -> S3Object:
        """What S3 says of an object; see S3.info."""
        url = self._root.url_of(key)
        return await _or_missing(self._head(url), url, self._root.url, return_missing)

    async def info_many(self, keys: Iterable[str], return_missing: bool) -> list[S3Object]:
        """The same of many; see S3.info_many."""
        return await self._all(self.info(key, return_missing) for key in keys)

    async def _fetch(
        self, url: str, prefix: str | None, range_: str | None, return_info: bool
    ) -> S3Object:
        sink = FileSink(self._folder.new_file(url))
        try:
            answer = await self._tried(
                url,
                lambda subject, where: s3_wire.download(self.s3, subject, where, sink, range_),
            )
        finally:
            sink.close()
        fetched = _described(url, prefix, answer, sink.path)
        return fetched if return_info else fetched.without_info()

    async def _head(self, url: str) -> S3Object:
        async def ask(subject: Subject, where: Mapping[str, str]) -> Any:
            with translated(subject):
                return await self.s3.head_object(**where)

        return _described(url, self._root.url, await self._tried(url, ask))

    # -------------------------------------------------------------- listing

    async def list_paths(self, keys: Iterable[str | None] | None) -> list[S3Object]:
        """What is directly below some prefixes; see S3.list_paths."""
        return await self._listings(keys, "/")

    async def list_recursive(self, keys: Iterable[str | None] | None) -> list[S3Object]:
        """All below some prefixes; see S3.list_recursive."""
        return await self._listings(keys, "")

    async def _listings(self, keys: Iterable[str | None] | None, delimiter: str) -> list[S3Object]:
        begins = [self._root.url_of(key).rstrip("/") + "/" for key in keys or [None]]
        found = await self._all(self._listing(begin, delimiter) for begin in begins)
        return [each for listing in found for each in listing]

    async def _listing(self, begin: str, delimiter: str) -> list[S3Object]:
        bucket, prefix = split(begin)
        found: list[S3Object] = []
        asked: dict[str, Any] = {"Prefix": prefix, "Delimiter": delimiter, "MaxKeys": PAGE}
        while True:
            page = await self._tried(begin, self._page(bucket, asked))
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

    def _page(self, bucket: str, asked: Mapping[str, Any]) -> _Act[Any]:
        async def ask(subject: Subject, where: Mapping[str, str]) -> Any:
            with translated(subject):
                return await self.s3.list_objects_v2(Bucket=bucket, **asked)

        return ask

    # -------------------------------------------------------------- writing

    async def put(self, given: S3PutObject, overwrite: bool) -> str | None:
        """Write a value; the URL, None where there was an object already."""
        url = self._root.url_of(given.key)
        return await self._send(url, given, source_of(given.key, given.value), overwrite)

    async def put_many(self, given: Iterable[Put], overwrite: bool) -> list[tuple[str, str]]:
        """Write many values; see S3.put_many."""
        objects = [
            each if isinstance(each, S3PutObject) else S3PutObject(each[0], value=each[1])
            for each in given
        ]
        return await self._sent(objects, lambda each: self.put(each, overwrite))

    async def put_files(self, given: Iterable[PutFile], overwrite: bool) -> list[tuple[str, str]]:
        """Write many files; see S3.put_files."""
        objects = [
            each if isinstance(each, S3PutObject) else S3PutObject(each[0], path=os.fspath(each[1]))
            for each in given
        ]
        return await self._sent(objects, lambda each: self._put_file(each, overwrite))

    async def _put_file(self, given: S3PutObject, overwrite: bool) -> str | None:
        if given.path is None:
            raise S3NotFound(f"No local file is given for {given.key!r}.")
        with opened(given.path) as source:
            return await self._send(self._root.url_of(given.key), given, source, overwrite)

    async def _sent(
        self,
        objects: list[S3PutObject],
        send: Callable[[S3PutObject], Awaitable[str | None]],
    ) -> list[tuple[str, str]]:
        async def one(given: S3PutObject) -> str | None:
            return await send(given)

        urls = await self._all(one(each) for each in objects)
        return [(each.key, url) for each, url in zip(objects, urls, strict=True) if url is not None]

    async def _send(
        self, url: str, given: S3PutObject, source: s3_wire.Source, overwrite: bool
    ) -> str | None:
        condition: dict[str, str] = {}
        if not overwrite:
            # Looked at first: it costs no body where there is one, and also on servers that do not
            # know conditions.
            if await _is_there(self._head(url)):
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
                    lambda subject, where: s3_wire.upload(
                        self.s3, subject, where, source, condition, about
                    ),
                )
            except _WasThere:
                return None
        return url

    # -------------------------------------------------------------- how

    async def _all(self, work: Iterable[Any]) -> list[Any]:
        return await s3_wire.some_at_once(iter(work), self._workers)

    async def _tried(self, url: str, act: _Act[T]) -> T:
        """What `act` gives for the object at `url`; errors are those of S3."""
        place = split(url)
        subject = Subject(url, f"There is no object {url}.")
        try:
            return await retried(lambda: act(subject, place.arguments))
        except Refused as error:
            raise _WasThere(str(error)) from error
        except StorageError as error:
            kind = next(kind for storage, kind in _KINDS if isinstance(error, storage))
            raise kind(str(error)) from error


_Act = Callable[[Subject, Mapping[str, str]], Awaitable[T]]


class _WasThere(S3Failed):
    """An object was there when it was to be written for the first time."""


async def _or_missing(
    work: Awaitable[S3Object], url: str, prefix: str | None, return_missing: bool
) -> S3Object:
    try:
        return await work
    except S3NotFound:
        if not return_missing:
            raise
        return S3Object(url, prefix)


async def _is_there(head: Awaitable[S3Object]) -> bool:
    try:
        await head
    except S3NotFound:
        return False
    return True


def _about(given: S3PutObject, encryption: str | None) -> dict[str, Any]:
    """What is kept with an object."""
    about: dict[str, Any] = {}
    if given.content_type:
        about["ContentType"] = given.content_type
    if given.metadata:
        about["Metadata"] = {_ATTRIBUTES: json.dumps(given.metadata)}
    if given.encryption or encryption:
        about["ServerSideEncryption"] = given.encryption or encryption
    return about


def _described(url: str, prefix: str | None, answer: Any, path: str | None = None) -> S3Object:
    """The object as an answer of S3 tells of it."""
    size = int(answer["ContentLength"])
    attributes = answer.get("Metadata", {}).get(_ATTRIBUTES)
    range_info = None
    if path is not None:
        range_info = RangeInfo(size, 0, size)
        if "ContentRange" in answer:  # bytes 0-99/1000
            span, _, total = answer["ContentRange"].split()[1].partition("/")
            range_info = RangeInfo(int(total), int(span.partition("-")[0]), size)
    return S3Object(
        url,
        prefix,
        path,
        size,
        answer.get("ContentType"),
        None if attributes is None else json.loads(attributes),
        range_info,
        int(answer["LastModified"].timestamp()) if "LastModified" in answer else None,
        answer.get("ServerSideEncryption"),
    )
