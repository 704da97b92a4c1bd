"""Inspects a run's machine: its snapshot, its history, and its internal consistency."""

from __future__ import annotations

from collections import Counter
from typing import Any

from aflow._core.wording import plural
from aflow.scheduler.board import Board
from aflow.scheduler.machine import RunMachine
from aflow.scheduler.messages import FinishRun, LaunchAttempt
from aflow.scheduler.states import TERMINAL_RUN_STATES, IllegalMove, RunState, TaskState
from aflow.scheduler.tasks import Branches, Group, Items, LiveStep, LiveTask

_SHOWN = 20  # tasks in a story


def queued(machine: RunMachine) -> list[LaunchAttempt]:
    """Return the live attempts that no executor has started, by task."""
    return [each for each in machine.live() if each.task not in handles(machine)]


def handles(machine: RunMachine) -> dict[int, str]:
    """Return the handles of the live attempts that have started, by task."""
    live = machine._board.live
    return {number: task.handle for number, task in live.items() if task.handle is not None}


def statistics(machine: RunMachine) -> dict[str, int]:
    """Return totals over all steps: the number of tasks `launched` and `finished` so far, of those
    that are `live`, `ready` and `waiting` now, and of `splits` in total and still `open`."""
    board = machine._board
    steps = board.steps.values()
    return {
        "launched": board.launched,
        "finished": sum(step.done + step.failed + step.cancelled for step in steps),
        "live": len(board.live),
        "ready": sum(step.ready for step in steps),
        "waiting": len(board.waiting),
        "splits": machine._splits,
        "open": len(_groups(board)),
    }


def snapshot(machine: RunMachine) -> tuple[Any, ...]:
    """Return the complete state of the machine as plain values, in a deterministic order."""
    board = machine._board
    waiting = sorted(board.waiting, key=lambda entry: entry[:2])
    return (
        (machine.state, machine.stopping, machine._cancelled, machine._splits),
        (
            board.limit,
            board.launched,
            board.reserved,
            board.pushed,
            tuple(_task(board.live[number]) for number in sorted(board.live)),
            tuple(map(_task, board.ready)),
            tuple(items.serial for items in board.cursors),
            tuple((at, serial, _task(task)) for at, serial, task in waiting),
            tuple(map(_step, board.steps.values())),
            tuple(_group(group) for _, group in sorted(_groups(board).items())),
        ),
    )


def _task(task: LiveTask) -> tuple[Any, ...]:
    return (
        task.step.name,
        None if task.group is None else task.group.serial,
        task.index,
        task.inputs,
        task.state,
        task.number,
        task.attempt,
        task.failures,
        task.losses,
        task.fallback,
        task.handle,
        task.has_reservation,
        None if task.stream is None else task.stream.serial,
    )


def _step(step: LiveStep) -> tuple[Any, ...]:
    parked = tuple(map(_task, step.parked))
    return (step.name, step.counts(), parked, tuple(each.serial for each in step.parked_items))


def _group(group: Group) -> tuple[Any, ...]:
    own = (group.next, group.known) if isinstance(group, Items) else tuple(group.last)
    outer = None if group.group is None else group.group.serial
    return (group.serial, group.task, outer, group.index, group.expected, group.arrived, own)


def _cursors(board: Board) -> list[Items]:
    parked = [items for step in board.steps.values() for items in step.parked_items]
    return board.cursors + parked


def _groups(board: Board) -> dict[int, Group]:
    """Return the open splits by serial: all that a task, a cursor or another open split is in."""
    found: dict[int, Group] = {}
    inside: list[Group | None] = [task.group for task in (*board.live.values(), *board.pending())]
    inside.extend(_cursors(board))
    inside.extend(task.stream for task in board.live.values())
    for group in inside:
        while group is not None and group.serial not in found:
            found[group.serial] = group
            group = group.group
    return found


def story(machine: RunMachine) -> str:
    """Return a summary of the run's state in some lines."""
    board, stop = machine._board, machine.stopping
    launched = plural(board.launched, "task")
    lines = [f"The run is {machine.state}; {launched} launched, {len(board.live)} live."]
    if stop is not None:
        lines.append(f"It stops with {stop}.")
    tasks = [*board.live.values(), *board.pending()]
    lines.extend(task.description() for task in tasks[:_SHOWN])
    if len(tasks) > _SHOWN:
        lines.append(f"... and {len(tasks) - _SHOWN} more.")
    lines.extend(
        f"split {group.serial} of task {group.task} ({group.step.name}): {group.arrived} of "
        f"{group.expected} at {group.join.name}"
        for group in list(_groups(board).values())[:_SHOWN]
    )
    return "\n".join(lines)


# ---------------------------------------------------------------------- invariants


