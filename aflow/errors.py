"""The one exception tree of aflow; each class is one sentence.

AflowError
├── InvalidInput                 what was given cannot be used; exit code 2 for options
│   ├── InvalidName
│   ├── InvalidSetting
│   ├── InvalidParameter
│   ├── InvalidDecorator
│   ├── UnsafeFolder             a folder that others may write to is not used
│   └── FlowFileError            no file, no flow, several flows, a file that does not import
├── InvalidFlow                  a rule of the graph is broken (file, line)
├── TaskError                    raised inside a task, by what the step asked for
│   ├── ArtifactNotFound
│   ├── ArtifactNotPicklable
│   ├── ArtifactNotLoadable
│   ├── InvalidTransition
│   ├── MergeArtifactsError
│   │   ├── UnhandledInMergeArtifacts
│   │   └── MissingInMergeArtifacts
│   ├── OutOfMemory              the task had more memory than it has asked for
│   └── TaskTimedOut
├── CodePackageError             code cannot be packaged, unpacked, or is not there
├── EnvironmentFailed            the packages of a step cannot be solved, fetched or installed
│   └── InvalidLock
├── StorageError
│   ├── ObjectNotFound
│   ├── CorruptBlob
│   └── StoreUnavailable
│       └── StoreBusy            another try may go well
├── S3Error                      aflow.S3 cannot do what was asked; Metaflow's names in docs/s3.md
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
├── RegistrationRefused          the metadata service cannot do what a request asks for
├── QueueError
│   ├── QueueUnavailable
│   ├── LeaseLost                a message is not ours any more
│   ├── InvalidMessage
│   ├── ForgedMessage
│   └── MessageTooNew
├── AwsError                     AWS refuses, or does not answer
│   └── AwsBusy                  it may do it the next time
│       └── AwsUnauthorized      ... with other credentials
├── JobSystemError               the system that runs jobs refuses a call
│   ├── JobSystemBusy            it does not answer now, and may the next time
│   └── JobRefused               it does not take a job as it was asked for
├── NotFound                     the client was asked for what is not there
│   ├── CardNotFound
│   └── NamespaceMismatch
├── CommandFailed                a command that was started has begun no run
│   └── ServerUnavailable        the server that was asked does not answer, or not now
├── StackUnreadable              AWS does not say what a stack has made
├── CoordinatorClosed            a run was to begin in a coordinator that has been closed
├── CoordinatorFull              a coordinator has as many runs as it may have at once
└── RunFailed
"""

from __future__ import annotations

from collections.abc import Sequence


class AflowError(Exception):
    """aflow could not do what was asked. The first argument is the sentence; classes derived from
    it may take more."""

    headline = "aflow failed"

    def __init__(self, *args: object, msg: object = None) -> None:
        super().__init__(*(args if msg is None else (msg, *args)))  # `msg` is Metaflow's name

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""

    @property
    def message(self) -> str:
        """The sentence."""
        return AflowError.__str__(self)

    @message.setter
    def message(self, text: object) -> None:
        self.args = (text, *self.args[1:])


class InvalidInput(AflowError):
    """What was given cannot be used."""

    headline = "Invalid input"


class InvalidName(InvalidInput):
    """A name of a flow, run, step, task, artifact or tag is not allowed."""

    headline = "Invalid name"


class InvalidSetting(InvalidInput):
    """A setting has a value that cannot be used."""

    headline = "Invalid setting"


class InvalidParameter(InvalidInput):
    """A parameter has a value or a declaration that cannot be used."""

    headline = "Invalid parameter"


class InvalidConfig(InvalidInput):
    """A config has a value or a declaration that cannot be used."""

    headline = "Invalid config"


class SecretsError(AflowError):
    """A secret that a step asks for is not available, or would hide a variable."""

    headline = "Secrets"


class MissingExtra(InvalidInput):
    """Something was asked for that needs a package which is not installed."""

    headline = "Package not installed"


class InvalidDecorator(InvalidInput):
    """A decorator is unknown, or was given an option that it does not take."""

    headline = "Invalid decorator"


class FlowFileError(InvalidInput):
    """The flow file is missing, does not import, or does not name exactly one flow."""

    headline = "Flow not loaded"


class UnsafeFolder(InvalidInput):
    """A folder belongs to somebody else, or is open to others, and is not used for that."""

    headline = "Unsafe folder"


class InvalidFlow(AflowError):
    """A rule of the flow's graph is broken."""

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
    """A step asked for something that cannot be done."""

    headline = "Step failure"


class ArtifactNotFound(TaskError, AttributeError):
    """A step read an artifact that no earlier step has left."""


class ArtifactNotPicklable(TaskError):
    """A step left a value that cannot be stored."""


