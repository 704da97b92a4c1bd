"""Read the results of the runs of EstimateFlow, as in a notebook."""

from aflow import Flow

for run in Flow("EstimateFlow"):
    if run.successful:
        took = (run.finished_at - run.created_at).total_seconds()
        print(f"run {run.id}: {run.data.samples} samples, {took:.1f} s, {run.data.estimates}")

latest = Flow("EstimateFlow").latest_successful_run
for step in latest:
    print(step.id, [task.id for task in step])
