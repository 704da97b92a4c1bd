"""The components of cards: their HTML is escaped and refers to no external resources."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import pytest

from aflow.cards.components import (
    Artifact,
    Component,
    Error,
    EventsTimeline,
    Image,
    JSONViewer,
    Markdown,
    Page,
    ProgressBar,
    PythonCode,
    Table,
    ValueBox,
    VegaChart,
    YAMLViewer,
    as_component,
    rendered,
)
from aflow.cards.page import page
from aflow.errors import InvalidInput

EVIL = "<script>alert('x')</script>"


def timeline(*args: Any, **kwargs: Any) -> EventsTimeline:
    """Return a timeline with one event."""
    events = EventsTimeline(title="Steps", max_events=2)
    events.update(*args, **kwargs)
    return events


PNG = b"\x89PNG\r\n\x1a\n0000"


@pytest.mark.parametrize(
    "component",
    [
        Markdown(EVIL),
        Artifact(EVIL, EVIL),
        Table([[EVIL]], headers=[EVIL]),
        Error(EVIL, EVIL),
        ProgressBar(label=EVIL, unit=EVIL, metadata=EVIL),
        ValueBox(EVIL, EVIL, EVIL, change_indicator=EVIL),
        PythonCode(code_string=EVIL),
        JSONViewer({EVIL: [EVIL]}, max_height=EVIL, title=EVIL),
        YAMLViewer({EVIL: [EVIL]}, title=EVIL),
        timeline({EVIL: EVIL, "timestamp": EVIL}, payloads={EVIL: EVIL}),
        Image(PNG, EVIL),
    ],
)
def test_what_a_component_shows_is_escaped(component: Component) -> None:
    html = component.render()
    assert "<script" not in html
    assert "alert" in html


def test_a_table_holds_values_and_components() -> None:
    html = Table([[1, Markdown("**x**")]], headers=["a", "b"]).render()
    assert "<th>a</th>" in html
    assert "<strong>x</strong>" in html


def test_a_dataframe_is_a_table() -> None:
    pandas = pytest.importorskip("pandas")
    html = Table.from_dataframe(pandas.DataFrame({"n": [1, 2]})).render()
    assert "<th>n</th>" in html
    assert "<td>2</td>" in html


def test_a_figure_is_a_picture() -> None:
    pyplot = pytest.importorskip("matplotlib.figure")
    figure = pyplot.Figure()
    figure.subplots().plot([1, 2])
    assert 'src="data:image/png;base64,iVBOR' in Image.from_matplotlib(figure).render()
    assert isinstance(as_component(figure), Image)
    shown = Image(PNG)
    shown.update(figure.axes[0])
    assert shown.render() == Image(figure).render()


def test_an_image_of_pillow_is_a_picture_also_in_an_update() -> None:
    pillow = pytest.importorskip("PIL.Image")
    image = pillow.new("RGB", (1, 1))
    shown = Image(PNG)
    shown.update(image)
    assert 'src="data:image/png;base64,iVBOR' in shown.render()
    assert shown.render() == Image.from_pil_image(image).render()


@pytest.mark.parametrize("src", [b"no picture", "http://somewhere/x.png", None, 3])
def test_what_is_no_picture_is_refused(src: object) -> None:
    with pytest.raises(InvalidInput, match="Image"):
        Image(src)


def test_a_chart_is_drawn_without_a_network() -> None:
    pytest.importorskip("vl_convert")
    spec = {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "data": {"values": [{"a": "x", "b": 2}]},
        "mark": "bar",
        "encoding": {"x": {"field": "a"}, "y": {"field": "b", "type": "quantitative"}},
    }
    assert drawing(VegaChart(spec).render()).startswith("<svg")


def drawing(html: str) -> str:
    """Return the image of a chart."""
    found = re.findall(r'<img src="data:image/svg.xml;base64,([^"]+)"', html)
    return base64.b64decode(found[0]).decode()


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/data.json", "data.csv", "//elsewhere/x.json"])
def test_a_chart_fetches_nothing(url: str) -> None:
    pytest.importorskip("vl_convert")
    spec = {"data": {"url": url}, "mark": "bar", "encoding": {"x": {"field": "a"}}}
    assert "VegaChart cannot be shown" in rendered(VegaChart(spec))
    assert "not allowed" in rendered(VegaChart(spec))


BAD: Any = "\"'><script>alert(1)</script>"
NUMBERS: Any = (3, float("inf"), 4, 5)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Markdown(BAD),
        lambda: Markdown("[x](javascript:alert(1)) <img src=x onerror=alert(1)>"),
        lambda: Artifact(BAD, BAD),
        lambda: Artifact(type(BAD, (), {"__repr__": lambda self: BAD})()),
        lambda: Table([[BAD, Markdown(BAD)]], [BAD]),
        lambda: Image(PNG, BAD),
        lambda: Image("data:image/png;base64," + BAD, BAD),
        lambda: Error(ValueError(BAD), BAD),
        lambda: ProgressBar(BAD, BAD, BAD, BAD, BAD),
        lambda: ProgressBar(float("nan"), *NUMBERS),
        lambda: ValueBox(BAD, BAD, BAD, BAD, BAD),
        lambda: PythonCode(code_string=BAD),
        lambda: JSONViewer({BAD: [BAD]}, True, BAD, True, BAD),
        lambda: JSONViewer([1], max_height="1px;position:fixed;background:url(http://x)"),
        lambda: VegaChart({"mark": BAD, BAD: BAD}),
        lambda: YAMLViewer({BAD: BAD}, True, BAD, True, BAD),
        lambda: Page(BAD, BAD, [BAD]),
        lambda: timeline({BAD: BAD, "timestamp": BAD}, payloads={BAD: BAD}),
    ],
)
def test_no_data_becomes_html(make: Callable[[], Component]) -> None:
    shown = rendered(make())
    for part in ("<script", "<img src=x", 'href="javascript:', "position:fixed"):
        assert part not in shown
    assert set() == {name for name in Tags.of(shown) if name.startswith("on")}


class Tags(HTMLParser):
    """Collects the attributes of all tags of a page."""

    names: set[str]

    @classmethod
    def of(cls, html: str) -> set[str]:
        made = cls()
        made.names = set()
        made.feed(html)
        return made.names

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names |= {name for name, _ in attrs}


def test_a_page_allows_nothing_to_run_and_nothing_to_be_fetched() -> None:
    assert "default-src 'none'; img-src data:;" in page("title", "body")
    assert "script-src" not in page("title", "body")


def test_a_part_that_fails_leaves_the_others() -> None:
    class Broken(Component):
        def render(self) -> str:
            raise KeyError("oops")

    assert "Broken cannot be shown" in rendered(Broken())


def test_components_are_updated() -> None:
    bar = ProgressBar(max=4)
    bar.update(3)
    assert 'value="3"' in bar.render()
    box = ValueBox("a", 1)
    box.update(value=2)
    assert ">2<" in box.render()
    with pytest.raises(InvalidInput, match="cannot be updated"):
        Error("x").update("y")


def test_values_are_shown_as_yaml() -> None:
    html = YAMLViewer({"a": {"b": [1, "x"]}, "kind": PNG}).render()
    assert "<summary><b>YAML</b>" in html
    assert "b:" in html or "&quot;b&quot;:" in html  # with PyYAML, or without


def test_a_viewer_may_be_bounded_and_is_open_for_good_if_wanted() -> None:
    html = JSONViewer([1], collapsible=False, max_height="300px", title="Numbers").render()
    assert 'style="max-height:300px;overflow:auto"' in html
    assert "<p><b>Numbers</b></p>" in html


def test_events_are_shown_the_latest_first_and_all_are_counted() -> None:
    events = timeline({"step": "one"})
    for step in ("two", "three"):
        events.update(
            {"step": step, "timestamp": 0},
            style_theme="success",
            priority="high",
            payloads={"more": JSONViewer({"of": step})},
            finished=step == "three",
        )
    html = events.render()
    assert html.index("three") < html.index("two")
    assert "one" not in html
    assert "3 events, finished" in html
    assert '<li class="success high"><time>1970-01-01 00:00:00 UTC</time>' in html
    stats = events.get_stats()
    assert (3, 2, True) == tuple(
        stats[name] for name in ("total_events", "displayed_events", "finished")
    )
    assert stats["first_event"] <= stats["last_update"]


@pytest.mark.parametrize("wrong", [{"style_theme": "shiny"}, {"priority": "soon"}])
def test_an_event_of_no_known_kind_is_refused(wrong: dict[str, str]) -> None:
    with pytest.raises(InvalidInput, match="is one of"):
        timeline({}, **wrong)


def test_the_source_of_a_function_is_shown() -> None:
    assert "def test_the_source" in PythonCode(test_the_source_of_a_function_is_shown).render()


def test_values_become_components() -> None:
    assert isinstance(as_component("text"), Markdown)
    assert isinstance(as_component([1]), Artifact)


def test_a_table_of_pandas_keeps_the_type_of_each_column() -> None:
    pandas = pytest.importorskip("pandas", reason="tables of pandas need it")

    html = Table.from_dataframe(pandas.DataFrame({"n": [1], "x": [0.5]})).render()

    assert "<td>1</td><td>0.5</td>" in html


@pytest.mark.parametrize(("change", "shown"), [("+2%", "grows"), ("-2%", "falls")])
def test_a_value_that_falls_looks_otherwise_than_one_that_grows(change: str, shown: str) -> None:
    assert f'<div class="{shown}">{change}</div>' in ValueBox(change_indicator=change).render()


def test_a_chart_without_a_size_is_given_one() -> None:
    pytest.importorskip("vl_convert", reason="charts are drawn with the extra cards")
    spec = {"mark": "bar", "data": {"values": [{"a": "A"}]}, "encoding": {"x": {"field": "a"}}}

    wide = drawing(VegaChart({**spec, "width": "container"}).render())

    assert 'width="6' in wide
    assert 'width="1' in drawing(VegaChart({**spec, "width": 100}).render())


def test_a_page_holds_components_under_its_title() -> None:
    page = Page("Results & more", contents=[Markdown("*well*"), "plain"])
    assert "<h2>Results &amp; more</h2>" in page.render()
    assert "<em>well</em>" in page.render()
    assert "plain" in page.render()


def test_a_box_shows_zero_and_changes() -> None:
    box = ValueBox("Errors", 0, "of 10")
    assert '<div class="value">0</div>' in box.render()
    box.update("Faults", theme="danger")
    assert '<div class="valuebox danger"><div class="title">Faults</div>' in box.render()
    assert '<div class="value">0</div><div class="note">of 10</div>' in box.render()
