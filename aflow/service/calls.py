"""aflow's own metadata over HTTP: the calls of the metadata port, for `metadata.service`."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from aflow import ids
from aflow.clock import LATEST
from aflow.errors import AflowError, InvalidMessage, InvalidName, MetadataUnavailable
from aflow.metadata import wire
from aflow.metadata.base import Batch, RunRecord, WorkerRecord

if TYPE_CHECKING:
    from aflow.metadata.base import MetadataStore

_ITEMS = 200  # a frame


def answered(store: MetadataStore, name: str, body: bytes) -> Generator[bytes, None, None]:
    """The frames that answer one call. Raises InvalidMessage for one that means nothing, and
    MetadataUnavailable, if it is known before the first frame, where the store cannot be used."""
    if name not in wire.CALLS and name not in wire.STREAMS:
        raise InvalidMessage(f"There is no call {name[:40]!r} of the metadata.")
    try:
        values, named = wire.unpack(
            body, wire.MOST_CONTAINERS if name in wire.WRITES else wire.MOST_OF_QUESTION
        )
        for value in values:
            _check(value)
        result = getattr(store, name)(*values, **named)
        if name in wire.CALLS:
            yield wire.value_frame(result)
        else:
            yield from _streamed(result)
    except (MetadataUnavailable, InvalidMessage):
        raise
    except AflowError as error:
        yield wire.error_frame(error)
    except Exception as error:  # whatever a database's driver says of values that it cannot take
        raise InvalidMessage(f"The call {name} cannot be done: {error}.") from error


def _streamed(items: Iterator[Any]) -> Iterator[bytes]:
    while chunk := list(islice(items, _ITEMS)):
        yield wire.items_frame(chunk)
    yield wire.end_frame()


def _check(value: object) -> None:
    """Names become paths and pathspecs for those who read them, and times dates: nobody stores one
    that is none."""
    try:
        if isinstance(value, RunRecord):
            ids.flow_name(value.flow)
            ids.run_id(value.run)
            _check_times(value.created_at, value.finished_at, value.heartbeat_at)
        elif isinstance(value, WorkerRecord):
            ids.worker_name(value.name)
            _check_times(value.started_at, *(each.since for each in value.running))
        elif isinstance(value, Batch):
            for task in value.tasks:
                ids.step_name(task.step)
                _check_times(task.created_at)
            for attempt in value.attempts:
                _check_times(attempt.started_at, attempt.finished_at)
            for each in value.metadata:
                _check_times(each.created_at)
    except InvalidName as error:
        raise InvalidMessage(str(error)) from error


def _check_times(*times: float | None) -> None:
    for at in times:
        if at is not None and not 0 <= at <= LATEST:
            raise InvalidMessage(f"{at!r} is no time: times are in seconds since 1970.")
