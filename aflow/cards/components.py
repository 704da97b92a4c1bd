"""The components of cards. Each renders itself as HTML and escapes the values that it shows."""

from __future__ import annotations

import base64
import inspect
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from math import isfinite
from textwrap import dedent
from typing import Any, ClassVar

from aflow._core.clock import SystemClock
from aflow._core.records import dataclass, field
from aflow._core.wording import plural
from aflow.errors import InvalidInput

_MAX_TEXT = 10_000  # maximum characters shown of one value


class Component:
    """A component of a card. Custom components override `render`. Those with REALTIME_UPDATABLE are
    part of the data of refreshes of the card."""

    REALTIME_UPDATABLE: ClassVar[bool] = False
    component_id: str | None = None

    def render(self) -> str:
        """Return the component as HTML, which is inserted into the page unchanged."""
        raise NotImplementedError(f"{type(self).__name__} has no method render.")

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Change the content; the next refresh of the card shows it.

        Args:
            *args: The new content.
            **kwargs: The new content, by name.

        Raises:
            InvalidInput: If this component cannot be updated.
        """
        raise InvalidInput(f"A {type(self).__name__} of a card cannot be updated.")


class Markdown(Component):
    """A text in Markdown. Common indentation is removed; HTML in the text is escaped."""

    def __init__(self, text: str = "") -> None:
        self._text = text

    def update(self, text: str = "") -> None:
        """Replace the text."""
        self._text = text

    def render(self) -> str:
        """Return the text as HTML."""
        from markdown_it import MarkdownIt

        parser = MarkdownIt("commonmark", {"html": False}).enable(["table", "strikethrough"])
        return f'<div class="markdown">{parser.render(dedent(str(self._text)))}</div>'


class Artifact(Component):
    """A value with its type, truncated if it is long."""

    def __init__(self, artifact: Any, name: str | None = None, compressed: bool = True) -> None:
        self._artifact = artifact
        self._name = name

    def update(self, artifact: Any) -> None:
        """Replace the value."""
        self._artifact = artifact

    def render(self) -> str:
        """Return a box with the value."""
        head = f"<b>{escape(self._name)}</b> " if self._name else ""
        kind = escape(type(self._artifact).__qualname__)
        return (
            f'<div class="artifact">{head}<span class="type">{kind}</span>'
            f"<pre>{escape(_shown(self._artifact))}</pre></div>"
        )


class Table(Component):
    """A table of values or components with `headers`; `disable_updates` is accepted for old
    code."""

    def __init__(
        self,
        data: Sequence[Sequence[Any]] | None = None,
        headers: Sequence[str] | None = None,
        disable_updates: bool = False,
    ) -> None:
        self._data = [list(row) for row in data or []]
        self._headers = list(headers or [])

    @classmethod
    def from_dataframe(cls, dataframe: Any = None, truncate: bool = True) -> Table:
        """Return the first rows of a pandas DataFrame (100 with `truncate`), with its index.

        Args:
            dataframe: The DataFrame.
            truncate: Whether to show only the first 100 rows.
        """
        shown = dataframe.head(100) if truncate else dataframe
        # itertuples keeps the type of each column.
        rows = [list(row) for row in shown.itertuples(name=None)]
        return cls(rows, ["", *map(str, shown.columns)])

    def update(self, data: Sequence[Sequence[Any]], headers: Sequence[str] | None = None) -> None:
        """Replace the rows and, if given, the headers."""
        self._data = [list(row) for row in data]
        self._headers = list(headers) if headers is not None else self._headers

    def render(self) -> str:
        """Return a table that can be scrolled horizontally."""
        head = "".join(f"<th>{escape(str(each))}</th>" for each in self._headers)
        rows = "".join(
            "<tr>" + "".join(f"<td>{_cell(each)}</td>" for each in row) + "</tr>"
            for row in self._data
        )
        thead = f"<thead><tr>{head}</tr></thead>" if head else ""
        return f'<div class="scroll"><table>{thead}<tbody>{rows}</tbody></table></div>'


class Image(Component):
    """An image: the bytes of a PNG, JPEG, GIF, WebP or SVG file, a figure of Matplotlib or an image
    of Pillow. All images can be updated; `disable_updates` is accepted for old code."""

    def __init__(self, src: Any = None, label: str | None = None, disable_updates: bool = True):
        self._label = label
        self._src = _data_url(src)

    @classmethod
    def from_matplotlib(
        cls, plot: Any, label: str | None = None, disable_updates: bool = False
    ) -> Image:
        """Return an image of a figure of Matplotlib, or of the figure of its axes.

        Args:
            plot: The figure, or an object with `get_figure`, such as axes.
            label: The text below the image.
            disable_updates: Ignored; accepted for old code.
        """
        return cls(plot, label)

    @classmethod
    def from_pil_image(
        cls, pilimage: Any, label: str | None = None, disable_updates: bool = False
    ) -> Image:
        """Return a component with an image of Pillow.

        Args:
            pilimage: The image.
            label: The text below the image.
            disable_updates: Ignored; accepted for old code.
        """
        return cls(pilimage, label)

    def update(self, image: Any, label: str | None = None) -> None:
        """Replace the image and, if given, the label."""
        self._src, self._label = _data_url(image), label or self._label

    def render(self) -> str:
        """Return the image with its label below."""
        label = escape(self._label or "")
        caption = f"<figcaption>{label}</figcaption>" if label else ""
        return f'<figure><img src="{self._src}" alt="{label}">{caption}</figure>'


class Error(Component):
    """An error: an exception or a text."""

    def __init__(self, exception: Any, title: str | None = None) -> None:
        self._exception = exception
        self._title = title or type(exception).__name__

    def render(self) -> str:
        """Return the title and the text."""
        text = escape(str(self._exception))
        return f'<div class="error"><b>{escape(self._title)}</b><pre>{text}</pre></div>'


class ProgressBar(Component):
    """A progress bar that shows `value` of `max`, in `unit`."""

    def __init__(
        self,
        max: float = 100,
        label: str | None = None,
        value: float = 0,
        unit: str | None = None,
        metadata: str | None = None,
    ) -> None:
        self._max, self._label, self._value = max, label, value
        self._unit, self._metadata = unit, metadata

    def update(self, new_value: float, metadata: str | None = None) -> None:
        """Set the value and, if given, the text next to it."""
        self._value = new_value
        self._metadata = metadata if metadata is not None else self._metadata

    def render(self) -> str:
        """Return the bar with its label and numbers."""
        unit = escape(f" {self._unit}" if self._unit else "")
        text = escape(str(self._metadata or ""))
        return (
            f'<div class="progress"><span>{escape(str(self._label or ""))}</span>'
            f"<progress{_number('max', self._max)}{_number('value', self._value)}></progress>"
            f"<span>{escape(f'{self._value}/{self._max}')}{unit} {text}</span></div>"
        )


_THEMES = ("default", "success", "warning", "danger", "info")
_CHART_SIZE = {"width": 640, "height": 280}


class ValueBox(Component):
    """A value in large type, with a title, a subtitle and its change."""

    def __init__(
        self,
        title: str | None = None,
        value: Any = "",
        subtitle: str | None = None,
        theme: str | None = None,
        change_indicator: str | None = None,
    ) -> None:
        self._title, self._value, self._subtitle = title, value, subtitle
        self._theme, self._change = theme, change_indicator

    def update(
        self,
        title: str | None = None,
        value: Any = None,
        subtitle: str | None = None,
        theme: str | None = None,
        change_indicator: str | None = None,
    ) -> None:
        """Replace the given parts; parts that are None stay."""
        self._title = self._title if title is None else title
        self._value = self._value if value is None else value
        self._subtitle = self._subtitle if subtitle is None else subtitle
        self._theme = self._theme if theme is None else theme
        self._change = self._change if change_indicator is None else change_indicator

    def render(self) -> str:
        """Return the box."""
        parts = [("title", self._title), ("value", self._value), ("note", self._subtitle)]
        lines = "".join(
            f'<div class="{kind}">{escape(str(text))}</div>'
            for kind, text in parts
            if text not in (None, "")
        )
        falls = str(self._change or "").lstrip().startswith(("-", "\u2212", "\u2193"))
        change = (
            f'<div class="{"falls" if falls else "grows"}">{escape(str(self._change))}</div>'
            if self._change
            else ""
        )
        theme = f" {self._theme}" if self._theme in _THEMES else ""
        return f'<div class="valuebox{theme}">{lines}{change}</div>'


class PythonCode(Component):
    """Python source code, of a function or from a string."""

    def __init__(
        self, code_func: Callable[..., Any] | None = None, code_string: str | None = None
    ) -> None:
        self._code = code_string if code_func is None else dedent(inspect.getsource(code_func))

    def render(self) -> str:
        """Return the source code in a `pre` element."""
        return f'<pre class="code">{escape(self._code or "")}</pre>'


class JSONViewer(Component):
    """A collapsible tree of JSON values. `max_height` is a CSS length, such as `300px`, above which
    the tree scrolls. `show_copy_button` has no effect, since cards contain no scripts."""

    def __init__(
        self,
        data: Any,
        collapsible: bool = True,
        max_height: str | None = None,
        show_copy_button: bool = True,
        title: str | None = None,
    ) -> None:
        self._data, self._title = data, title
        self._collapsible, self._max_height = collapsible, max_height

    def update(self, data: Any) -> None:
        """Replace the values."""
        self._data = data

    def render(self) -> str:
        """Return the tree."""
        return self._framed(_tree(self._data), "")

    def _framed(self, html: str, name: str, kind: str = "json") -> str:
        """Return the HTML under the title (or else the name), collapsible if requested."""
        # Only a length is allowed: other CSS properties could cover the page.
        is_length = re.fullmatch(r"\d+(\.\d+)?(px|em|rem|vh|%)?", str(self._max_height or ""))
        style = f' style="max-height:{self._max_height};overflow:auto"' if is_length else ""
        title = escape(self._title or name)
        if title and self._collapsible:
            html = f"<details open><summary><b>{title}</b></summary>{html}</details>"
        elif title:
            html = f"<p><b>{title}</b></p>{html}"
        return f'<div class="{kind}"{style}>{html}</div>'


class VegaChart(Component):
    """A Vega-Lite or Vega chart (a dict), rendered to SVG with the card. Needs
    vl-convert-python."""

    def __init__(self, spec: Mapping[str, Any], show_controls: bool = False) -> None:
        self._spec = dict(spec)

    @classmethod
    def from_altair_chart(cls, altair_chart: Any) -> VegaChart:
        """Return a component with a chart of Altair.

        Args:
            altair_chart: The chart.
        """
        return cls(altair_chart.to_dict())

    def update(self, spec: Mapping[str, Any]) -> None:
        """Replace the chart."""
        self._spec = dict(spec)

    def render(self) -> str:
        """Return the chart as SVG, or its specification and a note if it cannot be rendered."""
        try:
            import vl_convert
        except ImportError:
            note = "Charts are drawn with vl-convert-python: install aflow-runtime[cards]."
            return f'<p class="note">{note}</p>{JSONViewer(self._spec).render()}'
        schema = str(self._spec.get("$schema", "vega-lite"))
        # Only inline data is shown: URLs in the specification are not fetched.
        if "vega-lite" not in schema:
            return _chart(vl_convert.vega_to_svg(json.dumps(self._spec), allowed_base_urls=[]))
        # Without a size, a chart would be as narrow as its bars.
        spec = {**_CHART_SIZE, **self._spec} if "mark" in self._spec else self._spec
        if not isinstance(spec.get("width", 0), int | float | dict):  # "container" needs a browser
            spec = {**spec, "width": _CHART_SIZE["width"]}
        return _chart(vl_convert.vegalite_to_svg(json.dumps(spec), allowed_base_urls=[]))


# ------------------------------------------------------------ pieces


def _chart(svg: str) -> str:
    """Return an SVG as an `img` element, in which links and external images from its data are
    inactive."""
    data = base64.b64encode(svg.encode()).decode()
    return f'<div class="chart"><img src="data:image/svg+xml;base64,{data}" alt="chart"></div>'


def _number(name: str, value: Any) -> str:
    """Return a numeric HTML attribute; empty if the value is not a number."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return ""
    return f' {name}="{number:g}"' if isfinite(number) else ""


