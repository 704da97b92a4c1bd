# ruff: noqa: E501 -- each way to hold a value is one line of a table
"""Values in the code of a step, in every construct: another value changes the fingerprint.

Each construct gets the expression of the nested one, so that they can be combined; hypothesis
generates the combinations.
"""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aflow.flow.spec import define
from aflow.runs.cache.fingerprint import fingerprints, untellable

IMPORTS = """\
import abc, array, asyncio, collections, contextlib, contextvars, dataclasses, datetime, decimal
import enum, fractions, functools, importlib, io, itertools, json, math, operator, os, pathlib
import random, re, string, sys, threading, types, typing, uuid, weakref

def identity(x):
    return x

def finished(coroutine):
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
"""
FLOW = """\
from aflow import FlowSpec, step

{top}
class F(FlowSpec):
    @step
    def start(self):
        self.r = {expression}
        self.next(self.end)

    @step
    def end(self):
        pass

def probe():
    return {expression}
"""

# By name: what stands at the top of the module, and the expression that gives the value back.
# E is the expression inside, N a number of its own.
WAYS = {
    "a function": ("def fN():\n    return E", "fN()"),
    "a lambda": ("fN = lambda: E", "fN()"),
    "a text in a lambda": ("fN = lambda: 'V'", "int(fN())"),
    "a constant that is the docstring, too": ("def fN():\n    'V'\n    return 'V'", "int(fN())"),
    "a docstring that is read": ("def fN():\n    'V'", "int(fN.__doc__)"),
    "two lambdas of one name": ("fN = [lambda: E, lambda: 0]", "fN[0]()"),
    "a plain value": ("xN = E", "xN"),
    "values in values": ("xN = {'a': [(E, None)]}", "xN['a'][0][0]"),
    "a function in a dict": ("def fN():\n    return E\ndN = {'a': fN}", "dN['a']()"),
    "a default": ("def fN(x=E):\n    return x", "fN()"),
    "a default by name": ("def fN(*, x=(E,)):\n    return x[0]", "fN()"),
    "a default that is an object": (
        "class ON:\n    def __init__(self):\n        self.x = E\ndef fN(o=ON()):\n    return o.x",
        "fN()",
    ),
    "a closure": ("def mN(x):\n    def fN():\n        return x\n    return fN\ncN = mN(E)", "cN()"),
    "a function inside": ("def fN():\n    def g():\n        return E\n    return g()", "fN()"),
    "a generator": ("def fN():\n    yield E", "next(fN())"),
    "a coroutine": ("async def fN():\n    return E", "finished(fN())"),
    "a comprehension": ("def fN():\n    return [E for _ in 'a'][0]", "fN()"),
    "a handler": (
        "def fN():\n    try:\n        raise ValueError\n    except ValueError:\n        return E",
        "fN()",
    ),
    "@lru_cache": ("@functools.lru_cache\ndef fN():\n    return E", "fN()"),
    "@cache in a dict": ("@functools.cache\ndef fN():\n    return E\ndN = {1: fN}", "dN[1]()"),
    "@contextmanager": (
        "@contextlib.contextmanager\ndef cN():\n    yield E\n"
        "def fN():\n    with cN() as x:\n        return x",
        "fN()",
    ),
    "@singledispatch": (
        "@functools.singledispatch\ndef sN(x):\n    return 0\n"
        "@sN.register(int)\ndef _(x):\n    return E",
        "sN(1)",
    ),
    "a decorator without wraps": (
        "def dN(g):\n    return lambda: g()\n@dN\ndef fN():\n    return E",
        "fN()",
    ),
    "a decorator with wraps": (
        "def dN(g):\n    @functools.wraps(g)\n    def h():\n        return E\n    return h\n"
        "@dN\ndef fN():\n    pass",
        "fN()",
    ),
    "partial": ("pN = functools.partial(identity, E)", "pN()"),
    "partial of a function": ("def fN():\n    return E\npN = functools.partial(fN)", "pN()"),
    "reduce with a lambda": ("rN = functools.partial(functools.reduce, lambda a, b: E)", "rN([1, 2])"),
    "an attribute of a function": ("def fN():\n    pass\nfN.x = E", "fN.x"),
    "a class attribute": ("class CN:\n    A = E", "CN.A"),
    "a class attribute that is not a plain value": ("class CN:\n    A = pathlib.Path(str(E))", "int(str(CN.A))"),
    "a method": ("class CN:\n    def m(self):\n        return E", "CN().m()"),
    "a method of an instance": ("class CN:\n    def m(self):\n        return E\noN = CN()", "oN.m()"),
    "a bound method": ("class CN:\n    def m(self):\n        return E\nbN = CN().m", "bN()"),
    "a static method": ("class CN:\n    @staticmethod\n    def m():\n        return E", "CN.m()"),
    "a class method": ("class CN:\n    @classmethod\n    def m(cls):\n        return E", "CN.m()"),
    "a property": ("class CN:\n    @property\n    def m(self):\n        return E\noN = CN()", "oN.m"),
    "a setter": (
        "class CN:\n    @property\n    def m(self):\n        return self.x\n"
        "    @m.setter\n    def m(self, value):\n        self.x = E\n"
        "def fN():\n    o = CN()\n    o.m = 0\n    return o.m",
        "fN()",
    ),
    "a cached property": (
        "class CN:\n    @functools.cached_property\n    def m(self):\n        return E\noN = CN()",
        "oN.m",
    ),
    "a partial method": (
        "class CN:\n    def g(self, x):\n        return x\n"
        "    m = functools.partialmethod(g, E)\noN = CN()",
        "oN.m()",
    ),
    "__call__": ("class CN:\n    def __call__(self):\n        return E\noN = CN()", "oN()"),
    "__getattr__": ("class CN:\n    def __getattr__(self, name):\n        return E\noN = CN()", "oN.some"),
    "an operator": ("class CN:\n    def __add__(self, x):\n        return E\noN = CN()", "(oN + 1)"),
    "a descriptor": (
        "class DN:\n    def __get__(self, o, c):\n        return E\nclass CN:\n    m = DN()\noN = CN()",
        "oN.m",
    ),
    "what is inherited": ("class BN:\n    def m(self):\n        return E\nclass CN(BN):\n    pass", "CN().m()"),
    "a metaclass": (
        "class MN(type):\n    def m(cls):\n        return E\nclass CN(metaclass=MN):\n    pass",
        "CN.m()",
    ),
    "a class inside": ("class CN:\n    class D:\n        A = E", "CN.D.A"),
    "a class in a dict": ("class CN:\n    A = E\ndN = {'a': CN}", "dN['a'].A"),
    "a class made by type": ("CN = type('CN', (), {'A': E})", "CN.A"),
    "a method that was put there": ("class CN:\n    pass\nCN.m = lambda self: E", "CN().m()"),
    "an attribute of an instance": (
        "class CN:\n    def __init__(self, x):\n        self.x = x\noN = CN(E)",
        "oN.x",
    ),
    "slots": (
        "class CN:\n    __slots__ = ('x',)\n    def __init__(self, x):\n        self.x = x\noN = CN(E)",
        "oN.x",
    ),
    "a dataclass": ("@dataclasses.dataclass\nclass CN:\n    x: int = E", "CN().x"),
    "a frozen dataclass": (
        "@dataclasses.dataclass(frozen=True, slots=True)\nclass CN:\n    x: int\noN = CN(E)",
        "oN.x",
    ),
    "a default factory": (
        "@dataclasses.dataclass\nclass CN:\n    x: list = dataclasses.field(default_factory=lambda: [E])",
        "CN().x[0]",
    ),
    "a named tuple": ("class CN(typing.NamedTuple):\n    x: int = E", "CN().x"),
    "an Enum": ("class CN(enum.Enum):\n    A = E", "CN.A.value"),
    "an IntEnum in a dict": ("class CN(enum.IntEnum):\n    A = E\ndN = {'a': CN.A}", "int(dN['a'])"),
    "a method of an Enum": ("class CN(enum.Enum):\n    A = 0\n    def m(self):\n        return E", "CN.A.m()"),
    "an abstract class": (
        "class BN(abc.ABC):\n    @abc.abstractmethod\n    def m(self): ...\n"
        "class CN(BN):\n    def m(self):\n        return E",
        "CN().m()",
    ),
    "a pattern": ("rN = re.compile(str(E))", "int(rN.pattern)"),
    "flags of a pattern": ("rN = re.compile('a', [re.I, re.M][E - 1])", "1 + (re.M in re.RegexFlag(rN.flags))"),
    "a date": ("xN = datetime.date(2000, 1, E)", "xN.day"),
    "a time with a zone": (
        "xN = datetime.datetime(2000, 1, 1, tzinfo=datetime.timezone(datetime.timedelta(hours=E)))",
        "xN.utcoffset().seconds // 3600",
    ),
    "a timedelta": ("xN = datetime.timedelta(E)", "xN.days"),
    "a path": ("xN = pathlib.Path('data%d.csv' % E)", "int(str(xN)[4])"),
    "a Decimal": ("xN = decimal.Decimal(E)", "int(xN)"),
    "a Fraction": ("xN = fractions.Fraction(E)", "int(xN)"),
    "a UUID": ("xN = uuid.UUID(int=E)", "xN.int"),
    "a range": ("xN = range(E)", "len(xN)"),
    "a slice": ("xN = slice(E)", "xN.stop"),
    "bytes": ("xN = bytes([E])", "xN[0]"),
    "a bytearray": ("xN = bytearray([E])", "xN[0]"),
    "a frozenset": ("xN = frozenset({'a', str(E)})", "int((xN - {'a'}).__iter__().__next__())"),
    "a set of tuples": ("xN = {(E, 'a')}", "[*xN][0][0]"),
    "a deque": ("xN = collections.deque([E])", "xN[0]"),
    "a Counter": ("xN = collections.Counter({'a': E})", "xN['a']"),
    "a defaultdict": ("xN = collections.defaultdict(lambda: E)", "xN['a']"),
    "an OrderedDict": ("xN = collections.OrderedDict(a=E)", "xN['a']"),
    "a ChainMap": ("xN = collections.ChainMap({'a': E})", "xN['a']"),
    "a read-only dict": ("xN = types.MappingProxyType({'a': E})", "xN['a']"),
    "a namespace": ("xN = types.SimpleNamespace(a=E)", "xN.a"),
    "an array": ("xN = array.array('i', [E])", "xN[0]"),
    "an exception": ("xN = ValueError(E)", "xN.args[0]"),
    "a subclass of dict": ("class CN(dict):\n    pass\nxN = CN(a=E)", "xN['a']"),
    "a value that holds itself": ("xN = [E]\nxN.append(xN)", "xN[1][0]"),
    "a stream": ("xN = io.StringIO(str(E))", "int(xN.getvalue())"),
    "an iterator": ("xN = itertools.repeat(E)", "next(xN)"),
    "a random generator": ("xN = random.Random(E)", "(xN.seed(0), E)[1]"),
    # What cannot be hashed by its content: the source of its module counts.
    "an object with a lock": ("class CN:\n    pass\noN = CN()\noN.lock = threading.Lock()\noN.x = E", "oN.x"),
    "a value of threads": ("xN = threading.local()\nxN.x = E", "xN.x"),
    "a context variable": ("xN = contextvars.ContextVar('x', default=E)", "xN.get()"),
    "a generator that was begun": ("xN = (each for each in [E])", "(E, xN)[0]"),
    "a memory view": ("xN = memoryview(bytes([E]))", "xN[0]"),
    # Values that are found by a string.
    "getattr of a module": ("xN = E", "getattr(sys.modules[__name__], 'x' + 'N')"),
    "globals()": ("def fN():\n    return E", "globals()['f' + 'N']()"),
    "eval": ("def fN():\n    return E", "eval('f' + 'N()')"),
    "exec at the top": ("nN = {}\nexec('def f(): return %d' % E, globals(), nN)", "nN['f']()"),
    "methodcaller": ("class CN:\n    def m(self):\n        return E\noN = CN()", "operator.methodcaller('m')(oN)"),
    # Code that runs when the module is imported.
    "a change of another module": ("string.probe_of_aflow_N = E", "string.probe_of_aflow_N"),
    "a change by a function": (
        "def fN():\n    string.probe_of_aflow_N = E\nfN()",
        "string.probe_of_aflow_N",
    ),
    "a change by a call that is kept": (
        "def fN():\n    string.probe_of_aflow_N = E\n_ = fN()",
        "string.probe_of_aflow_N",
    ),
    "a variable of the environment": ("os.environ['AFLOW_PROBE_N'] = str(E)", "int(os.environ['AFLOW_PROBE_N'])"),
    "a change under a condition": (
        "if True:\n    string.probe_of_aflow_N = E",
        "string.probe_of_aflow_N",
    ),
    # Other modules: H is one, which has the rest.
    "a module": ("import H", "H.G()"),
    "a name of a module": ("from H import G as gN", "gN()"),
    "all names of a module": ("from H import *", "G()"),
    "a module by another name": ("import H as hN", "hN.G()"),
    "a module that is handed on": ("import H\ndef gN(m, name):\n    return getattr(m, name)()", "gN(H, 'G')"),
    "a module in a dict": ("import H\ndN = {'m': H}", "dN['m'].G()"),
    "an import in a function": ("def gN():\n    import H\n    return H.G()", "gN()"),
    "a name that a function imports": ("def gN():\n    from H import G\n    return G()", "gN()"),
    "a method that imports": (
        "class CN:\n    def m(self):\n        from H import G\n        return G()\noN = CN()",
        "oN.m()",
    ),
    "import_module": ("", "importlib.import_module('H').G()"),
    "__import__": ("", "__import__('H').G()"),
    "import_module at the top": ("hN = importlib.import_module('H')", "hN.G()"),
    "import_module by its name": ("from importlib import import_module", "import_module('H').G()"),
    "import_module by another name": ("iN = importlib.import_module", "iN('H').G()"),
    "import_module in a class": ("class CN:\n    i = staticmethod(importlib.import_module)", "CN.i('H').G()"),
    "import_module in a partial": ("pN = functools.partial(importlib.import_module, 'H')", "pN().G()"),
    "__import__ by another name": ("iN = __import__", "iN('H').G()"),
    "eval by another name": ("eN = eval\ndef fN():\n    return E", "eN('f' + 'N()')"),
    "sys.modules by its name": ("from sys import modules\nimport H", "modules['H'].G()"),
}  # fmt: skip


