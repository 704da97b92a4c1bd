"""Jobs of AWS Batch that really run, as local processes, under moto.

moto implements queues and definitions; its Job is replaced by one that runs the definition's
command. It supports variables, all statuses, retryStrategy with evaluateOnExit, the timeout of an
attempt, termination (SIGTERM, then SIGKILL), arrays, several nodes, the loss of a host, and logs.
No job outlives the server.

If podman is available, jobs of local images (`localhost/...`) run in containers with the image's
entry point, as on AWS. Images with the tag `read-only` have a read-only root filesystem, as with
`readonlyRootFilesystem` of a job definition.

Jobs cause faults themselves: the image `no-such-image` cannot be pulled; a job that prints GO_AWAY
loses its machine, and one that prints USE_UP is killed for its memory. With a tag `throttled=N` the
first N submissions of a job of this name are rejected.
"""

from __future__ import annotations

import atexit
import contextvars
import fnmatch
import os
import signal
import subprocess
import threading
import time
import uuid
from datetime import datetime
from typing import Any

from moto import settings
from moto.batch import models, responses
from moto.batch.utils import JobStatus
from moto.core.exceptions import AWSError

LOG_GROUP = "/aws/batch/job"
GO_AWAY, USE_UP = "the machine goes away now", "memory is used up now"
THROTTLED: dict[str, int] = {}
GRACE = 30.0  # seconds between SIGTERM and SIGKILL, as in AWS Batch
ENVIRONMENT: dict[str, str] = {}
CONTAINERS: list[str] = []  # the command line of podman, if jobs run in containers
SLOTS = threading.Semaphore(4)
_extra: contextvars.ContextVar[dict | None] = contextvars.ContextVar("batch_extra", default=None)


def _now() -> int:
    return int(time.time() * 1000)


def _pairs(items) -> dict[str, str]:
    return {each["name"]: each.get("value", "") for each in items or []}


class Throttled(AWSError):  # type: ignore[misc]  # types of moto are not read
    TYPE = "TooManyRequestsException"
    STATUS = 429

    def __init__(self) -> None:
        super().__init__("Too many requests.")


