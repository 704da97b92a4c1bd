"""A cache of package files by digest: files that were built here, or that are to be shipped.

    wheels/<sha256>/<file name>

Files that environments install from an index are not in it: uv has a separate cache for them.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import mmap
import netrc
import os
import re
import shutil
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import unquote, urlsplit

from aflow._core.secret import without_credentials
from aflow._core.settings import environment_with
from aflow.environments.lock import LockedPackage
from aflow.environments.uv import INDEX_VARIABLES, index_of_pip
from aflow.errors import EnvironmentFailed
from aflow.storage.blobs import digest_of

_CHUNK = 1 << 20
_TIMEOUT = 60.0  # seconds without any data from the server


class Files:
    """The cache of package files, in the folder `wheels` of the cache folder."""

    def __init__(self, cache: Path) -> None:
        self.folder = cache / "wheels"

    def path(self, package: LockedPackage) -> Path | None:
        """Return the cached file of a package; None if it is not cached.

        Args:
            package: The locked package.
        """
        found = self.folder / package.sha256 / package.file
        if not found.is_file():
            return None
        # Mark it as used for `gc`; fails if the folder is shared and read-only for this user.
        with suppress(OSError):
            os.utime(found.parent)
        return found

    def add(self, path: Path, name: str) -> str:
        """Add a copy of a file to the cache. Idempotent.

        Args:
            path: The file, which must not be modified during the copy.
            name: The file name in the lock.

        Returns:
            The SHA-256 of its content, in hex.

        Raises:
            EnvironmentFailed: If the file cannot be copied, or was modified during the copy.
        """
        with failing_as(f"{path} cannot be read"):
            digest = digest_of_file(path)
        place = self.folder / digest / name
        if not place.is_file():
            with temporary_file(place.parent) as new:
                shutil.copyfile(path, new)
                if digest_of_file(new) != digest:  # modified between hashing and copying
                    raise EnvironmentFailed(f"{path} has changed while it was read")
                os.replace(new, place)
        return digest

    def blob_key(self, path: Path) -> str:
        """Return the key of a cached file as a blob in the datastore; computed once and stored.

        Args:
            path: The path of the cached file.
        """
        beside = path.parent / "blob-key"
        try:
            found = beside.read_text("utf-8")
        except OSError:
            found = ""
        if not found:
            with (
                open(path, "rb") as file,
                mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data,
                memoryview(data) as view,
            ):
                found = str(digest_of([view], len(view)))
            write(beside, found.encode())
        return found

    def fetch(self, package: LockedPackage) -> Path:
        """Return the cached file of a package; download it from its index if necessary. Blocks.

        Args:
            package: The locked package.

        Raises:
            EnvironmentFailed: If the file cannot be downloaded, or the index has another file now.
        """
        found = self.path(package)
        if found is not None:
            return found
        if not package.url:
            raise EnvironmentFailed(
                f"The file {package.file} ({package.source or 'built elsewhere'}) is not here, and "
                "no index has it"
            )
        digest = self.fetch_new(package.url, package.file)
        if digest != package.sha256:
            raise EnvironmentFailed(f"{package.url} gives another file than was locked")
        return self.folder / digest / package.file

    def fetch_new(self, url: str, name: str) -> str:
        """Download a file whose digest is not known yet, and add it to the cache.

        Args:
            url: The URL of the file; credentials in it are sent as a header.
            name: The file name in the future lock.

        Returns:
            The SHA-256 of its content, in hex.

        Raises:
            EnvironmentFailed: If the file cannot be downloaded.
        """
        with temporary_file(self.folder) as new:
            download(url, new)
            return self.add(new, name)


def download(url: str, path: Path) -> None:
    """Download a URL to a file.

    Args:
        url: The URL, with or without credentials.
        path: The file, which is created or overwritten.

    Raises:
        EnvironmentFailed: If the server refuses the request or cannot be reached.
    """
    bare, credentials = _with_credentials(url)
    request = urllib.request.Request(bare)  # noqa: S310 -- of an index that the user has set
    if credentials is not None:
        request.add_unredirected_header("Authorization", credentials)
    try:
        with (
            urllib.request.urlopen(request, timeout=_TIMEOUT) as answer,  # noqa: S310
            open(path, "wb") as file,
        ):
            shutil.copyfileobj(answer, file, _CHUNK)
            # `read` with a size does not report a connection that was closed too early.
            expected = answer.headers.get("Content-Length")
            if expected is not None and file.tell() != int(expected):
                raise http.client.IncompleteRead(b"", int(expected) - file.tell())
    except (OSError, ValueError, http.client.HTTPException) as error:
        why = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise EnvironmentFailed(f"{without_credentials(url)} cannot be fetched: {why}") from error


def write(path: Path, data: bytes) -> None:
    """Write a small file atomically.

    Args:
        path: The file; its folder is created if it does not exist.
        data: The complete content of the file.

    Raises:
        EnvironmentFailed: If the file cannot be written.
    """
    with temporary_file(path.parent) as new:
        new.write_bytes(data)
        os.replace(new, path)


@contextmanager
def temporary_file(folder: Path) -> Iterator[Path]:
    """Yield the path of a new, empty, world-readable file. It is removed at the end of the block
    unless it was renamed.

    Args:
        folder: The folder of the file, which is created if it does not exist.

    Raises:
        EnvironmentFailed: If the file cannot be created, or the block raises OSError.
    """
    with failing_as(f"{folder} cannot be written"):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=".new-", dir=folder)
        os.close(descriptor)
        os.chmod(name, 0o644)
        try:
            yield Path(name)
        finally:
            Path(name).unlink(missing_ok=True)


@contextmanager
def failing_as(what: str) -> Iterator[None]:
    """Raise EnvironmentFailed for an OSError in the block.

    Args:
        what: The first part of the message; the reason given by the system is appended.

    Raises:
        EnvironmentFailed: If the block raises OSError.
    """
    try:
        yield
    except OSError as error:
        raise EnvironmentFailed(f"{what}: {error.strerror or error}") from error


def digest_of_file(path: Path) -> str:
    """Return the SHA-256 of a file, in hex.

    Args:
        path: The file, of any size.
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _with_credentials(url: str) -> tuple[str, str | None]:
    """Return the URL without credentials, and the Authorization header with the user's credentials
    for its host, if any: from the URL itself, the settings of indexes, or netrc."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    bare = parts._replace(netloc=host).geturl()
    environment = environment_with({})
    known = environment | index_of_pip().variables
    indexes = " ".join(known.get(name, "") for name in INDEX_VARIABLES)
    urls = [url, *re.findall(r"https?://[^\s,]+", indexes)]
    for each in map(urlsplit, urls):
        same = (each.scheme, each.netloc.rpartition("@")[2]) == (parts.scheme, host)
        if same and each.username is not None:
            return bare, _basic(unquote(each.username), unquote(each.password or ""))
    try:
        found = netrc.netrc(environment.get("NETRC")).authenticators(parts.hostname or "")
    except (OSError, netrc.NetrcParseError):
        found = None
    return bare, None if found is None else _basic(found[0], found[2] or "")


def _basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