class Written:
    """A flow in a separate folder, with its other modules by name; rewritten for each value."""

    def __init__(self, **texts: str) -> None:
        self.texts = {name.replace("__", "."): text for name, text in texts.items()}

    def hold(self, ways: list[str]) -> None:
        """Write a flow whose first step reaches a value in these ways, the innermost first."""
        top, expression = "", "V"
        for number, name in enumerate(ways):
            below, above = WAYS[name]
            if "H" in below or "H" in above:
                module = f"helper_of_aflow_{number}"
                self.texts[module] = (
                    f"{IMPORTS}\n{top}\ndef given_{number}():\n    return {expression}\n"
                )
                top, expression = "", f"given_{number}()"
                below, above = (
                    re.sub(r"\bG\b", f"given_{number}", each.replace("H", module))
                    for each in (below, above)
                )
            inner = f"({expression})".replace("\\", r"\\")
            filled = re.sub(r"\bE\b", inner, below)
            top += re.sub(r"N\b", str(number), filled) + "\n"
            above = re.sub(r"\bE\b", inner, above)
            expression = re.sub(r"N\b", str(number), above)
        self.texts["flow_of_aflow"] = IMPORTS + FLOW.format(top=top, expression=expression)

    def load(self, folder: Path, value: int) -> None:
        """Write and import the flow, and record its fingerprints and the result of `probe`."""
        for name, text in self.texts.items():
            file = folder.joinpath(*name.split(".")).with_suffix(".py")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(re.sub(r"\bV\b", str(value), text))
        sys.path.insert(0, str(folder))
        importlib.invalidate_caches()
        try:
            spec = importlib.util.spec_from_file_location(
                "flow_of_aflow", folder / "flow_of_aflow.py"
            )
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules["flow_of_aflow"] = module
            spec.loader.exec_module(module)
            self.prints = fingerprints(define(module.F))
            self.result = module.probe() if hasattr(module, "probe") else value
        finally:
            sys.path.remove(str(folder))
            sys.path_importer_cache.pop(str(folder), None)
            for name in [*self.texts, "parts"]:
                sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    yield tmp_path_factory.mktemp("changes")
    for name in [each for each in vars(sys.modules["string"]) if each.startswith("probe_of_aflow")]:
        delattr(sys.modules["string"], name)
    for name in [each for each in os.environ if each.startswith("AFLOW_PROBE")]:
        del os.environ[name]


