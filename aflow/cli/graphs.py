"""`show`, `output-dot`, `output-raw`: print the graph of a flow, for users and programs."""

from __future__ import annotations

import inspect

import click

from aflow.cli.errors import printable
from aflow.cli.options import flag
from aflow.cli.session import Session
from aflow.flow.decorators.base import FlowDecorator
from aflow.flow.graph import Graph, Kind, Node, in_order


def show(session: Session) -> None:
    """Print the flow's docstring, then each step with its docstring and its next steps."""
    definition = session.define()
    graph = definition.graph
    if graph.doc:
        click.echo(printable(f"\n{inspect.cleandoc(graph.doc)}"))
    for decorator in definition.decorators:
        click.echo(printable(f"\n{_written(decorator)}"))
    for node in _nodes(graph):
        click.echo()
        for each in definition.steps[node.name].decorators:
            click.echo(f"@{each.decorator_name}")
        click.echo(f"Step {click.style(node.name, bold=True)}")
        for line in inspect.cleandoc(node.doc or "?").splitlines():
            click.echo(printable(f"    {line}".rstrip()))
        if node.next:
            click.echo(printable(f"    => {', '.join(_labelled(node))}"))
    click.echo()


def _written(decorator: FlowDecorator) -> str:
    """Return the decorator as in the source code, without empty options."""
    options = decorator.as_dict()["options"].items()
    written = ", ".join(f"{key}={each!r}" for key, each in options if each)
    return f"@{decorator.decorator_name}({written})"


def _labelled(node: Node) -> list[str]:
    """Return the next steps, each with its condition."""
    if node.kind is Kind.FOREACH:
        return [f"{step} (foreach {node.foreach})" for step in node.next]
    if node.kind is Kind.PARALLEL:
        return [f"{step} (num_parallel)" for step in node.next]
    if node.kind is Kind.SWITCH:
        return [f"{step} ({node.condition} is {case})" for case, step in node.cases]
    return list(node.next)


def _nodes(graph: Graph) -> list[Node]:
    """Return the nodes in topological order from the start; unreachable nodes come last."""
    reached = in_order(graph.nodes, graph.start)
    return [graph[name] for name in dict.fromkeys((*reached, *graph.nodes))]


def output_dot(session: Session) -> None:
    """Print the graph in the language of graphviz."""
    graph = session.define().graph
    click.echo(f"digraph {graph.flow} {{")
    click.echo("  rankdir=LR;")
    for node in _nodes(graph):
        kind = f"{node.kind.value} join" if node.is_join else node.kind.value
        click.echo(
            f'  "{node.name}" [label=<<b>{node.name}</b><br/><font point-size="10">{kind}</font>>'
            ' fontname="Helvetica" shape="record"];'
        )
    for node in _nodes(graph):
        for step in node.next:
            click.echo(f'  "{node.name}" -> "{step}";')
    click.echo("}")


def output_raw_parameters() -> list[click.Parameter]:
    """Return the options of `output-raw`."""
    return [flag("--json", "as_json", help="Print JSON.")]


def output_raw(session: Session, as_json: bool) -> None:
    """Print the graph, one line per step, or as the JSON that is stored with runs."""
    definition = session.define()
    graph = definition.graph
    if as_json:
        import json

        decorators = [each.as_dict() for each in definition.decorators]
        click.echo(json.dumps({**graph.as_dict(), "decorators": decorators}, indent=2))
        return
    for node in _nodes(graph):
        facts = [f"kind={node.kind.value}"]
        facts += ["join"] if node.is_join else []
        facts += [f"foreach={node.foreach}"] if node.foreach else []
        facts += [f"condition={node.condition}"] if node.condition else []
        facts += [f"splits={','.join(node.splits)}"] if node.splits else []
        facts += [f"next={','.join(node.next)}"] if node.next else []
        click.echo(f"{node.name} {' '.join(facts)}")
