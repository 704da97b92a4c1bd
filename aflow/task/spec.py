"""What travels to the process that runs an attempt, and what comes back: plain msgpack arrays.

    coordinator -> process   RunContext (once), AttemptSpec (each attempt)
    process -> coordinator   STARTED, LOGGED, GROWN and ENDED messages

The first element of a message is its kind; unknown kinds are an error of ours, never of a user.
Nothing in here is ever unpickled by the coordinator.
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
"""An attempt within its run: the number of the task, and that of the attempt."""

# Kinds of messages from a process that runs attempts.
STARTED = 0  # [STARTED, task, attempt, pid, at]
LOGGED = 1  # [LOGGED, task, attempt, stream (0 stdout, 1 stderr), at, bytes]
ENDED = 2  # [ENDED, *AttemptReport]
GROWN = 3  # [GROWN, task, attempt, items so far of its foreach, manifest as of now]
IMPORTED = 4  # [IMPORTED, what its program has imported]

_MOST = 1_000_000  # lists and maps of a spec: others can write to a queue

STREAMS: tuple[Literal["stdout"], Literal["stderr"]] = ("stdout", "stderr")

NO_RETRY_EXIT_CODE = 202  # a step's process that ends with it is not tried again


def may_be_retried(step: StepDefinition, error: BaseException) -> bool:
    """Return whether an attempt that ended with this exception may be followed by another one.

    Args:
        step: The step, with its decorators.
        error: What the attempt has ended with.
    """
    if isinstance(error, SystemExit) and error.code == NO_RETRY_EXIT_CODE:
        return False
    retry = step.decorator("retry")
    return retry is None or retry.takes(error)


class RunContext(NamedTuple):
    """What all attempts of a run have in common. `current_facts` is what the flow's decorators add
    to `current`. Without `persist` nothing is stored of what steps leave, nor even pickled;
    `remote` says that they run where the metadata is out of reach; `address` is where member 0 of
    their gang is, for those in one whose spec does not say it. Without `previews` manifests do not
    show what is in artifacts."""

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


# Of steps that run outside of a run, with all that they read and leave in memory.
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
    """One attempt to run. `inputs` is `scheduler.codec.encode_inputs`; `manifests` are those of the
    input tasks that are small enough to travel along (the others are read from the metadata).

    For attempts that are remote: `more` is the payload of other manifests, `pages` are those of the
    inputs of a join over a foreach, `again` says that the task may be settled already. `address` is
    where member 0 of its gang is, which is known where the attempt is run."""

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
        # Workers of the version before take it without an address, which no coordinator gives.
        return msgpack.packb(self if self.address else self[:-1])  # type: ignore[no-any-return]

    @classmethod
    def decode(cls, data: bytes) -> AttemptSpec:
        """Return the spec that `encode` gave.

        Args:
            data: The spec, as `encode` returned it.
        """
        return cls(*unpack(data, _MOST, strict_map_key=False, use_list=False))


class AttemptReport(NamedTuple):
    """How an attempt ended, as its process says it. `state` is an AttemptState's value.

    `steps`, `foreach`, `splits` are the transition of a success. `manifest` is there on success,
    and on failure where there was something to say (the exception). `unreached` says that the
    program failed before it came to its flow: nothing of the step was run.
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
        """The report as the scheduler's value."""
        state = AttemptState(self.state)
        if state is AttemptState.SUCCEEDED:
            return Outcome(state, Transition(tuple(self.steps), self.foreach, self.splits))
        return Outcome(state, None, self.reason, self.retryable)

    def message(self) -> tuple[Any, ...]:
        """Return the report as a message."""
        return (ENDED, *self)