counted = iter(range(1_000_000))


def check(folders: Path, ways: list[str]) -> None:
    written = Written()
    written.hold(ways)
    assert "start" in changed(folders, written), written.texts


def changed(folders: Path, written: Written) -> set[str]:
    """Return the steps whose fingerprint changes with the value; an equal value has equal ones."""
    found = []
    for value in (1, 1, 2):
        written.load(folders / str(next(counted)), value)
        assert value == written.result, written.texts
        found.append(written.prints)
    assert found[0] == found[1], written.texts
    return {step for step in found[0] if found[0][step] != found[2][step]}


@pytest.mark.parametrize("way", WAYS)
def test_another_value_is_another_fingerprint(folders: Path, way: str) -> None:
    check(folders, [way])


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(sorted(WAYS)), min_size=2, max_size=4))
def test_another_value_is_another_fingerprint_however_it_is_held(
    folders: Path, ways: list[str]
) -> None:
    check(folders, ways)


def test_values_of_libraries_count_by_their_content(folders: Path) -> None:
    for held in ("numpy.array([0, V])", "pandas.DataFrame({'a': [V, 0]})", "numpy.float64(V)",
                 "numpy.random.default_rng(V)", "pandas.Timestamp(V)", "numpy.dtype('i%d' % (4 * V))",
                 "numpy.vectorize(lambda x: x + V)", "{'a': pandas.Series(['V', 'x'])}"):  # fmt: skip
        flow = TWO_STEPS.format(
            top=f"import numpy, pandas\nX = {held}", made="1", decorator="", used="X"
        )
        assert {"end"} == changed(folders, Written(flow_of_aflow=flow)), held


