"""The exception hierarchy of aflow. Each message is one sentence.

AflowError
├── InvalidInput                 an input is not usable; exit code 2 for options
│   ├── InvalidName
│   ├── InvalidSetting
│   ├── InvalidParameter
│   ├── InvalidDecorator
│   ├── UnsafeFolder             a folder that other users may write to is not used
│   └── FlowFileError            no file, no flow, several flows, a file that does not import
├── InvalidFlow                  the graph of the flow breaks a rule (file, line)
├── TaskError                    raised in a task, by an invalid action of the step
│   ├── ArtifactNotFound
│   ├── ArtifactNotPicklable
│   ├── ArtifactNotLoadable
│   ├── InvalidTransition
│   ├── MergeArtifactsError
│   │   ├── UnhandledInMergeArtifacts
│   │   └── MissingInMergeArtifacts
│   ├── OutOfMemory              the task has used more memory than it requested
│   └── TaskTimedOut
├── CodePackageError             a code package cannot be created or unpacked, or is missing
├── EnvironmentFailed            the packages of a step cannot be resolved, downloaded or installed
│   └── InvalidLock
├── StorageError
│   ├── ObjectNotFound
│   ├── CorruptBlob
│   └── StoreUnavailable
│       └── StoreBusy            temporary: a retry may succeed
├── S3Error                      an operation of aflow.S3 failed; Metaflow's names in docs/s3.md
│   ├── S3Failed
│   ├── S3NotFound
│   ├── S3AccessDenied
│   ├── S3InvalidUrl
│   ├── S3InvalidObject
│   ├── S3InvalidRange
│   └── S3DiskFull
├── MetadataError
│   ├── MetadataUnavailable
│   ├── MetadataTooNew
│   └── VersionConflict
├── RegistrationRefused          the metadata service cannot carry out a request
├── QueueError
│   ├── QueueUnavailable
│   ├── LeaseLost                the lease of a message has expired
│   ├── InvalidMessage
│   ├── ForgedMessage
│   └── MessageTooNew
├── AwsError                     AWS rejects a call, or does not respond
│   └── AwsBusy                  temporary: a retry may succeed
│       └── AwsUnauthorized      a retry with new credentials may succeed
├── JobSystemError               the job system rejects a call
│   ├── JobSystemBusy            temporary: a retry may succeed
│   └── JobRefused               it rejects a job as it was submitted
├── NotFound                     the requested object does not exist
│   ├── CardNotFound
│   └── NamespaceMismatch
├── CommandFailed                a command exited before it started a run
│   └── ServerUnavailable        the server does not respond; a retry may succeed
├── StackUnreadable              AWS does not return the outputs of a stack
├── CoordinatorClosed            a run was started in a coordinator that is closed
├── CoordinatorFull              a coordinator has reached its limit of concurrent runs
└── RunFailed
"""

from __future__ import annotations

from collections.abc import Sequence


class AflowError(Exception):
    """The base class of all errors of aflow. The first argument is the message, one sentence;
    subclasses may take more arguments."""

    headline = "aflow failed"

    def __init__(self, *args: object, msg: object = None) -> None:
        super().__init__(*(args if msg is None else (msg, *args)))  # Metaflow calls it `msg`

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""

    @property
    def message(self) -> str:
        """The message, one sentence."""
        return AflowError.__str__(self)

    @message.setter
    def message(self, text: object) -> None:
        self.args = (text, *self.args[1:])


class InvalidInput(AflowError):
    """An input is not usable."""

    headline = "Invalid input"


class InvalidName(InvalidInput):
    """The name of a flow, run, step, task, artifact or tag is not allowed."""

    headline = "Invalid name"


class InvalidSetting(InvalidInput):
    """A setting has an invalid value."""

    headline = "Invalid setting"


class InvalidParameter(InvalidInput):
    """A parameter has an invalid value or declaration."""

    headline = "Invalid parameter"


class InvalidConfig(InvalidInput):
    """A config has an invalid value or declaration."""

    headline = "Invalid config"


class SecretsError(AflowError):
    """A secret of a step is not available, or would override an environment variable."""

    headline = "Secrets"


class MissingExtra(InvalidInput):
    """A feature needs a package that is not installed."""

    headline = "Package not installed"


class InvalidDecorator(InvalidInput):
    """A decorator is unknown, or has an option that it does not accept."""

    headline = "Invalid decorator"


class FlowFileError(InvalidInput):
    """The flow file is missing, cannot be imported, or does not define exactly one flow."""

    headline = "Flow not loaded"


class UnsafeFolder(InvalidInput):
    """A folder is not safe to use: it belongs to another user, or others may write to it."""

    headline = "Unsafe folder"


class InvalidFlow(AflowError):
    """The graph of the flow breaks a rule."""

    headline = "Validity checker found an issue"

    def __init__(self, message: str, *, file: str | None = None, line: int | None = None) -> None:
        super().__init__(message)
        self.file = file
        self.line = line

    def __str__(self) -> str:
        if self.file and self.line:
            return f"{self.message} ({self.file}, line {self.line})"
        return self.message


