"""An interpreter for the part of the Amazon States Language that the flows' state machines use.

The test supplies the results of jobs and the objects of a bucket. Unsupported features are errors:
a state machine that uses more must be tested on a real interpreter.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any

Value = Any
RunJob = Callable[[dict[str, str]], None]  # given the variables of the job
_PART = re.compile(r"\.(\w+)|\[\*\]")


class Execution:
    """One execution of a state machine; `words` are the objects that jobs store, by key."""

    def __init__(self, machine: Mapping[str, Any], run_job: RunJob, words: dict[str, Any]) -> None:
        self._machine = machine
        self._run_job = run_job
        self._words = words

    def run(self, name: str, given: Any) -> Value:
        """Run the execution, and return the output of the last state."""
        context = {"Execution": {"Name": name, "Input": given, "StartTime": "2026-01-01T00:00:00Z"}}
        return self._scope(self._machine, given, context)

    def _scope(self, scope: Mapping[str, Any], value: Value, context: Mapping[str, Any]) -> Value:
        states, name = scope["States"], scope["StartAt"]
        while True:
            state = states[name]
            following, value = self._state(state, value, context)
            if state.get("End") or state["Type"] == "Succeed":
                return value
            name = following or state["Next"]

    def _state(
        self, state: Mapping[str, Any], value: Value, context: Mapping[str, Any]
    ) -> tuple[str | None, Value]:
        kind = state["Type"]
        if kind == "Choice":
            return self._chosen(state, value), value
        if kind == "Succeed":
            return None, value
        result = {
            "Pass": self._pass,
            "Task": self._task,
            "Parallel": self._parallel,
            "Map": self._map,
        }[kind](state, value, context)
        if "ResultSelector" in state:
            result = filled(state["ResultSelector"], result, context)
        where = state.get("ResultPath", "$")
        output = value if where is None else _put(value, where, result)
        return None, at(output, state.get("OutputPath", "$"), context)

    def _pass(self, state: Mapping[str, Any], value: Value, context: Mapping[str, Any]) -> Value:
        if "Result" in state:
            return state["Result"]
        return filled(state["Parameters"], value, context) if "Parameters" in state else value

    def _task(self, state: Mapping[str, Any], value: Value, context: Mapping[str, Any]) -> Value:
        parameters = filled(state["Parameters"], value, context)
        service = state["Resource"].partition(":states:::")[2]
        if service == "batch:submitJob.sync":
            variables = parameters["ContainerOverrides"]["Environment"]
            self._run_job({each["Name"]: each["Value"] for each in variables})
            return {"JobId": "1"}
        assert service == "aws-sdk:s3:getObject"
        return {"Body": json.dumps(self._words[parameters["Key"]])}

    def _parallel(
        self, state: Mapping[str, Any], value: Value, context: Mapping[str, Any]
    ) -> Value:
        return [self._scope(branch, value, context) for branch in state["Branches"]]

    def _map(self, state: Mapping[str, Any], value: Value, context: Mapping[str, Any]) -> Value:
        if "ItemReader" in state:
            items = self._words[filled(state["ItemReader"]["Parameters"], value, context)["Key"]]
        else:
            items = at(value, state["ItemsPath"], context)
        outputs = []
        for index, item in enumerate(items):
            inside = {**context, "Map": {"Item": {"Index": index, "Value": item}}}
            given = filled(state["ItemSelector"], value, inside)
            outputs.append(self._scope(state["ItemProcessor"], given, inside))
        return outputs

    def _chosen(self, state: Mapping[str, Any], value: Value) -> str:
        for each in state["Choices"]:
            if at(value, each["Variable"], {}) == each["StringEquals"]:
                return str(each["Next"])
        raise AssertionError(f"no choice for {value}")


def filled(template: Any, value: Value, context: Mapping[str, Any]) -> Any:
    """Return the template with its paths and functions evaluated."""
    if isinstance(template, list):
        return [filled(each, value, context) for each in template]
    if not isinstance(template, dict):
        return template
    return {
        key.removesuffix(".$"): evaluated(each, value, context)
        if key.endswith(".$")
        else filled(each, value, context)
        for key, each in template.items()
    }


def evaluated(text: str, value: Value, context: Mapping[str, Any]) -> Any:
    """Return the value of a path or an intrinsic function."""
    if not text.startswith("States."):
        return at(value, text, context)
    function, _, rest = text.removeprefix("States.").partition("(")
    arguments = [
        each[1:-1] if each.startswith("'") else evaluated(each, value, context)
        for each in re.findall(r"'[^']*'|[^,\s]+", rest.removesuffix(")"))
    ]
    if function == "Format":
        pattern, *parts = arguments
        for part in parts:
            pattern = pattern.replace("{}", str(part), 1)
        return pattern
    functions: dict[str, Callable[[Any], Any]]
    functions = {"JsonToString": json.dumps, "StringToJson": json.loads}
    return functions[function](arguments[0])


def at(value: Value, path: str, context: Mapping[str, Any]) -> Any:
    """Return the value of a path, in the input ($) or in the context ($$)."""
    found = context if path.startswith("$$") else value
    parts = [each.group() for each in _PART.finditer(path)]
    for position, part in enumerate(parts):
        if part == "[*]":
            rest = "$" + "".join(parts[position + 1 :])
            return [at(each, rest, context) for each in found]
        found = found[part[1:]]
    return found


def _put(value: Value, path: str, result: Any) -> Value:
    if path == "$":
        return result
    name = path.removeprefix("$.")
    assert "." not in name
    return {**value, name: result}
