"""Run workers of a queue inside an existing Ray or Dask cluster.

The cluster only provides capacity: each Ray actor, or long-running Dask task, starts one `aflow
worker` on its node and ends with it. Workers communicate with their queue directly. A task of a
flow is never a task of the cluster, since clusters can lose tasks.

`Crew` decides, without I/O, how many workers to run, and how to react when one ends. `RayCluster`
and `DaskCluster` start, stop and monitor workers. `ClusterWorker` runs on a node.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any, NamedTuple, Protocol

from aflow._core.settings import environment_with
from aflow._core.waiting import Waiting
from aflow._core.wording import plural
from aflow.errors import InvalidInput, MissingExtra, WorkersLost

if TYPE_CHECKING:
    from aflow._core.clock import Clock

LOOK = 0.5  # seconds between checks of the cluster
HEALTHY = 30.0  # seconds after which the end of a worker is not a failed start
MOST_FAILED = 3  # consecutive failed starts after which no more workers are started
LAST_LINES = 3  # of a worker's output, reported when it ends
_ANSWERING = 10.0  # seconds; timeout of a scheduler's response
_MB = 1 << 20


class WorkerRequest(NamedTuple):
    """The arguments, environment variables and resources of each `aflow worker`.

    Resources are CPUs, GPUs, memory in MB, and custom resources of the cluster."""

    argv: tuple[str, ...]
    variables: dict[str, str]
    cpu: float
    gpu: float
    memory: float | None
    more: Mapping[str, float]

    def named(self) -> dict[str, float]:
        """Return the requested resources by the names that users know."""
        some = {"cpu": self.cpu, "gpu": self.gpu, "memory": self.memory or 0.0, **self.more}
        return {name: amount for name, amount in some.items() if amount}


class WorkerStarted(NamedTuple):
    """A worker has started on this node."""

    node: str


class Ended(NamedTuple):
    """A worker has exited: its exit code, and the last lines of its output."""

    code: int
    last: str


class Lost(NamedTuple):
    """A worker was lost with its node, or its place on the node, for this reason."""

    reason: str


Event = WorkerStarted | Ended | Lost


class Cluster(Protocol):
    """A cluster, as a crew uses it. Workers are identified by numbers."""

    name: str

    def lacking(self, count: int) -> str | None:
        """Return why the cluster can never run this many workers concurrently; None if it can.

        Args:
            count: The number of workers.
        """

    def start(self, number: int) -> None:
        """Request a worker. Does not wait for its start.

        Args:
            number: The number that the crew gives to the worker.
        """

    def look(self, seconds: float) -> list[tuple[int, Event]]:
        """Return the events since the last call; wait for one if there are none.

        Args:
            seconds: The maximum time to wait.

        Raises:
            WorkersLost: If the connection to the cluster is lost.
        """

    def stop(self, number: int) -> None:
        """Ask a worker to finish its tasks and exit; `look` reports its end.

        Args:
            number: The number that the crew has given to the worker.
        """

    def kill(self, number: int) -> None:
        """Kill a worker, or withdraw the request for it.

        Args:
            number: The number that the crew has given to the worker.
        """

    def close(self) -> None:
        """Disconnect from the cluster."""


# ------------------------------------------------------------------ decisions


class _Worker(NamedTuple):
    begun_at: float | None = None
    node: str = ""


class Crew:
    """Tracks the workers, and decides when to start new ones.

    A lost worker is replaced immediately, a failed one with backoff, and a drained one not at all.
    """

    def __init__(self, count: int, log: Callable[[str], object]) -> None:
        self._log = log
        self._ids = 0
        self._due = [0.0] * count  # when each missing worker may be started
        self._workers: dict[int, _Worker] = {}
        self._failures = 0  # consecutive workers that failed soon after their start
        self._last = ""
        self.is_ending = False

    @property
    def numbers(self) -> list[int]:
        """The workers that were requested and have not ended."""
        return [*self._workers]

    @property
    def waiting(self) -> list[int]:
        """The workers that were requested and have not started."""
        return [number for number, each in self._workers.items() if each.begun_at is None]

    @property
    def is_over(self) -> bool:
        """Whether there are no workers, and none will be started."""
        return not self._workers and not self._due

    @property
    def failure(self) -> str | None:
        """Why workers cannot be kept running; None if they can."""
        if not self._workers and self._failures >= MOST_FAILED:
            return f"{self._failures} workers in a row have ended at once. {self._last}"
        return None

    def to_start(self, now: float) -> list[int]:
        """Return the numbers of the workers to request now.

        Args:
            now: The current time of the monotonic clock, in seconds.
        """
        if self.is_ending or self.failure is not None:
            return []
        due = [each for each in self._due if each <= now]
        self._due = [each for each in self._due if each > now]
        started = [*range(self._ids + 1, self._ids + 1 + len(due))]
        self._ids += len(due)
        self._workers.update(dict.fromkeys(started, _Worker()))
        return started

    def end(self) -> None:
        """Start no more workers."""
        self.is_ending = True
        self._due.clear()

    def forget(self, number: int) -> None:
        """Remove a worker whose request was withdrawn before it started.

        Args:
            number: The number that the crew has given to the worker.
        """
        self._workers.pop(number, None)

    def note(self, number: int, event: Event, now: float) -> None:
        """Apply an event of a worker; unknown workers are ignored.

        Args:
            number: The number that the crew has given to the worker.
            event: Whether the worker has started, has ended or was lost.
            now: The current time of the monotonic clock, in seconds.
        """
        worker = self._workers.get(number)
        if worker is None:
            return
        if isinstance(event, WorkerStarted):
            self._workers[number] = worker._replace(begun_at=now, node=event.node)
            self._log(f"Worker {number} begins on {event.node}.")
            return
        del self._workers[number]
        where = f"Worker {number}" + (f" on {worker.node}" if worker.node else "")
        if isinstance(event, Lost):
            again = "" if self.is_ending else " Another one is started."
            self._log(f"{where} is lost: {event.reason.rstrip('.')}.{again}")
            if not self.is_ending:
                self._due.append(now)
        elif event.code == 0 or self.is_ending:
            self._log(f"{where} has ended.")
        else:
            self._note_failure(where, worker, event, now)

    def _note_failure(self, where: str, worker: _Worker, event: Ended, now: float) -> None:
        lived = 0.0 if worker.begun_at is None else now - worker.begun_at
        self._failures = 1 if lived > HEALTHY else self._failures + 1
        self._last = f"{where} ended with exit code {event.code}: {event.last or 'no word'}"
        self._log(self._last)
        self._due.append(now + min(60.0, 2.0**self._failures))


def keep(cluster: Cluster, crew: Crew, clock: Clock, asked: Callable[[], int]) -> None:
    """Keep the workers of a crew running in a cluster until the user ends it. Blocks.

    At the first request, workers finish their tasks and exit. At the second, they are killed.

    Args:
        cluster: The cluster that starts and stops the workers.
        crew: The state of the workers.
        clock: The source of the monotonic time.
        asked: Returns how often the user has requested the end: 0, 1 or 2.

    Raises:
        WorkersLost: If the cluster is lost, or every worker fails at its start.
    """
    waiting: Waiting | None = None
    seen = 0
    while not crew.is_over:
        for number in crew.to_start(clock.monotonic()):
            cluster.start(number)
        times = asked()
        # First request: withdraw workers that have not started; the others finish their tasks.
        if times and not seen:
            crew.end()
            for number in crew.waiting:
                cluster.kill(number)
                crew.forget(number)
            for number in crew.numbers:
                cluster.stop(number)
        # Second request: do not wait.
        if times > 1:
            for number in crew.numbers:
                cluster.kill(number)
            return
        seen = times
        for number, event in cluster.look(LOOK):
            crew.note(number, event, clock.monotonic())
        if crew.failure is not None:
            raise WorkersLost(crew.failure)
        if not crew.waiting:
            waiting = None
        else:
            what = f"places for {plural(len(crew.waiting), 'worker')} in {cluster.name}"
            waiting = waiting or Waiting(what, clock)
            waiting.still(cluster.lacking(len(crew.numbers)) or "others have what they ask for")


# ------------------------------------------------------------------ on a node


class ClusterWorker:
    """One worker on a node of a cluster, in a child process.

    The child process drains and exits when its standard input is closed, that is, also if this
    process is killed."""

    def __init__(self, argv: Sequence[str], variables: Mapping[str, str]) -> None:
        self._argv = [*argv]
        self._variables = dict(variables)
        self._last: deque[str] = deque(maxlen=LAST_LINES)
        self._process: subprocess.Popen[bytes]

    def start(self) -> str:
        """Start the worker's process on this node.

        Returns:
            The host name of the node.
        """
        self._process = subprocess.Popen(
            [sys.executable, "-m", "aflow", "worker", "--until-eof", *self._argv],
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment_with(self._variables),
            start_new_session=True,
        )
        assert self._process.stderr is not None, "it was asked for"
        self._pump = threading.Thread(target=self._copy, args=[self._process.stderr], daemon=True)
        self._pump.start()
        return os.uname().nodename

    def wait(self, seconds: float | None = None) -> tuple[int, str] | None:
        """Return the exit code and the last lines of output; None if the worker still runs.

        Args:
            seconds: The timeout; None for no limit.
        """
        try:
            code = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        self._pump.join(1.0)
        return code, " ".join(each.strip() for each in self._last)

    def _copy(self, stream: IO[bytes]) -> None:
        for line in stream:
            text = line.decode(errors="replace").rstrip()
            self._last.append(text)
            print(text, file=sys.stderr, flush=True)  # noqa: T201 -- into the log of the node

    def stop(self) -> None:
        """Ask the worker to finish its tasks and exit."""
        assert self._process.stdin is not None, "it was asked for"
        self._process.stdin.close()

    def kill(self) -> None:
        """Kill the worker."""
        self._process.kill()


# ------------------------------------------------------------------ Ray


class RayCluster:
    """A Ray cluster, with an actor per worker.

    Raises MissingExtra, and InvalidInput if no cluster responds."""

    def __init__(self, address: str | None, request: WorkerRequest) -> None:
        try:
            import ray
        except ImportError as error:
            raise MissingExtra("Workers in Ray need ray: install aflow-runtime[ray].") from error
        self._ray: Any = ray
        where = address or "auto"
        self.name = "Ray" if where == "auto" else f"Ray at {where}"
        check_answers(where, "ray start --head")
        try:
            self._ray.init(address=where, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
            raise InvalidInput(f"{self.name} cannot be reached: {_first_line(error)}") from error
        self._request = request
        self._actors: dict[int, Any] = {}
        self._refs: dict[Any, int] = {}  # pending call -> number of the worker
        self._begun: set[int] = set()

    def lacking(self, count: int) -> str | None:
        """Return why the cluster can never run this many workers concurrently; None if it can."""
        nodes = [each["Resources"] for each in self._ray.nodes() if each["Alive"]]
        return lacking(count, self._asked(), nodes, self.name)

    def _asked(self) -> dict[str, float]:
        request = self._request
        asked = {"CPU": request.cpu, "GPU": request.gpu, **request.more}
        if request.memory is not None:
            asked["memory"] = request.memory * _MB
        return {name: amount for name, amount in asked.items() if amount}

    def start(self, number: int) -> None:
        """Request an actor with a worker."""
        request = self._request
        made = self._ray.remote(ClusterWorker).options(
            num_cpus=request.cpu,
            num_gpus=request.gpu,
            memory=None if request.memory is None else int(request.memory * _MB),
            resources=dict(request.more) or None,
            max_concurrency=4,  # one thread waits for the worker's end
            max_restarts=0,
            scheduling_strategy="SPREAD",
        )
        actor = self._actors[number] = made.remote(request.argv, request.variables)
        self._refs[actor.start.remote()] = number

    def look(self, seconds: float) -> list[tuple[int, Event]]:
        """Return the events, waiting up to `seconds` for the first."""
        if not self._refs:
            threading.Event().wait(seconds)
            return []
        try:
            ready, _ = self._ray.wait([*self._refs], num_returns=1, timeout=seconds)
            if ready:  # also fetch all others that are ready
                ready, _ = self._ray.wait(
                    [*self._refs], num_returns=len(self._refs), timeout=0, fetch_local=False
                )
        except (ConnectionError, self._ray.exceptions.RaySystemError) as error:
            raise WorkersLost(f"{self.name} is lost: {_first_line(error)}") from error
        return [self._event(ref) for ref in ready]

    def _event(self, ref: Any) -> tuple[int, Event]:
        number = self._refs.pop(ref)
        errors = self._ray.exceptions
        try:
            answer = self._ray.get(ref)
        except (errors.RayActorError, errors.RayTaskError, errors.WorkerCrashedError) as error:
            self._drop(number)
            return number, _why_gone(error)
        if number not in self._begun:
            self._begun.add(number)
            self._refs[self._actors[number].wait.remote()] = number
            return number, WorkerStarted(answer)
        self._drop(number)
        return number, Ended(*answer)

    def _drop(self, number: int) -> None:
        self._begun.discard(number)
        actor = self._actors.pop(number, None)
        if actor is not None:
            self._ray.kill(actor)

    def stop(self, number: int) -> None:
        """Ask a worker to finish its tasks and exit."""
        self._actors[number].stop.remote()

    def kill(self, number: int) -> None:
        """Kill a worker, or withdraw the request for it."""
        if number in self._begun:
            self._actors[number].kill.remote()
        self._refs = {ref: each for ref, each in self._refs.items() if each != number}
        self._drop(number)

    def close(self) -> None:
        """Disconnect from the cluster."""
        self._ray.shutdown()


def _why_gone(error: Exception) -> Event:
    """Return whether a worker whose actor fails was lost, or could not start."""
    text = str(error)
    if "ModuleNotFoundError" in text or "ImportError" in text:
        return Ended(1, next(line for line in text.splitlines()[::-1] if "Error" in line).strip())
    return Lost(_first_line(error))


# ------------------------------------------------------------------ Dask


class DaskCluster:
    """A Dask cluster, with a long-running task per worker, which occupies one thread.

    Raises MissingExtra, and InvalidInput if no cluster responds."""

    def __init__(self, address: str | None, request: WorkerRequest) -> None:
        try:
            import dask
            import distributed
        except ImportError as error:
            raise MissingExtra(
                "Workers in Dask need distributed: install aflow-runtime[dask]."
            ) from error
        where = address or dask.config.get("scheduler-address", None)
        if where is None:
            raise InvalidInput(
                "No Dask cluster is given: use --address tcp://HOST:8786, or set "
                "DASK_SCHEDULER_ADDRESS."
            )
        self.name = f"Dask at {where}"
        check_answers(where, "dask scheduler")
        self._distributed: Any = distributed
        try:
            self._client: Any = self._distributed.Client(
                where, timeout=_ANSWERING, set_as_default=False
            )
        except (OSError, ValueError, TimeoutError) as error:
            raise InvalidInput(f"{self.name} cannot be reached: {_first_line(error)}") from error
        self._request = request
        self._key = f"aflow-worker-{os.urandom(6).hex()}"
        self._futures: dict[int, Any] = {}
        self._nodes: dict[int, str] = {}  # the node of each worker, also before it has started
        self._begun: set[int] = set()
        self._unplaced: list[int] = []

    def lacking(self, count: int) -> str | None:
        """Return why the cluster can never run this many workers concurrently; None if it can."""
        return lacking(count, self._asked(), [*self._offers().values()], self.name)

    def _asked(self) -> dict[str, float]:
        return {"thread": 1.0, **self._resources()}

    def _resources(self) -> dict[str, float]:
        """Return the requested Dask resources, which are arbitrary names."""
        gpu = {"GPU": self._request.gpu} if self._request.gpu else {}
        return {**gpu, **self._request.more}

    def _offers(self) -> dict[str, dict[str, float]]:
        workers = self._client.scheduler_info(n_workers=-1)["workers"]
        return {
            address: {"thread": float(each["nthreads"]), **each["resources"]}
            for address, each in workers.items()
        }

    def start(self, number: int) -> None:
        """Request a worker; `look` submits its task when a node has room."""
        self._unplaced.append(number)

    def _place(self, offers: Mapping[str, Mapping[str, float]]) -> None:
        """Submit tasks for workers that have no node yet.

        Without a node, Dask would queue several of them for one thread."""
        waiting, self._unplaced = self._unplaced, []
        for number in waiting:
            node = roomiest(offers, self._asked(), [*self._nodes.values()])
            if node is None:
                self._unplaced.append(number)
                continue
            self._nodes[number] = node
            key = f"{self._key}-{number}"
            self._futures[number] = self._client.submit(
                _serve, key, self._request.argv, self._request.variables,
                key=key, workers=[node], allow_other_workers=False, pure=False, retries=0,
                resources=self._resources() or None,
            )  # fmt: skip

    def look(self, seconds: float) -> list[tuple[int, Event]]:
        """Return the events after `seconds`."""
        threading.Event().wait(seconds)
        try:
            offers = self._offers()
            running = self._running()
        except (OSError, self._distributed.comm.CommClosedError) as error:
            raise WorkersLost(f"{self.name} is lost: {_first_line(error)}") from error
        if self._client.status not in ("running", "connecting"):
            raise WorkersLost(f"{self.name} is lost: its scheduler has closed the connection.")
        events: list[tuple[int, Event]] = []
        for number, future in [*self._futures.items()]:
            node = self._nodes[number]
            if number not in self._begun and f"{self._key}-{number}" in running:
                self._begun.add(number)
                events.append((number, WorkerStarted(running[f"{self._key}-{number}"])))
            if future.status == "finished":
                events.append((number, Ended(*future.result())))
            elif future.status == "error":
                events.append((number, _why_failed(future.exception())))
            elif node not in offers or future.status in ("lost", "cancelled"):
                events.append((number, Lost(f"{node} has left {self.name}")))
            else:
                continue
            self._drop(number)
        self._place(offers)
        return events

    def _running(self) -> dict[str, str]:
        """Return the keys of the tasks that have started, each with the name of its node."""
        nodes = [*{self._nodes[each] for each in self._futures if each not in self._begun}]
        if not nodes:
            return {}
        answers = self._client.run(_running_here, workers=nodes, on_error="ignore")
        return {key: node for node, keys in answers.values() for key in keys}

    def _drop(self, number: int) -> None:
        self._begun.discard(number)
        self._nodes.pop(number, None)
        future = self._futures.pop(number, None)
        if future is not None:
            future.cancel()

    def stop(self, number: int) -> None:
        """Ask a worker to finish its tasks and exit."""
        self._call_on_node(ClusterWorker.stop, number)

    def _call_on_node(self, method: Callable[[ClusterWorker], None], number: int) -> None:
        key, node = f"{self._key}-{number}", self._nodes[number]
        if node in self._offers():
            self._client.run(_call_here, key, method, workers=[node], on_error="ignore")

    def kill(self, number: int) -> None:
        """Kill a worker, or withdraw the request for it."""
        if number in self._unplaced:
            self._unplaced.remove(number)
        if number in self._begun:
            self._call_on_node(ClusterWorker.kill, number)
        self._drop(number)

    def close(self) -> None:
        """Disconnect from the cluster."""
        self._client.close(timeout=_ANSWERING)


def _why_failed(error: BaseException) -> Event:
    if isinstance(error, ImportError):
        return Ended(1, f"{type(error).__name__}: {error}")
    return Lost(_first_line(error))


# On a Dask node: the workers of its tasks, which calls of the client look up.
_here: dict[str, ClusterWorker] = {}


def _serve(key: str, argv: Sequence[str], variables: Mapping[str, str]) -> tuple[int, str]:
    """Run a worker until it exits; drain it if Dask no longer needs the task.

    This happens when the client is gone."""
    from distributed import get_worker

    state = get_worker().state
    place = ClusterWorker(argv, variables)
    place.start()
    _here[key] = place
    is_wanted = True
    try:
        while (ended := place.wait(LOOK)) is None:
            task = state.tasks.get(key)
            if is_wanted and (task is None or task.state not in ("executing", "long-running")):
                is_wanted = False
                place.stop()
        return ended
    finally:
        del _here[key]


def _running_here() -> tuple[str, list[str]]:
    return os.uname().nodename, [*_here]


def _call_here(key: str, method: Callable[[ClusterWorker], None]) -> None:
    if key in _here:
        method(_here[key])


# ------------------------------------------------------------------ Ray and Dask


def lacking(
    count: int, asked: Mapping[str, float], nodes: Sequence[Mapping[str, float]], name: str
) -> str | None:
    """Return why these nodes can never run this many workers concurrently; None if they can.

    Args:
        count: The number of workers.
        asked: The request of each worker, by resource.
        nodes: The capacity of each node, by resource.
        name: The name of the cluster, for the sentence.
    """
    fitting = sum(_fitting(each, asked) for each in nodes)
    if fitting >= count:
        return None
    request = ", ".join(f"{key}={_shown(key, amount)}" for key, amount in asked.items())
    largest = ", ".join(
        f"{key}={_shown(key, max((each.get(key, 0.0) for each in nodes), default=0.0))}"
        for key in asked
    )
    return (
        f"{name} has room for {fitting} of {plural(count, 'worker')} that ask for {request} each: "
        f"it has {plural(len(nodes), 'node')}, the largest with {largest}"
    )


def _fitting(node: Mapping[str, float], asked: Mapping[str, float]) -> int:
    return min(int(node.get(name, 0.0) / amount + 1e-9) for name, amount in asked.items())


def _shown(name: str, amount: float) -> str:
    return f"{amount / _MB:.0f}" if name == "memory" else f"{amount:g}"


def roomiest(
    offers: Mapping[str, Mapping[str, float]], asked: Mapping[str, float], taken: Sequence[str]
) -> str | None:
    """Return the node with room and the fewest of our workers; None if none has room.

    Args:
        offers: The capacity of each node, by resource.
        asked: The request of each worker, by resource.
        taken: The node of each of our workers.
    """
    able = [
        (taken.count(node), node)
        for node, offer in offers.items()
        if taken.count(node) < _fitting(offer, asked)
    ]
    return min(able)[1] if able else None


def check_answers(address: str, advice: str) -> None:
    """Check that a server listens at the address of a cluster.

    An address without host and port is left to the cluster's library.

    Args:
        address: `HOST:PORT`, with or without a scheme.
        advice: The command that starts a cluster, for the error message.

    Raises:
        InvalidInput: If the port is not a number, or no server listens there.
    """
    import socket

    _, _, place = address.rpartition("://")
    host, colon, port = place.partition("/")[0].rpartition(":")
    if not colon:
        return
    if not port.isdigit():
        raise InvalidInput(f"--address {address!r}: write HOST:PORT.")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _ANSWERING).close()
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or str(error) or "it does not answer"
        raise InvalidInput(
            f"Nothing answers at {address} ({why}): is the cluster there? `{advice}` starts one, "
            "and prints its address."
        ) from error


def _first_line(error: BaseException) -> str:
    lines = [each.strip() for each in str(error).splitlines() if each.strip()]
    return lines[0] if lines else type(error).__name__
