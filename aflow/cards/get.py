"""get_cards: the cards of a task that has run, for programs and notebooks."""

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
    """One card: `type`, `id`, `hash`, and its page as `html`. In a notebook it shows itself.

    `from_resumed` says that it was looked for at a task whose result was reused, from the task
    `origin_pathspec`, whose card it is."""

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
        """Return the page."""
        return self.html

    @property
    def html(self) -> str:
        """The page."""
        return bytes(self._place.get(self._stored.name)).decode("utf-8", "surrogatepass")

    def get_data(self) -> Any:
        """Return the data of the card's latest refresh (`data`, `reload_token`, `created_on`); None
        for a card that was not refreshed."""
        return store.data_of(self._place, self._stored)

    @property
    def path(self) -> str:
        """The name of its object in the store."""
        return self._stored.name

    def resumed(self) -> FoundCard:
        """Return the same card, as that of a task that has reused the result of this one's."""
        return FoundCard(self._place, self._stored, self.pathspec, self.pathspec)

    def write(self, path: Path) -> None:
        """Write the page to a file.

        Args:
            path: The file to write; one that is there is replaced.
        """
        path.write_text(self.html, encoding="utf-8", errors="surrogatepass")

    def view(self) -> tuple[Path, bool]:
        """Show the page in a browser.

        Returns:
            The file that it is in now, and whether a browser was found.
        """
        # A new name: other users who may write to the folder of temporary files cannot guess it.
        name = self.pathspec.replace("/", "-")
        descriptor, file = mkstemp(".html", f"{name}-{self.hash}-")
        os.close(descriptor)
        path = Path(file)
        self.write(path)
        return path, webbrowser.open(path.as_uri())

    def _repr_html_(self) -> str:
        from html import escape

        frame = "width:100%;height:40rem;border:0"
        # Without allow-same-origin its scripts cannot reach the notebook that shows it.
        frame = f'style="{frame}" sandbox="allow-scripts allow-popups"'
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
    """Return the cards of a task (or of the task of this pathspec), those of this `id` and `type`
    alone if they are given. Those of a task whose result was reused are its origin's, unless
    `follow_resumed` is False.

    Args:
        task: A task of the client, or its pathspec.
        id: The id of the card; None for none.
        type: The type of card; None for all types.
        follow_resumed: Whether the cards of a task whose result was reused are those of the
            original task.

    Raises:
        NotFound: For a task that is not there.
    """
    found = ClientTask(task, _namespace_check=False) if isinstance(task, str) else task
    if follow_resumed and found.origin_pathspec is not None:
        try:
            theirs = get_cards(found.origin_pathspec, id, type)
        except NotFound:  # the origin is gone, and its cards with it
            return CardContainer()
        return CardContainer(each.resumed() for each in theirs)
    place = found._source.blobs.store
    folder = store.prefix(*found.pathspec.split("/"))
    cards = [FoundCard(place, each, found.pathspec) for each in store.listed(place, folder)]
    return CardContainer(
        each for each in cards if id in (None, each.id) and type in (None, each.type)
    )
