"""Databases that become unavailable, do not exist, or belong to a newer aflow."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from aflow.errors import InvalidSetting, MetadataTooNew, MetadataUnavailable
from aflow.server.metaflow.database import VERSION, open_database
from tests.service.conftest import Service
from tests.support.servers import free_port


async def test_a_database_that_was_deleted_is_503(
    serve: Callable[..., Any], tmp_path: Path
) -> None:
    service: Service = await serve(open_database(f"sqlite:///{tmp_path}/data/metadata.db"))
    await service.task()
    database = tmp_path / "data" / "metadata.db"
    database.unlink()

    refused = await service.post("/flows/G", status=503)

    assert str(database) in refused["detail"]
    assert "DOWN" == (await service.get("/healthcheck", 503))["status"]


def test_a_server_that_is_not_there_is_named_without_the_password() -> None:
    port = free_port()

    with pytest.raises(
        MetadataUnavailable, match=f"localhost:{port}/db.* cannot be used"
    ) as caught:
        open_database(f"postgresql://ada:hush@localhost:{port}/db?connect_timeout=1")

    assert "hush" not in str(caught.value)


def test_tables_of_a_newer_aflow_are_left_alone(url: str) -> None:
    with closing(open_database(url)) as database:
        if url == "memory:":
            pytest.skip("what is in memory is of this aflow")
        database.write(
            lambda session: session.change("INSERT INTO service_version VALUES (?)", [VERSION + 1])
        )

    with pytest.raises(MetadataTooNew, match="upgrade aflow"):
        open_database(url)


def test_what_was_registered_is_there_after_a_restart(url: str) -> None:
    with closing(open_database(url)) as database:
        if url == "memory:":
            pytest.skip("what is in memory is gone")
        database.write(
            lambda session: session.change(
                "INSERT INTO service_flows VALUES (?, ?, 1, 'null', 'null')", ["F", None]
            )
        )

    with closing(open_database(url)) as database:
        flows = database.read(lambda session: session.rows("SELECT flow_id FROM service_flows"))

    assert [("F",)] == [tuple(row) for row in flows]


def test_services_that_start_at_the_same_time_make_the_tables_once(url: str) -> None:
    if url == "memory:":
        pytest.skip("what is in memory is nobody else's")
    begin = threading.Barrier(6)

    def started() -> int:
        begin.wait()
        with closing(open_database(url)) as database:
            rows = database.read(lambda session: session.rows("SELECT * FROM service_version"))
        return len(rows)

    with ThreadPoolExecutor(6) as threads:
        found = [threads.submit(started) for _ in range(6)]
        assert [1] * 6 == [each.result() for each in found]


def test_a_kind_of_database_that_is_not_known_is_refused() -> None:
    with pytest.raises(
        InvalidSetting, match="'mysql' is not a metadata store that the service knows"
    ):
        open_database("mysql://host/db")


def test_a_port_that_is_taken_ends_in_one_sentence(tmp_path: Path, repository: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = subprocess.run(
            [sys.executable, "-m", "aflow", "metadata-service", "--port", str(port)],
            cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(repository)},
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip

    assert 2 == done.returncode, done.stderr
    assert f"cannot listen on 127.0.0.1:{port}" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_command_says_that_it_waits_for_a_service_that_refuses(tmp_path: Path) -> None:
    port = free_port()
    address = {"AFLOW_DEFAULT_METADATA": "service", "AFLOW_SERVICE_URL": f"http://127.0.0.1:{port}"}
    asking = subprocess.Popen(
        [sys.executable, "-m", "aflow", "runs"],
        cwd=tmp_path, env=os.environ | address, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert asking.stderr is not None
    said = asking.stderr.readline()
    asking.kill()
    asking.communicate()
    assert said.startswith(f"Waiting for the metadata service at http://127.0.0.1:{port} (")
    assert said.endswith("Connection refused. Check that it runs, and its address.\n")
