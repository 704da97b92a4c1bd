"""Every command on a page of the documentation is run as written, with stand-ins for its services.

The commands of a page run in order, in a folder with a flow that has run. Values that a page cannot
know, such as run ids and addresses of servers, are substituted. A command that serves is started,
awaited, and stopped at the end of its page.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from aflow import client
from tests.support.servers import free_port

DOCS = Path(__file__).parents[2] / "docs"
COMMAND = re.compile(r"(aflow|python|pip|docker|jupyter|export|git|pytest)\b.*")
# What a reader sees behind a command: a comment, or words in a column of their own.
BEHIND = re.compile(r"(\s+#\s.*|\s{2,}\S.*)$")

FLOW = """
from aflow import FlowSpec, Parameter, card, current, schedule, step

@schedule(daily=True)
class MyFlow(FlowSpec):
    alpha = Parameter("alpha", default=0.1)

    @step
    def start(self):
        self.next(self.train)

    @card
    @step
    def train(self):
        print("trained with", self.alpha)
        self.next(self.end)

    @step
    def end(self):
        pass

if __name__ == "__main__":
    MyFlow()
"""

# Pages whose commands are run by other tests, and these tests.
ELSEWHERE = {
    "aws.md": "tests/stack/test_pipeline.py, tests/docker",
    "batch.md": "tests/batch/test_batch_runs.py",
    "notebooks.md": "tests/examples/test_notebook.py",
    "queues.md": "tests/flows/test_queue_runs.py",
    "quickstart.md": "tests/examples/test_quickstart.py",
    "recovery.md": "tests/flows/test_adoption.py",
    "step_functions.md": "tests/step_functions/test_step_functions.py",
    "ui.md": "tests/server",
    "settings.md": "tests/flows/test_doctor.py",
    "kubernetes.md": "tests/kubernetes/test_kubernetes_runs.py",
    "slurm.md": "tests/slurm/test_slurm_runs.py",
}
SERVES = ("aflow server", "aflow worker", "aflow metadata-service", "python flow.py card server")


def commands_of(page: Path) -> list[str]:
    """Return the commands in fenced and indented blocks, without comments."""
    found: list[str] = []
    fence: str | None = None
    for line in page.read_text().splitlines():
        if line.startswith("```"):
            fence = line[3:].strip() if fence is None else None
        elif (fence in ("", "bash", "sh", "console")) or (fence is None and line[:4] == "    "):
            text = line.strip()
            if found and found[-1].endswith("\\"):
                found[-1] = f"{found[-1][:-1].rstrip()} {BEHIND.sub('', text)}"
            elif COMMAND.fullmatch(text):
                found.append(BEHIND.sub("", text))
    return found


@dataclass
class Reader:
    """A user who follows a page, in a separate folder."""

    folder: Path
    put_in: dict[str, str]
    env: dict[str, str] = field(default_factory=dict)
    serving: list[subprocess.Popen[str]] = field(default_factory=list)

    def do(self, command: str) -> None:
        """Run one command, which must succeed."""
        if self.put_in:  # in one go: what is put in may look like what is written
            written = "|".join(map(re.escape, sorted(self.put_in, key=len, reverse=True)))
            command = re.sub(written, lambda found: self.put_in[found[0]], command)
        if command.startswith("export "):
            pairs = (word.partition("=") for word in command.split()[1:])
            self.env |= {name: value for name, _, value in pairs}
        elif command.startswith(SERVES):
            self._serve(command)
        else:
            done = subprocess.run(
                command,
                shell=True,
                cwd=self.folder,
                env=self._environment,
                capture_output=True,
                text=True,
                timeout=90,
                check=False,
            )
            assert 0 == done.returncode, f"{command}\n{done.stdout}\n{done.stderr}"
            token = re.search(r"\baflow_\S+", done.stdout)
            if token is not None:  # shown once, to be used from now on
                self.env["AFLOW_SERVICE_AUTH_KEY"] = token[0]

    def _serve(self, command: str) -> None:
        process = subprocess.Popen(
            ["sh", "-c", f"exec {command}"],
            cwd=self.folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert process.stdout is not None
        first = process.stdout.readline()
        assert first, f"{command} has ended at once"
        if command.startswith("aflow server"):
            self.env["AFLOW_SERVER"] = self.put_in["http://host:8180"]
        self.serving.append(process)

    def leave(self) -> None:
        """Stop the commands that serve."""
        for each in self.serving:
            each.send_signal(signal.SIGINT)
            each.communicate(timeout=60)

    @property
    def _environment(self) -> dict[str, str]:
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        return os.environ | {"PATH": path, "BROWSER": "true"} | self.env


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    """A reader whose flow has run, with the programs of this environment in the PATH."""
    (tmp_path / "flow.py").write_text(FLOW)
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in {
        "python": f'exec {sys.executable} "$@"',
        "aflow": f'exec {sys.executable} -m aflow "$@"',
        "pip": 'echo pip "$@"',  # what it installs is there
    }.items():
        (programs / name).write_text(f"#!/bin/sh\n{text}\n")
        (programs / name).chmod(0o755)
    made = Reader(tmp_path, {})
    made.do("python flow.py --no-pylint run --tag good --run-id-file run")
    run = (tmp_path / "run").read_text()
    client.metadata(f"local@{tmp_path}")
    client.namespace(None)
    task = client.Run(f"MyFlow/{run}")["train"].task.id
    port = str(free_port())
    made.put_in = {
        "TrainFlow": "MyFlow",
        "1795/train/4": f"{run}/train/{task}",
        "1795/train/7": f"{run}/train/{task}",
        "1795": run,
        "card server": f"card server --port {free_port()}",
        "aflow server": f"aflow server --port {port}",
        "http://host:8180": f"http://127.0.0.1:{port}",
        "redis://queue.internal/0": f"sqlite:///{tmp_path}/queue.db",
        "sqlite:///srv/metadata.db": f"sqlite:///{tmp_path}/service.db --port {port}",
        "http://metadata:8080": f"http://127.0.0.1:{port}",
    }
    yield made
    made.leave()


def pages() -> list[str]:
    """Return the names of pages with commands that are run here."""
    return [
        each.name
        for each in sorted(DOCS.glob("*.md"))
        if commands_of(each) and each.name not in ELSEWHERE
    ]


# Commands that another page or test runs with their requirements.
NEEDS_MORE = {
    "aflow metadata-service --metadata postgresql://aflow@db/aflow --host 0.0.0.0 --port 8080",
    "aflow cancel MyFlow/1234",
    "aflow logs -f MyFlow/1234 --server http://host:8180",
    "aflow server --metadata postgresql://aflow@db/aflow --storage s3://bucket/aflow",
}
# What must exist before a command can succeed.
FIRST = {
    "python flow.py run --debug train": 'sed -i \'s/print("trained with"/breakpoint(); print("t"/\''
    " flow.py",
    "aflow schedule create flow.py --alpha 0.5": "aflow token create another",  # ci is revoked
}
# Keys for those that ask.
KEYS = {"--debug": "printf 'c\\n' | "}


@pytest.mark.parametrize("name", pages())
def test_the_commands_of_a_page_do_as_they_are_written(name: str, reader: Reader) -> None:
    done = 0
    for command in commands_of(DOCS / name):
        if any(command.startswith(each) for each in NEEDS_MORE):
            continue
        if command in FIRST:
            reader.do(FIRST[command])
        keys = next((text for word, text in KEYS.items() if word in command), "")
        reader.do(keys + command)
        done += 1
    assert done


def test_pages_whose_commands_are_run_elsewhere_say_where(repository: Path) -> None:
    for name, places in ELSEWHERE.items():
        assert commands_of(DOCS / name) or "```" in (DOCS / name).read_text(), name
        for place in places.split(", "):
            assert (repository / place).exists(), place


def test_commands_are_found_in_fenced_and_in_indented_blocks(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        textwrap.dedent("""
        Say `aflow run` here.

            aflow server            # serves
            aflow runs --all   all of them
            not a command

        ```
        python flow.py run \\
            --alpha 1
        ```
        ```python
        python = 1
        ```
        """)
    )
    assert ["aflow server", "aflow runs --all", "python flow.py run --alpha 1"] == commands_of(page)


@pytest.mark.parametrize("page", sorted(each.name for each in DOCS.glob("*.md")))
def test_options_that_a_page_gives_to_commands_are_options_of_these(
    page: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """This includes pages whose commands are run elsewhere: every documented option exists."""
    folder = tmp_path_factory.getbasetemp() / "options"
    folder.mkdir(exist_ok=True)
    (folder / "flow.py").write_text(FLOW)
    for command in commands_of(DOCS / page):
        words = command.split()
        options = {word.partition("=")[0] for word in words if word.startswith("--")}
        if words[0] not in ("aflow", "python") or not options - {"--alpha"}:
            continue
        begin = ["-m", "aflow"] if words[0] == "aflow" else []
        names = [word for word in words[1:] if re.fullmatch(r"[a-z][a-z-]*|flow\.py", word)]
        if names == ["logs"]:
            names.append("show")  # what it does without a command of its own
        reported = _help(folder, (*begin, *names))
        missing = [each for each in options - {"--alpha"} if each not in reported]
        assert [] == missing, f"{command}: {missing} in\n{reported}"


_helps: dict[tuple[str, ...], str] = {}


def _help(folder: Path, words: tuple[str, ...]) -> str:
    """Return the command's options in its help, without hidden ones."""
    for count in range(len(words), 0, -1):  # words behind the command's name are arguments
        key = words[:count]
        if key not in _helps:
            done = subprocess.run(
                [sys.executable, *key, "--help"],
                cwd=folder,
                capture_output=True,
                text=True,
                check=False,
            )
            _helps[key] = done.stdout if done.returncode == 0 else ""
        if _helps[key]:
            return _helps[key]
    return ""
