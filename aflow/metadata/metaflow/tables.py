# ruff: noqa: S608 -- names of tables are ours, all values are parameters
"""The tables of Metaflow's metadata service, for installations whose database is reachable."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from aflow._core.postgres import dict_row, psycopg
from aflow.metadata.postgres import PostgresAddress

if TYPE_CHECKING:
    from aflow.metadata.metaflow.sources import Row

_LISTS = ("tags", "system_tags")


class TablesSource:
    """The tables of Metaflow's service (`flows_v3`, `runs_v3`...) in a PostgreSQL database, in the
    first schema that has them."""

    folder: str | None = None

    def __init__(self, url: str) -> None:
        place = PostgresAddress(url)
        self.url = place.url
        self._place = place
        self._lock = threading.Lock()
        self._connection = place.connect(read_only=True)
        found = self._rows(
            "SELECT schemaname FROM pg_tables WHERE tablename = 'flows_v3' ORDER BY 1", []
        )
        self._schema = str(found[0]["schemaname"]) if found else None

    @property
    def is_there(self) -> bool:
        """Whether the database has such tables."""
        return self._schema is not None

    def _rows(self, query: str, values: Sequence[Any]) -> list[Row]:
        try:
            with self._lock:
                try:
                    return self._read(query, values)
                except psycopg.OperationalError:
                    if not self._connection.closed:
                        raise
                # The server was restarted, or has closed a connection that was idle for long.
                self._connection = self._place.connect(read_only=True)
                return self._read(query, values)
        except psycopg.Error as error:
            raise self._place.named(error) from error

    def _read(self, query: str, values: Sequence[Any]) -> list[Row]:
        with self._connection.cursor(row_factory=dict_row) as cursor:
            return [_decoded(row) for row in cursor.execute(query.encode(), values)]

    def _table(self, name: str) -> str:
        return f'"{self._schema}".{name}'

    def flows(self) -> list[Row]:
        """See RecordSource."""
        return self._rows(f"SELECT * FROM {self._table('flows_v3')} ORDER BY ts_epoch", [])

    def runs(self, flow: str) -> list[Row]:
        """See RecordSource."""
        query = f"SELECT * FROM {self._table('runs_v3')} WHERE flow_id = %s ORDER BY ts_epoch"
        return self._rows(query, [flow])

    def run(self, flow: str, run: str) -> Row | None:
        """See RecordSource."""
        where, value = ("run_number", int(run)) if run.isdigit() else ("run_id", run)
        query = f"SELECT * FROM {self._table('runs_v3')} WHERE flow_id = %s AND {where} = %s"
        return next(iter(self._rows(query, [flow, value])), None)

    def _number(self, flow: str, run: str) -> int | None:
        if run.isdigit():
            return int(run)
        table = self._table("runs_v3")
        found = self._rows(
            f"SELECT run_number FROM {table} WHERE flow_id = %s AND run_id = %s", [flow, run]
        )
        return int(found[0]["run_number"]) if found else None

    def _of_run(self, table: str, flow: str, run: str, more: str = "", *values: Any) -> list[Row]:
        number = self._number(flow, run)
        if number is None:
            return []
        query = f"SELECT * FROM {self._table(table)} WHERE flow_id = %s AND run_number = %s {more}"
        return self._rows(f"{query} ORDER BY ts_epoch", [flow, number, *values])

    def steps(self, flow: str, run: str) -> list[Row]:
        """See RecordSource."""
        return self._of_run("steps_v3", flow, run)

    def tasks(self, flow: str, run: str, step: str) -> list[Row]:
        """See RecordSource."""
        return self._of_run("tasks_v3", flow, run, "AND step_name = %s", step)

    def metadata(self, flow: str, run: str, step: str, task: str) -> list[Row]:
        """See RecordSource."""
        where, value = ("task_id", int(task)) if task.isdigit() else ("task_name", task)
        more = f"AND step_name = %s AND {where} = %s"
        return self._of_run("metadata_v3", flow, run, more, step, value)

    def metadata_of_run(self, flow: str, run: str) -> list[Row]:
        """See RecordSource."""
        return self._of_run("metadata_v3", flow, run)

    def artifacts(self, flow: str, run: str) -> list[Row]:
        """See RecordSource."""
        return self._of_run("artifact_v3", flow, run)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def _decoded(row: Row) -> Row:
    """Return a row of a table as the service returns it: with names instead of numbers."""
    decoded = dict(row)
    for name in _LISTS:
        if isinstance(decoded.get(name), str):
            decoded[name] = json.loads(decoded[name])
    for number, name in (("run_number", "run_id"), ("task_id", "task_name")):
        if decoded.get(name):
            decoded[number] = decoded[name]
    return decoded
