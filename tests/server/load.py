"""A load test of a server with malicious clients, for any length of time: the corpora of
attacks.py, clients that never read, streams, idle connections, packages, queries.

    scripts/load --seconds 3600 [--url URL --token TOKEN --pid PID]

It starts a server with two runs, unless --url is given, and prints one line per minute and at the
end: the server's current and maximum memory, and the percentiles of the response time of /healthz,
which a separate process requests four times per second. The exit status is 1 if the memory is above
150 MB at the end, or the 99th percentile above 50 ms, which is significant only on an idle machine.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import multiprocessing
import os
import random
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from aflow.task import code_package
from tests.flows.conftest import POSTAMBLE, PREAMBLE
from tests.server import attacks

LIMIT_OF_MEMORY = 150.0  # MB
LIMIT_OF_HEALTH = 0.05  # seconds
_ATTACKER = "127.0.0.2"  # another address than that of /healthz: no address gets all connections
FLOW = """
class Flow_(FlowSpec):
    @step
    def start(self):
        for number in range(40):
            print("\\n".join([f"{number} " + "x" * 1000] * 100))
        self.xs = list(range(90))
        self.next(self.work, foreach="xs")

    @step
    def work(self):
        self.y = {"index": self.index, "text": "y" * 500}
        self.next(self.join)

    @step
    def join(self, inputs):
        self.ys = [each.y for each in inputs]
        self.next(self.end)

    @step
    def end(self):
        print("the end")
"""


class Target(NamedTuple):
    """The server: its address, a token, its process, and a run."""

    host: str
    port: int
    token: str
    pid: int
    run: str

    def ask(self, method: str, path: str, body: bytes = b"", type_: str = "") -> tuple[int, bytes]:
        """Send one request with the token."""
        connection = http.client.HTTPConnection(
            self.host, self.port, timeout=60, source_address=(_ATTACKER, 0)
        )
        headers = {"Authorization": f"Bearer {self.token}"}
        if type_:
            headers["Content-Type"] = type_
        try:
            connection.request(method, path, body or None, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def connect(self) -> socket.socket:
        """Open a connection for bytes that are not a request."""
        return socket.create_connection(
            (self.host, self.port), timeout=60, source_address=(_ATTACKER, 0)
        )

    @property
    def memory(self) -> tuple[float, float]:
        """Return the current and maximum memory of the process in MB."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        now, most = (
            int(re.findall(rf"{name}:\s+(\d+) kB", status)[0]) * 1024 / 1e6
            for name in ("VmRSS", "VmHWM")
        )
        return now, most


# ------------------------------------------------------------------ generators


def hostile_names(target: Target, lots: random.Random) -> None:
    """Send malicious names to every route."""
    names = [*attacks.hostile_names()]
    for route in attacks.routes(Path("/nowhere")):
        name = lots.choice(names)
        target.ask(route.method, f"{route.at(name)}?limit={name}&_cursor={name}&step={name}")


def bodies(target: Target, lots: random.Random) -> None:
    """Send malformed bodies to every route that accepts one."""
    found = [*attacks.bodies(Path("/nowhere")).values()]
    types = ["application/json", "application/x-tar", "application/msgpack"]
    for route in attacks.routes(Path("/nowhere")):
        if route.writes:
            target.ask(route.method, route.at("create_run"), lots.choice(found), lots.choice(types))


def archives(target: Target, lots: random.Random) -> None:
    """Upload archives that are not code, and one that is."""
    for make in attacks.archives(Path("/nowhere")).values():
        body = make()
        target.ask("POST", "/v1/packages", body, "application/x-tar")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "flow.py"
        file.write_text("x = 1\n" * 100_000)
        target.ask(
            "POST", "/v1/packages", code_package.pack({"flow.py": file}), "application/x-tar"
        )


def heads(target: Target, lots: random.Random) -> None:
    """Send ambiguous and truncated headers."""
    for what in attacks.HEADS.values():
        with contextlib.suppress(OSError), target.connect() as connection:
            connection.sendall(what[: lots.randrange(1, len(what) + 1)])
            connection.settimeout(0.05)
            connection.recv(1000)


def silence(target: Target, lots: random.Random) -> None:
    """Open many idle connections."""
    with contextlib.ExitStack() as stack:
        for _ in range(300):
            with contextlib.suppress(OSError):
                stack.enter_context(target.connect())
        time.sleep(lots.uniform(0.0, 2.0))


def readers_that_stop(target: Target, lots: random.Random) -> None:
    """Request logs without reading them."""
    ask = f"GET /v1/runs/{target.run}/logs HTTP/1.1\r\nHost: localhost\r\n"
    ask += f"Authorization: Bearer {target.token}\r\n\r\n"
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            with contextlib.suppress(OSError):
                stack.enter_context(target.connect()).sendall(ask.encode())
        time.sleep(lots.uniform(0.0, 2.0))


def streams(target: Target, lots: random.Random) -> None:
    """Open streams and abandon them."""
    for _ in range(30):
        what = lots.choice(["events?follow=1", "logs?follow=1", "?wait=60"])
        ask = f"GET /v1/runs/{target.run}/{what} HTTP/1.1\r\nHost: localhost\r\n".replace("/?", "?")
        with contextlib.suppress(OSError), target.connect() as connection:
            connection.sendall(f"{ask}Authorization: Bearer {target.token}\r\n\r\n".encode())
            connection.recv(lots.choice([1, 1000, 100_000]))


