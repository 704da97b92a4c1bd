"""What a step can access and do, and what is forbidden, through the real command line."""

from __future__ import annotations

import pytest

from tests.flows.conftest import Workspace

SEES = """
from aflow import Config

class Flow_(FlowSpec):
    \"\"\"A flow that looks around.\"\"\"
    config = Config("config", default_value={"key": "left"})
    alpha = Parameter("alpha", default=1)
    names = Parameter("list-of", separator=",", default=["a", "b"])
    size = 3

    @retry(times=2)
    @step
    def start(self):
        self.way = "left"
        for name in ("alpha", "size", "config"):
            try:
                setattr(self, name, 5)
            except AttributeError as error:
                print("refused", name, "cannot be set" in str(error))
        print("get", current.get("nothing", "instead"), current.get("flow_name"))
        print("tempdir", current.tempdir)
        print("legacy", self.script_name, [each.name for each in self])
        graph = current.graph
        print("graph", graph["graph_structure"])
        print("node", {key: graph["steps"]["start"][key] for key in ("type", "condition", "next")})
        print("said", graph["steps"]["start"]["decorators"][0]["attributes"]["times"])
        print("kinds", graph["doc"], graph["parameters"], graph["constants"])
        self.next({self.config.key: self.left, "r": self.right}, condition="way")

    @step
    def left(self):
        self.next(self.split)

    @step
    def right(self):
        self.next(self.split)

    @step
    def split(self):
        self.words = {"a": 1, "b": 2}
        self.next(self.each, foreach="words")

    @step
    def each(self):
        self.seen = (self.index, self.input)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.seen = [inputs[0].seen, *(each.seen for each in inputs), len(inputs), inputs[1].size]
        self.merge_artifacts(inputs, include=["way"])
        self.next(self.end)

    @step
    def end(self):
        print("end", self.way, self.seen, hasattr(self, "words"))
"""


def test_a_step_sees_its_flow_and_cannot_change_what_is_the_runs(workspace: Workspace) -> None:
    workspace.write(SEES)
    ran = workspace.run()
    assert 0 == ran.code, ran.out + ran.err
    assert {
        "refused alpha True",
        "refused size True",
        "refused config True",
        "get instead Flow_",
        "tempdir .",
        "legacy flow.py ['start', 'left', 'right', 'split', 'each', 'join', 'end']",
        "graph ['start', [['left', 'split', [['each']], 'join'], "
        "['right', 'split', [['each']], 'join']], 'end']",
        "node {'type': 'split-switch', 'condition': 'way', 'next': ['left', 'right']}",
        "said 2",
        "kinds A flow that looks around. [{'name': 'alpha', 'type': 'Parameter'}, "
        "{'name': 'names', 'type': 'Parameter'}, {'name': 'config', 'type': 'Config'}] "
        "[{'name': 'size', 'type': 'int'}]",
        "end left [(0, 'a'), (0, 'a'), (1, 'b'), 2, 3] False",
    } <= set(ran.lines), ran.out


def test_help_shows_defaults_as_one_would_write_them(workspace: Workspace) -> None:
    workspace.write("""
        class Flow_(FlowSpec):
            names = Parameter("names", separator=",", default=["a", "b"], help="Some names")
            hidden = Parameter("hidden", default="secret", show_default=False)
            needed = Parameter("needed", required=True, type=int)
            made = Parameter("made", default=lambda context: 5)
            @step
            def start(self):
                pass
    """)
    shown = " ".join(workspace.finish(workspace.start("run", "--help")).out.split())
    assert "--names STR Some names [default: a,b]" in shown
    assert "--needed INT [required]" in shown
    assert "secret" not in shown
    assert "[default: computed]" in shown


def test_a_default_that_is_a_function_sees_who_asks(workspace: Workspace) -> None:
    workspace.write("""
        def made(context):
            return "-".join([context.flow_name, context.user_name, context.parameter_name,
                             context.ds_type])

        class Flow_(FlowSpec):
            p = Parameter("p", default=made)
            @step
            def start(self):
                print(self.p)
    """)
    assert "Flow_-tester-p-local" in workspace.run().lines


def test_a_default_that_is_a_function_sees_configs_and_project(workspace: Workspace) -> None:
    workspace.write("""
        from aflow import Config, project

        def made(context):
            some = context.configs.some
            assert some.key == context.configs["some"]["key"] == context.configs.get("some").key
            assert not current.is_running_flow and current.username == "tester"
            return "|".join([some.key, current.project_flow_name, str(current.is_production)])

        def chosen(context):
            return {"name": context.flow_name, "user": context.user_name}

        @project(name="demo")
        class Flow_(FlowSpec):
            some = Config("some", default_value='{"key": "v"}')
            own = Config("own", default_value=chosen)
            p = Parameter("p", default=made)
            @step
            def start(self):
                print(self.p, self.own.name, self.own.user)
    """)
    ran = workspace.finish(workspace.start("--branch", "b", "run"))
    assert "v|demo.test.b.Flow_|False Flow_ tester" in ran.lines, ran.out + ran.err


