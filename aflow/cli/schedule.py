"""`aflow schedule`: manage the schedules by which a server runs flows."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

import click

from aflow.cli import tables
from aflow.cli.errors import printable
from aflow.cli.loading import load_flow
from aflow.cli.options import Subcommand, command_group, count_option, option, tags_option
from aflow.cli.server_requests import ask, server_option
from aflow.cli.submit import parameters_of, send
from aflow.errors import InvalidInput
from aflow.task.config_binding import configured

_HELP = """Have a server (aflow server) run flows when their @schedule says so.

\b
  aflow schedule create flow.py --alpha 0.5
  aflow schedule create flow.py --name nightly --cron '0 2 * * ? *' --timezone Europe/Berlin
  aflow schedule list
  aflow schedule edit nightly --cron '0 3 * * ? *' --alpha 0.1
  aflow schedule pause nightly
  aflow schedule trigger nightly
"""
_CREATE_HELP = (
    "Send the code of a flow to a server, which runs it on a schedule. Options that are not "
    "listed here are parameters of the flow. A schedule with the same name is replaced."
)
_EDIT_HELP = (
    "Change a schedule. Options that are not listed here are parameters of its flow. Everything "
    "else is kept, also the code: `create` replaces the code."
)
_MISSED = click.Choice(["latest", "skip", "all"])
_OVERLAP = click.Choice(["skip", "allow", "wait", "cancel"])


def schedule() -> click.Command:
    """Return the command `schedule`."""
    name = click.Argument(["name"])
    target = click.Argument(["target"], metavar="FLOW.PY")
    server = server_option()
    of_flow = click.Argument(["given"], nargs=-1, type=click.UNPROCESSED, metavar="[PARAMETERS]...")
    created = [
        target,
        server,
        option("--name", metavar="NAME", help="Name of the schedule.  [default: the flow]"),
        option(
            "--cron",
            metavar="EXPRESSION",
            help="The cron expression, such as '0 2 * * ? *'.  [default: that of @schedule]",
        ),
        option(
            "--timezone",
            metavar="ZONE",
            help="The time zone of the expression.  [default: that of @schedule, else UTC]",
        ),
        option(
            "--missed",
            type=_MISSED,
            default="latest",
            help="Which missed runs to make up for after the server was down.",
        ),
        option(
            "--overlap",
            type=_OVERLAP,
            default="skip",
            help="What to do while the previous run is active: start no run, a run beside it, "
            "a run after it, or a run instead of it.",
        ),
        tags_option("A tag for its runs; may be given several times."),
        count_option("--max-workers", help="The most tasks of a run at a time."),
        of_flow,
    ]
    edited = [
        name,
        server,
        option("--cron", metavar="EXPRESSION", help="The cron expression."),
        option("--timezone", metavar="ZONE", help="The time zone of the expression."),
        option("--missed", type=_MISSED, help="See create."),
        option("--overlap", type=_OVERLAP, help="See create."),
        tags_option("A tag for its runs, instead of the earlier ones."),
        of_flow,
    ]
    one = [name, server]
    group = command_group(
        "schedule",
        _HELP,
        {
            "create": Subcommand(_CREATE_HELP, created, _create),
            "edit": Subcommand(_EDIT_HELP, edited, _edit),
            "list": Subcommand("List all schedules.", [server], _list),
            "show": Subcommand("Show a schedule as JSON.", one, _show),
            "pause": Subcommand("Pause a schedule.", one, _pause),
            "resume": Subcommand("Resume a schedule.", one, _resume),
            "trigger": Subcommand("Start a run of a schedule now.", one, _trigger),
            "delete": Subcommand("Delete a schedule, and keep its runs.", one, _delete),
        },
    )
    for each in ("create", "edit"):
        group.commands[each].ignore_unknown_options = True
    return group


def _edit(
    name: str, server: str, tags: tuple[str, ...], given: tuple[str, ...], **changes: str | None
) -> None:
    fields: dict[str, Any] = {key: each for key, each in changes.items() if each is not None}
    if given:
        before = ask(server, "GET", _path(name))["parameters"]
        fields["parameters"] = {**before, **parameters_of(given)}
    if tags:
        fields["tags"] = [*tags]
    if not fields:
        raise click.UsageError("Name an option to change (see --help).")
    schedule = ask(server, "PATCH", _path(name), json.dumps(fields).encode())
    when = "is paused" if schedule["paused"] else f"runs next at {_when(schedule['next'])}"
    click.echo(printable(f"{schedule['name']} is changed; it {when}."))


def _create(
    target: str,
    server: str,
    name: str | None,
    cron: str | None,
    timezone: str | None,
    missed: str,
    overlap: str,
    tags: tuple[str, ...],
    max_workers: int | None,
    given: tuple[str, ...],
) -> None:
    parameters = parameters_of(given)
    definition = configured(load_flow(target))
    own: Any = next(iter(definition.flow_decorators("schedule")), None)
    due = cron or (own.schedule if own else None)
    if due is None:
        raise InvalidInput(
            f"Nothing says when {definition.name} is to be run: give it @schedule, or --cron."
        )
    zone = timezone or (own.timezone if own and not cron else None)
    fields = {
        "cron": due,
        "timezone": zone,
        "missed": missed,
        "overlap": overlap,
        "run": send(server, definition, parameters, tags, max_workers),
    }
    schedule = ask(server, "PUT", _path(name or definition.name), json.dumps(fields).encode())
    click.echo(
        printable(f"{schedule['name']} runs {schedule['flow']} next at {_when(schedule['next'])}.")
    )


def _list(server: str) -> None:
    rows = [
        (
            each["name"],
            each["flow"],
            f"{each['cron']} {each['timezone']}",
            "paused" if each["paused"] else _when(each["next"]),
            each["latest"] or "",
        )
        for each in ask(server, "GET", "/v1/schedules")["schedules"]
    ]
    if rows:
        tables.show(("NAME", "FLOW", "WHEN", "NEXT", "LATEST RUN"), rows)
    else:
        click.echo("No schedules.")


def _show(name: str, server: str) -> None:
    click.echo(json.dumps(ask(server, "GET", _path(name)), indent=2))


def _pause(name: str, server: str) -> None:
    ask(server, "PATCH", _path(name), b'{"paused": true}')
    click.echo(f"{name} is paused.")


def _resume(name: str, server: str) -> None:
    schedule = ask(server, "PATCH", _path(name), b'{"paused": false}')
    click.echo(f"{name} goes on, next at {_when(schedule['next'])}.")


def _trigger(name: str, server: str) -> None:
    click.echo(ask(server, "POST", f"{_path(name)}/runs", b"")["run"])


def _delete(name: str, server: str) -> None:
    ask(server, "DELETE", _path(name))
    click.echo(f"{name} is deleted; its runs stay.")


def _path(name: str) -> str:
    return f"/v1/schedules/{quote(name, safe='')}"


def _when(at: float | None) -> str:
    return "never again" if at is None else tables.local(at)
