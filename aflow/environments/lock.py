"""Locks: the exact packages of an environment, by their content.

A lock is what a solver has found for what a step asks for (`spec.py`): one file (a wheel, or a
conda package) for each package, with its sha256. It is recorded with each run, part of the cache
key of its steps, and enough to build the same environment on any machine of its platform, from any
place that has these files: an index, the cache of a user, the datastore. It holds no credentials.

The digest of a lock is the environment's id. It says nothing of where the files come from: the same
files from a mirror are the same environment.
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
_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+!~-]*\Z")  # a file's name, never a path
WHEEL = "wheel"
CONDA = "conda"


@dataclass(frozen=True, kw_only=True, slots=True)
class LockedPackage:
    """One file of an environment. `name` is normalized (`scikit-learn`), `file` the file's name.

    `url` is where an index or a channel has the file, without credentials; empty for a file that
    was built or found on the machine that has solved (`source` says of what: a folder, a repository
    at a commit). Those files are kept in the cache by their digest.
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
    """What the environment of a step consists of in the datastore, by keys of blobs: the manifest
    of its packages, that of what aflow needs there (None for the run's own Python), the interpreter
    (the same), and uv. See transport.py."""

    packages: str
    runtime: str | None
    python: str | None
    uv: str


@dataclass(frozen=True, kw_only=True)
class Lock:
    """The packages of one environment, in the order of their names.

    `python` is the version of the interpreter: major and minor (`3.12`), with a micro version only
    where the step asks for exactly that (`3.12.4`). `platform` is in uv's words
    (`x86_64-manylinux_2_28`, `aarch64-apple-darwin`); the files run there.
    """

    python: str
    platform: str
    packages: tuple[LockedPackage, ...] = ()

    @cached_property
    def digest(self) -> str:
        """The environment's id: equal for equal packages, Python and platform."""
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
        """Return the lock of plain values.

        Args:
            data: The bytes, or the plain values that were decoded from JSON.

        Raises:
            InvalidLock: For anything else, or what is too new.
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
            data: The bytes, or the plain values that were decoded from JSON.

        Raises:
            InvalidLock: The bytes are malformed.
        """
        try:
            return cls.from_dict(json.loads(data))
        except ValueError as error:
            raise InvalidLock(f"A lock of an environment cannot be read: {error}.") from error


def lock_of(python: str, platform: str, packages: Iterable[LockedPackage]) -> Lock:
    """Return a lock of these packages, whatever their order.

    Args:
        python: The version of the interpreter, as `3.12`.
        platform: The platform, as uv names it.
        packages: The packages, in any order.
    """
    ordered = sorted(packages, key=lambda each: (each.kind, each.name, each.file))
    return Lock(python=python, platform=platform, packages=tuple(ordered))


def digest_of_values(*values: Any) -> str:
    """Return a SHA-256 that is equal for equal values, in hex.

    Args:
        *values: Values that JSON can hold.
    """
    import hashlib  # loads OpenSSL, and every run imports this module

    return hashlib.sha256(json.dumps(values, separators=(",", ":")).encode()).hexdigest()


def normalized(name: str) -> str:
    """Return the name of a package as indexes compare it: `Scikit_Learn` is `scikit-learn`.

    Args:
        name: The name as a step or a file has it, without extras.
    """
    return re.sub(r"[-_.]+", "-", name).lower()