class TaskError(AflowError):
    """A step did something that is not allowed or not possible."""

    headline = "Step failure"


class ArtifactNotFound(TaskError, AttributeError):
    """A step read an artifact that no earlier step has set."""


class ArtifactNotPicklable(TaskError):
    """A step set an artifact whose value cannot be stored."""


class ArtifactNotLoadable(TaskError):
    """A stored artifact cannot be loaded."""


class InvalidTransition(TaskError):
    """The self.next() of a step does not match the graph, or cannot be followed."""


class MergeArtifactsError(TaskError):
    """merge_artifacts was called in a step that is not a join, or with invalid arguments."""


class UnhandledInMergeArtifacts(MergeArtifactsError):
    """The inputs of a join have different values of artifacts that the join itself did not set."""

    def __init__(self, message: str, unhandled: list[str]) -> None:
        super().__init__(message)
        self.artifact_names = unhandled


class MissingInMergeArtifacts(MergeArtifactsError):
    """An artifact named in include= is in none of the inputs."""

    def __init__(self, message: str, missing: list[str]) -> None:
        super().__init__(message)
        self.artifact_names = missing


OUT_OF_MEMORY = "OutOfMemory: "  # prefix of the reason of an attempt that ran out of memory


class OutOfMemory(TaskError, MemoryError):
    """The task used more memory than its @resources request, or the machine ran out of memory.
    `@retry(on=OutOfMemory)` retries after this error, and after any MemoryError."""


class TaskTimedOut(TaskError):
    """A step ran longer than its @timeout allows."""


class CodePackageError(AflowError):
    """A code package cannot be created or unpacked, or is missing."""

    headline = "Code package"


class EnvironmentFailed(AflowError):
    """The packages of a step cannot be resolved, downloaded or installed."""

    headline = "Environment"


class InvalidLock(EnvironmentFailed):
    """The lock of an environment cannot be read, or was made for another machine."""


class ShippingError(AflowError):
    """aflow, or the packages of a step, cannot be uploaded to the datastore for jobs that lack
    them, or cannot be installed from there."""


class StorageError(AflowError):
    """Stored bytes are damaged, or the store that holds them fails."""

    headline = "Storage error"


class ObjectNotFound(StorageError):
    """The object store has no object with this name."""


class CorruptBlob(StorageError):
    """The bytes of a blob do not match its key."""


class StoreUnavailable(StorageError):
    """The object store is missing, full or read-only, or does not accept requests."""


class StoreBusy(StoreUnavailable):
    """The object store did not respond, or not completely: a retry may succeed."""


class S3Error(AflowError):
    """An operation of the S3 client failed. The subclasses are siblings, as in Metaflow."""

    headline = "S3"


class S3Failed(S3Error):
    """S3 does not respond, or rejects a request for a reason that has no other class."""

    headline = "S3 access failed"


class S3NotFound(S3Error):
    """The object, or the local file, does not exist."""

    headline = "S3 object not found"


class S3AccessDenied(S3Error):
    """The credentials are invalid, or lack a permission."""

    headline = "S3 access denied"


class S3InvalidUrl(S3Error):
    """A key, URL or prefix is invalid, or its bucket does not exist."""

    headline = "Invalid address"


class S3InvalidObject(S3Error):
    """The value to upload is neither text nor bytes nor a file."""

    headline = "Not an object for S3"


class S3InvalidRange(S3Error):
    """A range starts after the end of its object."""

    headline = "S3 invalid range"


class S3DiskFull(S3Error):
    """The disk has not enough space for a download."""

    headline = "Insufficient disk space"


class MetadataError(AflowError):
    """The metadata is damaged, or the store that holds it fails."""

    headline = "Metadata error"


class MetadataUnavailable(MetadataError):
    """The metadata store is missing, full, read-only or damaged, or does not accept requests."""


class MetadataAway(MetadataUnavailable):
    """The server of the metadata cannot be reached: a retry may succeed."""


class MetadataTooNew(MetadataError):
    """The metadata was written by a newer version of aflow."""


class VersionConflict(MetadataError):
    """Another process has written to this run since it was read."""


class RunTakenOver(MetadataError):
    """Another coordinator drives the run now."""

    @classmethod
    def of(cls, flow: str, run: str) -> RunTakenOver:
        """Return the error for a coordinator that has lost the lease of a run.

        Args:
            flow: The name of the flow.
            run: The id of the run.
        """
        return cls(
            f"{flow}/{run} is driven by another coordinator now, since the lease of this one "
            "has expired: this one stops, and the run continues there."
        )


class RunLeft(AflowError):
    """A coordinator was asked to leave the run."""

    headline = "Left"

    @classmethod
    def of(cls, flow: str, run: str) -> RunLeft:
        """Return the error for a caller that waits for a run that its coordinator has left.

        Args:
            flow: The name of the flow.
            run: The id of the run.
        """
        return cls(f"{flow}/{run} was not finished: `aflow recover {flow}/{run}` recovers it.")


class RunHasCoordinator(InvalidInput):
    """A run cannot be recovered, because a coordinator still drives it."""


