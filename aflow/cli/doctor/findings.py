"""Findings: they are derived from responses of services, which are passed as values. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from email.utils import parsedate_to_datetime
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from aflow._core.settings import KEYS as OF_SETTINGS
from aflow.aws import settings as aws
from aflow.executors.jobs.kubernetes import settings as k8s
from aflow.flow.names import did_you_mean

_GIB = 1 << 30
_MIB = 1 << 20
LITTLE_SPACE, NO_SPACE = 2 * _GIB, 200 * _MIB  # bytes
# AWS rejects signatures that are 5 minutes off; leases and `since` are inaccurate before that.
WARNED_SKEW, REFUSED_SKEW = 30.0, 240.0  # seconds


class State(StrEnum):
    """The severity of a finding: a warning may cause problems, a failure prevents runs."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


class Finding(NamedTuple):
    """The result of a check: a message, and advice, which is empty if nothing needs to be done."""

    name: str
    state: State
    message: str
    advice: str = ""

    @property
    def text(self) -> str:
        """The message, followed by the advice."""
        return f"{self.message} {self.advice}".strip()


def ok(name: str, message: str) -> Finding:
    """Return a finding without problems.

    Args:
        name: The name of the check.
        message: The result, in one sentence.
    """
    return Finding(name, State.OK, message)


def warn(name: str, message: str, advice: str = "") -> Finding:
    """Return a finding that may cause problems later.

    Args:
        name: The name of the check.
        message: The result, in one sentence.
        advice: What the user can do about it.
    """
    return Finding(name, State.WARN, message, advice)


def fail(name: str, message: str, advice: str = "") -> Finding:
    """Return a finding that prevents runs.

    Args:
        name: The name of the check.
        message: The result, in one sentence.
        advice: What the user can do about it.
    """
    return Finding(name, State.FAIL, message, advice)


def worst(findings: Sequence[Finding]) -> State:
    """Return the most severe state of the findings; OK if there are none.

    Args:
        findings: The findings of all checks.
    """
    found = {each.state for each in findings}
    return next((state for state in (State.FAIL, State.WARN) if state in found), State.OK)


# ------------------------------------------------------------------ this machine


def of_space(name: str, place: str, free: int) -> Finding:
    """Return the finding about free space.

    Args:
        name: The name of the check.
        place: The description and the path of the data.
        free: Free space, in bytes.
    """
    message = f"{free / _GIB:.1f} GiB are free where {place} is."
    if free < NO_SPACE:
        return fail(name, message, "Free some space: runs stop when the disk is full.")
    if free < LITTLE_SPACE:
        return warn(name, message, "Free some space, with `aflow gc` perhaps.")
    return ok(name, message)


def of_clock(name: str, here: float, there: str, owner: str) -> Finding:
    """Return the finding about the difference between this machine's clock and that of a service.

    Args:
        name: The name of the check.
        here: The time of this machine, in seconds since the epoch.
        there: The header `Date` of the response.
        owner: The name of the service in the message.
    """
    try:
        at: datetime = parsedate_to_datetime(there)
    except (TypeError, ValueError):
        return warn(name, f"{owner} says no time that could be read.")
    skew = here - at.timestamp()
    direction = "ahead of" if skew > 0 else "behind"
    message = f"The clock of this machine is {abs(skew):.0f} s {direction} that of {owner}."
    if abs(skew) > REFUSED_SKEW:
        advice = "Set it (by NTP): AWS refuses requests that are signed with a wrong time."
        return fail(name, message, advice)
    if abs(skew) > WARNED_SKEW:
        return warn(name, message, "Set it (by NTP): times of runs and leases are off.")
    return ok(name, f"The clock of this machine agrees with that of {owner}.")


# ------------------------------------------------------------------ AWS


def of_queue(
    name: str, queue: str, answer: Mapping[str, Any], key: str = "AFLOW_BATCH_JOB_QUEUE"
) -> Finding:
    """Return the finding about a job queue, from the response of `describe_job_queues`.

    Args:
        name: The name of the check.
        queue: The name of the job queue.
        answer: The response.
        key: The setting that names the queue.
    """
    found = answer.get("jobQueues", [])
    if not found:
        return fail(
            name,
            f"There is no job queue {queue} in this region and account.",
            f"Set {key} to the name or the ARN of one.",
        )
    state, status = found[0].get("state"), found[0].get("status")
    if state != "ENABLED" or status != "VALID":
        why = found[0].get("statusReason") or ""
        return fail(
            name,
            f"The job queue {queue} is {state} and {status}, so that jobs in it never start. {why}",
            "Enable it, or see to its compute environments.",
        )
    return ok(name, f"{queue} is ENABLED and VALID.")


