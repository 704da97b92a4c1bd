"""aflow is shipped to jobs whose images lack it: what is packed, how a bare Python runs it, and
the errors if it cannot."""

from __future__ import annotations

import io
import json
import os
import platform
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from aflow._core.version import DISTRIBUTION, __version__
from aflow.environments import transport, wheels
from aflow.environments.install import LOCK, sweep
from aflow.environments.lock import Lock
from aflow.environments.shipping import KEPT, Shipment, command, packed_runtime, runtime_shipment
from aflow.environments.solve import Solver, Target, platform_named, this_platform
from aflow.environments.spec import Spec
from aflow.environments.uv import Uv, interpreter_for, own_interpreter
from aflow.errors import EnvironmentFailed, InvalidSetting
from aflow.metadata.sqlite import SqliteMetadata
from aflow.runs.gc import RunsToDelete, collect
from aflow.storage import roots
from aflow.storage.base import ObjectStore
from aflow.storage.blobs import BlobStore, blob_name
from aflow.storage.factory import open_store
from tests.support import packages
from tests.support.s3 import S3Bucket
from tests.support.servers import free_port

PROGRAM = ("aflow", "_task")
BEGUN = "aflow: This is not a job of a run"  # its output when it runs without variables
# Without `site` and the working folder there is the standard library alone.
BARE = [sys.executable, "-S", "-P"]
NOW = time.time()


@pytest.fixture(scope="module")
def shipment(tmp_path_factory: pytest.TempPathFactory) -> Shipment:
    """aflow with its dependencies, packed once."""
    return packed_runtime(tmp_path_factory.mktemp("wheels"), NOW)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Shipment:
    """The same without the AWS libraries, which are nine tenths of it: for tests that do not depend
    on sizes, with jobs that do not run."""
    return packed_runtime(tmp_path_factory.mktemp("small"), NOW, extras=())


@pytest.fixture
def store(tmp_path: Path, shipment: Shipment) -> ObjectStore:
    """A store with the shipment."""
    made = open_store(f"file://{tmp_path}/store")
    shipment.put(made, NOW)
    return made


def begin(
    variables: Mapping[str, str], home: Path, **more: str
) -> subprocess.CompletedProcess[str]:
    """Run a job in a bare Python, with these variables."""
    return subprocess.run(
        command(BARE, PROGRAM),
        env={"HOME": str(home), **variables, **more},
        capture_output=True,
        text=True,
    )


# ------------------------------------------------------------------ what is shipped


def test_a_wheel_of_aflow_is_packed_from_where_it_runs_and_holds_nothing_else(
    shipment: Shipment,
) -> None:
    ours = next(each for each in shipment.wheels if each.name == DISTRIBUTION)
    with zipfile.ZipFile(ours.path) as archive:
        names = set(archive.namelist())

    assert f"aflow_runtime-{__version__}-py3-none-any.whl" == ours.path.name
    assert {"aflow/__init__.py", "aflow/aws/stack/cloudformation.yaml", "aflow/py.typed"} <= names
    assert {"aflow", f"aflow_runtime-{__version__}.dist-info"} == {n.split("/")[0] for n in names}
    assert [] == [each for each in names if "__pycache__" in each]


def test_what_is_packed_can_be_installed_by_an_installer_of_wheels(
    shipment: Shipment, tmp_path: Path
) -> None:
    some = (DISTRIBUTION, "msgpack", "click")
    files = [str(each.path) for each in shipment.wheels if each.name in some]
    words = ["install", "--no-index", "--no-deps", "--no-compile", "--target", str(tmp_path)]
    subprocess.run([sys.executable, "-m", "pip", *words, *files], check=True, capture_output=True)
    ran = subprocess.run(
        [*BARE, "-c", "import aflow._core.version, click, msgpack; print(msgpack.__file__)"],
        env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True,
    )  # fmt: skip

    assert ran.stdout.startswith(str(tmp_path)), ran.stderr


