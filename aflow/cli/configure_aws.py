"""What `aflow configure aws` asks."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import click

Answers = dict[str, str]


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
            Question("SFN_DYNAMO_DB_TABLE", "DynamoDB table for flows with a foreach"),
        ),
        after="batch",
    ),
)


def ask(there: Mapping[str, Any]) -> Answers:
    """Ask on the terminal; the answers by key without prefix. `there` are the settings so far,
    which are offered again."""
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
            for question in topic.questions:
                answer = _answer(question, answers, _before(there, question.key))
                if answer:
                    answers[question.key] = answer
    return answers


def _before(there: Mapping[str, Any], key: str) -> str | None:
    value = there.get(f"AFLOW_{key}", there.get(f"METAFLOW_{key}"))
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
