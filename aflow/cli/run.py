"""`run` and `check`: check the flow, then run it in the foreground."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
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
from aflow.runs.events import LogLine, RunEnded, RunEvent, TaskEnded, TaskStarting
from aflow.scheduler.states import RunState
from aflow.storage.artifacts import Manifest
from aflow.task.program import request_of

if TYPE_CHECKING:
    from aflow.cli.run_log import Console
    from aflow.flow.definition import FlowDefinition


# Options of `run` that override a setting; not `--namespace`, which is only that of the run.
_OVERRIDES = SETTINGS.keys() - {"namespace"}

Origin = Callable[["FlowDefinition", Settings], dict[str, Any]]
"""Returns the fields of RunOptions that describe the resumed run."""


def check(session: Session, warnings: bool) -> None:
    """`check`: check whether the flow can run; raises InvalidFlow if it cannot."""
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
    """Warn if every task will import the libraries of the flow's file itself."""
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
    run_id_file: str | None = None,
    runner_attribute_file: str | None = None,
    cache: bool = False,
    dry_run: bool = False,
    rebuild: bool = False,
    recover: str | None = None,
    forecast: str | None = None,
    origin: Origin | None = None,
    **rest: Any,
) -> int:
    """`run`, and `resume` with an `origin`. Returns the exit code.

    `forecast` is a file for the result of a dry run. `given` are the given parameters, by
    attribute; for `resume` those to change. `recover` is a run to continue instead of starting one.
    `rest` are overrides of settings, and fields of RunOptions."""
    settings = session.settings(**{name: rest.pop(name) for name in _OVERRIDES & rest.keys()})
    if settings.executor == "local" and not dry_run:
        zygote_start.have_zygote()  # it starts while the flow is checked
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
            values = {}  # recorded when the run was started
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
        announce = _announcer(definition.name, settings, run_id_file, runner_attribute_file)
        _check_debugged(definition, options)
        if any(step.decorator("resources") for step in definition.steps.values()):
            from aflow.executors.factory import resource_notes  # few flows have resources

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
    ended, signum = _in_foreground(definition, options, settings, announce, recover)
    if options.clone_only:
        stopped = ended.state is RunState.CANCELLED and signum is None  # by --clone-only itself
        return 0 if stopped else _exit_code(ended, signum)
    return _with_hooks(definition, settings, ended, signum)


def _note_beginning(session: Session, settings: Settings) -> None:
    """Report which local store is about to be created, if any."""
    what = "datastore" if settings.datastore == "local" else "metadata"
    if "local" in (settings.datastore, settings.metadata) and not settings.root.exists():
        here = " in current directory" if settings.root.parent == Path.cwd() else ""
        session.note(f"Creating local {what}{here} ({settings.root})")


def _note_differences(
    session: Session, definition: FlowDefinition, settings: Settings, decospecs: Sequence[str]
) -> None:
    """Report the differences between the decorators of the flow and this run."""
    if not any(step.decorators for step in definition.steps.values()) and not definition.decorators:
        return
    from aflow.executors.factory import in_jobs
    from aflow.runs.warnings import notes  # only for flows with decorators

    jobs = in_jobs(definition, settings.executor, decospecs)
    for note in notes(definition, jobs, packages=settings.environment == "local"):
        session.note(note)


def _configs_of(definition: FlowDefinition, run: str, settings: Settings) -> dict[str, Any]:
    """Return the values of the flow's configs in an earlier run, by attribute."""
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
    run_id_file: str | None,
    runner_attribute_file: str | None,
    **rest: Any,
) -> int:
    """Run one step of a checked flow with the options `rest`. Returns the exit code."""
    options = _options(session, settings, (), {}, **rest)
    _show_project(session, definition, settings)
    announce = _announcer(definition.name, settings, run_id_file, runner_attribute_file)
    options = _prepared(session, definition, options)
    return _exit_code(*_in_foreground(definition, options, settings, announce))


def _prepared(
    session: Session, definition: FlowDefinition, options: RunOptions, *, rebuild: bool = False
) -> RunOptions:
    """Return the options with the environments of the steps, which are resolved and built before
    the run starts; shows the progress."""
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
    announce: Callable[[str], None] | None,
    recover: str | None = None,
) -> tuple[RunEnded, int | None]:
    from aflow.cli import foreground  # not needed by `check`

    with _console(definition, options, settings) as console:
        watch = _watched(console, options.debug_step)
        ended, signum = foreground.run(definition, options, settings, watch, announce, recover)
    if console.tally is not None and options.spin is None:
        if ended.state is RunState.FAILED:
            _show_failure(f"{definition.name}/{ended.run}", ended, settings)
        console.conclude(ended, _where_to_look(definition, options, settings, ended))
    return ended, signum


@contextmanager
def _console(
    definition: FlowDefinition, options: RunOptions, settings: Settings
) -> Iterator[Console]:
    """Yield the console that shows the run; it has progress bars if stdout is a suitable
    terminal."""
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
        console.pause()
        if is_shared:
            sys.stderr = stderr


def _takes(stream: Any, text: str) -> bool:
    """Return whether the encoding of the stream has these characters."""
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
    """Return what tasks that are ready but have not started wait for."""
    if settings.executor in _WAITS_FOR:
        return _WAITS_FOR[settings.executor]
    slot = f"a slot (--max-workers {settings.max_workers})"
    asks = any(step.decorator("resources") for step in definition.steps.values())
    return f"{slot} or for resources" if asks else slot


