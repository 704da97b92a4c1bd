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

from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any, TypeVar
from urllib.parse import parse_qs, urlsplit

from aflow.errors import InvalidSetting, ObjectNotFound, StoreUnavailable
from aflow.storage import s3_wire
from aflow.storage.base import Buffer, check_name, check_prefix
from aflow.storage.portal import Portal
from aflow.storage.s3_errors import OutOfRange, Refused, Subject, translated

T = TypeVar("T")

_MARKS, _ASIDE, _PROBE = "touched/", "aside/", "probe/conditional"


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
        self._session = s3_wire.new_session()
        self._portal: Portal[Any] = Portal("aflow-s3", self._connected, s3_wire.disconnect)
        self._checks_conditions: bool | None = None

    @property
    def url(self) -> str:
        """`s3://bucket/prefix`, with what else was said."""
        return self._url

    async def _connected(self) -> Any:
        return await self._connect(self._session, self._lane)

    async def _lane(self) -> Any:
        return await self._connect(s3_wire.new_session(), None)

    async def _connect(self, session: Any, again: s3_wire.Again | None) -> Any:
        return await s3_wire.connect(
            session, again, region_name=self._region, endpoint_url=self._endpoint
        )

    def close(self) -> None:
        """Let go of connections; the next call makes new ones. May be called twice."""
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
        except Refused:
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
        source, where, subject = s3_wire.BytesSource(parts), self._where(name), self._subject(name)
        self._call(name, lambda s3: s3_wire.upload(s3, subject, where, source, condition))

    # ------------------------------------------------------------------ reading

    def get(self, name: str, start: int = 0, length: int | None = None) -> Buffer:
        """The bytes from `start`; see the port."""
        if length == 0:
            if self.size(name) is None:
                raise self._missing(name)
            return b""
        range_ = None
        if start or length is not None:
            range_ = f"bytes={start}-" if length is None else f"bytes={start}-{start + length - 1}"
        sink, where, subject = s3_wire.BytesSink(), self._where(name), self._subject(name)
        try:
            self._call(name, lambda s3: s3_wire.download(s3, subject, where, sink, range_))
        except OutOfRange:
            return b""
        return sink.data

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

    def _where(self, name: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._key(name)}

    def _missing(self, name: str) -> ObjectNotFound:
        return ObjectNotFound(self._subject(name).missing)

    def _subject(self, name: str) -> Subject:
        return Subject(f"The datastore {self._url}", f"There is no object {name!r} in {self._url}.")

    def _call(self, name: str, work: Callable[[Any], Coroutine[Any, Any, T]]) -> T:
        """What the coroutine of `work(client)` gives; its errors as ours."""
        with translated(self._subject(name)):
            return self._portal.call(work)
