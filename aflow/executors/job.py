"""What a worker has to know of a run: one parcel, written when the run begins.

It holds no secrets and is only ever read by the name of its digest, which stands in each (signed)
message. What is pickled in it is read by the process that runs the flow, and by nobody else.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import NamedTuple

import msgpack

from aflow.attempt.spec import RunContext
from aflow.errors import InvalidMessage
from aflow.executors.local.process import StepNeeds
from aflow.executors.local.program import Request

VERSION = 1


class Job(NamedTuple):
    """How the attempts of a run are run elsewhere.

    `code` is the key of the code package (None for a flow that travels as a pickle), `script` the
    flow file's name inside of it. `python` is the version that the run was started with, as
    `3.11`. `max_log_size` is in bytes per stream of an attempt.
    """

    context: RunContext
    request: Request
    needs: Mapping[str, StepNeeds]
    code: str | None
    script: str
    isolation: str
    python: str
    max_log_size: int

    def encode(self) -> bytes:
        """The job as bytes."""
        return msgpack.packb((VERSION, *self), unicode_errors="surrogatepass")  # type: ignore[no-any-return]

    @classmethod
    def decode(cls, data: bytes) -> Job:
        """The job that `encode` gave; raises InvalidMessage for what is none, or too new."""
        try:
            version, *fields = msgpack.unpackb(data, use_list=False, unicode_errors="surrogatepass")
            if version > VERSION:
                raise InvalidMessage("The run was started by a newer aflow: upgrade the worker.")
            job = cls(*fields)
            return job._replace(
                context=RunContext(*job.context),
                request=Request(*job.request),
                needs={name: StepNeeds(*each) for name, each in job.needs.items()},
            )
        except (TypeError, ValueError, AttributeError) as error:
            raise InvalidMessage(f"A run's description cannot be read: {error}.") from error


def python_version() -> str:
    """The version of this Python, as far as what is pickled depends on it."""
    return ".".join(platform.python_version_tuple()[:2])
