"""The table of results: the figures, the peers' figures, and whether the limits are met."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Row:
    """One line of the table. `met` is None if there is no limit.

    `value` is aflow's figure, `peer` that of the peer, both in `unit`.
    """

    case: str
    what: str
    value: float
    unit: str
    peer: float | None = None
    peer_name: str = ""
    bar: str = ""
    met: bool | None = None
    more_is_better: bool = False

    @property
    def better(self) -> float | None:
        """The factor by which aflow is better than the peer; below 1 it is worse."""
        if not self.peer or not self.value:
            return None
        return self.value / self.peer if self.more_is_better else self.peer / self.value


def at_most(
    case: str,
    what: str,
    value: float,
    unit: str,
    limit: float,
    peer: float | None = None,
    peer_name: str = "",
) -> Row:
    """Return a row with an upper limit."""
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
    """Return a row with a lower limit."""
    bar = f">= {limit:g} {unit}"
    return Row(case, what, value, unit, peer, peer_name, bar, value >= limit, True)


HEADINGS = ("case", "what", "aflow", "peer", "better", "bar", "")


def cells(row: Row) -> tuple[str, ...]:
    """Return the cells of a row as strings."""
    peer = "" if row.peer is None else f"{row.peer:.4g} {row.unit} ({row.peer_name})"
    better = "" if row.better is None else f"{row.better:.3g}x"
    verdict = {True: "met", False: "MISSED", None: ""}[row.met]
    return row.case, row.what, f"{row.value:.4g} {row.unit}", peer, better, row.bar, verdict


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a Markdown table."""
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
    """Write the rows and a description of the machine as JSON."""
    machine = {
        "python": platform.python_version(),
        "system": platform.platform(),
        "processors": len(os.sched_getaffinity(0)),
    }
    data = {
        "quick": quick,
        "machine": machine,
        "rows": [{**asdict(row), "better": row.better} for row in rows],
    }
    path.write_text(json.dumps(data, indent=2) + "\n")
