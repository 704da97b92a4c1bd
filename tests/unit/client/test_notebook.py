"""The representations in notebooks: relevant facts, escaped, bounded, without loading values."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any

from aflow.client import DataArtifact, Flow, Metaflow, Run, Step, Task
from aflow.scheduler.states import AttemptState, RunState
from tests.unit.client.recorded import BEGIN, Records

EVIL = "<script>alert('&')</script>"
_VOID = {"br", "hr"}


class Shown(HTMLParser):
    """The text of a fragment, which must be well-formed and contain no active content."""

    def __init__(self, fragment: str) -> None:
        super().__init__()
        self.pieces: list[str] = []
        self._open: list[str] = []
        self.feed(fragment)
        self.close()
        assert [] == self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in {"script", "style", "img", "link"}
        assert {name for name, _ in attrs} <= {"style"}
        self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert tag == self._open.pop()

    def handle_data(self, data: str) -> None:
        self.pieces.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.pieces).split())


def shown(thing: Any) -> str:
    return Shown(thing._repr_html_()).text


class Poison:
    """A value that cannot be loaded."""

    def __reduce__(self) -> Any:
        return int, ("this is not a number",)


def a_failed_run(records: Records) -> None:
    recorded = records.run(tags=[EVIL, "mine"]).task(1, "start", {"x": [1, 2], "bad": Poison()})
    log = b"".join(
        b"%016d" % (BEGIN * 1e6 + number) + b"o " + f"{EVIL} {number}".encode() + b"\n"
        for number in range(50)
    )
    later: Any = {"state": AttemptState.FAILED, "reason": EVIL, "log": log, "manifest": None}
    recorded.task(2, "middle", finished_at=BEGIN + 9, **later)
    recorded.task(3, "middle", finished_at=BEGIN + 4, **later)
    recorded.task(4, "middle", state=AttemptState.FAILED, reason="of no interest", manifest=None)
    recorded.commit()
    recorded.end(RunState.FAILED, EVIL)


def test_a_run_shows_its_steps_and_the_first_task_that_failed(records: Records) -> None:
    a_failed_run(records)
    text = shown(Run("Flow/1"))

    assert text.startswith("Run Flow/1 failed ")
    assert f"failed at middle/3: {EVIL}" in text
    assert "start 1 succeeded" in text
    assert "middle 3 failed" in text
    assert f"tags {EVIL} mine system tags " in text
    assert "took 16m 40s" in text


def test_a_run_that_goes_on_says_so(records: Records) -> None:
    records.run().task(1, "start", state=AttemptState.RUNNING, finished_at=None).commit()
    text = shown(Run("Flow/1"))

    assert text.startswith("Run Flow/1 running ")
    assert "so far" in text
    assert "failed" not in text
    assert "start 1 running" in text


def test_a_task_shows_its_artifacts_and_the_end_of_its_log(records: Records) -> None:
    a_failed_run(records)
    text = shown(Task("Flow/1/start/1"))

    assert text.startswith("Task Flow/1/start/1 succeeded attempt 0 (of 1, from 0)")
    assert "x list 2 items" in text
    assert "[1, 2]" in text
    assert "bad" in text
    failed = shown(Task("Flow/1/middle/2"))
    assert f"reason {EVIL}" in failed
    assert f"{EVIL} 49" in failed
    assert f"{EVIL} 30" not in failed


def test_an_artifact_shows_what_is_known_without_loading_it(records: Records) -> None:
    a_failed_run(records)

    text = shown(DataArtifact("Flow/1/start/1/x"))
    assert text.startswith("DataArtifact Flow/1/start/1/x type list shape 2 items size ")
    assert "[1, 2]" in text
    assert "Poison" in shown(DataArtifact("Flow/1/start/1/bad"))


def test_a_step_shows_tasks_that_failed_before_others(records: Records) -> None:
    recorded = records.run()
    for number in range(1, 921):
        state = AttemptState.FAILED if number == 7 else AttemptState.SUCCEEDED
        recorded.task(number, "start", state=state, reason="boom" if number == 7 else "")
    recorded.commit()
    fragment = Step("Flow/1/start")._repr_html_()
    text = Shown(fragment).text

    assert "Reason 7 failed" in text
    assert "and 900 more" in text
    assert "boom" in text
    assert len(fragment) < 30_000


def test_many_artifacts_and_long_values_are_cut(records: Records) -> None:
    values = {f"a{number:03}": "x" * 100_000 for number in range(120)}
    records.run().task(1, "start", values).commit()
    fragment = Task("Flow/1/start/1")._repr_html_()

    assert "and 100 more" in Shown(fragment).text
    assert len(fragment) < 30_000


def test_a_flow_and_all_flows_show_their_runs(records: Records) -> None:
    for number in range(1, 31):
        records.run(str(number), at=BEGIN + number, tags=[f"t{number}"]).commit(RunState.SUCCEEDED)
    records.run("last", at=BEGIN + 99)

    text = shown(Flow("Flow"))
    assert text.startswith("Flow Flow Run Status Started Took User Tags last running ")
    assert "30 succeeded" in text
    assert "t30" in text
    assert "and 11 more" in text
    assert "Flow last running" in shown(Metaflow())


def test_where_nothing_has_run_nothing_is_shown() -> None:
    assert "Metaflow" == shown(Metaflow())


def test_keys_are_completed_with_the_newest_parts(records: Records) -> None:
    for number in range(150):
        records.run(str(number), at=BEGIN + number)

    completed = Flow("Flow")._ipython_key_completions_()
    assert (100, "149") == (len(completed), completed[0])
