"""What `aflow configure aws` asks, and how it checks what is answered."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import click

from aflow.checkup.findings import Finding, State
from aflow.cli.doctor import line

Answers = dict[str, str]
Check = Callable[[Answers], list[Finding]]


class Question(NamedTuple):
    """A key (without prefix), what it is, and what an answer looks like. `default` makes one of the
    answers so far; one that is not `needed` may stay empty."""

    key: str
    text: str
    form: str = r".+"
    example: str = ""
    default: Callable[[Answers], str] | None = None
    needed: bool = True


class Topic(NamedTuple):
    """Questions that belong together, and what is set if they are answered. `after` is the topic
    without which this one makes no sense."""

    name: str
    text: str
    sets: Answers
    questions: tuple[Question, ...]
    after: str = ""


# What has to be asked again, too, where an answer cannot be used.
_WITH = {
    "BATCH_CONTAINER_IMAGE": "BATCH_CONTAINER_REGISTRY",
    "BATCH_JOB_QUEUE": "ECS_FARGATE_EXECUTION_ROLE",
    "SERVICE_URL": "SERVICE_AUTH_KEY",
}
_S3_URL = r"s3://[a-z0-9][a-z0-9.\-]{1,61}[a-z0-9](/.*)?"
_ROLE = r"arn:aws[a-z\-]*:iam::\d{12}:role/.+"
_HTTP = r"https?://.+"

TOPICS = (
    Topic(
        "s3",
        "Keep artifacts in Amazon S3?",
        {"DEFAULT_DATASTORE": "s3"},
        (
            Question("DATASTORE_SYSROOT_S3", "Where artifacts are kept", _S3_URL, "s3://bucket/x"),
            Question(
                "DATATOOLS_S3ROOT",
                "Where files of S3(run=...) are kept",
                _S3_URL,
                "s3://bucket/x/data",
                lambda answers: answers["DATASTORE_SYSROOT_S3"].rstrip("/") + "/data",
            ),
        ),
    ),
    Topic(
        "service",
        "Keep metadata in a metadata service?",
        {"DEFAULT_METADATA": "service"},
        (
            Question("SERVICE_URL", "URL of the service", _HTTP, "https://host/api/"),
            Question(
                "SERVICE_INTERNAL_URL",
                "URL of the service from inside of the cloud",
                _HTTP,
                "http://host/",
                lambda answers: answers["SERVICE_URL"],
            ),
            Question("SERVICE_AUTH_KEY", "Key that the service asks for (x-api-key)", needed=False),
        ),
    ),
    Topic(
        "batch",
        "Run steps on AWS Batch?",
        {},
        (
            Question("BATCH_JOB_QUEUE", "Job queue, its name or ARN"),
            Question(
                "ECS_S3_ACCESS_IAM_ROLE",
                "Role with which jobs use S3",
                _ROLE,
                "arn:aws:iam::123456789012:role/name",
            ),
            Question(
                "ECS_FARGATE_EXECUTION_ROLE",
                "Role that starts jobs on Fargate (for such a queue alone)",
                _ROLE,
                "arn:aws:iam::123456789012:role/name",
                needed=False,
            ),
            Question("BATCH_CONTAINER_REGISTRY", "Registry of images", needed=False),
            Question("BATCH_CONTAINER_IMAGE", "Image in which steps run", needed=False),
        ),
        after="s3",
    ),
    Topic(
        "step-functions",
        "Schedule flows on AWS Step Functions?",
        {},
        (
            Question("SFN_IAM_ROLE", "Role of the state machines", _ROLE),
            Question("EVENTS_SFN_ACCESS_IAM_ROLE", "Role with which schedules start them", _ROLE),
            Question(
                "SFN_DYNAMO_DB_TABLE",
                "DynamoDB table that Metaflow has for flows with a foreach (aflow needs none)",
                needed=False,
            ),
        ),
        after="batch",
    ),
)


def ask(there: Mapping[str, Any], *, check: bool = True) -> Answers:
    """Ask on the terminal; the answers by key without prefix. `there` are the settings so far,
    which are offered again. With `check` AWS is asked about each answer, and one that cannot be
    used is asked for again, unless it is to be kept anyway."""
    checks = _checks() if check else {}  # first, since what they need may not be installed
    answers: Answers = {}
    chosen: set[str] = set()
    for topic in TOPICS:
        if topic.after and topic.after not in chosen:
            continue
        before = _before(there, topic.questions[0].key)
        click.echo()
        if click.confirm(topic.text, default=before is not None or not there):
            chosen.add(topic.name)
            answers.update(topic.sets)
            _ask_all(topic, topic.questions, answers, there)
            while refused := _refused(topic, answers, checks):
                _ask_all(topic, refused, answers, answers)
    return answers


def _ask_all(
    topic: Topic, questions: Sequence[Question], answers: Answers, there: Mapping[str, Any]
) -> None:
    for question in questions:
        answer = _answer(question, answers, _before(there, question.key))
        answers.pop(question.key, None)
        if answer:
            answers[question.key] = answer


def _refused(topic: Topic, answers: Answers, checks: Mapping[str, Check]) -> list[Question]:
    """The questions whose answers cannot be used, unless they are to be kept."""
    bad: set[str | None] = set()
    for question in topic.questions:
        if question.key not in answers or question.key not in checks:
            continue
        found = checks[question.key](answers)
        for each in found:
            click.echo("  " + line(each.state, question.key, each.whole))
        if any(each.state is State.FAIL for each in found):
            bad |= {question.key, _WITH.get(question.key)}
    if not bad or click.confirm("Keep what cannot be used as it is?", default=False):
        return []
    return [question for question in topic.questions if question.key in bad]


def _checks() -> dict[str, Check]:
    """By key: what AWS, or the service, says of the answer."""
    from aflow.aws.definitions import with_registry
    from aflow.aws.services import Services
    from aflow.checkup import asking
    from aflow.config import Settings, at_endpoint, service_headers

    aws, endpoint = Services(quick=True), Settings.load().s3_endpoint
    jobs = "ecs-tasks.amazonaws.com"

    def bucket(key: str) -> Check:
        return lambda answers: [asking.bucket(key, at_endpoint(answers[key], endpoint))]

    def role(key: str, service: str) -> Check:
        return lambda answers: asking.role(key, answers[key], service, aws)

    def service(answers: Answers) -> list[Finding]:
        key = answers.get("SERVICE_AUTH_KEY")
        headers = {"x-api-key": key} if key else service_headers(answers["SERVICE_URL"])
        return [asking.service("SERVICE_URL", answers["SERVICE_URL"], headers)[0]]

    def queue(answers: Answers) -> list[Finding]:
        has_role = "ECS_FARGATE_EXECUTION_ROLE" in answers
        wanted = answers["BATCH_JOB_QUEUE"]
        return asking.queue("BATCH_JOB_QUEUE", wanted, aws, execution_role=has_role)

    def image(answers: Answers) -> list[Finding]:
        named = answers["BATCH_CONTAINER_IMAGE"]
        whole = with_registry(named, answers.get("BATCH_CONTAINER_REGISTRY"))
        return asking.image("BATCH_CONTAINER_IMAGE", whole)

    return {
        **{key: bucket(key) for key in ("DATASTORE_SYSROOT_S3", "DATATOOLS_S3ROOT")},
        "SERVICE_URL": service,
        "BATCH_JOB_QUEUE": queue,
        "BATCH_CONTAINER_IMAGE": image,
        "ECS_S3_ACCESS_IAM_ROLE": role("ECS_S3_ACCESS_IAM_ROLE", jobs),
        "ECS_FARGATE_EXECUTION_ROLE": role("ECS_FARGATE_EXECUTION_ROLE", jobs),
        "SFN_IAM_ROLE": role("SFN_IAM_ROLE", "states.amazonaws.com"),
        "EVENTS_SFN_ACCESS_IAM_ROLE": role("EVENTS_SFN_ACCESS_IAM_ROLE", "events.amazonaws.com"),
        "SFN_DYNAMO_DB_TABLE": lambda answers: asking.table(
            "SFN_DYNAMO_DB_TABLE", answers["SFN_DYNAMO_DB_TABLE"], aws
        ),
    }


def _before(there: Mapping[str, Any], key: str) -> str | None:
    value = there.get(key, there.get(f"AFLOW_{key}", there.get(f"METAFLOW_{key}")))
    return None if value is None else str(value)


def _answer(question: Question, answers: Answers, before: str | None) -> str:
    default = before
    if default is None and question.default is not None:
        default = question.default(answers)
    if default is None and not question.needed:
        default = ""

    def checked(text: str) -> str:
        text = text.strip()
        if text and not re.fullmatch(question.form, text):
            raise click.BadParameter(f"{text!r} is not of the form {question.example}.")
        return text

    key = click.style(f"[{question.key}]", fg="cyan")
    told: str = click.prompt(
        f"{key} {question.text}", default=default, value_proc=checked, show_default=bool(default)
    )
    return told
