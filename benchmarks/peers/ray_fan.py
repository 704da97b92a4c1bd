"""The foreach with Ray: two worker processes, in memory.

python ray_fan.py TASKS
"""

import sys
import time

import ray


def main():
    tasks = int(sys.argv[1])
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)

    @ray.remote
    def square(x):
        return x * x

    ray.get([square.remote(i) for i in range(4)])  # wait until the workers have started
    began = time.perf_counter()
    total = sum(ray.get([square.remote(i) for i in range(tasks)]))
    print("run_seconds", time.perf_counter() - began)
    assert total == sum(x * x for x in range(tasks))


if __name__ == "__main__":
    main()
