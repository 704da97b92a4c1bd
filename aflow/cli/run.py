"""`run` and `check`: all checks, then the run in the foreground."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aflow._core import ids
from aflow._core.ids import PARAMETERS_STEP
from aflow._core.process import binary, flush, is_terminal
from aflow._core.records import replace
from aflow._core.settings import FOLDER, SETTINGS, RunOptions, Settings
from aflow._core.version import __version__
from aflow.cli.checks import CodeCheck, check_graph
from aflow.cli.errors import show_frames
from aflow.cli.session import Session
from aflow.environments import asks
from aflow.errors import AflowError, InvalidInput, InvalidName
from aflow.executors.local import zygote_start
from aflow.executors.local.preload import imported_here
from aflow.flow.names import did_you_mean
from aflow.flow.parameters import ConvertedValue
from aflow.runs.create import parameter_values
from aflow.runs.events import LogLine, RunEnded, RunEvent, RunStarting, TaskEnded, TaskStarting
from aflow.scheduler.states import RunState
from aflow.storage.artifacts import Manifest
from aflow.task.program import request_of

if TYPE_CHECKING:
    from aflow.cli.run_log import Console
    from aflow.flow.definition import FlowDefinition


# Options of `run` that override a setting. `--namespace` is that of the run alone.
_OVERRIDES = SETTINGS.keys() - {"namespace"}

Origin = Callable[["FlowDefinition", Settings], dict[str, Any]]
"""Says which run is resumed, as fields of RunOptions."""


def check(session: Session, warnings: bool) -> None:
    """`check`: whether the flow can run; raises InvalidFlow where it cannot."""
    definition = session.define()
    settings = session.settings()
    _banner(session, definition, settings)
    enabled = session.wants_code_check
    with CodeCheck(definition.file, enabled=enabled, warnings=warnings) as code:
        decospecs = _decospecs(session, settings)
        check_graph(_with(definition, decospecs), session.note)
        code.finish(session.note)
    _note_cold(session, definition, decospecs)


def _note_cold(session: Session, definition: FlowDefinition, decospecs: Sequence[str]) -> None:
    """Say it where tasks would import by themselves what the flow's file imports."""
    imported = imported_here()
    if imported is None:
        return
    from aflow.executors.local.zygote_client import check_warm  # runs import it later

    note = check_warm(zygote_start.spawn_here(), request_of(definition, decospecs, imported))
    if note is not None:
        session.note(note)


def run(
    session: Session,
    given: Mapping[str, Any],
    *,
    runner_attribute_file: str | None = None,
    cache: bool = False,
    dry_run: bool = False,
    rebuild: bool = False,
    recover: str | None = None,
    forecast: str | None = None,
    origin: Origin | None = None,
    **rest: Any,
) -> int:
    """`run`, and `resume` with an `origin`: the exit code. `forecast` is a file for what a dry run
    finds. `given` are the parameters that were
    given, by attribute; of a run that is resumed those that are to change. `recover` is a run to go
    on with instead of a new one. `rest` are overrides of settings, and fields of RunOptions."""
    settings = session.settings(**{name: rest.pop(name) for name in _OVERRIDES & rest.keys()})
    if settings.executor == "local" and not dry_run:
        zygote_start.have_zygote()  # it gets ready while the flow is checked
    definition = session.define()
    with CodeCheck(definition.file, enabled=session.wants_code_check) as code:
        _banner(session, definition, settings)
        if not dry_run:
            _note_beginning(session, settings)
        decospecs = (*_decospecs(session, settings), *(("cache",) if cache else ()))
        definition = _with(definition, decospecs)
        check_graph(definition, session.note)
        _note_differences(session, definition, settings, decospecs)
        if recover is not None:
            values = {}  # they were recorded when the run began
        elif origin is None:
            values = _values(session, definition, settings, given)
        else:
            rest = {**rest, **origin(definition, settings)}
            if definition.config_values:
                found = _configs_of(definition, rest["origin_run"], settings)
                definition = _with(session.define(found), decospecs)
            values = {}
            if given:
                named = {name: definition.parameters[name] for name in given}
                asked = replace(definition, parameters=named)
                values = _values(session, asked, settings, given)
        options = _options(session, settings, decospecs, values, **rest)
        _check_debugged(definition, options)
        if any(step.decorator("resources") for step in definition.steps.values()):
            from aflow.executors.factory import resource_notes  # few flows ask for any

            for note in resource_notes(definition, options):
                session.note(note)
        _show_project(session, definition, settings)
        code.finish(session.note)
    if dry_run:
        from aflow.cli import explain
        from aflow.executors.factory import with_locks

        options = with_locks(definition, options, session.note)
        explain.dry_run(definition, options, settings, forecast)
        return 0
    if recover is None:
        options = _prepared(session, definition, options, rebuild=rebuild)
    ended, signum = _in_foreground(definition, options, settings, runner_attribute_file, recover)
    if options.clone_only:
        stopped = ended.state is RunState.CANCELLED and signum is None  # as --clone-only asks
        return 0 if stopped else _exit_code(ended, signum)
    return _with_hooks(definition, settings, ended, signum)