TWO_STEPS = """
from aflow import FlowSpec, UserStepDecorator, step, user_step_decorator
{top}
class F(FlowSpec):
    @step
    def start(self):
        self.model = {made}
        self.next(self.end)

    {decorator}
    @step
    def end(self):
        self.r = {used}
"""


@pytest.mark.parametrize(
    ("methods", "used"),
    [
        ("def predict(self, x): return V", "self.model.predict(1)"),
        ("def __call__(self): return V", "self.model()"),
        ("rate = V", "self.model.rate"),
        ("def other(self): return V", "getattr(self.model, 'oth' + 'er')()"),
        ("def other(self): return V\n    def predict(self): return self.other()", "self.model.predict()"),
        ("rate = V", "'{0.rate}'.format(self.model)"),
        ("rate = V", "self.model.__getattribute__('rat' + 'e')"),
        ("rate = V", "attrgetter('rate')(self.model)"),
        ("rate = property(lambda self: 0, lambda self, x: V)", "setattr(self.model, 'rate', 1)"),
    ],
)  # fmt: skip
def test_the_class_of_an_artifact_counts_for_the_step_that_uses_it(
    folders: Path, methods: str, used: str
) -> None:
    top = "import models\nfrom operator import attrgetter"
    flow = TWO_STEPS.format(top=top, made="models.Model()", decorator="", used=used)
    written = Written(models=f"class Model:\n    {methods}\n", flow_of_aflow=flow)
    assert "end" in changed(folders, written)


