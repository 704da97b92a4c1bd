"""The metrics of a server for Prometheus."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from tests.server.conftest import Daemon


def figures(daemon: Daemon) -> dict[str, float]:
    """Return every sample by name and labels, as Prometheus parses it."""
    status, text = daemon.ask("GET", "/metrics")
    assert 200 == status
    families = [*text_string_to_metric_families(text)]
    assert all(each.documentation for each in families)
    return {
        sample.name + "".join(f" {value}" for value in sample.labels.values()): sample.value
        for each in families
        for sample in each.samples
    }


def test_requests_runs_and_backends_are_counted(folder: Daemon) -> None:
    folder.begin("--queue", f"sqlite:///{folder.path}/queue.db")
    assert 400 == folder.ask("GET", "/v1/runs?flow=../x")[0]

    found = figures(folder)

    assert 1.0 == found["aflow_http_requests_total GET /v1/runs 400"]
    assert 0.0 == found["aflow_runs_going_on"]
    assert 0.0 == found["aflow_runs_orphaned"]
    assert [1.0, 1.0] == [found[f"aflow_backend_up {each}"] for each in ("metadata", "queue")]
    assert 0.0 == found["aflow_queue_messages default ready"]
    assert found["process_resident_memory_bytes"] > 1e6
    assert found["aflow_event_loop_lag_seconds"] >= 0
    assert 0 == folder.stop()
