"""The lower bound for waiting coroutines: asyncio alone, nothing stored.

python asyncio_waiting.py TASKS
"""

import asyncio
import sys
import time


async def main():
    tasks = int(sys.argv[1])
    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for _ in range(tasks):
            group.create_task(asyncio.sleep(1))
    print("run_seconds", time.perf_counter() - began)


if __name__ == "__main__":
    asyncio.run(main())
