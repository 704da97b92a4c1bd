"""Workers of a queue inside of a cluster of Ray or Dask that is there.

The cluster gives places: an actor of Ray, or a task of Dask that goes on, each of which starts one
`aflow worker` on its node and ends with it. What workers do is between them and their queue: a task
of a flow is never one of the cluster's, which may lose its own.

`Crew` decides, and is pure: how many workers there are to be, and what follows from the end of one.
`RayCluster` and `DaskCluster` start, stop and look. `ClusterWorker` is what runs on a node.
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

LOOK = 0.5  # seconds between looks at the cluster
HEALTHY = 30.0  # seconds after which the end of a worker says nothing of its start
MOST_FAILED = 3  # workers in a row that end at once, before none is started any more
LAST_LINES = 3  # of a worker's output, for the sentence about its end
_ANSWERING = 10.0  # seconds in which a scheduler has to answer
_MB = 1 << 20


class WorkerRequest(NamedTuple):
    """What each worker is: the arguments of its `aflow worker`, variables, and what it asks of the
    cluster: CPUs, GPUs, memory in MB, and amounts of the cluster's own names."""

    argv: tuple[str, ...]
    variables: dict[str, str]
    cpu: float
    gpu: float
    memory: float | None
    more: Mapping[str, float]

    def named(self) -> dict[str, float]:
        """Return what it asks for, by the names that users know."""
        some = {"cpu": self.cpu, "gpu": self.gpu, "memory": self.memory or 0.0, **self.more}
        return {name: amount for name, amount in some.items() if amount}


class WorkerStarted(NamedTuple):
    """A worker runs, on this node."""

    node: str


class Ended(NamedTuple):
    """A worker has ended by itself: its exit code, and the last lines that it has written."""

    code: int
    last: str


class Lost(NamedTuple):
    """A worker is gone with its node, or its place there, for this reason."""

    reason: str


Event = WorkerStarted | Ended | Lost


class Cluster(Protocol):
    """A cluster, as far as a crew has a use for it. Workers are known by numbers."""

    name: str

    def lacking(self, count: int) -> str | None:
        """Return why this many workers can never run at once in the cluster as it is; None where
        they can.

        Args:
            count: How many workers are wanted.
        """

    def start(self, number: int) -> None:
        """Ask for a worker. Does not wait.

        Args:
            number: The number that the crew gives to the worker.
        """

    def look(self, seconds: float) -> list[tuple[int, Event]]:
        """Return what has happened, waiting `seconds` at most for something.

        Args:
            seconds: How long to wait, in seconds.

        Raises:
            WorkersLost: The connection to the cluster is lost.
        """

    def stop(self, number: int) -> None:
        """Have a worker take nothing new and end; `look` reports its end.

        Args:
            number: The number that the crew has given to the worker.
        """

    def kill(self, number: int) -> None:
        """End a worker at once, or forget that it was asked for.

        Args:
            number: The number that the crew has given to the worker.
        """

    def close(self) -> None:
        """Leave the cluster."""


# ------------------------------------------------------------------ what is decided


class _Worker(NamedTuple):
    begun_at: float | None = None
    node: str = ""


