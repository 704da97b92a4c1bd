"""Complete runs on S3 with faults, and the number of requests per task."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from aflow import client
from tests.flows.conftest import Workspace
from tests.support.faulty import Fault, FaultyProxy
from tests.support.s3 import S3Bucket

FLOW = """
import random

class Flow_(FlowSpec):
    width = Parameter("width", default=3)

    @step
    def start(self):
        self.big = random.Random(5).randbytes(17 << 20)
        self.xs = list(range(self.width))
        self.next(self.work, foreach="xs")

    @step
    def work(self):
        self.y = bytes([self.input]) * 20_000
        for _ in range(200):
            print("a line that fills the log of the task", self.input)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.ys = [each.y for each in inputs]
        self.merge_artifacts(inputs, include=["big"])
        self.next(self.end)

    @step
    def end(self):
        assert len(self.big) == 17 << 20
"""
SMALL = """
class Flow_(FlowSpec):
    width = Parameter("width", default=3)

    @step
    def start(self):
        self.xs = list(range(self.width))
        self.next(self.work, foreach="xs")

    @step
    def work(self):
        self.y = {"small": self.input}
        print("said", self.input)
        self.next(self.join)

    @step
    def join(self, inputs):
        self.ys = [each.y for each in inputs]
        self.next(self.end)

    @step
    def end(self):
        pass
"""
BAD_WEATHER = {
    "slow down": Fault("answer", 0.1),
    "resets": Fault("reset", 0.1),
    "lost answers": Fault("lost", 0.1),
    "truncated bodies": Fault("cut", 0.1, "GET"),
    "drops in the middle": Fault("dropped", 0.1, "PUT"),
    "two seconds late": Fault("late", 0.1),
}


@pytest.fixture
def proxy(s3_bucket: S3Bucket) -> Iterator[FaultyProxy]:
    """A proxy in front of the bucket."""
    with FaultyProxy(s3_bucket.endpoint, seed=11) as proxy:
        yield proxy


@pytest.fixture
def flow(
    workspace: Workspace, s3_bucket: S3Bucket, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> Workspace:
    """A workspace whose settings name the bucket behind the proxy."""
    monkeypatch.setenv("AFLOW_DATASTORE_SYSROOT_S3", f"s3://{s3_bucket.name}/team")
    monkeypatch.setenv("AFLOW_S3_ENDPOINT_URL", proxy.url)
    monkeypatch.setenv("AFLOW_CLIENT_CACHE_PATH", str(workspace.path / "cache"))
    return workspace


@pytest.mark.slow
@pytest.mark.parametrize("weather", BAD_WEATHER)
def test_a_run_gets_through_bad_weather_with_the_same_artifacts(
    flow: Workspace, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch, weather: str
) -> None:
    flow.write(FLOW)
    fault = BAD_WEATHER[weather]
    proxy.faults.append(Fault(fault.kind, fault.chance, fault.method))

    ran = flow.finish(flow.start("--no-pylint", "--datastore", "s3", "run"))

    assert 0 == ran.code, ran.err
    # Read with an empty cache, so that everything comes from S3, in the same weather.
    monkeypatch.setenv("AFLOW_DEFAULT_DATASTORE", "s3")
    monkeypatch.setenv("AFLOW_CLIENT_CACHE_PATH", str(flow.path / "other-cache"))
    client.metadata(f"local@{flow.path}")
    client.namespace(None)
    run = client.Flow("Flow_").latest_run
    assert run is not None
    assert random.Random(5).randbytes(17 << 20) == run.data.big
    assert [bytes([x]) * 20_000 for x in range(3)] == run.data.ys
    assert 200 == len(list(run["work"].task.loglines("stdout")))
    flow.check()
    assert proxy.faults[0].hits, "the weather was fine"


def test_a_task_with_small_artifacts_costs_one_put_at_most(
    flow: Workspace, proxy: FaultyProxy
) -> None:
    flow.write(SMALL)

    def costs(width: int) -> tuple[int, int]:
        before = len(proxy.requests("PUT|POST")), len(proxy.seen)
        ran = flow.finish(
            flow.start("--no-pylint", "--datastore", "s3", "run", "--width", str(width))
        )
        assert 0 == ran.code, ran.err
        return len(proxy.requests("PUT|POST")) - before[0], len(proxy.seen) - before[1]

    costs(2)  # what is asked once: whether conditions are kept
    few, many = costs(2), costs(22)

    assert many[0] - few[0] <= 20
    assert many[1] - few[1] <= 20
    assert proxy.requests("PUT"), "nothing was kept in S3"