def _note_beginning(session: Session, settings: Settings) -> None:
    """Say what is about to be made here, if anything is."""
    what = "datastore" if settings.datastore == "local" else "metadata"
    if "local" in (settings.datastore, settings.metadata) and not settings.root.exists():
        here = " in current directory" if settings.root.parent == Path.cwd() else ""
        session.note(f"Creating local {what}{here} ({settings.root})")


def _note_differences(
    session: Session, definition: FlowDefinition, settings: Settings, decospecs: Sequence[str]
) -> None:
    """Say what this run does otherwise than the flow asks for, if anything."""
    if not any(step.decorators for step in definition.steps.values()) and not definition.decorators:
        return
    from aflow.executors.factory import in_jobs
    from aflow.runs.warnings import notes  # only for flows that ask for something

    jobs = in_jobs(definition, settings.executor, decospecs)
    for note in notes(definition, jobs, packages=settings.environment == "local"):
        session.note(note)


def _configs_of(definition: FlowDefinition, run: str, settings: Settings) -> dict[str, Any]:
    """The values of the flow's configs that an earlier run had, by attribute."""
    from aflow.client import Run
    from aflow.client.where import place_at

    place = place_at(settings.place)
    origin = Run(f"{definition.name}/{run}", _namespace_check=False, _place=place)
    known = definition.config_values or {}
    there = origin[PARAMETERS_STEP].task.artifacts
    found = {each.id: each.data for each in there if each.id in known}
    return {**known, **found}


def execute(
    session: Session,
    definition: FlowDefinition,
    settings: Settings,
    *,
    runner_attribute_file: str | None,
    **rest: Any,
) -> int:
    """Run one step of a flow that has been checked, as the options `rest` say: the exit code."""
    options = _options(session, settings, (), {}, tags=(), fail_fast=False, **rest)
    _show_project(session, definition, settings)
    options = _prepared(session, definition, options)
    return _exit_code(*_in_foreground(definition, options, settings, runner_attribute_file))


def _prepared(
    session: Session, definition: FlowDefinition, options: RunOptions, *, rebuild: bool = False
) -> RunOptions:
    """The options with the environments of the steps, which are solved and built before the run
    begins; that is shown while it goes on."""
    if not asks(definition, options.environment):
        return options
    from aflow.executors.factory import built_here, with_locks

    options = with_locks(definition, options, session.note, rebuild=rebuild)
    built_here(definition, options, session.note, rebuild=rebuild)
    return options


def _in_foreground(
    definition: FlowDefinition,
    options: RunOptions,
    settings: Settings,
    attribute_file: str | None,
    recover: str | None = None,
) -> tuple[RunEnded, int | None]:
    from aflow.cli import foreground  # what is only checked needs none of it

    with _console(definition, options, settings) as console:
        watch = _watched(console, options.debug_step, attribute_file, settings)
        ended, signum = foreground.run(definition, options, settings, watch, recover)
    if console.tally is not None and options.spin is None:
        if ended.state is RunState.FAILED:
            _show_failure(f"{definition.name}/{ended.run}", ended, settings)
        console.conclude(ended, _where_to_look(definition, options, settings, ended))
    return ended, signum


@contextmanager
def _console(
    definition: FlowDefinition, options: RunOptions, settings: Settings
) -> Iterator[Console]:
    """What shows the run: with bars, if this is a terminal on which they can be drawn."""
    from aflow.cli.run_log import Above, Console

    terminal = is_terminal(sys.stdout)
    colors = terminal and not settings.no_color
    flush(sys.stdout)
    given: dict[str, Any] = {}
    if terminal:
        from aflow.cli.progress import ASCII, UNICODE, ProgressBars, Tally

        signs = UNICODE if _takes(sys.stdout, "".join(UNICODE)) else ASCII
        tally = Tally(definition.graph)
        given = {"tally": tally, "signs": signs}
        if settings.progress:
            waits_for = _waits_for(definition, settings)
            given["bars"] = ProgressBars(tally, colors=colors, signs=signs, waits_for=waits_for)
    console = Console(
        binary(sys.stdout), flow=definition.name, colors=colors, ui_url=settings.ui_url, **given
    )
    stderr = sys.stderr
    is_shared = "bars" in given and is_terminal(stderr)
    if is_shared:
        sys.stderr = Above(console, stderr)
    try:
        yield console
    finally:
        console.close()
        if is_shared:
            sys.stderr = stderr


