"""The command `tag`, used interactively and by programs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.flows.conftest import Ran, Workspace

FLOW = """
class Flow_(FlowSpec):
    @step
    def start(self):
        self.next(self.end)

    @step
    def end(self):
        pass
"""
HEAD = "\nSystem tags and tags; only tags can be modified\n" + "-" * 56 + "\n\n"


@pytest.fixture(scope="module")
def tagged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, str]:
    """A workspace in which one run was created, and the run's id."""
    workspace = Workspace(Path(tmp_path_factory.mktemp("tags")))
    workspace.write(FLOW)
    assert 0 == workspace.run("--tag", "old", "--run-id-file", "id", AFLOW_USER="ann").code
    return workspace, (workspace.path / "id").read_text()


def tag(workspace: Workspace, *words: str, quiet: bool = False) -> Ran:
    """Run `python flow.py tag WORDS` as the user ann."""
    ahead = ["--quiet"] if quiet else []
    return workspace.finish(workspace.start(*ahead, "tag", *words, AFLOW_USER="ann"))


def of_people(workspace: Workspace, run: str) -> list[str]:
    """Return the tags that users have added."""
    listed = tag(workspace, "list", run, "--hide-system-tags", "--flat")
    return listed.out.split("\n")[:-1]


def test_tags_are_added_removed_replaced_and_listed(tagged: tuple[Workspace, str]) -> None:
    workspace, run = tagged
    added = tag(workspace, "add", "b", "a", "--run-id", run)

    assert (0, "Operation successful. New tags:\n") == (added.code, added.err)
    assert added.out.startswith(HEAD)
    assert {"a", "b", "old", "runtime:dev", "user:ann"} <= set(added.out.split())

    assert 0 == tag(workspace, "remove", "b", "never-there", "--run-id", f"Flow_/{run}").code
    assert ["a", "old"] == of_people(workspace, run)

    assert 0 == tag(workspace, "replace", "--run-id", run, "--remove", "a", "--add", "new").code
    assert ["new", "old"] == of_people(workspace, run)
    assert 0 == tag(workspace, "remove", "new", "--run-id", run).code


def test_lists_are_grouped_as_asked_for(tagged: tuple[Workspace, str]) -> None:
    workspace, run = tagged
    path = f"Flow_/{run}"

    by_tag = tag(workspace, "list", "--group-by-tag", "--hide-system-tags").out
    assert f"{HEAD}For tag old\n{path}\n\n" == by_tag
    by_run = tag(workspace, "list", "--my-runs", "--group-by-run", "--hide-system-tags").out
    assert f"{HEAD}old\n\n" == by_run
    for_programs = tag(workspace, "list", "--group-by-tag", quiet=True).out.splitlines()
    assert f"user:old ; {path}" in for_programs
    assert f"system:user:ann ; {path}" in for_programs
    one_line = tag(workspace, "list", "--all", quiet=True).out
    assert one_line.startswith(f"{path} ; aflow_version:")
    assert one_line.endswith(" ; old\n")


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["add", "x" * 501], 2, "A tag of 501 characters is too long"),
        (["add", ""], 2, "a tag is a text that is not empty"),
        (["add", b"\xff".decode("utf-8", "surrogateescape")], 2, "it is not valid UTF-8"),
        (["add", *map(str, range(50))], 2, "A run can have at most 50 tags; it would have 51."),
        (["remove", "user:ann"], 2, "'user:ann' is a system tag, which nobody may remove."),
        (["replace", "--add", "x"], 2, "Name a tag to remove"),
        (["replace", "--remove", "x"], 2, "Name a tag to add"),
        (["add", "x", "--namespace", "user:bob"], 1, "is not in the namespace 'user:bob'"),
        (["add"], 2, "Missing argument 'TAGS...'"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence_and_changes_nothing(
    tagged: tuple[Workspace, str], words: list[str], code: int, sentence: str
) -> None:
    workspace, run = tagged
    ran = tag(workspace, *words, "--run-id", run)

    assert code == ran.code
    assert sentence in ran.err
    assert "Traceback" not in ran.err
    assert ["old"] == of_people(workspace, run)


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["add", "x"], 2, "Name the run: --run-id RUN. The latest run in 'user:ann' is "),
        (["add", "x", "--run-id", "99"], 1, "Flow 'Flow_' has no run '99'."),
        (["list", "--all", "--my-runs"], 2, "--all cannot be used together with --my-runs"),
        (["list", "1", "--run-id", "1"], 2, "--run-id cannot be used together with RUN"),
        (["list", "--flat", "--group-by-run"], 2, "--group-by-run cannot be used together"),
    ],
)
def test_a_run_has_to_be_named_once_and_be_there(
    tagged: tuple[Workspace, str], words: list[str], code: int, sentence: str
) -> None:
    ran = tag(tagged[0], *words)

    assert code == ran.code
    assert sentence in ran.err


def test_the_flow_file_may_stand_before_or_behind_the_second_word(
    tagged: tuple[Workspace, str],
) -> None:
    workspace, run = tagged
    for words in (["tag", "list", "flow.py", run], ["tag", "flow.py", "list", run]):
        listed = workspace.finish(workspace.start_aflow(*words, "--flat", "--hide-system-tags"))
        assert "old\n" == listed.out


def test_a_flow_that_never_ran_has_no_tags(workspace: Workspace) -> None:
    workspace.write(FLOW)
    ran = tag(workspace, "list")

    assert 1 == ran.code
    assert "Nothing has run here yet" in ran.err
