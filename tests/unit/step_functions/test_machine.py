"""Flows as state machines: the golden files, and flows that cannot be compiled."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from aflow.errors import InvalidInput
from aflow.flow.graph import Graph, Kind, Node
from aflow.flow.spec import define
from aflow.step_functions.machine import JobOf, compiled, note
from tests.unit.step_functions.flows import Branches, Gang, Linear
from tests.unit.step_functions.golden import BUS, FOLDER, JOB, machines, where


@pytest.mark.parametrize("name", sorted(each.name for each in FOLDER.glob("*.json")))
def test_a_flow_becomes_the_state_machine_that_was_agreed_on(name):
    assert (FOLDER / name).read_text() == machines()[name]


def test_every_state_leads_to_a_state_of_its_own_scope():
    checked = 0
    assert {each.name for each in FOLDER.iterdir()} == machines().keys()
    for text in machines().values():
        scopes = [json.loads(text)]
        while scopes:
            scope = scopes.pop()
            states = scope["States"]
            assert scope["StartAt"] in states
            for state in states.values():
                following = [state["Next"]] if "Next" in state else []
                following += [each["Next"] for each in state.get("Choices", ())]
                following += [each["Next"] for each in state.get("Catch", ())]
                assert set(following) <= states.keys()
                ends = state.get("End", False) or state["Type"] in ("Fail", "Succeed", "Choice")
                assert ends != ("Next" in state)
                scopes += state.get("Branches", ())
                scopes += [state["ItemProcessor"]] if "ItemProcessor" in state else []
                checked += 1
    assert checked > 30


def test_a_linter_of_aws_has_nothing_to_say_of_machines_and_finds_what_is_wrong(tmp_path):
    assert (0, "") == linted(tmp_path, machines())
    wrong = machines()["Linear.json"].replace('"StartAt": "(begin)"', '"StartAt": "nowhere"')
    code, said = linted(tmp_path, {"Wrong.json": wrong})
    assert 0 != code
    assert "'nowhere'" in said


def linted(folder: Path, definitions: dict[str, str]) -> tuple[int, str]:
    """Return the findings of cfn-lint for these state machines in a template."""
    linter = shutil.which("cfn-lint", path=str(Path(sys.executable).parent))
    assert linter is not None, "cfn-lint is one of the development tools"
    role = "arn:aws:iam::123456789012:role/flows"
    resources = {
        name.removesuffix(".json"): {
            "Type": "AWS::StepFunctions::StateMachine",
            "Properties": {"RoleArn": role, "DefinitionString": text},
        }
        for name, text in definitions.items()
    }
    file = folder / "machines.json"
    file.write_text(json.dumps({"Resources": resources}))
    done = subprocess.run([linter, file], capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_a_gang_cannot_be_compiled_and_the_step_is_named():
    graph = define(Gang).graph
    with pytest.raises(InvalidInput, match=r"Step start opens a gang .* use a foreach"):
        compiled(graph, dict.fromkeys(graph.nodes, JOB), where("Gang"))


def test_more_retries_than_a_job_may_have_attempts_are_refused():
    graph = define(Linear).graph
    jobs = {"start": JOB, "end": JobOf("aflow_1", retries=10, limit=60)}
    with pytest.raises(InvalidInput, match=r"Step end is to be tried 10 times again.*times=8"):
        compiled(graph, jobs, where("Linear"))


def test_all_that_can_fail_at_the_top_leads_to_the_job_that_notes_the_failure():
    graph = define(Branches).graph
    states = compiled(graph, dict.fromkeys(graph.nodes, JOB), where("Branches"))["States"]
    able = {name for name, each in states.items() if each["Type"] in ("Task", "Parallel")}
    assert able - {"(failed)", "(unrecorded)"} == {
        name
        for name, each in states.items()
        if each.get("Catch", [{}])[0].get("Next") == "(failed)"
    }


def test_a_note_of_failure_to_an_event_bus_says_the_reason():
    entry = note(BUS, "aws", "Flow", succeeded=False)["Parameters"]["Entries"][0]
    assert ("aflow", "Flow failed", BUS) == tuple(
        entry[k] for k in ("Source", "DetailType", "EventBusName")
    )
    assert "$.notified.result.reason" == entry["Detail"]["reason.$"]
    assert "reason.$" not in json.dumps(note(BUS, "aws", "Flow", succeeded=True))


def test_long_names_of_steps_are_cut_and_stay_different():
    long = ["s" * 100 + str(number) for number in range(2)]
    nodes = [Node(long[0], Kind.LINEAR, next=(long[1],)), Node(long[1], Kind.END)]
    graph = Graph("Long", long[0], long[1], {node.name: node for node in nodes})
    states = compiled(graph, dict.fromkeys(graph.nodes, JOB), where("Long"))["States"]
    assert 6 == len(states)
    assert 80 == max(map(len, states))
    private = Graph("_Private", long[0], long[1], graph.nodes)
    states = compiled(private, dict.fromkeys(graph.nodes, JOB), where("_Private"))["States"]
    jobs = [
        each["Parameters"] for each in states.values() if "JobName" in each.get("Parameters", ())
    ]
    assert all(re.fullmatch(r"[A-Za-z0-9][\w-]{1,127}", each["JobName"]) for each in jobs)
    assert 3 == len(jobs)
