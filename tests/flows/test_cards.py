"""@card: the pages that steps produce, and the commands and functions to find them."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from aflow import client, get_cards
from tests.flows.conftest import Ran, Workspace

FLOW = """
from aflow import card
from aflow.cards.card import Card
from aflow.cards.components import *

class Mine(Card):
    type = "mine"
    def render(self, task):
        return f"<p>{task.pathspec} {task.data.score} {self.options['a']} {task['score'].data}</p>"

class Slow(Card):
    type = "slow"
    def render(self, task):
        while True:
            pass

class Failing(Card):
    type = "failing"
    def render(self, task):
        raise KeyError("oops")

class Flow_(FlowSpec):
    alpha = Parameter("alpha", default=0.25)

    @card(type="unknown", save_errors=False)
    @card(type="failing", id="twin")
    @card(type="slow", id="twin", timeout=0.2)
    @card(type="mine", options={"a": 3})
    @card(type="blank", id="second", options={"title": "Blank one"})
    @card
    @step
    def start(self):
        self.score = 0.75
        self.text = "<script>alert(1)</script>"
        current.card.append(Markdown("# Hello *there*"))
        current.card.append("plain **text**", id="part")
        current.card.extend([Artifact(self.text, "shown"), ValueBox("Score", self.score)])
        current.card["second"].append(Table([["a", 1]], headers=["name", "n"]))
        current.card.refresh()
        assert list(current.card.components) == ["part"]
        assert len(current.card) == 4
        current.card["nowhere"].append("lost")
        current.card["twin"].append("of which one?")
        self.next(self.end)

    @card(type="default", options={"only_components": True})
    @step
    def end(self):
        if os.path.exists("broken"):
            raise ValueError("broken")