OPTIONS = """
from pathlib import Path

class Flow_(FlowSpec):
    fast = Parameter("fast", is_flag=True)
    loud = Parameter("loud", count=True, default=0)
    names = Parameter("names", multiple=True, default=["a"])
    pair = Parameter("pair", type=(str, int), default=("p", 1))
    place = Parameter("place", type=Path, default="here", envvar="MY_PLACE")
    secret = Parameter("secret", hidden=True, default="x")
    @step
    def start(self):
        print(self.fast, self.loud, self.names, self.pair, self.place, self.secret)
"""


def test_options_of_click_are_options_of_a_parameter(workspace: Workspace) -> None:
    workspace.write(OPTIONS)
    bare = workspace.run(MY_PLACE="there")
    assert "False 0 ('a',) ('p', 1) there x" in bare.lines, bare.out + bare.err
    words = "--fast --loud --loud --names b --names c --pair q 2 --place /p --secret y"
    assert "True 2 ('b', 'c') ('q', 2) /p y" in workspace.run(*words.split()).lines
    (workspace.path / "values.json").write_text('{"fast": true, "names": ["d"], "place": "f"}')
    filed = workspace.run("--parameters-file", "values.json", "--place", "g")
    assert "True 0 ('d',) ('p', 1) g x" in filed.lines, filed.out + filed.err
    assert "--secret" not in workspace.finish(workspace.start("run", "--help")).out


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[1]", "has to hold an object"),
        ("{", "it is not JSON"),
        (None, "cannot be read: No such file or directory"),
        ('{"plaec": 1}', "'plaec', which is not a parameter of the flow. Did you mean 'place'?"),
        ('{"pair": ["a", "b"]}', "'pair' has the value 'b', which is not a whole number"),
    ],
)
def test_a_file_of_parameters_that_cannot_be_used_is_named(
    workspace: Workspace, text: str | None, said: str
) -> None:
    workspace.write(OPTIONS)
    if text is not None:
        (workspace.path / "values.json").write_text(text)
    ran = workspace.run("--parameters-file", "values.json")
    assert 2 == ran.code
    assert said in ran.err
    assert "Traceback" not in ran.err


def test_a_mistake_in_a_step_is_shown_with_the_users_line(workspace: Workspace) -> None:
    workspace.write("""
        class Flow_(FlowSpec):
            @property
            def broken(self):
                return {}.nothing_here

            @property
            def unset(self):
                return self.never_set

            @step
            def start(self):
                for name in ("broken", "unset"):
                    try:
                        getattr(self, name)
                    except AttributeError as error:
                        print(type(error).__name__, str(error)[:60])
                helper(self)
                self.next(self.end)

            @step
            def end(self):
                pass

        def helper(flow):
            return flow.lacking  # the line that is shown
    """)
    ran = workspace.run()
    assert "AttributeError 'dict' object has no attribute 'nothing_here'" in ran.lines, ran.out
    assert (
        "ArtifactNotFound Flow Flow_ has no artifact 'never_set' in step 'start': neit" in ran.lines
    )
    assert "        return flow.lacking  # the line that is shown" in ran.lines
    assert "        helper(self)" in ran.lines
    assert "aflow/flow/spec.py" not in ran.out


MERGE = """
class Flow_(FlowSpec):
    @step
    def start(self):
        self.same = 1
        self.next(self.a, self.b)

    @step
    def a(self):
        self.x, self.y = "a", 1
        self.next(self.join)

    @step
    def b(self):
        self.x, self.z = "b", 2
        self.next(self.join)

    @step
    def join(self, inputs):
        MERGED
        self.next(self.end)

    @step
    def end(self):
        print({name: getattr(self, name, None) for name in "xyz"}, hasattr(self, "same"))
"""


@pytest.mark.parametrize(
    ("merged", "left"),
    [
        ("self.x = 3; self.merge_artifacts(inputs)", "{'x': 3, 'y': 1, 'z': 2} True"),
        (
            "self.merge_artifacts(inputs, exclude=['x', 'y'])",
            "{'x': None, 'y': None, 'z': 2} True",
        ),
        ("self.merge_artifacts(inputs, include=['y'])", "{'x': None, 'y': 1, 'z': None} False"),
    ],
)
def test_a_join_takes_over_what_does_not_contradict(
    workspace: Workspace, merged: str, left: str
) -> None:
    workspace.write(MERGE.replace("MERGED", merged))
    ran = workspace.run()
    assert left in ran.lines, ran.out + ran.err