def test_the_same_installation_gives_the_same_bytes_and_wheels_that_nobody_uses_are_swept(
    shipment: Shipment, tmp_path: Path
) -> None:
    again = packed_runtime(tmp_path, NOW)
    assert again.key == shipment.key

    old = again.wheels[-1].path.parent
    (tmp_path / ".new-left").mkdir()
    for each in (old, tmp_path / ".new-left"):
        os.utime(each, (NOW - wheels.KEPT - 1, NOW - wheels.KEPT - 1))
    kept = [each.path.stat().st_ino for each in again.wheels[:-1]]
    third = packed_runtime(tmp_path, NOW)

    assert third == again
    assert kept == [each.path.stat().st_ino for each in third.wheels[:-1]], "packed once"
    assert len(shipment.wheels) == len([*tmp_path.iterdir()])


def test_a_wheel_that_another_process_has_packed_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    packed: list[tuple[wheels.PackedWheel, int]] = []

    def quickly() -> dict[str, Path | bytes]:
        return {"own-1.0.dist-info/WHEEL": b"Tag: py3-none-any"}

    def slowly() -> dict[str, Path | bytes]:
        first = wheels._in_folder(tmp_path, "own 1.0", b"identity", quickly)
        packed.append((first, first.path.stat().st_ino))  # which that process uploads now
        return quickly()

    second = wheels._in_folder(tmp_path, "own 1.0", b"identity", slowly)

    assert packed == [(second, second.path.stat().st_ino)]
    assert 1 == len([*tmp_path.iterdir()])


def test_gc_leaves_a_shipment_alone_for_a_month_after_its_last_use(
    store: ObjectStore, shipment: Shipment, tmp_path: Path
) -> None:
    metadata = SqliteMetadata(str(tmp_path / "metadata.db"))
    later = NOW + 20 * 86400
    shipment.put(store, later)

    def left(now: float) -> int:
        collect(metadata, store, RunsToDelete(), now, grace=0.0)
        return len([*store.list("blobs/")])

    everything = len(shipment.wheels) + 1
    assert everything == left(NOW + KEPT + 86400)
    assert 0 == left(later + KEPT + 1)
    assert [] == [*roots.roots(store)]
    metadata.close()


def test_a_wheel_that_was_lost_is_put_back_with_the_next_run(
    store: ObjectStore, shipment: Shipment
) -> None:
    store.delete(blob_name(shipment.wheels[3].key))
    shipment.put(store, NOW)

    assert store.size(blob_name(shipment.wheels[3].key)) is not None


def test_the_command_of_a_job_has_nothing_that_aws_batch_would_replace() -> None:
    text = " ".join(command(["python"], PROGRAM))

    assert [] == [each for each in ("$(", "$$", "Ref::") if each in text]
    assert len(text) < 16_000, "a definition of jobs may have 24 KB"


# ------------------------------------------------------------------ what a job makes of it


def test_a_bare_python_installs_what_was_shipped_once_and_asks_no_index(
    store: ObjectStore, shipment: Shipment, tmp_path: Path
) -> None:
    variables = shipment.variables(store.url)
    (tmp_path / "aflow").mkdir()  # a stranger's package of that name
    (tmp_path / "aflow" / "__init__.py").touch()
    first = begin(variables, tmp_path / "home", PYTHONPATH=str(tmp_path))
    for name in [*store.list("blobs/")]:
        if name != blob_name(shipment.key):
            store.delete(name)
    second = begin(variables, tmp_path / "home")

    for each in (first, second):
        assert (202, "") == (each.returncode, each.stdout)
        assert each.stderr.startswith(BEGUN)
    (installed,) = (tmp_path / "home" / ".cache" / "aflow" / "runtimes").iterdir()
    assert {"bin", "lib", "pyvenv.cfg", LOCK} == {each.name for each in installed.iterdir()}


