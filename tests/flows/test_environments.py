"""Steps with their own packages: resolved, built, run, cached, and the errors."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from aflow import client
from aflow.environments.solve import this_platform
from tests.flows.conftest import Workspace
from tests.support import packages

OWN = "{}.{}".format(*sys.version_info[:2])


ANOTHER = packages.ANOTHER
needs_another = packages.needs_another


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheels")
    for version in ("1.0", "2.0", "3.0", "4.0"):
        packages.make_wheel(folder, "tiny", version)
    packages.make_wheel(folder, "wants", "1.0", ["tiny<3", "more; extra == 'all'"])
    packages.make_wheel(folder, "more", "1.0")
    packages.make_wheel(folder, "rich", "99.0")
    for name in ("aiohttp", "blake3", "botocore", "msgpack", "zstandard"):
        packages.make_wheel(folder, name, "0.1", body="class Own:\n    pass\n")
    packages.make_sdist(folder, "compiled", "1.0", "raise SystemExit('no compiler cc')")
    return folder


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of environments that these tests share."""
    return tmp_path_factory.mktemp("environments")


@pytest.fixture(autouse=True)
def settings(monkeypatch: pytest.MonkeyPatch, wheels: Path, cache: Path) -> None:
    for name in [each for each in os.environ if each.startswith(("UV_", "CONDA_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("UV_FIND_LINKS", os.fspath(wheels))
    monkeypatch.setenv("AFLOW_ENVIRONMENTS_FOLDER", os.fspath(cache))


FOUR = """
from aflow import cache, pypi, pypi_base

class Flow_(FlowSpec):
    @pypi(packages={{"tiny": "1.0"}})
    @step
    def start(self):
        import tiny
        self.seen = [(tiny.__version__, "%d.%d" % sys.version_info[:2])]
        self.next(self.second)

    @pypi(packages={{"tiny": "{second}"}}, python="{another}")
    @step
    def second(self):
        import tiny
        self.seen = [*self.seen, (tiny.__version__, "%d.%d" % sys.version_info[:2])]
        self.next(self.third)

    @pypi(packages={{"tiny": "3.0"}}, python="{another}")
    @step
    def third(self):
        import tiny
        self.seen = [*self.seen, (tiny.__version__, "%d.%d" % sys.version_info[:2])]
        self.next(self.end)

    @pypi(packages={{"tiny": "4.0"}})
    @step
    def end(self):
        import tiny
        print([*self.seen, (tiny.__version__, "%d.%d" % sys.version_info[:2])])
"""


@needs_another
def test_four_steps_have_four_versions_of_a_package_and_two_pythons_also_offline(
    workspace: Workspace,
) -> None:
    workspace.write(FOUR.format(second="2.0", another=ANOTHER))

    first = workspace.run("--cache")
    again = workspace.run(UV_FIND_LINKS="/nowhere", UV_OFFLINE="1")
    workspace.write(FOUR.format(second="3.0", another=ANOTHER))
    changed = workspace.run("--cache")

    wanted = [("1.0", OWN), ("2.0", ANOTHER), ("3.0", ANOTHER), ("4.0", OWN)]
    assert 0 == first.code, first.err
    assert str(wanted) in first.out
    assert f"Solving the packages of step second for Python {ANOTHER}: tiny==2.0" in first.err
    assert "Built the environment of step second" in first.err
    assert 0 == again.code, again.err
    assert str(wanted) in again.out
    assert "Building" not in again.err
    assert 0 == changed.code, changed.err
    assert "start/1 (cached)" in changed.out or "[start" not in changed.out
    reported = explained(workspace)
    assert "second/2 ran: package tiny changed 2.0 -> 3.0" in reported
    assert "start/1 did not run: nothing has changed" in reported
    workspace.check()


@needs_another
@pytest.mark.parametrize("isolation", ["task", "worker"])
def test_workers_take_the_packages_from_the_datastore_alone(
    isolation: str, workspace: Workspace, tmp_path: Path
) -> None:
    workspace.write(FOUR.format(second="2.0", another=ANOTHER))
    queue = f"sqlite:///{workspace.path}/queue.db"
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    # A machine without an index, and with nothing in any cache.
    env = os.environ | {
        "AFLOW_ENVIRONMENTS_FOLDER": os.fspath(elsewhere / "environments"),
        "AFLOW_CLIENT_CACHE_PATH": os.fspath(elsewhere / "cache"),
        "UV_CACHE_DIR": os.fspath(elsewhere / "uv"),
        "UV_OFFLINE": "1",
        "UV_FIND_LINKS": "",
    }
    command = [sys.executable, "-m", "aflow", "worker", "--queue", queue]
    worker = subprocess.Popen(
        command, cwd=elsewhere, env=env, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True
    )
    words = ("--executor", "queue", "--queue", queue, "--isolation", isolation, "--cache")
    try:
        ran = workspace.run(*words)
        # What the store has needs no index, and the step whose package is another runs again.
        workspace.write(FOUR.format(second="3.0", another=ANOTHER))
        changed = workspace.run(*words, UV_FIND_LINKS="/nowhere", UV_OFFLINE="1")
    finally:
        worker.send_signal(signal.SIGTERM)
        said = worker.communicate(timeout=60)[1]

    wanted = [("1.0", OWN), ("2.0", ANOTHER), ("3.0", ANOTHER), ("4.0", OWN)]
    assert 0 == ran.code, ran.err + said
    assert str(wanted) in ran.out
    assert "Built the environment of step second" in said
    assert 0 == changed.code, changed.err + said
    reported = explained(workspace)
    assert "start/1 did not run: nothing has changed" in reported
    assert "second/2 ran: package tiny changed 2.0 -> 3.0" in reported
    workspace.check()


@needs_another
def test_another_python_needs_no_index_for_what_aflow_needs_there(
    workspace: Workspace, tmp_path: Path
) -> None:
    workspace.write(
        f"""
from aflow import pypi

class Flow_(FlowSpec):
    @step
    def start(self):
        self.text = "to be compressed " * 100_000
        self.next(self.other)

    @pypi(packages={{"tiny": "1.0"}}, python="{ANOTHER}")
    @step
    def other(self):
        import blake3
        self.is_ours = hasattr(blake3, "_compress")
        self.size = len(self.text)
        self.more = "some more " * 200_000
        self.next(self.end)

    @step
    def end(self):
        print("sizes", self.size, len(self.more), self.is_ours)
"""
    )

    env = {
        "UV_OFFLINE": "1",
        "UV_CACHE_DIR": os.fspath(tmp_path / "uv"),
        "AFLOW_ENVIRONMENTS_FOLDER": os.fspath(tmp_path / "environments"),
    }
    ran = workspace.run(**env)
    again = workspace.run(**env)

    assert 0 == ran.code, ran.err
    assert "sizes 1700000 2000000 True" in ran.lines
    assert f"What aflow itself needs for Python {ANOTHER} is not available" in ran.err
    assert 0 == again.code, again.err
    assert "is not available" not in again.err
    workspace.check()


@needs_another
def test_a_step_has_the_packages_that_it_names_where_aflow_needs_other_versions(
    workspace: Workspace,
) -> None:
    names = ["aiohttp", "blake3", "botocore", "msgpack", "zstandard"]
    old = dict.fromkeys(names, "0.1")
    workspace.write(
        f"""
from aflow import pypi

class Flow_(FlowSpec):
    @pypi(packages={old!r})
    @step
    def start(self):
        import aiohttp, blake3, botocore, msgpack, zstandard
        self.seen = [each.__version__ for each in (aiohttp, blake3, botocore, msgpack, zstandard)]
        self.own = [msgpack.Own(), blake3.Own()]
        self.big = "to be compressed " * 100_000
        self.next(self.other)

    @pypi(packages={old!r}, python="{ANOTHER}")
    @step
    def other(self):
        own = self.own  # before anything has imported the packages
        import blake3, msgpack
        self.same = [type(own[0]) is msgpack.Own, type(own[1]) is blake3.Own]
        self.more = self.big * 2
        self.next(self.end)

    @step
    def end(self):
        print(set(self.seen), self.same, len(self.more))
"""
    )

    ran = workspace.run()
    worker = workspace.run("--isolation", "worker")

    for each in (ran, worker):
        assert 0 == each.code, each.err + each.out
        assert "{'0.1'} [True, True] 3400000" in each.lines
    workspace.check()


def explained(workspace: Workspace) -> str:
    """Return the output of `explain` for the latest run."""
    run = latest(workspace)
    return workspace.finish(workspace.start("--no-pylint", "explain", f"Flow_/{run}")).out


def latest(workspace: Workspace) -> str:
    metadata = workspace.metadata
    try:
        return metadata.runs("Flow_")[0].run
    finally:
        metadata.close()


def test_what_a_step_may_name_and_what_comes_from_the_flow(
    workspace: Workspace, tmp_path: Path, wheels: Path
) -> None:
    repository = packages.make_source(tmp_path / "repository", "gitted", "0.3")
    commit = packages.make_repository(repository)
    packages.make_source(workspace.path / "beside", "beside", "0.5")
    shutil.copy(wheels / "more-1.0-py3-none-any.whl", workspace.path)
    workspace.write(
        f"""
from aflow import pypi, pypi_base

@pypi_base(packages={{"tiny": ">=1,<4"}})
class Flow_(FlowSpec):
    @pypi(packages={{
        "wants[all]": "1.0",
        "gitted": "@ git+file://{repository}",
        "./beside": "",
        "rich": "99.0",
        "nowhere": "1.0; sys_platform == 'win32'",
    }})
    @step
    def start(self):
        import tiny, wants, more, gitted, beside, rich
        from importlib.metadata import version
        print("versions", tiny.__version__, version("gitted"), version("beside"), rich.__version__)
        # What aflow needs is found after what the step asks for.
        print("last", [os.path.basename(each)[-7:] for each in sys.path][-1])
        print("folder", os.path.dirname(sys.executable) == os.environ["PATH"].split(":")[0])
        self.next(self.inner)

    @pypi(packages={{"more": "@ file://{workspace.path}/more-1.0-py3-none-any.whl"}})
    @step
    async def inner(self):
        import more, tiny
        print("inner", more.__version__, tiny.__version__)
        self.next(self.end)

    @pypi(disabled=True)
    @step
    def end(self):
        print("end", sys.prefix == {sys.prefix!r})
"""
    )

    ran = workspace.run()
    worker = workspace.run("--isolation", "worker")

    assert 0 == ran.code, ran.err
    assert [
        "versions 2.0 0.3 0.5 99.0",
        f"last -py{OWN}",
        "folder True",
        "inner 1.0 3.0",
        "end True",
    ] == [each for each in ran.lines if not each.startswith("Task")]
    assert 0 == worker.code, worker.err
    assert "versions 2.0 0.3 0.5 99.0" in worker.lines
    assert f"{repository}@{commit}" in locks_of(workspace)
    client.metadata(f"local@{workspace.path}")
    client.namespace(None)
    known = client.Run(f"Flow_/{latest(workspace)}").code.environments
    assert {"start", "inner"} == known.keys()
    assert OWN == known["inner"]["python"]
    assert {"more": "1.0", "tiny": "3.0"} == known["inner"]["packages"]


def locks_of(workspace: Workspace) -> str:
    """Return the locks that are recorded with the latest run."""
    from aflow.environments.record import recorded_locks
    from aflow.storage.factory import open_store

    metadata = workspace.metadata
    try:
        record = metadata.runs("Flow_")[0]
    finally:
        metadata.close()
    store = open_store(record.settings["storage"])
    return str([each.as_dict() for each in recorded_locks(record.settings, store).values()])


ONE = """
from aflow import {names}

class Flow_(FlowSpec):
    @{decorator}
    @step
    def start(self):
        {body}
        self.next(self.end)

    @step
    def end(self):
        pass
"""


def write_one(workspace: Workspace, decorator: str, body: str = "pass") -> None:
    workspace.write(ONE.format(names="conda, pypi", decorator=decorator, body=body))


WRONG = {
    "no such package": (
        "pypi(packages={'tiny': '9.9'})",
        ["The packages of step start cannot be solved:", "tiny==9.9"],
    ),
    "a conflict": (
        "pypi(packages={'wants': '', 'tiny': '4.0'})",
        ["The packages of step start cannot be solved:", "tiny<3", "tiny==4.0"],
    ),
    "needs a compiler": (
        "pypi(packages={'compiled': '1.0'})",
        ["The packages of step start cannot be solved: compiled 1.0", "it may need a compiler",
         "no compiler cc"],
    ),
    "no such Python": (
        "pypi(packages={'tiny': '1.0'}, python='3.97')",
        ["Python 3.97 is not on this machine", "found are:", OWN],
    ),
    "a Python that is too old": (
        "pypi(packages={'tiny': '1.0'}, python='3.8')",
        ["The packages of step start cannot be solved: Steps run with Python 3.11 or newer"],
    ),
    "a repository that is not there": (
        "pypi(packages={'gitted': '@ git+file:///nowhere/at-all'})",
        ["The packages of step start cannot be solved: a repository cannot be fetched: '/nowhere"],
    ),
    "no version": (
        "pypi(packages={'tiny': 'not a version'})",
        ["Step start asks for the package 'tiny' 'not a version', which is not a requirement"],
    ),
    "an option in disguise": (
        "pypi(packages={'--index-url=http://evil': ''})",
        ["Step start asks for the package '--index-url=http://evil' '', which names none."],
    ),
}  # fmt: skip


@pytest.mark.parametrize("which", WRONG)
def test_what_cannot_be_had_is_one_sentence_and_nothing_half_built(
    which: str, workspace: Workspace, tmp_path: Path
) -> None:
    decorator, reported = WRONG[which]
    write_one(workspace, decorator)
    cache = tmp_path / "cache"

    ran = workspace.run(
        UV_NO_INDEX="1", UV_PYTHON_DOWNLOADS="never", AFLOW_ENVIRONMENTS_FOLDER=os.fspath(cache)
    )

    assert ran.code in (1, 2)
    for each in reported:
        assert each in ran.err
    assert "Traceback" not in ran.err
    assert "starting" not in ran.out
    assert [] == [each for each in cache.glob("built/*") if each.suffix != ".lock"]


def test_local_uses_what_is_installed_and_names_the_differences(workspace: Workspace) -> None:
    write_one(workspace, "pypi(packages={'tiny': '1.0'})", "print('prefix', sys.prefix)")

    by_option = workspace.finish(workspace.start("--no-pylint", "--environment", "local", "run"))
    by_setting = workspace.run(AFLOW_DEFAULT_ENVIRONMENT="local")

    for ran in (by_option, by_setting):
        assert 0 == ran.code, ran.err
        assert f"prefix {sys.prefix}" in ran.lines
        assert "Package tiny 1.0 is not installed, which is asked for by: start." in ran.err


def test_an_environment_for_every_step_where_the_command_says_so(workspace: Workspace) -> None:
    write_one(workspace, "pypi(disabled=True)", "print('own', sys.prefix)")
    file = workspace.path / "flow.py"
    file.write_text(file.read_text().replace("pass", "print('isolated', sys.prefix)", 1)
                    if "pass" in file.read_text() else file.read_text())  # fmt: skip

    ran = workspace.finish(workspace.start("--no-pylint", "--environment", "pypi", "run"))

    assert 0 == ran.code, ran.err
    assert f"own {sys.prefix}" in ran.lines
    prefix = next(each for each in ran.lines if each.startswith("isolated")).split()[1]
    assert os.fspath(Path(os.environ["AFLOW_ENVIRONMENTS_FOLDER"]) / "built") in prefix


def test_a_program_that_embeds_a_flow_gives_its_steps_their_packages(
    workspace: Workspace,
) -> None:
    write_one(workspace, "pypi(packages={'tiny': '3.0'})", "import tiny; print(tiny.__version__)")
    text = (workspace.path / "flow.py").read_text()
    (workspace.path / "flow.py").write_text(text.replace("Flow_()", "pass"))
    (workspace.path / "embedding.py").write_text(
        "import aflow, sys\nfrom flow import Flow_\n"
        "class Own(aflow.FlowSpec):\n"
        "    @aflow.pypi(packages={'tiny': '2.0'})\n    @aflow.step\n    def start(self):\n"
        "        import tiny\n"
        f"        mixed = [each for each in sys.path if each.startswith({sys.prefix!r})]\n"
        "        self.seen = tiny.__version__, mixed, sys.prefix\n"
        "        self.next(self.end)\n"
        "    @aflow.step\n    def end(self):\n        pass\n"
        "if __name__ == '__main__':\n"
        "    imported = aflow.run(Flow_)\n    own = aflow.run(Own)\n"
        "    print(imported.successful, own['start'].task.data.seen)\n"
    )

    process = workspace._start(["embedding.py"], {})
    ran = workspace.finish(process)

    assert 0 == ran.code, ran.err
    assert "True ('2.0', [], '" + os.environ["AFLOW_ENVIRONMENTS_FOLDER"] in ran.out


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts a small disk")
def test_a_disk_that_is_full_is_one_sentence(workspace: Workspace, tmp_path: Path) -> None:
    write_one(workspace, "pypi(packages={'tiny': '3.0'})")
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=40k,mode=700", "none", small], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("nothing may be mounted here")
    try:
        ran = workspace.run(AFLOW_ENVIRONMENTS_FOLDER=os.fspath(small))
        left = [each for each in small.glob("built/*") if each.suffix != ".lock"]
    finally:
        subprocess.run(["umount", small], check=True)

    assert 1 == ran.code
    assert "step start" in ran.err
    assert "space" in ran.err.lower()
    assert "Traceback" not in ran.err
    assert [] == left


@pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts a disk")
def test_what_others_have_built_is_used_where_nothing_may_be_written(
    workspace: Workspace, tmp_path: Path
) -> None:
    write_one(workspace, "pypi(packages={'tiny': '3.0'})", "import tiny")
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=10m,mode=700", "none", os.fspath(disk)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("nothing may be mounted here")
    try:
        built = workspace.run(AFLOW_ENVIRONMENTS_FOLDER=os.fspath(disk))
        shutil.rmtree(disk / "runtimes")  # of another aflow, say
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        used = workspace.run(AFLOW_ENVIRONMENTS_FOLDER=os.fspath(disk))
        write_one(workspace, "pypi(packages={'tiny': '4.0'})")
        other = workspace.run(AFLOW_ENVIRONMENTS_FOLDER=os.fspath(disk))
    finally:
        subprocess.run(["umount", disk], check=True)

    assert (0, 0) == (built.code, used.code), built.err + used.err
    assert "Building" not in used.err
    assert 1 == other.code
    assert "step start" in other.err
    assert "Read-only file system" in other.err
    assert "Traceback" not in other.err


def test_constraints_that_are_set_for_uv_count_and_change_what_was_solved(
    workspace: Workspace, tmp_path: Path
) -> None:
    write_one(workspace, "pypi(packages={'tiny': '>=1'})", "import tiny; print(tiny.__version__)")
    constraints = tmp_path / "constraints.txt"

    seen = []
    for limit in ("tiny<2", "tiny<3.5"):
        constraints.write_text(limit)
        ran = workspace.run(UV_CONSTRAINT=os.fspath(constraints))
        assert 0 == ran.code, ran.err
        seen.append([each for each in ran.lines if not each.startswith("Task")])

    assert [["1.0"], ["3.0"]] == seen


def test_credentials_of_an_index_are_used_and_recorded_nowhere(
    workspace: Workspace, tmp_path: Path, wheels: Path
) -> None:
    write_one(workspace, "pypi(packages={'tiny': '2.0'})", "import tiny; print(tiny.__version__)")
    cache = tmp_path / "cache"

    with packages.index_of(wheels, "ada", "hunter2") as url:
        place = url.replace("//", "//ada:hunter2@") + "/simple"
        hidden = workspace.run(
            UV_DEFAULT_INDEX=place, UV_FIND_LINKS="", AFLOW_ENVIRONMENTS_FOLDER=os.fspath(cache)
        )
        shutil.rmtree(cache)
        # The same, as options of pip.
        by_pip = workspace.run(
            PIP_INDEX_URL=place, PIP_CONFIG_FILE=os.devnull, PIP_FIND_LINKS="", UV_FIND_LINKS="",
            AFLOW_ENVIRONMENTS_FOLDER=os.fspath(cache),
        )  # fmt: skip
        refused = workspace.run(
            UV_DEFAULT_INDEX=url + "/simple", UV_FIND_LINKS="",
            AFLOW_ENVIRONMENTS_FOLDER=os.fspath(tmp_path / "other"),
        )  # fmt: skip
    gone = workspace.run(
        PIP_INDEX_URL=place, PIP_CONFIG_FILE=os.devnull, PIP_FIND_LINKS="", UV_FIND_LINKS="",
        AFLOW_ENVIRONMENTS_FOLDER=os.fspath(cache),
    )  # fmt: skip

    for ran in (hidden, by_pip, gone):
        assert 0 == ran.code, ran.err
        assert "2.0" in ran.lines
    assert 1 == refused.code
    assert "cannot be solved" in refused.err
    for folder in (workspace.path / ".aflow", cache / "locks"):
        for file in folder.rglob("*"):
            assert not file.is_file() or b"hunter2" not in file.read_bytes(), file
    assert "hunter2" not in "".join(each.out + each.err for each in (hidden, by_pip, refused, gone))


def test_a_builder_that_is_killed_leaves_nothing_half_built(
    workspace: Workspace, tmp_path: Path
) -> None:
    # It says that it is being built, and waits for a word.
    said, word = tmp_path / "said", tmp_path / "word"
    os.mkfifo(said)
    os.mkfifo(word)
    during = f"open({os.fspath(said)!r}, 'w').close(); open({os.fspath(word)!r}).close()"
    packages.make_source(workspace.path / "slow", "slow", "1.0", during=during)
    write_one(workspace, "pypi(packages={'./slow': '', 'tiny': '1.0'})", "import slow")
    cache = tmp_path / "cache"
    env = {"AFLOW_ENVIRONMENTS_FOLDER": os.fspath(cache)}

    first = workspace.start("--no-pylint", "run", **env)
    said.open().close()
    first.send_signal(signal.SIGKILL)
    first.communicate(timeout=60)
    # What it had started goes on until its word has come.
    with word.open("w"):
        pass
    second = workspace.start("--no-pylint", "run", **env)
    said.open().close()
    with word.open("w"):
        pass
    ran = workspace.finish(second)

    assert 0 == ran.code, ran.err
    built = [each for each in cache.glob("built/*") if each.suffix != ".lock"]
    assert 1 == len(built)
    assert (built[0] / "aflow-environment.json").is_file()
    # Where only a part of one is there under another name, it goes with the next that is built.
    (cache / "built" / f".new-{built[0].name}-left").mkdir()
    (built[0] / "aflow-environment.json").unlink()
    again = workspace.run(**env)
    assert 0 == again.code, again.err
    assert built == [each for each in cache.glob("built/*") if each.suffix != ".lock"]


def test_two_runs_that_begin_together_build_an_environment_once(
    workspace: Workspace, tmp_path: Path
) -> None:
    write_one(workspace, "pypi(packages={'tiny': '3.0'})", "import tiny")
    env = {"AFLOW_ENVIRONMENTS_FOLDER": os.fspath(tmp_path / "cache")}

    runs = [workspace.start("--no-pylint", "run", **env) for _ in range(3)]
    ended = [workspace.finish(each) for each in runs]

    assert [0, 0, 0] == [each.code for each in ended], ended[0].err
    assert 1 == sum("Built the environment" in each.err for each in ended)


def test_gc_deletes_environments_that_nobody_has_used_lately(
    workspace: Workspace, tmp_path: Path
) -> None:
    write_one(workspace, "pypi(packages={'tiny': '3.0'})", "import tiny")
    cache = tmp_path / "cache"
    env = {"AFLOW_ENVIRONMENTS_FOLDER": os.fspath(cache)}
    assert 0 == workspace.run(**env).code
    for lock in cache.glob("locks/*"):
        os.utime(lock, (0, 0))
    assert 0 == workspace.run(**env).code

    kept = workspace.finish(workspace.start_aflow("gc", **env))
    assert list(cache.glob("locks/*")), "it was used just now"
    there = list(cache.glob("built/*/aflow-environment.json"))
    shown = workspace.finish(
        workspace.start_aflow("gc", "--environments", "0s", "--dry-run", **env)
    )
    gone = workspace.finish(workspace.start_aflow("gc", "--environments", "0s", **env))

    assert "environment" not in kept.out
    assert 1 == len(there)
    assert "1 environment of steps would be deleted" in shown.out
    assert "1 environment of steps deleted" in gone.out
    assert [] == list(cache.glob("built/*/aflow-environment.json"))
    assert 0 == workspace.run(**env).code


def test_gc_leaves_an_environment_alone_in_which_a_step_runs(
    workspace: Workspace, tmp_path: Path
) -> None:
    begun, go_on = tmp_path / "begun", tmp_path / "go-on"
    os.mkfifo(begun)
    os.mkfifo(go_on)
    body = f"open({os.fspath(begun)!r}, 'w').close(); open({os.fspath(go_on)!r}).close()"
    write_one(workspace, "pypi(packages={'tiny': '3.0'})", f"{body}; import tiny")
    env = {"AFLOW_ENVIRONMENTS_FOLDER": os.fspath(tmp_path / "cache")}

    run = workspace.start("--no-pylint", "run", **env)
    begun.open().close()
    gone = workspace.finish(workspace.start_aflow("gc", "--environments", "0s", **env))
    with go_on.open("w"):
        pass
    ran = workspace.finish(run)

    assert 0 == gone.code, gone.err
    assert "environment" not in gone.out
    assert 0 == ran.code, ran.err


def test_a_project_of_uv_is_the_environment_of_all_steps(workspace: Workspace) -> None:
    from aflow.environments.uv import find_uv

    (workspace.path / "pyproject.toml").write_text(
        f'[project]\nname = "project"\nversion = "0.1"\nrequires-python = ">={OWN}"\n'
        'dependencies = ["wants"]\n'
    )
    subprocess.run([find_uv(), "lock", "--offline", "-q"], cwd=workspace.path, check=True)
    write_one(
        workspace, "pypi(packages={'tiny': '4.0'})", "import tiny; print('own', tiny.__version__)"
    )
    file = workspace.path / "flow.py"
    head, middle, tail = file.read_text().rpartition("pass")
    file.write_text(f"{head}import tiny, wants; print('locked', tiny.__version__){tail}")
    assert middle

    ran = workspace.finish(workspace.start("--no-pylint", "--environment", "uv", "run"))
    (workspace.path / "uv.lock").unlink()
    without = workspace.finish(workspace.start("--no-pylint", "--environment", "uv", "run"))

    assert 0 == ran.code, ran.err
    assert {"own 4.0", "locked 2.0"} <= {*ran.lines}
    assert 1 == without.code
    assert "--environment uv needs a pyproject.toml and a uv.lock" in without.err


def test_packages_of_conda_come_from_its_channels(workspace: Workspace, tmp_path: Path) -> None:
    pytest.importorskip("rattler")
    from aflow.environments.conda import subdir_of

    channel = tmp_path / "channel"
    packages.make_channel(channel, subdir_of(this_platform()))
    write_one(
        workspace,
        "conda(packages={'ctiny': '1.0'})\n"
        "    @pypi(packages={'tiny': '2.0', './own-1.0-py3-none-any.whl': ''})",
        "import ctiny, own, tiny\n"
        "        print(ctiny.__version__, tiny.__version__, sys.prefix, own.Own.text)",
    )
    env = {"CONDA_CHANNELS": channel.as_uri()}

    def make_own(text: str) -> None:
        body = f"class Own:\n    text = {text!r}\n"
        packages.make_wheel(workspace.path, "own", "1.0", body=body)

    make_own("first")
    ran = workspace.run(**env)
    again = workspace.run(**env)
    make_own("second, of another size")
    changed = workspace.run(**env)
    write_one(workspace, "conda(packages={'ctiny': '7'})")
    wrong = workspace.run(**env)

    assert 0 == ran.code, ran.err
    line = next(each for each in ran.lines if each.startswith("1.0 2.0"))
    assert line.split()[2].startswith(os.environ["AFLOW_ENVIRONMENTS_FOLDER"])
    assert 0 == again.code, again.err
    assert "Building" not in again.err
    assert any(each.endswith("second, of another size") for each in changed.lines), changed.err
    assert 1 == wrong.code
    assert "The packages of step start cannot be solved:" in wrong.err
    assert "ctiny" in wrong.err
