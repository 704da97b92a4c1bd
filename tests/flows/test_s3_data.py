"""`S3(run=self)` in a flow, and `S3(run=Run(...))` after it, through Metaflow's names."""

from __future__ import annotations

import pytest

from aflow import S3, client, errors
from tests.flows.conftest import Workspace
from tests.support.s3 import S3Bucket

FLOW = """
from metaflow import FlowSpec, S3, step
from metaflow.datatools import S3GetObject
from metaflow.plugins.datatools.s3 import MetaflowS3NotFound, MetaflowS3URLException


class Theirs(FlowSpec):
    @step
    def start(self):
        with S3(run=self) as s3:
            self.url = s3.put("message", "hello")
            s3.put_many([("n/1", "one"), ("n/2", "two")])
        self.next(self.end)

    @step
    def end(self):
        with S3(run=self) as s3:
            print(s3.get("message").text, sorted(each.text for each in s3.get_recursive(["n"])))
            print(s3.get(S3GetObject("message", 1, 2)).text)
            try:
                s3.get("nothing")
            except MetaflowS3NotFound as error:
                print("missing:", error)
        try:
            with S3() as s3:
                s3.get("message")
        except MetaflowS3URLException as error:
            print("refused:", error)


if __name__ == "__main__":
    Theirs()
"""


def test_a_flow_keeps_data_of_its_run_in_s3(workspace: Workspace, s3_bucket: S3Bucket) -> None:
    (workspace.path / "flow.py").write_text(FLOW)
    root = f"s3://{s3_bucket.name}/data?endpoint={s3_bucket.endpoint}"

    ran = workspace.finish(
        workspace.start_aflow("run", "--compat", "flow.py", AFLOW_DATATOOLS_S3ROOT=root)
    )

    assert 0 == ran.code, ran.err
    client.metadata(f"local@{workspace.path}")
    client.namespace(None)
    run = client.Flow("Theirs").latest_run
    assert run is not None
    url = f"s3://{s3_bucket.name}/data/Theirs/{run.id}/"
    assert f"{url}message" == run.data.url
    assert "hello ['one', 'two']" in ran.lines
    assert "el" in ran.lines
    assert f"missing: There is no object {url}nothing." in ran.lines
    assert any(line.startswith("refused: Inside of a flow use S3(run=self)") for line in ran.lines)
    assert [] == list(workspace.path.glob("aflow.s3.*"))
    after(run, root)


def after(run: client.Run, root: str) -> None:
    """Return the same data, read from outside the flow."""

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("AFLOW_DATATOOLS_S3ROOT", raising=False)
        with pytest.raises(errors.S3InvalidUrl, match="set AFLOW_DATATOOLS_S3ROOT"):
            S3(run=run)
        patch.setenv("METAFLOW_DATATOOLS_S3ROOT", root)
        with S3(run=run) as s3:
            assert ["message", "n/1", "n/2"] == [each.key for each in s3.list_recursive()]
        with S3(run=run, prefix="elsewhere") as s3:
            assert [] == s3.list_recursive()
        with pytest.raises(errors.S3InvalidUrl, match="takes self of a step, or a Run: not str"):
            S3(run="Theirs/1")