def test_an_installation_is_not_removed_while_a_job_runs_in_it(
    store: ObjectStore, shipment: Shipment, tmp_path: Path
) -> None:
    (tmp_path / "job.py").write_text(
        "import os, sys\nfrom aflow.environments.install import sweep\n"
        "os.utime(sys.prefix, (0, 0)); sweep(os.path.dirname(sys.prefix)); print(sys.prefix)\n"
    )
    ran = subprocess.run(
        command(BARE, ["job"]),
        env={"HOME": str(tmp_path), "PYTHONPATH": str(tmp_path), **shipment.variables(store.url)},
        capture_output=True, text=True,
    )  # fmt: skip
    installed = Path(ran.stdout.strip())

    assert (installed / "bin" / "python").exists(), ran.stderr
    sweep(str(installed.parent))
    assert not installed.exists()


def test_an_aflow_of_the_same_version_in_the_image_is_used_as_it_is(tmp_path: Path) -> None:
    variables = {"AFLOW_RUNTIME": f"{'0' * 64}:1:0:file:///nowhere"}
    ran = subprocess.run(
        command([sys.executable], PROGRAM),
        env={"HOME": str(tmp_path), **variables}, capture_output=True, text=True,
    )  # fmt: skip

    assert ran.stderr.startswith(BEGUN)


def test_an_aflow_of_another_version_in_the_image_gives_way_to_the_one_that_was_shipped(
    store: ObjectStore, shipment: Shipment, tmp_path: Path
) -> None:
    (tmp_path / "aflow" / "_core").mkdir(parents=True)
    for name, text in (
        ("__init__.py", "__version__ = '0.0.9'"),
        ("_core/__init__.py", ""),
        ("_core/version.py", ""),
        ("__main__.py", "import sys; print('the one of the image', *sys.argv[1:])"),
    ):
        (tmp_path / "aflow" / name).write_text(text)

    other = begin({}, tmp_path, PYTHONPATH=str(tmp_path))
    ran = begin(shipment.variables(store.url), tmp_path, PYTHONPATH=str(tmp_path))

    assert "the one of the image _task\n" == other.stdout, "nothing was shipped"
    assert ran.stderr.startswith(BEGUN)


class Answers(BaseHTTPRequestHandler):
    """An endpoint that returns credentials, like those for containers, instances and pods."""

    given = json.dumps({"AccessKeyId": "test", "SecretAccessKey": "test", "Token": ""})

    def do_GET(self) -> None:
        wanted = {
            "/container": ("Authorization", "secret"),
            "/latest": ("X-aws-ec2-metadata-token", "t"),
        }
        name, value = next((v for k, v in wanted.items() if self.path.startswith(k)), ("", ""))
        if name and self.headers.get(name) != value:
            self.answer(403, "refused")
        elif self.path.endswith("security-credentials/"):
            self.answer(200, "the-role\n")
        elif self.path.startswith("/?Action=AssumeRoleWithWebIdentity") and "=by-pod" in self.path:
            names = ("AccessKeyId", "test"), ("SecretAccessKey", "test"), ("SessionToken", "")
            self.answer(200, "".join(f"<{each}>{value}</{each}>" for each, value in names))
        else:
            self.answer(200, self.given)

    def do_PUT(self) -> None:
        self.answer(200, "t")

    def answer(self, code: int, text: str) -> None:
        self.send_response(code)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""


