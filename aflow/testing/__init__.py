"""For tests: one step as a function (`run_step`), and flows under kills and faults (`chaos`)."""

from aflow.testing.steps import StepResult, run_step

__all__ = ["StepResult", "run_step"]
