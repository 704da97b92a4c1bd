"""Apply a function to many items in several processes, for steps that have several cores."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from itertools import islice
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
    items = enumerate(iterable)
    first = [*islice(items, max_parallel or usable_cpus())]
    if not first:
        return
    # Forked, so that a function that cannot be pickled, such as a lambda, is inherited.
    context = multiprocessing.get_context("fork")
    pool = ProcessPoolExecutor(len(first), context, _remember, (func,))
    try:
        # An item is taken when a process is free for it: the iterable may be large or endless.
        places = {pool.submit(_call, cloudpickle.dumps(item)): place for place, item in first}
        while places:
            for done in wait(places, return_when=FIRST_COMPLETED).done:
                place, result = places.pop(done), done.result()
                for next_place, item in islice(items, 1):
                    places[pool.submit(_call, cloudpickle.dumps(item))] = next_place
                yield place, cloudpickle.loads(result)
    finally:
        # Not all results are wanted after an error, or if the caller stops early.
        pool.shutdown(wait=not places, cancel_futures=True)


def _remember(func: Callable[[Any], Any]) -> None:
    global _function
    _function = func


def _call(item: bytes) -> bytes:
    assert _function is not None, "every process is given the function first"
    result: bytes = cloudpickle.dumps(_function(cloudpickle.loads(item)))
    return result