class Crew:
    """How many workers there are to be, which there are, and what follows when one ends: one that
    is lost is replaced at once; one that fails, later and later; one that was drained is not."""

    def __init__(self, count: int, log: Callable[[str], object]) -> None:
        self._log = log
        self._ids = 0
        self._due = [0.0] * count  # when each of the missing ones may be started
        self._workers: dict[int, _Worker] = {}
        self._failures = 0  # workers in a row that have failed soon after they had begun
        self._last = ""
        self.is_ending = False

    @property
    def numbers(self) -> list[int]:
        """All that were asked for, and have not ended."""
        return [*self._workers]

    @property
    def waiting(self) -> list[int]:
        """Those that were asked for and have not begun."""
        return [number for number, each in self._workers.items() if each.begun_at is None]

    @property
    def is_over(self) -> bool:
        """Whether none is there, and none will be."""
        return not self._workers and not self._due

    @property
    def failure(self) -> str | None:
        """Why no worker could be kept; None where that is not how it is."""
        if not self._workers and self._failures >= MOST_FAILED:
            return f"{self._failures} workers in a row have ended at once. {self._last}"
        return None

    def to_start(self, now: float) -> list[int]:
        """Return the numbers of workers to ask for now.

        Args:
            now: The present time, in seconds since the epoch.
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
        """None is started any more."""
        self.is_ending = True
        self._due.clear()

    def forget(self, number: int) -> None:
        """Remove a worker that has not started, and will not.

        Args:
            number: The number that the crew has given to the worker.
        """
        self._workers.pop(number, None)

    def note(self, number: int, event: Event, now: float) -> None:
        """Apply what the cluster has reported of a worker; unknown workers are ignored.

        Args:
            number: The number or name of the worker.
            event: That the worker has started, has ended or was lost.
            now: The present time, by the monotonic clock.
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
    """Keep a crew in a cluster until it is over. `asked` is how often its end was asked for: once,
    and workers end what they run; twice, and they are ended. Blocks.

    Args:
        cluster: The cluster that starts and stops the workers.
        crew: The state of the workers: which run, and which are to be started again.
        clock: The source of the monotonic time.
        asked: Returns how often the user has asked for the end: 0, 1 or 2.

    Raises:
        WorkersLost: The cluster is gone, or no worker stays alive.
    """
    waiting: Waiting | None = None
    seen = 0
    while not crew.is_over:
        for number in crew.to_start(clock.monotonic()):
            cluster.start(number)
        times = asked()
        # The first request: workers without a place are withdrawn, the others end what they run.
        if times and not seen:
            crew.end()
            for number in crew.waiting:
                cluster.kill(number)
                crew.forget(number)
            for number in crew.numbers:
                cluster.stop(number)
        # The second request: nothing is waited for.
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


# ------------------------------------------------------------------ what runs on a node


