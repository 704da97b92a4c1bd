"""The foreach with Dask distributed: two worker processes with one thread each.

python dask_fan.py TASKS
"""

import sys
import time


def square(x):
    return x * x


if __name__ == "__main__":
    from dask.distributed import Client, LocalCluster

    tasks = int(sys.argv[1])
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        began = time.perf_counter()
        total = sum(client.gather(client.map(square, range(tasks), pure=False)))
        print("run_seconds", time.perf_counter() - began)
        assert total == sum(x * x for x in range(tasks))