def as_component(value: Any) -> Component:
    """Return a value as a component: components unchanged, strings as Markdown, figures as images,
    pandas tables as tables, and others as artifacts.

    Args:
        value: A component, a string, a figure, a pandas table, or any other value.
    """
    if isinstance(value, Component) or hasattr(value, "render"):
        return value  # type: ignore[no-any-return]
    if isinstance(value, str):
        return Markdown(value)
    if hasattr(value, "savefig"):
        return Image.from_matplotlib(value)
    if type(value).__module__.startswith("pandas") and hasattr(value, "columns"):
        return Table.from_dataframe(value)
    return Artifact(value)


def rendered(component: Any) -> str:
    """Return the HTML of a component. If a custom component renders to another value, it is shown
    as a tree; an exception is shown in place of the component.

    Args:
        component: An object with a `render` method.
    """
    try:
        html = component.render()
    except Exception as error:  # noqa: BLE001 -- a failing component is shown as an error
        return Error(error, f"{type(component).__name__} cannot be shown").render()
    return html if isinstance(html, str) else JSONViewer(html).render()


def _cell(value: Any) -> str:
    return rendered(value) if hasattr(value, "render") else escape(str(value))


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= _MAX_TEXT else f"{text[:_MAX_TEXT]}... ({len(text)} characters)"


