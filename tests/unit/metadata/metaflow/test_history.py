"""Metaflow's records, some of them damaged."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from aflow.errors import AflowError, MetadataUnavailable
from aflow.metadata.metaflow.history import MetaflowHistory
from aflow.metadata.metaflow.sources import FolderSource
from aflow.scheduler.states import RunState
from aflow.storage.local import LocalStore
from tests.support.clocks import FakeClock

AT = 1_700_000_000_000  # milliseconds
VALUES: tuple[object, ...] = (None, -1, 1e300, "²", [1], {"a": 1})


def records_of_a_run(run: str) -> dict[str, dict[str, Any]]:
    """Return the files that Metaflow writes for a run, by name."""
    step = {"flow_id": "Flow", "run_number": run, "step_name": "end", "ts_epoch": AT}
    task = {**step, "task_id": "1", "tags": ["attempt_id:0"]}
    facts = {"attempt": "0", "attempt_ok": "True", "origin-run-id": "7", "origin-task-id": "8"}
    files = {
        "_meta/_self.json": {
            "flow_id": "Flow", "run_number": run, "user_name": "ann", "ts_epoch": AT,
            "last_heartbeat_ts": AT // 1000, "tags": ["a"], "system_tags": ["user:ann"],
        },
        "end/_meta/_self.json": step,
        "end/1/_meta/_self.json": task,
        "end/1/0.data.json": {
            "objects": {"x": "ab12"},
            "info": {"x": {"size": 5, "type": "<class 'int'>", "encoding": "gzip+pickle-v4"}},
        },
    }  # fmt: skip
    for number, (name, value) in enumerate(facts.items()):
        row = {**task, "field_name": name, "value": value, "type": name}
        files[f"end/1/_meta/sysmeta_{name}_{number}.json"] = row
    return files


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with two runs."""
    write(tmp_path / "Flow/_meta/_self.json", {"flow_id": "Flow", "ts_epoch": AT})
    for run in "12":
        for name, record in records_of_a_run(run).items():
            write(tmp_path / "Flow" / run / name, record)
    return tmp_path


def write(file: Path, record: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(record))


def damaged(record: dict[str, Any]) -> Iterator[object]:
    yield from ({}, [], 5, None)
    for field in record:
        yield {name: value for name, value in record.items() if name != field}
        for value in VALUES:
            yield {**record, field: value}


def opened(root: Path) -> MetaflowHistory:
    return MetaflowHistory(
        FolderSource(root),
        lambda place: LocalStore(Path(place)),
        FakeClock(AT / 1000 + 3600).now,
        left_out=lambda row: False,
        remember=0.0,
    )


@pytest.mark.parametrize("name", records_of_a_run("1"))
def test_a_damaged_record_of_a_run_hides_no_other_run_and_ends_in_one_sentence(
    root: Path, name: str
) -> None:
    for record in damaged(records_of_a_run("1")[name]):
        write(root / "Flow/1" / name, record)
        history = opened(root)
        assert "Flow" in dict(history.flows())
        assert "2" in [run.run for run in history.runs("Flow")]
        with suppress(MetadataUnavailable):  # which is one sentence
            run = history.run("Flow", "1")
            for view in history.tasks(run.key) if run is not None else ():
                history.metadata(view.run_key, view.task.task)
        history.close()


def test_a_run_of_metaflow_whose_values_are_gone_is_shown_with_its_end(root: Path) -> None:
    history = opened(root)
    run = history.run("Flow", "1")
    assert run is not None
    (task,) = [view for view in history.tasks(run.key) if view.task.task]

    assert RunState.SUCCEEDED is run.state
    assert ("end", "7/end/8") == (task.task.step, task.task.origin)
    with pytest.raises(AflowError, match="no object"):
        history.open_store(run.settings["storage"]).get("Flow/data/ab/ab12")
    history.close()
