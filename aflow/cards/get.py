"""Access to the cards of tasks for programs and notebooks: `get_cards`."""

from __future__ import annotations

import os
import webbrowser
from pathlib import Path
from tempfile import mkstemp
from typing import TYPE_CHECKING, Any

from aflow.client import Task as ClientTask
from aflow.errors import NotFound
from aflow.storage import cards as store

if TYPE_CHECKING:
    from aflow.client import Task
    from aflow.storage.base import ObjectStore


class FoundCard:
    """A stored card: `type`, `id`, `hash`, and its page as `html`. Notebooks display it.

    `from_resumed` is True if the requested task reused the result of the task `origin_pathspec`, to
    which the card belongs."""

    def __init__(
        self,
        place: ObjectStore,
        stored: store.StoredCard,
        pathspec: str,
        origin_pathspec: str | None = None,
    ) -> None:
        self._place = place
        self._stored = stored
        self.pathspec = pathspec
        self.type = stored.type
        self.id = stored.id or None
        self.hash = stored.hash
        self.origin_pathspec = origin_pathspec
        self.from_resumed = origin_pathspec is not None

    def get(self) -> str:
        """Return the page as HTML."""
        return self.html

    @property
    def html(self) -> str:
        """The page as HTML."""
        return bytes(self._place.get(self._stored.name)).decode("utf-8", "surrogatepass")

    def get_data(self) -> Any:
        """Return the data of the card's latest refresh (`data`, `reload_token`, `created_on`), or
        None."""
        return store.data_of(self._place, self._stored)

    @property
    def path(self) -> str:
        """The name of the card's object in the datastore."""
        return self._stored.name

    def resumed(self) -> FoundCard:
        """Return this card as a card of a task that has reused the result of its task."""
        return FoundCard(self._place, self._stored, self.pathspec, self.pathspec)

    def write(self, path: Path) -> None:
        """Write the page to a file.

        Args:
            path: The path of the file; an existing file is overwritten.
        """
        path.write_text(self.html, encoding="utf-8", errors="surrogatepass")

    def view(self) -> tuple[Path, bool]:
        """Open the page in a browser.

        Returns:
            The temporary file with the page, and whether a browser was found.
        """
        # A random name, which other users with access to the temporary folder cannot predict.
        name = self.pathspec.replace("/", "-")
        descriptor, file = mkstemp(".html", f"{name}-{self.hash}-")
        os.close(descriptor)
        path = Path(file)
        self.write(path)
        return path, webbrowser.open(path.as_uri())

    def _repr_html_(self) -> str:
        from html import escape

        # Without allow-same-origin, scripts of the card cannot access the notebook.
        frame = 'style="width:100%;height:40rem;border:0" sandbox="allow-scripts allow-popups"'
        return f'<iframe {frame} srcdoc="{escape(self.html, quote=True)}"></iframe>'

    def __repr__(self) -> str:
        id_part = f", id={self.id!r}" if self.id else ""
        return f"<card of {self.pathspec}: type={self.type!r}{id_part}>"


class CardContainer(tuple[FoundCard, ...]):
    """The cards of a task, in the order of its decorators."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        return "".join(each._repr_html_() for each in self)

    def __repr__(self) -> str:
        return repr([*self])


def get_cards(
    task: Task | str,
    id: str | None = None,
    type: str | None = None,
    follow_resumed: bool = True,
) -> CardContainer:
    """Return the cards of a task, optionally only those with an `id` or a `type`.

    Args:
        task: A task of the client, or its pathspec.
        id: The id of the cards; None for all cards.
        type: The card type; None for all types.
        follow_resumed: Whether to return the cards of the original task if the result of the task
            was reused.

    Raises:
        NotFound: If the task does not exist.
    """
    found = ClientTask(task, _namespace_check=False) if isinstance(task, str) else task
    if follow_resumed and found.origin_pathspec is not None:
        try:
            theirs = get_cards(found.origin_pathspec, id, type)
        except NotFound:  # the original task was deleted with its cards
            return CardContainer()
        return CardContainer(each.resumed() for each in theirs)
    place = found._source.blobs.store
    folder = store.prefix(*found.pathspec.split("/"))
    cards = [FoundCard(place, each, found.pathspec) for each in store.listed(place, folder)]
    return CardContainer(
        each for each in cards if id in (None, each.id) and type in (None, each.type)
    )
