"""Modules that are loaded on first use: the difference is invisible to their users."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest


def said_by(program: str) -> list[str]:
    """Return the output of a new interpreter that runs this program."""
    command = [sys.executable, "-c", textwrap.dedent(program)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert 0 == ran.returncode, ran.stderr
    return ran.stdout.split()


def test_asyncio_works_without_modules_that_it_names_and_loads_them_once_used() -> None:
    program = """
        import functools, sys
        from aflow._core import deferred
        said = lambda: None
        deferred.import_asyncio()
        asked = ("ssl", "inspect", "asyncio.sslproto")
        print(*(name in deferred.loaded() for name in asked))
        import asyncio, inspect, ssl
        print(asyncio.run(asyncio.sleep(0, "slept")))
        print(*(name in deferred.loaded() for name in asked))
        print(asyncio.sslproto.ssl is ssl, issubclass(ssl.SSLWantReadError, OSError))
        print(asyncio.sslproto.SSLAgainErrors == (ssl.SSLWantReadError, ssl.SSLSyscallError))
        print(*map(inspect.iscoroutinefunction, (asyncio.sleep, said)), type(ssl).__name__)
        print(*(name in deferred.loaded() for name in asked))
        # What is not clear at once, the module has to say.
        print(inspect.iscoroutinefunction(functools.partial(asyncio.sleep, 0)))
        print("inspect" in deferred.loaded(), inspect.iscoroutinefunction(said))
    """

    expected = (
        "False False False slept False False False True True True True False module "
        "True False True True True False"
    )
    assert expected.split() == said_by(program)


def test_a_module_that_was_deferred_is_loaded_once_whichever_thread_comes_first() -> None:
    program = """
        import sys, threading
        from aflow._core import deferred
        deferred.defer(["decimal", "colorsys", "no_such_module"])
        import colorsys
        assert "no_such_module" not in sys.modules
        together = threading.Barrier(8)
        found = []
        def use():
            together.wait()
            found.append(colorsys.rgb_to_hsv)
        threads = [threading.Thread(target=use) for _ in range(8)]
        [each.start() for each in threads]
        [each.join() for each in threads]
        print(len(found), len(set(found)), "decimal" in deferred.loaded())
        deferred.load_all()
        print("decimal" in deferred.loaded())
    """

    assert ["8", "1", "False", "True"] == said_by(program)


@pytest.mark.parametrize(
    "use", ["from inspect import *", "import inspect; vars(inspect)['cleandoc']"]
)
def test_a_deferred_module_is_loaded_by_what_asks_for_all_of_it(use: str) -> None:
    program = f"""
        from aflow._core import deferred
        deferred.defer(["inspect"])
        {use}
        print("inspect" in deferred.loaded())
    """

    assert ["True"] == said_by(program)


def test_a_function_that_names_a_deferred_module_is_pickled_by_value() -> None:
    program = """
        import cloudpickle, sys
        from aflow._core import deferred
        deferred.defer(["colorsys"])
        import colorsys
        stored = cloudpickle.dumps(lambda: colorsys.rgb_to_hsv(0, 0, 0)[2])
        print("colorsys" in deferred.loaded(), cloudpickle.loads(stored)())
    """

    assert ["False", "0"] == said_by(program)


def test_one_module_can_be_loaded_and_the_others_stay_deferred() -> None:
    program = """
        import sys
        from aflow._core import deferred
        deferred.defer(["decimal", "colorsys"])
        deferred.load("colorsys")
        deferred.load("no_such_module")
        print(*({"decimal", "colorsys"} & {*deferred.loaded()}))
    """

    assert ["colorsys"] == said_by(program)
