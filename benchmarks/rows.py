"""The table: what was measured, beside whom, and whether it meets its bar."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Row:
    """One line of the table. `met` is None where there is no bar.

    `value` is aflow's figure, `peer` the other one's, both in `unit`.
    """

    case: str
    what: str
    value: float
    unit: str
    peer: float | None = None
    peer_name: str = ""
    bar: str = ""
    met: bool | None = None

    @property
    def ratio(self) -> float | None:
        """The peer's figure over aflow's: above 1 aflow is the smaller."""
        return self.peer / self.value if self.peer is not None and self.value else None


def at_most(
    case: str,
    what: str,
    value: float,
    unit: str,
    limit: float,
    peer: float | None = None,
    peer_name: str = "",
) -> Row:
    """A row whose bar is an upper limit."""
    bar = f"<= {limit:g} {unit}"
    return Row(case, what, value, unit, peer, peer_name, bar, value <= limit)


def at_least(
    case: str,
    what: str,
    value: float,
    unit: str,
    limit: float,
    peer: float | None = None,
    peer_name: str = "",
) -> Row:
    """A row whose bar is a lower limit."""
    bar = f">= {limit:g} {unit}"
    return Row(case, what, value, unit, peer, peer_name, bar, value >= limit)


HEADINGS = ("case", "what", "aflow", "peer", "peer/aflow", "bar", "")


def cells(row: Row) -> tuple[str, ...]:
    """The row as texts."""
    peer = "" if row.peer is None else f"{row.peer:.4g} {row.unit} ({row.peer_name})"
    ratio = "" if row.ratio is None else f"{row.ratio:.3g}"
    verdict = {True: "met", False: "MISSED", None: ""}[row.met]
    return row.case, row.what, f"{row.value:.4g} {row.unit}", peer, ratio, row.bar, verdict


def table(rows: Sequence[Row]) -> str:
    """All rows, in columns, as Markdown."""
    texts = [HEADINGS, *(cells(row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    lines = [
        "| "
        + " | ".join(text.ljust(width) for text, width in zip(line, widths, strict=True))
        + " |"
        for line in texts
    ]
    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([lines[0], rule, *lines[1:]])


def save(path: Path, rows: Sequence[Row], quick: bool) -> None:
    """Write the rows and what they were measured on as JSON."""
    machine = {
        "python": platform.python_version(),
        "system": platform.platform(),
        "processors": len(os.sched_getaffinity(0)),
    }
    data = {
        "quick": quick,
        "machine": machine,
        "rows": [{**asdict(row), "ratio": row.ratio} for row in rows],
    }
    path.write_text(json.dumps(data, indent=2) + "\n")
