"""The page around the components of a card: one HTML file without external resources, in light and
dark."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from html import escape
from importlib.resources import files
from string import Template
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from aflow.flow.graph import Graph

# The colours are those of the web UI; see `_style`.
_STYLE = """
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--fg);font:15px/1.55 system-ui,sans-serif}
main{max-width:60rem;margin:0 auto;padding:2.5rem 1.25rem 4rem}
header{border-bottom:1px solid var(--line);margin-bottom:1.75rem;padding-bottom:1rem}
h1{font-size:1.6rem;margin:0 0 .35rem;letter-spacing:-.01em}
h2{font-size:1.05rem;margin:2.25rem 0 .75rem}
.doc{margin:.6rem 0 0;max-width:44rem;white-space:pre-line}
.values td:last-child{width:99%}
.values td{white-space:nowrap}
.values td:last-child{white-space:normal;overflow-wrap:anywhere}
.path,.note,.type,figcaption{color:var(--dim);font-size:.87rem}
.facts{display:flex;flex-wrap:wrap;gap:.4rem 1.5rem;margin:.75rem 0 0;font-size:.87rem}
.facts b{color:var(--dim);font-weight:500;margin-right:.35rem}
table{border-collapse:collapse;width:100%;font-size:.9rem;font-variant-numeric:tabular-nums}
th{text-align:left;color:var(--dim);font-weight:500}
th,td{padding:.45rem .75rem .45rem 0;border-bottom:1px solid var(--line);vertical-align:top}
.scroll{overflow-x:auto}
pre,code{font:.84rem/1.5 ui-monospace,SFMono-Regular,Menlo,monospace}
pre{background:var(--box);border:1px solid var(--line);border-radius:8px;padding:.75rem 1rem;
overflow-x:auto;margin:.4rem 0 0;white-space:pre-wrap;word-break:break-word}
td pre{margin:0}
img,svg{max-width:100%;height:auto}
figure{margin:1rem 0}
.error{border-left:3px solid var(--bad);padding-left:1rem;margin:1rem 0}
.error b{color:var(--bad)}
.valuebox{display:inline-block;background:var(--box);border:1px solid var(--line);
border-radius:12px;padding:1rem 1.5rem;margin:.35rem .6rem .35rem 0}
.valuebox .title{color:var(--dim);font-size:.87rem}
.valuebox .value{font-size:1.8rem;font-weight:600;letter-spacing:-.02em}
.grows{color:var(--good);font-size:.87rem}
.falls{color:var(--bad);font-size:.87rem}
.valuebox.success{border-color:var(--good)}
.valuebox.warning{border-color:var(--warn)}
.valuebox.danger{border-color:var(--bad)}
.valuebox.info{border-color:var(--hot)}
.progress{display:flex;gap:1rem;align-items:center;margin:.75rem 0}
progress{flex:1;accent-color:var(--hot);height:.7rem}
.artifact,.markdown,.chart,.json,.timeline{margin:1rem 0}
.timeline ol{list-style:none;padding:0;margin:.4rem 0}
.timeline li{border-left:3px solid var(--line);padding:.2rem .8rem;margin:.3rem 0}
.timeline time{color:var(--dim);font-size:.87rem}
.timeline li.success{border-color:var(--good)}
.timeline li.warning{border-color:var(--warn)}
.timeline li.error,.timeline li.critical{border-color:var(--bad)}
.timeline li.info,.timeline li.primary,.timeline li.tool_call{border-color:var(--hot)}
.chart img{background:#fff;border-radius:8px;padding:.5rem}
details ul{list-style:none;padding-left:1.25rem;margin:.2rem 0}
summary{cursor:pointer}
.graph text{fill:var(--fg);font:13px system-ui,sans-serif}
.graph rect{fill:var(--box);stroke:var(--line)}
.graph .here rect{stroke:var(--hot);stroke-width:2}
.graph .label{fill:var(--dim);font-size:11px}
.graph marker path{fill:var(--dim);stroke:none}
.graph path{fill:none;stroke:var(--dim);stroke-width:1.2}
a{color:var(--hot)}
"""


@cache
def _style() -> str:
    """Return the style sheet: the colours shared with the web UI, then the rules for cards."""
    return files("aflow.server").joinpath("static", "tokens.css").read_text("utf-8") + _STYLE


# The policy forbids scripts and requests, whatever data the card shows.
_POLICY = (
    "default-src 'none'; img-src data:; media-src data:; font-src data:; "
    "style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
)
_PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="$policy">
<meta name="viewport" content="width=device-width,initial-scale=1">
<title>$title</title><style>$style</style></head>
<body><main>$body</main></body></html>
""")


def page(title: str, body: str) -> str:
    """Return a complete HTML page.

    Args:
        title: The title of the document, as plain text.
        body: The content, as HTML.
    """
    return _PAGE.substitute(title=escape(title), style=_style(), body=body, policy=_POLICY)


