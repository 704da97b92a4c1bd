"""Libraries of this field, used at module level and again in steps, in processes of each kind.

Resources that a library creates when the file runs (threads, pools, connections) are not shared
between tasks: nothing hangs, and no task gets another's data. A run that hangs fails its test.
"""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.flows.conftest import Workspace

# Name, the libraries it takes, what the module does, and what a step does: an expression that is
# true. `KEY` is the item of the task.
CASES = [
    ("threads", (),
     "from concurrent.futures import ThreadPoolExecutor\n"
     "POOL = ThreadPoolExecutor(2)\n"
     "assert [1, 2] == list(POOL.map(abs, [-1, -2]))",
     "[1, 2] == list(POOL.map(abs, [-1, -2]))"),
    ("event loop in a thread", (),
     "import asyncio, threading\n"
     "LOOP = asyncio.new_event_loop()\n"
     "threading.Thread(target=LOOP.run_forever, daemon=True).start()\n"
     "async def double(x): return 2 * x\n"
     "def ask(x): return asyncio.run_coroutine_threadsafe(double(x), LOOP).result(30)\n"
     "assert 2 == ask(1)",
     "2 * KEY == ask(KEY)"),
    ("logging", (),
     "import logging, logging.handlers, queue\n"
     "GOT = []\n"
     "class Kept(logging.Handler):\n"
     "    def emit(self, record): GOT.append(record.getMessage()); CAME.set()\n"
     "import threading\n"
     "CAME = threading.Event()\n"
     "QUEUE = queue.Queue()\n"
     "logging.getLogger('own').addHandler(logging.handlers.QueueHandler(QUEUE))\n"
     "logging.handlers.QueueListener(QUEUE, Kept()).start()\n"
     "def said(text):\n"
     "    CAME.clear(); logging.getLogger('own').warning(text); CAME.wait(30)\n"
     "    return text in GOT\n"
     "assert said('at module level')",
     "said(f'in task {KEY}')"),
    ("multiprocessing", (),
     "import multiprocessing\n"
     "POOL = multiprocessing.get_context('fork').Pool(1)\n"
     "assert [3] == POOL.map(abs, [-3])",
     "[KEY] == POOL.map(abs, [-KEY])"),
    ("polars", ("polars",),
     "import polars\n"
     "def total(n):\n"
     "    frame = polars.DataFrame({'k': [i % 7 for i in range(n)], 'v': range(n)})\n"
     "    return frame.group_by('k').agg(polars.col('v').sum())['v'].sum()\n"
     "assert 4950 == total(100)",
     "4950 == total(100)"),
    # Together: to import it costs seconds of each run.
    ("torch and its loader", ("torch",),
     "import torch\n"
     "import torch.utils.data as data\n"
     "def length(): return float(torch.nn.functional.normalize(torch.rand(200_000, 64)).norm())\n"
     "ITEMS = data.TensorDataset(torch.arange(8))\n"
     "def loaded():\n"
     "    loader = data.DataLoader(ITEMS, num_workers=1, multiprocessing_context='fork')\n"
     "    return [int(each) for (each,) in loader]\n"
     "assert length() > 0 and 8 == len(loaded())",
     "length() > 0 and [0, 1, 2, 3, 4, 5, 6, 7] == loaded()"),
    ("scikit-learn", ("sklearn",),
     "import numpy\n"
     "from sklearn.ensemble import HistGradientBoostingRegressor\n"
     "X = numpy.random.default_rng(0).random((2000, 5))\n"
     "def fitted(): return HistGradientBoostingRegressor(max_iter=3).fit(X, X.sum(1)).predict(X)\n"
     "assert 2000 == len(fitted())",
     "2000 == len(fitted())"),
    ("LightGBM", ("lightgbm",),
     "import lightgbm, numpy\n"
     "X = numpy.random.default_rng(0).random((2000, 5))\n"
     "def fitted():\n"
     "    made = lightgbm.train({'verbose': -1}, lightgbm.Dataset(X, X.sum(1)), 3)\n"
     "    return made.predict(X)\n"
     "assert 2000 == len(fitted())",
     "2000 == len(fitted())"),
    ("XGBoost", ("xgboost",),
     "import numpy, xgboost\n"
     "X = numpy.random.default_rng(0).random((2000, 5))\n"
     "def fitted(): return xgboost.XGBRegressor(n_estimators=3).fit(X, X.sum(1)).predict(X)\n"
     "assert 2000 == len(fitted())",
     "2000 == len(fitted())"),
    ("joblib", ("joblib",),
     "import math\n"
     "from joblib import Parallel, delayed\n"
     "def roots(): return Parallel(2)(delayed(math.sqrt)(i) for i in (1, 4, 9))\n"
     "assert [1, 2, 3] == roots()",
     "[1, 2, 3] == roots()"),
    ("requests", ("requests",),
     "import os, requests\n"
     "SESSION = requests.Session()\n"
     "def fetched(path): return SESSION.get(os.environ['SERVER'] + path, timeout=100).text\n"
     "assert '/module' == fetched('/module')",
     "all(f'/{KEY}/{i}' == fetched(f'/{KEY}/{i}') for i in range(20))"),
    ("DuckDB", ("duckdb",),
     "import duckdb\n"
     "DATABASE = duckdb.connect()\n"
     "QUERY = 'select sum(range) from range(100000)'\n"
     "assert 4999950000 == DATABASE.execute(QUERY).fetchone()[0]",
     "4999950000 == DATABASE.execute(QUERY).fetchone()[0]"),
    ("gRPC", ("grpc",),
     "import grpc\n"
     "from concurrent.futures import ThreadPoolExecutor\n"
     "class Echo(grpc.GenericRpcHandler):\n"
     "    def service(self, details):\n"
     "        return grpc.unary_unary_rpc_method_handler(lambda request, context: request)\n"
     "SERVER = grpc.server(ThreadPoolExecutor(2), handlers=[Echo()])\n"
     "PORT = SERVER.add_insecure_port('127.0.0.1:0')\n"
     "SERVER.start()\n"
     "CHANNEL = grpc.insecure_channel(f'127.0.0.1:{PORT}')\n"
     "def echoed(data): return CHANNEL.unary_unary('/a/b')(data, timeout=100)\n"
     "assert b'module' == echoed(b'module')",
     "b'%d' % KEY == echoed(b'%d' % KEY)"),
    ("SQLAlchemy", ("sqlalchemy",),
     "import sqlalchemy\n"
     "ENGINE = sqlalchemy.create_engine('sqlite:///rows.db')\n"
     "def asked(number):\n"
     "    with ENGINE.connect() as connection:\n"
     "        return connection.execute(sqlalchemy.text(f'select {number}')).scalar()\n"
     "assert 7 == asked(7)",
     "all(KEY + i == asked(KEY + i) for i in range(20))"),
    ("tqdm", ("tqdm",),
     "from tqdm import tqdm\n"
     "def counted(): return sum(tqdm(range(10), mininterval=0))\n"
     "assert 45 == counted()",
     "45 == counted()"),
    ("pandas and Arrow", ("pandas", "pyarrow"),
     "import pandas\n"
     "def total():\n"
     "    frame = pandas.DataFrame({'k': [1, 2, 1], 'v': [1.0, 2.0, 3.0]})\n"
     "    frame.to_parquet(f'{os.getpid()}.parquet')\n"
     "    return pandas.read_parquet(f'{os.getpid()}.parquet').groupby('k').v.sum().sum()\n"
     "import os\n"
     "assert 6 == total()",
     "6 == total()"),
]  # fmt: skip

