"""Components that take more to tell: values as YAML, and what happens one after the other."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from html import escape
from typing import Any

from aflow.cards.components import Component, JSONViewer, as_component, rendered
from aflow.clock import SystemClock
from aflow.errors import InvalidInput

THEMES = (
    *("default", "success", "warning", "error", "info", "primary", "secondary"),
    *("tool_call", "ai_response"),
)
PRIORITIES = ("low", "normal", "high", "critical")


class YAMLViewer(JSONViewer):
    """Values as YAML: with PyYAML in its usual form, else as JSON, which is YAML as well."""

    def render(self) -> str:
        """The text as code, to be opened and closed."""
        text = f'<pre class="code">{escape(_yaml(self._data))}</pre>'
        return self._framed(text, "YAML")


class Page(Component):
    """Components under a title of their own."""

    def __init__(
        self,
        title: str | None = None,
        subtitle: str | None = None,
        contents: Sequence[Any] = (),
    ) -> None:
        self._heads = [(tag, text) for tag, text in (("h2", title), ("p", subtitle)) if text]
        self._contents = contents

    def render(self) -> str:
        """The heads, and then what stands below them."""
        heads = "".join(f"<{tag}>{escape(str(text))}</{tag}>" for tag, text in self._heads)
        return heads + "".join(rendered(as_component(each)) for each in self._contents)


def _yaml(data: Any) -> str:
    plain = json.loads(json.dumps(data, default=str))  # whatever it holds: no tags, no aliases
    try:
        import yaml  # type: ignore[import-untyped, unused-ignore]
    except ImportError:
        return json.dumps(plain, indent=2, ensure_ascii=False)
    text: str = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)
    return text


@dataclass(frozen=True, slots=True)
class _Event:
    values: dict[str, Any]
    theme: str
    priority: str
    at: float
    payloads: dict[str, Any] = field(default_factory=dict)


class EventsTimeline(JSONViewer):
    """What happens, the latest first: `update` adds an event. At most `max_events` are shown, all
    are counted."""

    def __init__(self, title: str | None = None, max_events: int = 100) -> None:
        super().__init__(None, title=title)
        self._max_events = max_events
        self._events: list[_Event] = []
        self._total = 0
        self._first_at: float | None = None
        self._finished = False

    def update(
        self,
        event_data: Mapping[str, Any],
        style_theme: str | None = None,
        priority: str | None = None,
        payloads: Mapping[str, Any] | None = None,
        finished: bool | None = None,
    ) -> None:
        """Add an event: values by name (`timestamp` among them, else it is now), and `payloads`,
        which are components, to be opened. `finished` says whether more is to come. Raises
        InvalidInput for a theme or a priority that there is not."""
        theme, rank = style_theme or "default", priority or "normal"
        if theme not in THEMES:
            raise InvalidInput(f"An event cannot be {theme!r}: style_theme is one of {THEMES}.")
        if rank not in PRIORITIES:
            raise InvalidInput(f"An event cannot be {rank!r}: priority is one of {PRIORITIES}.")
        now = SystemClock.now()
        self._events.insert(0, _Event(dict(event_data), theme, rank, now, dict(payloads or {})))
        del self._events[self._max_events :]
        self._total += 1
        self._first_at = now if self._first_at is None else self._first_at
        self._finished = self._finished if finished is None else finished

    def get_stats(self) -> dict[str, Any]:
        """How many events there were and are shown, when the first and the last one came (seconds
        since the epoch, None without any), and whether that was all."""
        return {
            "total_events": self._total,
            "displayed_events": len(self._events),
            "first_event": self._first_at,
            "last_update": self._events[0].at if self._events else None,
            "finished": self._finished,
        }

    def render(self) -> str:
        """A list."""
        state = "finished" if self._finished else "going on"
        told = f'<p class="note">{self._total} events, {state}</p>'
        items = "".join(map(_item, self._events))
        return self._framed(f"{told}<ol>{items}</ol>", "Events", "timeline")


def _item(event: _Event) -> str:
    values = dict(event.values)
    at = values.pop("timestamp", event.at)
    pairs = " ".join(
        f"<b>{escape(str(name))}</b> {escape(str(value))}" for name, value in values.items()
    )
    opened = "".join(
        f"<details><summary>{escape(str(name))}</summary>{rendered(as_component(each))}</details>"
        for name, each in event.payloads.items()
    )
    return (
        f'<li class="{event.theme} {event.priority}"><time>{escape(_time(at))}</time> '
        f"{pairs}{opened}</li>"
    )


def _time(at: Any) -> str:
    if isinstance(at, int | float):
        return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return str(at)
