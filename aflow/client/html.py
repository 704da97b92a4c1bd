"""Pieces of HTML for notebooks: everything escaped, of bounded size, styled in place.

The style stands in the elements themselves, since notebooks drop style sheets of outputs that they
do not trust. Colours are those of the page, and greys and hues that can be read on light and on
dark.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from typing import Any, NewType

Html = NewType("Html", str)

ROWS = 20  # of a table that may be long
_TEXT = 200  # characters of one value
_LINE = "1px solid rgba(128,128,128,0.35)"
_HUES = {
    "succeeded": "46,157,88",
    "failed": "214,69,69",
    "running": "58,123,213",
    "cancelled": "190,130,30",
}
_GREY = "128,128,128"


def text(value: object, limit: int = _TEXT) -> Html:
    """The value as text, escaped, and cut if it is long. What is no valid Unicode becomes an
    escape."""
    shown = str(value)
    shown = shown if len(shown) <= limit else shown[: limit - 1] + "\N{HORIZONTAL ELLIPSIS}"
    return Html(html.escape(shown.encode("utf-8", "backslashreplace").decode()))


def badge(state: str) -> Html:
    """A state as a small coloured label."""
    hue = _HUES.get(state, _GREY)
    style = f"padding:1px 7px;border-radius:9px;background:rgba({hue},0.18);color:rgb({hue})"
    return Html(f'<span style="{style}">{text(state)}</span>')


def chips(names: Iterable[str]) -> Html:
    """Tags side by side; of many the first."""
    listed = sorted(names)
    style = f"border:{_LINE};border-radius:4px;padding:0 5px;margin-right:4px"
    shown = "".join(f'<span style="{style}">{text(name, 60)}</span>' for name in listed[:ROWS])
    return Html(shown + more(len(listed) - ROWS))


def more(number: int) -> Html:
    """How many are not shown; nothing where all are."""
    return Html(f'<span style="opacity:0.7">and {number:,} more</span>' if number > 0 else "")


def facts(pairs: Iterable[tuple[str, Html | None]]) -> Html:
    """Names and values, one pair a line; pairs without a value are left out."""
    cell = "padding:1px 14px 1px 0;text-align:left;vertical-align:top;border:none"
    rows = "".join(
        f'<tr><td style="{cell};opacity:0.7">{text(name)}</td><td style="{cell}">{value}</td></tr>'
        for name, value in pairs
        if value
    )
    return Html(f'<table style="border:none;margin:4px 0">{rows}</table>' if rows else "")


def table(head: Sequence[str], rows: Sequence[Sequence[Html]], left_out: int = 0) -> Html:
    """A table; under it how many rows are left out."""
    if not rows:
        return Html("")
    cell = "padding:2px 12px 2px 0;text-align:left;vertical-align:top"
    titles = "".join(
        f'<th style="{cell};border-bottom:{_LINE};opacity:0.7">{text(name)}</th>' for name in head
    )
    body = "".join(
        "<tr>" + "".join(f'<td style="{cell}">{value}</td>' for value in row) + "</tr>"
        for row in rows
    )
    made = f"<thead><tr>{titles}</tr></thead><tbody>{body}</tbody>"
    return Html(
        f'<table style="border-collapse:collapse;margin:4px 0">{made}</table>{more(left_out)}'
    )


def code(value: object) -> Html:
    """A short text of a program."""
    return Html(f'<code style="white-space:pre-wrap">{text(value)}</code>')


def block(title: str, lines: Sequence[str]) -> Html:
    """Lines that a program has printed; nothing without lines."""
    if not lines:
        return Html("")
    style = f"border-left:3px solid rgba({_GREY},0.5);padding:2px 8px;margin:2px 0"
    shown = "\n".join(text(line) for line in lines)
    return Html(
        f'<div style="opacity:0.7">{text(title)}</div>'
        f'<pre style="{style};overflow-x:auto;background:none;color:inherit">{shown}</pre>'
    )


def page(kind: str, name: str, *parts: Html) -> str:
    """All of it under its heading."""
    style = "font-family:system-ui,sans-serif;font-size:13px;line-height:1.5;color:inherit"
    return (
        f'<div style="{style}"><div style="font-size:15px">'
        f'<span style="opacity:0.7">{text(kind)}</span> <b>{text(name, 600)}</b></div>'
        f"{''.join(parts)}</div>"
    )


def size(number: int) -> Html:
    """Bytes for people."""
    amount = float(number)
    for unit in ("B", "kB", "MB", "GB"):
        if amount < 1000:
            return Html(f"{amount:.3g} {unit}" if unit != "B" else f"{number} B")
        amount /= 1000
    return Html(f"{amount:,.3g} TB")


def preview(noted: dict[str, Any]) -> Html:
    """What was noted of a value when it was stored."""
    if "repr" in noted:
        return code(noted["repr"])
    if "columns" in noted:
        return code(", ".join(map(str, noted["columns"])))
    return Html("")


def shape(noted: dict[str, Any]) -> Html:
    """How large a value is in its own units: its shape and what it is made of, or its length."""
    parts = [" \N{MULTIPLICATION SIGN} ".join(map(str, noted["shape"]))] if "shape" in noted else []
    if "len" in noted:
        parts.append(f"{noted['len']:,} items")
    if "dtype" in noted:
        parts.append(str(noted["dtype"]))
    return text(", ".join(parts))
