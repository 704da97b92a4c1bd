"""The messages between the coordinator and a process that runs attempts: plain msgpack arrays.

    coordinator -> process   RunContext (once), AttemptSpec (each attempt)
    process -> coordinator   STARTED, LOGGED, GROWN and ENDED messages

The first element of a message is its kind; an unknown kind is a bug in aflow. The coordinator never
unpickles any part of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import msgpack

from aflow._core.records import NamedTuple
from aflow._core.unpacking import unpack
from aflow.scheduler.messages import Outcome, Transition
from aflow.scheduler.states import AttemptState

if TYPE_CHECKING:
    from aflow.flow.definition import StepDefinition

AttemptKey = tuple[int, int]
"""The key of an attempt within its run: task number, attempt number."""

# Kinds of messages from a process that runs attempts.
STARTED = 0  # [STARTED, task, attempt, pid, at]
LOGGED = 1  # [LOGGED, task, attempt, stream (0 stdout, 1 stderr), at, bytes]
ENDED = 2  # [ENDED, *AttemptReport]
GROWN = 3  # [GROWN, task, attempt, items of its foreach so far, manifest so far]
IMPORTED = 4  # [IMPORTED, the imports of the program]
REACHED = 5  # [REACHED]: the program has called its flow; left out if the step has no timeout

_MOST = 1_000_000  # elements of a list or map in a spec; bounded, since others can write to a queue

STREAMS: tuple[Literal["stdout"], Literal["stderr"]] = ("stdout", "stderr")

NO_RETRY_EXIT_CODE = 202  # a step whose process exits with this code is not retried


def may_be_retried(step: StepDefinition, error: BaseException) -> bool:
    """Return whether an attempt that ended with this exception may be retried.

    Args:
        step: The step, with its decorators.
        error: The exception that ended the attempt.
    """
    if isinstance(error, SystemExit) and error.code == NO_RETRY_EXIT_CODE:
        return False
    retry = step.decorator("retry")
    return retry is None or retry.takes(error)


class RunContext(NamedTuple):
    """The values that all attempts of a run share.

    `current_facts` are added to `current` by the flow's decorators. Without `persist`, artifacts
    are neither pickled nor stored. `remote` attempts run where the metadata is not reachable.
    `address` is the host of member 0 of a gang, for specs that do not contain it. Without
    `previews`, manifests do not contain previews of artifacts.
    """

    flow: str
    run: str
    run_key: int
    user: str
    namespace: str | None
    tags: tuple[str, ...]
    storage_url: str
    metadata_url: str
    durability: str
    max_num_splits: int
    origin_run: str | None = None
    current_facts: dict[str, Any] | None = None
    persist: bool = True
    remote: bool = False
    address: str = "127.0.0.1"
    previews: bool = True


# For steps that run outside of a run and keep all their data in memory.
NO_RUN = RunContext(
    flow="test",
    run="test",
    run_key=0,
    user="test",
    namespace=None,
    tags=(),
    storage_url="memory://",
    metadata_url="memory://",
    durability="process",
    max_num_splits=1 << 31,
)


class AttemptSpec(NamedTuple):
    """One attempt to run.

    `inputs` is the result of `scheduler.messages.encode_inputs`. `manifests` are those of input
    tasks that are small enough to be sent; others are read from the metadata.

    For remote attempts: `more` is the payload with other manifests; `pages` are the payloads with
    the manifests of a join's inputs over a foreach; `again` means that the task may already be
    settled. `address` is the host of member 0 of its gang, which is known only where the attempt
    runs.
    """

    step: str
    task: int
    attempt: int
    inputs: bytes
    split: int | None
    split_index: int | None
    splits: int | None
    opens_index: bool
    final: bool
    fallback: bool
    manifests: dict[int, bytes]
    more: str | None = None
    pages: tuple[str, ...] = ()
    again: bool = False
    resources: tuple[tuple[str, float], ...] = ()
    address: str = ""

    @property
    def attempt_key(self) -> AttemptKey:
        """The numbers of its task and of itself."""
        return self.task, self.attempt

    def encode(self) -> bytes:
        """Return the spec as one message."""
        # The last version's workers reject a spec with an address; coordinators never set one.
        return msgpack.packb(self if self.address else self[:-1])  # type: ignore[no-any-return]

    @classmethod
    def decode(cls, data: bytes) -> AttemptSpec:
        """Return the spec that `encode` has encoded.

        Args:
            data: The spec, as `encode` returned it.
        """
        return cls(*unpack(data, _MOST, strict_map_key=False, use_list=False))


class AttemptReport(NamedTuple):
    """The end of an attempt, as its process reports it. `state` is an AttemptState's value.

    `steps`, `foreach` and `splits` are the transition of a successful attempt. `manifest` is set on
    success, and on failure if there is an exception to store. `unreached` means that the program
    failed before it called its flow, and the step was not run.
    """

    task: int
    attempt: int
    state: str
    reason: str = ""
    retryable: bool = True
    steps: tuple[str, ...] = ()
    foreach: str | None = None
    splits: int | None = None
    manifest: bytes | None = None
    started_at: float = 0.0
    finished_at: float = 0.0
    metadata: tuple[tuple[str, str, str], ...] = ()
    unreached: bool = False

    @property
    def attempt_key(self) -> AttemptKey:
        """The numbers of its task and of itself."""
        return self.task, self.attempt

    @property
    def outcome(self) -> Outcome:
        """The report as a value of the scheduler."""
        state = AttemptState(self.state)
        if state is AttemptState.SUCCEEDED:
            return Outcome(state, Transition(tuple(self.steps), self.foreach, self.splits))
        return Outcome(state, None, self.reason, self.retryable)

    def message(self) -> tuple[Any, ...]:
        """Return the report as a message."""
        return (ENDED, *self)