FLOW = """
{module}

class Flow_(FlowSpec):
    @step
    def start(self):
        self.items = [1, 2]
        self.next(self.work, foreach="items")

    @step
    def work(self):
        KEY = self.input
        self.good = bool({expression})
        self.next(self.join)

    @step
    def join(self, inputs):
        self.good = all(each.good for each in inputs)
        self.next(self.beside)

    @step
    async def beside(self):
        KEY = 3
        self.good = self.good and bool({expression})
        self.next(self.end)

    @step
    def end(self):
        print("good", self.good)
"""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """The URL of a server that responds with the requested path."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            body = self.path.encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            """Nothing."""

    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{made.server_port}"
    made.shutdown()
    made.server_close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "needs", "module", "expression"), CASES, ids=[each[0] for each in CASES]
)
def test_what_a_file_has_used_at_module_level_works_in_its_steps(
    name: str,
    needs: tuple[str, ...],
    module: str,
    expression: str,
    workspace: Workspace,
    server: str,
) -> None:
    for each in needs:
        if importlib.util.find_spec(each) is None:
            pytest.skip(f"{each} is not installed")
    workspace.write(FLOW.format(module=module, expression=expression))
    # One that hangs is killed after a while, which fails this test.
    # OpenMP spins while it waits, which two tasks on two busy cores do not survive for long.
    quiet = {"PYTHONWARNINGS": "ignore", "OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "2"}
    ran = workspace.run("--max-workers", "2", SERVER=server, **quiet)

    assert 0 == ran.code, ran.out + ran.err
    assert "good True" in ran.lines
    workspace.check()


def test_what_a_file_has_used_works_in_processes_that_run_many_tasks(workspace: Workspace) -> None:
    usable = [each for each in CASES if all(map(importlib.util.find_spec, each[1]))]
    few = [each for each in usable if each[0] in ("threads", "logging", "polars", "DuckDB")]
    modules = "\n".join(each[2] for each in few)
    together = " and ".join(f"({each[3]})" for each in few)
    workspace.write(FLOW.format(module=modules, expression=together))
    ran = workspace.run("--isolation", "worker", "--max-workers", "2")

    assert 0 == ran.code, ran.out + ran.err
    assert "good True" in ran.lines
    workspace.check()


PROCESSES = """
import multiprocessing
import signal
from multiprocessing import shared_memory

