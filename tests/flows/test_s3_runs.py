"""Runs with artifacts in S3, through the real command line, on a stand-in."""

from __future__ import annotations

import pytest

from aflow import client
from tests.flows.conftest import Ran, Workspace
from tests.support.s3 import S3Bucket

FLOW = """
class Flow_(FlowSpec):
    @step
    def start(self):
        self.big = bytes(range(256)) * 40_000
        self.xs = [1, 2, 3]
        self.next(self.work, foreach="xs")

    @step
    def work(self):
        self.y = self.input * len(self.big)
        for _ in range(300):
            print("a line that fills the log of the task", self.input)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.ys = [each.y for each in inputs]
        if not os.path.exists("mended"):
            raise ValueError("broken")
        self.next(self.end)

    @step
    def end(self):
        print("ys", self.ys)
"""


@pytest.fixture
def flow(workspace: Workspace, s3_bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A workspace whose settings name a bucket."""
    workspace.write(FLOW)
    monkeypatch.setenv("AFLOW_DEFAULT_DATASTORE", "s3")
    monkeypatch.setenv("AFLOW_DATASTORE_SYSROOT_S3", f"s3://{s3_bucket.name}/team")
    monkeypatch.setenv("AFLOW_S3_ENDPOINT_URL", s3_bucket.endpoint)
    monkeypatch.setenv("AFLOW_CLIENT_CACHE_PATH", str(workspace.path / "cache"))
    return workspace


@pytest.mark.parametrize("isolation", ["task", "worker"])
def test_a_run_keeps_everything_in_the_bucket_and_is_resumed_from_it(
    flow: Workspace, s3_bucket: S3Bucket, isolation: str
) -> None:
    failed = flow.run("--isolation", isolation)
    assert 1 == failed.code
    assert "ValueError: broken" in failed.err
    (flow.path / "mended").touch()

    resumed = flow.finish(flow.start("resume", "--isolation", isolation))

    assert 0 == resumed.code, resumed.err
    size = 256 * 40_000
    assert f"ys {[size, 2 * size, 3 * size]}" in resumed.lines
    assert not (flow.path / ".aflow" / "blobs").exists()
    assert all(key.startswith("team/") for key in s3_bucket.names())
    client.metadata(f"local@{flow.path}")
    client.namespace(None)
    run = client.Flow("Flow_").latest_run
    assert run is not None
    assert bytes(range(256)) * 40_000 == run["start"].task["big"].data
    assert 300 == len(list(run["work"].task.loglines("stdout")))
    flow.check()


def test_nothing_is_deleted_of_a_bucket_that_others_may_use(
    flow: Workspace, s3_bucket: S3Bucket
) -> None:
    flow.run()
    before = s3_bucket.names()

    refused = gc(flow)
    assert 2 == refused.code
    assert "may be shared with others" in refused.err
    assert before == s3_bucket.names()
    assert 0 == gc(flow, "--failed", "--sole-owner", "--grace", "0s").code


def gc(flow: Workspace, *words: str) -> Ran:
    """Run `aflow gc`."""
    return flow.finish(flow.start_aflow("gc", *words))


@pytest.mark.parametrize(
    ("changed", "code", "reported"),
    [
        ({"AFLOW_DATASTORE_SYSROOT_S3": "s3://no-such-bucket/x"}, 1, "there is no such bucket"),
        ({"AFLOW_DATASTORE_SYSROOT_S3": ""}, 2, "needs a place in S3"),
        ({"AFLOW_DATASTORE_SYSROOT_S3": "bucket"}, 2, "needs a place in S3"),
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, 1, "there are no credentials"),
    ],
)
def test_what_is_wrong_with_the_place_is_one_sentence(
    flow: Workspace, changed: dict[str, str], code: int, reported: str
) -> None:
    ran = flow.run(**changed, AWS_EC2_METADATA_DISABLED="true")

    assert code == ran.code, ran.err
    assert reported in ran.err
    assert "Traceback" not in ran.err
