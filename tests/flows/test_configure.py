"""`aflow configure`, `aflow tutorials` and `aflow init`, through the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from tests.flows.conftest import Ran, Workspace

TUTORIALS = Path(__file__).parents[2] / "aflow" / "cli" / "tutorials"
ANSWERS = """y
s3://team-bucket/aflow

y
https://host/api/


y
queue-1
arn:aws:iam::123456789012:role/batch



n
"""


def configure(workspace: Workspace, *words: str, answers: str = "", **env: str) -> Ran:
    """`aflow configure WORDS` for a user whose home is the workspace."""
    done = subprocess.run(
        [sys.executable, "-m", "aflow", "configure", *words],
        cwd=workspace.path,
        env=os.environ | {"AFLOW_HOME": str(workspace.path / ".aflowconfig")} | env,
        input=answers,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return Ran(done.returncode, done.stdout, done.stderr)


def settings(workspace: Workspace, name: str = "config.json") -> dict[str, str]:
    """Return the content of the user's file."""
    file = workspace.path / ".aflowconfig" / name
    assert 0o600 == file.stat().st_mode & 0o777
    found: dict[str, str] = json.loads(file.read_text())
    return found


def test_answers_about_aws_become_the_settings(workspace: Workspace) -> None:
    ran = configure(workspace, "aws", "--no-check", answers=ANSWERS)

    assert 0 == ran.code, ran.err
    assert {
        "AFLOW_BATCH_JOB_QUEUE": "queue-1",
        "AFLOW_DATASTORE_SYSROOT_S3": "s3://team-bucket/aflow",
        "AFLOW_DATATOOLS_S3ROOT": "s3://team-bucket/aflow/data",
        "AFLOW_DEFAULT_DATASTORE": "s3",
        "AFLOW_DEFAULT_METADATA": "service",
        "AFLOW_ECS_S3_ACCESS_IAM_ROLE": "arn:aws:iam::123456789012:role/batch",
        "AFLOW_SERVICE_INTERNAL_URL": "https://host/api/",
        "AFLOW_SERVICE_URL": "https://host/api/",
    } == settings(workspace)


def test_an_answer_of_another_form_is_asked_again(workspace: Workspace) -> None:
    ran = configure(
        workspace, "aws", "--no-check", answers="y\nbucket\ns3://team-bucket/a\n\nn\nn\n"
    )

    assert 0 == ran.code, ran.err
    assert "'bucket' is not of the form s3://bucket/x" in ran.out + ran.err
    assert "s3://team-bucket/a" == settings(workspace)["AFLOW_DATASTORE_SYSROOT_S3"]


def test_answers_that_are_cut_off_change_nothing(workspace: Workspace) -> None:
    ran = configure(workspace, "aws", "--no-check", answers="y\ns3://team-bucket/a\n")

    assert 130 == ran.code
    assert "Traceback" not in ran.err
    assert not (workspace.path / ".aflowconfig").exists()


def test_another_user_takes_what_one_has_exported(workspace: Workspace) -> None:
    given = {
        "METAFLOW_USER": "ann",
        "AFLOW_SERVICE_AUTH_KEY": "abcdefghijkl",
        "AFLOW_DEBUG": True,
        "AFLOW_QUEUE": "redis://:canary@host/0",
    }
    assert 0 == configure(workspace, "import", answers=json.dumps(given)).code
    assert 0 == configure(workspace, "export", "team.json").code
    assert 0 == configure(workspace, "import", "team.json", "--profile", "team").code

    assert given == json.loads((workspace.path / "team.json").read_text())
    assert given == settings(workspace, "config_team.json")
    shown = configure(workspace, "show", AFLOW_USER="bob").out
    assert "  METAFLOW_USER=ann  (the environment has another)\n" in shown
    assert "  AFLOW_SERVICE_AUTH_KEY=ab...\n" in shown
    assert "abcdefghijkl" not in shown
    assert "  AFLOW_QUEUE=redis://host/0\n" in shown


def test_keys_that_do_nothing_are_shown_as_such(workspace: Workspace) -> None:
    given = {"METAFLOW_SFN_DYNAMO_DB_TABLE": "t", "AFLOW_BATCH_JOB_QUEU": "q", "AFLOW_USER": "ann"}
    configure(workspace, "import", answers=json.dumps(given))

    shown = configure(workspace, "show", AFLOW_USER="").out

    assert "DB_TABLE=t  (without effect: state machines of aflow need no table)\n" in shown
    assert "Did you mean 'BATCH_JOB_QUEUE'?)\n" in shown
    assert "  AFLOW_USER=ann\n" in shown


def test_a_profile_counts_as_the_environment_does(workspace: Workspace) -> None:
    workspace.write("""
        class Flow_(FlowSpec):
            @step
            def start(self):
                self.user = current.username
                self.next(self.end)
            @step
            def end(self):
                print("user", self.user)
        """)
    home = str(workspace.path / ".aflowconfig")
    configure(workspace, "import", "--profile", "team", answers='{"AFLOW_USER": "ann"}')

    ran = workspace.run(AFLOW_HOME=home, AFLOW_PROFILE="team", AFLOW_USER="")

    assert "user ann" in ran.lines
    absent = workspace.run(AFLOW_HOME=home, AFLOW_PROFILE="other")
    assert 2 == absent.code
    assert "There is no profile 'other'" in absent.err


