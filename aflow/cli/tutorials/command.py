"""`aflow tutorials`: list, describe and copy the tutorials that are included in aflow."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from aflow.cli.options import Subcommand, command_group, flag, option
from aflow.errors import InvalidInput, NotFound

FOLDER = Path(__file__).parent


def tutorials() -> click.Command:
    """Return the command `tutorials`."""
    episode = option("--episode", metavar="NAME", help="Only this one.  [default: all]")
    to = option(
        "--dir", "folder", metavar="DIR", help="Target folder.  [default: ./aflow-tutorials]"
    )
    overwrite = flag("--overwrite", help="Replace existing files.")
    return command_group(
        "tutorials",
        "List, describe and copy short flows to learn from.",
        {
            "list": Subcommand("List the tutorials.", [], list_),
            "pull": Subcommand("Copy the tutorials into a folder.", [episode, to, overwrite], pull),
            "info": Subcommand("Describe a tutorial.", [click.Argument(["episode"])], info),
        },
    )


def list_() -> None:
    """Print one line per tutorial."""
    for folder in _episodes():
        click.echo(f"{folder.name:<15} {_title(folder)}")
    click.echo("\nCopy them here with: aflow tutorials pull")


def pull(episode: str | None, folder: str | None, overwrite: bool) -> None:
    """Copy one tutorial or all; copy nothing if one of them already exists."""
    target = Path(folder or "aflow-tutorials")
    chosen = _episodes() if episode is None else [_named(episode)]
    there = [target / each.name for each in chosen if (target / each.name).exists()]
    if there and not overwrite:
        raise InvalidInput(
            f"{there[0]} already exists: give --overwrite to replace it, or another --dir."
        )
    without = shutil.ignore_patterns("__pycache__")
    for each in chosen:
        try:
            shutil.copytree(each, target / each.name, dirs_exist_ok=True, ignore=without)
        except OSError as error:
            raise InvalidInput(f"{each.name} cannot be copied to {target}: {error}.") from error
        click.echo(f"{target / each.name}: {_title(each)}")
    click.echo("\nWhat each is about: aflow tutorials info NAME")


def info(episode: str) -> None:
    """Print the README of a tutorial."""
    click.echo((_named(episode) / "README.md").read_text("utf-8"), nl=False)


def _episodes() -> list[Path]:
    return sorted(path.parent for path in FOLDER.glob("*/README.md"))


def _named(name: str) -> Path:
    """Return the folder of the tutorial with this name or number."""
    for folder in _episodes():
        if name in (folder.name, folder.name.partition("-")[0], folder.name.partition("-")[2]):
            return folder
    raise NotFound(
        f"There is no tutorial {name!r}. There are: {', '.join(path.name for path in _episodes())}."
    )


def _title(folder: Path) -> str:
    first = (folder / "README.md").read_text("utf-8").splitlines()[0]
    return first.removeprefix("# ")
