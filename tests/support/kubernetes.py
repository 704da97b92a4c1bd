"""A stand-in for a Kubernetes cluster: the part of the API server that aflow uses, a controller of
Indexed Jobs, and pods that really run, as local processes.

The API server supports namespaces, names, uids, resource versions, label and field selectors, pages
of lists (`limit`, `continue`), dry runs, merge patches, immutable fields, quotas, tokens, and the
schema of each kind (kubernetes-validate, strict). The controller supports completions, parallelism,
backoffLimit, backoffLimitPerIndex, podFailurePolicy by conditions and activeDeadlineSeconds, and
counts a finished pod before it is removed. It follows the public documentation (Jobs, pod failure
policy, API concepts, disruptions) and was not compared with a real cluster.

Tests cause faults by methods (`evict`, `lose_node`, `use_up_memory`, `answer_with`), or by the spec
of a pod: the image `no-such-image`, a node selector that matches no node.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import tempfile
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.typedefs import Handler

Object = dict[str, Any]

VERSION = "1.33"
INDEX, JOB_NAME = "batch.kubernetes.io/job-completion-index", "batch.kubernetes.io/job-name"
IGNORED = "batch.kubernetes.io/job-index-ignored-failure-count"
KINDS = {
    "jobs": "Job", "pods": "Pod", "secrets": "Secret", "configmaps": "ConfigMap",
    "services": "Service", "serviceaccounts": "ServiceAccount", "events": "Event",
    "persistentvolumeclaims": "PersistentVolumeClaim", "deployments": "Deployment",
}  # fmt: skip
NODES = {"node-a": {"zone": "a"}, "node-b": {"zone": "b"}}
GPU, GPUS = "nvidia.com/gpu", 2  # per node
LABEL = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?\Z")
NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?\Z")
IMMUTABLE = ("completions", "selector", "template", "completionMode", "podFailurePolicy",
             "backoffLimitPerIndex")  # fmt: skip


class Fault(Exception):
    """An error response."""

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(message)
        self.code, self.reason, self.message = code, reason, message

    def answer(self) -> web.Response:
        status = {
            "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": self.code,
            "reason": self.reason, "message": self.message, "metadata": {},
        }  # fmt: skip
        return web.json_response(status, status=self.code)


def now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


class Pod:
    """A pod of the controller: its object and its process."""

    def __init__(self, body: Object, job: Job, index: int) -> None:
        self.body, self.job, self.index = body, job, index
        self.process: asyncio.subprocess.Process | None = None
        self.log = b""
        self.killed_for = ""
        self.is_over = False
        self.gpus: list[int] = []  # the numbers of the node's GPUs that it has

    @property
    def name(self) -> str:
        return str(self.body["metadata"]["name"])

    @property
    def status(self) -> Object:
        return self.body["status"]  # type: ignore[no-any-return]


class Job:
    """The controller's state of a Job."""

    def __init__(self, body: Object) -> None:
        self.body = body
        self.pods: dict[int, Pod] = {}
        self.succeeded: set[int] = set()
        self.failed: set[int] = set()
        self.ignored: Counter[int] = Counter()
        self.is_over = False
        self.deadline: asyncio.TimerHandle | None = None

    @property
    def spec(self) -> Object:
        return self.body["spec"]  # type: ignore[no-any-return]


