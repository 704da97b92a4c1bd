"""The checks of `aflow doctor`: this machine, the settings, and the services that they name."""

from __future__ import annotations

import asyncio
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from typing import TYPE_CHECKING

from aflow._core.settings import Settings, looked_up, settings_files
from aflow._core.version import DISTRIBUTION, __version__
from aflow.aws.settings import AwsSettings
from aflow.cli.doctor import findings as keys
from aflow.cli.doctor import probes
from aflow.cli.doctor.findings import Finding, State, fail, of_clock, of_space, ok, warn, worst
from aflow.environments.uv import find_uv
from aflow.errors import AflowError, InvalidSetting, MissingExtra
from aflow.executors.jobs.kubernetes.access import KubernetesCluster
from aflow.executors.jobs.kubernetes.settings import KubernetesSettings
from aflow.metadata.factory import open_metadata
from aflow.metadata.tokens import headers_for
from aflow.queue.factory import open_queue
from aflow.task.secrets import known_backends

if TYPE_CHECKING:
    from aflow._core.clock import Clock
    from aflow.aws.client import AwsClient

# The extras that settings may need, and the modules that each installs.
_EXTRAS = {"aws": ("aiobotocore",), "postgres": ("psycopg",), "redis": ("redis",)}
_WAIT = 10.0  # seconds, the timeout of a queue

# Records the time of a service, by the name of its owner: the header `Date` of a response; None if
# there is none. The last one is reported.
Record = Callable[[str, str | None], None]


def findings(clock: Clock) -> Iterator[Finding]:
    """Yield the findings of all checks as they are completed; each check takes some seconds at
    most.

    Args:
        clock: The source of the time.
    """
    yield ok("python", f"Python {platform.python_version()}, aflow {__version__}.")
    yield from _namesake()
    yield from _files()
    try:
        settings, aws = Settings.load(), AwsSettings.load()
    except InvalidSetting as error:
        yield fail("settings", str(error), "Nothing else can be looked at before.")
        return
    missing = [*_extras(settings, aws)]
    yield from missing
    yield from _environments(settings)
    yield from _spaces(settings)
    clocks: list[Finding] = []

    def record(owner: str, date: str | None) -> None:
        if date is not None:
            clocks.append(of_clock("clock", clock.now(), date, owner))

    if not missing:
        yield from _datastore(settings, record)
        yield from _metadata(settings, record)
        yield from _queue(settings)
        yield from _secrets(settings)
        yield from _aws(settings, aws, record)
        yield from _kubernetes(settings)
    yield from clocks[-1:]


def _namesake() -> Iterator[Finding]:
    """Warn if another project's distribution `aflow` is installed: its package has the same
    name."""
    try:
        other = distribution("aflow")
    except PackageNotFoundError:
        return
    # A distribution under our own earlier name may be left in a developer's environment (editable,
    # so it installs no package): it is not another project's, and harmless.
    if any(file.parts[0] == "aflow" for file in other.files or ()):
        message = (
            f"The distribution aflow {other.version} is installed as well (in "
            f"{other.locate_file('')}): it is another project's, and both install a package named "
            f"aflow (ours is {DISTRIBUTION})."
        )
        advice = f"pip uninstall aflow; then pip install --force-reinstall --no-deps {DISTRIBUTION}"
        yield warn("packages", message, advice)


# ------------------------------------------------------------------ settings


def _files() -> Iterator[Finding]:
    """Check the files of settings, and report keys in them that have no effect."""
    read: list[str] = []
    try:
        files = settings_files()
    except InvalidSetting:  # reported when all settings are loaded
        return
    for file in files:
        try:
            values = file.read()
        except InvalidSetting as error:
            yield fail("settings", str(error), "Correct it, or write it again: aflow configure.")
            continue
        if values is None:
            continue
        read.append(str(file.path))
        for key in sorted(values):
            if remark := keys.remark(key):
                finding = ok if keys.bare(key) in keys.WITHOUT_EFFECT else warn
                yield finding("settings", f"{key} in {file.path} is {remark}.")
    no_file = "There is no settings file: the defaults apply."
    yield ok("settings", f"{', '.join(read)} can be read." if read else no_file)


def _extras(settings: Settings, aws: AwsSettings) -> Iterator[Finding]:
    """Report extras that the settings need but that are not installed."""
    urls = (settings.metadata, settings.queue or "")
    needed = {
        "aws": settings.datastore == "s3" or urls[1].startswith("sqs") or _names_any(aws),
        "postgres": any(each.startswith(("postgres:", "postgresql:")) for each in urls),
        "redis": urls[1].startswith("redis"),
    }
    for extra, modules in _EXTRAS.items():
        absent = [each for each in modules if needed[extra] and find_spec(each) is None]
        if absent:
            message = f"The settings need {', '.join(absent)}, which is not installed."
            yield fail("packages", message, f"pip install '{DISTRIBUTION}[{extra}]'")


