"""`NamedTuple` and `dataclass` like those of the standard library, but faster to define.

A command defines two hundred record classes before its first task starts. typing.NamedTuple
compiles the annotation of each field, and a frozen dataclass compiles seven functions: together
that took a tenth of the time of a command. Here annotations remain strings, and the constructor
(`__init__`, `__new__`) of a class is compiled when its first instance is created, which does not
happen for most classes. Comparison, hash and repr need no generated code.

Type checkers see the originals. `replace`, `fields`, `field` and `asdict` are those of
`dataclasses`, but must be imported from here: importing this module first avoids the import of
`inspect` (deferred.py). Modules that are not imported at the start of a command may use the
originals.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__all__ = [
    "MISSING",
    "NamedTuple",
    "asdict",
    "dataclass",
    "field",
    "fields",
    "is_dataclass",
    "replace",
]

if TYPE_CHECKING:
    from dataclasses import MISSING as MISSING
    from dataclasses import asdict as asdict
    from dataclasses import dataclass as dataclass
    from dataclasses import field as field
    from dataclasses import fields as fields
    from dataclasses import is_dataclass as is_dataclass
    from dataclasses import replace as replace
    from typing import NamedTuple as NamedTuple
else:
    from aflow._core.deferred import defer

    defer(("inspect",))  # dataclasses uses it for docstrings, which are set here
    import dataclasses
    from collections import _tuplegetter as _getter  # the C descriptor of namedtuple
    from dataclasses import MISSING, asdict, field, fields, is_dataclass, replace
    from reprlib import recursive_repr

    _MADE = object()  # the placeholder for a default that a default_factory creates

    # Methods that all named tuples share; namedtuple would define them for each class.

    def _make_later(cls, /, *args, **kwargs):
        made = next(each for each in cls.__mro__ if "_fields" in vars(each))
        made.__new__ = staticmethod(_new(made))  # replaces this function
        return made.__new__(cls, *args, **kwargs)

    @classmethod
    def _make(cls, values):
        """Create a record from an iterable."""
        made = tuple.__new__(cls, values)
        if len(made) != len(cls._fields):
            raise TypeError(f"Expected {len(cls._fields)} arguments, got {len(made)}")
        return made

    def _replace(self, /, **values):
        """Return a copy with other values in some fields."""
        made = self._make(map(values.pop, self._fields, self))
        if values:
            raise ValueError(f"Got unexpected field names: {list(values)!r}")
        return made

    def _asdict(self):
        """Return the values as a dict, by field."""
        return dict(zip(self._fields, self, strict=True))

    def _shown(self):
        values = ", ".join(map("{}={!r}".format, self._fields, self))
        return f"{self.__class__.__name__}({values})"

    def _values(self):
        return tuple(self)

    _COMMON = {
        "__slots__": (),
        "__new__": _make_later,
        "__repr__": _shown,
        "__getnewargs__": _values,
        "_make": _make,
        "_replace": _replace,
        "_asdict": _asdict,
    }

    def _new(cls):
        """Compile the `__new__` of a class, when its first instance is created."""
        number = {name: f"_d{place}" for place, name in enumerate(cls._field_defaults)}
        names = {number[name]: value for name, value in cls._field_defaults.items()}
        names["_new"] = tuple.__new__
        parameters = [f"{each}={number[each]}" if each in number else each for each in cls._fields]
        values = "".join(f"{each}, " for each in cls._fields)
        made = eval(f"lambda _cls, {', '.join(parameters)}: _new(_cls, ({values}))", names)  # noqa: S307
        made.__name__ = "__new__"
        made.__qualname__ = f"{cls.__qualname__}.__new__"
        made.__annotations__ = dict(cls.__annotations__)
        return made

    class _Definition(type):
        """The metaclass that creates a named tuple from the body of a class."""

        def __new__(meta, name, bases, namespace):
            if not bases:
                return super().__new__(meta, name, bases, namespace)
            fields = tuple(namespace.get("__annotations__", {}))
            defaults = {each: namespace.pop(each) for each in fields if each in namespace}
            if fields[len(fields) - len(defaults) :] != tuple(defaults):
                raise TypeError(f"{name}: a field without a default follows one that has one")
            namespace |= {each: _getter(place, "") for place, each in enumerate(fields)}
            common = {
                **_COMMON,
                "__doc__": f"{name}({', '.join(fields)})",
                "__match_args__": fields,
                "_fields": fields,
                "_field_defaults": defaults,
            }
            return type(name, (tuple,), common | namespace)

    class NamedTuple(metaclass=_Definition):
        """Like typing.NamedTuple, without evaluating annotations."""

    def dataclass(*, frozen=False, slots=False, repr=True, kw_only=False):
        """Define a dataclass like `dataclasses.dataclass`, without compiling its methods.

        Args:
            frozen: Whether assignments to fields raise an error.
            slots: Whether instances have slots instead of a `__dict__`.
            repr: Whether to define `__repr__`.
            kw_only: Whether the constructor only takes keyword arguments.

        Returns:
            The decorator of the class.
        """

        def define(cls):
            own = frozenset(vars(cls))
            cls.__doc__ = cls.__doc__ or cls.__name__  # or dataclasses would compute the signature
            # dataclasses would match each string with regular expressions, to find ClassVar etc.
            texts = vars(cls).get("__annotations__", {})
            cls.__annotations__ = {
                name: text if "Var" in text else object for name, text in texts.items()
            }
            made = dataclasses.dataclass(
                cls, init=False, repr=False, eq=False, slots=slots, kw_only=kw_only
            )
            made.__annotations__ = texts
            fields = dataclasses.fields(made)
            for each in fields:
                each.type = texts.get(each.name, each.type)
            methods = {**_comparing(fields), "__init__": _late_init(made, fields, frozen)}
            if repr:
                methods["__repr__"] = _repr(fields)
            if frozen:
                methods |= _freezing(made, fields, slots)
            elif "__hash__" not in own:
                methods["__hash__"] = None  # instances are mutable
            for name, method in methods.items():
                if name not in own or (name == "__hash__" and vars(cls)[name] is None):
                    setattr(made, name, method)
            return made

        return define

    def _late_init(cls, fields, frozen):
        """Return an `__init__` that compiles the actual one when the first instance is created."""

        def init(self, /, *args, **kwargs):
            made = _init(cls, fields, frozen)
            if vars(cls).get("__init__") is init:
                cls.__init__ = made
            made(self, *args, **kwargs)

        return init

    def _init(cls, fields, frozen):
        names = {"_MADE": _MADE, "_set": object.__setattr__}
        parameters, lines = ["self"], []
        fields = sorted(fields, key=lambda each: each.kw_only)  # positional ones first
        for number, each in enumerate(fields):
            if each.kw_only and "*" not in parameters:
                parameters.append("*")
            value = each.name
            if each.default_factory is not dataclasses.MISSING:
                names[f"_d{number}"] = each.default_factory
                parameters.append(f"{each.name}=_MADE")
                value = f"_d{number}() if {value} is _MADE else {value}"
            elif each.default is not dataclasses.MISSING:
                names[f"_d{number}"] = each.default
                parameters.append(f"{each.name}=_d{number}")
            else:
                parameters.append(each.name)
            lines.append(
                f"_set(self, {each.name!r}, {value})" if frozen else f"self.{each.name} = {value}"
            )
        if hasattr(cls, "__post_init__"):
            lines.append("self.__post_init__()")
        body = "\n ".join(lines or ["pass"])
        made = {}
        exec(f"def __init__({', '.join(parameters)}):\n {body}", names, made)  # noqa: S102
        init = made["__init__"]
        init.__qualname__ = f"{cls.__qualname__}.__init__"
        init.__module__ = cls.__module__
        init.__annotations__ = {each.name: each.type for each in fields} | {"return": None}
        return init

    def _values_of(fields):
        names = [each.name for each in fields if each.compare]
        return lambda record: [getattr(record, name) for name in names]

    def _comparing(fields):
        values = _values_of(fields)

        def equal(self, other):
            if other.__class__ is not self.__class__:
                return NotImplemented
            return values(self) == values(other)

        return {"__eq__": equal}

    def _repr(fields):
        names = [each.name for each in fields if each.repr]

        @recursive_repr()
        def shown(self):
            values = ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
            return f"{self.__class__.__qualname__}({values})"

        return shown

    def _freezing(cls, fields, slots):
        names = frozenset(each.name for each in fields)
        values = _values_of(fields)

        def refuse_to_set(self, name, value):
            if type(self) is cls or name in names:
                raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")
            super(cls, self).__setattr__(name, value)

        def refuse_to_delete(self, name):
            if type(self) is cls or name in names:
                raise dataclasses.FrozenInstanceError(f"cannot delete field {name!r}")
            super(cls, self).__delattr__(name)

        def hashed(self):
            return hash(tuple(values(self)))

        methods = {
            "__setattr__": refuse_to_set,
            "__delattr__": refuse_to_delete,
            "__hash__": hashed,
        }
        if slots:
            ordered = [each.name for each in fields]

            def state(self):
                return [getattr(self, name) for name in ordered]

            def restore(self, values):
                for name, value in zip(ordered, values, strict=True):
                    object.__setattr__(self, name, value)

            methods |= {"__getstate__": state, "__setstate__": restore}
        return methods