def _show_failure(run: str, ended: RunEnded, settings: Settings) -> None:
    """Show where the failed task raised in the user's code, if that is recorded."""
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
    except AflowError:  # the reason was printed already: this only adds the location
        return
    if error:
        show_frames(str(error.get("traceback", "")))


def _where_to_look(
    definition: FlowDefinition, options: RunOptions, settings: Settings, ended: RunEnded
) -> str:
    """Return a link or a command that shows more about a run that has ended."""
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
    """Call the exit hooks, if there are any. Returns the exit code of the run, which they do not
    change."""
    if definition.flow_decorators("exit_hook"):
        import click  # see plain.py

        from aflow.runs.exit_hooks import run_hooks  # few flows have hooks

        run_hooks(
            definition,
            f"{definition.name}/{ended.run}",
            succeeded=ended.state is RunState.SUCCEEDED,
            metadata_url=settings.metadata_url,
            log=lambda text: click.echo(text, err=True),
        )
    return _exit_code(ended, signum)


def _with(definition: FlowDefinition, decospecs: Sequence[str]) -> FlowDefinition:
    """Return the flow with additional decorators, if there are any."""
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
    """Report the project branch of the run; raises InvalidInput if it is not valid."""
    if definition.project is not None:
        top = session.top
        place = definition.project.place(
            definition.name, settings.user, top["branch"], top["production"]
        )
        session.note(f"Project: {place['project_name']}, Branch: {place['branch_name']}")


def _decospecs(session: Session, settings: Settings) -> tuple[str, ...]:
    return (*session.top["with_"], *settings.default_decospecs)


# ------------------------------------------------------------ options of the run


def _options(
    session: Session,
    settings: Settings,
    decospecs: tuple[str, ...],
    values: dict[str, Any],
    **rest: Any,
) -> RunOptions:
    return RunOptions.of(
        settings,
        parameters=values,
        decospecs=decospecs,
        script=session.script,
        branch=session.top["branch"],
        production=session.top["production"],
        trigger=session.top["trigger"],
        argv=session.argv,
        **rest,
    )


def _values(
    session: Session, definition: FlowDefinition, settings: Settings, given: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the values of all parameters, converted, for the new run."""
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
    """Print the output of a default that is computed."""
    import click  # see plain.py

    click.echo(text)


def name_of_run(run_id: str | None) -> str | None:
    """Return the id of the new run after checking it.

    Args:
        run_id: The id that was given; None to generate one.

    Raises:
        InvalidName: If the id is not allowed.
    """
    if run_id is None:
        return None
    if run_id.isdigit():
        raise InvalidName(f"{run_id!r} cannot be given as a run's id: it must not be a number.")
    return ids.run_id(run_id)


def _announcer(
    flow: str, settings: Settings, run_id_file: str | None, attribute_file: str | None
) -> Callable[[str], None] | None:
    """Return the function that announces the run when it is recorded; None if there are no files.
    Raises a usage error now, not during the run, if a folder does not exist."""
    files = [Path(each) for each in (run_id_file, attribute_file) if each is not None]
    for path in files:
        if not path.parent.is_dir():
            from click import BadParameter  # see plain.py

            raise BadParameter(f"There is no folder {path.parent} to write {path.name} in.")
    return partial(announce, flow, settings, run_id_file, attribute_file) if files else None


def announce(
    flow: str, settings: Settings, run_id_file: str | None, attribute_file: str | None, run: str
) -> None:
    """Write files about a run that has been recorded, for the program that has started this one.

    Args:
        flow: The name of the flow.
        settings: The settings, which have the metadata.
        run_id_file: The file for the id of the run; None for none.
        attribute_file: The file for the id, the flow and the metadata, as JSON; None for none.
        run: The id of the run.

    Raises:
        StorageError: If a file cannot be written.
    """
    import json

    from aflow.cli.options import write_file  # see plain.py

    place = settings.place
    if settings.metadata == "local":  # the folder that contains `.aflow`, or one with another name
        is_usual = settings.root.name == FOLDER
        place = f"local@{settings.root.parent if is_usual else settings.root}"
    if run_id_file is not None:
        write_file(run_id_file, run)
    if attribute_file is not None:
        facts = {"run_id": run, "flow_name": flow, "metadata": place}
        write_file(attribute_file, json.dumps(facts))


# ------------------------------------------------------------ events of the run


def _check_debugged(definition: FlowDefinition, options: RunOptions) -> None:
    """Raise InvalidInput if the step to debug does not exist, or does not run on this machine."""
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


def _watched(console: Console, debug_step: str | None) -> Callable[[Sequence[RunEvent]], None]:
    """Return the callback that receives the events of the run."""
    if debug_step is not None and is_terminal(sys.stdout) and is_terminal(sys.stdin):
        return _without_debugged(debug_step, console)
    return console.watch


def _without_debugged(step: str, console: Console) -> Callable[[Sequence[RunEvent]], None]:
    """Leave the terminal to the task that is debugged; buffer other output until it has ended."""
    held: list[RunEvent] = []
    has_it = False

    def watch_events(events: Sequence[RunEvent]) -> None:
        nonlocal has_it
        for event in events:
            if isinstance(event, LogLine) and event.step == step:
                continue  # the task has written it directly to the terminal
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
