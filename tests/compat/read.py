"""Reads runs with the client, for a test session; runs on both systems. Usage: read.py FLOW [ours]

For each line of stdin, a folder, it prints a line of JSON: the client's data of the latest run in
that folder, or null if there is none. A forked process reads each run, since importing everything
takes longer than reading.
"""

import json
import os
import sys

if len(sys.argv) > 2:  # ours: aflow's client, even if Metaflow is installed
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