def of_machines(name: str, queue: str, answer: Mapping[str, Any], execution_role: bool) -> Finding:
    """Return the finding about the compute environments of a job queue, from the response of
    `describe_compute_environments`.

    Args:
        name: The name of the check.
        queue: The name of the job queue.
        answer: The response.
        execution_role: Whether an execution role is set, which Fargate needs.
    """
    found = answer.get("computeEnvironments", [])
    usable = [e for e in found if e.get("state") == "ENABLED" and e.get("status") == "VALID"]
    if not usable:
        return fail(
            name,
            f"None of the compute environments of {queue} is ENABLED and VALID.",
            "Jobs wait forever: enable one.",
        )
    kinds = sorted({str(e.get("computeResources", {}).get("type", "?")) for e in usable})
    most = sum(int(e.get("computeResources", {}).get("maxvCpus", 0)) for e in usable)
    if not execution_role and any(kind.startswith("FARGATE") for kind in kinds):
        return fail(
            name,
            f"{queue} runs jobs on Fargate, which takes a role to start them with.",
            "Set AFLOW_ECS_FARGATE_EXECUTION_ROLE.",
        )
    return ok(name, f"{', '.join(kinds)} with up to {most} vCPUs.")


def of_role(name: str, role: str, document: Any, service: str) -> Finding:
    """Return the finding about whether a service of AWS may assume a role.

    Args:
        name: The name of the check.
        role: The name or ARN of the role.
        document: The trust policy of the role, decoded.
        service: The service that must be able to assume it, such as `ecs-tasks.amazonaws.com`.
    """
    if trusts(document, service):
        return ok(name, f"{role} exists, and {service} may assume it.")
    return fail(
        name,
        f"{role} cannot be assumed by {service}.",
        f"Let its trust policy allow sts:AssumeRole to {service}.",
    )


def trusts(document: Any, service: str) -> bool:
    """Return whether a trust policy lets a service assume the role. Conditions are ignored.

    Args:
        document: The trust policy, as decoded from IAM; anything but an object allows nothing.
        service: The service of AWS.
    """
    statements = document.get("Statement", ()) if isinstance(document, Mapping) else ()
    allowed = False
    for each in [statements] if isinstance(statements, Mapping) else statements:
        principal = each.get("Principal", {})
        named = principal if isinstance(principal, str) else principal.get("Service", ())
        if not any(fnmatchcase(service, one) for one in _listed(named)):
            continue
        if not any(fnmatchcase("sts:AssumeRole", one) for one in _listed(each.get("Action", ()))):
            continue
        if each.get("Effect") == "Deny":
            return False
        allowed = True
    return allowed


def of_table(name: str, table: str, answer: Mapping[str, Any]) -> Finding:
    """Return the finding about the table of Metaflow's state machines, from the response of
    `describe_table`.

    Args:
        name: The name of the check.
        table: The name of the table in DynamoDB.
        answer: The response.
    """
    keys = [(each["AttributeName"], each["KeyType"]) for each in answer["Table"]["KeySchema"]]
    if keys != [("pathspec", "HASH")]:
        return fail(
            name,
            f"The table {table} has another key than pathspec.",
            "Make one whose hash key is pathspec (a string).",
        )
    return ok(name, f"{table} exists. aflow itself needs none: it is for Metaflow's flows.")


