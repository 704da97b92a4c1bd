"""The package requirements of steps, and which locks this machine can use."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from aflow import FlowSpec, conda, conda_base, pypi, pypi_base, step
from aflow._core.secret import without_credentials
from aflow.environments import asks
from aflow.environments.build import Environments
from aflow.environments.conda import lock as conda_lock
from aflow.environments.lock import LockedPackage, lock_of
from aflow.environments.solve import Solver, Target, tags_of, this_platform
from aflow.environments.spec import Spec, specs_of
from aflow.environments.uv import (
    Uv,
    UvFailed,
    explanation,
    find_uv,
    fits,
    own_interpreter,
)
from aflow.errors import EnvironmentFailed, InvalidDecorator, InvalidLock, MissingExtra
from aflow.flow.spec import define
from tests.support import packages


@conda_base(packages={"left-out": "1"}, disabled=True)
@pypi_base(packages={"a": "1.0", "b": "", "c.c": "1.0", "C-c": "1.0"}, python="3.12")
class Asking(FlowSpec):
    @pypi(packages={"b": "~=2.0", "C_c[x]": "3.*"})
    @step
    def start(self) -> None:
        self.next(self.middle)

    @pypi(disabled=True)
    @step
    def middle(self) -> None:
        self.next(self.end)

    @conda(packages={"channel::d": "1.0", "e": ">=2"}, disabled=False, python="3.13")
    @pypi(disabled=True)
    @step
    def end(self) -> None:
        """Nothing."""


class Plain(FlowSpec):
    @step
    def start(self) -> None:
        self.next(self.end)

    @step
    def end(self) -> None:
        """Nothing."""


def test_what_a_step_asks_for_comes_on_top_of_what_its_flow_asks_for() -> None:
    specs = specs_of(define(Asking))

    assert {"start", "end"} == specs.keys()
    assert Spec(requirements=("C_c[x]==3.*", "a==1.0", "b~=2.0"), python="3.12") == specs["start"]
    assert ("channel::d ==1.0", "e >=2", "left-out ==1") == specs["end"].conda
    assert "3.13" == specs["end"].python


def test_digests_follow_a_version_and_are_of_sha256() -> None:
    digest = f"--hash=sha256:{'a' * 64}"

    class Pinned(Plain):
        @pypi(packages={"a": f"1.0; os_name == 'posix' {digest}"})
        @step
        def start(self) -> None:
            self.next(self.end)

    class Weak(Plain):
        @pypi(packages={"a": "1.0 --hash=md5:abc"})
        @step
        def start(self) -> None:
            self.next(self.end)

    spec = specs_of(define(Pinned))["start"]
    assert (f"a==1.0 ; os_name == 'posix' {digest}",) == spec.requirements
    with pytest.raises(InvalidDecorator, match=r"'a' with the digest 'md5:abc', which is none of"):
        specs_of(define(Weak))


def test_a_kind_of_environment_is_for_every_step() -> None:
    plain = define(Plain)

    assert not asks(plain)
    assert {} == specs_of(plain)
    assert {"start": Spec(), "end": Spec()} == specs_of(plain, "pypi")
    assert all(each.uses_conda for each in specs_of(plain, "conda").values())
    assert {} == specs_of(define(Asking), "local")
    assert {"start"} == specs_of(plain, "pypi", "start").keys()


@pytest.mark.parametrize(
    ("version", "asked", "wanted"),
    [
        ("3.12.4", "3.12", True),
        ("3.12.4", "3.12.4", True),
        ("3.12.4", "3.12.1", False),
        ("3.12.4", "3.1", False),
        ("3.12.4", ">=3.11,<3.13", True),
        ("3.13.0", ">=3.11,<3.13", False),
    ],
)
def test_a_python_fits_what_is_asked_for(version: str, asked: str, wanted: bool) -> None:
    assert wanted == fits(version, asked)


def test_of_several_indexes_that_pip_is_set_to_each_may_have_the_file_that_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packages.make_index(tmp_path / "first", "tiny", "1.0", tag="py3-none-win32")
    packages.make_index(tmp_path / "second", "tiny", "1.0")
    settings = tmp_path / "pip.conf"
    indexes = [(tmp_path / each).as_uri() for each in ("first", "second")]
    settings.write_text("[global]\nindex-url = {1}\nextra-index-url = {0}\n".format(*indexes))
    monkeypatch.setenv("PIP_CONFIG_FILE", str(settings))
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    for name in [each for each in os.environ if each.startswith("UV_")]:
        monkeypatch.delenv(name)
    own = own_interpreter()

    solver = Solver(tmp_path / "environments", tmp_path, Uv())
    lock = solver.lock(Spec(requirements=("tiny",)), Target(own.version, this_platform(), own))

    assert ["tiny-1.0-py3-none-any.whl"] == [each.file for each in lock]
    # With digests only a file counts that has one of them.
    digest = next(iter(lock)).sha256
    target = Target(own.version, this_platform(), own)
    pinned = f"Tiny==1.0 --hash=sha256:{digest} --hash=sha256:{'0' * 64}"
    assert lock == solver.lock(Spec(requirements=(pinned,)), target)
    other = f"tiny==1.0 --hash=sha256:{'0' * 64}"
    with pytest.raises(EnvironmentFailed, match=r"tiny 1.0 has no file with a digest that is ask"):
        solver.lock(Spec(requirements=(other,)), target)


def test_conda_gives_steps_no_python_that_is_too_old(tmp_path: Path) -> None:
    spec = Spec(python="3.8", uses_conda=True)

    with pytest.raises(EnvironmentFailed, match=r"or newer, and Python 3\.8 is asked for"):
        conda_lock(spec, tmp_path, this_platform(), tmp_path, lambda line: None)


def test_a_lock_of_another_platform_is_refused(tmp_path: Path) -> None:
    file = "x-1-cp312-cp312-win_amd64.whl"
    package = LockedPackage(name="x", version="1", file=file, sha256="1" * 64)
    lock = lock_of("3.12", "aarch64-apple-darwin", [package])

    with pytest.raises(InvalidLock, match="locked for aarch64-apple-darwin, and this machine is"):
        Environments(tmp_path).built(lock)
    assert [] == list(tmp_path.iterdir())


def test_tags_of_a_platform_are_those_of_its_wheels() -> None:
    found = tags_of(Target("3.12", "x86_64-manylinux_2_28"))

    assert "cp312-cp312-manylinux_2_28_x86_64" == found[0]
    assert {"cp312-cp312-manylinux2014_x86_64", "cp38-abi3-manylinux_2_17_x86_64"} <= {*found}
    assert "py3-none-any" in found
    assert "cp312-cp312-manylinux_2_31_x86_64" not in found
    here = "{}.{}".format(*sys.version_info[:2])
    assert "py3-none-any" in tags_of(Target(here, this_platform()))


def test_without_uv_one_sentence_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uv", None)
    monkeypatch.setenv("PATH", "/nowhere")

    with pytest.raises(MissingExtra, match="pip install uv"):
        find_uv()


def test_what_uv_says_becomes_one_line_without_credentials() -> None:
    said = [
        "warning: something",
        "error: No solution found",
        "  cause: Because https://ada:secret@host/simple says so,",
        "         you lose.",
        "hint: try again",
    ]

    assert "No solution found: Because https://host/simple says so, you lose" == explanation(
        said, 1
    )
    failed = "error: Git operation failed: failed --- stderr fatal: couldn't find remote ref"
    no_branch = UvFailed(explanation([failed], 1), failed)
    assert "couldn't find remote ref" == no_branch.of_git
    assert not no_branch.is_network, "the repository has answered"
    unsolved = "error: No solution found: Because there is no version of async-timeout==1.502, ..."
    assert not UvFailed(explanation([unsolved], 1), unsolved).is_network, "so has the index"
    assert "https://host/x" == without_credentials("https://token@host/x")
    assert "https://host/x" == without_credentials("https://ada:s@cr@t@host/x")
    assert "https://host/?e=a@b" == without_credentials("https://host/?e=a@b")


def test_the_password_of_an_index_is_on_no_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uv = tmp_path / "uv"
    uv.write_text('#!/bin/sh\necho "$@"\necho "$UV_DEFAULT_INDEX $UV_INDEX"\n')
    uv.chmod(0o755)
    for name in ("UV_INDEX", "UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "https://u:canary@one/simple")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "https://u:canary@two https://u:canary@three")
    known = Uv()
    known.path = str(uv)

    words, variables = known.run("pip", "list", index=True).splitlines()

    assert "canary" not in words
    assert variables == ("https://u:canary@one/simple https://u:canary@two https://u:canary@three")
    assert "canary" not in known.run("--version")


def test_a_token_in_a_url_that_cannot_be_used_is_not_shown() -> None:
    url = "git+https://ada:s@cret@host/x.git and more"
    for wrong in ({"mine": f"@ {url}"}, {url: "1 --hash=md5:1"}, {"": url}):

        class Wrong(FlowSpec):
            @pypi(packages=wrong)
            @step
            def start(self) -> None:
                self.next(self.end)

            @step
            def end(self) -> None: ...

        with pytest.raises(InvalidDecorator, match="Step start asks for the package") as caught:
            specs_of(define(Wrong))
        assert "ada" not in str(caught.value)
        assert "cret" not in str(caught.value)


def test_a_folder_is_built_when_its_source_has_changed_and_only_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AFLOW_SIGNING_KEY", "s" * 32)
    built = tmp_path / "built"
    during = (
        "import os; assert 'AFLOW_SIGNING_KEY' not in os.environ"
        "; os.makedirs('mine.egg-info', exist_ok=True)"
        f"; open({str(built)!r}, 'a').write('.'); open('mine.egg-info/PKG-INFO', 'a').write('.')"
    )
    source = packages.make_source(tmp_path / "mine", "mine", "1.0", during=during)
    module = source / "src" / "mine" / "build" / "steps.py"  # which no build has made
    module.parent.mkdir(parents=True)
    module.write_text("first")
    own = own_interpreter()
    solver = Solver(tmp_path / "environments", tmp_path, Uv())

    counts = []
    for text in ("first", "first", "second"):
        if text == "second":
            module.write_text(text)
        solver.lock(Spec(requirements=("./mine",)), Target(own.version, this_platform(), own))
        counts.append(len(built.read_text()))

    assert counts[0] == counts[1] < counts[2]