def check_invariants(machine: RunMachine) -> None:
    """Check that the machine is consistent. Raises IllegalMove with the violation and the story.
    The time is proportional to the machine's state."""
    state, stop, board = machine.state, machine.stopping, machine._board
    broken = _bounds(board) or _tallies(board)
    if broken is None and (stop is not None or state is not RunState.RUNNING):
        broken = _ending(state, stop, board)
    elif broken is None:
        broken = _progress(board) or _tokens(board)
    if broken is not None:
        raise IllegalMove(f"{broken}\n{story(machine)}")


def _bounds(board: Board) -> str | None:
    if len(board.live) + board.reserved > board.limit:
        return (
            f"{len(board.live)} attempts are live and {board.reserved} places kept, but "
            f"{board.limit} are allowed."
        )
    for step in board.steps.values():
        if step.launched > step.bound:
            return f"{step.launched} attempts of {step.name} are live; its bound is {step.bound}."
    return None


def _tallies(board: Board) -> str | None:
    live = Counter(task.step.name for task in board.live.values())
    running = Counter(task.step.name for task in board.live.values() if task.handle is not None)
    waiting = Counter(task.step.name for _, _, task in board.waiting)
    pending = Counter(task.step.name for task in board.pending())
    for items in _cursors(board):
        pending[items.body.name] += items.known - items.next
    for name, step in board.steps.items():
        counted = (step.launched, step.running, step.waiting, step.ready + step.waiting)
        found = (live[name], running[name], waiting[name], pending[name])
        if counted != found:
            return f"Step {name} says (live, running, waiting, pending) {counted}, but has {found}."
    holding = sum(task.has_reservation for task in board.pending())
    if holding != board.reserved:
        return f"{board.reserved} places are kept, but {holding} tasks hold one."
    over = sum(step.done + step.failed + step.cancelled for step in board.steps.values())
    numbered = sum(1 for task in board.pending() if task.number)
    if over + len(board.live) + numbered != board.launched:
        return (
            f"{board.launched} tasks were launched, but {over} are over, {len(board.live)} live "
            f"and {numbered} to be tried again."
        )
    return _states(board)


def _states(board: Board) -> str | None:
    due = {id(task) for _, _, task in board.waiting}
    for number, task in board.live.items():
        if task.number != number or task.state is not TaskState.RUNNING or task.launch is None:
            return f"Live under {number}: {task.description()}."
    for task in board.pending():
        if task.state is not (TaskState.WAITING if id(task) in due else TaskState.READY):
            return f"Not where its state belongs: {task.description()}."
    return None


def _ending(state: RunState, stop: FinishRun | None, board: Board) -> str | None:
    if board.pending() or _cursors(board):
        return "Tasks are to start, but the run has not begun or is stopping."
    if state in TERMINAL_RUN_STATES and (board.live or stop is None or stop.state is not state):
        return "The run is over, but attempts are live or it ended in another way than it stopped."
    if stop is not None and not board.live and state not in TERMINAL_RUN_STATES:
        return "The run stops and nothing is live, but it is not over."
    return None


def _progress(board: Board) -> str | None:
    """Check that no task that could start is forgotten, and that the run can continue."""
    if any(task.has_reservation for task in board.ready):
        return "A member of a gang has its place, but was not launched."
    if len(board.live) + board.reserved < board.limit:
        waits = board.cursors and board.cursors[-1].gang and not board.cursors[-1].next
        if board.ready or (board.cursors and not waits):
            return "There is room, but tasks that are ready were not launched."
        for step in board.steps.values():
            if (step.parked or step.parked_items) and step.launched < step.bound:
                return f"Step {step.name} has room, but tasks of it are parked."
    for items in board.cursors:
        if items.gang and items.next:
            return "A gang has begun to start, and some of its members were not launched."
    if not board.live and not board.waiting:
        return "The run goes on, but nothing is live and nothing waits."
    return None


def _tokens(board: Board) -> str | None:
    """Check that every item and branch of each open split is pending, in progress or arrived."""
    groups = _groups(board)
    # A task that has opened a foreach is counted as the foreach.
    tokens = [each for each in (*board.live.values(), *board.pending()) if each.stream is None]
    inside = Counter(task.group.serial for task in tokens if task.group is not None)
    inside.update(group.group.serial for group in groups.values() if group.group is not None)
    for serial, group in groups.items():
        to_start = group.known - group.next if isinstance(group, Items) else 0
        parts = group.known if isinstance(group, Items) else group.expected
        if inside[serial] + to_start + group.arrived != parts:
            return (
                f"Split {serial} has {parts} parts, but {group.arrived} have arrived, "
                f"{inside[serial]} are on their way and {to_start} are to start."
            )
        if isinstance(group, Branches) and group.arrived != sum(map(bool, group.last)):
            return f"Split {serial} counts {group.arrived} arrivals, but knows {group.last}."
    roots = [task for task in tokens if task.group is None]
    if len(roots) + sum(group.group is None for group in groups.values()) != 1:
        return "The run has not exactly one token outside of all splits."
    return None