class ClusterWorker:
    """One worker on a node of a cluster: a process of its own, which takes nothing new, and ends,
    when its standard input does. So it ends when this process does, however that goes."""

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
        """Return its exit code and its last lines, once it has ended; None after so many seconds.

        Args:
            seconds: How many seconds; None where that is not known.
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
        """Have it take nothing new, and end."""
        assert self._process.stdin is not None, "it was asked for"
        self._process.stdin.close()

    def kill(self) -> None:
        """End it at once."""
        self._process.kill()


# ------------------------------------------------------------------ Ray


class RayCluster:
    """A cluster of Ray, where each worker has an actor. Raises MissingExtra, and InvalidInput where
    no cluster answers."""

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
        self._refs: dict[Any, int] = {}  # of what is waited for -> number
        self._begun: set[int] = set()

    def lacking(self, count: int) -> str | None:
        """Why so many workers can never be there at once, as the cluster is; else None."""
        nodes = [each["Resources"] for each in self._ray.nodes() if each["Alive"]]
        return lacking(count, self._asked(), nodes, self.name)

    def _asked(self) -> dict[str, float]:
        request = self._request
        asked = {"CPU": request.cpu, "GPU": request.gpu, **request.more}
        if request.memory is not None:
            asked["memory"] = request.memory * _MB
        return {name: amount for name, amount in asked.items() if amount}

    def start(self, number: int) -> None:
        """Ask for an actor with a worker."""
        request = self._request
        made = self._ray.remote(ClusterWorker).options(
            num_cpus=request.cpu,
            num_gpus=request.gpu,
            memory=None if request.memory is None else int(request.memory * _MB),
            resources=dict(request.more) or None,
            max_concurrency=4,  # one waits for its end
            max_restarts=0,
            scheduling_strategy="SPREAD",
        )
        actor = self._actors[number] = made.remote(request.argv, request.variables)
        self._refs[actor.start.remote()] = number

    def look(self, seconds: float) -> list[tuple[int, Event]]:
        """What has happened, after so many seconds at most."""
        if not self._refs:
            return []
        try:
            ready, _ = self._ray.wait([*self._refs], num_returns=1, timeout=seconds)
            if ready:  # and what else there is by now
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
        """Have a worker take nothing new and end."""
        self._actors[number].stop.remote()

    def kill(self, number: int) -> None:
        """End a worker at once, or forget that it was asked for."""
        if number in self._begun:
            self._actors[number].kill.remote()
        self._refs = {ref: each for ref, each in self._refs.items() if each != number}
        self._drop(number)

    def close(self) -> None:
        """Leave the cluster."""
        self._ray.shutdown()


def _why_gone(error: Exception) -> Event:
    """What has become of a worker whose actor does not answer: it was lost, or could not begin."""
    text = str(error)
    if "ModuleNotFoundError" in text or "ImportError" in text:
        return Ended(1, next(line for line in text.splitlines()[::-1] if "Error" in line).strip())
    return Lost(_first_line(error))


# ------------------------------------------------------------------ Dask


class DaskCluster:
    """A cluster of Dask, where each worker has a task that goes on, which holds one thread. Raises
    MissingExtra, and InvalidInput where no cluster answers."""

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
        self._nodes: dict[int, str] = {}  # where each is, or is to be
        self._begun: set[int] = set()
        self._unplaced: list[int] = []

    def lacking(self, count: int) -> str | None:
        """Why so many workers can never be there at once, as the cluster is; else None."""
        return lacking(count, self._asked(), [*self._offers().values()], self.name)

    def _asked(self) -> dict[str, float]:
        return {"thread": 1.0, **self._resources()}

    def _resources(self) -> dict[str, float]:
        """What is asked for of Dask's own resources, which are but names."""
        gpu = {"GPU": self._request.gpu} if self._request.gpu else {}
        return {**gpu, **self._request.more}

    def _offers(self) -> dict[str, dict[str, float]]:
        workers = self._client.scheduler_info(n_workers=-1)["workers"]
        return {
            address: {"thread": float(each["nthreads"]), **each["resources"]}
            for address, each in workers.items()
        }

    def start(self, number: int) -> None:
        """Ask for a task with a worker, where there is a place for it."""
        self._unplaced.append(number)

    def _place(self, offers: Mapping[str, Mapping[str, float]]) -> None:
        """Give places to those that have none. Dask would put several into one thread, and wait."""
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
        """What has happened, after so many seconds at most."""
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
        """The keys of tasks that have begun, and the name of the node of each."""
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
        """Have a worker take nothing new and end."""
        self._call_on_node(ClusterWorker.stop, number)

    def _call_on_node(self, method: Callable[[ClusterWorker], None], number: int) -> None:
        key, node = f"{self._key}-{number}", self._nodes[number]
        if node in self._offers():
            self._client.run(_call_here, key, method, workers=[node], on_error="ignore")

    def kill(self, number: int) -> None:
        """End a worker at once, or forget that it was asked for."""
        if number in self._unplaced:
            self._unplaced.remove(number)
        if number in self._begun:
            self._call_on_node(ClusterWorker.kill, number)
        self._drop(number)

    def close(self) -> None:
        """Leave the cluster."""
        self._client.close(timeout=_ANSWERING)


def _why_failed(error: BaseException) -> Event:
    if isinstance(error, ImportError):
        return Ended(1, f"{type(error).__name__}: {error}")
    return Lost(_first_line(error))


# On a node of Dask: what its tasks run, and what its client asks of them meanwhile.
_here: dict[str, ClusterWorker] = {}


def _serve(key: str, argv: Sequence[str], variables: Mapping[str, str]) -> tuple[int, str]:
    """Run a worker until it ends, or nobody wants the task any more: its client is gone."""
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


# ------------------------------------------------------------------ both


def lacking(
    count: int, asked: Mapping[str, float], nodes: Sequence[Mapping[str, float]], name: str
) -> str | None:
    """Return why this many workers, each asking for this, can never be on these nodes at once; None
    where they can.

    Args:
        count: How many workers are wanted.
        asked: What each worker asks for, by resource.
        nodes: What each node offers, by resource.
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
    """Return the node with the fewest of our workers that has room for one more; None where none
    has.

    Args:
        offers: What each node has, by name.
        asked: The resources that are asked for, by name.
        taken: The nodes that are in use.
    """
    able = [
        (taken.count(node), node)
        for node, offer in offers.items()
        if taken.count(node) < _fitting(offer, asked)
    ]
    return min(able)[1] if able else None


def check_answers(address: str, advice: str) -> None:
    """Check that something listens at the address of a cluster; one without host and port is left
    to the cluster's library.

    Args:
        address: `HOST:PORT`, with or without a scheme.
        advice: What the user can do, for the error.

    Raises:
        InvalidInput: The port is not a number, or nothing listens there.
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
