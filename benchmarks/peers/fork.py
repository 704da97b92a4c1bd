"""The lower bound for one process per task: fork and exit, two at a time, and nothing else.

python fork.py TASKS
"""

import os
import sys
import time


def main():
    tasks = int(sys.argv[1])
    began = time.perf_counter()
    live = 0
    for _ in range(tasks):
        if live == 2:
            os.wait()
            live -= 1
        if os.fork() == 0:
            os._exit(0)
        live += 1
    for _ in range(live):
        os.wait()
    print("run_seconds", time.perf_counter() - began)


if __name__ == "__main__":
    main()
