"""The web UI in a real headless Chromium, on generated runs.

    python -m benchmarks.ui [--tasks 1000 100000 1000000] [--runs 100000] [backend...]

prints one JSON object per line: {"name", "value", "unit"}. Runs of different sizes are written to
SQLite and PostgreSQL (a private server) as a coordinator does; then `aflow server` shows them, and
a browser opens, zooms, pans and scrolls them. `ui.open` is the time from a click in the list of
runs until the timeline shows all tasks, with a server that has not read them before; `zoom` and
`scroll` are 95th percentiles of the time from an event to the end of its frame. `open_cpu`,
`zoom_cpu` and `scroll_cpu` are the processor time of the page's thread, in total or per frame, and
`open_server_cpu` that of the server: these are also valid on a busy machine. `live` is a run in
which 1,000 tasks per second finish: the bytes per second that one tab reads, and the processor
usage of the server with fifty tabs. Needs chromium and chromedriver.
"""

from __future__ import annotations

import argparse
import http.client
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from selenium import webdriver
from selenium.webdriver.support.ui import WebDriverWait

from aflow.flow.graph import Graph, Kind, Node
from aflow.metadata.base import (
    AttemptRecord,
    Batch,
    MetadataStore,
    RunRecord,
    RunUpdate,
    TaskRecord,
)
from aflow.metadata.factory import open_metadata
from aflow.scheduler.messages import NoInputs, encode_inputs
from aflow.scheduler.states import AttemptState, RunState
from aflow.storage.artifacts import ForeachFrame, Manifest
from benchmarks import queues
from benchmarks.measure import Bench
from benchmarks.queued import tell
from benchmarks.rows import Row, at_most
from benchmarks.server import aflow, line_of, processor

