"""Locks: the exact packages of an environment, identified by their content.

A lock is the solution for the packages that a step requests (`spec.py`): one file (a wheel or a
conda package) for each package, with its sha256. It is recorded with each run and is part of the
cache keys of its steps. It suffices to build the same environment on any host of its platform, from
any source of these files: an index, a user's cache, the datastore. It contains no credentials.

The digest of a lock is the id of the environment. It does not depend on the source of the files:
the same files from a mirror are the same environment.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, NamedTuple

from aflow.errors import InvalidLock

VERSION = 1
_DIGEST = re.compile(r"[0-9a-f]{64}\Z")
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+!~-]*\Z")  # a file name, never a path
WHEEL = "wheel"
CONDA = "conda"


@dataclass(frozen=True, kw_only=True, slots=True)
class LockedPackage:
    """One file of an environment. `name` is normalized (`scikit-learn`), `file` is the file name.

    `url` is the URL of the file in an index or channel, without credentials. It is empty for a file
    that was built or found on the host that solved the lock; `source` is then its origin: a folder,
    or a repository and a commit. Such files are kept in the cache by digest.
    """

    name: str
    version: str
    file: str
    sha256: str
    url: str = ""
    source: str = ""
    kind: str = WHEEL

    def __post_init__(self) -> None:
        if not _DIGEST.match(self.sha256) or not _FILE.match(self.file) or not self.name:
            raise InvalidLock(f"{self.name or 'A package'} of a lock has no file with a sha256.")
        if self.kind not in (WHEEL, CONDA):
            raise InvalidLock(f"{self.name} is a {self.kind}, which this aflow does not know.")


class Shipped(NamedTuple):
    """The parts of a step's environment in the datastore, as blob keys: the manifest of its
    packages, the manifest of aflow's dependencies and the interpreter (both None if the Python is
    that of the jobs), and uv. See transport.py."""

    packages: str
    runtime: str | None
    python: str | None
    uv: str


@dataclass(frozen=True, kw_only=True)
class Lock:
    """The packages of one environment, in the order of their names.

    `python` is the version of the interpreter: major and minor (`3.12`), with a micro version only
    if the step requests exactly that (`3.12.4`). `platform` is uv's name of the platform for which
    the files are (`x86_64-manylinux_2_28`, `aarch64-apple-darwin`).
    """

    python: str
    platform: str
    packages: tuple[LockedPackage, ...] = ()

    @cached_property
    def digest(self) -> str:
        """The id of the environment: equal for equal packages, Python and platform."""
        files = [[each.kind, each.name, each.version, each.file, each.sha256] for each in self]
        return digest_of_values(VERSION, self.python, self.platform, files)

    def __iter__(self) -> Iterator[LockedPackage]:
        return iter(self.packages)

    @property
    def minor(self) -> str:
        """Major and minor version of Python."""
        return ".".join(self.python.split(".")[:2])

    @property
    def versions(self) -> dict[str, str]:
        """The versions of the packages, by their names."""
        return {each.name: each.version for each in self.packages}

    @property
    def is_conda(self) -> bool:
        """Whether the interpreter itself comes from a conda package."""
        return any(each.kind == CONDA for each in self.packages)

    def as_dict(self) -> dict[str, Any]:
        """Return the lock as plain values, which `from_dict` reads."""
        packages = [
            {name: value for name, value in asdict(each).items() if value not in ("", WHEEL)}
            for each in self.packages
        ]
        return {
            "version": VERSION,
            "python": self.python,
            "platform": self.platform,
            "packages": packages,
        }

    def encode(self) -> bytes:
        """Return the lock as JSON, the same bytes for the same lock."""
        return json.dumps(self.as_dict(), separators=(",", ":"), sort_keys=True).encode()

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Lock:
        """Return the lock that `as_dict` returned as plain values.

        Args:
            data: The plain values, decoded from JSON.

        Raises:
            InvalidLock: If the values are malformed, or of a newer version.
        """
        try:
            if data["version"] > VERSION:
                raise InvalidLock("An environment was locked by a newer aflow: upgrade this one.")
            packages = (LockedPackage(**each) for each in data["packages"])
            return lock_of(str(data["python"]), str(data["platform"]), packages)
        except (KeyError, TypeError, AttributeError) as error:
            raise InvalidLock(f"A lock of an environment cannot be read: {error!r}.") from error

    @classmethod
    def decode(cls, data: bytes) -> Lock:
        """Return the lock that `encode` returned as bytes.

        Args:
            data: The encoded lock.

        Raises:
            InvalidLock: If the bytes are malformed, or of a newer version.
        """
        try:
            return cls.from_dict(json.loads(data))
        except ValueError as error:
            raise InvalidLock(f"A lock of an environment cannot be read: {error}.") from error


def lock_of(python: str, platform: str, packages: Iterable[LockedPackage]) -> Lock:
    """Return a lock of these packages, sorted.

    Args:
        python: The version of the interpreter, for example `3.12`.
        platform: uv's name of the platform.
        packages: The packages, in any order.
    """
    ordered = sorted(packages, key=lambda each: (each.kind, each.name, each.file))
    return Lock(python=python, platform=platform, packages=tuple(ordered))


def digest_of_values(*values: Any) -> str:
    """Return the SHA-256 of values, in hex.

    Args:
        *values: Values that can be encoded as JSON.
    """
    import hashlib  # lazy: it loads OpenSSL, and every run imports this module

    return hashlib.sha256(json.dumps(values, separators=(",", ":")).encode()).hexdigest()


def normalized(name: str) -> str:
    """Return the normalized name of a package (PEP 503): `scikit-learn` for `Scikit_Learn`.

    Args:
        name: The name of a package, without extras.
    """
    return re.sub(r"[-_.]+", "-", name).lower()