def _tree(value: Any, name: str = "") -> str:
    head = f"<b>{escape(name)}</b> " if name else ""
    if isinstance(value, Mapping | list | tuple) and value:
        pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
        inside = "".join(f"<li>{_tree(each, str(key))}</li>" for key, each in pairs)
        summary = f"<summary>{head}{plural(len(value), 'item')}</summary>"
        return f"<details open>{summary}<ul>{inside}</ul></details>"
    return f"{head}<code>{escape(_shown(value))}</code>"


_KINDS = {
    b"\x89PNG": "png",
    b"\xff\xd8\xff": "jpeg",
    b"GIF8": "gif",
    b"RIFF": "webp",
    b"<svg": "svg+xml",
    b"<?xm": "svg+xml",
}


def _data_url(src: Any) -> str:
    if isinstance(src, str) and src.startswith("data:image/"):
        return escape(src)
    # Axes of Matplotlib refer to their figure.
    figure = src.get_figure() if hasattr(src, "get_figure") else src
    buffer = io.BytesIO()
    if hasattr(figure, "savefig"):
        figure.savefig(buffer, format="png", bbox_inches="tight")
    elif type(src).__module__.startswith("PIL"):
        src.save(buffer, format="PNG")
    elif isinstance(src, bytes | bytearray | memoryview):
        buffer.write(src)
    else:
        raise InvalidInput(
            f"Image takes the bytes of a picture, a figure of matplotlib or an image of Pillow, "
            f"not {type(src).__name__}."
        )
    data = buffer.getvalue()
    kind = next((name for magic, name in _KINDS.items() if data.startswith(magic)), None)
    if kind is None:
        raise InvalidInput("Image was given bytes that are not PNG, JPEG, GIF, WebP or SVG.")
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


