"""`aflow server`: accept flows over HTTP, and run them on this machine."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from aflow._core.clock import SystemClock
from aflow._core.private_folders import make_private
from aflow._core.settings import Settings, path_in
from aflow.cli.options import count_option, flag, option, port_option, seconds_option
from aflow.errors import InvalidSetting
from aflow.metadata import tokens
from aflow.metadata.factory import open_metadata, open_to_serve
from aflow.queue.factory import open_queue
from aflow.server.recovery import KIND
from aflow.server.runs import Runs, RunsLocation
from aflow.storage.blobs import BlobStore
from aflow.storage.factory import open_store, store_to_copy

if TYPE_CHECKING:
    from aflow.metadata.base import MetadataStore
    from aflow.server.metaflow.api import MetaflowApi
    from aflow.server.serve import Certificate

_HELP = """Run flows that clients submit over HTTP (aflow submit), each in its own process.

Clients send a token of `aflow token create`, or a key of AFLOW_SERVICE_AUTH_KEY (several keys are
separated by commas). A server on 127.0.0.1, the default, needs neither: it creates a token in
~/.aflowconfig, which your own commands send. On SIGTERM it waits --grace seconds for active runs;
the next server, or another one with the same metadata, recovers the others.

\b
  aflow server
  AFLOW_SERVICE_AUTH_KEY=... aflow server --host 0.0.0.0 --port 8180