@pytest.mark.parametrize(
    ("base", "called"),
    [
        ("bases.Base", "super().end()"),
        ("bases.Base", "bases.Base.end(self)"),
        ("bases.Base", "self.hook()"),
        ("FlowSpec", "bases.Base.hook(self)"),
    ],
)
def test_what_a_flow_calls_of_its_bases_and_of_other_flows_counts(
    folders: Path, base: str, called: str
) -> None:
    bases = (
        "from aflow import FlowSpec, step\n"
        "class Base(FlowSpec):\n    @step\n    def end(self): self.r = V\n"
        "    def hook(self): return V\n"
    )
    flow = TWO_STEPS.format(top="import bases", made="0", decorator="", used=called)
    flow = flow.replace("(FlowSpec):", f"({base}):\n    def hook(self): return super().hook()\n")
    assert "end" in changed(folders, Written(bases=bases, flow_of_aflow=flow))


@pytest.mark.parametrize(
    "parameter",
    ["Parameter('p', type=models.Model)", "IncludeFile('p', default='p.txt', parser=models.Model)"],
)
def test_the_class_of_a_parameter_counts_for_the_first_step_too(
    folders: Path, parameter: str
) -> None:
    top = "import models\nfrom aflow import IncludeFile, Parameter"
    flow = TWO_STEPS.format(top=top, made="self.p.predict()", decorator="", used="0")
    flow = flow.replace("class F(FlowSpec):", f"class F(FlowSpec):\n    p = {parameter}\n")
    models = "class Model:\n    def __init__(self, text): pass\n    def predict(self): return V\n"
    assert "start" in changed(folders, Written(models=models, flow_of_aflow=flow))