class RegistrationRefused(AflowError):
    """The metadata service cannot carry out a request: `status` and `body` are its response."""

    headline = "Request refused"

    def __init__(self, status: int, body: object) -> None:
        super().__init__(f"{status}: {body}")
        self.status = status
        self.body = body

    @classmethod
    def of(cls, status: int, message: str) -> RegistrationRefused:
        """Return the error with this message.

        Args:
            status: The HTTP status.
            message: One sentence.
        """
        return cls(status, {"message": message})


class QueueError(AflowError):
    """A queue, or a message in it, has a problem."""

    headline = "Queue error"


class QueueUnavailable(QueueError):
    """The broker does not respond, is full, or rejects the request."""


class LeaseLost(QueueError):
    """Leases had expired before they were renewed or released: other workers may have the messages
    now. `lost` are the ids of these messages, `held` the leases that were renewed."""

    def __init__(self, message: str, lost: Sequence[str] = (), held: Sequence[object] = ()) -> None:
        super().__init__(message)
        self.lost = tuple(lost)
        self.held = list(held)

    @classmethod
    def of(cls, lost: Sequence[str], held: Sequence[object] = ()) -> LeaseLost:
        """Return the error for these messages.

        Args:
            lost: The ids of the messages whose leases have expired.
            held: The leases that were renewed.
        """
        named = ", ".join(lost[:3]) + (" and others" if len(lost) > 3 else "")
        return cls(f"The lease of {named} had ended: it took too long.", lost, held)


class InvalidMessage(QueueError):
    """A message cannot be read: it is damaged, too large, or of an unknown kind."""


class ForgedMessage(QueueError):
    """A message has no valid signature; the writer may have another key."""


class MessageTooNew(QueueError):
    """A message was written by another version of aflow; workers of that version may read it."""


class AwsError(AflowError):
    """AWS rejects a call, or does not respond. If it rejects the call, `code` and `detail` are the
    error code and the message of the service, and `denied` is whether a permission or valid
    credentials are missing."""

    def __init__(
        self, message: str, code: str = "", detail: str = "", *, denied: bool = False
    ) -> None:
        super().__init__(message)
        self.code = code
        self.detail = detail
        self.denied = denied


class AwsBusy(AwsError):
    """AWS throttles requests, has an internal error, or cannot be reached: a retry may succeed."""


class AwsUnauthorized(AwsBusy):
    """AWS does not accept the credentials: a retry with new ones may succeed."""


class JobSystemError(AflowError):
    """The system that runs jobs (AWS Batch, Slurm, Kubernetes) rejects a call."""

    headline = "Job system error"


class JobSystemBusy(JobSystemError):
    """The job system does not respond, or throttles requests: a retry may succeed."""


class JobSystemUnauthorized(JobSystemBusy):
    """The job system does not accept the credentials: a retry with new ones may succeed."""


class JobRefused(JobSystemError):
    """The job system rejects a job as it was submitted; a retry would fail again."""


class WorkersLost(AflowError):
    """Workers in a cluster cannot be kept running: it does not respond, or they keep exiting."""

    headline = "Workers lost"


class NotFound(AflowError):
    """The flow, run, step, task or artifact does not exist."""

    headline = "Object not found"


class CardNotFound(NotFound):
    """The card does not exist."""

    headline = "Card not found"


class NamespaceMismatch(NotFound):
    """The object exists, but not in the current namespace."""

    headline = "Object not in namespace"


class CommandFailed(AflowError, RuntimeError):
    """A command that a program has started exited before it started a run."""

    headline = "Command failed"


class ServerUnavailable(CommandFailed):
    """The server does not respond, or cannot do so now: a retry may succeed."""

    headline = "Server unavailable"


class StackUnreadable(AflowError):
    """AWS does not return the outputs of a CloudFormation stack."""

    headline = "Stack not read"


class CoordinatorClosed(AflowError):
    """A run was started in a coordinator that is closed."""

    headline = "Coordinator closed"


class CoordinatorFull(AflowError):
    """A coordinator has reached its limit of concurrent runs and does not let callers wait."""

    headline = "Coordinator full"


class RunFailed(AflowError):
    """A run did not succeed. `run` is its client object; `step`, `task` and `reason` describe the
    first task that failed, if one did."""

    headline = "Run failed"

    def __init__(
        self,
        message: str,
        run: object = None,
        *,
        step: str | None = None,
        task: int | None = None,
        reason: str = "",
    ) -> None:
        super().__init__(message)
        self.run = run
        self.step = step
        self.task = task
        self.reason = reason


LONGEST_REASON = 4_000  # maximum characters of the reason of a failure in records and messages


def clipped(text: str, most: int = LONGEST_REASON) -> str:
    """Return the text, shortened in the middle if it is too long: exceptions may hold a data set.

    Args:
        text: The text.
        most: The maximum length, in characters.
    """
    if len(text) <= most:
        return text
    head, tail = most - most // 4, most // 4
    left_out = len(text) - head - tail
    return f"{text[:head]}... ({left_out} characters left out) ...{text[-tail:]}"
