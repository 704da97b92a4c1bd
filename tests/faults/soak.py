"""The program behind scripts/soak: runs under random faults, one after the other, for a given time
or number of rounds. Each round prints its own seed; `--seed` repeats it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from aflow.testing.chaos import FAULTS, ChaosError, Fault, Fleet, Machines, soak, undisturbed
from tests.support.faulty import Fault as OfS3
from tests.support.faulty import FaultyProxy, Kind
from tests.support.s3 import ACCESS, S3Bucket
from tests.support.servers import Server, redis_server, seaweed_server

WIDTH = 90  # a server lets a foreach have 100 items
SOURCE = f"""
import random

class Flow_(FlowSpec):
    @retry(times=50, minutes_between_retries=0)
    @step
    def start(self):
        note()
        self.shared = random.Random(1).randbytes(300_000)
        self.xs = list(range({WIDTH}))
        self.next(self.work, foreach="xs")

    @retry(times=50, minutes_between_retries=0)
    @step
    def work(self):
        note()
        time.sleep(0.05 * (self.input % 5))
        self.y = self.input ** 2 + len(self.shared)
        if self.input % 10 == 0:
            self.large = random.Random(self.input).randbytes(100_000)
        print("squared", self.input)
        self.next(self.join)

    @retry(times=50, minutes_between_retries=0)
    @step
    def join(self, inputs):
        note()
        self.ys = [each.y for each in inputs]
        self.next(self.end)

    @retry(times=50, minutes_between_retries=0)
    @step
    def end(self):
        note()
        self.total = sum(self.ys)
"""
KINDS = ("files", "redis", "server", "s3")


def main() -> int:
    """Run rounds, and return 1 if an invariant was violated."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3600.0, help="how long (3600)")
    parser.add_argument(
        "--kills", type=int, default=0, help="so many faults; 0: until time is over"
    )
    parser.add_argument("--each", type=int, default=60, help="faults of one round at most (60)")
    parser.add_argument("--seed", type=int, help="repeat the round with this seed, and no other")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="they rest on")
    parser.add_argument("--isolation", nargs="+", default=["task", "worker"])
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="aflow-soak-"))
    began, struck, rounds, broken = time.monotonic(), Counter[str](), 0, 0
    try:
        expected = undisturbed(root / "calm", SOURCE)
        while rounds == 0 or (
            options.seed is None
            and time.monotonic() - began < options.seconds
            and (not options.kills or struck.total() < options.kills)
        ):
            seed = random.randrange(2**32) if options.seed is None else options.seed
            lots = random.Random(seed)
            kind, isolation = lots.choice(options.kinds), lots.choice(options.isolation)
            rounds += 1
            folder = root / str(rounds)
            folder.mkdir()
            try:
                with fleet_of(kind, folder) as (fleet, faults):
                    fleet.write(SOURCE)
                    report = soak(
                        fleet, seed=seed, kills=options.each, isolation=isolation,
                        by_server=kind == "server", faults=faults, expected=expected, pause=0.4,
                    )  # fmt: skip
            except ChaosError as error:
                broken += 1
                print(f"BROKEN {kind} {isolation}: {error}\nIts files are in {folder}.", flush=True)
            else:
                struck.update(report.struck)
                print(
                    f"ok seed {seed} {kind} {isolation}: {report.kills} faults {report.struck}, "
                    f"{report.tasks} tasks begun {report.begun} times, {report.seconds:.0f} s",
                    flush=True,
                )
                shutil.rmtree(folder, ignore_errors=True)
        print(
            f"{struck.total()} faults in {rounds} runs and {time.monotonic() - began:.0f} s: "
            f"{dict(struck)}; {broken} runs with a broken promise"
        )
        return 1 if broken else 0
    finally:
        if not broken:
            shutil.rmtree(root, ignore_errors=True)


@contextlib.contextmanager
def fleet_of(kind: str, folder: Path) -> Iterator[tuple[Fleet, tuple[Fault, ...]]]:
    """Return a fleet with these services, and the faults for it."""
    metadata, queue = f"sqlite:///{folder}/metadata.db", f"sqlite:///{folder}/queue.db"
    with contextlib.ExitStack() as made:
        faults: tuple[Fault, ...] = FAULTS
        env: Mapping[str, str] = {"AFLOW_DATASTORE_SYSROOT_LOCAL": str(folder / "store")}
        if kind == "redis":
            (folder / "redis").mkdir()
            redis = redis_server(folder / "redis")
            made.callback(redis.kill)
            queue = f"redis://127.0.0.1:{redis.port}/0"
            faults = (*faults, Fault("broker", 2, lambda _: restarted(redis)))
        elif kind == "s3":
            (folder / "s3").mkdir()
            server = seaweed_server(folder / "s3")
            made.callback(server.kill)
            os.environ.update(ACCESS)
            bucket = S3Bucket(server)
            made.callback(bucket.close)
            proxy = made.enter_context(FaultyProxy(bucket.endpoint))
            env = in_bucket(bucket, proxy.url)
            faults = (*faults, Fault("store", 2, lambda machines: spoilt(proxy, machines)))
        fleet = Fleet(folder / "fleet", metadata, queue, **env)
        made.callback(fleet.close)
        yield fleet, faults


def in_bucket(bucket: S3Bucket, endpoint: str) -> Mapping[str, str]:
    """Return the settings that make the bucket behind this address the datastore."""
    return {
        "AFLOW_DEFAULT_DATASTORE": "s3",
        "AFLOW_DATASTORE_SYSROOT_S3": f"s3://{bucket.name}/team",
        "AFLOW_S3_ENDPOINT_URL": endpoint,
        **ACCESS,
    }


def restarted(server: Server) -> bool:
    """Kill the server, and restart it with its data on disk."""
    server.kill()
    server.start()
    return True


def spoilt(proxy: FaultyProxy, machines: Machines) -> bool:
    """Let the store throttle, fail, and lose responses for a moment."""
    kinds: tuple[Kind, ...] = ("answer", "reset", "lost", "cut", "dropped")
    proxy.faults = [OfS3(machines.rng.choice(kinds), chance=0.4)]
    machines.rest(machines.rng.uniform(0.2, 1.5))
    proxy.faults = []
    return True


if __name__ == "__main__":
    raise SystemExit(main())
