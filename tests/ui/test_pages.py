"""The pages of the web UI in a real browser: headless Chromium, driven by WebDriver.

Every page is opened at three widths, in light and dark mode, and checked by axe. Runs are followed,
cancelled, resumed and compared by clicks. Malicious names, logs and messages are displayed as text.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import axe_core_python
import pytest
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select, WebDriverWait

from aflow.metadata.factory import open_metadata
from aflow.scheduler.states import RunState
from benchmarks import ui
from tests.server.conftest import Daemon
from tests.support.servers import free_port, missing, new_database, postgres_for_one
from tests.support.waiting import PATIENCE

pytestmark = [pytest.mark.xdist_group("browser"), pytest.mark.timeout(240)]

HOSTILE = "<img src=x onerror=document.title='hacked'><script>document.title='hacked'</script>"
CARD = """<p id="out"></p><script>
let found = "tried";
try { parent.document.title = "hacked" } catch { found += " the page" }
const done = () => (document.getElementById("out").textContent = found + ", the server");
fetch("/v1/search").catch(done);
</script>"""
LONG = "long" * 60
FLOW = f"""
from aflow import card
from aflow.cards import Card
HOSTILE = {HOSTILE!r}

class Own(Card):
    type = "own"

    def render(self, task):
        return {CARD!r}

class Flow_(FlowSpec):
    '''Squares of numbers. {HOSTILE}'''
    n = Parameter("n", default=3)
    text = Parameter("text", default=HOSTILE)
    gate = Parameter("gate", default="")
    fail = Parameter("fail", default=False)

    @step
    def start(self):
        print(HOSTILE, flush=True)
        print("\\x1b[31mred\\x1b[0m \\x1b]8;;javascript:alert(1)\\x07link\\x1b]8;;\\x07")
        self.items = [f"item-{{n}}" for n in range(self.n)]
        self.next(self.work, foreach="items")

    @step
    def work(self):
        print("works on", self.input, flush=True)
        while self.gate and not os.path.exists(self.gate):
            time.sleep(0.02)
        if self.fail and self.input == "item-1":
            raise ValueError(HOSTILE)
        self.result = {{"of": self.input, "hostile": HOSTILE}}
        self.next(self.join)

    @card
    @card(type="own", id="own")
    @step
    def join(self, inputs):
        self.next(self.{LONG})

    @step
    def {LONG}(self):
        self.found = True
        self.next(self.end)

    @step
    def end(self):
        pass