"""


@pytest.fixture
def ran(workspace: Workspace) -> Workspace:
    """A workspace with a run that has created cards."""
    workspace.write(FLOW)
    first = workspace.run()
    assert 0 == first.code, first.err
    for reported in (
        "'unknown'", "oops", "longer than 0.2 s", "no card with the id 'nowhere'",
        "2 cards with the id 'twin'",
    ):  # fmt: skip
        assert reported in first.err + first.out
    return workspace


def latest(workspace: Workspace) -> client.Run:
    """The latest run."""
    client.metadata(f"local@{workspace.path}")
    client.namespace(None)
    run = client.Flow("Flow_").latest_run
    assert run is not None
    return run


def command(workspace: Workspace, *args: str) -> Ran:
    """Run `python flow.py card ARGS`."""
    return workspace.finish(workspace.start("card", *args))


def test_the_default_card_shows_parts_parameters_artifacts_graph_and_times(ran: Workspace) -> None:
    task = latest(ran)["start"].task
    (card,) = get_cards(task, type="default")
    assert "<h1>Hello <em>there</em></h1>" in card.html
    assert "plain <strong>text</strong>" in card.html
    for part in ("alpha", "0.25", "score", "0.75", "<svg", "Took", task.pathspec):
        assert part in card.html
    assert "<script>" not in card.html
    assert (card.html, False, None) == (card.get(), card.from_resumed, card.origin_pathspec)
    assert "color-scheme: light dark" in card.html
    for outside in ('src="http', 'href="http', "@import", "url(http"):
        assert outside not in card.html


def test_each_card_has_its_own_parts(ran: Workspace) -> None:
    cards = get_cards(latest(ran)["start"].task)
    assert ["failing", "slow", "mine", "blank", "default"] == [each.type for each in cards]
    (blank,) = get_cards(latest(ran)["start"].task, id="second")
    assert "<td>a</td><td>1</td>" in blank.html
    assert "Blank one" in blank.html
    assert "Hello" not in blank.html
    (only,) = get_cards(latest(ran)["end"].task.pathspec)
    assert "Parameters" not in only.html
    assert "srcdoc=" in only._repr_html_()


def test_a_custom_card_reads_its_task_and_options(ran: Workspace) -> None:
    (mine,) = get_cards(latest(ran)["start"].task, type="mine")
    assert f"<p>{mine.pathspec} 0.75 3 0.75</p>" == mine.html


@pytest.mark.parametrize(("kind", "reported"), [("failing", "oops"), ("slow", "longer than 0.2 s")])
def test_a_card_that_cannot_be_made_is_an_error_card(
    ran: Workspace, kind: str, reported: str
) -> None:
    (card,) = get_cards(latest(ran)["start"].task, type=kind)
    assert "could not be made" in card.html
    assert reported in card.html
    ran.check()


def test_cards_are_listed_printed_and_written(ran: Workspace) -> None:
    run = latest(ran).id
    listed = command(ran, "list", f"{run}/start").out.splitlines()
    assert ["failing", "slow", "mine", "blank", "default"] == [each.split()[1] for each in listed]
    as_json = json.loads(command(ran, "list", run, "--type", "default", "--as-json").out)
    assert {"start", "end"} == {each["pathspec"].split("/")[2] for each in as_json}
    assert "Blank one" in command(ran, "get", f"{run}/start", "--id", "second").out
    written = command(ran, "get", f"{run}/start", "page.html", "--hash", listed[2].split()[3])
    assert 0 == written.code, written.err
    assert "0.75 3" in (ran.path / "page.html").read_text()
    kept = command(ran, "list", f"{run}/start", "--file", "list.txt")
    assert (0, "") == (kept.code, kept.out)
    assert listed == (ran.path / "list.txt").read_text().splitlines()
    for words in (("list", f"{run}/start", "--file"), ("create", f"{run}/start", "--file")):
        refused = command(ran, *words, "nowhere/x")
        assert (1, "") == (refused.code, refused.out)
        assert "nowhere/x cannot be written" in refused.err
    absent = command(ran, "get", f"{run}/start", "--id", "none")
    assert 1 == absent.code
    assert "There is no card of" in absent.err


def test_a_card_is_made_of_a_task_that_has_run(ran: Workspace) -> None:
    task = latest(ran)["start"].task
    made = command(ran, "create", f"{latest(ran).id}/start", "--id", "again")
    assert 0 == made.code, made.err
    (card,) = get_cards(task, id="again")
    assert f"Card created with type: default and hash: {card.hash}\n" == made.out
    assert "0.25" in card.html
    assert "0.75" in card.html
    assert 6 == len(get_cards(task))
    options = ("--type", "blank", "--options", '{"title": "Mine"}', "--file", "mine.html")
    written = command(ran, "create", f"{latest(ran).id}/start", *options)
    assert (0, "") == (written.code, written.out)
    assert "Mine" in (ran.path / "mine.html").read_text()
    assert 6 == len(get_cards(task))
    unknown = command(ran, "create", f"{latest(ran).id}/start", "--type", "defualt")
    assert "There is no card of type 'defualt'. Did you mean 'default'?" in unknown.err


@pytest.mark.parametrize(("kind", "reported"), [("failing", "oops"), ("slow", "longer than 0.2 s")])
def test_a_card_that_cannot_be_made_afterwards_is_reported_or_shown(
    ran: Workspace, kind: str, reported: str
) -> None:
    words = ("create", f"{latest(ran).id}/start", "--type", kind, "--timeout", "0.2")
    failed = command(ran, *words)
    assert (1, "") == (failed.code, failed.out)
    assert reported in failed.err
    assert "Traceback" not in failed.err
    assert 0 == command(ran, *words, "--render-error-card", "--id", "error").code
    (card,) = get_cards(latest(ran)["start"].task, id="error")
    assert reported in card.html


@pytest.mark.parametrize(
    ("words", "reported"),
    [
        (("--options", "{"), "--options is not valid JSON"),
        (("--options", "[]"), "takes a JSON object"),
        (("--id", "a-b"), "cannot be the id of a card"),
    ],
)
def test_what_a_card_cannot_have_is_a_usage_error(
    ran: Workspace, words: tuple[str, ...], reported: str
) -> None:
    refused = command(ran, "create", f"{latest(ran).id}/start", *words)
    assert (2, "") == (refused.code, refused.out)
    assert reported in refused.err


def test_cards_of_a_resumed_run_are_those_of_its_origin(ran: Workspace) -> None:
    (ran.path / "broken").touch()
    assert 1 == ran.run().code
    (ran.path / "broken").unlink()
    assert 0 == ran.finish(ran.start("--no-pylint", "resume")).code
    task = latest(ran)["start"].task
    assert 5 == len(get_cards(task))
    assert 0 == len(get_cards(task, follow_resumed=False))


def test_aflow_shows_cards_without_a_flow_file(ran: Workspace) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "aflow", "card", "list", latest(ran).pathspec],
        cwd=ran.path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert 6 == len(done.stdout.splitlines()), done.stderr


AS_USER = """
import encodings.idna, os, socket, sys
os.setuid(int(sys.argv[1]))
with socket.create_connection((sys.argv[2], int(sys.argv[3]))) as connection:
    connection.sendall(b"GET / HTTP/1.1\\r\\nHost: localhost\\r\\n\\r\\n")
    print(connection.recv(12).decode())