@pytest.fixture(scope="module")
def metadata_service() -> Iterator[str]:
    """The address of the endpoint for credentials."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def _by_variables(service: str, folder: Path) -> dict[str, str]:
    return {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}


def _by_file(service: str, folder: Path) -> dict[str, str]:
    (folder / "keys").write_text("[a]\naws_access_key_id = test\naws_secret_access_key = test\n")
    return {"AWS_SHARED_CREDENTIALS_FILE": str(folder / "keys"), "AWS_PROFILE": "a"}


def _by_container(service: str, folder: Path) -> dict[str, str]:
    (folder / "token").write_text("secret\n")
    return {
        "AWS_CONTAINER_CREDENTIALS_FULL_URI": f"{service}/container",
        "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": str(folder / "token"),
    }


def _by_instance(service: str, folder: Path) -> dict[str, str]:
    return {"AWS_EC2_METADATA_SERVICE_ENDPOINT": f"{service}/"}


def _by_pod(service: str, folder: Path) -> dict[str, str]:
    (folder / "token").write_text("by-pod")
    return {
        "AWS_WEB_IDENTITY_TOKEN_FILE": str(folder / "token"),
        "AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/jobs",
        "AWS_ENDPOINT_URL_STS": service,
    }


@pytest.mark.parametrize(
    "given",
    [_by_variables, _by_file, _by_container, _by_instance, _by_pod],
    ids=lambda e: e.__name__,
)
def test_a_bare_python_reads_a_bucket_that_checks_signatures_by_the_credentials_that_it_has(
    given: Callable[[str, Path], dict[str, str]],
    strict_bucket: S3Bucket,
    small: Shipment,
    metadata_service: str,
    tmp_path: Path,
) -> None:
    small.put(strict_bucket.store(), NOW)
    variables = small.variables(strict_bucket.url)

    ran = begin({**variables, **given(metadata_service, tmp_path)}, tmp_path / "home")

    assert ran.stderr.startswith(BEGUN)


# ------------------------------------------------------------------ what may be wrong


def said(ran: subprocess.CompletedProcess[str], code: int) -> str:
    """The one sentence that a job that cannot begin has said."""
    assert (code, "", 1) == (ran.returncode, ran.stdout, ran.stderr.count("\n")), ran.stderr
    return ran.stderr


def test_a_job_without_credentials_says_so(shipment: Shipment, tmp_path: Path) -> None:
    variables = shipment.variables("s3://flows/prefix")

    ran = begin(variables, tmp_path, AWS_EC2_METADATA_DISABLED="true")

    assert "aflow: The job has no credentials for its datastore" in said(ran, 202)

    keys = tmp_path / "keys"
    keys.write_text("aws_secret_access_key = hunter2\n")  # without its section
    ran = begin(variables, tmp_path, AWS_SHARED_CREDENTIALS_FILE=str(keys))
    assert f"({keys} is malformed)" in said(ran, 202)
    assert "hunter2" not in ran.stderr


def test_a_job_with_the_wrong_credentials_says_what_was_refused(
    strict_bucket: S3Bucket, shipment: Shipment, tmp_path: Path
) -> None:
    wrong = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "wrong"}
    ran = begin({**shipment.variables(strict_bucket.url), **wrong}, tmp_path)

    assert "refuses to give blobs/" in said(ran, 202)
    assert "SignatureDoesNotMatch" in ran.stderr


def test_a_job_whose_store_is_away_tries_for_a_while_and_may_be_tried_again(
    shipment: Shipment, tmp_path: Path
) -> None:
    variables = shipment.variables(f"s3://flows/prefix?endpoint=http://127.0.0.1:{free_port()}")
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}

    ran = begin({**variables, **keys}, tmp_path, AFLOW_BOOT_PATIENCE="0.1")

    assert "cannot be read: [Errno 111] Connection refused." in said(ran, 1)


def test_a_job_whose_shipment_is_gone_says_so(
    store: ObjectStore, shipment: Shipment, tmp_path: Path
) -> None:
    store.delete(blob_name(shipment.wheels[0].key))

    ran = begin(shipment.variables(store.url), tmp_path)

    assert f"has no object {blob_name(shipment.wheels[0].key)}" in said(ran, 202)


@pytest.mark.parametrize("which", ["the manifest", "a wheel"])
def test_what_is_damaged_is_not_installed(
    store: ObjectStore, shipment: Shipment, tmp_path: Path, which: str
) -> None:
    name = blob_name(shipment.key if which == "the manifest" else shipment.wheels[0].key)
    data = bytearray(store.get(name))
    data[len(data) // 2] ^= 1
    store.put(name, [data])

    ran = begin(shipment.variables(store.url), tmp_path / "home")

    assert "is damaged" in said(ran, 202)
    folder = tmp_path / "home" / ".cache" / "aflow" / "runtimes"
    assert [] == ([*folder.iterdir()] if folder.exists() else [])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"python": "3.9"}, "was shipped for Python 3.9, and the image has Python"),
        ({"machine": "aarch64"}, "was shipped for aarch64 with glibc 2."),
        ({"libc": ["glibc", [9, 1]]}, "with glibc 9.1, and the job runs on"),
        ({"libc": ["musl", []]}, "with musl"),
    ],
)
def test_a_job_of_another_python_or_platform_says_what_was_shipped_and_what_it_has(
    store: ObjectStore, shipment: Shipment, tmp_path: Path, change: dict[str, Any], words: str
) -> None:
    manifest = json.loads(shipment.manifest)
    manifest["runtimes"][0].update(change)
    other = shipment._replace(manifest=json.dumps(manifest).encode())
    other.put(store, NOW)

    ran = begin(other.variables(store.url), tmp_path)

    assert "The image of this job does not have aflow" in said(ran, 202)
    assert words in ran.stderr


# ------------------------------------------------------------------ for other platforms


ARM = "aarch64-manylinux_2_28"
NATIVE = f"linux_{platform.machine()}"
OTHER = "3.13" if sys.version_info[:2] != (3, 13) else "3.12"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only package index: aflow's dependencies, and uv, for another machine and Python."""
    folder, abi = tmp_path / "index", f"cp{OTHER.replace('.', '')}"
    for each in map(Requirement, wheels.needs_of_aflow()):
        pure = each.name in ("click", "cloudpickle", "packaging", "rich", "aiobotocore")
        tag = "py3-none-any" if pure else f"{abi}-{abi}-manylinux_2_17_aarch64"
        packages.make_wheel(folder, each.name.replace("-", "_"), "99.0", tag=tag)
    version = Uv().run("--version").split()[1]
    tag = "py3-none-manylinux_2_17_aarch64"
    packages.make_wheel(folder, "uv", version, tag=tag, scripts={"uv": "uv for ARM"})
    packages.make_wheel(folder, "tiny", "1.0", tag=f"{abi}-{abi}-manylinux_2_28_aarch64")
    packages.make_wheel(folder, "tiny", "2.0", tag=f"{abi}-{abi}-manylinux_2_34_aarch64")
    packages.make_wheel(folder, "tiny", "3.0", tag=f"{abi}-{abi}-musllinux_1_2_x86_64")
    packages.make_sdist(folder, "sourced", "1.0", "pass")
    settings = tmp_path / "uv.toml"
    settings.write_text(f'no-index = true\nfind-links = ["{folder}"]\n')
    monkeypatch.setenv("UV_CONFIG_FILE", str(settings))
    monkeypatch.setenv("AFLOW_ENVIRONMENTS_FOLDER", str(tmp_path / "environments"))
    return folder


