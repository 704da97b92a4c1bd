"""`aflow.S3` and `aflow.AsyncS3`: users' own data in S3.

    with S3(run=self) as s3:
        s3.put("model.bin", data)
        objects = s3.get_many(["a", "b"])

    async with AsyncS3(s3root="s3://bucket/prefix") as s3:
        found = await s3.get("a")

Both have the same methods with the same results. Each client works in its own thread, so that
neither disk access nor signing blocks the caller's event loop. Downloads are stored in a temporary
directory, which is deleted when the client is closed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterable
from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, Self, TypeVar

from aflow._core.settings import Settings
from aflow._core.threads import Portal, in_thread
from aflow.aws.s3.objects import PutValue, S3GetObject, S3Object, S3PutObject, root_of
from aflow.errors import S3AccessDenied, S3InvalidUrl, StoreUnavailable

if TYPE_CHECKING:
    from aflow.aws.s3.transfers import Put, PutFile, Transfers

P = ParamSpec("P")
T = TypeVar("T")


class _Client:
    """The common part of both clients.

    Keys are names below a prefix. The prefix is that of a run (`run=`: self of a step, or a Run;
    `bucket=` and `prefix=` replace parts of AFLOW_DATATOOLS_S3ROOT), or `s3root=`
    (s3://bucket/prefix, with `?endpoint=` and `&region=` for servers other than AWS). Without a
    prefix, keys are complete URLs.

    `tmproot` is the parent of the temporary directory, `encryption` the server-side encryption of
    uploads (AES256, aws:kms). `role` is the ARN of a role to assume; `session_vars` and
    `client_params` are passed to botocore."""

    def __init__(
        self,
        tmproot: str | None = None,
        bucket: str | None = None,
        prefix: str | None = None,
        run: Any = None,
        s3root: str | None = None,
        encryption: str | None = None,
        *,
        role: str | None = None,
        session_vars: dict[str, Any] | None = None,
        client_params: dict[str, Any] | None = None,
    ) -> None:
        # These need aiobotocore, an optional dependency that `import aflow` must not require.
        from aflow.aws.s3.transfers import Folder, Identity, Transfers, connect
        from aflow.storage.s3 import disconnect

        settings = Settings.load()
        self._root = root_of(settings, bucket, prefix, run, s3root)
        self._folder = Folder(settings.tempdir if tmproot is None else tmproot)
        identity = Identity(role, session_vars, client_params)
        encrypted = encryption or settings.s3_encryption

        async def opened() -> Transfers:
            try:
                s3 = await connect(self._root, identity)
            except StoreUnavailable as error:
                raise S3AccessDenied(str(error)) from error
            return Transfers(s3, self._root, self._folder, encrypted, settings.s3_workers)

        async def closed(transfers: Transfers) -> None:
            await disconnect(transfers.s3)

        self._portal: Portal[Transfers] = Portal("aflow-s3-data", opened, closed)

    def _close(self) -> None:
        self._portal.close()
        self._folder.close()


Work = Callable[["Transfers"], Coroutine[Any, Any, T]]


class S3(_Client):
    __doc__ = f"""A client of S3 whose calls wait for their answer; from many threads, too.

    {_Client.__doc__}"""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections and delete the temporary files. May be called twice."""
        self._close()

    def _call(self, work: Work[T]) -> T:
        return self._portal.call(work)

    def get(
        self,
        key: str | S3GetObject | None = None,
        return_missing: bool = False,
        return_info: bool = True,
    ) -> S3Object:
        """Download an object or, with S3GetObject, a range of it.

        Args:
            key: The key, the range, or None for the prefix itself.
            return_missing: Whether to return an object with `exists` False instead of raising
                S3NotFound.
            return_info: Whether to include attributes such as content type and metadata.

        Returns:
            The object, as a file on this machine.

        Raises:
            S3NotFound: If it does not exist, and `return_missing` is not set.
        """
        return self._call(lambda s3: s3.get(key, return_missing, return_info))

    def get_many(
        self,
        keys: Iterable[str | S3GetObject],
        return_missing: bool = False,
        return_info: bool = True,
    ) -> list[S3Object]:
        """Return many objects, downloaded concurrently, in the order of the keys.

        Args:
            keys: The keys, relative to the prefix of this client, or complete `s3://` URLs.
            return_missing: Whether to return an object with `exists` False instead of raising
                S3NotFound.
            return_info: Whether to include attributes such as content type and metadata.
        """
        return self._call(
            lambda s3: s3.all(s3.get(each, return_missing, return_info) for each in keys)
        )

    def get_recursive(
        self, keys: Iterable[str | None], return_info: bool = False
    ) -> list[S3Object]:
        """Download all objects below some prefixes, each taken as a directory.

        Args:
            keys: The keys, relative to the prefix of this client, or complete `s3://` URLs.
            return_info: Whether to include attributes such as content type and metadata.

        Returns:
            The objects.
        """
        return self._call(lambda s3: s3.get_recursive(keys, return_info))

    def get_all(self, return_info: bool = False) -> list[S3Object]:
        """Download all objects below the prefix of this client.

        Args:
            return_info: Whether to include attributes such as content type and metadata.

        Returns:
            The objects.

        Raises:
            S3InvalidUrl: If the client has no prefix.
        """
        if self._root.url is None:
            raise S3InvalidUrl("get_all() needs a client that was made with s3root= or run=.")
        return self.get_recursive([None], return_info)

    def info(self, key: str | None = None, return_missing: bool = False) -> S3Object:
        """Return the attributes of an object without downloading it. Raises as `get` does.

        Args:
            key: The key, relative to the prefix of this client, or a complete `s3://` URL.
            return_missing: Whether to return an object with `exists` False instead of raising
                S3NotFound.
        """
        return self._call(lambda s3: s3.info(key, return_missing))

    def info_many(self, keys: Iterable[str], return_missing: bool = False) -> list[S3Object]:
        """Return the attributes of many objects, requested concurrently, in the order of the keys.

        Args:
            keys: The keys, relative to the prefix of this client, or complete `s3://` URLs.
            return_missing: Whether to return an object with `exists` False instead of raising
                S3NotFound.
        """
        return self._call(lambda s3: s3.all(s3.info(each, return_missing) for each in keys))

    def list_paths(self, keys: Iterable[str | None] | None = None) -> list[S3Object]:
        """Return the objects and prefixes directly below some prefixes.

        `exists` is False for a prefix.

        Args:
            keys: The keys, relative to the prefix of this client, or complete `s3://` URLs.
        """
        return self._call(lambda s3: s3.listings(keys, "/"))

    def list_recursive(self, keys: Iterable[str | None] | None = None) -> list[S3Object]:
        """Return all objects below some prefixes, each taken as a directory.

        Args:
            keys: The keys, relative to the prefix of this client, or complete `s3://` URLs.
        """
        return self._call(lambda s3: s3.listings(keys, ""))

    def put(
        self,
        key: str | S3PutObject,
        obj: PutValue | None = None,
        overwrite: bool = True,
        content_type: str | None = None,
        metadata: dict[str, str] | None = None,
    ) -> str:
        """Upload text (as UTF-8), bytes, or a file opened for reading.

        Args:
            key: The key, relative to the prefix of this client, or a complete `s3://` URL.
            obj: The value: text, bytes or an open file.
            overwrite: Whether to replace an existing object.
            content_type: The content type; None for S3's default.
            metadata: User metadata, stored with the object.

        Returns:
            The URL.
        """
        given = _given(key, obj, content_type, metadata)

        async def put(s3: Transfers) -> str:
            await s3.put(given, overwrite)
            return self._root.url_of(given.key)

        return self._call(put)

    def put_many(self, key_objs: Iterable[Put], overwrite: bool = True) -> list[tuple[str, str]]:
        """Upload many values concurrently.

        Args:
            key_objs: Pairs of a key and a value, or S3PutObjects.
            overwrite: Whether to replace existing objects.

        Returns:
            Key and URL of the objects that were written.
        """
        return self._call(lambda s3: s3.put_many(key_objs, overwrite))

    def put_files(
        self, key_paths: Iterable[PutFile], overwrite: bool = True
    ) -> list[tuple[str, str]]:
        """Upload many local files concurrently.

        Args:
            key_paths: Pairs of a key and the path of a file, or S3PutObjects with a path.
            overwrite: Whether to replace existing objects.

        Returns:
            Key and URL of the objects that were written.

        Raises:
            S3NotFound: If a file does not exist.
        """
        return self._call(lambda s3: s3.put_files(key_paths, overwrite))


def _awaited(
    method: Callable[Concatenate[S3, P], T],
) -> Callable[Concatenate[AsyncS3, P], Coroutine[Any, Any, T]]:
    """Return a method of S3 as a method of AsyncS3, whose `_call` is a coroutine."""
    calls: Any = method

    @wraps(method)
    async def call(self: AsyncS3, /, *args: P.args, **kwargs: P.kwargs) -> T:
        result: T = await calls(self, *args, **kwargs)
        return result

    return call


class AsyncS3(_Client):
    __doc__ = f"""The same methods, which are awaited, on any event loop.

    {_Client.__doc__}"""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """See S3.close."""
        await in_thread(self._close)

    async def _call(self, work: Work[T]) -> T:
        # The first call of `begin` may block, since it opens the connection.
        begun = await in_thread(self._portal.begin, work)
        return await asyncio.wrap_future(begun)

    get = _awaited(S3.get)
    get_many = _awaited(S3.get_many)
    get_recursive = _awaited(S3.get_recursive)
    get_all = _awaited(S3.get_all)
    info = _awaited(S3.info)
    info_many = _awaited(S3.info_many)
    list_paths = _awaited(S3.list_paths)
    list_recursive = _awaited(S3.list_recursive)
    put = _awaited(S3.put)
    put_many = _awaited(S3.put_many)
    put_files = _awaited(S3.put_files)


def _given(
    key: str | S3PutObject,
    obj: PutValue | None,
    content_type: str | None,
    metadata: dict[str, str] | None,
) -> S3PutObject:
    """Return the arguments of `put` as one object."""
    if not isinstance(key, S3PutObject):
        return S3PutObject(key, obj, content_type=content_type, metadata=metadata)
    given = key if obj is None else key._replace(value=obj)
    return given._replace(
        content_type=content_type or given.content_type, metadata=metadata or given.metadata
    )