def head(title: str, path: str, facts: Mapping[str, str], doc: str = "") -> str:
    """Return the header of a card: title, pathspec, docstring and facts of its task.

    Args:
        title: The heading, as plain text.
        path: The pathspec of the task, shown below the heading.
        facts: The facts to show, by name.
        doc: The docstring of the flow or step.
    """
    entries = "".join(
        f"<span><b>{escape(name)}</b>{escape(value)}</span>" for name, value in facts.items()
    )
    doc_html = f'<p class="doc">{escape(doc)}</p>' if doc else ""
    return (
        f'<header><h1>{escape(title)}</h1><div class="path">{escape(path)}</div>{doc_html}'
        f'<div class="facts">{entries}</div></header>'
    )


def section(title: str, body: str) -> str:
    """Return a section with a title; an empty string if its body is empty.

    Args:
        title: The heading of the section, as plain text.
        body: The content, as HTML.
    """
    return f"<section><h2>{escape(title)}</h2>{body}</section>" if body else ""


def names_and_values(rows: Iterable[tuple[str, str, str]]) -> str:
    """Return a table of names, types and values; an empty string if there are no rows.

    Args:
        rows: Name, type and value of each row; the value is HTML.
    """
    lines = "".join(
        f"<tr><td><b>{escape(name)}</b></td><td class='type'>{escape(kind)}</td>"
        f"<td>{value}</td></tr>"
        for name, kind, value in rows
    )
    if not lines:
        return ""
    return f'<div class="scroll"><table class="values"><tbody>{lines}</tbody></table></div>'


# ------------------------------------------------------------ the graph

_WIDTH, _HEIGHT, _GAP_X, _GAP_Y = 150, 34, 26, 30


def graph_svg(graph: Graph, here: str) -> str:
    """Return the graph of a flow as SVG, with each step below its predecessors.

    Args:
        graph: The steps of the flow and the transitions between them.
        here: The name of the step to highlight.
    """
    rows = graph.levels()
    widest = max(len(row) for row in rows)
    places = {}
    for depth, row in enumerate(rows):
        left = (widest - len(row)) * (_WIDTH + _GAP_X) / 2
        for number, name in enumerate(row):
            places[name] = (left + number * (_WIDTH + _GAP_X), depth * (_HEIGHT + _GAP_Y))
    lines = [
        _line(places[name], places[after])
        for name, node in graph.nodes.items()
        if name in places
        for after in node.next
        if after in places
    ]
    boxes = [
        _box(name, *place, marked=name == here, many=graph.has_many_tasks(name))
        for name, place in places.items()
    ]
    labels = [_label(_why(graph, name), *place) for name, place in places.items()]
    width = widest * (_WIDTH + _GAP_X)
    height = len(rows) * (_HEIGHT + _GAP_Y)
    return (
        f'<svg class="graph" viewBox="-4 -4 {width} {height}" width="{width}" role="img" '
        f'aria-label="graph of the flow">{_ARROW}{"".join((*lines, *boxes, *labels))}</svg>'
    )


_ARROW = (
    '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" '
    'orient="auto"><path d="M0 0L8 4L0 8z"/></marker></defs>'
)


def _why(graph: Graph, name: str) -> str:
    """Return the foreach variable or the condition that selects the next steps, if any."""
    node = graph.nodes[name]
    if node.foreach:
        return f"for each of {node.foreach}"
    return f"by {node.condition}" if node.condition else ""


def _label(text: str, x: float, y: float) -> str:
    if not text:
        return ""
    return (
        f'<text class="label" x="{x + _WIDTH / 2 + 8}" y="{y + _HEIGHT + 20}">{escape(text)}</text>'
    )


def _line(start: tuple[float, float], end: tuple[float, float]) -> str:
    x, y = start[0] + _WIDTH / 2, start[1] + _HEIGHT
    to_x, to_y = end[0] + _WIDTH / 2, end[1]
    middle = (y + to_y) / 2
    curve = f"M{x} {y}C{x} {middle} {to_x} {middle} {to_x} {to_y}"
    return f'<path d="{curve}" marker-end="url(#arrow)"/>'


def _box(name: str, x: float, y: float, *, marked: bool, many: bool) -> str:
    behind = (
        f'<rect x="{x + 5}" y="{y + 5}" width="{_WIDTH}" height="{_HEIGHT}" rx="8"/>'
        if many
        else ""
    )
    shown = escape(name if len(name) <= 18 else f"{name[:17]}…")
    return (
        f'<g class="{"here" if marked else ""}">{behind}<rect x="{x}" y="{y}" width="{_WIDTH}" '
        f'height="{_HEIGHT}" rx="8"/><text x="{x + _WIDTH / 2}" y="{y + 22}" '
        f'text-anchor="middle">{shown}</text></g>'
    )