def locked(*requirements: str, platform: str = ARM, tmp_path: Path) -> Lock:
    """What is locked for these, there."""
    solver = Solver(tmp_path / "environments", tmp_path, Uv())
    return solver.lock(Spec(requirements=requirements), Target(OTHER, platform, own_interpreter()))


def test_aflow_is_shipped_for_the_platform_and_the_python_that_jobs_have(
    index: Path, shipment: Shipment, caplog: pytest.LogCaptureFixture
) -> None:
    glibc = json.loads(shipment.manifest)["runtimes"][0]["libc"][1]
    here = Target("{}.{}".format(*sys.version_info[:2]), this_platform())

    folder = shipment.wheels[0].path.parents[1]
    made = packed_runtime(folder, NOW, targets=[here, Target(OTHER, ARM)])

    own, other = json.loads(made.manifest)["runtimes"]
    assert ("aarch64", OTHER, ["glibc", [2, 28]]) == tuple(
        other[each] for each in ("machine", "python", "libc")
    )
    files = {each["file"].split("-")[0]: each["file"] for each in other["wheels"]}
    assert f"aflow_runtime-{__version__}-py3-none-any.whl" == files["aflow_runtime"]
    assert files["blake3"].endswith("manylinux_2_17_aarch64.whl")
    assert glibc == own["libc"][1], "what fits this machine is shipped once"
    assert {each["key"] for each in other["wheels"]} <= {each.key for each in made.wheels}
    # Where the index lacks something for one platform, jobs of this one can begin.
    next(index.glob("blake3*")).unlink()
    next(index.glob("msgpack*")).unlink()
    with caplog.at_level("WARNING"):
        rest = runtime_shipment(folder, NOW, [Target(OTHER, "aarch64-manylinux_2_34")])
    assert rest is not None
    assert 1 == len(json.loads(rest.manifest)["runtimes"])
    assert "on aarch64-manylinux_2_34 is not available" in caplog.text


