"""The version of aflow, and the name of its distribution."""

from __future__ import annotations

__version__ = "0.2.0"
# The distribution `aflow` on PyPI is another project: never install `aflow` from an index.
DISTRIBUTION = "aflow-runtime"