"""
PAGES = [
    "", "flows", "flows/Flow_", "schedules", "workers", "settings",
    "runs/{run}", "runs/{run}?tab=timeline",
    "runs/{run}?tab=tasks", "runs/{run}?tab=logs", "runs/{run}?tab=artifacts",
    "runs/{run}?tab=code", "runs/{run}?tab=cards", "runs/{run}?tab=explain",
    "runs/{run}?tab=events", "runs/{run}/tasks/2",
    "runs/{failed}", "compare?runs={run},{failed}", "nowhere", "schedules?edit=*",
    "runs/Theirs/7", "runs/Flow_/404",
]  # fmt: skip


class Site(Daemon):
    """A daemon with a run that succeeded and one that failed."""

    run: str  # type: ignore[assignment]  # the run that succeeded: it is not started by hand
    failed: str

    def newest(self) -> str:
        first = self.ask("GET", "/v1/search?limit=1")[1]["runs"][0]
        return f"{first['flow']}/{first['run']}"

    def link(self) -> str:
        code = self.ask("POST", "/ui/links", b"{}")[1]["code"]
        return f"{self.url}/ui/login?code={code}"


def recorded_by_metaflow(folder: Path) -> None:
    """Write the old run Theirs/7 as Metaflow stores it in its folder."""
    facts = {"flow_id": "Theirs", "user_name": "ann", "tags": [], "system_tags": []}
    for place, more in (
        ("", {}), ("7", {"run_number": "7"}), ("7/start", {"step_name": "start"}),
        ("7/start/1", {"step_name": "start", "task_id": "1"}),
    ):  # fmt: skip
        file = folder / ".metaflow" / "Theirs" / place / "_meta" / "_self.json"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps({**facts, "ts_epoch": 1_000_000, **more}))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, repository: Path) -> Iterator[Site]:
    daemon = Site(tmp_path_factory.mktemp("site"))
    daemon.write(FLOW)
    recorded_by_metaflow(daemon.path)
    path = {"PYTHONPATH": str(repository)}
    daemon.begin(port=str(free_port()), **path)  # it is started again
    assert 0 == daemon.submit("flow.py", "--wait", "--tag", "prod", **path).code
    daemon.run = daemon.newest()
    assert 1 == daemon.submit("flow.py", "--wait", "--fail", "true", **path).code
    daemon.failed = daemon.newest()
    yield daemon
    daemon.stop()


class Browser:
    """A browser that is logged in."""

    def __init__(self, driver: webdriver.Chrome, site: Site) -> None:
        self.driver = driver
        self.site = site

    def open(self, path: str) -> None:
        """Open a page, and wait until its content is shown."""
        self.driver.get(f"{self.site.url}/ui/{path}")
        self.until(lambda: self.find("main h1, main .notice, main .run-head"))
        self.until(lambda: not self.find("[aria-busy=true]"))

    def find(self, css: str) -> list[Any]:
        found: list[Any] = self.driver.find_elements(By.CSS_SELECTOR, css)
        return found

    def click(self, text: str, within: str = "main") -> None:
        """Click the button or link with this text."""
        path = f".//*[self::button or self::a][normalize-space()={text!r}]"

        def clicked() -> bool:
            boxes = self.find(within)
            found = boxes[-1].find_elements(By.XPATH, path) if boxes else []
            if not found:
                return False
            self.driver.execute_script("arguments[0].click()", found[0])
            return True

        self.until(clicked)

    def press(self, css: str) -> None:
        """Click the element of this selector, as soon as it exists."""

        def pressed() -> bool:
            found = self.find(css)
            if found:
                self.driver.execute_script("arguments[0].click()", found[0])
            return bool(found)

        self.until(pressed)

    def until(self, condition: Any, seconds: float = PATIENCE) -> Any:
        # A page that is drawn again takes elements away between the look and the question.
        again = [StaleElementReferenceException]
        waiting = WebDriverWait(self.driver, seconds, 0.05, ignored_exceptions=again)
        return waiting.until(lambda _: condition())

    def type(self, css: str, text: str) -> None:
        """Replace the text of a field."""
        field = self.until(lambda: (self.find(css) or [None])[0])
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(Keys.NULL)
        field.send_keys(text)

    def text(self, css: str = "main") -> str:
        return " ".join(each.text for each in self.find(css))

    def says(self, text: str, css: str = "main") -> None:
        """Wait until the page contains this text."""
        try:
            self.until(lambda: text in self.text(css))
        except Exception as error:
            raise AssertionError(f"{text!r} is not in {self.text(css)!r}") from error

    def errors(self) -> list[str]:
        """Return the new console messages, without those of rejected requests."""
        return [
            entry["message"]
            for entry in self.driver.get_log("browser")
            if entry["level"] == "SEVERE" and "Failed to load resource" not in entry["message"]
        ]

    def resize(self, width: int, theme: str = "light") -> None:
        features = [{"name": "prefers-color-scheme", "value": theme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


@pytest.fixture(scope="module")
def browser(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if program is None or driver is None:
        missing("chromium and chromedriver")
    assert program is not None
    options = webdriver.ChromeOptions()
    options.binary_location = program
    folder = tmp_path_factory.mktemp("profile")
    for each in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={folder}",
    ):  # fmt: skip
        options.add_argument(each)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    chrome = webdriver.Chrome(options, webdriver.ChromeService(driver))
    chrome.get(site.link())
    yield Browser(chrome, site)
    chrome.quit()


def test_every_page_fits_three_widths_in_light_and_dark_and_has_no_obstacle_that_axe_knows(
    browser: Browser,
) -> None:
    axe = (Path(axe_core_python.__file__).parent / "axe.min.js").read_text()
    look = """
        const done = arguments[arguments.length - 1];
        axe.run({exclude: [["iframe"]]}, {iframes: false}).then((found) => done(found.violations));
    """
    for path in PAGES:
        browser.open(path.format(run=browser.site.run, failed=browser.site.failed))
        for width in (375, 768, 1400):
            for theme in ("dark", "light"):
                browser.resize(width, theme)
                wide = browser.driver.execute_script(
                    "return document.documentElement.scrollWidth - innerWidth"
                )
                assert wide <= 0, f"{path} is {wide} pixels too wide at {width}"
        assert [] == browser.errors(), path
        assert "hacked" not in browser.driver.title
        assert [] == browser.find("main img[src=x]")
        browser.driver.execute_script(axe)  # as it is shown now: wide, and in light
        found = browser.driver.execute_async_script(look)
        reported = [(each["id"], each["nodes"][0]["html"][:200]) for each in found]
        assert [] == reported, path


def test_what_tasks_print_and_raise_is_shown_as_text(browser: Browser) -> None:
    browser.open(f"runs/{browser.site.run}?tab=logs")
    browser.says(HOSTILE)
    browser.says("red link")
    assert browser.find(".line .ansi-red")
    assert [] == browser.find(".line a"), "links of a terminal are dropped"
    browser.open(f"runs/{browser.site.failed}")
    browser.says(f"ValueError: {HOSTILE}")
    assert "hacked" not in browser.driver.title


def test_a_card_of_others_making_reaches_neither_the_page_nor_the_server(browser: Browser) -> None:
    browser.open(f"runs/{browser.site.run}?tab=cards")
    found = browser.until(
        lambda: [each for each in browser.find(".files button") if "own" in each.text]
    )
    found[0].click()
    browser.until(lambda: "own" in (browser.find("iframe")[0].get_attribute("src") or ""))
    browser.driver.switch_to.frame(browser.find("iframe")[0])
    try:
        browser.until(lambda: "tried the page, the server" == browser.text("#out"))
    finally:
        browser.driver.switch_to.default_content()
    assert "hacked" not in browser.driver.title
    browser.errors()  # what the browser has refused the card


def test_a_run_is_followed_while_it_goes_on_and_cancelled_by_a_click(
    browser: Browser, tmp_path: Path, repository: Path
) -> None:
    gate = tmp_path / "gate"
    browser.resize(1400)
    browser.open("")
    path = {"PYTHONPATH": str(repository)}
    browser.site.submit("flow.py", "--gate", str(gate), "--tag", "live", **path)
    browser.says("live")  # by itself, without being loaded again
    browser.says("running")
    run = browser.site.newest()
    browser.open(f"runs/{run}?tab=logs")
    browser.says("works on item-0")
    browser.click("Overview")
    browser.click("Cancel")
    browser.click("Cancel the run", "dialog")
    browser.until(lambda: browser.find(".run-head .state.cancelled"))
    assert "cancelled" == browser.site.ask("GET", f"/v1/runs/{run}?wait=30")[1]["state"]


def test_a_failed_run_is_resumed_and_runs_are_compared_by_clicks(browser: Browser) -> None:
    failed = browser.site.failed
    browser.open(f"runs/{failed}")
    browser.click("Resume")
    browser.type("form.sheet-inline input[name=fail]", "false")
    browser.click("Resume", "form.sheet-inline")
    browser.until(lambda: failed not in browser.driver.current_url)
    browser.says("Resumed from")
    browser.until(lambda: browser.find(".run-head .state.succeeded"))  # with the other value
    browser.open("?filter=tag:prod")
    browser.says(browser.site.run.split("/")[1])
    assert 1 == len(browser.find("[data-row]"))
    browser.open("")
    for row in (2, 3):
        browser.press(f"[data-row][aria-rowindex='{row}'] input[type=checkbox]")
    browser.click("Compare")
    browser.says("Parameters, configs")


def test_a_dry_run_in_the_form_says_what_would_run_and_what_is_wrong(browser: Browser) -> None:
    browser.open("flows/Flow_")
    browser.click("Run…")
    browser.type("form.sheet-inline input[name=n]", "five")
    browser.click("Dry run", ".forecast")
    browser.says("'five'", ".forecast .notice.bad")
    browser.type("form.sheet-inline input[name=n]", "5")
    browser.until(lambda: not browser.find(".forecast .notice.bad"))  # that was of another form
    before = browser.site.newest()
    browser.click("Dry run", ".forecast")
    browser.says("1 task would run, and then, as their results ask for it: work, join, ")
    assert before == browser.site.newest()
    browser.open(f"runs/{browser.site.failed}")
    browser.click("Resume")
    browser.click("Dry run", ".forecast")
    browser.says("3 tasks would be taken over", ".forecast")
    browser.open(f"runs/{browser.site.failed}?tab=code")
    browser.says("True default False", ".values")


def test_something_is_done_with_all_runs_that_match_after_they_were_counted(
    browser: Browser,
) -> None:
    folder = browser.site.path / ".aflow"
    with closing(open_metadata(f"sqlite:///{folder}/metadata.db", "process")) as metadata:
        for number in range(230):
            ui.create(metadata, folder.as_uri(), "Many", number, RunState.SUCCEEDED)
    browser.open("?filter=flow:Many")
    browser.find("body")[0].send_keys("X")
    browser.click("Cancel", ".many .chips")
    browser.says("230 runs left out: ended already", ".many")
    browser.click("Add a tag", ".many .chips")
    browser.type("dialog input[name=text]", "chosen")
    browser.click("Count the runs", "dialog")
    browser.click("Add a tag: 230 runs…", ".many")
    browser.click("Add a tag: 230 runs", "dialog")
    browser.until(lambda: not browser.find(".many"))
    found = browser.site.ask("GET", "/v1/search?filter=tag:chosen&limit=200")[1]
    assert (200, True) == (len(found["runs"]), found["cursor"] is not None)
    browser.click("All that match…")
    browser.click("Delete", ".many .chips")
    browser.click("Delete: 230 runs…", ".many")
    browser.click("Delete: 230 runs", "dialog")
    browser.says("No run matches flow:Many")


def test_nothing_that_changes_a_run_is_offered_for_those_of_metaflow(browser: Browser) -> None:
    browser.open("runs/Theirs/7")
    browser.says("Metaflow recorded this run")
    offered = browser.text(".run-head .actions")
    assert "Compare" in offered
    assert [] == [name for name in ("Cancel", "Resume", "Run again") if name in offered]
    assert "Delete" not in browser.find(".run-head .menu")[0].get_attribute("textContent")
    browser.open("?filter=flow:Theirs")
    browser.press("[data-row] input[type=checkbox]")
    browser.says("You can see such runs here, but not change them", ".chosen-bar")
    assert [] == browser.find(".chosen-bar .danger")


def test_the_search_box_and_the_filter_complete_what_is_there(browser: Browser) -> None:
    browser.open("")
    box = browser.find("#search")[0]
    box.send_keys(f"{browser.site.run}/jo")
    browser.until(lambda: f"{browser.site.run}/join" in browser.text("#found"))
    box.send_keys(Keys.ENTER)
    browser.until(lambda: browser.driver.current_url.endswith("?tab=tasks&step=join"))
    box = browser.find("#search")[0]
    box.send_keys(f"{browser.site.run}/start/it")
    browser.until(lambda: f"{browser.site.run}/start/items" in browser.text("#found"))
    box.send_keys(Keys.ENTER)
    browser.until(
        lambda: browser.driver.current_url.endswith("?tab=artifacts&step=start&name=items")
    )
    browser.says("['item-0', 'item-1', 'item-2']")
    box.send_keys("resul")
    browser.until(lambda: "artifact:result" in browser.text("#found"))
    box.send_keys(Keys.ENTER)
    browser.until(lambda: "filter=artifact%3Aresult" in browser.driver.current_url)
    browser.until(lambda: browser.find("[data-row] a[href]"))
    browser.open("")
    browser.type(".filter input", "tag:pr")
    browser.until(lambda: "tag:prod" in browser.text(".hints"))
    browser.find(".filter input")[0].send_keys(Keys.TAB, Keys.ENTER)
    assert browser.until(lambda: "filter=tag%3Aprod" in browser.driver.current_url)


def test_the_keyboard_moves_through_pages_and_rows(browser: Browser) -> None:
    browser.open("")
    body = browser.find("body")[0]
    body.send_keys("?")
    browser.says("Previous, next failed task", "[role=dialog]")
    body.send_keys(Keys.ESCAPE)
    body.send_keys("gf")
    browser.until(lambda: browser.driver.current_url.endswith("/ui/flows"))
    body.send_keys("gr")
    browser.until(lambda: browser.find("[data-row]"))
    body.send_keys("j")
    browser.until(lambda: browser.find(".at"))
    body.send_keys(Keys.ENTER)
    browser.until(lambda: "/runs/" in browser.driver.current_url)
    browser.find("body")[0].send_keys("/")
    box = browser.driver.switch_to.active_element
    box.send_keys(browser.site.run, Keys.ENTER)
    browser.until(lambda: browser.driver.current_url.endswith(browser.site.run))
    assert browser.until(lambda: browser.find(".run-head"))


def test_a_log_of_many_lines_costs_what_is_on_the_screen(browser: Browser) -> None:
    source = """
    class Flow_(FlowSpec):
        @step
        def start(self):
            for n in range(20_000):
                print("line", n)
            self.next(self.end)

        @step
        def end(self):
            pass
    """
    browser.site.write(source, "many.py")
    assert 0 == browser.site.submit("many.py", "--wait").code
    browser.open(f"runs/{browser.site.newest()}?tab=logs")
    browser.says("20,000 lines")
    assert len(browser.find(".line")) < 200
    search = browser.find("input[type=search]")[0]
    search.send_keys("line 19999", Keys.ENTER)
    browser.says("1 line with")


def written(site: Site, flow: str, count: int) -> str:
    """Write a run with this many tasks, as a coordinator does."""
    folder = site.path / ".aflow"
    with closing(open_metadata(f"sqlite:///{folder}/metadata.db", "process")) as metadata:
        ui.generate(metadata, folder.as_uri(), flow, count)
    return f"{flow}/1"


def test_tables_and_timelines_of_many_tasks_cost_what_is_on_the_screen(browser: Browser) -> None:
    browser.resize(768)
    fits = """
        const box = document.querySelector(".rows, .lines");
        return box.scrollHeight <= box.clientHeight;
    """
    for tab, first in (("tasks", ".all-rows .row"), ("logs", ".lines .line")):
        browser.open(f"runs/{browser.site.run}?tab={tab}")
        browser.until(lambda first=first: browser.find(first))
        browser.until(lambda: browser.driver.execute_script(fits))

    run = written(browser.site, "Wide", 20_000)
    browser.resize(1400)
    browser.open(f"runs/{run}")
    browser.click("15 more failed tasks")
    browser.says("20 tasks")
    browser.open(f"runs/{run}?tab=tasks")
    browser.says("20,000 tasks")
    browser.until(lambda: "work/1" in browser.text(".rows"))
    assert len(browser.find(".rows .row")) < 100
    box = browser.find(".rows")[0]
    assert "20001" == box.get_attribute("aria-rowcount")
    browser.driver.execute_script("arguments[0].scrollTop = arguments[0].scrollHeight", box)
    browser.until(lambda: "work/20000" in browser.text(".rows"))
    browser.click("Duration", ".rows")
    browser.click("Duration↑", ".rows")
    browser.until(lambda: browser.find("[aria-sort=descending]"))
    browser.until(lambda: "2.0 s" in browser.text(".rows"))
    browser.open(f"runs/{run}?tab=tasks&state=failed")
    browser.says("20 tasks")

    browser.open(f"runs/{run}?tab=timeline")
    browser.says("20,000 tasks, 200 at once")
    inked = """
        const chart = document.querySelector(".timeline .chart canvas");
        const data = chart.getContext("2d").getImageData(0, 0, chart.width, chart.height).data;
        let found = 0;
        for (let n = 3; n < data.length; n += 4) if (data[n]) found++;
        return found / (data.length / 4);
    """
    assert browser.driver.execute_script(inked) > 0.5, "tasks are drawn"
    before = browser.text(".axis")
    browser.click("+")
    browser.until(lambda: before != browser.text(".axis"))
    assert browser.find(".overview i"), "the strip shows what is looked at"
    browser.click("As a table")
    browser.until(lambda: browser.find(".timeline .rows"))
    browser.find(".timeline canvas")[0].click()
    browser.until(lambda: f"runs/{run}/tasks/" in browser.driver.current_url)


def test_a_stretch_in_which_nothing_ran_can_be_left_out(browser: Browser) -> None:
    look = """
        const done = arguments[arguments.length - 1];
        import(arguments[0]).then(({ timeAxis }) => {
          const c = { start: Float32Array.of(0, 1000), end: Float32Array.of(1, 1002) };
          const axis = timeAxis(c, Uint32Array.of(0, 1), 0, true);
          const seen = [0, 0.5, 1000, 1002].map((t) => axis.at(t));
          done([axis.high < 5, seen[1], axis.time(seen[2]), axis.time(seen[3])]);
        });
    """
    browser.open("")
    module = f"{browser.site.url}/ui/static/timeline.js"
    found = browser.driver.execute_async_script(look, module)
    assert [True, 0.5, 1000, 1002] == found


def test_schedules_are_made_changed_and_turned_off_by_clicks(browser: Browser) -> None:
    browser.open("schedules")
    browser.click("New schedule…")
    flow = Select(browser.until(lambda: (browser.find("form select") or [None])[0]))
    browser.until(lambda: "Flow_" in [each.text for each in flow.options])
    flow.select_by_visible_text("Flow_")
    browser.type("form input.code", "not cron")
    browser.until(lambda: browser.find("form p.bad"))
    browser.type("form input.code", "0 4 * * ? *")
    browser.until(lambda: 5 == len(browser.find("form time")))
    browser.until(lambda: not browser.find("form footer button.main:disabled"))
    browser.click("Create")
    browser.until(lambda: browser.find(".list .switch[aria-checked=true]"))
    browser.click("Change…")
    browser.type("form input.code", "30 5 * * ? *")
    browser.click("Save")
    browser.until(lambda: "30 5 * * ? *" in browser.text(".list"))
    browser.press(".list .switch")
    browser.until(lambda: browser.find(".list .switch[aria-checked=false]"))
    reported = browser.site.ask("GET", "/v1/schedules/Flow_")[1]
    assert ("30 5 * * ? *", True) == (reported["cron"], reported["paused"])
    browser.click("Delete", ".list")
    browser.click("Delete it", "dialog")
    browser.says("There are no schedules")


def test_settings_show_what_doctor_finds_and_what_could_be_deleted(browser: Browser) -> None:
    browser.open("settings")
    browser.click("Check now")
    browser.until(lambda: browser.find(".findings li"), 90)
    assert "can be read" in browser.text(".findings")
    browser.click("Add up")
    browser.says("Flow_", ".panel .share, .panel td.name")
    browser.click("Look")
    browser.says("would be deleted")
    browser.says("aflow gc --older-than 30d")
    browser.type("input[name=name]", "reader\n")
    browser.says("The token is shown only once")
    assert "reader" in [each["name"] for each in browser.site.ask("GET", "/v1/tokens")[1]["tokens"]]
    browser.click("Revoke")
    browser.click("Revoke it", "dialog")
    browser.until(lambda: "reader" not in browser.text(".wide-panel table"))
    browser.click("Dark")
    assert "dark" == browser.find("html")[0].get_attribute("data-theme")
    browser.click("As the system")


def test_a_run_that_is_deleted_under_an_open_page_is_said_to_be_gone(browser: Browser) -> None:
    run = written(browser.site, "Gone", 2)
    browser.open(f"runs/{run}")
    assert 200 == browser.site.ask("DELETE", f"/v1/runs/{run}/records")[0]
    browser.says("There is no run Gone/1.")
    browser.until(lambda: browser.find(".dot.live"))


def test_a_browser_that_slept_reads_everything_again(browser: Browser) -> None:
    browser.open(f"runs/{browser.site.run}")
    asked = """
        return performance.getEntriesByType("resource")
          .filter((each) => each.name.includes("/overview")).length
    """
    before = browser.driver.execute_script(asked)
    # The clock of the page jumps, as it does when the lid of a laptop is opened.
    browser.driver.execute_script("const real = Date.now; Date.now = () => real() + 3600_000")
    browser.until(lambda: browser.driver.execute_script(asked) > before)
    browser.until(lambda: browser.find(".dot.live"))
    assert browser.find(".run-head")


def test_what_cannot_be_had_is_said_and_a_server_that_comes_back_is_noticed(
    browser: Browser, repository: Path
) -> None:
    browser.open("runs/Flow_/404")
    browser.says("There is no run Flow_/404.")
    browser.open("?filter=colour:red")
    browser.says("There is no filter 'colour'")
    browser.open("")
    port = browser.site.url.rpartition(":")[2]
    browser.site.stop()
    browser.until(lambda: browser.find(".dot.lost"))
    browser.site.begin(port=port, PYTHONPATH=str(repository))
    browser.until(lambda: browser.find(".dot.live"))
    assert browser.until(lambda: browser.find("[data-row]"))


def test_a_browser_without_a_token_is_asked_for_one(browser: Browser) -> None:
    browser.driver.delete_all_cookies()
    browser.driver.get(f"{browser.site.url}/ui/")
    field = browser.until(lambda: (browser.find("input[name=token]") or [None])[0])
    field.send_keys("wrong", Keys.ENTER)
    browser.says("This token is not valid", ".login")
    field = browser.find("input[name=token]")[0]
    field.clear()
    field.send_keys(browser.site.token, Keys.ENTER)
    assert browser.until(lambda: browser.find("[data-row]"))


CHANGES = {  # what changes something, by the page that offers it
    "": ["All that match…"],
    "runs/{run}": ["Run again…", "Delete…"],
    "runs/{failed}": ["Resume", "Run again…", "Delete…"],
    "flows/Flow_": ["Run…"],
    "schedules": ["New schedule…"],
    "settings": ["Check now", "Look", "Add up", "Create"],
}


def test_a_token_that_may_only_read_is_offered_nothing_else_and_leads_to_the_login_when_revoked(
    browser: Browser,
) -> None:
    asked = json.dumps({"name": "short", "scope": "read"}).encode()
    token = browser.site.ask("POST", "/v1/tokens", asked)[1]["token"]
    browser.driver.delete_all_cookies()
    browser.driver.get(f"{browser.site.url}/ui/")
    field = browser.until(lambda: (browser.find("input[name=token]") or [None])[0])
    field.send_keys(token, Keys.ENTER)
    browser.until(lambda: browser.find("[data-row]"))
    browser.says("read only", ".top")
    barred = """
        return [...document.querySelectorAll("button[aria-disabled=true]")]
          .map((each) => each.textContent.trim())
    """
    for path, actions in CHANGES.items():
        browser.open(path.format(run=browser.site.run, failed=browser.site.failed))
        browser.until(lambda a=actions: {*a} <= {*browser.driver.execute_script(barred)})
    browser.press(".panel button[aria-disabled=true]")
    browser.says("Your token may only read", ".toast")
    assert not browser.find(".findings")
    browser.open("")
    browser.press("[data-row][aria-rowindex='2'] input[type=checkbox]")
    browser.until(
        lambda: {"Cancel", "Resume", "Tag", "Delete"} <= {*browser.driver.execute_script(barred)}
    )
    browser.find("body")[0].send_keys("X")
    browser.says("Your token may only read", ".toast")
    assert not browser.find(".many")
    assert 200 == browser.site.ask("DELETE", "/v1/tokens/short")[0]
    browser.until(lambda: browser.find("input[name=token]"), 90)
    browser.says("You are logged out", ".login")
    browser.driver.get(browser.site.link())


def test_a_database_that_is_away_is_said_and_noticed_when_it_is_back(
    browser: Browser, tmp_path: Path, repository: Path
) -> None:
    with postgres_for_one() as server, new_database(server) as url:
        with closing(open_metadata(url, "process")) as metadata:
            ui.generate(metadata, tmp_path.as_uri(), "Away", 5)
        site = Site(tmp_path)
        site.begin("--metadata", url, PYTHONPATH=str(repository))
        try:
            away = Browser(browser.driver, site)
            away.driver.get(site.link())
            away.open("runs/Away/1?tab=tasks")
            away.until(lambda: "work/5" in away.text(".rows"))
            server.kill()
            away.click("Artifacts")
            away.until(lambda: away.find("main .notice.bad, main .notice.warn"), 90)
            assert "The metadata" in away.text("main .notice")
            server.start()
            away.until(lambda: not away.find("main .notice.bad, main .notice.warn"), 90)
            away.until(lambda: away.find(".dot.live"), 90)
        finally:
            site.stop()
            browser.driver.get(browser.site.link())
