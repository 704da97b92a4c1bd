"""Card types and components for tests of cards, each with one effect that can be compared.

Metaflow ships types with these names, and tests of flows use them.
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
    """A component with a string."""

    REALTIME_UPDATABLE = True

    def __init__(self, text: str) -> None:
        self._text = text

    def render(self) -> str:
        """Return the unescaped string."""
        return str(self._text)

    def update(self, text: str) -> None:
        """Replace the string."""
        self._text = text


class TestJSONComponent(Component):
    """A component with JSON values."""

    REALTIME_UPDATABLE = True

    def __init__(self, data: Any) -> None:
        self._data = data

    def render(self) -> Any:
        """Return the values unchanged."""
        return self._data

    def update(self, data: Any) -> None:
        """Replace the values."""
        self._data = data


class TestPathSpecCard(Card):
    """A card with the pathspec and some random letters."""

    type = "test_pathspec_card"

    def render(self, task: Any) -> str:
        """Return the pathspec and the letters."""
        letters = random.choices(string.ascii_uppercase + string.digits, k=6)
        return f"{task.pathspec} {''.join(letters)}"


class _ComponentsCard(Card):
    def __init__(self, components: Sequence[Any] = (), **rest: Any) -> None:
        super().__init__(components=components)

    def render(self, task: Any) -> str:
        """Return the components, joined by a separator."""
        return _SEPARATOR.join(map(str, self.components))


class TestEditableCard(_ComponentsCard):
    """A card of components that are added without naming an id."""

    type = "test_editable_card"
    ALLOW_USER_COMPONENTS = True


class TestEditableCard2(TestEditableCard):
    """A second card type with the same behaviour."""

    type = "test_editable_card_2"


class TestNonEditableCard(_ComponentsCard):
    """A card of components that are added only by the id of the card."""

    type = "test_non_editable_card"


class TestMockCard(Card):
    """A card with one artifact, named by the options."""

    type = "test_mock_card"

    def __init__(self, options: Mapping[str, Any] | None = None, **rest: Any) -> None:
        super().__init__({"key": "dummy_key", **(options or {})})

    def render(self, task: Any) -> str:
        """Return the value of the artifact."""
        return str(task[self.options["key"]].data)


class TestErrorCard(Card):
    """A card that fails."""

    type = "test_error_card"

    def render(self, task: Any) -> str:
        """Raise an error."""
        raise RuntimeError("Unknown Things Happened")


class TestTimeoutCard(Card):
    """A card that sleeps for the time in the options."""

    type = "test_timeout_card"

    def __init__(self, options: Mapping[str, Any] | None = None, **rest: Any) -> None:
        super().__init__({"timeout": 50, **(options or {})})

    def render(self, task: Any) -> str:
        """Return the pathspec after a delay."""
        time.sleep(self.options["timeout"])
        return str(task.pathspec)


class TestRefreshCard(Card):
    """A card with the data of refreshes."""

    type = "test_refresh_card"
    ALLOW_USER_COMPONENTS = True
    RUNTIME_UPDATABLE = True
    RELOAD_POLICY = Card.RELOAD_POLICY_ALWAYS

    def render(self, task: Any) -> str:
        """Return a page with the latest data."""
        return self.render_runtime(task, self.runtime_data)

    def render_runtime(self, task: Any, data: Any) -> str:
        """Return a page with the current data."""
        return _page(self, task, data["user"])

    def refresh(self, task: Any, data: Any) -> Any:
        """Return all data."""
        return data


class TestRefreshComponentCard(_ComponentsCard):
    """A card with the components at the time of a refresh."""

    type = "test_component_refresh_card"
    ALLOW_USER_COMPONENTS = True
    RUNTIME_UPDATABLE = True
    RELOAD_POLICY = Card.RELOAD_POLICY_ONCHANGE

    def render(self, task: Any) -> str:
        """Return a page with the components."""
        return _page(self, task, self.components)

    def refresh(self, task: Any, data: Any) -> Any:
        """Return the components by id."""
        return data["components"]

    def reload_content_token(self, task: Any, data: Any) -> str:
        """Return a digest of the values of the components."""
        if task.finished:
            return "final"
        return f"runtime-{_component_values_to_hash(data['components'])}"


class TestImageCard(Card):
    """A card with an image of one pixel."""

    type = "test_image_card"

    def render(self, task: Any) -> str:
        """Return a page with the image."""
        return f"<html><img src='data:image/png;base64,{_PIXEL}' /></html>"


def _page(card: Card, task: Any, shown: Any) -> str:
    return (
        f"<html><script>var METAFLOW_RELOAD_TOKEN = {card.RELOAD_POLICY_TOKEN!r}</script>"
        f"<h1>{task.pathspec}</h1><h1>{json.dumps(shown)}</h1></html>"
    )


def _component_values_to_hash(components: Mapping[str, Mapping[str, Sequence[str]]]) -> str:
    """Return a digest of the values of components, ignoring their ids."""
    # Joins the keys, not the values, as the tests expect.
    texts = ("".join(key) for each in components.values() for key in each)
    return hashlib.sha256(",".join(texts).encode()).hexdigest()