class ProcessJob(models.Job):  # type: ignore[misc]
    __module__ = "moto.batch.process"  # moto registers models by the second part

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.extra, self.changed = _extra.get() or {}, threading.Event()
        self.killed: Any = None  # the reason of the kill; also set by other threads
        self.stop: Any  # also set by other threads
        self.job_started_at: datetime | None
        self.latest_attempt: dict[str, Any] = {}
        self.process: subprocess.Popen | None = None
        self.others: list[subprocess.Popen] = []  # the nodes except the main node, 0
        self.container = ""  # the name of its container, if it has one

    @property
    def status(self):
        if self._child_jobs:
            seen = {each.status for each in self._child_jobs}
            if seen - {"SUCCEEDED", "FAILED"}:
                return "PENDING"
            self.job_stopped, self.job_stopped_at = True, datetime.now()
            return "FAILED" if "FAILED" in seen else "SUCCEEDED"
        return getattr(self._status, "value", self._status)

    @status.setter
    def status(self, value):
        self._status = value

    def run(self):
        try:
            self._run()
        except Exception as error:
            self._finish(False, f"CannotStartContainerError: {error!r}")

    def _run(self):
        retry = self.extra.get("retryStrategy") or self.job_definition.retry_strategy or {}
        attempts = int(retry.get("attempts") or 1)
        for attempt in range(1, attempts + 1):
            self.status = JobStatus.RUNNABLE
            with SLOTS:
                if self.stop:
                    self._finish(False, self.job_stopped_reason)
                    return
                code, reported = self._attempt(attempt)
            if code == 0 and not self.stop:
                self._finish(True, "Essential container in task exited")
                return
            again = not self.stop and self.killed != "timeout" and attempt < attempts
            if not again or _action(retry.get("evaluateOnExit") or [], code, reported) == "EXIT":
                self._finish(False, self.job_stopped_reason if self.stop else reported)
                return

    def _attempt(self, attempt: int) -> tuple[int, str]:
        self.status, self.killed = JobStatus.STARTING, None
        if self._properties()["image"] == "no-such-image":
            reason = "CannotPullContainerError: pull access denied for no-such-image"
            self.latest_attempt = {"container": {"reason": reason}}
            return 1, "Task failed to start"
        self.log_stream_name = f"{self.job_definition.name}/default/{uuid.uuid4().hex}"
        self._log_backend.ensure_log_group(LOG_GROUP)
        self._log_backend.ensure_log_stream(LOG_GROUP, self.log_stream_name)
        container: dict[str, Any] = {"logStreamName": self.log_stream_name, "networkInterfaces": []}
        self.latest_attempt = {"container": container, "startedAt": _now()}
        self.job_started_at = self.job_started_at or datetime.now()
        count = (self.extra.get("nodeOverrides") or {}).get("numNodes") or 1
        self.others = [self._begin(attempt, node, count) for node in range(1, count)]
        for each in self.others:
            threading.Thread(target=self._pump, args=(each, self.log_stream_name)).start()
        self.process = process = self._begin(attempt, 0, count)
        reader = threading.Thread(
            target=self._pump, args=(process, self.log_stream_name), daemon=True
        )
        reader.start()
        self.status = JobStatus.RUNNING
        self._wait(process)
        for each in (process, *self.others):
            _kill(each, signal.SIGKILL)
        self.remove_container()
        reader.join(2)
        code = process.returncode
        code = 128 - code if code < 0 else code  # as a container reports a signal: 137, 143
        self.exit_code = container["exitCode"] = code
        reported = {
            "timeout": "Job attempt duration exceeded timeout",
            "host": f"Host EC2 (instance i-{uuid.uuid4().hex[:17]}) terminated.",
        }.get(self.killed or "", "Essential container in task exited")
        if self.killed == "memory":
            container["reason"] = "OutOfMemoryError: Container killed due to memory usage"
        self.attempts.append({**self.latest_attempt, "stoppedAt": _now(), "statusReason": reported})
        return code, reported

    def _properties(self) -> dict:
        nodes = self.job_definition.node_properties
        if nodes is None:
            return _merged(self.job_definition.container_properties, self.container_overrides)
        over = self.extra["nodeOverrides"]["nodePropertyOverrides"][0]["containerOverrides"]
        return _merged(nodes["nodeRangeProperties"][0]["container"], over)

    def _begin(self, attempt: int, node: int, count: int) -> subprocess.Popen:
        properties = self._properties()
        in_container = bool(CONTAINERS) and properties["image"].startswith("localhost/")
        of_this_machine = {
            "PATH": os.environ["PATH"],
            "HOME": os.environ.get("HOME", "/"),
            **{key: os.environ[key] for key in ("PYTHONPATH",) if key in os.environ},
        }
        ours = {key: each for key, each in ENVIRONMENT.items() if key != "PATH" or not in_container}
        environment = {
            **({} if in_container else of_this_machine),
            **ours,
            **_pairs(properties.get("environment")),
            "AWS_BATCH_JOB_ID": self.job_id,
            "AWS_BATCH_JOB_ATTEMPT": str(attempt),
        }
        if self.job_definition.node_properties is not None:
            environment |= {
                "AWS_BATCH_JOB_NODE_INDEX": str(node),
                "AWS_BATCH_JOB_NUM_NODES": str(count),
            }
        for each in properties.get("resourceRequirements") or ():
            if each["type"] == "GPU":
                ids = (f"GPU-{number}" for number in range(int(each["value"])))
                environment["NVIDIA_VISIBLE_DEVICES"] = ",".join(ids)
        if "index" in self.array_properties:
            environment["AWS_BATCH_JOB_ARRAY_INDEX"] = str(self.array_properties["index"])
        command = properties["command"]
        if in_container:
            self.container = f"job-{uuid.uuid4().hex}"
            given = [word for pair in environment.items() for word in ("--env", "=".join(pair))]
            options = ["run", "--rm", "--init", "--name", self.container, *given]
            options += ["--read-only"] * properties["image"].endswith(":read-only")
            command = [*CONTAINERS, *options, properties["image"], *command]
            environment = dict(os.environ)
        return subprocess.Popen(
            command, env=environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def _wait(self, process: subprocess.Popen) -> None:
        limit = (self.timeout or self.job_definition.timeout or {}).get("attemptDurationSeconds")
        end, hard = (time.monotonic() + limit if limit else None), None
        while process.poll() is None:
            now = time.monotonic()
            if hard is None and (self.stop or (end and now > end)):
                self.killed = self.killed or ("terminated" if self.stop else "timeout")
                hard = now + GRACE
                for each in (process, *self.others):
                    each.send_signal(signal.SIGTERM)  # the first process of a container gets it
            if hard and now > hard:
                _kill(process, signal.SIGKILL)
            self.changed.wait(0.05)
            self.changed.clear()

    def remove_container(self) -> None:
        """Remove the job's container, which would outlive a killed podman."""
        if self.container:
            command = [*CONTAINERS, "rm", "--force", "--ignore", "--time", "0", self.container]
            subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def _pump(self, process, stream):
        for line in iter(process.stdout.readline, b""):
            message = line.decode("utf-8", "replace").rstrip("\n")
            event = {"timestamp": _now(), "message": message}
            self._log_backend.put_log_events(LOG_GROUP, stream, [event])
            for end, said in (("host", GO_AWAY), ("memory", USE_UP)):
                if message == said:
                    self.killed = end
                    _kill(process, signal.SIGKILL)
        process.stdout.close()

    def _finish(self, ok: bool, reason: str | None):
        self.job_stopped, self.job_stopped_at = True, datetime.now()
        self.job_stopped_reason = reason
        self.status = JobStatus.SUCCEEDED if ok else JobStatus.FAILED

    # ------------------------------------------------------------ asked from outside

    def terminate(self, reason):
        for each in self._child_jobs or ():
            each.terminate(reason)
        if not self.stop and self.status not in (JobStatus.SUCCEEDED, JobStatus.FAILED):
            self.job_stopped_reason, self.stop = reason, True
            self.changed.set()

    def describe(self):
        reported = super().describe()
        reported["attempts"] = list(self.attempts)
        reported["isTerminated"] = bool(self.stop)
        if self.status == JobStatus.RUNNABLE.value:
            reported["statusReason"] = "CAPACITY:INSUFFICIENT_INSTANCE_CAPACITY"
        if "nodeProperties" in reported:
            reported["nodeProperties"] = {
                **reported["nodeProperties"],
                "numNodes": 1 + len(self.others),
            }
        if "container" in reported and self.latest_attempt:
            reported["container"] |= self.latest_attempt["container"]
        return reported

    def _container_details(self):
        properties = _merged(self.job_definition.container_properties, self.container_overrides)
        kept = ("image", "command", "environment", "resourceRequirements", "jobRoleArn")
        return {key: properties[key] for key in kept if key in properties}


def _merged(properties: dict, over: dict) -> dict:
    found = {**properties, **{key: value for key, value in over.items() if value}}
    environment = _pairs(properties.get("environment")) | _pairs(over.get("environment"))
    found["environment"] = [{"name": key, "value": each} for key, each in environment.items()]
    return found


def _action(rules, code: int, reported: str) -> str:
    for rule in rules:
        tests = ((rule.get("onExitCode"), str(code)), (rule.get("onStatusReason"), reported))
        if all(not pattern or fnmatch.fnmatchcase(value, pattern) for pattern, value in tests):
            return str(rule["action"]).upper()
    return "RETRY"


def _kill(process, sig):
    try:
        os.killpg(process.pid, sig)
    except ProcessLookupError:
        pass


def _submit_job(self, job_name, job_def_id, job_queue, array_properties=None, **more):
    job = ProcessJob(
        job_name,
        self.get_job_definition(job_def_id),
        self.get_job_queue(job_queue),
        self,
        log_backend=self.logs_backend,
        all_jobs=self._jobs,
        array_properties=array_properties or {},
        **more,
    )
    self._jobs[job.job_id] = job
    size = (array_properties or {}).get("size")
    if size is None:
        job.start()
        return job_name, job.job_id, job.arn
    assert 2 <= size <= 10_000, size
    children = [
        ProcessJob(
            job_name,
            job.job_definition,
            job.job_queue,
            self,
            log_backend=self.logs_backend,
            all_jobs=self._jobs,
            array_properties={"index": index},
            provided_job_id=f"{job.job_id}:{index}",
            **{**more, "tags": None},
        )
        for index in range(size)
    ]
    for each in children:
        job.job_queue.jobs.remove(each)  # lists of a queue contain only the array
        self._jobs[each.job_id] = each
    job._child_jobs = children
    for each in children:
        each.start()
    return job_name, job.job_id, job.arn


def _kill_all() -> None:
    for regions in models.batch_backends.values():
        for backend in regions.values():
            for job in list(backend._jobs.values()):
                job.stop = True
                for each in filter(None, (job.process, *job.others)):
                    if each.poll() is None:
                        _kill(each, signal.SIGKILL)
                        job.remove_container()


def install(environment: dict[str, str], containers: list[str]) -> None:
    """Patch this process's moto so that jobs run, with these variables. If `containers` is a
    command line of podman, jobs of local images run in containers."""
    CONTAINERS[:] = containers
    ENVIRONMENT.update(
        AWS_ENDPOINT_URL=f"http://127.0.0.1:{settings.moto_server_port()}",
        AWS_ACCESS_KEY_ID="test",
        AWS_SECRET_ACCESS_KEY="test",
        **environment,
    )
    atexit.register(_kill_all)
    models.Job = ProcessJob
    models.BatchBackend.submit_job = _submit_job
    submit = responses.BatchResponse.submitjob

    def submitjob(self):
        name, times = self._get_param("jobName"), (self._get_param("tags") or {}).get("throttled")
        if times and THROTTLED.setdefault(name, int(times)) > 0:
            THROTTLED[name] -= 1
            raise Throttled
        _extra.set({key: self._get_param(key) for key in ("retryStrategy", "nodeOverrides")})
        return submit(self)

    responses.BatchResponse.submitjob = submitjob
