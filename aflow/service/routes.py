"""The routes of metaflow-service 2.5, all of them: method, path, what answers, and whether it
writes."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from aflow.service import artifacts, flows, metadata, runs, steps, tasks
from aflow.service.database import Session
from aflow.service.messages import Answer, Asked, Listing


class Route(NamedTuple):
    """One line of the table below."""

    method: str
    path: str
    answer: Callable[[Session, Asked], Answer | Listing]
    writes: bool = False


_FLOW = "/flows/{flow_id}"
_RUN = _FLOW + "/runs/{run_number}"
_STEP = _RUN + "/steps/{step_name}"
_TASK = _STEP + "/tasks/{task_id}"
_ATTEMPT = "/attempt/{attempt_id}"

ROUTES = [
    Route("GET", "/flows", flows.get_flows),
    Route("GET", _FLOW, flows.get_flow),
    Route("POST", _FLOW, flows.add_flow, writes=True),
    Route("GET", _FLOW + "/runs", runs.get_runs),
    Route("POST", _FLOW + "/run", runs.add_run, writes=True),
    Route("GET", _RUN, runs.get_run),
    Route("POST", _RUN + "/heartbeat", runs.beat_run, writes=True),
    Route("PATCH", _RUN + "/tag/mutate", runs.change_tags, writes=True),
    Route("GET", _RUN + "/steps", steps.get_steps),
    Route("GET", _STEP, steps.get_step),
    Route("POST", _STEP + "/step", steps.add_step, writes=True),
    Route("GET", _STEP + "/tasks", tasks.get_tasks),
    Route("GET", _STEP + "/filtered_tasks", tasks.get_filtered_tasks),
    Route("POST", _STEP + "/task", tasks.add_task, writes=True),
    Route("GET", _TASK, tasks.get_task),
    Route("POST", _TASK + "/heartbeat", tasks.beat_task, writes=True),
    Route("GET", _RUN + "/metadata", metadata.get_metadata_of_run),
    Route("GET", _TASK + "/metadata", metadata.get_metadata),
    Route("POST", _TASK + "/metadata", metadata.add_metadata, writes=True),
    Route("GET", _RUN + "/artifacts", artifacts.get_artifacts_of_run),
    Route("GET", _STEP + "/artifacts", artifacts.get_artifacts_of_step),
    Route("GET", _TASK + "/artifacts", artifacts.get_artifacts),
    Route("GET", _TASK + _ATTEMPT + "/artifacts", artifacts.get_artifacts),
    Route("GET", _TASK + "/artifacts/{artifact_name}", artifacts.get_artifact),
    Route("GET", _TASK + "/artifacts/{artifact_name}" + _ATTEMPT, artifacts.get_artifact),
    Route("POST", _TASK + "/artifact", artifacts.add_artifacts, writes=True),
]
