"""`aflow recover Flow/run`: continue a run whose coordinator has crashed."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import click

from aflow._core.settings import Settings, with_own_passwords
from aflow.cli import loading
from aflow.cli.main import flow_group
from aflow.cli.options import option
from aflow.cli.selection import recorded_run, run_pathspec
from aflow.errors import CodePackageError, InvalidInput
from aflow.metadata.base import SPIN
from aflow.metadata.factory import open_metadata
from aflow.storage.blobs import BlobStore
from aflow.storage.factory import open_recorded_store
from aflow.task import code_package

if TYPE_CHECKING:
    from aflow.metadata.base import RunRecord

_ONCE = ("--runner-attribute-file", "--run-id-file", "--parameters-file")
_HELP = """Recover a run whose coordinator has died, with its own code and command line.

Finished tasks are kept. Tasks on workers and in jobs continue. Tasks in processes that ended with
their coordinator run again. A run whose coordinator is alive is refused: its lease expires 10
seconds after the last heartbeat.

\b
  aflow recover MyFlow/1234
"""


def recover() -> click.Command:
    """Return the command `recover`."""
    return click.Command(
        "recover",
        params=[
            click.Argument(["run"], metavar="FLOW/RUN"),
            option("--metadata", metavar="URL", help="The metadata: local, service, or a URL."),
            option("--datastore-root", metavar="PATH", help="The `.aflow` folder."),
        ],
        callback=_recover,
        help=_HELP,
    )


def _recover(run: str, metadata: str | None, datastore_root: str | None) -> object:
    spec = run_pathspec(run)
    settings = Settings.load(metadata=metadata, datastore_root=datastore_root)
    url = settings.metadata_url
    with closing(open_metadata(url, settings.durability, read_only=True)) as opened:
        record = recorded_run(opened, spec)
    if record.kind == SPIN:
        raise InvalidInput(f"{spec} is a run of a single step, by `spin`: spin the step again.")
    target = f"{_unpacked(record, settings)}:{record.flow}"
    lasting = _lasting(record.settings.get("argv", ["run"]))
    # Passwords are not recorded: those of this program's settings are used.
    again = [
        *(with_own_passwords(each, settings) for each in lasting),
        "--aflow-recover",
        record.run,
    ]
    places = [("--metadata", metadata), ("--datastore-root", datastore_root)]
    given = [argument for name, value in places if value is not None for argument in (name, value)]
    argv = [*again, *given]
    return flow_group(loading.run_file(target, argv), target, argv)


def _lasting(argv: Sequence[str]) -> list[str]:
    """Return the arguments without those that only apply to the process that started the run."""
    lasting: list[str] = []
    rest = iter(argv)
    for argument in rest:
        if argument in _ONCE:
            next(rest, None)
        elif not argument.startswith(tuple(f"{each}=" for each in _ONCE)):
            lasting.append(argument)
    return lasting


def _unpacked(record: RunRecord, settings: Settings) -> Path:
    """Unpack the code of the run, and return the path of the flow's file."""
    code = record.settings.get("code", {})
    if "key" not in code:
        raise CodePackageError(
            f"The code of {record.flow}/{record.run} was not kept with it "
            f"({code.get('left_out', 'it is of an older aflow')}): resume the run instead."
        )
    blobs = BlobStore(open_recorded_store(record.settings["storage"]))
    folder = settings.cache / "code"
    return code_package.unpacked(blobs, code["key"], folder) / code_package.inside(
        code.get("script")
    )
