"""Apply a function to many items in several processes, for steps that have several cores."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from typing import Any, TypeVar

import cloudpickle

from aflow._core.system import usable_cpus

T = TypeVar("T")
R = TypeVar("R")

_function: Callable[[Any], Any] | None = None


def parallel_imap_unordered(
    func: Callable[[T], R],
    iterable: Iterable[T],
    max_parallel: int | None = None,
    dir: str | None = None,
) -> Iterator[R]:
    """Yield the results of `func` for all items as they are completed, in no particular order.
    `func` is called in forked processes and may be a lambda; its exceptions are raised here.

    Args:
        func: The function.
        iterable: The arguments, one for each call.
        max_parallel: The maximum number of processes; None for the number of usable cores.
        dir: Has no effect; accepted for compatibility.
    """
    for _, result in _results(func, iterable, max_parallel):
        yield result


def parallel_map(
    func: Callable[[T], R],
    iterable: Iterable[T],
    max_parallel: int | None = None,
    dir: str | None = None,
) -> list[R]:
    """Return the results of `func` for all items as a list, in the order of the items.

    Args:
        func: The function; it is called in forked processes.
        iterable: The arguments, one for each call.
        max_parallel: The maximum number of processes; None for the number of usable cores.
        dir: Has no effect; accepted for compatibility.
    """
    found = dict(_results(func, iterable, max_parallel))
    return [found[place] for place in range(len(found))]


def _results(
    func: Callable[[T], R], iterable: Iterable[T], max_parallel: int | None
) -> Iterator[tuple[int, R]]:
    items = [cloudpickle.dumps(item) for item in iterable]
    if not items:
        return
    workers = min(max_parallel or usable_cpus(), len(items))
    # Forked, so that a function that cannot be pickled, such as a lambda, is inherited.
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(workers, context, _remember, (func,)) as pool:
        places = {pool.submit(_call, item): place for place, item in enumerate(items)}
        for done in as_completed(places):
            yield places[done], cloudpickle.loads(done.result())


def _remember(func: Callable[[Any], Any]) -> None:
    global _function
    _function = func


def _call(item: bytes) -> bytes:
    assert _function is not None, "every process is given the function first"
    result: bytes = cloudpickle.dumps(_function(cloudpickle.loads(item)))
    return result
