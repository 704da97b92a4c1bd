"""Fleets of workers, and the expected results of their flows without faults."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from aflow.testing.chaos import Fleet, Results, check, results
from tests.support.postgres import new_schema
from tests.support.s3 import S3Bucket
from tests.support.servers import Server, new_database

Undisturbed = Callable[..., Results]


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    """Machines that share a disk: all data is in files."""
    made = local_fleet(tmp_path / "fleet")
    yield made
    made.close()


def local_fleet(folder: Path) -> Fleet:
    """The same fleet, in a given folder."""
    folder.mkdir()
    return Fleet(
        folder,
        f"sqlite:///{folder}/metadata.db",
        f"sqlite:///{folder}/queue.db",
        AFLOW_DATASTORE_SYSROOT_LOCAL=str(folder / "store"),
    )


@pytest.fixture
def cloud(tmp_path: Path, postgres_server: Server, strict_bucket: S3Bucket) -> Iterator[Fleet]:
    """Machines that share only servers: PostgreSQL for metadata and queue, and S3."""
    folder = tmp_path / "fleet"
    folder.mkdir()
    with new_database(postgres_server) as queue:
        made = Fleet(folder, new_schema(postgres_server), queue, **in_bucket(strict_bucket))
        yield made
        made.close()


def in_bucket(bucket: S3Bucket, endpoint: str | None = None) -> dict[str, str]:
    """Return the settings that make the bucket the datastore."""
    return {
        "AFLOW_DEFAULT_DATASTORE": "s3",
        "AFLOW_DATASTORE_SYSROOT_S3": f"s3://{bucket.name}/team",
        "AFLOW_S3_ENDPOINT_URL": endpoint or bucket.endpoint,
    }


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """The results of a flow without faults, run with one worker in a separate place."""
    known: dict[tuple[str, ...], Results] = {}

    def run(source: str, *words: str) -> Results:
        if (source, *words) not in known:
            calm = local_fleet(tmp_path_factory.mktemp("calm") / "fleet")
            try:
                calm.write(source)
                calm.start_worker("--slots", "2")
                assert 0 == calm.ends(calm.begin(*words)), calm.output()
                check(calm)
                record = calm.record()
                assert record is not None
                known[source, *words] = results(calm.metadata, record)
            finally:
                calm.close()
        return known[source, *words]

    return run
