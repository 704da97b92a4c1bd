"""Jobs of AWS Batch in containers: of the image that the documentation builds, with its own entry
point, and of images that cannot run aflow."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from aflow.environments.shipping import command as entry
from aflow.environments.shipping import packed_runtime
from aflow.storage.factory import open_store
from tests.docker.podman import BASE, IMAGE, Podman
from tests.support import packages
from tests.support.aws.furnished import Account
from tests.support.waiting import select_nothing

pytestmark = [pytest.mark.xdist_group("containers"), pytest.mark.timeout(900)]

FLOW = """
import os
from aflow import FlowSpec, Parameter, step

class PlacedFlow(FlowSpec):
    alpha = Parameter("alpha", default=0.01)

    @step
    def start(self):
        self.uids = [os.getuid(), os.getuid()]
        self.next(self.part, foreach="uids")

    @step
    def part(self):
        self.home = os.path.expanduser("~")
        self.next(self.join)

    @step
    def join(self, inputs):
        self.homes = sorted({each.home for each in inputs})
        self.next(self.end)

    @step
    def end(self):
        print("alpha", self.alpha, "in", self.homes, "by", os.getuid())

if __name__ == "__main__":
    PlacedFlow()
"""


@pytest.fixture(scope="module")
def account(podman: Podman, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Account]:
    """An account whose jobs run in containers."""
    folder = tmp_path_factory.mktemp("aws-of-containers")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in podman.environment().items():
            patch.setenv(name, value)
        made = Account(folder, podman.command())
    made.furnish()
    made.settings["AFLOW_BATCH_CONTAINER_IMAGE"] = IMAGE
    yield made
    made.close()


def command(
    account: Account, folder: Path, *words: str, flow: str = FLOW, **more: str
) -> tuple[int, str]:
    """Run a command of the flow, and return its exit code and output."""
    (folder / "flow.py").write_text(flow)
    done = subprocess.run(
        [sys.executable, "flow.py", *words],
        cwd=folder,
        env=os.environ | account.settings | more,
        capture_output=True,
        text=True,
    )
    return done.returncode, done.stdout + done.stderr


def test_a_flow_runs_as_jobs_of_the_image_by_its_own_entry_point(
    account: Account, tmp_path: Path
) -> None:
    code, said = command(account, tmp_path, "run", "--with", "batch", "--alpha", "0.5")

    assert 0 == code, said
    assert "alpha 0.5 in ['/var/lib/aflow'] by 1000" in said


def test_a_state_machine_runs_in_the_image_by_its_own_entry_point(
    account: Account, tmp_path: Path
) -> None:
    code, said = command(account, tmp_path, "step-functions", "create")
    assert 0 == code, said
    run_id = tmp_path / "run"
    command(account, tmp_path, "step-functions", "trigger", "--run-id-file", str(run_id))
    states = account.client("stepfunctions")
    machine = states.list_state_machines()["stateMachines"][0]["stateMachineArn"]

    def status() -> str:
        return str(states.list_executions(stateMachineArn=machine)["executions"][0]["status"])

    while status() == "RUNNING":
        select_nothing(0.3)
    _, log = command(account, tmp_path, "logs", f"{run_id.read_text()}/end")

    assert "SUCCEEDED" == status()
    assert "alpha 0.01 in ['/var/lib/aflow'] by 1000" in log


@pytest.fixture(scope="module")
def plain(podman: Podman, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An image with a Python and nothing else, and a user whom no passwd knows, who has no home;
    with the tag `read-only`, which that of aflow has then, too, HOME is not even set."""
    image, folder = "localhost/plain-python", tmp_path_factory.mktemp("plain")
    (folder / "Dockerfile").write_text(
        f"FROM {BASE} AS plain\nRUN ln -s python3 /usr/bin/python\nUSER 4321:4321\n"
        'FROM plain AS homeless\nENTRYPOINT ["env", "-u", "HOME"]\n'
    )
    for target, tag in (("plain", "latest"), ("homeless", "read-only")):
        words = ("--quiet", "--format", "docker", "--target", target, "--tag", f"{image}:{tag}")
        podman.must("build", *words, folder)
    podman.must("tag", IMAGE, f"{IMAGE}:read-only")
    yield image
    podman.must("untag", IMAGE, f"{IMAGE}:read-only")
    podman.must("image", "rm", "--force", image, f"{image}:read-only")


