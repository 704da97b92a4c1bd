"""Screenshots of the web UI for the documentation, with real runs in a real browser.

scripts/screenshots [FOLDER]        # the default is docs/images
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from aflow.metadata.factory import open_metadata
from benchmarks import ui

ROOT = Path(__file__).resolve().parent.parent
FLOW = '''
import random, time
from aflow import FlowSpec, Parameter, card, retry, step


class TrainFlow(FlowSpec):
    """Trains a model for each region, and keeps the best."""

    alpha = Parameter("alpha", default=0.1, help="Learning rate")
    regions = Parameter("regions", default=40)
    strict = Parameter("strict", default=False)

    @step
    def start(self):
        import numpy as np

        self.weights = np.random.default_rng(1).normal(size=1000)
        self.names = [f"region-{n}" for n in range(self.regions)]
        print("learning rate", self.alpha)
        self.next(self.train, foreach="names")

    @retry(times=1, minutes_between_retries=0)
    @step
    def train(self):
        for epoch in range(3):
            time.sleep(random.random() * 0.12)
            print(f"epoch {epoch} loss {random.random() / (epoch + 1):.4f}")
        if self.strict and self.input == "region-7":
            raise ValueError("region-7 has no rows since 2026-11-02")
        self.score = random.random()
        self.next(self.choose)

    @card
    @step
    def choose(self, inputs):
        import pandas as pd

        scores = [(each.input, each.score) for each in inputs]
        self.table = pd.DataFrame(scores, columns=["region", "score"]).sort_values("score")
        self.best = max(each.score for each in inputs)
        self.next(self.report, self.publish)

    @step
    def report(self):
        self.next(self.end_both)

    @step
    def publish(self):
        self.next(self.end_both)

    @step
    def end_both(self, inputs):
        self.merge_artifacts(inputs)
        self.next(self.end)

    @step
    def end(self):
        print("best", round(self.best, 4))


if __name__ == "__main__":
    TrainFlow()
'''
SHOTS = {
    "runs": ("", "light"),
    "run": ("runs/{run}", "light"),
    "failed": ("runs/{failed}", "light"),
    "timeline": ("runs/{run}?tab=timeline", "dark"),
    "wide": ("runs/Wide/1?tab=timeline", "light"),
    "artifacts": ("runs/{run}?tab=artifacts", "light"),
    "compare": ("compare?runs={run},{other}", "light"),
}


def main() -> None:
    target = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "docs" / "images")
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "train.py").write_text(FLOW)
        environment = {**os.environ, "USER": "ann", "AFLOW_USER": "ann", "AFLOW_HOME": name}
        runs = [run_flow(folder, environment, *words) for words in (
            ("--alpha", "0.5", "--tag", "nightly"), ("--tag", "prod"), ("--strict", "true"),
        )]  # fmt: skip
        other, run, failed = runs
        database = f"sqlite:///{folder}/.aflow/metadata.db"
        with closing(open_metadata(database, "process")) as metadata:
            ui.generate(metadata, f"file://{folder}/.aflow", "Wide", 100_000)
        server = subprocess.Popen(
            [sys.executable, "-m", "aflow", "ui", "--no-browser"],
            cwd=folder, env=environment, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            assert server.stdout is not None
            link = next(line.strip() for line in server.stdout if line.startswith("http"))
            take(target, link, {"run": run, "failed": failed, "other": other})
        finally:
            server.terminate()
            server.wait()


def run_flow(folder: Path, environment: dict[str, str], *words: str) -> str:
    """Run the flow, and return the pathspec of the run."""
    file = folder / "run-id"
    command = ["train.py", "run", "--max-workers", "8", "--run-id-file", str(file), *words]
    subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, check=False,
    )  # fmt: skip
    return f"TrainFlow/{file.read_text().strip()}"


def take(target: Path, link: str, names: dict[str, str]) -> None:
    """Log in with the link, and take all screenshots."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or "chromium"
    for each in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
                 "--disable-background-networking", "--window-size=1280,800"):  # fmt: skip
        options.add_argument(each)
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        driver.get(link)
        base = link.partition("/ui/")[0]
        for name, (path, theme) in SHOTS.items():
            features = [{"name": "prefers-color-scheme", "value": theme}]
            driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
            driver.get(f"{base}/ui/{path.format(**names)}")
            WebDriverWait(driver, 30).until(
                lambda d: d.find_elements(By.CSS_SELECTOR, "main h1, main table")
            )
            WebDriverWait(driver, 30).until(
                lambda d: not d.find_elements(By.CSS_SELECTOR, "[aria-busy=true]")
            )
            time.sleep(0.5)  # fonts and the first frame of a canvas
            driver.save_screenshot(str(target / f"ui-{name}.png"))
            print(target / f"ui-{name}.png")
    finally:
        driver.quit()


if __name__ == "__main__":
    main()
