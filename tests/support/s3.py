"""Buckets on private stand-ins for S3: one server per test session, one bucket per test."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.servers import Server, moto_server, seaweed_server
from tests.support.waiting import PATIENCE, select_nothing

if TYPE_CHECKING:
    from aflow.storage.s3 import S3Store

ACCESS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1"}
_numbers = itertools.count()


class S3Bucket:
    """An empty bucket; `url` is the datastore URL for aflow."""

    def __init__(self, server: Server) -> None:
        self.endpoint = f"http://127.0.0.1:{server.port}"
        self.name = f"bucket-{os.getpid()}-{next(_numbers)}"
        self.url = f"s3://{self.name}/a/prefix?endpoint={self.endpoint}"
        self._stores: list[S3Store] = []
        self._make()

    def _make(self) -> None:
        """Create the bucket, with retries: a server that has just started may fail at first."""
        from botocore.exceptions import BotoCoreError, ClientError

        store, name = self.store(), self.name
        give_up_at = time.monotonic() + PATIENCE
        made = False
        while True:
            try:
                if not made:
                    store._portal.call(lambda s3: s3.create_bucket(Bucket=name))
                    made = True
                store._portal.call(lambda s3: s3.put_object(Bucket=name, Key="first", Body=b"1"))
                store._portal.call(lambda s3: s3.delete_object(Bucket=name, Key="first"))
            except (BotoCoreError, ClientError):
                if time.monotonic() > give_up_at:
                    raise
                select_nothing(0.1)
            else:
                return

    def store(self, url: str | None = None) -> S3Store:
        """Return a store in the bucket. It is closed at the end of the test."""
        from aflow.storage.s3 import S3Store

        store = S3Store(url or self.url)
        self._stores.append(store)
        return store

    def names(self) -> list[str]:
        """Return all keys of the bucket."""
        name = self.name
        answer = self._stores[0]._portal.call(lambda s3: s3.list_objects_v2(Bucket=name))
        return [each["Key"] for each in answer.get("Contents", ())]

    def close(self) -> None:
        for store in self._stores:
            store.close()


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The stand-in for S3 (moto)."""
    server = moto_server(Path(tmp_path_factory.mktemp("moto")))
    yield server
    server.kill()


@pytest.fixture
def s3_bucket(s3_server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Bucket]:
    """An empty bucket, and credentials for it in the environment."""
    for name, value in ACCESS.items():
        monkeypatch.setenv(name, value)
    bucket = S3Bucket(s3_server)
    yield bucket
    bucket.close()


@pytest.fixture(scope="session")
def strict_s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A strict S3 server, which checks signatures and conditions as AWS does (SeaweedFS)."""
    server = seaweed_server(Path(tmp_path_factory.mktemp("seaweedfs")))
    yield server
    server.kill()


@pytest.fixture
def strict_bucket(strict_s3_server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Bucket]:
    """An empty bucket on the strict server, and credentials for it in the environment."""
    for name, value in ACCESS.items():
        monkeypatch.setenv(name, value)
    bucket = S3Bucket(strict_s3_server)
    yield bucket
    bucket.close()
