"""Reads the files that a flow includes."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from aflow.config_files import expanded


def included(parameters: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """The values of parameters, with the content in place of the path for each IncludeFile. Raises
    InvalidParameter for a file that cannot be read."""
    module = sys.modules.get("aflow.flow.includefile")  # else no flow can have one
    if module is None:
        return dict(values)
    return {
        name: parameters[name].content(value, _read)
        if value is not None and isinstance(parameters.get(name), module.IncludeFile)
        else value
        for name, value in values.items()
    }


def _read(path: str) -> bytes:
    return expanded(path).read_bytes()
