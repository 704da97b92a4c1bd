"""`aflow metadata-service`: serve metadata over HTTP to clients of Metaflow and aflow."""

from __future__ import annotations

import logging
from contextlib import ExitStack, closing, suppress
from typing import TYPE_CHECKING

import click

from aflow._core.clock import SystemClock
from aflow._core.settings import Settings
from aflow.cli.options import option
from aflow.cli.server import certificate, listen_options, log_to_stderr, tls_options
from aflow.errors import InvalidSetting
from aflow.metadata.factory import open_metadata
from aflow.storage.factory import store_to_copy

if TYPE_CHECKING:
    from aflow.metadata.base import MetadataStore

_log = logging.getLogger("aflow.server.metaflow")

_HELP = """Serve metadata over HTTP, as Metaflow's own service does.

Metaflow uses it with METAFLOW_DEFAULT_METADATA=service and METAFLOW_SERVICE_URL.
AFLOW_SERVICE_AUTH_KEY is the key that clients have to send (several: with commas between them), or
tokens of `aflow token create`. Without either the service listens to this machine alone, and every
user of the machine can read and change what it keeps.

\b
  aflow metadata-service --metadata sqlite:///srv/metadata.db
  aflow metadata-service --metadata postgresql://aflow@db/aflow --host 0.0.0.0 --port 8080
"""


def metadata_service() -> click.Command:
    """Return the command `metadata-service`."""
    return click.Command(
        "metadata-service",
        params=[
            option(
                "--metadata",
                "--database",
                "metadata",
                metavar="URL",
                help="sqlite:///path or postgresql://...  [default: .aflow/metadata.db]",
            ),
            *listen_options(8080),
            *tls_options(),
        ],
        callback=_serve,
        help=_HELP,
    )


def _serve(
    metadata: str | None, host: str, port: int, tls_cert: str | None, tls_key: str | None
) -> None:
    from aflow.server.auth import check_guarded
    from aflow.server.metaflow.api import MetaflowApi
    from aflow.server.metaflow.database import open_database
    from aflow.server.serve import Listen, serve

    log_to_stderr()
    settings = Settings.load()
    url = metadata or settings.local_metadata_url
    tls = certificate(tls_cert, tls_key)
    with ExitStack() as opened:
        store: MetadataStore | None = None
        with suppress(InvalidSetting):  # the database is not supported for metadata of aflow
            store = opened.enter_context(closing(open_metadata(url, settings.durability)))
        database = opened.enter_context(closing(open_database(url, settings.durability)))
        keys = tuple(each.reveal() for each in settings.service_auth_keys)
        check_guarded(host, keys, store, anonymous=False)
        if not keys:
            _log.warning(
                "Without AFLOW_SERVICE_AUTH_KEY or tokens every user of this machine can read "
                "and change what is kept here."
            )
        service = MetaflowApi(database, SystemClock(), store, open_store=store_to_copy)
        listen = Listen(host, port, keys, 0.0, tls, anonymous=True)
        serve("Metadata service", listen, click.echo, store, service)
