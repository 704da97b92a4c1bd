"""`aflow ui`: show the runs of this folder, or of a server, in a browser."""

from __future__ import annotations

import webbrowser
from threading import Thread

import click

from aflow._core.ids import Pathspec
from aflow._core.settings import Settings, looked_up
from aflow.cli.options import flag, option, port_option
from aflow.cli.server import server as serve
from aflow.cli.server_requests import DEFAULT_SERVER, ask
from aflow.errors import AflowError, InvalidInput

_HELP = """Show runs in a browser: those of this folder, or of a server (--server).

If a server of this folder is running, its pages are opened. Otherwise a server is started on
127.0.0.1, which ends with Ctrl-C. The browser is logged in by a link that works once.

\b
  aflow ui                       all runs
  aflow ui MyFlow/1234           one run
  aflow ui --no-browser          print the link
"""


def ui() -> click.Command:
    """Return the command `ui`."""
    return click.Command(
        "ui",
        params=[
            click.Argument(["path"], metavar="[FLOW/RUN]", required=False),
            option(
                "--server",
                metavar="URL",
                default=lambda: looked_up("SERVER"),
                help="Open the pages of this server.  [default: AFLOW_SERVER, else this folder's]",
            ),
            port_option("Port of the server that is started.  [default: a free one]", 0),
            flag("--no-browser", help="Print the login link, and open no browser."),
        ],
        callback=_ui,
        help=_HELP,
    )


def _ui(path: str | None, server: str | None, port: int, no_browser: bool) -> None:
    target = _target(path)
    if server:
        _open(server, target, no_browser)
        return
    settings = Settings.load()
    if _serves(DEFAULT_SERVER, settings.metadata_url):
        _open(DEFAULT_SERVER, target, no_browser)
        return

    def listens(line: str) -> None:
        url = line.split()[-1]
        # In a thread: the server, which must respond to it, runs in this event loop.
        Thread(target=_opened, args=(url, target, no_browser), daemon=True).start()

    click.echo("Starting a server of this folder; Ctrl-C ends it.")
    argv = ["--port", str(port), "--grace", "5"]
    serve(listens).main(argv, prog_name="aflow server", standalone_mode=False)


def _opened(url: str, target: str, no_browser: bool) -> None:
    try:
        _open(url, target, no_browser)
    except AflowError as error:
        click.echo(f"The pages cannot be opened by themselves ({error}): they are at {url}/ui/.")


def _target(path: str | None) -> str:
    """Return the page of a pathspec, relative to /ui/."""
    if path is None:
        return ""
    spec: Pathspec = Pathspec.parse(path)
    if spec.run is None:
        return f"flows/{spec.flow}"
    if spec.task is not None:
        return f"runs/{spec.flow}/{spec.run}/tasks/{spec.task}"
    if spec.step is not None:
        raise InvalidInput(f"{path} is a step: name a flow, a run (Flow/1), or a task.")
    return f"runs/{spec.flow}/{spec.run}"


def _serves(server: str, metadata_url: str) -> bool:
    """Return whether a server responds at this URL, and has this metadata."""
    try:
        return bool(ask(server, "GET", "/v1/server")["metadata"] == metadata_url)
    except (AflowError, KeyError, TypeError, ValueError):  # no server, or one of another program
        return False


def _open(server: str, target: str, no_browser: bool) -> None:
    code = ask(server, "POST", "/ui/links", b"{}")["code"]
    to = f"&to={target}" if target else ""
    link = f"{server.rstrip('/')}/ui/login?code={code}{to}"
    if no_browser:
        click.echo(link)
    elif webbrowser.open(link):
        click.echo(f"Opened {server.rstrip('/')}/ui/ in the browser.")
    else:
        click.echo(f"No browser was found. Open this link within a minute; it works once:\n{link}")
