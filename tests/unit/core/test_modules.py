"""Reading the statements of modules without executing their code."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

import pytest

from aflow._core.modules import file_of, found_at, stated


class _Closed(ModuleType):
    def __getattribute__(self, name: str) -> object:
        raise RuntimeError(name)


class _Wrapper:
    __file__ = "wrapped.py"

    def __getattr__(self, name: str) -> object:
        raise SystemExit(name)


def test_what_a_module_states_is_read_without_its_own_code() -> None:
    closed = _Closed("closed")
    asking = ModuleType("asking")
    asking.__dict__["__getattr__"] = lambda name: 1 / 0

    assert ["closed", None] == [stated(closed, "__name__"), file_of(closed)]
    assert [None, None] == [stated(asking, "__version__"), file_of(asking)]
    assert [__file__, None] == [file_of(sys.modules[__name__]), file_of(None)]


def test_an_object_that_stands_for_a_module_may_raise() -> None:
    assert ["wrapped.py", None] == [file_of(_Wrapper()), stated(_Wrapper(), "__version__")]


def test_a_module_that_is_loaded_when_it_is_used_is_not_loaded() -> None:
    spec = importlib.util.find_spec("colorsys")
    assert spec is not None
    assert spec.loader is not None
    spec.loader = importlib.util.LazyLoader(spec.loader)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    assert spec.origin == file_of(module)
    assert "rgb_to_hsv" not in object.__getattribute__(module, "__dict__")


@pytest.mark.parametrize("name", ["nothing", "_Wrapper.nothing", "pytest.nothing.at_all"])
def test_a_dotted_name_that_leads_nowhere_leads_to_the_default(name: str) -> None:
    assert 7 == found_at(sys.modules[__name__], name, 7)
    assert _Wrapper.__file__ == found_at(sys.modules[__name__], "_Wrapper.__file__")
