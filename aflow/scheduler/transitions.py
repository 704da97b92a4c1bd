"""Whether a step went where the graph lets it go.

The runner checks this too and says it better; but what it reports may come from another machine and
another version of the code, and a wrong transition would corrupt the run.
"""

from __future__ import annotations

from aflow.flow.graph import Kind
from aflow.scheduler.messages import Transition
from aflow.scheduler.tasks import Step, Task

FAN_OUT = frozenset({Kind.FOREACH, Kind.PARALLEL})


def disagreement(
    task: Task, transition: Transition | None, max_num_splits: int, max_workers: int
) -> str | None:
    """A sentence that says what is wrong with a transition of this task; None if it can be
    followed."""
    step = task.step
    if transition is None:
        return f"Step {step.name} succeeded without saying which steps follow it."
    if not _agrees(step, transition):
        return _story(step, transition)
    if step.kind is Kind.PARALLEL:
        return _too_large(step, transition.count, max_workers)
    if task.stream is not None and (transition.count or 0) < task.stream.known:
        return (
            f"Foreach in step {step.name} has {transition.count} items, but tasks for "
            f"{task.stream.known} have begun."
        )
    if step.kind in FAN_OUT:
        return _too_many(step, transition.count, max_num_splits)
    if step.kind is Kind.END:
        if task.group is not None:
            return (
                f"Step {step.name} ends the flow inside the split that step "
                f"{task.group.step.name} opened."
            )
    elif step.kind is not Kind.SPLIT:
        target = following(step, transition)
        if target.is_join and (task.group is None or task.group.join is not target):
            return (
                f"Step {step.name} leads into the join {target.name}, but no split that "
                f"{target.name} closes is open there."
            )
    return None


def _too_large(step: Step, count: int | None, max_workers: int) -> str | None:
    if count is None or count <= min(max_workers, step.targets[0].bound):
        return None
    if count > max_workers:
        return (
            f"Step {step.name} starts a gang of {count} members, which all run at once, and only "
            f"{max_workers} tasks may: start the run with --max-workers {count}."
        )
    return (
        f"Step {step.name} starts a gang of {count} members, which all run at once, and only "
        f"{step.targets[0].bound} tasks of {step.targets[0].name} may."
    )


def following(step: Step, transition: Transition) -> Step:
    """The one step that follows a linear step or a switch."""
    return step.targets[0 if step.kind is Kind.LINEAR else step.next.index(transition.steps[0])]


def _agrees(step: Step, transition: Transition) -> bool:
    if step.kind is Kind.SWITCH:
        if len(transition.steps) != 1 or transition.steps[0] not in step.next:
            return False
    elif transition.steps != step.next:
        return False
    if step.kind in FAN_OUT:
        return type(transition.count) is int and transition.count >= 0
    return transition.count is None


def _story(step: Step, transition: Transition) -> str:
    went = ", ".join(map(str, transition.steps)) or "nowhere"
    items = "" if transition.count is None else f" (for {transition.count!r} items)"
    may = (" or " if step.kind is Kind.SWITCH else ", ").join(step.next) or "nowhere"
    items_too = " for each item" if step.kind in FAN_OUT else ""
    return (
        f"Step {step.name} went to {went}{items}, but by the graph of the flow it goes to "
        f"{may}{items_too}."
    )


def _too_many(step: Step, count: int | None, limit: int) -> str | None:
    if step.kind is not Kind.FOREACH or count is None or count <= limit:
        return None
    return (
        f"Foreach in step {step.name} yielded {count} child steps which is more than the current "
        f"maximum of {limit} children. You can raise the maximum with the --max-num-splits option."
    )