"""


def test_the_server_names_its_port_or_says_that_it_is_in_use(ran: Workspace) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = ran.finish(ran.start("card", "server", "--port", str(port)))
    assert (2, "") == (done.code, done.out)
    assert f"cannot listen on 127.0.0.1:{port}" in done.err
    server = ran.start("card", "server", "--port", "0")
    assert server.stdout is not None
    said = server.stdout.readline()
    with socket.create_connection(("127.0.0.1", int(said.rpartition(":")[2].partition("/")[0]))):
        server.terminate()
    server.communicate()


async def test_the_server_shows_cards(ran: Workspace) -> None:
    pytest.importorskip("aiohttp")
    from aiohttp.test_utils import TestClient, TestServer

    from aflow.cards.server import Shown, application

    run = latest(ran)
    app = application(Shown(f"local@{ran.path}", "Flow_"), interval=7)
    async with TestClient(TestServer(app)) as browser:
        answer = await browser.get("/")
        index = await answer.text()
        assert "7" == answer.headers["Refresh"]
        assert answer.headers["Content-Security-Policy"].startswith("sandbox allow-scripts ")
        assert f"{run.pathspec}/start/1" in index
        assert 6 == index.count("<li>")
        (card,) = get_cards(run["start"].task, type="mine")
        page = await browser.get(f"/card/{card.pathspec}/{card.hash}")
        assert card.html == await page.text()
        other = (
            (Shown(f"local@{ran.path}", namespace="nobody"), 0),
            (Shown(f"local@{ran.path}", namespace="user:tester", limit=2), 2),
            (Shown(f"local@{ran.path}", run="7"), 0),
            (Shown(f"local@{ran.path}", run=run.id), 6),
        )
        for shown, count in other:
            async with TestClient(TestServer(application(shown))) as another:
                assert count == (await (await another.get("/")).text()).count("<li>")
        for path in (f"{card.pathspec}/nothing", "nothing/7", f"Flow_/7/start/1/{card.hash}"):
            assert 404 == (await browser.get(f"/card/{path}")).status
        # Other sites read nothing, under names of their own either; a link may be followed.
        for status, headers in (
            (421, {"Host": "evil.example"}),
            (421, {"Host": "127.0.0.1.evil.example:80"}),
            (403, {"Sec-Fetch-Site": "cross-site"}),
            (403, {"Sec-Fetch-Site": "same-site", "Sec-Fetch-Mode": "no-cors"}),
            (403, {"Origin": "http://evil.example"}),
            (403, {"Origin": "null", "Sec-Fetch-Mode": "navigate"}),
            (200, {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}),
            (200, {"Host": "localhost:80"}),
        ):
            for path in ("/", f"/card/{card.pathspec}/{card.hash}"):
                assert status == (await browser.get(path, headers=headers)).status, headers
        if os.geteuid() == 0:  # other users of the machine read nothing, however they connect
            port = browser.port
            for host in ("127.0.0.1", "::ffff:127.0.0.1"):
                for uid, expected in ((0, b"200"), (65534, b"403")):
                    asked = await asyncio.create_subprocess_exec(
                        sys.executable, "-c", AS_USER, str(uid), host, str(port),
                        stdout=subprocess.PIPE,
                    )  # fmt: skip
                    assert expected in (await asked.communicate())[0], (host, uid)
        html = card._repr_html_()
        assert 'sandbox="allow-scripts allow-popups"' in html


THEIRS = """
from metaflow import FlowSpec, card, current, step
from metaflow.cards import (
    Artifact, Error, EventsTimeline, Image, JSONViewer, Markdown, ProgressBar, PythonCode, Table,
    ValueBox, VegaChart, YAMLViewer,
)

GIF = b"GIF89a" + bytes(20)


def helper():
    return "shown as code"