@pytest.mark.parametrize(
    "made",
    [
        "0; from models import Model; self.model = Model()",
        "0; import makers; self.model = makers.make()",
        "makers.make_later()",
    ],
)
@pytest.mark.parametrize(("used", "counts"), [("predict", True), ("others", False)])
def test_the_class_of_an_artifact_counts_that_another_step_has_imported_itself(
    folders: Path, made: str, used: str, counts: bool
) -> None:
    flow = TWO_STEPS.format(
        top="import makers" if made.endswith("later()") else "",
        made=made, decorator="", used=f"self.model.{used}()",
    )  # fmt: skip
    makers = (
        "def make():\n    from models import Model\n    return Model()\n"
        "def make_later(): return make()\n"
    )
    models = "class Base:\n    def predict(self): return V\nclass Model(Base): pass\n"
    written = Written(models=models, makers=makers, flow_of_aflow=flow)
    assert counts is ("end" in changed(folders, written))


@pytest.mark.parametrize(
    "used",
    [
        "0; import asyncio; asyncio.create_subprocess_exec('python', 'models.py')",
        "0; import operator; operator.attrgetter('rate')(self.model)",
        "0; from operator import methodcaller as call; call('rate')(self.model)",
        "0; import os; os.system('python models.py')",
        "0; from os import popen as begun; begun('python models.py')",
        "0; import sys; sys.modules['models'].Model",
    ],
)
def test_what_a_step_imports_itself_finds_code_by_strings_too(folders: Path, used: str) -> None:
    flow = TWO_STEPS.format(top="import models", made="models.Model()", decorator="", used=used)
    written = Written(models="class Model:\n    rate = V\n", flow_of_aflow=flow)
    assert "end" in changed(folders, written)