class ArtifactNotLoadable(TaskError):
    """A stored artifact could not be turned back into a value."""


class InvalidTransition(TaskError):
    """A step's self.next() does not agree with the graph, or cannot be followed."""


class MergeArtifactsError(TaskError):
    """merge_artifacts was called with arguments, or in a step, that it cannot work with."""


class UnhandledInMergeArtifacts(MergeArtifactsError):
    """Inputs of a join disagree on artifacts that the join did not set itself."""

    def __init__(self, message: str, unhandled: list[str]) -> None:
        super().__init__(message)
        self.artifact_names = unhandled


class MissingInMergeArtifacts(MergeArtifactsError):
    """An artifact named in include= is in none of the inputs."""

    def __init__(self, message: str, missing: list[str]) -> None:
        super().__init__(message)
        self.artifact_names = missing


OUT_OF_MEMORY = "OutOfMemory: "  # what the reason of an attempt begins with that was ended for that


class OutOfMemory(TaskError, MemoryError):
    """The task had more memory than its @resources ask for, or there was none left: for
    `@retry(on=OutOfMemory)`, which takes MemoryError, too."""


class TaskTimedOut(TaskError):
    """A step ran longer than its @timeout allows."""


class CodePackageError(AflowError):
    """The code of a flow cannot be packaged or unpacked, or its package is not there."""

    headline = "Code package"


class EnvironmentFailed(AflowError):
    """The packages that a step asks for cannot be solved, fetched or installed."""

    headline = "Environment"


class InvalidLock(EnvironmentFailed):
    """A lock of an environment cannot be read, or is one for another machine."""


class ShippingError(AflowError):
    """aflow, or the packages of a step, cannot be put into the datastore for jobs that lack them,
    or cannot be installed from there."""


class StorageError(AflowError):
    """Something is wrong with stored bytes, or with the place that stores them."""

    headline = "Storage error"


class ObjectNotFound(StorageError):
    """The object store has no object of this name."""


class CorruptBlob(StorageError):
    """The bytes of a blob are not those that its key names."""


class StoreUnavailable(StorageError):
    """The object store is missing, full, read-only or refuses to answer."""


class StoreBusy(StoreUnavailable):
    """The object store did not answer, or not whole: another try may go well."""


class S3Error(AflowError):
    """The client of S3 cannot do what was asked. Its classes are siblings, as in Metaflow."""

    headline = "S3"


class S3Failed(S3Error):
    """S3 does not answer, or refuses for a reason that has no class of its own."""

    headline = "S3 access failed"


class S3NotFound(S3Error):
    """There is no such object, or no such local file."""

    headline = "S3 object not found"


class S3AccessDenied(S3Error):
    """The credentials are wrong, or allow too little."""

    headline = "S3 access denied"


class S3InvalidUrl(S3Error):
    """A key, URL or prefix cannot be used, or its bucket does not exist."""

    headline = "Invalid address"


class S3InvalidObject(S3Error):
    """What is to be put is neither text nor bytes nor a file."""

    headline = "Not an object for S3"


class S3InvalidRange(S3Error):
    """A range begins past the end of its object."""

    headline = "S3 invalid range"


class S3DiskFull(S3Error):
    """There is no room on the disk for what was to be downloaded."""

    headline = "Insufficient disk space"


class MetadataError(AflowError):
    """Something is wrong with the metadata."""

    headline = "Metadata error"


class MetadataUnavailable(MetadataError):
    """The metadata store is missing, full, read-only, damaged or refuses to answer."""


class MetadataAway(MetadataUnavailable):
    """The server of the metadata cannot be reached: another try may go well."""


class MetadataTooNew(MetadataError):
    """The metadata was written by a newer aflow than this one."""


class VersionConflict(MetadataError):
    """Another process has written to this run since it was read."""


class RunTakenOver(MetadataError):
    """Another coordinator drives this run now."""

    @classmethod
    def of(cls, flow: str, run: str) -> RunTakenOver:
        """Return the error of a coordinator that has lost the lease of a run.

        Args:
            flow: The name of the flow.
            run: The id of the run.
        """
        return cls(
            f"{flow}/{run} is driven by another coordinator now, since the lease of this one "
            "has expired: this one stops, and the run continues there."
        )


class RunLeft(AflowError):
    """A run that its coordinator was asked to leave."""

    headline = "Left"

    @classmethod
    def of(cls, flow: str, run: str) -> RunLeft:
        """Return the error for a caller that waits for a run which its coordinator has left.

        Args:
            flow: The name of the flow.
            run: The id of the run.
        """
        return cls(f"{flow}/{run} was not finished: `aflow recover {flow}/{run}` recovers it.")


class RunHasCoordinator(InvalidInput):
    """A run that a coordinator still drives cannot be recovered."""


