"""A headless Chromium for tests of pages, through selenium and chromedriver."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from regaze.toolkit.viewer import Page

TIMING = """const done = arguments[0], times = [];
const keys = ['ArrowRight', 'ArrowUp', ']', 'x', 'ArrowLeft', 'd', 'a', 's', '1', '2', 'ArrowUp', 'm'];
const frame = () => new Promise((next) => requestAnimationFrame(() => setTimeout(next)));
(async () => {
  for (const key of keys) {
    await frame();
    const start = performance.now();
    document.body.dispatchEvent(new KeyboardEvent('keydown', {key, bubbles: true}));
    document.body.offsetHeight;
    const worked = performance.now() - start;
    await frame();
    times.push([key, worked, performance.now() - start]);
  }
  done(times);
})()"""


class Browser:
    """A headless Chromium with one page open."""

    def __init__(self, driver: Any, folder: Path):
        self.driver, self.folder = driver, folder

    def open(self, page: Page, fragment: str = "", name: str = "page") -> None:
        path = page.save(self.folder / f"{name}.html")
        self.driver.get("about:blank")  # a page that only changes its fragment is not loaded again
        for kind in ("browser", "performance"):
            self.driver.get_log(kind)
        self.driver.get(path.as_uri() + fragment)
        self.wait("document.documentElement.dataset.ready === '1'")

    def wait(self, condition: str) -> None:
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.driver, 60).until(lambda driver: driver.execute_script(f"return {condition}"))

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def click(self, selector: str, beside: int = 0) -> None:
        """Click the middle of an element, or `beside` pixels to the right of and below it."""
        from selenium.webdriver.common.action_chains import ActionChains
        from selenium.webdriver.common.by import By

        element = self.driver.find_element(By.CSS_SELECTOR, selector)
        if not beside:
            return element.click()
        ActionChains(self.driver).move_to_element_with_offset(element, beside, beside).click().perform()

    def press(self, *keys: str) -> None:
        from selenium.webdriver.common.action_chains import ActionChains

        for key in keys:
            ActionChains(self.driver).send_keys(key).perform()

    def text(self, selector: str) -> str:
        return self.run("return document.querySelector(arguments[0]).textContent", selector)

    def map(self, number: int = 0) -> np.ndarray:
        """[rows, columns, 4] pixels of a picture's canvas."""
        script = """const canvas = document.getElementById(`map-${arguments[0]}`);
            const context = canvas.getContext('2d');
            const {data, width, height} = context.getImageData(0, 0, canvas.width, canvas.height);
            return [height, width, Array.from(data)]"""
        rows, columns, pixels = self.run(script, number)
        return np.array(pixels).reshape(rows, columns, 4)

    def state(self) -> dict[str, str]:
        return self.run("return Object.fromEntries(new URLSearchParams(location.hash.slice(1)))")

    def complaints(self) -> list[str]:
        """Errors and warnings, except performance advice, which is about how these tests read pixels."""
        return [e["message"] for e in self.driver.get_log("browser") if e["source"] != "rendering"]

    def requests(self) -> list[str]:
        """URLs requested since the page was opened, except the page itself and data URLs."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        sent = [e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"]
        return [url for url in sent if not url.startswith(("file:", "data:", "about:"))]

    def times(self) -> list[tuple[str, float, float]]:
        """For each key the milliseconds of script time, and those until its effect is painted."""
        self.driver.set_script_timeout(60)
        return self.driver.execute_async_script(TIMING)

    def shot(self, name: str, *, dark: bool = False) -> None:
        """A screenshot of the whole page, if the environment variable REGAZE_SCREENSHOTS names a folder."""
        folder = os.environ.get("REGAZE_SCREENSHOTS")
        if not folder:
            return
        scheme = {"features": [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", scheme)
        self.run("document.documentElement.style.overflow = 'hidden'")
        frame = self.run("return outerHeight - innerHeight")
        height = self.run("return document.documentElement.scrollHeight")
        self.driver.set_window_size(1400, min(height + frame, 2600))
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.driver.save_screenshot(str(Path(folder) / f"{name}.png"))
        self.driver.set_window_size(1400, 1000)
        self.run("document.documentElement.style.overflow = ''")


def headless(chromium: str, chromedriver: str) -> Any:
    """The driver of a new browser, whose console and requests are logged."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--disable-gpu", "--disable-dev-shm-usage", "--window-size=1400,1000"):
        options.add_argument(argument)
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # Chromium's sandbox does not work for root
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    return webdriver.Chrome(options=options, service=webdriver.ChromeService(chromedriver))
