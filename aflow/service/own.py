"""aflow's own runs, as Metaflow's clients are told of runs: beside those that are registered.

The tasks of a run are read as far as they are told.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from aflow import ids
from aflow.clock import shown_time
from aflow.errors import InvalidName, RegistrationRefused, StorageError
from aflow.interop.copies import Copies
from aflow.service import checks, facts
from aflow.service.messages import Answer, Asked, Lister, Listing
from aflow.service.own_rows import FewRows, Joined, Own, Rows, TaskRows
from aflow.service.own_told import (
    artifacts_told,
    facts_told,
    flow_told,
    latest_told,
    passes,
    run_told,
    status_of,
    steps_told,
    task_told,
)
from aflow.service.paging import Page, page_of
from aflow.service.patterns import is_found

if TYPE_CHECKING:
    from aflow.metadata.base import MetadataStore, RunRecord, TaskView
    from aflow.storage.base import ObjectStore

_log = logging.getLogger("aflow.service")
_FIRST_RUN = 1 << 60  # keys of own runs are above those of others: they come first


class OwnRuns:
    """The runs that a metadata store of aflow's holds. `open_store` opens the object store of a
    run by its URL, or gives None for one that is not to be used: then nobody but aflow can read
    the values of its artifacts."""

    def __init__(
        self, store: MetadataStore, open_store: Callable[[str], ObjectStore | None] | None = None
    ) -> None:
        self._store = store
        self._open_store = open_store
        self._copies: dict[str, Copies | None] = {}

    def has_flow(self, flow: str) -> bool:
        """Whether there is a run of the flow."""
        return bool(self._store.runs(flow, limit=1))

    def _copies_of(self, run: RunRecord) -> Copies | None:
        """The copies of its artifacts in Metaflow's format; None where there can be none."""
        url = str(run.settings.get("storage") or "")
        if url not in self._copies:
            store = None if self._open_store is None else self._open_store(url)
            self._copies[url] = None if store is None else Copies(store, self._store)
        return self._copies[url]

    def joined(self, name: str, asked: Asked, answer: Answer | Lister) -> Answer | Lister:
        """What the route `name` answers, with ours."""
        if isinstance(answer, Listing) and name == "get_flows":
            rows = [Own(flow, flow_told(flow, at)) for flow, at in self._store.flows()]
            passing = [each for each in rows if passes(asked.query, each.told)]
            return Joined(FewRows(passing), answer.page, answer) if passing else answer
        if isinstance(answer, Listing) and name == "get_runs":
            found = self._runs(asked, answer.page)
            return Joined(FewRows(found), answer.page, answer) if found else answer
        if isinstance(answer, Answer) and answer.body == []:
            return self._list_of_run(name, asked) or answer
        return answer

    def one(self, name: str, asked: Asked) -> Answer | None:
        """What the route `name` answers of something that is not registered."""
        if name == "get_flow":
            flows = dict(self._store.flows())
            if asked.flow in flows:
                return Answer(flow_told(asked.flow, flows[asked.flow]))
            return None
        run = self._run(asked) if "run_number" in asked.names else None
        if run is None:
            return None
        if name == "get_run":
            return Answer(run_told(run))
        if name == "get_step":
            steps = self._steps(run)
            return Answer(steps[asked.step]) if asked.step in steps else None
        if name == "change_tags":
            return self._change_tags(run, asked)
        view = self._task(run, asked) if name in ("get_task", "get_artifact") else None
        if view is None:
            return None
        if name == "get_task":
            return Answer(task_told(run, view))
        artifacts = {each["name"]: each for each in self._artifacts(run, view, write=True)}
        wanted = asked.names["artifact_name"]
        return Answer(artifacts[wanted]) if wanted in artifacts else None

    def _list_of_run(self, name: str, asked: Asked) -> Joined | None:
        run = self._run(asked)
        if run is None:
            return None
        rows: Rows
        if name == "get_steps":
            steps = self._steps(run)
            rows = FewRows(
                Own(step, told) for step, told in steps.items() if passes(asked.query, told)
            )
            return Joined(rows, page_of(asked.query, str))
        if "task_id" in asked.names:
            view = self._task(run, asked)
            told = [] if view is None else self._told_of_task(name, run, view)
            rows = FewRows(
                Own(key, each) for key, each in enumerate(told) if passes(asked.query, each)
            )
        else:
            rows = self._rows_of_tasks(name, run, asked)
        return Joined(rows, page_of(asked.query))

    def _told_of_task(self, name: str, run: RunRecord, view: TaskView) -> list[Any]:
        if name == "get_artifacts":
            return self._artifacts(run, view, write=True)
        if name == "get_metadata":
            self._write_beside(run, view)
        attempts = self._store.attempts(run.key, view.task.task)
        said = [
            (each.created_at, facts.fact(each.attempt, each.field, each.value, each.type))
            for each in self._store.metadata(run.key, view.task.task)
        ]
        return facts_told(run, view, attempts, said, self._copies_of(run))

    def _artifacts(self, run: RunRecord, view: TaskView, *, write: bool = False) -> list[Any]:
        """What the attempt has left; with `write` it can be read then where it is said to be."""
        copies = self._copies_of(run)
        try:
            left = [] if copies is None else copies.artifacts(run, view)
            if copies is not None and write:
                copies.write(run, view, left)
        except StorageError as error:  # the store is away: what is there is told all the same
            _log.warning("%s/%s: no copies for Metaflow: %s", run.flow, run.run, error)
            return artifacts_told(run, view)
        return artifacts_told(run, view, copies, left)

    def _write_beside(self, run: RunRecord, view: TaskView) -> None:
        """Have the logs and cards of a task ready: who asks for its facts may read them next."""
        copies = self._copies_of(run)
        if copies is None:
            return
        try:
            copies.write_logs(run, view)
            copies.write_cards(run, view)
        except StorageError as error:
            _log.warning("%s/%s: no logs for Metaflow: %s", run.flow, run.run, error)

    def _rows_of_tasks(self, name: str, run: RunRecord, asked: Asked) -> Rows:
        step = asked.names.get("step_name")

        def passing(told: Any) -> bool:
            return passes(asked.query, told)

        if name == "get_tasks":
            return TaskRows(self._store, run, step, lambda view: [task_told(run, view)], passing)
        if name == "get_filtered_tasks":
            filtered = self._filtered(run, asked)
            return TaskRows(self._store, run, step, filtered, lambda _: True, light=False)
        if name == "get_metadata_of_run":
            return TaskRows(self._store, run, None, lambda view: latest_told(run, view), passing)
        return TaskRows(
            self._store, run, step, lambda view: self._artifacts(run, view), passing, light=False
        )

    def _filtered(self, run: RunRecord, asked: Asked) -> Callable[[TaskView], list[Any]]:
        field = asked.query.get("metadata_field_name")
        pattern = checks.pattern(asked.query.get("pattern"))

        def of(view: TaskView) -> list[Any]:
            if field is not None or pattern is not None:
                said = self._told_of_task("get_filtered_tasks", run, view)
                if not any(
                    field in (None, each["field_name"])
                    and (pattern is None or is_found(pattern, each["value"]))
                    for each in said
                ):
                    return []
            return [f"{run.flow}/{run.run}/{view.task.step}/{view.task.task}"]

        return of

    def _runs(self, asked: Asked, page: Page | None) -> list[Own]:
        """The runs of a flow that pass; of a page no more than that has room for."""
        key = None if page is None else page.after
        if key is not None and key < _FIRST_RUN:
            return []
        until = None if key is None else (key - _FIRST_RUN) / 1e6
        limit = (
            None if page is None or len(asked.query.keys() - {"_limit", "_cursor"}) else page.limit
        )
        rows = (
            (Own(_FIRST_RUN + int(shown_time(run.created_at) * 1e6), run_told(run)), run)
            for run in self._store.runs(asked.flow, until=until, limit=limit)
        )
        return [row for row, run in rows if passes(asked.query, row.told, status_of(run))]

    def _run(self, asked: Asked) -> RunRecord | None:
        try:
            return self._store.run(asked.flow, ids.run_id(asked.run))
        except InvalidName:
            return None

    def _steps(self, run: RunRecord) -> dict[str, Any]:
        begun = [(name, at) for name, at, _ in self._store.steps(run.key)]
        return steps_told(run, [(ids.PARAMETERS_STEP, run.created_at), *begun])

    def _task(self, run: RunRecord, asked: Asked) -> TaskView | None:
        number = checks.number(asked.task)
        if number is None or number < 0:
            return None
        attempt = asked.names.get("attempt_id")
        view = self._store.task(run.key, number, None if attempt is None else int(attempt))
        return view if view is not None and view.task.step == asked.step else None

    def _change_tags(self, run: RunRecord, asked: Asked) -> Answer:
        body = checks.parsed(asked.body, dict)
        add, remove = checks.tag_list(body, "tags_to_add"), checks.tag_list(body, "tags_to_remove")
        try:
            return Answer({"tags": list(self._store.change_tags(run.key, add, remove))})
        except InvalidName as error:
            raise RegistrationRefused(422, str(error)) from error
