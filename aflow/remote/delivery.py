"""What describes a run, and its code, on a machine that has neither."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from aflow import package
from aflow.attempt.remote import Parcels
from aflow.errors import CodePackageError
from aflow.executors.job import Job, python_version
from aflow.executors.local.program import placed
from aflow.storage.blobs import BlobStore

if TYPE_CHECKING:
    from pathlib import Path

    from aflow.storage.base import ObjectStore


class Unpack(Protocol):
    """Gives the folder with the code of a package. Raises CodePackageError."""

    def __call__(self, blobs: BlobStore, key: str) -> Path:
        """The folder."""


def delivered(
    store: ObjectStore, flow: str, run: str, key: str, unpack: Unpack
) -> tuple[Job, Path | None]:
    """The description of a run, which is a parcel of this key, and the folder with its code, from
    which the flow is to be imported (None for one that comes without). Blocks.

    Raises CodePackageError, also for a run of another Python, StorageError and InvalidMessage."""
    job = Job.decode(Parcels(store, flow, run).get(key))
    if job.python != python_version():
        raise CodePackageError(
            f"the run was started with Python {job.python}, and here is {python_version()}: use "
            "the same."
        )
    if job.code is None:
        return job, None
    folder = unpack(BlobStore(store), job.code)
    source = placed(job.request.source, folder, package.inside(job.script))
    return job._replace(request=job.request._replace(source=source)), folder