def test_packages_are_locked_and_shipped_for_another_platform_with_a_uv_of_it(
    index: Path, tmp_path: Path
) -> None:
    lock = locked("tiny", "sourced", tmp_path=tmp_path)
    store, said = open_store(f"file://{tmp_path}/store"), list[str]()

    shipped = transport.ship({"start": lock}, store, NOW, said.append).of_steps["start"]

    assert {"tiny": "1.0", "sourced": "1.0"} == lock.versions, "the newest that runs there"
    assert b"uv for ARM" == bytes(BlobStore(store).get(shipped.uv))
    assert shipped.runtime is not None
    assert shipped.python is None
    assert f"Python {OTHER} for {ARM} does not travel from this machine" in "\n".join(said)
    musl = locked("tiny", platform="x86_64-unknown-linux-musl", tmp_path=tmp_path)
    assert {"tiny": "3.0"} == musl.versions
    # A machine of another kind says which file does not run there.
    with pytest.raises(EnvironmentFailed, match=r"^The environment was locked for aarch64.*tiny-1"):
        transport.built(shipped, store, said.append, ["start"])


def test_a_package_without_a_wheel_for_the_platform_is_named(index: Path, tmp_path: Path) -> None:
    packages.make_sdist(index, "compiled", "1.0", "pass", tag=f"py3-none-{NATIVE}")

    for wanted, why in (
        ("tiny==2.0", r"tiny.* has no wheels with a matching platform"),
        ("compiled", f"compiled 1.0 has no wheel for Python {OTHER} on {ARM}, and one that is "),
    ):
        with pytest.raises(EnvironmentFailed, match=why):
            locked(wanted, tmp_path=tmp_path)


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        ("linux/amd64", "x86_64-manylinux_2_28"),
        ("linux/arm64/v8", ARM),
        ("ARM64", ARM),
        ("linux-aarch64", ARM),
        ("aarch64-unknown-linux-gnu", ARM),
        ("x86_64-manylinux2014", "x86_64-manylinux_2_17"),
        ("aarch64-manylinux_2_34", "aarch64-manylinux_2_34"),
        ("x86_64-unknown-linux-musl", "x86_64-unknown-linux-musl"),
    ],
)
def test_a_platform_is_named_as_users_know_it(said: str, meant: str) -> None:
    assert meant == platform_named(said)


def test_what_is_no_platform_is_refused_in_one_sentence() -> None:
    with pytest.raises(
        InvalidSetting, match="'windows' is not a platform of jobs that aflow knows"
    ):
        platform_named("windows")


@pytest.mark.skipif(packages.ANOTHER is None, reason="one Python is all there is here")
def test_a_python_that_travels_finds_its_library_beside_itself(tmp_path: Path) -> None:
    path = interpreter_for(packages.ANOTHER, may_download=False).path
    with tarfile.open(fileobj=io.BytesIO(transport.packed_python(path))) as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", None)
        archive.extractall(tmp_path)
    python = next(tmp_path.glob("bin/python3*"))
    program = (
        "import ctypes, ssl, sys; print(sys.prefix); "
        "print(*{each.split()[-1] for each in open('/proc/self/maps') if 'libpython' in each})"
    )
    done = subprocess.run([python, "-I", "-S", "-c", program], capture_output=True, text=True)

    prefix, libraries = (done.stdout + done.stderr).splitlines()
    assert str(tmp_path) == prefix
    assert all(each.startswith(str(tmp_path)) for each in libraries.split())
