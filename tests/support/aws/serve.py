"""The server: `python tests/support/aws/serve.py PORT [NAME=VALUE...]`; jobs get the variables. If
JOBS_IN_CONTAINERS has a command line of podman, jobs of local images run in containers."""

from __future__ import annotations

import gc
import os
import shlex
import signal
import sys
import threading
from pathlib import Path


def main() -> None:
    # By default, garbage collection takes a third of moto's time: its large heap is permanent.
    gc.set_threshold(50_000, 50, 50)
    port, *variables = sys.argv[1:]
    os.environ["MOTO_PORT"] = port
    os.environ["AWS_MAX_ATTEMPTS"] = "1"  # the state machine has to retry
    sys.path.insert(0, str(Path(__file__).parents[3]))
    from moto.core.config import default_user_config
    from moto.server import ThreadedMotoServer

    from tests.support.aws import batch, state_machines

    default_user_config["stepfunctions"]["execute_state_machine"] = True
    default_user_config["batch"]["use_docker"] = True
    state_machines.install()
    containers = shlex.split(os.environ.get("JOBS_IN_CONTAINERS", ""))
    batch.install(dict(each.split("=", 1) for each in variables), containers)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=int(port), verbose=False)
    gc.freeze()
    server.start()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    stop.wait()
    server.stop()


if __name__ == "__main__":
    main()