class Cluster:
    """The stand-in, which serves in a separate thread. `calls` are all requests, as pairs of method
    and path without query."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.token = f"token-{uuid.uuid4().hex}"
        self.calls: list[tuple[str, str]] = []
        self.slots = 16
        self.objects: dict[tuple[str, str, str], Object] = {}
        self.jobs: dict[str, Job] = {}  # by uid
        self.pods: dict[str, Pod] = {}  # by uid
        self.quota: dict[str, int] = {}  # by plural
        self.forbidden: set[tuple[str, str]] = set()  # method and plural
        self.namespaces = {"default", "ml"}
        self._faults: list[int] = []
        self._pages: dict[str, list[Object]] = {}  # the remaining items of lists, by token
        self._forgotten = 0  # how many of the next tokens are rejected as too old
        self._version = 0
        self._running = 0
        self._gpus = {name: [*range(GPUS)] for name in NODES}  # the free GPUs by node
        self._pulse = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    # ------------------------------------------------------------ for tests

    def start(self) -> None:
        self._thread.start()
        self._do(self._serve())
        self.write_config()

    def write_config(self, token: str | None = None, **context: str) -> Path:
        """Write a kubeconfig for this cluster, and return its path."""
        path = self.folder / "kubeconfig"
        path.write_text(json.dumps({
            "apiVersion": "v1", "kind": "Config", "current-context": "test",
            "clusters": [{"name": "test", "cluster": {"server": self.url}}],
            "users": [{"name": "test", "user": {"token": token or self.token}}],
            "contexts": [
                {"name": "test", "context": {"cluster": "test", "user": "test", **context}}
            ],
        }))  # fmt: skip
        return path

    def stop(self) -> None:
        self._do(self._shut())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def clear(self) -> None:
        """Kill all pods, and remove all objects."""
        self._do(self._clear())

    def make(self, plural: str, name: str, namespace: str = "default", **fields: Any) -> None:
        """Create an object."""
        self._do(self._made(plural, namespace, {"metadata": {"name": name}, **fields}))

    def listed(self, plural: str, namespace: str = "default") -> list[Object]:
        """Return all objects of a kind."""
        return [
            json.loads(json.dumps(each))
            for (kind, where, _), each in [*self.objects.items()]
            if (kind, where) == (plural, namespace)
        ]

    def phases(self) -> Counter[str]:
        """Return the number of pods in each phase."""
        return Counter(pod["status"]["phase"] for pod in self.listed("pods"))

    def running(self) -> list[str]:
        """Return the names of the running pods."""
        pods = self.listed("pods")
        return sorted(
            p["metadata"]["name"] for p in pods if p["status"]["phase"] == "Running"
        )  # fmt: skip

    def answer_with(self, code: int, times: int) -> None:
        """Respond to the next requests with this status code."""
        self._faults += [code] * times

    def forget_lists(self, times: int) -> None:
        """Reject the `continue` tokens of the next pages as too old, as after a compaction."""
        self._forgotten = times

    def answer_truly(self) -> None:
        self._faults.clear()

    def evict(self, name: str) -> None:
        """Evict a pod, as a drain of its node does."""
        self._do(self._disrupt(name, "EvictionByEvictionAPI", signal.SIGTERM))

    def lose_node(self, name: str) -> None:
        """Simulate the loss of a pod's node: the pod is killed."""
        self._do(self._disrupt(name, "DeletionByPodGC", signal.SIGKILL))

    def use_up_memory(self, name: str) -> None:
        """Simulate the kernel's OOM killer: the pod is killed."""
        self._do(self._kill(name, "OOMKilled"))

    def delete(self, plural: str, name: str, namespace: str = "default") -> None:
        """Delete an object as `kubectl delete` does."""
        self._do(self._deleted(plural, namespace, name))

    def _do(self, call: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(call, self._loop).result(60)

    # ------------------------------------------------------------ the server

    async def _serve(self) -> None:
        app = web.Application(middlewares=[self._answering], client_max_size=1 << 24)
        app.router.add_get("/{discovery:api|apis|api/v1|apis/[a-z.0-9]+/v1}", _discovery)
        for prefix in ("/api/v1", "/apis/batch/v1", "/apis/apps/v1"):
            base = f"{prefix}/namespaces/{{namespace}}/{{plural}}"
            app.router.add_get(base, self._list)
            app.router.add_post(base, self._create)
            app.router.add_delete(base, self._delete_some)
            app.router.add_get(f"{base}/{{name}}", self._get)
            app.router.add_patch(f"{base}/{{name}}", self._patch)
            app.router.add_delete(f"{base}/{{name}}", self._delete)
            app.router.add_get(f"{base}/{{name}}/log", self._log)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def _shut(self) -> None:
        await self._clear()
        await self._runner.cleanup()

    async def _clear(self) -> None:
        for job in self.jobs.values():
            job.is_over = True
        for pod in [*self.pods.values()]:
            self._delete_pod(pod, signal.SIGKILL)
        if self._tasks:
            await asyncio.wait([*self._tasks])
        self.objects.clear()
        self.jobs.clear()
        self.pods.clear()
        self.calls.clear()
        self.quota.clear()
        self.forbidden.clear()
        self._faults.clear()
        self._pages.clear()
        self._forgotten = 0
        self.slots = 16

    @web.middleware
    async def _answering(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self.calls.append((request.method, request.path))
        try:
            if self._faults:
                code = self._faults.pop(0)
                raise Fault(code, "InternalError", "etcdserver: request timed out")
            if "discovery" in request.match_info:  # kubectl sends no token over plain HTTP
                return await handler(request)
            if request.headers.get("Authorization") != f"Bearer {self.token}":
                raise Fault(401, "Unauthorized", "Unauthorized")
            plural = request.match_info.get("plural", "")
            if plural not in KINDS:
                raise Fault(404, "NotFound", "the server could not find the requested resource")
            if (request.method, plural) in self.forbidden:
                words = f'{plural} is forbidden: User "ann" cannot do this to resource "{plural}"'
                raise Fault(403, "Forbidden", words)
            return await handler(request)
        except Fault as fault:
            return fault.answer()

    def _there(self, request: web.Request) -> Object:
        plural, namespace, name = self._key(request)
        found = self.objects.get((plural, namespace, name))
        if found is None:
            raise Fault(404, "NotFound", f'{plural} "{name}" not found')
        return found

    @staticmethod
    def _key(request: web.Request) -> tuple[str, str, str]:
        info = request.match_info
        return info["plural"], info["namespace"], info.get("name", "")

    async def _get(self, request: web.Request) -> web.Response:
        return web.json_response(self._there(request))

    async def _list(self, request: web.Request) -> web.Response:
        token = request.query.get("continue")
        if token is None:
            found = self._selected(request)
        elif self._forgotten or token not in self._pages:
            self._forgotten = max(0, self._forgotten - 1)
            words = "The provided continue parameter is too old to display a consistent list result"
            raise Fault(410, "Expired", words)
        else:  # all pages are of the list at the time of the first
            found = self._pages[token]
        end = int(request.query.get("limit") or len(found) or 1)
        metadata: Object = {"resourceVersion": str(self._version)}
        if end < len(found):
            metadata |= {"continue": uuid.uuid4().hex, "remainingItemCount": len(found) - end}
            self._pages[metadata["continue"]] = found[end:]
        return web.json_response({"metadata": metadata, "items": found[:end]})

    def _selected(self, request: web.Request) -> list[Object]:
        plural, namespace, _ = self._key(request)
        takes = _selector(request.query.get("labelSelector", ""))
        fields = _fields(request.query.get("fieldSelector", ""))
        return [
            each
            for (kind, where, _), each in self.objects.items()
            if (kind, where) == (plural, namespace)
            and takes(each["metadata"].get("labels") or {})
            and fields(each)
        ]

    async def _create(self, request: web.Request) -> web.Response:
        plural, namespace, _ = self._key(request)
        if namespace not in self.namespaces:
            raise Fault(404, "NotFound", f'namespaces "{namespace}" not found')
        body = await request.json()
        _check(body, KINDS[plural])
        name = body["metadata"]["name"]
        if (plural, namespace, name) in self.objects:
            raise Fault(409, "AlreadyExists", f'{plural} "{name}" already exists')
        self._check_quota(plural, namespace, name)
        if request.query.get("dryRun") == "All":
            return web.json_response(body, status=201)
        return web.json_response(await self._made(plural, namespace, body), status=201)

    def _check_quota(self, plural: str, namespace: str, name: str) -> None:
        most = self.quota.get(plural)
        used = sum(
            1
            for (kind, where, _), each in self.objects.items()
            if (kind, where) == (plural, namespace)
            and (each.get("status") or {}).get("phase") not in ("Succeeded", "Failed")
        )
        if most is not None and used >= most:
            words = (
                f"exceeded quota: few, requested: count/{plural}=1, used: {used}, limited: {most}"
            )
            raise Fault(403, "Forbidden", f'{plural} "{name}" is forbidden: {words}')

    async def _made(self, plural: str, namespace: str, body: Object) -> Object:
        metadata = body["metadata"]
        metadata |= {
            "namespace": namespace, "uid": str(uuid.uuid4()), "creationTimestamp": now(),
        }  # fmt: skip
        self.objects[plural, namespace, metadata["name"]] = body
        self._touch(body)
        self._wake()
        if plural == "jobs":
            body["status"] = {"startTime": now()}
            job = self.jobs[metadata["uid"]] = Job(body)
            self._set_deadline(job)
            self._sync(job)
        return body

    def _touch(self, body: Object) -> None:
        self._version += 1
        body["metadata"]["resourceVersion"] = str(self._version)

    async def _patch(self, request: web.Request) -> web.Response:
        body = self._there(request)
        assert request.content_type == "application/merge-patch+json"
        change = await request.json()
        version = (change.get("metadata") or {}).get("resourceVersion")
        if version not in (None, body["metadata"]["resourceVersion"]):
            raise Fault(409, "Conflict", "the object has been modified; please apply your changes")
        for field in IMMUTABLE:
            if field in (change.get("spec") or {}):
                raise Fault(422, "Invalid", f"spec.{field}: Invalid value: field is immutable")
        _merge(body, change)
        self._touch(body)
        job = self.jobs.get(body["metadata"]["uid"])
        if job is not None:
            self._set_deadline(job)
        return web.json_response(body)

    async def _delete(self, request: web.Request) -> web.Response:
        self._there(request)
        await self._deleted(*self._key(request))
        return web.json_response({"kind": "Status", "status": "Success"})

    async def _delete_some(self, request: web.Request) -> web.Response:
        plural, namespace, _ = self._key(request)
        for each in self._selected(request):
            await self._deleted(plural, namespace, each["metadata"]["name"])
        return web.json_response({"kind": "Status", "status": "Success"})

    async def _deleted(self, plural: str, namespace: str, name: str) -> None:
        body = self.objects[plural, namespace, name]
        if plural == "pods":
            self._delete_pod(self.pods[body["metadata"]["uid"]])
            return
        del self.objects[plural, namespace, name]
        if plural == "jobs":
            job = self.jobs.pop(body["metadata"]["uid"])
            job.is_over = True
            for pod in job.pods.values():
                self._delete_pod(pod)
            for key in [k for k, each in self.objects.items() if _is_owned(each, body)]:
                if key[0] != "pods":
                    del self.objects[key]

    async def _log(self, request: web.Request) -> web.Response:
        pod = self.pods[self._there(request)["metadata"]["uid"]]
        lines = pod.log.splitlines(keepends=True)[-int(request.query.get("tailLines", 1000)) :]
        return web.Response(body=b"".join(lines))

    # ------------------------------------------------------------ the controller of Jobs

    def _set_deadline(self, job: Job) -> None:
        if job.deadline is not None:
            job.deadline.cancel()
        seconds = job.spec.get("activeDeadlineSeconds")
        if seconds is not None:
            began = datetime.fromisoformat(job.body["status"]["startTime"])
            left = seconds - (datetime.now(UTC) - began).total_seconds()
            words = "Job was active longer than specified deadline"
            job.deadline = self._loop.call_later(
                max(0.0, left), self._fail, job, "DeadlineExceeded", words
            )

    def _sync(self, job: Job) -> None:
        """Start missing pods, and update the status of the Job."""
        if job.is_over:
            return
        size = job.spec["completions"]
        open_ones = [at for at in range(size) if at not in job.succeeded | job.failed]
        for index in open_ones[: job.spec["parallelism"]]:
            if index not in job.pods and not self._new_pod(job, index):
                self._loop.call_later(0.5, self._sync, job)
                break
        if not open_ones:
            self._finish(job, *(
                ("Failed", "FailedIndexes", "Job has failed indexes") if job.failed
                else ("Complete", "CompletionsReached", "Reached expected number of succeeded pods")
            ))  # fmt: skip
        self._note(job)

    def _note(self, job: Job) -> None:
        active = [pod for pod in job.pods.values() if not pod.is_over]
        ready = [pod for pod in active if pod.status["phase"] == "Running"]
        job.body["status"] |= {
            "active": 0 if job.is_over else len(active),
            "ready": 0 if job.is_over else len(ready),
            "succeeded": len(job.succeeded), "failed": len(job.failed),
            "completedIndexes": _intervals(job.succeeded),
        }  # fmt: skip
        if "backoffLimitPerIndex" in job.spec:
            job.body["status"]["failedIndexes"] = _intervals(job.failed)
        self._touch(job.body)

    def _fail(self, job: Job, reason: str, message: str) -> None:
        if job.is_over:
            return
        self._finish(job, "Failed", reason, message)
        for pod in [*job.pods.values()]:
            if not pod.is_over:
                self._delete_pod(pod)
        self._note(job)

    def _finish(self, job: Job, kind: str, reason: str, message: str) -> None:
        job.is_over = True
        job.body["status"].setdefault("conditions", []).append({
            "type": kind, "status": "True", "reason": reason, "message": message,
            "lastTransitionTime": now(),
        })  # fmt: skip
        if job.deadline is not None:
            job.deadline.cancel()

    def _new_pod(self, job: Job, index: int) -> bool:
        metadata, template = job.body["metadata"], job.spec["template"]
        name = f"{metadata['name']}-{index}-{uuid.uuid4().hex[:5]}"
        namespace = metadata["namespace"]
        try:
            self._check_quota("pods", namespace, name)
        except Fault as fault:
            self._event(metadata["name"], namespace, "FailedCreate", f"Error creating: {fault}")
            return False
        annotations = {**(template["metadata"].get("annotations") or {}), INDEX: str(index)}
        if job.ignored[index]:
            annotations[IGNORED] = str(job.ignored[index])
        body = json.loads(json.dumps({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {
                "name": name, "namespace": namespace, "uid": str(uuid.uuid4()),
                "creationTimestamp": now(), "annotations": annotations,
                "labels": {
                    **template["metadata"]["labels"], INDEX: str(index),
                    JOB_NAME: metadata["name"], "job-name": metadata["name"],
                },
                "ownerReferences": [{"kind": "Job", "uid": metadata["uid"]}],
                "finalizers": ["batch.kubernetes.io/job-tracking"],
            },
            "spec": {**template["spec"], "hostname": f"{metadata['name']}-{index}"},
            "status": {"phase": "Pending", "conditions": []},
        }))  # fmt: skip
        pod = job.pods[index] = self.pods[body["metadata"]["uid"]] = Pod(body, job, index)
        self.objects["pods", namespace, name] = body
        self._touch(body)
        task = self._loop.create_task(self._run(pod))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True

    def _account(self, pod: Pod) -> None:
        """Count a pod that has finished, and remove it if it was deleted."""
        job, metadata = pod.job, pod.body["metadata"]
        metadata["finalizers"] = []
        if metadata.get("deletionTimestamp"):
            self.objects.pop(("pods", metadata["namespace"], pod.name), None)
        if job.is_over:
            return
        if pod.status["phase"] == "Succeeded":
            job.succeeded.add(pod.index)
        elif (action := _action(job, pod)) == "Ignore":
            job.ignored[pod.index] += 1
            del job.pods[pod.index]
        elif action == "FailJob":
            words = f"Pod {metadata['namespace']}/{pod.name} has condition DisruptionTarget"
            self._fail(job, "PodFailurePolicy", f"{words} matching FailJob rule at index 0")
        elif "backoffLimitPerIndex" in job.spec:
            job.failed.add(pod.index)
        else:
            self._fail(job, "BackoffLimitExceeded", "Job has reached the specified backoff limit")
        self._sync(job)

    def _event(self, name: str, namespace: str, reason: str, message: str) -> None:
        self.objects["events", namespace, f"{name}.{reason}"] = {
            "metadata": {"name": f"{name}.{reason}"}, "type": "Warning", "reason": reason,
            "message": message, "lastTimestamp": now(), "involvedObject": {"name": name},
        }  # fmt: skip

    # ------------------------------------------------------------ nodes

    async def _run(self, pod: Pod) -> None:
        spec, status = pod.body["spec"], pod.status
        container = spec["containers"][0]
        node = await self._scheduled(pod)
        if node is not None:
            spec["nodeName"] = node
            try:
                refusal = self._refusal(pod, container)
                while refusal is not None and not self._is_deleted(pod):
                    waiting = {"reason": refusal[0], "message": refusal[1]}
                    status["containerStatuses"] = [{"name": "step", "state": {"waiting": waiting}}]
                    await self._changed()
                    refusal = self._refusal(pod, container)
                if not self._is_deleted(pod):
                    await self._execute(pod, container)
            finally:
                self._running -= 1
                self._gpus[node] += pod.gpus
                self._wake()
        if not pod.process:
            status["phase"] = "Failed"
        pod.is_over = True
        self._touch(pod.body)
        self._account(pod)

    @staticmethod
    def _is_deleted(pod: Pod) -> bool:
        return "deletionTimestamp" in pod.body["metadata"]

    async def _changed(self) -> None:
        """Wait for the next change that pending pods may be waiting for."""
        await self._pulse.wait()

    def _wake(self) -> None:
        self._pulse.set()
        self._pulse = asyncio.Event()

    async def _scheduled(self, pod: Pod) -> str | None:
        """Wait until the pod fits on a node, and return that; None if the pod is deleted before."""
        wanted = pod.body["spec"].get("nodeSelector") or {}
        fitting = [
            name for name, labels in NODES.items() if wanted.items() <= labels.items()
        ]  # fmt: skip
        limits = (pod.body["spec"]["containers"][0].get("resources") or {}).get("limits") or {}
        gpus = int(limits.get(GPU, 0))
        while not self._is_deleted(pod):
            able = [name for name in fitting if len(self._gpus[name]) >= gpus]
            if able and self._running < self.slots:
                self._running += 1
                pod.status["conditions"] = []
                node = able[pod.index % len(able)]
                pod.gpus, self._gpus[node] = self._gpus[node][:gpus], self._gpus[node][gpus:]
                return node
            why = "Insufficient cpu" if able else f"Insufficient {GPU}"
            why = why if fitting else "node(s) didn't match Pod's node selector"
            pod.status["conditions"] = [{
                "type": "PodScheduled", "status": "False", "reason": "Unschedulable",
                "message": f"0/2 nodes are available: 2 {why}.",
            }]  # fmt: skip
            await self._changed()
        return None

    def _refusal(self, pod: Pod, container: Object) -> tuple[str, str] | None:
        namespace = pod.body["metadata"]["namespace"]
        if container["image"].endswith("no-such-image"):
            words = f'failed to pull image "{container["image"]}": not found'
            return "ImagePullBackOff", f"Back-off pulling image: {words}"
        for each in container.get("envFrom") or ():
            name = each["secretRef"]["name"]
            if ("secrets", namespace, name) not in self.objects:
                return "CreateContainerConfigError", f'secret "{name}" not found'
        return None

    def _environment(self, pod: Pod, container: Object) -> dict[str, str]:
        metadata = pod.body["metadata"]
        found = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        found["JOB_COMPLETION_INDEX"] = str(pod.index)
        if pod.gpus:
            found["NVIDIA_VISIBLE_DEVICES"] = ",".join(f"GPU-{each}" for each in pod.gpus)
        for each in container.get("envFrom") or ():
            key = ("secrets", metadata["namespace"], each["secretRef"]["name"])
            found |= self.objects[key].get("stringData") or {}
        for each in container.get("env") or ():
            if "valueFrom" in each:
                path = each["valueFrom"]["fieldRef"]["fieldPath"]
                name = re.fullmatch(r"metadata\.annotations\['(.*)'\]", path)[1]  # type: ignore[index]
                found[each["name"]] = metadata["annotations"].get(name, "")
            else:
                found[each["name"]] = each.get("value", "").replace("$$(", "$(")
        return found

    async def _execute(self, pod: Pod, container: Object) -> None:
        status, metadata = pod.status, pod.body["metadata"]
        with tempfile.TemporaryDirectory(prefix="pod-") as folder:
            pod.process = process = await asyncio.create_subprocess_exec(
                *container["command"], stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, cwd=folder,
                env=self._environment(pod, container), start_new_session=True, limit=1 << 20,
            )  # fmt: skip
            status |= {"phase": "Running", "startTime": now()}
            status["containerStatuses"] = [{"name": "step", "state": {"running": {}}}]
            self._touch(pod.body)
            self._note(pod.job)
            if self._is_deleted(pod):
                self._signal(pod, signal.SIGTERM)
            limit = pod.body["spec"].get("activeDeadlineSeconds")
            timer = limit and self._loop.call_later(limit, self._stop_late, pod)
            assert process.stdout is not None
            while chunk := await process.stdout.read(1 << 16):
                pod.log += chunk
            code = await process.wait()
            if timer:
                timer.cancel()
            self._signal(pod, signal.SIGKILL)
        code = 128 - code if code < 0 else code
        reason = pod.killed_for or ("Completed" if code == 0 else "Error")
        end = {"exitCode": code, "reason": reason, "finishedAt": now()}
        status["phase"] = "Succeeded" if code == 0 else "Failed"
        if reason == "DeadlineExceeded":
            status |= {"reason": reason, "message": "Pod was active longer than its deadline"}
            status["phase"] = "Failed"
        status["containerStatuses"] = [{"name": "step", "state": {"terminated": end}}]
        assert metadata["uid"] in self.pods

    def _stop_late(self, pod: Pod) -> None:
        pod.killed_for = "DeadlineExceeded"
        self._signal(pod, signal.SIGTERM)

    @staticmethod
    def _signal(pod: Pod, signum: int) -> None:
        if pod.process is not None:
            try:
                if signum == signal.SIGTERM:
                    pod.process.send_signal(signum)
                else:
                    os.killpg(pod.process.pid, signum)
            except ProcessLookupError:  # it has exited
                pass

    def _delete_pod(self, pod: Pod, signum: int = signal.SIGTERM) -> None:
        metadata = pod.body["metadata"]
        if pod.is_over:
            self.objects.pop(("pods", metadata["namespace"], pod.name), None)
        elif not self._is_deleted(pod):
            metadata["deletionTimestamp"] = now()
            self._wake()
            self._signal(pod, signum)
            self._loop.call_later(30, self._signal, pod, signal.SIGKILL)

    async def _disrupt(self, name: str, reason: str, signum: int) -> None:
        pod = self._named(name)
        pod.status["conditions"] = [{
            "type": "DisruptionTarget", "status": "True", "reason": reason,
        }]  # fmt: skip
        self._delete_pod(pod, signum)

    async def _kill(self, name: str, reason: str) -> None:
        pod = self._named(name)
        pod.killed_for = reason
        self._signal(pod, signal.SIGKILL)

    def _named(self, name: str) -> Pod:
        return next(each for each in self.pods.values() if each.name == name)


# ------------------------------------------------------------------ discovery, for kubectl

GROUPS = {
    "": ["pods", "secrets", "configmaps", "services", "serviceaccounts", "events",
         "persistentvolumeclaims"],
    "batch": ["jobs"],
    "apps": ["deployments"],
    "rbac.authorization.k8s.io": ["roles", "rolebindings"],
    "policy": ["poddisruptionbudgets"],
}  # fmt: skip


async def _discovery(request: web.Request) -> web.Response:
    """Return the API groups, or the kinds of one group."""
    asked = request.match_info["discovery"]
    if asked == "api":
        return web.json_response({"kind": "APIVersions", "versions": ["v1"]})
    if asked == "apis":
        groups = []
        for name in filter(None, GROUPS):
            version = {"groupVersion": f"{name}/v1", "version": "v1"}
            groups.append({"name": name, "versions": [version], "preferredVersion": version})
        return web.json_response({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
    group = asked.removeprefix("apis/").removesuffix("v1").strip("/").removeprefix("api")
    if group not in GROUPS:
        return Fault(404, "NotFound", "the server could not find the requested resource").answer()
    more = {"roles": "Role", "rolebindings": "RoleBinding"}
    kinds = {**KINDS, **more, "poddisruptionbudgets": "PodDisruptionBudget"}
    resources = [
        {"name": each, "singularName": "", "namespaced": True, "kind": kinds[each],
         "verbs": ["create", "delete", "get", "list", "patch"]}
        for each in GROUPS[group]
    ]  # fmt: skip
    listed = f"{group}/v1".lstrip("/")
    return web.json_response(
        {"kind": "APIResourceList", "groupVersion": listed, "resources": resources}
    )


# ------------------------------------------------------------------ validation


def _check(body: Object, kind: str) -> None:
    import kubernetes_validate  # lazy: the import is slow, and few tests need it

    if body.get("kind") != kind:
        raise Fault(400, "BadRequest", f"the kind is {body.get('kind')}, not {kind}")
    try:
        kubernetes_validate.validate(body, VERSION, strict=True)
    except kubernetes_validate.ValidationError as error:
        raise Fault(422, "Invalid", f"{kind} is invalid: {error.message}") from error
    name, spec = body["metadata"]["name"], body.get("spec") or {}
    wrong = ""
    if not NAME.match(name) or len(name) > 63:
        wrong = f"metadata.name: Invalid value: {name}"
    labels = {**(body["metadata"].get("labels") or {})}
    if kind == "Job":
        pod = spec["template"]
        labels |= pod["metadata"].get("labels") or {}
        if len(f"{name}-{spec['completions'] - 1}") > 63:
            wrong = f"metadata.name: {name} with an index is longer than a host name may be"
        if "backoffLimitPerIndex" in spec and spec.get("completionMode") != "Indexed":
            wrong = "spec.backoffLimitPerIndex: requires indexed completion mode"
        if "podFailurePolicy" in spec and pod["spec"].get("restartPolicy") != "Never":
            wrong = (
                "spec.template.spec.restartPolicy: only Never is supported with a failure policy"
            )
    for key, value in labels.items():
        if not LABEL.match(value) or len(value) > 63:
            wrong = f"labels: {key}: Invalid value: {value}"
    if wrong:
        raise Fault(422, "Invalid", f'{kind} "{name}" is invalid: {wrong}')


def _selector(text: str) -> Callable[[Object], bool]:
    """Return the predicate of a label selector: `key`, `key=value`, `key in (a,b)`, separated by
    commas."""
    parts = re.findall(r"[^,(]+(?:\([^)]*\))?", text)

    def takes(labels: Object) -> bool:
        for part in parts:
            if found := re.fullmatch(r"(\S+) in \((.*)\)", part):
                if labels.get(found[1]) not in found[2].split(","):
                    return False
            elif "=" in part:
                key, _, value = part.partition("=")
                if labels.get(key) != value:
                    return False
            elif part not in labels:
                return False
        return True

    return takes


def _fields(text: str) -> Callable[[Object], bool]:
    pairs = [each.partition("=")[::2] for each in text.split(",") if each]

    def takes(body: Object) -> bool:
        for path, wanted in pairs:
            found: Any = body
            for part in path.split("."):
                found = (found or {}).get(part)
            if found != wanted:
                return False
        return True

    return takes


def _merge(body: Object, change: Object) -> None:
    for key, value in change.items():
        if isinstance(value, dict):
            _merge(body.setdefault(key, {}), value)
        elif value is None:
            body.pop(key, None)
        else:
            body[key] = value


def _action(job: Job, pod: Pod) -> str:
    """Return the action of the Job's podFailurePolicy for a failed pod."""
    types = {each["type"] for each in pod.status["conditions"] if each["status"] == "True"}
    for rule in (job.spec.get("podFailurePolicy") or {}).get("rules") or ():
        if types & {each["type"] for each in rule.get("onPodConditions") or ()}:
            return str(rule["action"])
    return "Count"


def _intervals(indexes: set[int]) -> str:
    parts: list[list[int]] = []
    for index in sorted(indexes):
        if parts and parts[-1][1] == index - 1:
            parts[-1][1] = index
        else:
            parts.append([index, index])
    return ",".join(
        f"{a}" if a == b else f"{a},{b}" if b == a + 1 else f"{a}-{b}" for a, b in parts
    )


def _is_owned(body: Object, owner: Object) -> bool:
    owners = body["metadata"].get("ownerReferences") or ()
    return any(each["uid"] == owner["metadata"]["uid"] for each in owners)


# ------------------------------------------------------------------ fixtures


@pytest.fixture(scope="session")
def kubernetes_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """The stand-in that all tests of this process share."""
    made = Cluster(tmp_path_factory.mktemp("kubernetes"))
    made.start()
    yield made
    made.stop()


@pytest.fixture
def kubernetes(kubernetes_server: Cluster, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """The stand-in, with its kubeconfig in the environment; all objects are removed afterwards."""
    monkeypatch.setenv("KUBECONFIG", str(kubernetes_server.write_config()))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    yield kubernetes_server
    kubernetes_server.clear()
    kubernetes_server.write_config()
