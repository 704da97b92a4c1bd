"""What the client of S3 takes and gives: objects, ranges of them, and what is to be put."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

PutValue = str | bytes | bytearray | memoryview | BinaryIO


class S3GetObject(NamedTuple):
    """A range of an object: `length` bytes from `offset`; a negative length means the last ones,
    None all that follow."""

    key: str
    offset: int | None = None
    length: int | None = None


class S3PutObject(NamedTuple):
    """What is to be put, a value or the file at `path`, and what is to be kept with it."""

    key: str
    value: PutValue | None = None
    path: str | None = None
    content_type: str | None = None
    encryption: str | None = None
    metadata: dict[str, str] | None = None


class RangeInfo(NamedTuple):
    """What was fetched of an object: all sizes are bytes."""

    total_size: int
    request_offset: int = 0
    request_length: int = -1


@dataclass(frozen=True, repr=False)
class S3Object:
    """A place in S3: an object, which may have been downloaded, or a prefix.

    `key` is what it was asked for by, or its name below `prefix`; `size` is in bytes, of what was
    downloaded or else of the object, None where there is no object. `last_modified` is in seconds
    since 1970. What is known only if it was asked for is None otherwise.
    """

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
        """Its name below the prefix; the URL where there is none."""
        if self.prefix is None or self.prefix == self.url:
            return self.url
        return self.url[len(self.prefix.rstrip("/")) + 1 :].rstrip("/")

    @property
    def exists(self) -> bool:
        """Whether there is an object."""
        return self.size is not None

    @property
    def downloaded(self) -> bool:
        """Whether `path`, `blob` and `text` can be read."""
        return self.path is not None

    @property
    def blob(self) -> bytes | None:
        """The bytes, None if they were not downloaded. The file goes when the client is closed."""
        return None if self.path is None else Path(self.path).read_bytes()

    @property
    def text(self) -> str | None:
        """The same as UTF-8; what is none is replaced."""
        blob = self.blob
        return None if blob is None else blob.decode("utf-8", errors="replace")

    @property
    def has_info(self) -> bool:
        """Whether content type, metadata, encryption or the range are known."""
        known: tuple[Any, ...] = (
            self.content_type, self.metadata, self.range_info, self.encryption,
        )  # fmt: skip
        return any(each is not None for each in known)

    def without_info(self) -> S3Object:
        """The same object of which only the bytes are known."""
        return replace(
            self,
            content_type=None,
            metadata=None,
            range_info=None,
            last_modified=None,
            encryption=None,
        )

    def __repr__(self) -> str:
        if self.path is not None:
            told = f"{self.size} bytes, local"
        elif self.size is not None:
            told = f"{self.size} bytes, in S3"
        else:
            told = "object does not exist"
        return f"<S3Object {self.url} ({told})>"
