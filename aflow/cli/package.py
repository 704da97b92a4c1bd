"""`package`: show, list or save the code package of the flow."""

from __future__ import annotations

import gzip
from pathlib import Path

import click

from aflow._core.version import __version__
from aflow._core.wording import size_text
from aflow.cli.errors import printable
from aflow.cli.options import Subcommand, option, write_file
from aflow.cli.session import Session
from aflow.task import code_package


def package_commands() -> dict[str, Subcommand]:
    """Return the subcommands of `package`, by name."""
    archive = option(
        "--archive/--no-archive",
        default=False,
        help="Print the names in the archive.  [default: paths on this machine]",
    )
    path = click.Argument(["path"], type=click.Path(dir_okay=False))
    return {
        "info": Subcommand("Show the contents and the size of the code package.", [], info),
        "list": Subcommand("List the files of the code package.", [archive], list_),
        "save": Subcommand("Write the code package to a file (.tgz: compressed).", [path], save),
    }


def info(session: Session) -> None:
    """Print the size of the package, its number of files, and their folder."""
    definition = session.define()
    suffixes = session.settings().package_suffixes
    files = code_package.members(definition, suffixes)
    size = len(code_package.pack(files))
    click.echo(f"Package size: {size_text(size)}\nNumber of files: {len(files)}\n")
    click.echo(f"aflow version: {__version__}\n")
    click.echo(f"User code in flow {definition.name}:")
    click.echo(f"  - Packaged from directory {Path(definition.file).absolute().parent}/")
    click.echo(f"  - Filtered by suffixes: {', '.join(suffixes)}")


def list_(session: Session, archive: bool) -> None:
    """Print one line per file."""
    session.note("Files included in the code package (change with --package-suffixes):")
    files = code_package.members(session.define(), session.settings().package_suffixes)
    for name, path in files.items():
        click.echo(printable(name if archive else str(path)))


def save(session: Session, path: str) -> None:
    """Write the package to a file."""
    files = code_package.members(session.define(), session.settings().package_suffixes)
    data = code_package.pack(files)
    if path.endswith("gz"):
        data = gzip.compress(data, mtime=0)
    write_file(path, data)
    session.note(f"Code package saved in {path}")
