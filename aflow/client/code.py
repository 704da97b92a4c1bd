"""The code of a run when it started."""

from __future__ import annotations

import os
import platform
import tarfile
from functools import cached_property, partial
from importlib.util import decode_source
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from aflow.environments.record import FIELD, recorded_locks
from aflow.errors import CodePackageError
from aflow.storage.blobs import blob_name
from aflow.storage.names import CodeModules, Names, ProgramFile, code_beside, code_in
from aflow.task import code_package

if TYPE_CHECKING:
    from aflow.client.source import RunSource


class RunCode:
    """The code package of a run: the flow file and the files next to it."""

    def __init__(self, source: RunSource, key: str, script: str) -> None:
        self._source = source
        self._key = key
        self._script = script

    @property
    def path(self) -> str:
        """The location of the package: the store's URL and the name of the blob."""
        return f"{self._source.setting('storage')}/{blob_name(self._key)}"

    @property
    def script_name(self) -> str:
        """The path of the flow file in the package."""
        return self._script

    @property
    def info(self) -> dict[str, str]:
        """Facts about the code: flow_name, script, code_key, username, versions, platform."""
        from aflow.client import task  # rarely needed

        tags = task.from_tags(self._source)
        return {
            "flow_name": self._source.record.flow,
            "script": self._script,
            **{name: tags[name] for name in ("python_version", "aflow_version") if name in tags},
            "code_key": self._key,
            "username": self._source.record.user,
            "platform": platform.system(),
        }

    @cached_property
    def tarball(self) -> tarfile.TarFile:
        """The package as an open archive, the same object each time. Raises CodePackageError."""
        return code_package.opened(self._data)

    @property
    def flowspec(self) -> str:
        """The text of the flow file, in the encoding that it declares. Raises CodePackageError."""
        with code_package.opened(self._data) as archive:
            try:
                file = archive.extractfile(self._script)
            except KeyError:
                file = None
            if file is None:
                raise CodePackageError(
                    f"The code of {self._source.pathspec} has no file {self._script}: its record "
                    "is damaged."
                )
            return decode_source(file.read())

    @cached_property
    def environments(self) -> dict[str, dict[str, Any]]:
        """The environments of the steps that declare packages, by step: `id`, `python`, `platform`
        and the versions of the `packages`. Raises StorageError and InvalidLock."""
        known = {FIELD: self._source.setting(FIELD) or {}}
        locks = recorded_locks(known, self._source.blobs.store)
        return {
            step: {
                "id": lock.digest,
                "python": lock.python,
                "platform": lock.platform,
                "packages": lock.versions,
            }
            for step, lock in locks.items()
        }

    def extract(self) -> TemporaryDirectory[str]:
        """Extract the files to a new temporary folder, which is removed when it is closed or
        collected.

        Returns:
            The folder.

        Raises:
            CodePackageError: If the code package cannot be read or unpacked.
        """
        folder = TemporaryDirectory(prefix="aflow-code-")
        code_package.unpack(self._data, Path(folder.name))
        return folder

    @cached_property
    def _data(self) -> bytes:
        return code_package.fetch(self._source.blobs, self._key)

    def __repr__(self) -> str:
        return f"RunCode({self._source.pathspec!r}, script={self._script!r})"


def names_of(source: RunSource) -> Names:
    """Return the resolver for the classes of the run's values: it looks in this program, if that is
    the program of the run, and in the code package of the run.

    Args:
        source: The run.
    """
    known: dict[str, Any] = source.setting("program") or {}
    script = os.path.abspath(source.setting("script") or "")
    program = ProgramFile(known.get("file", script), known.get("sha"), known.get("module"))
    return Names(program, partial(_modules_of, source, program))


def _modules_of(source: RunSource, program: ProgramFile, key: str | None) -> CodeModules | None:
    """Return the code package of the run, or the one with another key, as modules of this
    process; None if it no longer exists."""
    facts: dict[str, Any] = source.setting("code") or {}
    own: str | None = facts.get("key")
    if key is not None and key != own:
        return code_in(source.blobs, key)
    if own is not None:
        return code_in(source.blobs, own, facts["script"], program.module)
    # The package was too large to store. The current files are better than nothing.
    return code_beside(program)


def code_of(source: RunSource) -> RunCode | None:
    """Return the code of the run; None if it was not stored.

    Args:
        source: The run.
    """
    facts: dict[str, Any] = source.setting("code") or {}
    return RunCode(source, facts["key"], facts["script"]) if "key" in facts else None
