"""`tag`: add, remove, replace and list the tags of runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from aflow import client
from aflow._core.version import __version__
from aflow.cli.errors import printable
from aflow.cli.options import Subcommand, flag, option
from aflow.cli.session import Session
from aflow.compat import metaflow
from aflow.errors import InvalidInput, NamespaceMismatch, NotFound
from aflow.flow.spec import define

if TYPE_CHECKING:
    from aflow.client import Flow, Run
    from aflow.flow.spec import FlowSpec

_WIDTH = 120  # maximum columns of a listing
_GAP = 4


def tag_commands() -> dict[str, Subcommand]:
    """Return the subcommands of `tag`, by name."""
    tags = click.Argument(["tags"], nargs=-1, required=True)
    return {
        "add": Subcommand(
            "Add tags to a run.",
            [tags, *_which_run()],
            lambda session, tags, **run: _change(session, (), tags, **run),
        ),
        "remove": Subcommand(
            "Remove tags from a run.",
            [tags, *_which_run()],
            lambda session, tags, **run: _change(session, tags, (), **run),
        ),
        "replace": Subcommand(
            "Remove tags from a run and add others in one transaction.",
            [
                click.Argument(["pair"], nargs=-1, metavar="[OLD NEW]"),
                *_which_run(),
                option("--add", "to_add", multiple=True, metavar="TAG", help="A tag to add."),
                option(
                    "--remove", "to_remove", multiple=True, metavar="TAG", help="A tag to remove."
                ),
            ],
            replace,
        ),
        "list": Subcommand("List the tags of runs.", _list_parameters(), list_),
    }


def _which_run() -> list[click.Parameter]:
    return [
        option("--run-id", metavar="RUN", help="The run.  [required]"),
        option("--namespace", metavar="TAG", help="Namespace of the run.  [default: user:<you>]"),
    ]


def _list_parameters() -> list[click.Parameter]:
    return [
        click.Argument(["run"], required=False),
        option("--run-id", metavar="RUN", help="Only tags of this run."),
        flag("--all", "of_all", help="Tags of all runs of the flow.  [default]"),
        flag("--my-runs", help="Only tags of your own runs."),
        flag("--hide-system-tags", help="Do not show tags that aflow set."),
        flag("--group-by-tag", help="Show which runs have each tag."),
        flag("--group-by-run", help="Show which tags each run has."),
        flag("--flat", help="Print only tags, one per line."),
    ]


# ------------------------------------------------------------------ changes


def replace(
    session: Session,
    pair: tuple[str, ...],
    to_add: tuple[str, ...],
    to_remove: tuple[str, ...],
    **run: str | None,
) -> None:
    """Remove tags from the run and add others. Both are required, either as options, or as one tag
    and its replacement."""
    if pair and (len(pair) != 2 or to_add or to_remove):
        raise InvalidInput(
            "Give one tag and the one in its place (tag replace OLD NEW), or --remove and --add."
        )
    to_remove, to_add = (pair[:1], pair[1:]) if pair else (to_remove, to_add)
    if not to_remove:
        raise InvalidInput("Name a tag to remove: --remove TAG. To add alone: tag add TAG.")
    if not to_add:
        raise InvalidInput("Name a tag to add: --add TAG. To remove alone: tag remove TAG.")
    _change(session, to_remove, to_add, **run)


def _change(
    session: Session, to_remove: Iterable[str], to_add: Iterable[str], **which: str | None
) -> None:
    run = _run(session, **which)
    run.replace_tags(to_remove, to_add)
    session.note("Operation successful. New tags:")
    _print({run.pathspec: run.tags}, {run.pathspec: run.system_tags}, session)


def _run(session: Session, run_id: str | None, namespace: str | None) -> Run:
    """Return the run of the options; raises NotFound, NamespaceMismatch, InvalidInput."""
    own = session.settings().default_namespace
    flow = _flow(session, own if namespace is None else namespace)
    current = client.get_namespace()
    if run_id is None:
        latest = flow.latest_run
        known = f" The latest run in {current!r} is {latest.id}." if latest else ""
        raise InvalidInput(f"Name the run: --run-id RUN.{known}")
    try:
        return client.Run(f"{flow.id}/{run_id.removeprefix(flow.id + '/')}")
    except NamespaceMismatch as error:
        raise _not_in(f"Run {flow.id}/{run_id}", current) from error


def _flow(session: Session, namespace: str | None) -> Flow:
    """Return the client object of the flow; "" and None are the namespace of all users."""
    assert session.flow is not None
    client.metadata(session.settings().place)
    client.namespace(namespace or None)
    name = session.flow.__name__
    try:
        return client.Flow(name)
    except NamespaceMismatch as error:
        raise _not_in(f"Flow {name}", namespace) from error


def _not_in(what: str, namespace: str | None) -> NotFound:
    hint = "Name another with --namespace TAG, or everybody's with --namespace ''."
    return NamespaceMismatch(f"{what} is not in the namespace {namespace!r}. {hint}")


# ------------------------------------------------------------------ listing


def list_(
    session: Session,
    run: str | None,
    run_id: str | None,
    of_all: bool,
    my_runs: bool,
    hide_system_tags: bool,
    group_by_tag: bool,
    group_by_run: bool,
    flat: bool,
) -> None:
    """List the tags of a run, or of several runs: combined, by tag, or by run."""
    _refuse_both({"--all": of_all, "--my-runs": my_runs})
    _refuse_both({"--run-id": run_id is not None, "RUN": run is not None})
    _refuse_both({"--group-by-tag": group_by_tag, "--group-by-run": group_by_run, "--flat": flat})
    named = None if of_all or my_runs else run_id or run
    if named is None:
        own = session.settings().default_namespace
        runs = list(_flow(session, own if my_runs else None))
    else:
        runs = [_run(session, named, "")]
    tags, system = _grouped(runs, group_by_tag, group_by_run, hide_system_tags)
    if flat:
        # Programs written for Metaflow read them from stderr, below the line with the version.
        to_stderr = _is_written_for_metaflow(session.flow)
        if to_stderr:
            session.note(f"aflow {__version__} executing tag list")
        for tag in sorted(tag for group in tags.values() for tag in group):
            click.echo(printable(tag), err=to_stderr)
    else:
        _print(tags, system, session, by_tag=group_by_tag)


def _is_written_for_metaflow(flow: type[FlowSpec] | None) -> bool:
    """Return whether aflow replaces Metaflow here, and the flow's file mentions Metaflow."""
    if flow is None or not metaflow.is_installed():
        return False
    try:
        return b"metaflow" in Path(define(flow).file).read_bytes()
    except OSError:  # the flow has no file
        return False