def _takes(stream: Any, text: str) -> bool:
    """Whether the stream can be given these characters."""
    try:
        text.encode(getattr(stream, "encoding", None) or "ascii")
    except (UnicodeError, LookupError):
        return False
    return True


_WAITS_FOR = {
    "batch": "a job of AWS Batch",
    "kubernetes": "a job of Kubernetes",
    "queue": "a worker",
    "slurm": "a job of Slurm",
}


def _waits_for(definition: FlowDefinition, settings: Settings) -> str:
    """What tasks wait for that have not begun, though they could."""
    if settings.executor in _WAITS_FOR:
        return _WAITS_FOR[settings.executor]
    slot = f"a slot (--max-workers {settings.max_workers})"
    asks = any(step.decorator("resources") for step in definition.steps.values())
    return f"{slot} or for resources" if asks else slot


def _show_failure(run: str, ended: RunEnded, settings: Settings) -> None:
    """Show where in the user's code the task that failed has done so, where that is recorded."""
    if ended.task is None:
        return
    from aflow.metadata.factory import open_metadata

    try:
        url = settings.metadata_url
        with closing(open_metadata(url, settings.durability, read_only=True)) as metadata:
            record = metadata.run(*run.split("/"))
            view = None if record is None else metadata.task(record.key, ended.task)
        data = view.attempt.manifest if view is not None and view.attempt is not None else None
        error = Manifest.decode(data).error if data else None
    except AflowError:  # the reason of the failure was printed: this only adds its place
        return
    if error:
        show_frames(str(error.get("traceback", "")))


def _where_to_look(
    definition: FlowDefinition, options: RunOptions, settings: Settings, ended: RunEnded
) -> str:
    """The link or the command by which to see more of a run that has ended."""
    run = f"{definition.name}/{ended.run}"
    if settings.ui_url and ended.state is not RunState.CANCELLED:
        return f"{settings.ui_url.rstrip('/')}/{run}"
    if ended.state is RunState.CANCELLED:
        return f"aflow resume {shlex.quote(options.script)}"
    if ended.state is RunState.FAILED and ended.step is not None:
        return f"aflow logs {run}/{ended.step}/{ended.task}"
    return f"aflow ui {run}"


def _with_hooks(
    definition: FlowDefinition, settings: Settings, ended: RunEnded, signum: int | None
) -> int:
    """Call the exit hooks, if there are any; the exit code of the run, which they do not change."""
    if definition.flow_decorators("exit_hook"):
        import click  # see plain.py

        from aflow.runs.exit_hooks import run_hooks  # few flows have some

        run_hooks(
            definition,
            f"{definition.name}/{ended.run}",
            succeeded=ended.state is RunState.SUCCEEDED,
            metadata_url=settings.metadata_url,
            log=lambda text: click.echo(text, err=True),
        )
    return _exit_code(ended, signum)


def _with(definition: FlowDefinition, decospecs: Sequence[str]) -> FlowDefinition:
    """The flow with the decorators from outside, if there are any."""
    if not decospecs:
        return definition
    from aflow.flow.decorators.attach import attach

    return attach(definition, decospecs)


def _exit_code(ended: RunEnded, signum: int | None) -> int:
    if ended.state is RunState.SUCCEEDED:
        return 0
    return 1 if signum is None else 128 + signum


def _banner(session: Session, definition: FlowDefinition, settings: Settings) -> None:
    banner = f"aflow {__version__} executing {definition.name} for user:{settings.user}"
    session.note(banner, magenta=not settings.no_color)


def _show_project(session: Session, definition: FlowDefinition, settings: Settings) -> None:
    """Say where in its project the run stands; raises InvalidInput for a branch that cannot be."""
    if definition.project is not None:
        top = session.top
        place = definition.project.place(
            definition.name, settings.user, top["branch"], top["production"]
        )
        session.note(f"Project: {place['project_name']}, Branch: {place['branch_name']}")


def _decospecs(session: Session, settings: Settings) -> tuple[str, ...]:
    return (*session.top["with_"], *settings.default_decospecs)


# ------------------------------------------------------------ what the run is started with


def _options(
    session: Session,
    settings: Settings,
    decospecs: tuple[str, ...],
    values: dict[str, Any],
    *,
    tags: Sequence[str] = (),
    fail_fast: bool = False,
    run_id_file: str | None = None,
    namespace: str | None = None,
    **resumed: Any,
) -> RunOptions:
    return RunOptions.of(
        settings,
        parameters=values,
        tags=tags,
        fail_fast=fail_fast,
        decospecs=decospecs,
        run_id_file=_writable(run_id_file),
        namespace=namespace,
        script=session.script,
        branch=session.top["branch"],
        production=session.top["production"],
        trigger=session.top["trigger"],
        argv=session.argv,
        **resumed,
    )


