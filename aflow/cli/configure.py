"""`aflow configure`: the settings of a user, in files of one profile each."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from aflow.checkup.keys import PREFIXES, bare, remark
from aflow.cli.configure_aws import ask
from aflow.cli.options import flag, option
from aflow.config import config_file, config_files, environment_with
from aflow.config_files import ConfigFile
from aflow.errors import InvalidInput, InvalidSetting

_HELP = """The settings of this user. A profile is a file of its own, used where AFLOW_PROFILE names
it; METAFLOW_PROFILE and the files of ~/.metaflowconfig are read as well.

\b
  aflow configure aws                 answer questions about S3, Batch, the metadata service
  aflow configure show                what is set, and where
  aflow configure import team.json    take the settings that somebody has exported
  aflow configure import-stack aflow  take those of a CloudFormation stack (aflow stack template)
"""
_AWS_HELP = """Answer questions about the services of AWS that are to be used.

Each answer is checked: the bucket is written to and read, the queue has to be VALID and ENABLED,
roles have to be there for those who assume them, the metadata service has to answer. What cannot be
used is asked for again, or kept if you say so."""
STACK_HELP = """Take the settings that a stack of CloudFormation has as its outputs.

The stack is one of `aflow stack template`, or of Metaflow's template. What is set otherwise
in the profile stays. Credentials are those of all tools of AWS."""
_SECRETS = ("AUTH_KEY", "HEADERS", "TOKEN", "SECRET", "PASSWORD", "SIGNING_KEY")


def configure(words: Sequence[str]) -> object:
    """Run the command with these words."""
    group = click.Group("configure", help=_HELP)
    for name, (help, params, body) in _commands().items():
        group.add_command(click.Command(name, help=help, params=params, callback=body))
    return group.main([*words], prog_name="aflow configure", standalone_mode=False)


def _commands() -> dict[str, tuple[str, list[click.Parameter], Callable[..., object]]]:
    profile = option(
        "--profile", "-p", metavar="NAME", help="The profile.  [default: that of AFLOW_PROFILE]"
    )
    there = click.Argument(["file"], default="-", metavar="[FILE]")
    to = click.Argument(["file"], metavar="FILE")
    yes = flag("--yes", "-y", help="Do not ask.")
    unchecked = flag("--no-check", help="Do not ask AWS whether answers can be used.")
    return {
        "aws": (_AWS_HELP, [profile, unchecked], aws),
        "show": ("Show what is set, and where.", [profile], show),
        "import": ("Take the settings of a file, or of stdin.", [there, profile, yes], import_),
        "import-stack": (STACK_HELP, stack_parameters(), import_stack),
        "export": ("Write the settings to a file.", [to, profile, yes], export),
        "reset": ("Forget the settings: runs are local again.", [profile, yes], reset),
    }


def aws(profile: str | None, no_check: bool) -> int:
    """Ask, then write what was answered."""
    file = config_file(profile)
    there = file.read() or {}
    if there:
        _confirm(f"{file.path} is there already. Change it?", yes=False)
    click.echo("Answers in brackets are taken with the return key. Ctrl-C leaves all as it was.")
    answers = ask(there, check=not no_check)
    kept = {name: value for name, value in there.items() if bare(name) not in answers}
    _write(file, {**kept, **{f"AFLOW_{name}": value for name, value in answers.items()}})
    return 0


def show(profile: str | None) -> int:
    """A line a setting; of a key that stands in several places the one that counts."""
    shown: set[str] = set()
    for file in config_files(profile):
        values = file.read()
        if values is None:
            continue
        click.echo(f"{file.path}:")
        for name, value in sorted(values.items()):
            note = _counts_elsewhere(name, shown) or _remark(name)
            click.echo(f"  {name}={_told(name, value)}{note}")
            shown.add(bare(name))
    if not shown:
        click.echo("Nothing is set: flows run on this machine, and keep everything in .aflow.")
    return 0


def import_(file: str, profile: str | None, yes: bool) -> int:
    """Take what somebody has exported."""
    target = config_file(profile)
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text("utf-8")
        values = json.loads(text)
    except OSError as error:
        raise InvalidInput(f"{file} cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise InvalidInput(f"{_named(file)} is no JSON: {error}.") from error
    if not isinstance(values, dict) or not all(map(_is_key, values)):
        raise InvalidInput(
            f"{_named(file)} has to be one JSON object whose keys begin with AFLOW_ or METAFLOW_."
        )
    if target.read() is not None and file != "-":
        _confirm(f"{target.path} is there already. Replace it?", yes)
    elif target.read() is not None and not yes:
        raise InvalidInput(f"{target.path} is there already: give --yes to replace it.")
    _write(target, values)
    return 0


def stack_parameters() -> list[click.Parameter]:
    """Those of `import_stack`."""
    return [
        click.Argument(["name"], metavar="STACK"),
        option("--profile", "-p", metavar="NAME", help="The profile.  [default: AFLOW_PROFILE]"),
        option("--region", metavar="NAME", help="Where it is.  [default: AWS_DEFAULT_REGION]"),
        flag("--yes", "-y", help="Do not ask."),
    ]


def import_stack(name: str, profile: str | None, region: str | None, yes: bool) -> int:
    """Take what the outputs of a stack say."""
    from aflow.stack.aws import Stack
    from aflow.stack.settings import is_of_metaflow, settings_of

    target = config_file(profile)
    stack = Stack(name, region)
    outputs = stack.outputs()
    values = settings_of(name, outputs, stack.key)
    there = target.read()
    if there is not None:
        _confirm(f"{target.path} is there already. Change it?", yes)
    taken = {bare(key) for key in values}
    kept = {key: value for key, value in (there or {}).items() if bare(key) not in taken}
    _write(target, {**kept, **values})
    if is_of_metaflow(outputs):
        click.echo(
            "The stack is of Metaflow's own template: `run --with batch`, `step-functions`, "
            "`resume` and the client work with it. Runs are registered in its metadata service; "
            "their records are kept in .aflow of each folder, those of deployed flows in its "
            "bucket. Jobs need an image with aflow in it (AFLOW_BATCH_CONTAINER_IMAGE)."
        )
    chosen = f"AFLOW_PROFILE={profile} " if profile else ""
    click.echo(f"Whether all of it can be used says: {chosen}aflow doctor")
    return 0


def export(file: str, profile: str | None, yes: bool) -> int:
    """Write the profile's own file, whole, secrets too."""
    source = config_file(profile)
    values = source.read()
    if values is None:
        raise InvalidSetting(f"There is nothing to export: {source.path} does not exist.")
    target = Path(file)
    if target.is_dir():
        target = target / source.path.name
    if target.exists():
        _confirm(f"{target} is there already. Replace it?", yes)
    _write(ConfigFile(target), values)
    return 0


def reset(profile: str | None, yes: bool) -> int:
    """Remove the profile's file."""
    file = config_file(profile)
    if file.read() is None:
        click.echo(f"Nothing to forget: {file.path} does not exist.")
        return 0
    _confirm(f"Remove {file.path}?", yes)
    file.path.unlink(missing_ok=True)
    click.echo(f"{file.path} is removed.")
    return 0


# ------------------------------------------------------------------ how


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


def _remark(name: str) -> str:
    said = remark(name)
    return f"  ({said})" if said else ""


def _told(name: str, value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    if text and any(word in name for word in _SECRETS):
        return f"{text[:2]}..." if len(text) > 8 else "..."
    return text
