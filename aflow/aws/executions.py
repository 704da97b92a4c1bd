"""What Step Functions says of an execution, for those who ask whether a deployed run goes on."""

from __future__ import annotations

from aflow.aws.client import Calls
from aflow.aws.settings import AwsSettings
from aflow.errors import InvalidSetting


def status(machine: str, execution: str) -> str | None:
    """Return the status of an execution (RUNNING, SUCCEEDED, FAILED, TIMED_OUT, ABORTED); None
    where there is no such execution (any more). Blocks.

    Args:
        machine: The name of the state machine.
        execution: The ARN of the execution.

    Raises:
        AwsError: Where the account is not known.
        InvalidSetting: Where the account is not known.
    """
    calls = _Executions(AwsSettings.load().needed("machine_role", "The role of state machines"))
    try:
        return calls.status(machine, execution)
    finally:
        calls.close()


def stop(machine: str, execution: str, cause: str) -> None:
    """Stop an execution, and the jobs that it waits for; fine if it has ended. Raises as `status`
    does.

    Args:
        machine: The name of the state machine.
        execution: The ARN of the execution.
        cause: Why, for the history of the execution.
    """
    calls = _Executions(AwsSettings.load().needed("machine_role", "The role of state machines"))
    try:
        calls.stop(machine, execution, cause)
    finally:
        calls.close()


class _Executions(Calls):
    """Executions of the account, and in the partition, of this role."""

    def __init__(self, role: str) -> None:
        super().__init__()
        parts = role.split(":")
        if len(parts) < 6 or not parts[4].isdigit():
            raise InvalidSetting(f"AFLOW_SFN_IAM_ROLE is {role!r}, which is not an ARN of a role.")
        self._partition, self._account = parts[1], parts[4]

    def _arn(self, machine: str, execution: str) -> str:
        region = self._client("stepfunctions").meta.region_name
        head = f"arn:{self._partition}:states:{region}:{self._account}"
        return f"{head}:execution:{machine}:{execution}"

    def status(self, machine: str, execution: str) -> str | None:
        """The status of an execution."""
        arn = self._arn(machine, execution)
        found = self._call("stepfunctions", "describe_execution", executionArn=arn)
        return None if found is None else str(found["status"])

    def stop(self, machine: str, execution: str, cause: str) -> None:
        """Stop an execution."""
        arn = self._arn(machine, execution)
        self._call(
            "stepfunctions",
            "stop_execution",
            executionArn=arn,
            error="aflow.Terminated",
            cause=cause,
        )