class TheirFlow(FlowSpec):
    @card(type="blank", refresh_interval=0)
    @step
    def start(self):
        bar = ProgressBar(max=3, label="Rounds", unit="rounds")
        events = EventsTimeline(title="Events")
        current.card.append(bar)
        current.card.append(events, id="events")
        for number in range(3):
            bar.update(number + 1)
            current.card.components["events"].update({"round": number}, style_theme="info")
            current.card.refresh()
        current.card.extend([
            Markdown("*markdown*"),
            Table([["cell", Artifact({"inner": 1})]], headers=["a", "b"]),
            Image(GIF, "a picture"),
            Error(ValueError("an error"), "Title of the error"),
            ValueBox("Box", 7, theme="success", change_indicator="up 3%"),
            PythonCode(helper),
            JSONViewer({"json": [1]}, title="As JSON"),
            YAMLViewer({"yaml": [1]}),
            VegaChart({"mark": "bar", "data": {"values": [{"a": 1}]},
                       "encoding": {"x": {"field": "a"}}}),
        ])
        self.next(self.end)

    @step
    def end(self):
        pass
"""


def test_every_component_is_on_the_card_of_a_flow_for_metaflow(workspace: Workspace) -> None:
    (workspace.path / "theirs.py").write_text(THEIRS)
    words = ("run", "--compat", "theirs.py", "--no-pylint")
    done = workspace.finish(workspace.start_aflow(*words))
    assert 0 == done.code, done.err
    client.metadata(f"local@{workspace.path}")
    client.namespace(None)
    run = client.Flow("TheirFlow").latest_run
    assert run is not None
    (card,) = get_cards(run["start"].task)
    for part in (
        *("Rounds", 'value="3"', "<b>round</b> 2", "3 events", "<em>markdown</em>", "cell"),
        *("inner", "data:image/gif;base64", "Title of the error", "an error", "Box", "up 3%"),
        *("shown as code", "As JSON", "YAML", "yaml"),
    ):
        assert part in card.html, part
    assert "could not be made" not in card.html
    assert "cannot be shown" not in card.html


PROTOCOL = """
from metaflow import FlowSpec, card, current, step
from metaflow.cards import Markdown, MetaflowCard, MetaflowCardComponent, get_cards
from metaflow.plugins.cards.card_modules.test_cards import (
    TestJSONComponent, TestStringComponent, _component_values_to_hash
)

class Plain(MetaflowCardComponent):
    def render(self):
        return {"plain": 1}

class FullCard(MetaflowCard):
    type = "full_card"
    ALLOW_USER_COMPONENTS = True
    def __init__(self, options={}, components=[], graph=None, flow=None):
        self.seen = (options, components, graph["start"]["next"], flow.name)
    def render(self, task):
        return "FULL %s %s" % (task.pathspec, self.seen)

class FewCard(MetaflowCard):
    type = "few_card"
    def __init__(self, graph=None):
        self.steps = sorted(graph)
    def render(self, task):
        return "FEW %s %s" % (self.steps, task.parent.id)

class BareCard(MetaflowCard):
    type = "bare_card"
    def __init__(self):
        pass
    def render(self, task):
        return "BARE"

class TheirFlow(FlowSpec):
    @card(type="test_pathspec_card")
    @card(type="test_pathspec_card")
    @card(type="taskspec_card")
    @card(type="default_json", id="json")
    @card(type="full_card", options={"a": 1})
    @card(type="few_card", id="few")
    @card(type="bare_card")
    @card(type="test_timeout_card", timeout=0.2, save_errors=False, options={"timeout": 60})
    @step
    def start(self):
        current.card.append(TestStringComponent("t"))
        current.card.append(Plain())
        current.card.append("no component")
        self.next(self.end)

    @card(type="test_non_editable_card", id="non")
    @card(type="test_editable_card", id="only")
    @card(type="test_refresh_card", id="data", refresh_interval=0)
    @card(type="test_component_refresh_card", id="parts", refresh_interval=0)
    @step
    def end(self):
        current.card["non"].append(TestStringComponent("n"))
        current.card["only"].append(TestStringComponent("o"))
        data, parts = current.card["data"], current.card["parts"]
        assert not get_cards(current.pathspec)
        one = TestJSONComponent({"abc": ["1"]})
        parts.append(one, id="one")
        parts.append(TestJSONComponent({"abc": ["2"]}))
        self.states = []
        for n in range(3):
            data.refresh({"n": n})
            one.update({"abc": [str(n)]})
            parts.refresh()
            shown, = get_cards(current.pathspec, id="data")
            self.states.append((shown.get_data()["data"], shown.get_data()["reload_token"]))
            changed, = get_cards(current.pathspec, id="parts")
            token = "runtime-" + _component_values_to_hash({"a": {"abc": []}, "b": {"abc": []}})
            assert changed.get_data()["reload_token"] == token
            assert token in changed.get()
            assert changed.get_data()["data"]["one"] == {"abc": [str(n)]}

