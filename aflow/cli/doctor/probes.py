"""Probes of services, which return findings. Each call blocks for some seconds at most."""

from __future__ import annotations

import http.client
import re
import uuid
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import parse_qsl, urlsplit

from aflow.cli.doctor.findings import (
    Finding,
    fail,
    of_machines,
    of_queue,
    of_role,
    of_service,
    of_table,
    ok,
    warn,
)
from aflow.errors import AflowError, AwsError, InvalidSetting

if TYPE_CHECKING:
    from aflow.aws.client import AwsClient

_TIMEOUT = 6.0  # seconds without a byte
_ECR = re.compile(
    r"(?P<account>\d{12})\.dkr\.ecr\.(?P<region>[a-z0-9-]+)\.amazonaws\.com(\.cn)?/"
    r"(?P<name>[^:@]+)(?::(?P<tag>[^@]+))?(?:@(?P<digest>.+))?"
)


class HttpResponse(NamedTuple):
    """The response of an HTTP service."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def get(url: str, headers: Mapping[str, str]) -> HttpResponse:
    """Send one GET request, without retries.

    Args:
        url: The URL, with `http` or `https`.
        headers: The headers to send, with the key of the service, if one is set.

    Returns:
        The status, the headers and the body.

    Raises:
        OSError: If the server cannot be reached, or does not respond in time; protocol errors are
            raised as http.client.HTTPException.
        InvalidSetting: If the URL is not an HTTP URL.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidSetting(f"{url!r} is not an address: use http(s)://host.")
    secure = parts.scheme == "https"
    kind = http.client.HTTPSConnection if secure else http.client.HTTPConnection
    connection = kind(parts.hostname, parts.port, timeout=_TIMEOUT)
    try:
        query = f"?{parts.query}" if parts.query else ""
        connection.request("GET", f"{parts.path or '/'}{query}", headers=dict(headers))
        answer = connection.getresponse()
        headers = {name.lower(): value for name, value in answer.getheaders()}
        return HttpResponse(answer.status, headers, answer.read(1 << 20))
    finally:
        connection.close()


def service(name: str, url: str, headers: Mapping[str, str]) -> tuple[Finding, str | None]:
    """Check whether a metadata service responds at the URL, and accepts the key in the headers.

    Args:
        name: The name of the check.
        url: The URL of the service.
        headers: The headers to send, with the key of the service, if one is set.

    Returns:
        The finding, and the header `Date` of the response; None if there is none.
    """
    base, date = url.rstrip("/"), None
    try:
        answer = get(f"{base}/ping", headers)
        version = answer.headers.get("metadata_service_version")
        own, date = "aflow_metadata" in answer.headers, answer.headers.get("date")
        if answer.status == 200 and version is not None:
            # Checks the key. Some services list only the runs of a flow, and no flows.
            listed = get(f"{base}/flows?_limit=1", headers)
            answer = answer if listed.status == 404 else listed
    except (OSError, http.client.HTTPException) as error:
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        message = f"Nothing answers at {url}: {why.rstrip('.')}."
        return fail(name, message, "Check AFLOW_SERVICE_URL, and that the service runs."), None
    return of_service(name, url, answer.status, version, own), date


def bucket(name: str, url: str) -> Finding:
    """Return whether an S3 location can be written and read, and supports conditional writes.

    Args:
        name: The name of the check.
        url: The URL of the datastore, `s3://...`; a test object is written, read and deleted.
    """
    from aflow.storage.s3 import S3Store

    body = b"aflow was here"
    probe = f"checkup/{uuid.uuid4().hex}"
    try:
        store = S3Store(url)
        try:
            store.put_if_absent(probe, [body])
            read = bytes(store.get(probe))
            store.delete(probe)
        finally:
            store.close()
    except AflowError as error:
        return fail(name, str(error))
    if read != body:
        return fail(name, f"{url} gives back other bytes than were written.", "Use another store.")
    return ok(name, f"{url} can be written, read and removed from.")


def date_of_store(url: str) -> str | None:
    """Return the time of an S3 service, as its header `Date`; None if there is no response.

    Args:
        url: The URL of the datastore, `s3://...`.
    """
    from aflow.aws.client import QUICK, AwsClient, date_of

    parts = urlsplit(url)
    options = dict(parse_qsl(parts.query))
    store = AwsClient(options.get("region"), endpoint=options.get("endpoint"), manner=QUICK)
    try:
        return date_of(store.call("s3", "head_bucket", Bucket=parts.netloc))
    except (AwsError, InvalidSetting):
        return None  # another check reports whether the store works


def queue(
    name: str,
    job_queue: str,
    aws: AwsClient,
    *,
    execution_role: bool = True,
    key: str = "AFLOW_BATCH_JOB_QUEUE",
) -> list[Finding]:
    """Return whether jobs that are submitted to a job queue can start.

    Args:
        name: The name of the check.
        job_queue: The name or ARN of the job queue.
        aws: The client of AWS, which does not retry.
        execution_role: Whether an execution role is set, which Fargate needs.
        key: The setting that names the queue.
    """

    def looked() -> list[Finding]:
        answer = aws.call("batch", "describe_job_queues", jobQueues=[job_queue])
        found = [of_queue(name, job_queue, answer, key)]
        if not answer.get("jobQueues"):
            return found
        order = answer["jobQueues"][0].get("computeEnvironmentOrder", ())
        machines = [each["computeEnvironment"] for each in order]
        network = (
            aws.call("batch", "describe_compute_environments", computeEnvironments=machines)
            if machines
            else {}
        )
        return [*found, of_machines("compute", job_queue, network, execution_role)]

    return asked(name, f"The job queue {job_queue}", "batch:DescribeJobQueues", looked)