def python_of(podman: Podman, image: str) -> str:
    """Return the version of the Python of an image, such as 3.11."""
    program = "import sys; print('%d.%d' % sys.version_info[:2])"
    return podman.must("run", "--rm", image, "python3", "-c", program).strip()


PACKAGES = """
import os, sys
from aflow import FlowSpec, batch, pypi, step

class PackedFlow(FlowSpec):
    @batch(image="PLAIN")
    @step
    def start(self):
        self.seen = [(self.home(), os.getuid())]
        self.next(self.own)

    @pypi(packages={"tiny": "1.0"})
    @batch(image="PLAIN:read-only")
    @step
    def own(self):
        import tiny
        self.seen += [(self.home(), tiny.__version__)]
        self.next(self.other)

    @pypi(packages={"tiny": "2.0"}, python="ANOTHER")
    @batch(image="PLAIN:read-only")
    @step
    def other(self):
        import tiny
        self.seen += [("%d.%d" % sys.version_info[:2], tiny.__version__)]
        self.next(self.end)

    @pypi(packages={"tiny": "1.0"})
    @batch(image="IMAGE:read-only")
    @step
    def end(self):
        import tiny
        print([*self.seen, (self.home(), tiny.__version__)])

    def home(self):
        home = os.environ.get("HOME")
        return home and (home, os.access(home, os.W_OK))

if __name__ == "__main__":
    PackedFlow()
"""


@packages.needs_another
def test_plain_python_images_run_what_was_shipped_with_the_run_without_a_home_or_an_index(
    account: Account, podman: Podman, plain: str, tmp_path: Path
) -> None:
    here = ".".join(map(str, sys.version_info[:2]))
    for version in ("1.0", "2.0"):
        packages.make_wheel(tmp_path / "index", "tiny", version)
    text = PACKAGES.replace("IMAGE", IMAGE).replace("PLAIN", plain)
    env = {
        "AFLOW_ENVIRONMENTS_FOLDER": str(tmp_path / "environments"),
        "UV_FIND_LINKS": str(tmp_path / "index"),
    }
    flow = text.replace("ANOTHER", str(packages.ANOTHER))
    code, said = command(account, tmp_path, "run", "--with", "batch", flow=flow, **env)

    if python_of(podman, plain) != here:
        assert f"which was shipped for Python {here}, and the image has" in said
        return
    assert 0 == code, said
    home = "/var/lib/aflow"
    seen = [(("/", False), 4321), (None, "1.0"), (packages.ANOTHER, "2.0"), ((home, False), "1.0")]
    assert str(seen) in said


def test_an_image_without_aflow_for_which_none_was_shipped_is_named_by_the_error(
    account: Account, plain: str, tmp_path: Path
) -> None:
    code, said = command(
        account,
        tmp_path,
        "run",
        "--with",
        "batch",
        AFLOW_BATCH_CONTAINER_IMAGE=plain,
        AFLOW_SKIP_INSTALL_DEPENDENCIES="1",
    )

    assert 1 == code
    assert "before it reported how its task ended" in said
    assert "which ends with:" in said
    assert "The image of this job does not have aflow" in said


def test_a_job_that_has_no_room_on_its_disk_for_aflow_says_so(
    account: Account, podman: Podman, plain: str, tmp_path: Path
) -> None:
    shipment = packed_runtime(tmp_path / "wheels", 0.0)
    store = open_store(f"file://{tmp_path}/store")
    shipment.put(store, 0.0)
    variables = [f"--env={name}={value}" for name, value in shipment.variables(store.url).items()]
    small = ["--read-only", "--tmpfs", "/tmp:size=4m", "--volume", f"{tmp_path}:{tmp_path}:ro"]
    (tmp_path / "store").chmod(0o755)
    for each in (tmp_path, *tmp_path.parents[:2], *(tmp_path / "store").rglob("*")):
        each.chmod(0o755)

    done = podman("run", "--rm", *small, *variables, plain, *entry(["python3"], "aflow"))

    assert 1 == done.returncode, "another machine may have room"
    assert done.stderr.startswith("aflow: No room is left on the disk of the job"), done.stderr
