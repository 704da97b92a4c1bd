"""The version of aflow, and the name of its distribution; the only place that states them."""

from __future__ import annotations

__version__ = "0.2.0"
# Another project's distribution is called like our package: nothing may ask an index for `aflow`.
DISTRIBUTION = "aflow-runtime"
