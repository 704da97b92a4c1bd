"""Beside Metaflow: what aflow has run in a form that Metaflow's client reads, what Metaflow has
left in a form that aflow reads, and records of runs where the metadata service is Metaflow's."""

from __future__ import annotations

from aflow._core.lazy import modules_of

__all__ = ["history", "service", "sources", "tables", "together"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from aflow.metadata.metaflow import history, service, sources, tables, together
else:
    __getattr__ = modules_of(__name__, __all__)