def test_reset_forgets_after_it_has_asked(workspace: Workspace) -> None:
    configure(workspace, "import", answers='{"AFLOW_USER": "ann"}')

    kept = configure(workspace, "reset", answers="n\n")
    assert 1 == kept.code
    assert "Nothing was changed." in kept.err
    assert {"AFLOW_USER": "ann"} == settings(workspace)
    assert 0 == configure(workspace, "reset", "--yes").code
    assert "Nothing to delete" in configure(workspace, "reset").out
    assert "Nothing is set" in configure(workspace, "show").out


@pytest.mark.parametrize(
    ("words", "answers", "reported"),
    [
        (["import"], "{", "What was read from stdin is not valid JSON"),
        (["import"], '{"USER": "x"}', "whose keys begin with AFLOW_ or METAFLOW_"),
        (["import", "nowhere.json"], "", "nowhere.json cannot be read: No such file"),
        (["export", "x.json"], "", "There is nothing to export"),
        (["show", "--profile", "../x"], "", "'../x' cannot be the name of a profile"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    workspace: Workspace, words: list[str], answers: str, reported: str
) -> None:
    ran = configure(workspace, *words, answers=answers)

    assert 2 == ran.code
    assert reported in ran.err
    assert "Traceback" not in ran.err


# ------------------------------------------------------------------ tutorials


def aflow(workspace: Workspace, *words: str) -> Ran:
    """A command of aflow."""
    return workspace.finish(workspace.start_aflow(*words))


@pytest.mark.parametrize("file", sorted(TUTORIALS.glob("*/*.py")), ids=lambda file: file.name)
def test_every_tutorial_runs_as_its_readme_says(workspace: Workspace, file: Path) -> None:
    folder = file.parent.name
    assert 0 == aflow(workspace, "tutorials", "pull", "--episode", folder, "--dir", ".").code
    there = Workspace(workspace.path / folder)
    if file.name == "look.py":  # which looks at what another has left
        assert 0 == aflow(there, "run", "estimate.py", "--no-pylint").code
        looked = there.finish(there._start(["look.py"], {}))
        assert 0 == looked.code, looked.err
        assert "samples" in looked.out
        return

    ran = aflow(there, "run", file.name, "--no-pylint")

    assert 0 == ran.code, ran.err
    assert f"aflow run {file.name}" in (there.path / "README.md").read_text()
    there.check()


def test_tutorials_are_listed_explained_and_never_overwritten_unasked(
    workspace: Workspace,
) -> None:
    listed = aflow(workspace, "tutorials", "list").out
    assert "00-hello        Hello: a flow of two steps\n" in listed
    assert (TUTORIALS / "04-async" / "README.md").read_text() == aflow(
        workspace, "tutorials", "info", "async"
    ).out

    assert 0 == aflow(workspace, "tutorials", "pull").code
    again = aflow(workspace, "tutorials", "pull")
    assert 2 == again.code
    assert "00-hello already exists: give --overwrite" in again.err
    assert 0 == aflow(workspace, "tutorials", "pull", "--overwrite").code
    absent = aflow(workspace, "tutorials", "info", "cooking")
    assert 1 == absent.code
    assert "There is no tutorial 'cooking'. There are: 00-hello," in absent.err


# ------------------------------------------------------------------ a project to begin with


def test_a_project_that_init_writes_passes_its_own_pipeline(workspace: Workspace) -> None:
    assert 0 == aflow(workspace, "init", "my-2nd project").code
    project = workspace.path / "my-2nd project"
    there = Workspace(project)
    pipeline = yaml.safe_load((project / ".github" / "workflows" / "flows.yml").read_text())
    (check, test) = [each["run"] for each in pipeline["jobs"]["test"]["steps"][-2:]]
    declared = tomllib.loads((project / "pyproject.toml").read_text())

    checked = aflow(there, *check.split()[1:])
    tested = there.finish(there._start([*test.split()[1:]], {}))
    run = there.finish(there._start(["flow.py", "run", "--count", "5"], {}))

    assert 0 == checked.code, checked.err
    assert "2 passed" in tested.out, tested.out + tested.err
    assert "total 30" in run.out, run.err
    assert ["aflow-runtime~="] == [each[:15] for each in declared["project"]["dependencies"]]
    ignored = subprocess.run(
        ["git", "-c", "init.defaultBranch=main", "init", "--quiet", project], check=False
    )
    assert 0 == ignored.returncode
    status = subprocess.run(
        ["git", "status", "--porcelain", "--untracked-files=all"],
        cwd=project, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    files = (".github/workflows/flows.yml", ".gitignore", "README.md", "flow.py", "pyproject.toml")
    kept = {line[3:] for line in status.splitlines() if ".pytest_cache" not in line}
    assert {*files, "tests/test_flow.py"} == kept


def test_init_replaces_nothing_unasked_and_adds_to_what_git_ignores(workspace: Workspace) -> None:
    (workspace.path / ".gitignore").write_text("*.log\n.venv/")
    assert 0 == aflow(workspace, "init").code
    (workspace.path / "flow.py").write_text("")
    again = aflow(workspace, "init")
    nowhere = aflow(workspace, "init", "flow.py/below")
    replaced = aflow(workspace, "init", "--overwrite")

    ignored = (workspace.path / ".gitignore").read_text().splitlines()
    assert ["*.log", ".venv/", *ignored[2:]] == ignored
    assert 1 == ignored.count(".venv/") == ignored.count(".aflow/")
    assert 2 == again.code
    assert "flow.py already exists: give --overwrite to replace it" in again.err
    assert 2 == nowhere.code
    assert "cannot be written to flow.py/below: Not a directory." in nowhere.err
    assert 0 == replaced.code
    assert "Flow(FlowSpec)" in (workspace.path / "flow.py").read_text()