def queries(target: Target, lots: random.Random) -> None:
    """Send the requests of the web UI's pages and of clients that read metadata."""
    flow, _, run = target.run.partition("/")
    paths = [
        "/v1/search?limit=1000", f"/v1/runs/{target.run}/tasks?limit=1000", "/metrics",
        f"/v1/runs/{target.run}", f"/v1/search?filter={quote('tag:x')}", "/openapi.json",
        f"/flows/{flow}/runs/{run}/steps", f"/flows/{flow}/runs/{run}/steps/work/tasks",
        f"/flows/{flow}/runs/{run}/steps/work/artifacts", "/ui/", "/v1/schedules",
    ]  # fmt: skip
    for _ in range(50):
        target.ask("GET", lots.choice(paths))


Generator = Callable[[Target, random.Random], None]
GENERATORS: list[Generator] = [
    hostile_names, bodies, archives, heads, silence, readers_that_stop, streams, queries,
]  # fmt: skip


def generate(target: Target, generators: list[Generator], seed: int, until: float) -> None:
    """Run one load generator after the other, until the time is over."""
    lots = random.Random(seed)
    while time.monotonic() < until:
        what = lots.choice(generators)
        # The server may reject the request: that is correct.
        with contextlib.suppress(OSError, http.client.HTTPException):
            what(target, lots)


# ------------------------------------------------------------------ what is measured


def probe(target: Target, until: float, said: multiprocessing.Queue[float]) -> None:
    """Request /healthz four times per second, on a new connection each time."""
    while (began := time.monotonic()) < until:
        try:
            connection = http.client.HTTPConnection(target.host, target.port, timeout=60)
            connection.request("GET", "/healthz")
            well = connection.getresponse().read() and True
            connection.close()
        except (OSError, http.client.HTTPException):
            well = False
        took = time.monotonic() - began
        said.put(took if well else float("inf"))
        time.sleep(max(0.0, 0.25 - took))


def percentile(found: list[float], share: float) -> float:
    """Return a percentile of the values."""
    ordered = sorted(found)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def report(target: Target, found: list[float], when: str) -> bool:
    """Print the figures so far, and return whether they are within the limits."""
    now, most = target.memory
    shares = {f"p{share * 100:g}": percentile(found, share) for share in (0.5, 0.9, 0.99, 0.999)}
    figures = " ".join(f"{name} {value * 1000:.1f}" for name, value in shares.items())
    refused = sum(each == float("inf") for each in found)
    print(
        f"{when}: memory {now:.0f} MB (at most {most:.0f}); /healthz {figures} max "
        f"{max(found) * 1000:.1f} ms, {len(found)} asked, {refused} not answered",
        flush=True,
    )
    return now <= LIMIT_OF_MEMORY and shares["p99"] <= LIMIT_OF_HEALTH


@contextlib.contextmanager
def server() -> Iterator[Target]:
    """A server of our own, with runs."""
    with tempfile.TemporaryDirectory(prefix="aflow-load-") as folder:
        (Path(folder) / "flow.py").write_text(PREAMBLE + FLOW + POSTAMBLE.format(name="Flow_"))
        env = {**os.environ, "AFLOW_HOME": f"{folder}/home", "AFLOW_USER": "load"}

        def aflow(*words: str) -> subprocess.Popen[str]:
            return subprocess.Popen(
                [sys.executable, "-m", "aflow", *words],
                cwd=folder, env=env, stdout=subprocess.PIPE, text=True,
                stderr=None if words[0] == "submit" else subprocess.DEVNULL,
            )  # fmt: skip

        process = aflow("server", "--port", "0")
        try:
            assert process.stdout is not None
            url = process.stdout.readline().split()[-1]
            for _ in range(2):
                with aflow("submit", "flow.py", "--server", url, "--wait") as submitted:
                    said = submitted.communicate()[0]
                assert submitted.returncode == 0, said[-2000:]
            host, _, port = url.removeprefix("http://").partition(":")
            token = Path(folder, "home", "server-token").read_text().strip()
            made = Target(host, int(port), token, process.pid, "")
            _, runs = made.ask("GET", "/v1/runs?limit=1")
            newest = json.loads(runs)["runs"][0]
            yield made._replace(run=f"{newest['flow']}/{newest['run']}")
        finally:
            process.terminate()
            process.communicate()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--seconds", type=float, default=120.0)
    parser.add_argument("--generators", type=int, default=4, help="how many work at a time")
    parser.add_argument("--seed", type=int, default=0)
    names = {each.__name__: each for each in GENERATORS}
    parser.add_argument("--only", choices=[*names], action="append", help="this generator")
    options = parser.parse_args()
    chosen = [names[each] for each in options.only or names]
    with server() as target:
        until = time.monotonic() + options.seconds
        said: multiprocessing.Queue[float] = multiprocessing.Queue()
        prober = multiprocessing.Process(target=probe, args=(target, until, said))
        prober.start()
        workers = [
            threading.Thread(target=generate, args=(target, chosen, options.seed + number, until))
            for number in range(options.generators)
        ]
        for each in workers:
            each.start()
        found: list[float] = []
        began = time.monotonic()
        while (now := time.monotonic()) < until:
            time.sleep(min(60.0, until - now))
            while not said.empty():
                found.append(said.get())
            if found:
                report(target, found, f"after {time.monotonic() - began:.0f} s")
        for each in workers:
            each.join()
        prober.join()
        time.sleep(5.0)  # what clients have left behind is release
        while not said.empty():
            found.append(said.get())
        return 0 if report(target, found, "in the end") else 1


if __name__ == "__main__":
    raise SystemExit(main())
