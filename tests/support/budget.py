"""The time budget of a test, and the tests that exceeded it.

No test fails because of its duration, since all tests are slow on a busy machine: the session lists
those above the budget at its end.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable

import pytest

BUDGET = 60.0  # seconds; on an idle machine the slowest test takes about half of it


def over_budget(reports: Iterable[pytest.TestReport], budget: float = BUDGET) -> list[str]:
    """Return a line for each test that exceeded its budget, the slowest first.

    Args:
        reports: The reports of all phases of all tests.
        budget: The maximum seconds of setup, call and teardown of a test in total.
    """
    tests: dict[str, list[pytest.TestReport]] = defaultdict(list)
    for report in reports:
        # pytest-xdist appends @GROUP to the name.
        tests[re.sub(r"@\w+$", "", report.nodeid)].append(report)
    took = {name: sum(phase.duration for phase in phases) for name, phases in tests.items()}
    lines = []
    for name in sorted(took, key=lambda name: -took[name]):
        if took[name] > budget:
            phases = ", ".join(
                f"{each.when} {each.duration:.0f}" for each in tests[name] if each.duration >= 0.5
            )
            lines.append(f"{took[name]:.0f} s ({phases})  {name}")
    return lines