# Further components: YAML, pages and timelines.


THEMES = (
    *("default", "success", "warning", "error", "info", "primary", "secondary"),
    *("tool_call", "ai_response"),
)
PRIORITIES = ("low", "normal", "high", "critical")


class YAMLViewer(JSONViewer):
    """Values as YAML; as JSON, which is valid YAML, if PyYAML is not installed."""

    def render(self) -> str:
        """Return the text in a collapsible `pre` element."""
        text = f'<pre class="code">{escape(_yaml(self._data))}</pre>'
        return self._framed(text, "YAML")


class Page(Component):
    """A group of components with a title and a subtitle."""

    def __init__(
        self,
        title: str | None = None,
        subtitle: str | None = None,
        contents: Sequence[Any] = (),
    ) -> None:
        self._heads = [(tag, text) for tag, text in (("h2", title), ("p", subtitle)) if text]
        self._contents = contents

    def render(self) -> str:
        """Return the headings and the components below them."""
        heads = "".join(f"<{tag}>{escape(str(text))}</{tag}>" for tag, text in self._heads)
        return heads + "".join(rendered(as_component(each)) for each in self._contents)


def _yaml(data: Any) -> str:
    plain = json.loads(json.dumps(data, default=str))  # plain values prevent tags and aliases
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
    """A list of events, latest first. `update` adds an event; at most `max_events` are shown, but
    all are counted."""

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
        """Add an event.

        `event_data` maps names to values; `timestamp` replaces the current time. `payloads` are
        collapsed components by name. `finished` is whether this is the last event. Raises
        InvalidInput for an unknown theme or priority."""
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
        """Return the number of events in total and displayed, the times of the first and the last
        one (seconds since the epoch, None if there are none), and whether the timeline is
        finished."""
        return {
            "total_events": self._total,
            "displayed_events": len(self._events),
            "first_event": self._first_at,
            "last_update": self._events[0].at if self._events else None,
            "finished": self._finished,
        }

    def render(self) -> str:
        """Return the list of events."""
        state = "finished" if self._finished else "going on"
        note = f'<p class="note">{self._total} events, {state}</p>'
        items = "".join(map(_item, self._events))
        return self._framed(f"{note}<ol>{items}</ol>", "Events", "timeline")


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