def _refuse_both(given: dict[str, bool]) -> None:
    names = [name for name, is_given in given.items() if is_given]
    if len(names) > 1:
        raise InvalidInput(f"{names[0]} cannot be used together with {names[1]}: give one.")


Groups = dict[str, frozenset[str]]


def _grouped(
    runs: list[Run], by_tag: bool, by_run: bool, hide_system_tags: bool
) -> tuple[Groups, Groups]:
    """Return the texts under each heading: all of them, and those of the system."""
    if by_tag:
        system_tags = frozenset().union(*(run.system_tags for run in runs))
        runs_of: dict[str, set[str]] = {}
        for run in runs:
            for tag in run.user_tags if hide_system_tags else run.tags:
                runs_of.setdefault(tag, set()).add(run.pathspec)
        groups = {tag: frozenset(paths) for tag, paths in runs_of.items()}
        return groups, {tag: paths for tag, paths in groups.items() if tag in system_tags}
    system = {run.pathspec: frozenset() if hide_system_tags else run.system_tags for run in runs}
    tags = {run.pathspec: run.user_tags | system[run.pathspec] for run in runs}
    if by_run:
        return tags, system
    together = ",".join(tags)
    return (
        {together: frozenset().union(*tags.values())},
        {together: frozenset().union(*system.values())},
    )


# ------------------------------------------------------------------ printing


def _print(tags: Groups, system: Groups, session: Session, by_tag: bool = False) -> None:
    """Print all groups in order; with --quiet one line per group, for programs."""
    tags, system = _spelt_out(tags), _spelt_out(system)
    if session.top.get("quiet"):
        for group in sorted(tags):
            click.echo(" ; ".join(_fields(group, tags[group], system.get(group), by_tag)))
        return
    click.echo("\nSystem tags and tags; only tags can be modified\n" + "-" * 56 + "\n")
    for group in sorted(tags):
        own = group not in system
        if by_tag:
            click.echo(f"For tag {click.style(group, bold=own)}")
        elif len(tags) > 1:
            click.echo(f"For run {group}")
        bold = frozenset() if by_tag else tags[group] - system.get(group, frozenset())
        for line in _columns(sorted(tags[group]), bold):
            click.echo(line)
        click.echo()


def _spelt_out(groups: Groups) -> Groups:
    """Return the groups with control characters escaped: tags are untrusted."""
    return {printable(group): frozenset(map(printable, each)) for group, each in groups.items()}


def _fields(
    group: str, all_of: frozenset[str], system: frozenset[str] | None, by_tag: bool
) -> list[str]:
    if by_tag:
        return [f"{'user' if system is None else 'system'}:{group}", ",".join(sorted(all_of))]
    system = system or frozenset()
    return [group, ",".join(sorted(system)), ",".join(sorted(all_of - system))]


def _columns(texts: list[str], bold: frozenset[str]) -> Iterator[str]:
    """Format the texts in as many columns as fit, sorted downwards."""
    if not texts:
        return
    width = max(map(len, texts))
    columns = max(1, (_WIDTH + _GAP) // (width + _GAP))
    rows = -(-len(texts) // columns)
    for row in range(rows):
        cells = (click.style(text, bold=True) + " " * (width - len(text)) if text in bold
                 else text.ljust(width) for text in texts[row::rows])  # fmt: skip
        yield (" " * _GAP).join(cells).rstrip()