class Pair:
    def __init__(self, one):
        self.one = one

def paired(one):
    return Pair(one)

def code_of(body):
    child = os.fork()
    if not child:
        body()
        raise AssertionError("the child goes on")
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

class Flow_(FlowSpec):
    @step
    def start(self):
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2])
        os.kill(os.getpid(), signal.SIGUSR2)
        assert signal.SIGUSR2 == signal.sigwait([signal.SIGUSR2]), "no other thread has taken it"
        # A spawned process runs the file by another name, and gives back objects of that.
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            (pair,) = pool.map(paired, [3])
        assert type(pair) is Pair and 3 == pair.one
        # When the process ends, the tracker of multiprocessing removes it.
        print("left", shared_memory.SharedMemory(create=True, size=1).name)
        assert [0, 3] == [code_of(sys.exit), code_of(lambda: sys.exit(3))]
        assert 1 == code_of(lambda: {}["of the child"])
        self.child = os.fork()
        if self.child:
            assert 0 == os.waitstatus_to_exitcode(os.waitpid(self.child, 0)[1])
        self.next(self.beside)

    @step
    async def beside(self):
        assert self.child
        assert [0, 3] == [code_of(sys.exit), code_of(lambda: sys.exit(3))]
        assert 1 == code_of(lambda: {}["of the child"])
        self.next(self.end)

    @step
    def end(self):
        print("good")
"""


# It holds copies of all that the program has open, and lives until the program has ended.
HELPER = """\
    program = os.getpid()
    if not os.fork():
        while os.getppid() == program:
            time.sleep(0.05)
        os._exit(0)
"""


@pytest.mark.parametrize("way", ["python flow.py", "aflow run", "isolation worker"])
def test_processes_that_a_program_and_its_steps_start_are_as_under_python(
    way: str, workspace: Workspace
) -> None:
    file = workspace.write(PROCESSES)
    file.write_text(file.read_text().replace("    Flow_()\n", HELPER + "    Flow_()\n"))
    if way == "aflow run":
        ran = workspace.finish(workspace.start_aflow("run", "flow.py", "--no-pylint"))
    else:
        ran = workspace.run(*(["--isolation", "worker"] if way == "isolation worker" else []))

    assert 0 == ran.code, ran.out + ran.err
    assert "good" in ran.lines
    assert 2 == ran.out.count("KeyError: 'of the child'")
    assert "failed" not in ran.out
    (left,) = (line.split()[1] for line in ran.lines if line.startswith("left "))
    assert not Path("/dev/shm", left).exists()
    workspace.check()