def role(name: str, arn: str, service: str, aws: AwsClient) -> list[Finding]:
    """Return whether a role exists, and a service of AWS may assume it.

    Args:
        name: The name of the check.
        arn: The ARN in the settings.
        service: The service that must be able to assume it, such as `ecs-tasks.amazonaws.com`.
        aws: The client of AWS, which does not retry.
    """
    advice = f"Set the ARN of a role that {service} may assume."

    def looked() -> list[Finding]:
        found = aws.call("iam", "get_role", RoleName=arn.rpartition("/")[2])["Role"]
        if found["Arn"] != arn:
            message = f"{arn} is not a role of this account: there is {found['Arn']}."
            return [fail(name, message, advice)]
        return [of_role(name, arn, found.get("AssumeRolePolicyDocument"), service)]

    missing = fail(name, f"There is no role {arn} in this account.", advice)
    return asked(name, f"The role {arn}", "iam:GetRole", looked, {"NoSuchEntity": missing})


def table(name: str, table_name: str, aws: AwsClient) -> list[Finding]:
    """Return whether a DynamoDB table exists, for Metaflow's state machines.

    Args:
        name: The name of the check.
        table_name: The name of the table.
        aws: The client of AWS, which does not retry.
    """
    missing = fail(
        name,
        f"There is no table {table_name} in this region and account.",
        "Unset AFLOW_SFN_DYNAMO_DB_TABLE (aflow needs none), or make it.",
    )
    return asked(
        name,
        f"The table {table_name}",
        "dynamodb:DescribeTable",
        lambda: [
            of_table(name, table_name, aws.call("dynamodb", "describe_table", TableName=table_name))
        ],
        {"ResourceNotFoundException": missing},
    )


def log_group(name: str, arn: str, aws: AwsClient, key: str) -> list[Finding]:
    """Return whether a log group exists.

    Args:
        name: The name of the check.
        arn: The ARN or the name in the settings.
        aws: The client of AWS, which does not retry.
        key: The setting that names the log group.
    """
    group = arn.removesuffix(":*").partition(":log-group:")[2] or arn

    def looked() -> list[Finding]:
        answer = aws.call("logs", "describe_log_groups", logGroupNamePrefix=group)
        if any(each["logGroupName"] == group for each in answer["logGroups"]):
            return [ok(name, f"{group} is there.")]
        message = f"There is no log group {group} in this region and account."
        return [fail(name, message, f"Set {key} to one, or unset it.")]

    return asked(name, f"The log group {group}", "logs:DescribeLogGroups", looked)


def image(name: str, reference: str) -> list[Finding]:
    """Return whether an image exists in its registry; only ECR is checked.

    Args:
        name: The name of the check.
        reference: The image in the settings, with a tag or digest.
    """
    from aflow.aws.client import QUICK, AwsClient

    parts = _ECR.fullmatch(reference)
    if parts is None:
        return [ok(name, f"{reference} (only images in ECR are looked for)")]
    digest, tag = parts["digest"], parts["tag"] or "latest"
    which = {"imageDigest": digest} if digest else {"imageTag": tag}
    missing = fail(
        name,
        f"There is no image {reference}.",
        "Push it (docker/README.md), or set AFLOW_BATCH_CONTAINER_IMAGE to another.",
    )

    def looked() -> list[Finding]:
        aws = AwsClient(parts["region"], manner=QUICK)
        about = {"registryId": parts["account"], "repositoryName": parts["name"]}
        aws.call("ecr", "describe_images", **about, imageIds=[which])
        return [ok(name, f"{reference} is in its registry.")]

    known = dict.fromkeys(("ImageNotFoundException", "RepositoryNotFoundException"), missing)
    return asked(name, f"The image {reference}", "ecr:DescribeImages", looked, known)


def asked(
    name: str,
    what: str,
    right: str,
    look: Callable[[], list[Finding]],
    known: Mapping[str, Finding] | None = None,
) -> list[Finding]:
    """Return the findings of `look`, or one about its error: a warning if AWS denies the access, a
    failure if AWS does not respond.

    Args:
        name: The name of the check.
        what: The subject of the message.
        right: The IAM permission that the check needs.
        look: Calls AWS, and returns the findings.
        known: The findings for certain error codes of AWS; None for none.
    """
    try:
        return look()
    except AwsError as error:
        if known and error.code in known:
            return [known[error.code]]
        if error.denied:
            message = f"{what} may not be looked at by you, so it may be well or not."
            return [warn(name, message, f"Ask for {right}, or try it.")]
        return [fail(name, f"{what} cannot be looked at: {error}")]
    except InvalidSetting as error:
        return [fail(name, f"{what} cannot be looked at: {error}")]