class RegistrationRefused(AflowError):
    """The metadata service cannot do what a request asks for: its answer is `status` and `body`."""

    headline = "Request refused"

    def __init__(self, status: int, body: object) -> None:
        super().__init__(f"{status}: {body}")
        self.status = status
        self.body = body

    @classmethod
    def of(cls, status: int, message: str) -> RegistrationRefused:
        """Return the refusal that says this sentence.

        Args:
            status: The status of HTTP.
            message: The sentence.
        """
        return cls(status, {"message": message})


class QueueError(AflowError):
    """Something is wrong with a queue, or with a message in it."""

    headline = "Queue error"


class QueueUnavailable(QueueError):
    """The broker does not answer, is full, or refuses the request."""


class LeaseLost(QueueError):
    """Leases had ended when they were to be extended or ended: others may have the messages now.
    `lost` are the ids of these messages, `held` the leases of an extension that did not fail."""

    def __init__(self, message: str, lost: Sequence[str] = (), held: Sequence[object] = ()) -> None:
        super().__init__(message)
        self.lost = tuple(lost)
        self.held = list(held)

    @classmethod
    def of(cls, lost: Sequence[str], held: Sequence[object] = ()) -> LeaseLost:
        """Return the error that names these messages.

        Args:
            lost: The ids of the messages whose leases had ended.
            held: The leases of the call.
        """
        named = ", ".join(lost[:3]) + (" and others" if len(lost) > 3 else "")
        return cls(f"The lease of {named} had ended: it took too long.", lost, held)


class InvalidMessage(QueueError):
    """A message cannot be read: it is damaged, too large, or of a kind that is not known."""


class ForgedMessage(QueueError):
    """A message is not signed as it has to be: others may have the key."""


class MessageTooNew(QueueError):
    """A message was written by another version of aflow: others may be able to read it."""


class AwsError(AflowError):
    """AWS refuses a call, or does not answer. Of a refusal `code` is the service's word for why,
    `detail` its sentence, and `denied` whether a permission or valid credentials are missing."""

    def __init__(
        self, message: str, code: str = "", detail: str = "", *, denied: bool = False
    ) -> None:
        super().__init__(message)
        self.code = code
        self.detail = detail
        self.denied = denied


class AwsBusy(AwsError):
    """AWS asks to come later, has a fault of its own, or cannot be reached."""


class AwsUnauthorized(AwsBusy):
    """AWS does not accept our credentials: another try may go well with new ones."""


class JobSystemError(AflowError):
    """The system that runs jobs (AWS Batch, Slurm, Kubernetes) refuses a call."""

    headline = "Job system error"


class JobSystemBusy(JobSystemError):
    """The job system does not answer, or asks to come later: another try may go well."""


class JobSystemUnauthorized(JobSystemBusy):
    """The job system does not accept our credentials: another try may go well with new ones."""


class JobRefused(JobSystemError):
    """The job system does not take a job as it was asked for, and will not the next time."""


class WorkersLost(AflowError):
    """Workers in a cluster could not be kept: it does not answer, or they end again and again."""

    headline = "Workers lost"


class NotFound(AflowError):
    """There is no such flow, run, step, task or artifact."""

    headline = "Object not found"


class CardNotFound(NotFound):
    """There is no such card."""

    headline = "Card not found"


class NamespaceMismatch(NotFound):
    """The object is there, but not in the current namespace."""

    headline = "Object not in namespace"


class CommandFailed(AflowError, RuntimeError):
    """A command that a program has started ended before it had begun a run."""

    headline = "Command failed"


class ServerUnavailable(CommandFailed):
    """The server that was asked does not answer, or cannot do so now: another try may go well."""

    headline = "Server unavailable"


class StackUnreadable(AflowError):
    """AWS does not say what a stack of CloudFormation has made."""

    headline = "Stack not read"


class CoordinatorClosed(AflowError):
    """A run was to begin in a coordinator that has been closed."""

    headline = "Coordinator closed"


class CoordinatorFull(AflowError):
    """A coordinator has as many runs as it may have at once, and lets nobody wait."""

    headline = "Coordinator full"


class RunFailed(AflowError):
    """A run ended without success. `run` is the client's object of it; `step`, `task` and `reason`
    name the first task that failed, if one did."""

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


LONGEST_REASON = 4_000  # characters of the reason of a failure in records and messages


def clipped(text: str, most: int = LONGEST_REASON) -> str:
    """Return the text, without its middle where it is longer: exceptions may hold a whole data set.

    Args:
        text: The text.
        most: The length, in characters.
    """
    if len(text) <= most:
        return text
    head, tail = most - most // 4, most // 4
    left_out = len(text) - head - tail
    return f"{text[:head]}... ({left_out} characters left out) ...{text[-tail:]}"
