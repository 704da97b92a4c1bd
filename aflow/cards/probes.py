"""Card types and components for tests of cards: each does one thing that can be compared.

Metaflow ships types of these names, and tests of flows use them.
"""

from __future__ import annotations

import hashlib
import json
import random
import string
import time
from collections.abc import Mapping, Sequence
from typing import Any

from aflow.cards.card import Card
from aflow.cards.components import Component

_SEPARATOR = "$&#!!@*"
_PIXEL = (  # a PNG of one pixel
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNoAAAAggCBd81ytgAAAABJRU5ErkJggg=="
)


class TestStringComponent(Component):
    """A text."""

    REALTIME_UPDATABLE = True

    def __init__(self, text: str) -> None:
        self._text = text

    def render(self) -> str:
        """The text, as it is."""
        return str(self._text)

    def update(self, text: str) -> None:
        """Show another text."""
        self._text = text


class TestJSONComponent(Component):
    """Values for JSON."""

    REALTIME_UPDATABLE = True

    def __init__(self, data: Any) -> None:
        self._data = data

    def render(self) -> Any:
        """The values, as they are."""
        return self._data

    def update(self, data: Any) -> None:
        """Show other values."""
        self._data = data


class TestPathSpecCard(Card):
    """The pathspec, and some letters that differ each time."""

    type = "test_pathspec_card"

    def render(self, task: Any) -> str:
        """Both."""
        letters = random.choices(string.ascii_uppercase + string.digits, k=6)
        return f"{task.pathspec} {''.join(letters)}"


class _ComponentsCard(Card):
    def __init__(self, components: Sequence[Any] = (), **rest: Any) -> None:
        super().__init__(components=components)

    def render(self, task: Any) -> str:
        """The components, between separators."""
        return _SEPARATOR.join(map(str, self.components))


class TestEditableCard(_ComponentsCard):
    """Components, added without an id."""

    type = "test_editable_card"
    ALLOW_USER_COMPONENTS = True


class TestEditableCard2(_ComponentsCard):
    """Another one."""

    type = "test_editable_card_2"
    ALLOW_USER_COMPONENTS = True


class TestNonEditableCard(_ComponentsCard):
    """Components, added by the id of the card alone."""

    type = "test_non_editable_card"


class TestMockCard(Card):
    """One artifact, which the options name."""

    type = "test_mock_card"

    def __init__(self, options: Mapping[str, Any] | None = None, **rest: Any) -> None:
        super().__init__({"key": "dummy_key", **(options or {})})

    def render(self, task: Any) -> str:
        """Its value."""
        return str(task[self.options["key"]].data)


class TestErrorCard(Card):
    """A card that fails."""

    type = "test_error_card"

    def render(self, task: Any) -> str:
        """Nothing."""
        raise RuntimeError("Unknown Things Happened")


class TestTimeoutCard(Card):
    """A card that takes as long as the options say."""

    type = "test_timeout_card"

    def __init__(self, options: Mapping[str, Any] | None = None, **rest: Any) -> None:
        super().__init__({"timeout": 50, **(options or {})})

    def render(self, task: Any) -> str:
        """The pathspec, late."""
        time.sleep(self.options["timeout"])
        return str(task.pathspec)


class TestRefreshCard(Card):
    """What refreshes were given."""

    type = "test_refresh_card"
    ALLOW_USER_COMPONENTS = True
    RUNTIME_UPDATABLE = True
    RELOAD_POLICY = Card.RELOAD_POLICY_ALWAYS

    def render(self, task: Any) -> str:
        """The latest data."""
        return self.render_runtime(task, self.runtime_data)

    def render_runtime(self, task: Any, data: Any) -> str:
        """The data as they are now."""
        return _page(self, task, data["user"])

    def refresh(self, task: Any, data: Any) -> Any:
        """All data."""
        return data


class TestRefreshComponentCard(_ComponentsCard):
    """The components as refreshes find them."""

    type = "test_component_refresh_card"
    ALLOW_USER_COMPONENTS = True
    RUNTIME_UPDATABLE = True
    RELOAD_POLICY = Card.RELOAD_POLICY_ONCHANGE

    def render(self, task: Any) -> str:
        """The components."""
        return _page(self, task, self.components)

    def refresh(self, task: Any, data: Any) -> Any:
        """The components by their ids."""
        return data["components"]

    def reload_content_token(self, task: Any, data: Any) -> str:
        """A digest of what the components hold."""
        if task.finished:
            return "final"
        return f"runtime-{_component_values_to_hash(data['components'])}"


class TestImageCard(Card):
    """A picture of one pixel."""

    type = "test_image_card"

    def render(self, task: Any) -> str:
        """The picture in a page."""
        return f"<html><img src='data:image/png;base64,{_PIXEL}' /></html>"


def _page(card: Card, task: Any, shown: Any) -> str:
    return (
        f"<html><script>var METAFLOW_RELOAD_TOKEN = {card.RELOAD_POLICY_TOKEN!r}</script>"
        f"<h1>{task.pathspec}</h1><h1>{json.dumps(shown)}</h1></html>"
    )


def _component_values_to_hash(components: Mapping[str, Mapping[str, Sequence[str]]]) -> str:
    """A digest of the texts in lists in components, without what names them."""
    # Their names are joined, and not what they name: so it is where tests compare it.
    texts = ("".join(key) for each in components.values() for key in each)
    return hashlib.sha256(",".join(texts).encode()).hexdigest()