if __name__ == "__main__":
    TheirFlow()
"""


def test_card_classes_of_metaflow_are_made_and_refreshed_by_its_protocol(
    workspace: Workspace,
) -> None:
    (workspace.path / "theirs.py").write_text(PROTOCOL)
    done = workspace.finish(workspace.start_aflow("run", "--compat", "theirs.py"))
    assert 0 == done.code, done.out + done.err
    assert "str is not a component of a card" in done.out + done.err
    client.metadata(f"local@{workspace.path}")
    client.namespace(None)
    run = client.Flow("TheirFlow").latest_run
    assert run is not None
    start, end = run["start"].task, run["end"].task
    cards = get_cards(start)
    kinds = [each.type for each in cards]
    assert [
        "test_pathspec_card", "test_pathspec_card", "taskspec_card", "default_json",
        "full_card", "few_card", "bare_card",
    ] == kinds  # fmt: skip
    pages = {each.type: each.get() for each in cards}
    assert "BARE" == pages["bare_card"]
    assert "FEW ['end', 'start'] start" == pages["few_card"]
    assert (
        f"FULL {start.pathspec} ({{'a': 1}}, ['t', {{'plain': 1}}], ['end'], 'TheirFlow')"
        == pages["full_card"]
    )
    assert start.pathspec == pages["taskspec_card"]
    assert start.pathspec == json.loads(pages["default_json"])["pathspec"]
    assert 2 == len({each.hash for each in cards if each.type == "test_pathspec_card"})
    assert None is cards[0].get_data()

    states = end.data.states
    assert [{"n": 0}, {"n": 1}, {"n": 2}] == [data["user"] for data, _ in states]
    assert ["render-seq-1", "render-seq-2", "render-seq-3"] == [token for _, token in states]
    by_id = {each.id: each for each in get_cards(end)}
    assert ("n", "o") == (by_id["non"].get(), by_id["only"].get())
    last = by_id["data"].get_data()
    assert ("final", {"n": 2}) == (last["reload_token"], last["data"]["user"])
    assert '{"n": 2}' in by_id["data"].get()
    assert "final" in by_id["parts"].get()

    listed = workspace.finish(workspace.start_aflow("card", "list", f"{end.pathspec}", "--as-json"))
    found = json.loads(listed.out)
    assert end.pathspec == found["pathspec"]
    assert {"hash", "id", "type", "filename"} == set(found["cards"][0])
    assert ["non", "only", "data", "parts"] == [each["id"] for each in found["cards"]]
    absent = workspace.finish(
        workspace.start_aflow("card", "list", end.pathspec, "--type", "none", "--as-json")
    )
    assert (1, "") == (absent.code, absent.out)
    assert "Card not found" in absent.err


def test_cards_and_components_are_imported_from_one_place() -> None:
    import aflow.cards

    for name in aflow.cards.__all__:
        assert getattr(aflow.cards, name).__name__ == name
    assert aflow.cards.get_cards is get_cards
    with pytest.raises(AttributeError, match="nothing"):
        _ = aflow.cards.nothing


def test_a_card_is_shown_or_said_where_it_is(ran: Workspace, tmp_path: Path) -> None:
    run = latest(ran).id
    seen = tmp_path / "seen"
    browser = tmp_path / "browser"
    browser.write_text(f"#!/bin/sh\necho $1 > {seen}\n")
    browser.chmod(0o700)
    for program, reported in ((str(browser), ""), ("false", "No browser was found here")):
        words = ("card", "view", f"{run}/end")
        shown = ran.finish(ran.start(*words, BROWSER=program, DISPLAY="", TMPDIR=str(tmp_path)))
        file = Path(shown.out.split(" is in ")[1].split(".html")[0] + ".html")
        assert reported in shown.out
        assert "<html" in file.read_text()
        assert file.parent == tmp_path
    assert seen.read_text().startswith("file:///")
