"""Test utilities: run a single step (`run_step`), and test flows under faults (`chaos`)."""

from aflow.testing.steps import StepResult, run_step

__all__ = ["StepResult", "run_step"]
