"""Records that are cheap to define behave like those of the standard library."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import typing
from dataclasses import FrozenInstanceError, asdict, field, fields, replace
from typing import Any

import pytest

from aflow._core import records


def tuples(base: Any) -> Any:
    """The same tuple with names, by one or the other."""

    class Point(base):  # type: ignore[misc]  # it is an argument
        """A place."""

        x: int
        y: int = 2
        label: str | None = None

        @property
        def total(self) -> int:
            """Both together."""
            return self.x + self.y

        def moved(self) -> Any:
            return self._replace(x=self.x + 1)

    return Point


def test_a_tuple_with_names_is_that_of_typing() -> None:
    ours, theirs = (tuples(base) for base in (records.NamedTuple, typing.NamedTuple))

    for name in ("__name__", "__qualname__", "__module__", "__doc__", "_fields", "_field_defaults"):
        assert getattr(theirs, name) == getattr(ours, name)
    assert ours.__bases__ == (tuple,)
    made = ours(1, label="here")
    assert theirs(1, label="here") == made
    assert "Point(x=1, y=2, label='here')" in repr(made)
    assert (3, 2) == (made.total, made.moved().x)
    assert [*theirs.__annotations__] == [*ours.__annotations__]
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'x'"):
        ours()
    metaclass: Any = type(records.NamedTuple)
    with pytest.raises(TypeError, match="without a default"):
        metaclass(
            "Wrong",
            (records.NamedTuple,),
            {"__module__": __name__, "__annotations__": {"a": "int", "b": "int"}, "a": 1},
        )


def classes(dataclass: Any) -> tuple[Any, Any, Any]:
    """A frozen record, one that derives from it, and one that can change; by one or the other."""

    @dataclass(frozen=True, slots=True)
    class Frozen:
        """Frozen."""

        a: int
        b: list[int] = field(default_factory=list)
        hidden: str = field(default="x", repr=False)

        def __post_init__(self) -> None:
            if self.a < 0:
                raise ValueError("below zero")

    @dataclass(frozen=True, slots=True)
    class Derived(Frozen):
        """Derived."""

        c: float = 1.5
        note: str = field(default="", compare=False)

    @dataclass(slots=True)
    class Plain:
        """Plain."""

        a: int
        b: int = 0

    return Frozen, Derived, Plain


BOTH = pytest.mark.parametrize("dataclass", [records.dataclass, dataclasses.dataclass])
# Where pickle finds the classes that are to be pickled.
Frozen, Derived, Plain = classes(records.dataclass)
for each in (Frozen, Derived, Plain):
    each.__qualname__ = each.__name__


@BOTH
def test_a_record_compares_hashes_and_shows_its_fields(dataclass: Any) -> None:
    frozen, derived, plain = classes(dataclass)

    assert frozen(1) == frozen(1, [])
    assert frozen(1) != frozen(2)
    assert derived(1) == derived(1, note="not compared")
    assert derived(1) != frozen(1)
    assert frozen(1).__eq__(1) is NotImplemented
    assert repr(derived(1, [2])).endswith("Derived(a=1, b=[2], c=1.5, note='')")
    assert hash(frozen(1, (), "y")) == hash(frozen(1, (), "y"))
    with pytest.raises(TypeError, match="unhashable"):
        hash(plain(1))
    assert frozen(1).b is not frozen(1).b


@BOTH
def test_a_frozen_record_cannot_be_changed_and_others_can(dataclass: Any) -> None:
    frozen, derived, plain = classes(dataclass)

    for made in (frozen(1), derived(1)):
        with pytest.raises(FrozenInstanceError, match="cannot assign to field 'a'"):
            made.a = 2
        with pytest.raises(FrozenInstanceError, match="cannot delete field 'a'"):
            del made.a
        with pytest.raises((FrozenInstanceError, TypeError, AttributeError)):
            made.other = 2
    changed = plain(1)
    changed.b = 3
    assert (1, 3) == (changed.a, changed.b)
    with pytest.raises(AttributeError):
        changed.other = 1


@BOTH
def test_the_functions_of_dataclasses_know_a_record(dataclass: Any) -> None:
    frozen, derived, _ = classes(dataclass)

    assert ["a", "b", "hidden", "c", "note"] == [each.name for each in fields(derived)]
    assert {"a": 1, "b": [2], "hidden": "x"} == asdict(frozen(1, [2]))
    assert derived(4, c=2.5) == replace(derived(1, c=2.5), a=4)
    with pytest.raises(ValueError, match="below zero"):
        replace(frozen(1), a=-1)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'a'"):
        frozen()
    match derived(1, [2]):
        case derived(a, b):
            assert (1, [2]) == (a, b)


@BOTH
def test_fields_may_be_given_by_name_alone(dataclass: Any) -> None:
    frozen, _, _ = classes(dataclass)

    @dataclass(frozen=True, kw_only=True, slots=True)
    class Named(frozen):  # type: ignore[misc, valid-type]  # the same
        """Named."""

        c: int
        d: int = 4

    made = Named(1, [2], c=3)
    assert (1, [2], "x", 3, 4) == (made.a, made.b, made.hidden, made.c, made.d)
    with pytest.raises(TypeError):
        Named(1, [2], "y", 3)
    with pytest.raises(TypeError, match="'c'"):
        Named(1)


def test_records_are_copied_and_pickled() -> None:
    for made in (Frozen(1, [2]), Derived(1, c=3.5), Plain(1, 2)):
        assert made == copy.deepcopy(made) == pickle.loads(pickle.dumps(made))
