"""How long one test may take, and which tests took longer.

No test fails for its duration, since a busy machine makes every test slow: the session names those
above the budget at its end.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable

import pytest

BUDGET = 60.0  # seconds; on a quiet machine the slowest test takes about half


def over_budget(reports: Iterable[pytest.TestReport], budget: float = BUDGET) -> list[str]:
    """Return a line for each test that took longer than its budget, the slowest first.

    Args:
        reports: The reports of all phases of all tests.
        budget: The seconds that setup, call and teardown of a test may take together.
    """
    tests: dict[str, list[pytest.TestReport]] = defaultdict(list)
    for report in reports:
        # pytest-xdist adds @GROUP to the name.
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