BATCH = 1000
LANES = 200  # tasks that ran concurrently
INPUTS = encode_inputs(NoInputs())
BACKENDS = {"sqlite": queues.sqlite, "postgres": queues.postgres}
BARS = {
    "ui.first_paint": 500, "ui.first_visit": 70, "ui.later_visit": 0, "ui.run_answer": 20,
    "ui.runs_answer": 50, "ui.live_bytes": 30, "ui.fifty_tabs": 20, "ui.line": 1500,
    "ui.open_1000": 1500, "ui.zoom_1000": 25, "ui.scroll_1000": 25, "ui.heap_1000": 40,
    "ui.open_100000": 1500, "ui.zoom_100000": 25, "ui.scroll_100000": 25, "ui.heap_100000": 40,
    "ui.open_1000000": 5000, "ui.zoom_1000000": 50, "ui.scroll_1000000": 50, "ui.heap_1000000": 100,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tasks", type=int, nargs="*", default=[1000, 100_000, 1_000_000])
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--seconds", type=float, default=20.0, help="of a live run")
    parser.add_argument("backends", nargs="*", choices=[*BACKENDS, []], metavar="backend")
    options = parser.parse_args()
    for name in options.backends or BACKENDS:
        for what, value, unit in measure(name, options.tasks, options.runs, options.seconds):
            tell(f"{name}.{what}", value, unit)


def of_bench(bench: Bench) -> list[Row]:
    """The case `ui` of scripts/bench: SQLite, and a run of a million tasks only without --quick."""
    sizes = [1000, 10_000] if bench.quick else [1000, 100_000, 1_000_000]
    runs, seconds = (2000, 5.0) if bench.quick else (100_000, 20.0)
    return [
        at_most("ui", what, value, unit, BARS[what])
        if what in BARS
        else Row("ui", what, value, unit)
        for what, value, unit in measure("sqlite", sizes, runs, seconds)
    ]


def measure(
    backend: str, sizes: list[int], runs: int, seconds: float
) -> Iterator[tuple[str, float, str]]:
    """Yield all figures of one metadata backend: name, value, unit."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        broker = BACKENDS[backend]
        with broker(folder) as url:
            bench = Bench(folder / "work", quick=False)
            with closing(open_metadata(url, "process")) as metadata:
                store = bench.folder.as_uri()
                for count in sizes:
                    generate(metadata, store, f"Tasks{count}", count)
                for number in range(runs):
                    create(metadata, store, "Many", number, RunState.SUCCEEDED)
                with serving(bench, url) as (server, address), browser() as driver:
                    page = Page(driver, address)
                    yield from visits(page)
                    for count in sizes:
                        yield from tasks_of(page, f"Tasks{count}", count, server.pid)
                    yield from answers(address, f"Tasks{sizes[-1]}", runs)
                    yield from lines(page, bench, url)
                    yield from live(page, metadata, store, server.pid, seconds)


# ------------------------------------------------------------ the runs


GRAPH = Graph(
    "Flow", "start", "end",
    {
        "start": Node("start", Kind.FOREACH, next=("work",), foreach="items", join="join"),
        "work": Node("work", Kind.LINEAR, next=("join",), previous=("start",), splits=("start",)),
        "join": Node("join", Kind.LINEAR, is_join=True, next=("end",), previous=("work",)),
        "end": Node("end", Kind.END, previous=("join",)),
    },
)  # fmt: skip


def create(
    metadata: MetadataStore, store: str, flow: str, number: int, state: RunState
) -> RunRecord:
    """Create a run in its initial state."""
    begun = time.time() - 86400 + number
    users, tags = ("ann", "bob", "cid"), (f"tag{number % 50}", "nightly")
    run = RunRecord(
        0, flow, str(number), state, users[number % 3], begun,
        begun + 60 if state is not RunState.RUNNING else None, 0, tags, (),
        GRAPH.as_dict(), {"storage": store, "max_workers": LANES},
    )  # fmt: skip
    return metadata.create_run(run, Manifest(step="_parameters").encode())


def generate(metadata: MetadataStore, store: str, flow: str, count: int) -> None:
    """Create a finished run with this many tasks."""
    run = create(metadata, store, flow, 1, RunState.RUNNING)
    writer = Writer(metadata, run)
    while writer.count < count:
        writer.commit(min(BATCH, count - writer.count))
    over = RunUpdate(state=RunState.SUCCEEDED, finished_at=run.created_at + writer.at)
    metadata.commit(run.key, writer.version, Batch(run=over))


class Writer:
    """Writes tasks of one run. Each ran for about a second in one of many lanes."""

    def __init__(self, metadata: MetadataStore, run: RunRecord) -> None:
        self._metadata, self._run = metadata, run
        self._random = random.Random(1)
        self._free = [0.0] * LANES
        self.count = self.version = 0
        self.at = 0.0

    def commit(self, size: int) -> None:
        """Commit this many more tasks."""
        batch = Batch()
        for number in range(self.count + 1, self.count + 1 + size):
            lane = number % LANES
            start = self._free[lane]
            self._free[lane] = end = start + self._random.uniform(0.2, 2.0)
            self.at = max(self.at, end)
            base = self._run.created_at
            state = AttemptState.FAILED if number % 997 == 0 else AttemptState.SUCCEEDED
            frame = ForeachFrame("start", "items", None, number, f"item-{number}", 1)
            batch.tasks.append(TaskRecord(number, "work", base + start, 1, number, INPUTS))
            batch.attempts.append(
                AttemptRecord(
                    number, 0, state, base + start + 0.01, base + end, host=f"host-{lane % 8}",
                    pid=100 + lane, max_rss=50_000_000,
                    manifest=Manifest(step="work", stack=(frame,)).encode(),
                )
            )  # fmt: skip
        self.version = self._metadata.commit(self._run.key, self.version, batch)
        self.count += size


@contextmanager
def serving(bench: Bench, url: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Run a server with this metadata, and yield its URL."""
    server = aflow(bench, "server", "--port", "0", "--no-auth", "--metadata", url, heard=True)
    try:
        yield server, line_of(server, "Server on").split()[-1]
    finally:
        server.terminate()
        server.wait()


# ------------------------------------------------------------ the browser


@contextmanager
def browser() -> Iterator[webdriver.Chrome]:
    """Start a headless Chromium with a separate profile."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or "chromium"
    with tempfile.TemporaryDirectory() as profile:
        for each in (
            "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--window-size=1400,900", "--enable-precise-memory-info", f"--user-data-dir={profile}",
        ):  # fmt: skip
            options.add_argument(each)
        driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
        try:
            yield driver
        finally:
            driver.quit()


class Page:
    """The pages in a browser."""

    def __init__(self, driver: webdriver.Chrome, address: str) -> None:
        self._driver = driver
        self.address = address
        driver.set_script_timeout(300)
        driver.execute_cdp_cmd("Performance.enable", {"timeDomain": "threadTicks"})

    def load(self, path: str = "", *, cold: bool = False) -> None:
        """Load a page, with an empty cache if `cold`."""
        if cold:
            self._driver.execute_cdp_cmd("Network.clearBrowserCache", {})
        self._driver.get(f"{self.address}/ui/{path}")
        self.until("!document.querySelector('[aria-busy=true]') && document.querySelector('h1')")

    def run(self, script: str, *arguments: Any) -> Any:
        """Return the result of an asynchronous JavaScript function body; exit if it fails."""
        wrapped = (
            "const done = arguments[arguments.length - 1];"
            f"(async (...given) => {{ {script} }})(...arguments)"
            ".then((found) => done({ found }), (error) => done({ error: String(error) }));"
        )
        answer: Any = self._driver.execute_async_script(wrapped, *arguments)
        if "error" in answer:
            raise SystemExit(f"The page failed: {answer['error']}")
        return answer.get("found")

    def until(self, condition: str, seconds: float = 120.0) -> None:
        """Wait until a JavaScript expression is true."""
        waiting = WebDriverWait(self._driver, seconds, poll_frequency=0.02)
        waiting.until(lambda driver: driver.execute_script(f"return !!({condition})"))

    def processor(self) -> float:
        """Return the processor time of the page's main thread in milliseconds."""
        found: Any = self._driver.execute_cdp_cmd("Performance.getMetrics", {})
        busy: float = next(e["value"] for e in found["metrics"] if e["name"] == "TaskDuration")
        return busy * 1000

    def heap(self) -> float:
        """Return the MB of the page's objects after a garbage collection."""
        self._driver.execute_cdp_cmd("HeapProfiler.collectGarbage", {})
        used: dict[str, float] = self._driver.execute_cdp_cmd("Runtime.getHeapUsage", {})
        return used["usedSize"] / 1e6


_PAINTED = "performance.getEntriesByName('first-contentful-paint').length"
_PAINT = """
return performance.getEntriesByName("first-contentful-paint")[0].startTime
"""
_BYTES = """
return performance.getEntriesByType("resource").filter((r) => /\\.(js|css)$/.test(r.name))
  .reduce((sum, r) => sum + r.transferSize, 0)
"""


def visits(page: Page) -> Iterator[tuple[str, float, str]]:
    """Measure how soon a page is visible, and how much it reads."""
    paints = []
    for _ in range(20):
        page.load(cold=True)
        page.until(_PAINTED)
        paints.append(page.run(_PAINT))
    yield "ui.first_paint", percentile(paints, 95), "ms"
    yield "ui.first_visit", page.run(_BYTES) / 1000, "kB"
    page.load()
    yield "ui.later_visit", page.run(_BYTES) / 1000, "kB"


# By the page's clock, from the click until the canvas is drawn and a frame is shown.
_OPEN = """
const [path] = given;
performance.mark("clicked");
history.pushState(null, "", path);
dispatchEvent(new PopStateEvent("popstate"));
while (!document.querySelector(".timeline canvas")) await new Promise((r) => setTimeout(r, 2));
await new Promise((r) => requestAnimationFrame(() => setTimeout(r)));
return performance.now() - performance.getEntriesByName("clicked").pop().startTime;
"""
_ZOOM = """
const chart = document.querySelector(".timeline .chart canvas");
const box = chart.getBoundingClientRect();
const times = [];
for (let n = 0; n < 120; n++) {
  const begun = performance.now();
  const how = n % 4 === 3 ? { deltaX: 40 } : { deltaY: n < 60 ? -60 : 60, ctrlKey: true };
  chart.dispatchEvent(new WheelEvent("wheel", { ...how, clientX: box.x + box.width / 3,
    clientY: box.y + 40, bubbles: true, cancelable: true }));
  await new Promise((r) => requestAnimationFrame(() => setTimeout(r)));
  times.push(performance.now() - begun);
}
return times;
"""
_SCROLL = """
const rows = document.querySelector(".rows"), times = [];
for (let n = 0; n < 120; n++) {
  const begun = performance.now();
  rows.scrollTop = n % 3 ? rows.scrollTop + 300 : (rows.scrollHeight * ((n * 37) % 100)) / 100;
  await new Promise((r) => requestAnimationFrame(() => setTimeout(r)));
  times.push(performance.now() - begun);
}
return times;
"""


def tasks_of(page: Page, flow: str, count: int, server: int) -> Iterator[tuple[str, float, str]]:
    """Measure opening, zooming and scrolling a run."""
    page.load()
    served, spent = processor(server), page.processor()
    yield f"ui.open_{count}", page.run(_OPEN, f"/ui/runs/{flow}/1?tab=timeline"), "ms"
    yield f"ui.open_cpu_{count}", page.processor() - spent, "ms"
    yield f"ui.open_server_cpu_{count}", (processor(server) - served) * 1000, "ms"
    yield from frames(page, "zoom", _ZOOM, count)
    yield f"ui.heap_{count}", page.heap(), "MB"
    page.load(f"runs/{flow}/1?tab=tasks")
    page.until("document.querySelector('.rows .row b')")
    yield from frames(page, "scroll", _SCROLL, count)


def frames(page: Page, name: str, script: str, count: int) -> Iterator[tuple[str, float, str]]:
    """Measure the time of frames, as wall clock and processor time."""
    spent = page.processor()
    times = page.run(script)
    yield f"ui.{name}_{count}", percentile(times, 95), "ms"
    yield f"ui.{name}_cpu_{count}", (page.processor() - spent) / len(times), "ms"


# ------------------------------------------------------------ the server


def answers(address: str, flow: str, runs: int) -> Iterator[tuple[str, float, str]]:
    """Measure the 99th percentiles of the API's response times."""
    yield "ui.run_answer", timed(address, [f"/v1/runs/{flow}/1"] * 200), "ms"
    filters = (
        "", "flow:Many", "state:failed", "tag:tag7", "tag:none", "user:bob", "since:12h",
        "tag:tag7+user:ann", f"id:{runs // 2}", "nightly", "param.alpha:1",
    )  # fmt: skip
    paths = [f"/v1/search?limit=50&filter={each}" for each in filters for _ in range(10)]
    yield "ui.runs_answer", timed(address, paths), "ms"


def timed(address: str, paths: list[str]) -> float:
    """Return the 99th percentile of response times over one connection, in milliseconds."""
    with closing(http.client.HTTPConnection(address.partition("://")[2])) as connection:
        found = []
        for path in paths:
            begun = time.perf_counter()
            connection.request("GET", path)
            answer = connection.getresponse()
            body = answer.read()
            found.append((time.perf_counter() - begun) * 1000)
            if answer.status != 200:
                raise SystemExit(f"{path}: {body[:200]!r}")
    return percentile(found, 99)


_FORGET = """
performance.setResourceTimingBufferSize(100000);
performance.clearResourceTimings();
"""
_READ = """
return performance.getEntriesByType("resource").reduce((sum, r) => sum + r.transferSize, 0)
"""


def live(
    page: Page, metadata: MetadataStore, store: str, server: int, seconds: float
) -> Iterator[tuple[str, float, str]]:
    """Measure a run in which 1,000 tasks per second finish."""
    run = create(metadata, store, "Live", 1, RunState.RUNNING)
    writer = Writer(metadata, run)
    with going_on(lambda: writer.commit(100), 0.1):
        page.load("runs/Live/1")
        page.run(
            "performance.setResourceTimingBufferSize(100000); performance.clearResourceTimings()"
        )
        time.sleep(seconds)
        read = page.run(_READ)
        stream = streamed(page.address, "run:Live/1", min(seconds, 10.0))
        yield "ui.live_bytes", read / seconds / 1000 + stream, "kB/s"
        page.load("settings")
        with tabs(page.address, 50):
            time.sleep(3.0)
            before = processor(server)
            time.sleep(seconds)
            yield "ui.fifty_tabs", (processor(server) - before) / seconds * 100, "% of a core"


# The times when lines were seen minus the times in the lines, until the last line, or until none
# has arrived for a minute. (A page contains only the lines on the screen: a line that appears and
# disappears between two polls is missed.)
_LINES = """
const seen = new Map();
let latest = Date.now();
while (!seen.has("over") && Date.now() - latest < 60000) {
  const now = Date.now();
  for (const { textContent: text } of document.querySelectorAll(".lines .line span"))
    if (!seen.has(text)) seen.set(text, now - Number(text) * 1000), (latest = now);
  await new Promise((r) => setTimeout(r, 5));
}
return [seen.delete("over"), ...seen.values()];
"""


def lines(page: Page, bench: Bench, url: str) -> Iterator[tuple[str, float, str]]:
    """Measure the delay from a print in a task to the line in the browser. The task prints when the
    page is shown: earlier lines would have left the screen."""
    flow, count = Path(__file__).parent / "flows" / "ticking.py", 200
    gate = bench.folder / "looks"
    bench.environment["AFLOW_DEFAULT_METADATA"] = url
    run = subprocess.Popen(
        [sys.executable, str(flow), "run", "--lines", str(count), "--gate", str(gate),
         "--run-id-file", "ticking"],
        cwd=bench.folder, env=bench.environment, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        file = bench.folder / "ticking"
        while not (file.exists() and file.read_text()):
            if run.poll() is not None:
                raise SystemExit("The flow that prints did not run.")
            time.sleep(0.02)
        page.load(f"runs/Ticking/{file.read_text().strip()}?tab=logs")
        page.until("document.querySelector('.dot.live')")
        gate.touch()
        ended, *late = page.run(_LINES)
        if not ended or len(late) < count * 0.9:
            raise SystemExit(f"{len(late)} of {count} lines that a task has printed were seen.")
        yield "ui.line", percentile(late, 99), "ms"
    finally:
        run.kill()
        run.wait()


def streamed(address: str, topics: str, seconds: float) -> float:
    """Return the kB per second of a stream."""
    with closing(http.client.HTTPConnection(address.partition("://")[2])) as connection:
        connection.request("GET", f"/v1/stream?topics={topics}")
        answer = connection.getresponse()
        until, size = time.monotonic() + seconds, 0
        while time.monotonic() < until:
            size += len(answer.read1(65536))
    return size / seconds / 1000


@contextmanager
def going_on(what: Callable[[], object], pause: float) -> Iterator[None]:
    """Call a function at a fixed rate while the block runs."""
    over = threading.Event()

    def work() -> None:
        due = time.monotonic()
        while not over.is_set():
            what()
            due += pause
            over.wait(max(0.0, due - time.monotonic()))

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


# A program that reads the same as this many tabs on one run: one stream each, and the complete run
# after changes, at most once per second.
_TABS = """
import asyncio, aiohttp, sys
async def tab(session, url, run):
    latest = 0.0
    async with session.get(f"{url}/v1/stream?topics=run:{run}") as stream:
        async for line in stream.content:
            now = asyncio.get_running_loop().time()
            if line.startswith(b"event: run") and now - latest >= 1.0:
                latest = now
                async with session.get(f"{url}/v1/runs/{run}/overview") as answer:
                    await answer.read()
async def main():
    timeout, all_ = aiohttp.ClientTimeout(total=None), aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=all_) as session:
        count = int(sys.argv[2])
        await asyncio.gather(*(tab(session, sys.argv[1], "Live/1") for _ in range(count)))
asyncio.run(main())
"""


@contextmanager
def tabs(address: str, count: int) -> Iterator[None]:
    """Simulate this many tabs that follow the live run."""
    reader = subprocess.Popen([sys.executable, "-c", _TABS, address, str(count)])
    try:
        yield
        if reader.poll() is not None:
            raise SystemExit("The tabs were refused.")
    finally:
        reader.kill()
        reader.wait()


def percentile(values: list[float], percent: int) -> float:
    """Return a percentile of the values."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]


if __name__ == "__main__":
    main()
