"""Flows, runs and steps: found by name, listed, filtered, tagged, watched."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from aflow._core.ids import MAX_TAGS
from aflow.client import Flow, Metaflow, Run, Step, Task, namespace
from aflow.errors import InvalidInput, InvalidName, NotFound
from aflow.scheduler.states import AttemptState, RunState
from tests.machine.graphs import BRANCHES
from tests.unit.client.recorded import BEGIN, SYSTEM_TAGS, Records


def test_flows_are_listed_newest_first(records: Records) -> None:
    records.run(flow="Old", at=BEGIN)
    records.run(flow="New", at=BEGIN + 1)

    assert ["New", "Old"] == [flow.id for flow in Metaflow()]
    assert ["New", "Old"] == [flow.id for flow in Metaflow().flows]


def test_a_flow_is_found_by_its_name_in_all_flows(records: Records) -> None:
    records.run(flow="One")

    assert "Flow('One')" == repr(Metaflow()["One"])
    assert "One" in Metaflow()
    assert "Two" not in Metaflow()


def test_runs_are_listed_newest_first(records: Records) -> None:
    records.run("1", at=BEGIN)
    records.run("2", at=BEGIN + 1)

    assert ["2", "1"] == [run.id for run in Flow("Flow")]
    assert ["2", "1"] == [run.id for run in Flow("Flow").runs()]
    assert "Flow/2" == Flow("Flow").latest_run.pathspec


def test_the_latest_successful_run_need_not_be_the_latest(records: Records) -> None:
    records.run("1", at=BEGIN).commit(RunState.SUCCEEDED)
    records.run("2", at=BEGIN + 1).commit(RunState.FAILED)

    assert "1" == Flow("Flow").latest_successful_run.id


def test_a_flow_whose_runs_all_failed_has_no_successful_run(records: Records) -> None:
    records.run("1").commit(RunState.FAILED)

    assert Flow("Flow").latest_successful_run is None


def test_runs_are_filtered_by_tags_status_and_time(records: Records) -> None:
    records.run("1", at=BEGIN, tags=["a", "b"]).commit(RunState.SUCCEEDED)
    records.run("2", at=BEGIN + 10, tags=["a"]).commit(RunState.FAILED)
    records.run("3", at=BEGIN + 20, tags=["b"])
    flow = Flow("Flow")
    since = datetime.fromtimestamp(BEGIN + 5, UTC)
    local = since.astimezone().replace(tzinfo=None)

    assert ["2", "1"] == [run.id for run in flow.runs("a")]
    assert ["1"] == [run.id for run in flow.runs("a", "b")]
    assert ["3"] == [run.id for run in flow.runs(status="running")]
    assert ["2", "1"] == [run.id for run in flow.runs(status=["failed", "succeeded"])]
    assert ["3", "2"] == [run.id for run in flow.runs(since=since)]
    assert ["3", "2"] == [run.id for run in flow.runs(since=local)]
    assert ["3"] == [run.id for run in flow.runs(since=BEGIN + 15)]
    assert ["3"] == [run.id for run in flow.runs(limit=1)]


def test_runs_are_read_page_by_page(records: Records) -> None:
    for number in range(1, 7):
        records.run(str(number), at=BEGIN + number)
    flow = Flow("Flow")

    first = list(flow.runs(limit=2))
    assert ["6", "5"] == [run.id for run in first]
    assert ["4", "3"] == [run.id for run in flow.runs(limit=2, after=first[-1])]
    assert ["2", "1"] == [run.id for run in flow.runs(after="3")]
    assert ["3", "2"] == [run.id for run in flow.runs(since=BEGIN + 2, until=BEGIN + 4)]
    assert [] == list(flow.runs(limit=0))


def test_more_runs_than_one_query_gives_are_listed(records: Records) -> None:
    for number in range(1, 1102):
        records.run(str(number), at=BEGIN)  # all at the same time: their keys determine the order

    assert [str(number) for number in range(1101, 0, -1)] == [run.id for run in Flow("Flow")]
    assert 700 == len(list(Flow("Flow").runs(limit=700)))


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ({"limit": -1}, "limit=-1 counts nothing"),
        ({"limit": "3"}, "limit='3' counts nothing"),
        ({"since": "yesterday"}, "since='yesterday' is not a time"),
        ({"until": True}, "until=True is not a time"),
        ({"status": ["failed", "odd"]}, "'odd' is not a status of a run"),
        ({"after": "9"}, "has no run '9'"),
    ],
)
def test_what_runs_cannot_be_narrowed_by_is_refused(
    records: Records, how: dict[str, Any], sentence: str
) -> None:
    records.run()

    with pytest.raises((InvalidInput, NotFound), match=sentence):
        Flow("Flow").runs(**how)


def test_a_page_does_not_go_on_after_a_run_of_another_flow(records: Records) -> None:
    records.run()
    records.run(flow="Other")

    with pytest.raises(InvalidInput, match=r"Run\('Other/1'\) is not a run of Flow\('Flow'\)"):
        Flow("Flow").runs(after=Run("Other/1"))


def test_tasks_are_narrowed_by_status_and_number(records: Records) -> None:
    recorded = records.run().task(1, "start").task(2, "start", state=AttemptState.FAILED)
    recorded.task(3, "start", state=AttemptState.TIMED_OUT).task(4, "start").commit()
    step = Step("Flow/1/start")

    assert ["3", "2"] == [task.id for task in step.tasks(status="failed")]
    assert ["4"] == [task.id for task in step.tasks(status="succeeded", limit=1)]
    assert ["4", "3", "2"] == [task.id for task in step.tasks(limit=3)]
    assert [] == list(step.tasks("no such tag", status="failed"))
    assert [] == list(step.tasks(limit=0))
    with pytest.raises(
        InvalidInput, match="'skipped' is not a status of a task: use ready, running"
    ):
        step.tasks(status="skipped")


def test_an_unknown_status_is_refused_with_the_known_ones(records: Records) -> None:
    records.run()

    with pytest.raises(InvalidInput, match=r"'done'.*pending, running, succeeded"):
        Flow("Flow").runs(status="done")


def test_what_is_a_part_of_what_is_decided_by_pathspecs(records: Records) -> None:
    records.run().task(1, "start").commit()
    task = Run("Flow/1")["start"]["1"]

    assert "Flow/1/start/1" == task.pathspec
    assert ["Flow", "1", "start", "1"] == task.path_components
    assert "1" == task.id
    assert "Flow/1/start" == task.parent.pathspec
    assert "Flow/1" == task.parent.parent.pathspec
    assert "Flow" == task.parent.parent.parent.pathspec
    assert task.parent.parent.parent.parent is None


def test_a_part_is_found_by_its_id_if_it_is_there(records: Records) -> None:
    records.run().task(1, "start", {"x": 1}).commit()

    assert "1" in Flow("Flow")
    assert "start" in Run("Flow/1")
    assert "1" in Step("Flow/1/start")
    assert 1 in Step("Flow/1/start")
    assert "x" in Task("Flow/1/start/1")
    assert "2" not in Flow("Flow")
    assert "end" not in Run("Flow/1")
    assert "2" not in Step("Flow/1/start")
    assert "no/name" not in Run("Flow/1")
    assert "y" not in Task("Flow/1/start/1")


@pytest.mark.parametrize(
    ("kind", "pathspec", "message"),
    [
        (Flow, "Flo", "Flow 'Flo' has never run here. Did you mean 'Flow'?"),
        (Run, "Flo/1", "Flow 'Flo' has never run here. Did you mean 'Flow'?"),
        (Run, "Flow/12346", "has no run '12346'. Did you mean '12345'?"),
        (Step, "Flow/12346/start", "has no run '12346'. Did you mean '12345'?"),
        (Step, "Flow/12345/stat", "has no step 'stat'. Did you mean 'start'?"),
        (Step, "Flow/12345/end", "has not come to step 'end' (running)"),
        (Task, "Flow/12345/start/9", "has no task 9. Step('Flow/12345/start') lists"),
        (Task, "Flow/12345/middle/1", "belongs to step 'start', not to 'middle'"),
    ],
)
def test_what_is_not_there_is_reported_with_what_is_near(
    records: Records, kind: type[Run], pathspec: str, message: str
) -> None:
    records.run("12345").task(1, "start").commit()

    with pytest.raises(NotFound) as caught:
        kind(pathspec)

    assert message in str(caught.value)
    assert isinstance(caught.value, KeyError)


def test_a_part_that_is_not_there_is_a_key_error(records: Records) -> None:
    records.run().task(1, "start").commit()

    with pytest.raises(KeyError, match="has no step 'stop'"):
        Run("Flow/1")["stop"]


@pytest.mark.parametrize(
    ("kind", "pathspec"), [(Flow, "Flow/1"), (Run, "Flow"), (Task, "Flow/1/start"), (Run, 5)]
)
def test_a_pathspec_of_another_shape_is_refused(kind: type[Run], pathspec: str) -> None:
    with pytest.raises(InvalidName, match="pathspec"):
        kind(pathspec)


def test_a_pathspec_that_could_escape_is_refused() -> None:
    with pytest.raises(InvalidName):
        Run("Flow/../1")


def test_a_run_is_watched_through_one_object(records: Records) -> None:
    recorded = records.run()
    run = Run("Flow/1")
    assert ("running", False, False, None) == (
        run.status, run.finished, run.successful, run.finished_at
    )  # fmt: skip

    recorded.commit(RunState.SUCCEEDED)

    assert ("succeeded", True, True) == (run.status, run.finished, run.successful)
    assert BEGIN + 1000 == run.finished_at.timestamp()


def test_a_run_that_failed_is_finished(records: Records) -> None:
    records.run().commit(RunState.FAILED)

    assert Run("Flow/1").finished
    assert not Run("Flow/1").successful


def test_times_have_a_zone(records: Records) -> None:
    records.run().task(1, "start").commit(RunState.SUCCEEDED)
    run, step, task = Run("Flow/1"), Step("Flow/1/start"), Task("Flow/1/start/1")

    for each in (Flow("Flow"), run, step, task):
        assert each.created_at.utcoffset() is not None
    for each in (run, step, task):
        assert each.finished_at.utcoffset() is not None
    assert datetime.fromtimestamp(BEGIN, UTC) == run.created_at
    assert BEGIN + 1 == step.created_at.timestamp()
    assert BEGIN + 1.5 == step.finished_at.timestamp()


def test_a_step_is_not_finished_while_one_of_its_tasks_is_not(records: Records) -> None:
    recorded = records.run().task(1, "start")
    running: Any = {"state": AttemptState.RUNNING, "finished_at": None, "manifest": None}
    recorded.task(2, "start", **running).commit()

    assert Step("Flow/1/start").finished_at is None


def test_steps_are_listed_newest_first_without_the_parameters(records: Records) -> None:
    records.run(alpha=1).task(1, "start").task(2, "middle").task(3, "end").commit()

    assert ["end", "middle", "start"] == [step.id for step in Run("Flow/1")]
    assert ["end", "middle", "start"] == [step.id for step in Run("Flow/1").steps()]
    assert [] == list(Run("Flow/1").steps("no such tag"))


def test_the_parameters_are_reached_by_their_pathspec(records: Records) -> None:
    records.run(alpha=0.5)

    assert 0.5 == Task("Flow/1/_parameters/0").data.alpha
    assert 0.5 == Run("Flow/1")["_parameters"].task.data.alpha


def test_the_data_of_a_run_are_those_of_its_last_step(records: Records) -> None:
    records.run().task(1, "start", {"x": 1}).task(2, "end", {"x": 2}).commit()

    assert 2 == Run("Flow/1").data.x
    assert 2 == Flow("Flow").latest_run.data.x
    assert "Flow/1/end/2" == Run("Flow/1").end_task.pathspec


def test_a_run_that_has_not_come_to_its_end_has_no_data(records: Records) -> None:
    records.run().task(1, "start", {"x": 1}).commit()

    assert Run("Flow/1").data is None
    assert Run("Flow/1").end_task is None


def test_steps_know_their_neighbours_that_have_begun(records: Records) -> None:
    records.run(graph=BRANCHES).task(1, "start").task(2, "left").task(3, "right").commit()
    run = Run("Flow/1")

    assert ["left", "right"] == [step.id for step in run["start"].child_steps]
    assert ["start"] == [step.id for step in run["left"].parent_steps]
    assert [] == list(run["start"].parent_steps)
    assert [] == list(run["left"].child_steps)
    assert [] == list(run["_parameters"].child_steps)


def test_a_resumed_run_names_its_origin(records: Records) -> None:
    run = records.run("2", origin="1").task(5, "start", {"x": 1}, origin="1/start/3")
    run.task(6, "middle").commit()

    assert "Flow/1" == Run("Flow/2").origin_pathspec
    assert "Flow/1/start" == Step("Flow/2/start").origin_pathspec
    assert "Flow/1/start/3" == Task("Flow/2/start/5").origin_pathspec
    assert "Flow/1/start/3/x" == Task("Flow/2/start/5")["x"].origin_pathspec
    assert Task("Flow/2/middle/6").origin_pathspec is None


# ------------------------------------------------------------------ tags


def test_tags_of_people_and_of_aflow_are_distinguished(records: Records) -> None:
    records.run(tags=["good"]).task(1, "start").commit()

    for each in (Run("Flow/1"), Step("Flow/1/start"), Task("Flow/1/start/1")):
        assert {"good"} == each.user_tags
        assert set(SYSTEM_TAGS) == each.system_tags
        assert {"good", *SYSTEM_TAGS} == each.tags


def test_tags_are_added_removed_and_replaced(records: Records) -> None:
    records.run(tags=["a"])
    run = Run("Flow/1")

    run.add_tag("b")
    run.add_tags(["c", "d"])
    run.remove_tag("a")
    run.remove_tags(["c"])
    run.replace_tag("d", "e")
    run.replace_tags(["b"], ["f", "g"])

    assert {"e", "f", "g"} == run.user_tags
    assert {"e", "f", "g"} == Run("Flow/1").user_tags


def test_one_text_is_one_tag_and_a_list_is_many(records: Records) -> None:
    records.run(tags=["old"])
    run = Run("Flow/1")

    run.add_tags("good")
    run.add_tag(["a", "b"])
    run.replace_tag(["old"], "new")
    run.remove_tags("a")

    assert {"good", "b", "new"} == run.user_tags


@pytest.mark.parametrize("tags", [5, None, b"good", [5], [["a"]]])
def test_what_is_no_tag_is_refused(records: Records, tags: Any) -> None:
    records.run(tags=["old"])

    with pytest.raises(InvalidInput):
        Run("Flow/1").add_tags(tags)
    assert {"old"} == Run("Flow/1").user_tags


def test_code_that_ran_here_is_not_kept(records: Records) -> None:
    records.run().task(1, "start").commit()

    assert Run("Flow/1").code is None
    assert Task("Flow/1/start/1").code is None


def test_system_tags_and_too_many_tags_are_refused_and_nothing_is_changed(
    records: Records,
) -> None:
    records.run(tags=["a"])
    run = Run("Flow/1")

    with pytest.raises(InvalidName):
        run.remove_tags(["a", "runtime:dev"])
    with pytest.raises(InvalidName):
        run.replace_tags(["a"], [str(number) for number in range(MAX_TAGS + 1)])

    assert {"a"} == run.user_tags == Run("Flow/1").user_tags


def test_steps_and_tasks_are_filtered_by_the_tags_of_the_run(records: Records) -> None:
    records.run(tags=["a"]).task(1, "start").commit()

    assert ["start"] == [step.id for step in Run("Flow/1").steps("a")]
    assert ["1"] == [task.id for task in Step("Flow/1/start").tasks("a")]
    assert [] == list(Step("Flow/1/start").tasks("b"))


def test_an_attempt_of_a_run_is_refused(records: Records) -> None:
    records.run()

    with pytest.raises(InvalidInput, match="attempt=0"):
        Run("Flow/1", attempt=0)


def test_all_of_the_global_namespace_is_shown_however_it_is_asked(records: Records) -> None:
    records.run("1", user="somebody")
    namespace(None)

    assert ["Flow"] == [flow.id for flow in Metaflow()]
    assert ["1"] == [run.id for run in Flow("Flow")]
    assert Run("Flow/1").is_in_namespace()


def test_a_list_is_not_a_tag_of_a_filter(records: Records) -> None:
    records.run(tags=["a"]).task(1, "start").commit()

    listings: list[Any] = [Flow("Flow").runs, Run("Flow/1").steps, Step("Flow/1/start").tasks]
    for listing in listings:
        with pytest.raises(InvalidInput, match="give each tag as an argument of its own"):
            list(listing(["a"]))
        assert 1 == len(list(listing("a")))
