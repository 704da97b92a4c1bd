"""`NamedTuple` and `dataclass` of the standard library, made faster to define.

A command defines two hundred records before its first task starts. typing.NamedTuple compiles the
annotation of each field; a frozen dataclass compiles seven functions: together that was a tenth of
the time of a whole command. Here annotations stay texts, and of a dataclass `__init__` alone is
compiled. Comparing, hashing and printing take no code of their own.

Type checkers see the originals. `replace`, `fields`, `field` and `asdict` of `dataclasses` work as
they always do. Modules that are not imported at the start of a command may take the originals.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dataclasses import dataclass as dataclass
    from typing import NamedTuple as NamedTuple
else:
    import dataclasses
    from collections import namedtuple
    from reprlib import recursive_repr

    _NOT_COPIED = frozenset({"__annotations__", "__module__", "__slots__"})
    _MADE = object()  # stands for a default that is made for each record

    class _Definition(type):
        """Makes a tuple with names of the body of a class."""

        def __new__(meta, name, bases, namespace):
            if not bases:
                return super().__new__(meta, name, bases, namespace)
            fields = namespace.get("__annotations__", {})
            defaults = [namespace[field] for field in fields if field in namespace]
            if any(field in namespace for field in [*fields][: len(fields) - len(defaults)]):
                raise TypeError(f"{name}: a field without a default follows one that has one")
            made = namedtuple(name, fields, defaults=defaults, module=namespace["__module__"])
            for key, value in namespace.items():
                if key not in fields and key not in _NOT_COPIED:
                    setattr(made, key, value)
            made.__annotations__ = made.__new__.__annotations__ = dict(fields)
            return made

    class NamedTuple(metaclass=_Definition):
        """typing.NamedTuple, whose annotations are not looked at."""

    def dataclass(*, frozen=False, slots=False, repr=True, kw_only=False):
        """dataclasses.dataclass with these options."""

        def define(cls):
            own = frozenset(vars(cls))
            cls.__doc__ = cls.__doc__ or cls.__name__  # else the signature is worked out for it
            made = dataclasses.dataclass(
                cls, init=False, repr=False, eq=False, slots=slots, kw_only=kw_only
            )
            fields = dataclasses.fields(made)
            methods = {**_comparing(fields), "__init__": _init(made, fields, frozen)}
            if repr:
                methods["__repr__"] = _repr(fields)
            if frozen:
                methods |= _freezing(made, fields, slots)
            elif "__hash__" not in own:
                methods["__hash__"] = None  # it can change
            for name, method in methods.items():
                if name not in own or (name == "__hash__" and vars(cls)[name] is None):
                    setattr(made, name, method)
            return made

        return define

    def _init(cls, fields, frozen):
        names = {"_MADE": _MADE, "_set": object.__setattr__}
        parameters, lines = ["self"], []
        fields = sorted(fields, key=lambda each: each.kw_only)  # those by position first
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