@pytest.mark.parametrize(
    ("merged", "reported"),
    [
        ("self.merge_artifacts(inputs)", "differ in x (differs between a/2 and b/3)"),
        ("self.merge_artifacts(inputs, include=['q'])", "no input has 'q'"),
        ("self.merge_artifacts(inputs, include=['x'], exclude=['y'])", "exclude"),
    ],
)
def test_a_join_that_cannot_decide_says_between_what(
    workspace: Workspace, merged: str, reported: str
) -> None:
    workspace.write(MERGE.replace("MERGED", merged))
    ran = workspace.run()
    assert 1 == ran.code
    assert reported in ran.err.split("Step failure")[1]
    assert "Traceback" not in ran.err


def test_a_value_that_no_case_names_fails_the_switch(workspace: Workspace) -> None:
    workspace.write("""
        class Flow_(FlowSpec):
            @step
            def start(self):
                self.way = 3
                self.next({1: self.a, 2: self.b}, condition="way")
            @step
            def a(self):
                self.next(self.end)
            @step
            def b(self):
                self.next(self.end)
            @step
            def end(self):
                pass
    """)
    ran = workspace.run()
    assert 1 == ran.code
    assert "a switch over self.way, whose value 3 is not one of its cases: 1, 2." in ran.err
    assert "Traceback" not in ran.err


@pytest.mark.parametrize("value", ["self", "inputs"])
def test_the_flow_itself_and_its_inputs_are_no_artifacts(workspace: Workspace, value: str) -> None:
    workspace.write(f"""
        class Flow_(FlowSpec):
            @step
            def start(self):
                self.next(self.a, self.b)
            @step
            def a(self):
                self.next(self.end)
            @step
            def b(self):
                self.next(self.end)
            @step
            def end(self, inputs):
                self.mine = {value}
    """)
    ran = workspace.run()
    assert 1 == ran.code
    assert "'mine' cannot be stored" in ran.err


TWO_STEPS = """
class Flow_(FlowSpec):
    PARAMETERS
    @step
    def start(self):
        self.xs = [1]
        LAST

    @step
    def end(self):
        pass
"""


@pytest.mark.parametrize(
    ("old", "new", "code", "reported"),
    [
        ("def start", "def next", 1, "'next'"),
        ("def start", "def Begin", 1, "'Begin'"),
        ("LAST", "self.next(self.end); print(1)", 1, "last"),
        ("LAST", "self.next(self.end, foreach='xs', condition='xs')", 1, "condition"),
        ("LAST", "self.next({1: self.end}, condition='xs')", 1, "two"),
        ("LAST", "self.next(self.nowhere)", 1, "nowhere"),
        ("LAST", "pass", 1, "self.next"),
        ("PARAMETERS", "a = Parameter('x'); b = Parameter('X')", 1, "'X'"),
        ("PARAMETERS", "max_workers = Parameter('max-workers')", 1, "max-workers"),
    ],
)
def test_what_the_language_forbids_is_said_before_anything_runs(
    workspace: Workspace, old: str, new: str, code: int, reported: str
) -> None:
    source = TWO_STEPS.replace(old, new)
    source = source.replace("LAST", "self.next(self.end)").replace("PARAMETERS", "size = 1")
    workspace.write(source)
    for words in (["run"], ["check"]):
        ran = workspace.finish(workspace.start("--no-pylint", *words))
        assert (code, "") == (ran.code, ran.out)
        assert reported in ran.err
        assert "Traceback" not in ran.err


def test_of_several_flows_in_a_file_one_is_named(workspace: Workspace) -> None:
    source = "".join(
        f"class {name}(FlowSpec):\n    @step\n    def start(self):\n        print('{name}')\n\n"
        for name in ("One", "Two")
    )
    file = workspace.write(source.replace("class One", "class Flow_", 1))
    ran = workspace.finish(workspace.start_aflow("run", "flow.py", "--no-pylint"))
    assert "One" in ran.lines, "it is the one that the file itself calls"
    file.write_text(file.read_text().rpartition("if __name__")[0])
    ran = workspace.finish(workspace.start_aflow("run", "flow.py", "--no-pylint"))
    assert 2 == ran.code
    assert "Flow_" in ran.err
    assert "Two" in ran.err
    ran = workspace.finish(workspace.start_aflow("run", "flow.py:Two", "--no-pylint"))
    assert "Two" in ran.lines, ran.err


def test_an_exit_code_of_202_is_not_tried_again(workspace: Workspace) -> None:
    workspace.write("""
        class Flow_(FlowSpec):
            @retry(times=3, seconds=0)
            @step
            def start(self):
                print("tried")
                sys.exit(202)
    """)
    ran = workspace.run()
    assert 1 == ran.code
    assert 1 == ran.lines.count("tried")