def _environments(settings: Settings) -> Iterator[Finding]:
    """Check the tools that install packages of steps. Since the flows are not known here, a missing
    tool is a failure only if the settings need it."""
    kind = settings.environment
    if kind == "local":
        return
    lacking = fail if kind is not None else warn
    try:
        find_uv()
    except MissingExtra:
        message = "uv is not installed: steps with @pypi cannot have the packages that they name."
        advice = (
            f"pip install '{DISTRIBUTION}[environments]'; or set AFLOW_DEFAULT_ENVIRONMENT=local "
            "to use what is installed."
        )
        yield lacking("packages", message, advice)
    if kind == "conda" and find_spec("rattler") is None:
        message = "rattler is not installed, which AFLOW_DEFAULT_ENVIRONMENT=conda needs."
        yield fail("packages", message, f"pip install '{DISTRIBUTION}[conda]'")


# ------------------------------------------------------------------ storage and services


def _spaces(settings: Settings) -> Iterator[Finding]:
    """Check the free space of the disks that aflow writes to."""
    places = {".aflow": settings.root}
    if settings.datastore == "s3":
        places["the cache"] = settings.cache
    for what, place in places.items():
        there = next(each for each in (place, *place.parents) if os.path.isdir(each))
        if not os.access(there, os.W_OK | os.X_OK):
            message = f"{there}, where {what} is to be, cannot be written to."
            yield fail("disk", message, "Change its permissions, or work elsewhere.")
            continue
        yield of_space("disk", f"{what} ({place})", shutil.disk_usage(there).free)


def _datastore(settings: Settings, record: Record) -> Iterator[Finding]:
    try:
        url = settings.storage_url
    except InvalidSetting as error:
        yield fail("datastore", str(error))
        return
    if not url.startswith("s3:"):
        yield ok("datastore", f"{settings.root} on this machine.")
        return
    found = probes.bucket("datastore", url)
    yield found
    if found.state is State.OK:
        record("S3", probes.date_of_store(url))


def _metadata(settings: Settings, record: Record) -> Iterator[Finding]:
    try:
        url = settings.metadata_url
        if url.startswith("http"):
            found, date = probes.service("metadata", url, headers_for(url))
            record("the metadata service", date)
            yield found
            return
        if not settings.has_metadata:
            yield ok("metadata", f"{url} is made by the first run.")
            return
        with closing(open_metadata(url, read_only=True)) as store:
            next(iter(store.flows()), None)
        yield ok("metadata", f"{url} can be read.")
    except AflowError as error:
        yield fail("metadata", str(error))


def _queue(settings: Settings) -> Iterator[Finding]:
    if settings.queue is None:
        if settings.executor == "queue":
            yield fail("queue", "Runs use a queue, and none is named.", "Set AFLOW_QUEUE.")
        return
    shown = settings.queue
    try:
        depth = asyncio.run(asyncio.wait_for(_depth(settings.queue), _WAIT))
    except TimeoutError:
        yield fail("queue", f"{shown} does not answer within {_WAIT:.0f} s.", "See that it runs.")
    except AflowError as error:
        yield fail("queue", str(error))
    else:
        yield ok("queue", f"{shown} answers: {depth} messages wait.")
    if not settings.signing_keys:
        yield warn(
            "queue",
            "Messages are not signed: anyone with access to the queue can have workers run code.",
            "Set AFLOW_SIGNING_KEY, the same for runs and workers.",
        )


async def _depth(url: str) -> int:
    queue = open_queue(url)
    try:
        return (await queue.depth("doctor")).ready
    finally:
        await queue.close()


def _secrets(settings: Settings) -> Iterator[Finding]:
    kind = settings.default_secrets_backend
    if kind is None:
        return
    known = known_backends()
    if kind in known:
        yield ok("secrets", f"Secrets that name no backend are of {kind}.")
        return
    message = f"AFLOW_DEFAULT_SECRETS_BACKEND_TYPE names {kind}, and there is no such backend."
    yield fail("secrets", message, f"There are: {', '.join(known)}.")


def _kubernetes(settings: Settings) -> Iterator[Finding]:
    """Check whether Jobs can be listed, if a namespace is set or all steps run on Kubernetes."""

    namespace = KubernetesSettings.load().namespace
    if namespace is None and settings.executor != "kubernetes":
        return

    cluster = KubernetesCluster()
    try:
        namespace = namespace or cluster.namespace
        cluster.first(f"/apis/batch/v1/namespaces/{namespace}/jobs", 1)
        server = cluster.server
    except AflowError as error:
        yield fail("kubernetes", str(error), "Log in, or set KUBECONFIG to another cluster.")
        return
    finally:
        cluster.close()
    yield ok("kubernetes", f"{server} lists the jobs of the namespace {namespace}.")