"""


def server(echo: Callable[[str], object] = click.echo) -> click.Command:
    """Return the command `server`.

    Args:
        echo: Called with the line `Server on URL` when the server listens.
    """
    return click.Command(
        "server",
        params=[
            *listen_options(8180),
            option(
                "--metadata",
                metavar="URL",
                help="The metadata: postgresql://..., sqlite:////path or https://...  "
                "[default: in .aflow]",
            ),
            option(
                "--storage",
                metavar="URL",
                help="The datastore: s3://bucket/prefix or file:///path.  [default: .aflow]",
            ),
            option(
                "--queue",
                metavar="URL",
                help="The queue whose workers run the tasks.  [default: local processes]",
            ),
            count_option(
                "--max-workers",
                help="Default for the most tasks of a run at a time.  [default: 16]",
            ),
            option("--datastore-root", metavar="PATH", help="Folder of the local datastore."),
            option(
                "--max-runs",
                type=click.IntRange(1, 10_000),
                default=16,
                metavar="N",
                help="The most active runs.",
            ),
            seconds_option(
                "--grace", "How long active runs may continue after SIGTERM.", default=30.0
            ),
            seconds_option(
                "--recovery-timeout", "When a run that cannot be recovered fails.", default=3600.0
            ),
            flag(
                "--no-auth",
                help="Require no token: every user and program of this machine can run code as "
                "you.",
            ),
            *tls_options(),
        ],
        callback=partial(_serve, echo),
        help=_HELP,
    )


def listen_options(port: int) -> list[click.Option]:
    """Return the options for the address of a server.

    Args:
        port: The default port.
    """
    return [
        option("--host", metavar="HOST", default="127.0.0.1", help="The address to listen on."),
        port_option("The port to listen on; 0: a free one.", port),
    ]


def tls_options() -> list[click.Option]:
    """Return the options for the certificate of a server."""
    return [
        option(
            "--tls-cert",
            metavar="FILE",
            help="Certificate for https in PEM format; it may be replaced at any time.",
        ),
        option(
            "--tls-key", metavar="FILE", help="Private key of the certificate, without a password."
        ),
    ]


def certificate(cert: str | None, key: str | None) -> Certificate | None:
    """Return the certificate of the options; None if none is given.

    Args:
        cert: The path of the certificate (--tls-cert); None if it is not given.
        key: The path of its private key (--tls-key); None if it is not given.

    Raises:
        InvalidSetting: If only one of the two is given.
    """
    from aflow.server.serve import Certificate  # the help must work without the extra server

    if (cert is None) != (key is None):
        raise InvalidSetting("TLS needs both --tls-cert and --tls-key.")
    return Certificate(cert, key) if cert and key else None


def _serve(
    echo: Callable[[str], object],
    host: str,
    port: int,
    datastore_root: str | None,
    metadata: str | None,
    storage: str | None,
    queue: str | None,
    max_workers: int | None,
    max_runs: int,
    grace: float,
    recovery_timeout: float,
    no_auth: bool,
    tls_cert: str | None,
    tls_key: str | None,
) -> None:
    from aflow.server.api import Daemon
    from aflow.server.serve import Listen, serve

    log_to_stderr()
    settings = Settings.load(
        **_storage(storage, datastore_root),
        metadata=metadata,
        queue=queue,
        executor=None if queue is None else "queue",
        max_workers=max_workers,
    )
    tls = certificate(tls_cert, tls_key)
    blobs = BlobStore(open_store(settings.storage_url), durable=settings.durability == "power")
    with closing(open_metadata(settings.metadata_url, settings.durability)) as records:
        make_private(settings.root)
        keys = _keys(host, settings, records, no_auth)
        place = _place(settings)
        place.prepare()
        listen = Listen(
            host=host,
            port=port,
            tokens=keys,
            grace=grace,
            tls=tls,
            recovery=recovery_timeout,
            anonymous=no_auth,
        )
        daemon = Daemon(
            runs=Runs(place, blobs, max_runs),
            blobs=blobs,
            metadata=records,
            queue=None if settings.queue is None else partial(open_queue, settings.queue),
            shown=open_to_serve(records, settings.metadata_url),
            keys=settings.signing_key_bytes,
        )
        service = _metadata_service(settings.metadata_url, settings.durability, records)
        serve("Server", listen, echo, records, service, daemon)


def _keys(host: str, settings: Settings, records: Any, no_auth: bool) -> Sequence[str]:
    """Return the keys that clients may send. Raises InvalidSetting if the server would be open to
    others without a key."""
    from aflow.server.auth import check_guarded, is_loopback

    keys = tuple(each.reveal() for each in settings.service_auth_keys)
    check_guarded(host, keys, records, anonymous=no_auth)
    if no_auth and keys:
        raise InvalidSetting(
            "--no-auth asks for no token, but AFLOW_SERVICE_AUTH_KEY names some: leave one out."
        )
    if no_auth or keys or not is_loopback(host):
        return keys
    return [tokens.local_token()]


def _place(settings: Settings) -> RunsLocation:
    local = settings.datastore == "local"
    variables = {
        "DEFAULT_DATASTORE": settings.datastore,
        "DATASTORE_ROOT": str(settings.root) if local else settings.storage_url,
        "DEFAULT_METADATA": settings.metadata_url,
        "HOLDER_KIND": KIND,
        "EXECUTOR": settings.executor,
        "RUN_MAX_WORKERS": str(settings.max_workers),
    }
    if settings.queue is not None:
        variables["QUEUE"] = settings.queue
    # Runs do not need the keys of clients, unless they use a metadata service themselves.
    is_service = settings.metadata_url.startswith(("http://", "https://"))
    secret = () if is_service else ("AFLOW_SERVICE_AUTH_KEY", "METAFLOW_SERVICE_AUTH_KEY")
    return RunsLocation(
        settings.root, {f"AFLOW_{key}": value for key, value in variables.items()}, secret
    )


def _storage(url: str | None, root: str | None) -> dict[str, Any]:
    """Return the settings of the datastore."""
    if url is None:
        return {"datastore_root": root}
    if root is not None:
        raise InvalidSetting("Give --storage or --datastore-root, not both.")
    if url.startswith("s3://"):
        return {"datastore": "s3", "datastore_root": url}
    if url.startswith("file:///"):
        return {"datastore": "local", "datastore_root": path_in(url.removeprefix("file://"))}
    raise InvalidSetting(f"--storage {url!r}: use s3://bucket/prefix or file:///path.")


def _metadata_service(url: str, durability: str, metadata: MetadataStore) -> MetaflowApi | None:
    """Return the metadata service that uses the same database; None if the metadata is a
    service."""
    from aflow.server.metaflow.api import MetaflowApi  # the help must work without the extra server
    from aflow.server.metaflow.database import open_database

    if url.startswith(("http://", "https://")):
        return None  # clients use that service directly
    database = open_database(url, durability)
    return MetaflowApi(database, SystemClock(), metadata, open_store=store_to_copy)


# The log of a server, on stderr.
#
# Names in requests, and the output of runs before they start, are untrusted. A line of the log must
# be recognizable as the server's own: control characters are escaped, and continuation lines are
# indented.

_ODD = re.compile(r"[^ -~\n]")


class LogFormatter(logging.Formatter):
    """Formats records with time and level, and escapes invisible characters."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the lines of a record.

        Args:
            record: The log record.
        """
        return _ODD.sub(_spelled, super().format(record)).replace("\n", "\n    ")


def _spelled(found: re.Match[str]) -> str:
    character = found[0]
    if character.isprintable():
        return character
    return character.encode("unicode_escape", "surrogatepass").decode()


def log_to_stderr() -> None:
    """Write the log of this process, from level `INFO`, to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LogFormatter("%(asctime)s %(levelname)s %(message)s"))
    logging.getLogger().addHandler(handler)
    for name in ("aflow", "asyncio", "aiohttp.server"):
        logging.getLogger(name).setLevel(logging.INFO if name == "aflow" else logging.WARNING)
