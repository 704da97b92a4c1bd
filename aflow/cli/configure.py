"""`aflow configure`: the settings of a user, in one file per profile."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import click

from aflow._core.secret import without_passwords
from aflow._core.settings import (
    ConfigFile,
    Settings,
    at_endpoint,
    config_file,
    config_files,
    environment_with,
    service_headers,
)
from aflow.aws.stack.settings import is_of_metaflow, settings_of
from aflow.cli.doctor import probes
from aflow.cli.doctor.command import line
from aflow.cli.doctor.findings import PREFIXES, Finding, State, bare, remark
from aflow.cli.errors import printable
from aflow.cli.options import Subcommand, command_group, flag, option
from aflow.errors import InvalidInput, InvalidSetting

# The questions of `aflow configure aws`, and the checks of the answers.


Answers = dict[str, str]
Check = Callable[[Answers], list[Finding]]


class Question(NamedTuple):
    """A key (without prefix), its description, and the form of an answer. `default` computes the
    default from the answers so far; an answer may be empty if it is not `needed`."""

    key: str
    text: str
    form: str = r".+"
    example: str = ""
    default: Callable[[Answers], str] | None = None
    needed: bool = True


class Topic(NamedTuple):
    """Related questions, and the settings that follow if they are answered. `after` is the topic
    that this one requires."""

    name: str
    text: str
    sets: Answers
    questions: tuple[Question, ...]
    after: str = ""


# Answers to ask for again together with the one that was rejected.
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
    """Ask for settings on the terminal. With `check` each answer is checked with AWS, and an
    invalid one is asked for again, unless the user keeps it.

    Args:
        there: The current settings, which are the defaults.
        check: Whether to check the answers.

    Returns:
        The answers by key without prefix.
    """
    checks = _checks() if check else {}  # first, since packages for it may not be installed
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
    """Return the questions whose answers are invalid, unless the user keeps them."""
    bad: set[str | None] = set()
    for question in topic.questions:
        if question.key not in answers or question.key not in checks:
            continue
        found = checks[question.key](answers)
        for each in found:
            click.echo("  " + line(each.state, question.key, each.text))
        if any(each.state is State.FAIL for each in found):
            bad |= {question.key, _WITH.get(question.key)}
    if not bad or click.confirm("Keep what cannot be used as it is?", default=False):
        return []
    return [question for question in topic.questions if question.key in bad]


def _checks() -> dict[str, Check]:
    """Return the checks by key: each asks AWS, or the service, about the answer."""
    from aflow.aws.client import QUICK, AwsClient
    from aflow.executors.jobs.options import with_registry

    aws, endpoint = AwsClient(manner=QUICK), Settings.load().s3_endpoint
    jobs = "ecs-tasks.amazonaws.com"

    def bucket(key: str) -> Check:
        return lambda answers: [probes.bucket(key, at_endpoint(answers[key], endpoint))]

    def role(key: str, service: str) -> Check:
        return lambda answers: probes.role(key, answers[key], service, aws)

    def service(answers: Answers) -> list[Finding]:
        key = answers.get("SERVICE_AUTH_KEY")
        headers = {"x-api-key": key} if key else service_headers(answers["SERVICE_URL"])
        return [probes.service("SERVICE_URL", answers["SERVICE_URL"], headers)[0]]

    def queue(answers: Answers) -> list[Finding]:
        has_role = "ECS_FARGATE_EXECUTION_ROLE" in answers
        job_queue = answers["BATCH_JOB_QUEUE"]
        return probes.queue("BATCH_JOB_QUEUE", job_queue, aws, execution_role=has_role)

    def image(answers: Answers) -> list[Finding]:
        named = answers["BATCH_CONTAINER_IMAGE"]
        whole = with_registry(named, answers.get("BATCH_CONTAINER_REGISTRY"))
        return probes.image("BATCH_CONTAINER_IMAGE", whole)

    return {
        **{key: bucket(key) for key in ("DATASTORE_SYSROOT_S3", "DATATOOLS_S3ROOT")},
        "SERVICE_URL": service,
        "BATCH_JOB_QUEUE": queue,
        "BATCH_CONTAINER_IMAGE": image,
        "ECS_S3_ACCESS_IAM_ROLE": role("ECS_S3_ACCESS_IAM_ROLE", jobs),
        "ECS_FARGATE_EXECUTION_ROLE": role("ECS_FARGATE_EXECUTION_ROLE", jobs),
        "SFN_IAM_ROLE": role("SFN_IAM_ROLE", "states.amazonaws.com"),
        "EVENTS_SFN_ACCESS_IAM_ROLE": role("EVENTS_SFN_ACCESS_IAM_ROLE", "events.amazonaws.com"),
        "SFN_DYNAMO_DB_TABLE": lambda answers: probes.table(
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
    entered: str = click.prompt(
        f"{key} {question.text}", default=default, value_proc=checked, show_default=bool(default)
    )
    return entered


_HELP = """Show and change the settings of this user.