# ------------------------------------------------------------------ AWS


def _names_any(aws: AwsSettings) -> bool:
    """Return whether the settings name any resource of AWS."""
    roles = (aws.job_role, aws.fargate_role, aws.machine_role, aws.events_role)
    return any((aws.queue, aws.image, aws.log_group, *roles))


def _aws(settings: Settings, aws: AwsSettings, record: Record) -> Iterator[Finding]:
    table = looked_up("SFN_DYNAMO_DB_TABLE")
    secrets = settings.default_secrets_backend == "aws-secrets-manager"
    runs_there = settings.executor == "batch"
    if not (_names_any(aws) or table or secrets or runs_there):
        return
    from aflow.aws.client import QUICK, AwsClient, date_of

    account = AwsClient(manner=QUICK)
    try:
        identity = account.call("sts", "get_caller_identity")
    except AflowError as error:
        yield fail("credentials", str(error), "Nothing else of AWS can be looked at before.")
        return
    yield ok("credentials", f"{identity['Arn']}")
    record("AWS", date_of(identity))
    yield from _batch(settings, aws, account)
    yield from _step_functions(settings, aws, account)
    if table is not None:
        yield from probes.table("table", table, account)


def _batch(settings: Settings, aws: AwsSettings, account: AwsClient) -> Iterator[Finding]:
    from aflow.executors.jobs.options import with_registry

    if not (aws.queue or aws.image or aws.job_role or settings.executor == "batch"):
        return
    yield from _wanting(aws, "job queue", "queue", "job role", "job_role", "job image", "image")
    if settings.datastore != "s3":
        message = "Jobs cannot reach a datastore of this machine."
        yield warn("job queue", message, "Set AFLOW_DEFAULT_DATASTORE=s3, or use --datastore s3.")
    if aws.queue:
        has_role = aws.fargate_role is not None
        yield from probes.queue("job queue", aws.queue, account, execution_role=has_role)
    if aws.gpu_queue:
        key = "AFLOW_BATCH_GPU_JOB_QUEUE"
        yield from probes.queue("GPU queue", aws.gpu_queue, account, key=key)
    if aws.job_log_group:
        yield from probes.log_group("job logs", aws.job_log_group, account, "AFLOW_BATCH_LOG_GROUP")
    for name, role in (("job role", aws.job_role), ("execution role", aws.fargate_role)):
        if role:
            yield from probes.role(name, role, "ecs-tasks.amazonaws.com", account)
    if aws.image:
        yield from probes.image("job image", with_registry(aws.image, aws.registry))


def _step_functions(settings: Settings, aws: AwsSettings, account: AwsClient) -> Iterator[Finding]:
    if not (aws.machine_role or aws.events_role):
        return
    yield from _wanting(
        aws, "state machines", "machine_role", "schedules", "events_role", "job queue", "queue"
    )
    if settings.metadata == "local":
        message = "State machines cannot reach metadata of this machine."
        yield warn("state machines", message, "Set AFLOW_DEFAULT_METADATA=service.")
    if aws.machine_role:
        yield from probes.role("state machines", aws.machine_role, "states.amazonaws.com", account)
    if aws.events_role:
        yield from _starter(aws.events_role, account)
    if aws.log_group:
        key = "AFLOW_SFN_EXECUTION_LOG_GROUP_ARN"
        yield from probes.log_group("logs", aws.log_group, account, key)


def _starter(role: str, account: AwsClient) -> Iterator[Finding]:
    """Check the role that starts flows: by event rules, and, in time zones, by schedules."""
    found = probes.role("schedules", role, "events.amazonaws.com", account)
    yield from found
    if worst(found) is State.OK:
        for each in probes.role("schedules", role, "scheduler.amazonaws.com", account):
            if each.state is State.FAIL:  # a role of Metaflow's stack, which has no time zones
                yield warn("schedules", each.message, f"For @schedule(timezone=): {each.advice}")


def _wanting(aws: AwsSettings, *pairs: str) -> Iterator[Finding]:
    """Yield a failure for each missing setting; `pairs` alternates names of findings and
    settings."""
    for name, field in zip(pairs[::2], pairs[1::2], strict=True):
        try:
            aws.needed(field, f"The {name}")
        except InvalidSetting as error:
            yield Finding(name, State.FAIL, str(error))
