"""`aflow code`: compare the code of a run with this folder or with another run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import click

from aflow._core.process import is_terminal
from aflow._core.settings import Settings
from aflow.cli.options import Subcommand, command_group, flag, option, write_file
from aflow.client import Run
from aflow.client.where import place_at
from aflow.errors import CodePackageError, InvalidInput
from aflow.task import code_package

_HELP = """Compare the code of a run with the files here or with another run, or get it.

\b
  aflow code diff MyFlow/1234              changes from the files here to those of the run
  aflow code diff-runs MyFlow/1 MyFlow/2   changes between two runs
  aflow code patch MyFlow/1234             write the changes to a file for `git apply`
  aflow code pull MyFlow/1234              extract the files into a new folder
"""


def code() -> click.Command:
    """Return the command `code`."""
    root = option("--datastore-root", metavar="PATH", help="Folder of the local datastore.")
    run = click.Argument(["run_pathspec"], metavar="FLOW/RUN")
    other = click.Argument(["target_run_pathspec"], metavar="FLOW/RUN")
    folder = option(
        "--dir", "folder", metavar="DIR", help="Target folder.  [default: flow_run_code]"
    )
    file = option(
        "--file-path", "--file_path", metavar="FILE", help="Target file.  [default: flow_run.patch]"
    )
    overwrite = flag("--overwrite", help="Replace an existing file.")
    return command_group(
        "code",
        _HELP,
        {
            "diff": Subcommand(
                "Show the changes from the files of this folder to those of the run.",
                [run, root],
                diff,
            ),
            "diff-runs": Subcommand(
                "Show the changes from one run to another.", [run, other, root], diff_runs
            ),
            "patch": Subcommand(
                "Write the changes to a file for `git apply`.", [run, file, overwrite, root], patch
            ),
            "pull": Subcommand("Get the code of a run.", [run, folder, root], pull),
        },
    )


def diff(run_pathspec: str, datastore_root: str | None) -> None:
    """Print the changes from this folder to the code of a run.

    Args:
        run_pathspec: The run, as `Flow/id`.
        datastore_root: The root of the local datastore; None for that of the settings.
    """
    click.echo(_against_here(run_pathspec, datastore_root, color=is_terminal(sys.stdout)), nl=False)


def diff_runs(run_pathspec: str, target_run_pathspec: str, datastore_root: str | None) -> None:
    """Print the changes between the code of two runs.

    Args:
        run_pathspec: The run, as `Flow/id`.
        target_run_pathspec: The run to compare it with, as `Flow/id`.
        datastore_root: The root of the local datastore; None for that of the settings.
    """
    with TemporaryDirectory(prefix="aflow-code-") as folder:
        _unpacked(run_pathspec, datastore_root, Path(folder, "a"))
        _unpacked(target_run_pathspec, datastore_root, Path(folder, "b"))
        click.echo(_difference(folder, color=is_terminal(sys.stdout)), nl=False)


def patch(
    run_pathspec: str, file_path: str | None, overwrite: bool, datastore_root: str | None
) -> None:
    """Write the changes from this folder to the code of a run to a file.

    Args:
        run_pathspec: The run, as `Flow/id`.
        file_path: The file to write; None to name it after the run.
        overwrite: Whether to replace an existing file.
        datastore_root: The root of the local datastore; None for that of the settings.

    Raises:
        InvalidInput: If the file exists already.
    """
    path = Path(file_path or f"{_label(run_pathspec)}.patch")
    if path.exists() and not overwrite:
        raise InvalidInput(f"{path} exists already: name another file, or give --overwrite.")
    write_file(path, _against_here(run_pathspec, datastore_root, color=False))
    click.echo(f"Patch saved in {path}. Apply it by: git apply --verbose {path}", err=True)


def pull(run_pathspec: str, folder: str | None, datastore_root: str | None) -> None:
    """Write the files of the run to a new folder.

    Args:
        run_pathspec: The run, as `Flow/id`.
        folder: The folder to create; None to name it after the run.
        datastore_root: The root of the local datastore; None for that of the settings.

    Raises:
        InvalidInput: If the folder exists already.
    """
    path = Path(folder or f"{_label(run_pathspec)}_code")
    if path.exists():
        raise InvalidInput(f"{path} exists already: name another folder with --dir.")
    _unpacked(run_pathspec, datastore_root, path)
    click.echo(f"Code downloaded to {path}", err=True)


# ------------------------------------------------------------------ helpers


def _against_here(run: str, root: str | None, *, color: bool) -> str:
    """Return the changes from the files here to those of the run; other files here are ignored."""
    with TemporaryDirectory(prefix="aflow-code-") as folder:
        theirs, ours = Path(folder, "b"), Path(folder, "a")
        _unpacked(run, root, theirs)
        ours.mkdir()
        for path in (each for each in theirs.rglob("*") if each.is_file()):
            name = path.relative_to(theirs)
            if Path(name).is_file():
                (ours / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(name, ours / name)
        return _difference(folder, color=color)


def _unpacked(run: str, root: str | None, folder: Path) -> None:
    place = place_at(Settings.load(datastore_root=root).place)
    found = Run(run, _namespace_check=False, _place=place).code
    if found is None:
        raise CodePackageError(
            f"The code of {run} was not kept: its flow was in no file, or there was too much in "
            "the same folder."
        )
    with found.tarball as archive:
        code_package.unpack_from(archive, folder)


def _difference(folder: str, *, color: bool) -> str:
    """Return the changes from `a` to `b` in the folder, in git's format, for `git apply`."""
    git = shutil.which("git")
    if git is None:
        raise CodePackageError("Comparing code needs git, which is not installed: install it.")
    colors = f"--color={'always' if color else 'never'}"
    command = [git, "diff", "--no-index", "--no-prefix", colors, "a", "b"]
    # Ignores the user's configuration of git, so that `git apply` can read the output.
    env = {"GIT_CONFIG_NOSYSTEM": "1", "HOME": folder, "PATH": os.defpath}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, check=False)
    if done.returncode not in (0, 1):
        raise CodePackageError(f"git could not compare the code: {done.stderr.decode().strip()}")
    return done.stdout.decode("utf-8", "replace")


def _label(run: str) -> str:
    return run.lower().replace("/", "_")