def _values(
    session: Session, definition: FlowDefinition, settings: Settings, given: Mapping[str, Any]
) -> dict[str, Any]:
    """The values of all parameters, which the run that begins takes as they are."""
    values = parameter_values(
        definition,
        given,
        user=settings.user,
        ds_type=settings.datastore,
        branch=session.top["branch"],
        production=session.top["production"],
        show=_show,
    )
    return {attribute: ConvertedValue(value) for attribute, value in values.items()}


def _show(text: str) -> None:
    """Show what a default that is computed has to say."""
    import click  # see plain.py

    click.echo(text)


def name_of_run(run_id: str | None) -> str | None:
    """Return the id that a new run is to have.

    Args:
        run_id: The id that was asked for; None for a new one.

    Raises:
        InvalidName: For one that it cannot have.
    """
    if run_id is None:
        return None
    if run_id.isdigit():
        raise InvalidName(f"{run_id!r} cannot be given as a run's id: it must not be a number.")
    return ids.run_id(run_id)


def _writable(file: str | None) -> Path | None:
    """The path, if its folder exists: else the error comes before the run, not in the midst."""
    if file is None:
        return None
    path = Path(file)
    if not path.parent.is_dir():
        from click import BadParameter  # see plain.py

        raise BadParameter(f"There is no folder {path.parent} to write {path.name} in.")
    return path


# ------------------------------------------------------------ what watches the run


def _check_debugged(definition: FlowDefinition, options: RunOptions) -> None:
    """Raises InvalidInput for a step to be debugged that is not there, or does not run here."""
    step = options.debug_step
    if step is None:
        return
    if step not in definition.steps:
        raise InvalidInput(
            f"--debug: {definition.name} has no step {step!r}."
            f"{did_you_mean(step, definition.steps)} "
            f"Its steps are: {', '.join(definition.steps)}."
        )
    from aflow.executors.factory import locations  # few runs are debugged

    if locations(definition, options)[step] != "local":
        raise InvalidInput(
            f"--debug {step}: this step does not run here, and the terminal is here. Run the flow "
            "without workers and jobs for that."
        )


def _watched(
    console: Console, debug_step: str | None, attribute_file: str | None, settings: Settings
) -> Callable[[Sequence[RunEvent]], None]:
    """The callback that receives the events of the run."""
    path = _writable(attribute_file)
    shown: Callable[[Sequence[RunEvent]], None] = console.watch
    if debug_step is not None and is_terminal(sys.stdout) and sys.stdin.isatty():
        shown = _without_debugged(debug_step, console)
    return shown if path is None else _also_writing(path, settings, shown)


def _without_debugged(step: str, console: Console) -> Callable[[Sequence[RunEvent]], None]:
    """Leave the terminal to the task that has it: what others print comes when it has ended."""
    held: list[RunEvent] = []
    has_it = False

    def watch_events(events: Sequence[RunEvent]) -> None:
        nonlocal has_it
        for event in events:
            if isinstance(event, LogLine) and event.step == step:
                continue  # the task has written it to the terminal itself
            if isinstance(event, TaskEnded) and event.step == step:
                has_it = False
            if isinstance(event, RunEnded):
                has_it = False
            held.append(event)
            if isinstance(event, TaskStarting) and event.step == step:
                console.watch(held)
                console.pause()
                held.clear()
                has_it = True
        if not has_it and held:
            console.go_on()
            console.watch(held)
            held.clear()

    return watch_events


def announcement(flow: str, run: str, settings: Settings) -> str:
    """Return what the program that has started this one reads of the run, as JSON: its id, and the
    metadata where it is recorded.

    Args:
        flow: The name of the flow.
        run: The id of the run, which is recorded by now.
        settings: The settings, which say where the run is recorded.
    """
    import json

    place = settings.place
    if settings.metadata == "local":  # the folder that has the `.aflow`, or one of another name
        is_usual = settings.root.name == FOLDER
        place = f"local@{settings.root.parent if is_usual else settings.root}"
    return json.dumps({"run_id": run, "flow_name": flow, "metadata": place})


def _also_writing(
    path: Path, settings: Settings, watch: Callable[[Sequence[RunEvent]], None]
) -> Callable[[Sequence[RunEvent]], None]:
    """Announce the run as soon as it is recorded."""

    def watch_events(events: Sequence[RunEvent]) -> None:
        for event in events:
            if type(event) is RunStarting:
                path.write_text(announcement(event.flow, event.run, settings), encoding="utf-8")
        watch(events)

    return watch_events