def _listed(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


# ------------------------------------------------------------------ the metadata service


def of_service(name: str, url: str, status: int, version: str | None, own: bool) -> Finding:
    """Return the finding about a metadata service, from the responses to GET /ping and to a listing
    of flows.

    Args:
        name: The name of the check.
        url: The URL of the service in the settings.
        status: The HTTP status of the first response that was not 200; 200 if there is none.
        version: The version that the service reports; None if it reports none.
        own: Whether the service is aflow's.
    """
    if status in (401, 403):
        return fail(
            name,
            f"The metadata service at {url} answers {status}: it takes another key, or one at all.",
            "Set AFLOW_SERVICE_AUTH_KEY.",
        )
    if status != 200:
        return fail(
            name,
            f"What is at {url} answers {status}.",
            "Check AFLOW_SERVICE_URL, and that the service runs.",
        )
    if version is None:
        return fail(
            name,
            f"What answers at {url} is not a metadata service.",
            "Check AFLOW_SERVICE_URL: behind an API Gateway it ends in /api/, say.",
        )
    if own:
        return ok(name, f"{url} answers as aflow's metadata service, version {version}.")
    return ok(
        name,
        f"{url} answers as Metaflow's own metadata service, version {version}: runs are registered "
        "there. Their records are kept in .aflow of each folder, those of deployed flows in the "
        "datastore.",
    )


# The known keys of settings, and remarks on those that have no effect. Pure.


PREFIXES = ("AFLOW_", "METAFLOW_")
# Settings that are read one by one, by the modules that need them.
OF_PARTS = frozenset(
    """
    BATCH_EMIT_TAGS CARD_NO_WARNING DATASTORE_SYSROOT_LOCAL HISTORY KUBERNETES_CONTEXT SERVER
    SERVICE_AUTH_KEY_SECRET SERVICE_HEADERS SFN_COMPRESS_STATE_MACHINE SKIP_INSTALL_DEPENDENCIES
    SLURM_ACCOUNT SLURM_CONSTRAINT SLURM_PARTITION SLURM_QOS SLURM_TIME TOKEN_HOME
    """.split()  # noqa: SIM905 -- a list has a line for each
)
# Settings that are read before any file is, or that apply to a single run.
OF_THE_ENVIRONMENT = frozenset(
    {"BOOT_PATIENCE", "FLOW_CONFIG", "FLOW_CONFIG_VALUE", "HOME", "PROFILE", "SAFE_DIRECTORIES"}
)
# Keys of Metaflow that aflow ignores, and the reason.
WITHOUT_EFFECT = {
    "SFN_DYNAMO_DB_TABLE": "state machines of aflow need no table",
    "CARD_S3ROOT": "cards are kept beside the artifacts",
    "SERVICE_RETRY_COUNT": "calls to a service that does not answer are retried for two minutes",
    "S3_RETRY_COUNT": "requests to S3 are tried up to eight times",
    "S3_TRANSIENT_RETRY_COUNT": "requests to S3 are tried up to eight times",
    "MAXIMUM_FOREACH_VALUE_CHARS": "values of a foreach are always shown in short",
    "PROFILE_FROM_START": "start-up is fast; AFLOW_DEBUG=1 shows tracebacks",
    "DATASTORE_SYSROOT_AZURE": "there is no datastore in Azure",
    "DATASTORE_SYSROOT_GS": "there is no datastore in Google Cloud",
    "DEFAULT_AWS_CLIENT_PROVIDER": "botocore finds the credentials",
}


def known() -> frozenset[str]:
    """Return all keys that have an effect, without prefix."""
    parts = (aws.AwsSettings.keys(), k8s.KubernetesSettings.keys())
    of_jobs = {key for part in parts for keys in part.values() for key in keys}
    return OF_SETTINGS | of_jobs | OF_PARTS | OF_THE_ENVIRONMENT


def bare(key: str) -> str:
    """Return the key without its prefix.

    Args:
        key: The name of a setting, with or without a prefix.
    """
    return key.removeprefix("AFLOW_").removeprefix("METAFLOW_")


def remark(key: str) -> str:
    """Return what is wrong with a key in a file of settings; "" if it has an effect.

    Args:
        key: The key in the file.
    """
    name = bare(key)
    if not key.startswith(PREFIXES):
        return "no setting: names begin with AFLOW_ or METAFLOW_"
    if name in OF_THE_ENVIRONMENT or (name.startswith("RUN_") and name not in known()):
        return "without effect in a file: it is read from the environment alone"
    if name in known():
        return ""
    if name.startswith("DEBUG_"):
        return "without effect: AFLOW_DEBUG=1 shows tracebacks"
    if name in WITHOUT_EFFECT:
        return f"without effect: {WITHOUT_EFFECT[name]}"
    return f"no setting that aflow knows.{did_you_mean(name, sorted(known()))}".rstrip(".")
