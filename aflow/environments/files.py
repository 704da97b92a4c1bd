"""Files of packages, kept in the cache by their digest: what was built here, and what is to travel.

    wheels/<sha256>/<file name>

What environments are installed from an index comes by uv, which has a cache of its own.
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
import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import unquote, urlsplit

from aflow._core.settings import environment_with
from aflow.environments.lock import LockedPackage
from aflow.environments.uv import index_options, without_credentials
from aflow.errors import EnvironmentFailed
from aflow.storage.blobs import digest_of

_CHUNK = 1 << 20
_TIMEOUT = 60.0  # seconds without an answer


class Files:
    """Files of packages below a folder."""

    def __init__(self, cache: Path) -> None:
        self.folder = cache / "wheels"

    def path(self, package: LockedPackage) -> Path | None:
        """Return the file of a package, if it is kept here.

        Args:
            package: The package, as it is locked.
        """
        found = self.folder / package.sha256 / package.file
        return found if found.is_file() else None

    def add(self, path: Path, name: str) -> str:
        """Keep a file under a name. May be called twice.

        Args:
            path: The path.
            name: The name.

        Returns:
            The SHA-256 of its content, in hex.

        Raises:
            EnvironmentFailed: It cannot be read or copied.
        """
        digest = digest_of_file(path)
        place = self.folder / digest / name
        if not place.is_file():
            try:
                place.parent.mkdir(parents=True, exist_ok=True)
                with _temporary(place.parent) as temporary:
                    shutil.copyfile(path, temporary)
                    if digest_of_file(temporary) != digest:  # it was written meanwhile
                        raise EnvironmentFailed(f"{path} has changed while it was read")
                    os.replace(temporary, place)
            except OSError as error:
                raise EnvironmentFailed(f"{place} cannot be written: {error.strerror}") from error
        return digest

    def blob_key(self, path: Path) -> str:
        """Return the key of a kept file as a blob of the datastore; it is computed once.

        Args:
            path: The path.
        """
        beside = path.parent / "blob-key"
        try:
            found = beside.read_text()
        except OSError:
            found = ""
        if not found:
            with (
                open(path, "rb") as file,
                mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data,
                memoryview(data) as view,
            ):
                found = str(digest_of([view], len(view)))
            self.write(beside, found.encode())
        return found

    def fetch(self, package: LockedPackage) -> Path:
        """Return the file of a package: the one that is kept, else that of its index. Blocks.

        Args:
            package: The package, as it is locked.

        Raises:
            EnvironmentFailed: Also where the index has another file by now.
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
        """Fetch and keep a file whose digest is not known yet.

        Args:
            url: The URL.
            name: The name.

        Returns:
            The SHA-256 of its content, in hex.

        Raises:
            EnvironmentFailed: It cannot be fetched.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with _temporary(self.folder) as temporary:
                self.download(url, temporary)
                return self.add(temporary, name)
        except OSError as error:
            raise EnvironmentFailed(
                f"{self.folder} cannot be written: {error.strerror or error}"
            ) from error

    @staticmethod
    def download(url: str, path: Path) -> None:
        """Write what a URL returns into a file.

        Args:
            url: The URL.
            path: The path.

        Raises:
            EnvironmentFailed: The server refuses, or cannot be reached.
        """
        shown = without_credentials(url)
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
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError) as error:
            why = getattr(error, "reason", None) or error
            raise EnvironmentFailed(f"{shown} cannot be fetched: {why}") from error

    def write(self, path: Path, data: bytes | bytearray | memoryview[int]) -> None:
        """Write a small file completely or not at all.

        Args:
            path: The path.
            data: The bytes, or the plain values that were decoded from JSON.

        Raises:
            EnvironmentFailed: It cannot be written.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with _temporary(path.parent) as temporary:
                temporary.write_bytes(data)
                os.replace(temporary, path)
        except OSError as error:
            raise EnvironmentFailed(f"{path} cannot be written: {error.strerror}") from error


class _temporary:  # noqa: N801 -- reads as the context that it is
    """The path of a new file in a folder, removed at the end if it is still there."""

    def __init__(self, folder: Path) -> None:
        descriptor, name = tempfile.mkstemp(prefix=".new-", dir=folder)
        os.close(descriptor)
        os.chmod(name, 0o644)
        self._path = Path(name)

    def __enter__(self) -> Path:
        return self._path

    def __exit__(self, *exc: object) -> None:
        self._path.unlink(missing_ok=True)


def digest_of_file(path: Path) -> str:
    """Return the sha256 of a file.

    Args:
        path: The path.
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _with_credentials(url: str) -> tuple[str, str | None]:
    """The URL without credentials, and the header that shows those that the user has for its host:
    in the URL itself, in the settings of the index, or in netrc."""
    parts = urlsplit(url)
    bare = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    environment = environment_with({})
    known = " ".join([*index_options(), *(
        environment.get(each, "")
        for each in ("UV_INDEX", "UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_EXTRA_INDEX_URL")
    )])  # fmt: skip
    for each in (url, *re.findall(r"https?://\S+", known)):
        other = urlsplit(each)
        if (
            other.username is not None
            and other.scheme == parts.scheme
            and (other.netloc.rpartition("@")[2] == parts.netloc.rpartition("@")[2])
        ):
            return bare, _basic(unquote(other.username), unquote(other.password or ""))
    try:
        found = netrc.netrc(environment.get("NETRC")).authenticators(parts.hostname or "")
    except (OSError, netrc.NetrcParseError):
        found = None
    return bare, None if found is None else _basic(found[0], found[2] or "")


def _basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
