"""Interoperability with Metaflow: aflow's runs in a form that Metaflow's client reads, Metaflow's
runs in a form that aflow reads, and registration of runs with Metaflow's metadata service."""

from __future__ import annotations

from aflow._core.lazy import modules_of

__all__ = ["history", "service", "sources", "tables", "together"]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from aflow.metadata.metaflow import history, service, sources, tables, together
else:
    __getattr__ = modules_of(__name__, __all__)
