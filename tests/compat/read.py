"""Reads runs with the client, for a test session; runs on both. Usage: read.py FLOW [ours]

For each line of its input, a folder, it prints a line: what the client says of the latest run
there, as JSON, or null where it is not available. Each is read by a process of its own, which has
imported everything already: that takes longer than to read.
"""

import json
import os
import sys

if len(sys.argv) > 2:  # ours: where Metaflow is installed, too
    from aflow.compat import metaflow

    metaflow.install()

from metaflow import Flow, namespace

INTERNAL = {"name", "script_name"}


def shown(value):
    if "Wrapper" in type(value).__name__ or isinstance(value, BaseException):
        return "an exception"  # their texts hold the paths of files
    return repr(value) if not isinstance(value, set) else repr(sorted(value))


def read():
    namespace(None)
    run = Flow(sys.argv[1]).latest_run
    found = {"finished": run.finished, "successful": run.successful, "steps": {}}
    for step in run:
        tasks = []
        for task in step:
            artifacts = {
                each.id: shown(each.data)
                for each in task.artifacts
                if not each.id.startswith("_") and each.id not in INTERNAL
            }
            tasks.append({"artifacts": artifacts, "ok": task.successful, "out": task.stdout})
        found["steps"][step.id] = sorted(tasks, key=lambda task: json.dumps(task, sort_keys=True))
    print(json.dumps(found), flush=True)


def main():
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            os.chdir(line.rstrip("\n"))
            read()
            os._exit(0)
        if os.waitpid(child, 0)[1] != 0:
            print("null", flush=True)


main()