@pytest.mark.parametrize(
    "used", ["0; import os; os.path.join('a', 'b')", "0; import sys; sys.argv"]
)
def test_what_a_step_imports_itself_to_find_no_code_changes_nothing(
    folders: Path, used: str
) -> None:
    flow = TWO_STEPS.format(top="import models", made="models.Model()", decorator="", used=used)
    written = Written(models="class Model:\n    rate = V\n", flow_of_aflow=flow)
    assert "end" not in changed(folders, written)


@pytest.mark.parametrize(
    "top",
    [
        "class D(UserStepDecorator):\n    def pre_step(self, *a, **k): self.x = V",
        "@user_step_decorator\ndef D(name, flow, inputs):\n    flow.x = V\n    yield",
        "def helper(): return V\n@user_step_decorator\ndef D(name, flow, inputs):\n    helper()\n    yield",
    ],
)  # fmt: skip
def test_a_decorator_of_the_user_counts_for_its_step(folders: Path, top: str) -> None:
    flow = TWO_STEPS.format(top=top, made="1", decorator="@D", used="self.x")
    assert {"end"} == changed(folders, Written(flow_of_aflow=flow))


@pytest.mark.parametrize(
    "member",
    [
        "def __init__(self, **k):\n        self.x = V\n        super().__init__(**k)",
        "@property\n    def x(self): return V",
        "x = {'a': identity}",
        "x = staticmethod(lambda: V)",
        "def __getattr__(self, name): return V",
    ],
)
def test_what_the_flow_has_beside_its_steps_counts_where_it_is_used(
    folders: Path, member: str
) -> None:
    flow = TWO_STEPS.format(top="def identity(): return V", made="1", decorator="", used="self.x")
    flow = flow.replace("class F(FlowSpec):", f"class F(FlowSpec):\n    {member}\n")
    assert "end" in changed(folders, Written(flow_of_aflow=flow))


@pytest.mark.parametrize("place", ["top", "step"])
@pytest.mark.parametrize(
    "imported",
    [
        "from parts.inner import f",
        "import parts.inner as p; f = p.f",
        "from parts import inner; f = inner.f",
        "import parts.inner; f = parts.inner.f",
        "from parts import f",
    ],
)
def test_packages_and_relative_imports_are_followed(
    folders: Path, imported: str, place: str
) -> None:
    flow = FLOW.format(top=imported if place == "top" else "", expression="f()")
    if place == "step":
        flow = flow.replace("self.r = f()", f"{imported}; self.r = f()").partition("def probe")[0]
    written = Written(
        parts__inner="from . import deep\nfrom .deep import g\ndef f():\n    return g() + deep.zero()",
        parts__deep="def g():\n    return V\ndef zero():\n    return 0",
        flow_of_aflow=flow,
    )
    written.texts["parts.__init__"] = "from .inner import f"
    assert {"start"} == changed(folders, written)


def test_what_no_step_reaches_changes_nothing(folders: Path) -> None:
    top = (
        "import others\nUNUSED = V\ndef unused(): return V\n"
        "class Unused:\n    def never(self): return V\n"
    )
    flow = FLOW.format(top=top, expression="others.used()").partition("def probe")[0]
    others = "def used():\n    '''V'''\n    return 1  # V\ndef unused(): return V\nX = V\n"
    assert set() == changed(folders, Written(flow_of_aflow=flow, others=others))


def test_what_is_in_no_source_cannot_be_hashed(folders: Path) -> None:
    top = (
        "import sys, threading, types\nmodule = types.ModuleType('made_of_aflow')\n"
        "exec('import threading; lock = threading.Lock(); f = lambda: lock', vars(module))\n"
        "sys.modules['made_of_aflow'] = module\n"
    )
    flow = FLOW.format(top=top, expression="module.lock").partition("def probe")[0]
    written = Written(flow_of_aflow=flow)
    written.load(folders / str(next(counted)), 1)
    assert "made_of_aflow.lock" in untellable(written.prints["start"])
    del sys.modules["made_of_aflow"]