A profile is a separate file, used if AFLOW_PROFILE names it. METAFLOW_PROFILE and the files of
~/.metaflowconfig are read as well.

\b
  aflow configure aws                 answer questions about S3, Batch, the metadata service
  aflow configure show                show what is set, and where
  aflow configure import team.json    import exported settings
  aflow configure import-stack aflow  import the outputs of a CloudFormation stack
"""
_AWS_HELP = """Answer questions about the services of AWS to use.

Each answer is checked: the bucket is written and read, the queue has to be VALID and ENABLED, roles
have to exist and be assumable by their services, the metadata service has to answer. If a check
fails, you can answer again or keep the answer."""
STACK_HELP = """Import settings from the outputs of a CloudFormation stack.

The stack is one of `aflow stack template`, or of Metaflow's template. Other settings of the profile
are kept. Credentials come from the usual places of AWS tools."""
_SECRETS = ("AUTH_KEY", "HEADERS", "TOKEN", "SECRET", "PASSWORD", "SIGNING_KEY")


def configure() -> click.Command:
    """Return the command `configure`."""
    profile = _profile()
    there = click.Argument(["file"], default="-", metavar="[FILE]")
    to = click.Argument(["file"], metavar="FILE")
    yes = flag("--yes", "-y", help="Do not ask for confirmation.")
    unchecked = flag("--no-check", help="Do not check the answers with AWS.")
    return command_group(
        "configure",
        _HELP,
        {
            "aws": Subcommand(_AWS_HELP, [profile, unchecked], aws),
            "show": Subcommand("Show what is set, and where.", [profile], show),
            "import": Subcommand(
                "Import settings from a file, or from stdin.", [there, profile, yes], import_
            ),
            "import-stack": Subcommand(STACK_HELP, stack_parameters(), import_stack),
            "export": Subcommand("Write the settings to a file.", [to, profile, yes], export),
            "reset": Subcommand(
                "Delete the settings: runs are local again.", [profile, yes], reset
            ),
        },
    )


def aws(profile: str | None, no_check: bool) -> None:
    """Ask for the settings of AWS, then write the answers.

    Args:
        profile: The name of the profile; None for the current one.
        no_check: Whether to skip the checks of the answers.
    """
    file = config_file(profile)
    there = file.read() or {}
    if there:
        _confirm(f"{file.path} already exists. Change it?", yes=False)
    click.echo("Answers in brackets are taken with the return key. Ctrl-C leaves all as it was.")
    answers = ask(there, check=not no_check)
    _add(file, there, {f"AFLOW_{name}": value for name, value in answers.items()})


def show(profile: str | None) -> None:
    """Print each setting, with a note if a value elsewhere takes precedence.

    Args:
        profile: The name of the profile; None for the current one.
    """
    shown: set[str] = set()
    for file in config_files(profile):
        values = file.read()
        if values is None:
            continue
        click.echo(f"{file.path}:")
        for name, value in sorted(values.items()):
            found = remark(name)
            note = _counts_elsewhere(name, shown) or (f"  ({found})" if found else "")
            click.echo(f"  {name}={_shown(name, value)}{note}")
            shown.add(bare(name))
    if not shown:
        click.echo("Nothing is set: flows run on this machine, and keep everything in .aflow.")


def import_(file: str, profile: str | None, yes: bool) -> None:
    """Read settings in the form of `export`, and write them to the profile.

    Args:
        file: The path of the file; `-` for stdin.
        profile: The name of the profile; None for the current one.
        yes: Whether to replace an existing profile without asking.

    Raises:
        InvalidInput: If the file cannot be read, or is not a JSON object of settings.
    """
    target = config_file(profile)
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text("utf-8")
        values = json.loads(text)
    except OSError as error:
        raise InvalidInput(f"{file} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise InvalidInput(f"{_named(file)} is not valid JSON: {error}.") from error
    if not isinstance(values, dict) or not all(map(_is_key, values)):
        raise InvalidInput(
            f"{_named(file)} has to be one JSON object whose keys begin with AFLOW_ or METAFLOW_."
        )
    if target.read() is not None and file != "-":
        _confirm(f"{target.path} already exists. Replace it?", yes)
    elif target.read() is not None and not yes:
        raise InvalidInput(f"{target.path} already exists: give --yes to replace it.")
    _write(target, values)


def _profile() -> click.Parameter:
    text = "The profile.  [default: that of AFLOW_PROFILE]"
    return option("--profile", "-p", metavar="NAME", help=text)


def stack_parameters() -> list[click.Parameter]:
    """Return the parameters of `import_stack`."""
    return [
        click.Argument(["name"], metavar="STACK"),
        _profile(),
        option(
            "--region", metavar="NAME", help="Region of the stack.  [default: AWS_DEFAULT_REGION]"
        ),
        flag("--yes", "-y", help="Do not ask for confirmation."),
    ]


def import_stack(name: str, profile: str | None, region: str | None, yes: bool) -> None:
    """Write the outputs of a CloudFormation stack to the profile.

    Args:
        name: The name of the stack.
        profile: The name of the profile; None for the current one.
        region: The region of the stack; None for the default region of AWS.
        yes: Whether to change an existing profile without asking.
    """
    from aflow.aws.stack.aws import Stack

    target = config_file(profile)
    stack = Stack(name, region)
    outputs = stack.outputs()
    values = settings_of(name, outputs, stack.key)
    there = target.read()
    if there is not None:
        _confirm(f"{target.path} already exists. Change it?", yes)
    _add(target, there or {}, values)
    if is_of_metaflow(outputs):
        click.echo(
            "The stack is of Metaflow's own template: `run --with batch`, `step-functions`, "
            "`resume` and the client work with it. Runs are registered in its metadata service; "
            "their records are kept in .aflow of each folder, those of deployed flows in its "
            "bucket. Jobs need an image with aflow in it (AFLOW_BATCH_CONTAINER_IMAGE)."
        )
    chosen = f"AFLOW_PROFILE={profile} " if profile else ""
    click.echo(f"To check all of it, run: {chosen}aflow doctor")


def export(file: str, profile: str | None, yes: bool) -> None:
    """Write a copy of the profile's file, including secrets.

    Args:
        file: The path of the copy, or a folder for it.
        profile: The name of the profile; None for the current one.
        yes: Whether to replace an existing file without asking.

    Raises:
        InvalidSetting: If the profile has no file.
    """
    source = config_file(profile)
    values = source.read()
    if values is None:
        raise InvalidSetting(f"There is nothing to export: {source.path} does not exist.")
    target = Path(file)
    if target.is_dir():
        target = target / source.path.name
    if target.exists():
        _confirm(f"{target} already exists. Replace it?", yes)
    _write(ConfigFile(target), values)


def reset(profile: str | None, yes: bool) -> None:
    """Delete the profile's file.

    Args:
        profile: The name of the profile; None for the current one.
        yes: Whether to delete the file without asking.
    """
    file = config_file(profile)
    if file.read() is None:
        click.echo(f"Nothing to delete: {file.path} does not exist.")
        return
    _confirm(f"Remove {file.path}?", yes)
    file.path.unlink(missing_ok=True)
    click.echo(f"{file.path} is removed.")


# ------------------------------------------------------------------ helpers


def _add(file: ConfigFile, there: Mapping[str, Any], values: Mapping[str, Any]) -> None:
    """Write the values, and keep those of other settings."""
    taken = {bare(key) for key in values}
    kept = {key: value for key, value in there.items() if bare(key) not in taken}
    _write(file, {**kept, **values})


def _write(file: ConfigFile, values: dict[str, Any]) -> None:
    file.write(values)
    click.echo(f"Settings written to {file.path}")


def _confirm(question: str, yes: bool) -> None:
    if not yes and not click.confirm(question, err=True):
        click.echo("Nothing was changed.", err=True)
        raise click.exceptions.Exit(1)


def _named(file: str) -> str:
    return "What was read from stdin" if file == "-" else file


def _is_key(name: str) -> bool:
    return name.startswith(PREFIXES)


def _counts_elsewhere(name: str, shown: set[str]) -> str:
    for key in (f"AFLOW_{bare(name)}", f"METAFLOW_{bare(name)}"):
        if environment_with({}).get(key):
            return "  (the environment has another)"
    return "  (not used: set above)" if bare(name) in shown else ""


def _shown(name: str, value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    if text and any(word in name for word in _SECRETS):
        return f"{text[:2]}..." if len(text) > 8 else "..."
    return printable(without_passwords(text))
