"""A headless Chromium, driven through chromedriver's WebDriver protocol with Python's own http client."""

import json
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
CHROMEDRIVER = shutil.which("chromedriver")
PATIENCE = 60  # seconds


class Browser:
    """One window; use as a context manager."""

    def __init__(self, profile: str | Path) -> None:
        self.profile = profile

    def __enter__(self) -> "Browser":
        self.driver = subprocess.Popen([CHROMEDRIVER, "--port=0"], stdout=subprocess.PIPE, text=True)
        for line in self.driver.stdout:
            if "started successfully on port" in line:
                self.url = f"http://127.0.0.1:{line.strip().rstrip('.').rpartition(' ')[2]}/session"
                break
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        options = {"binary": CHROMIUM, "args": [*flags, f"--user-data-dir={self.profile}"]}
        answer = self._post("", {"capabilities": {"alwaysMatch": {"goog:chromeOptions": options,
                                                                  "goog:loggingPrefs": {"browser": "ALL"}}}})
        self.url += f"/{answer['sessionId']}"
        return self

    def __exit__(self, *_) -> None:
        try:
            urllib.request.urlopen(urllib.request.Request(self.url, method="DELETE"), timeout=PATIENCE).close()
        finally:
            self.driver.terminate()
            self.driver.wait()
            self.driver.stdout.close()

    def open(self, url: str, *, width: int, height: int = 1000) -> None:
        self._post("/goog/cdp/execute", {"cmd": "Emulation.setDeviceMetricsOverride", "params": {
            "width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}})
        self._post("/url", {"url": url})

    def run(self, script: str, *arguments: object) -> object:
        """What a function body returns, run in the page; arguments are ``arguments[0]`` and so on."""
        return self._post("/execute/sync", {"script": script, "args": list(arguments)})

    def wait(self, condition: str) -> None:
        """Until an expression is true in the page."""
        end = time.monotonic() + PATIENCE
        while not self.run(f"return Boolean({condition})"):
            assert time.monotonic() < end, f"never true: {condition}"
            time.sleep(0.05)

    def type(self, css: str, text: str) -> None:
        self._post(f"/element/{self._find(css)}/clear", {})
        self._post(f"/element/{self._find(css)}/value", {"text": text})

    def click(self, css: str) -> None:
        self._post(f"/element/{self._find(css)}/click", {})

    def errors(self) -> list[str]:
        """What the page complained of on its console since last asked."""
        return [entry["message"] for entry in self._post("/se/log", {"type": "browser"}) if entry["level"] == "SEVERE"]

    def _find(self, css: str) -> str:
        return next(iter(self._post("/element", {"using": "css selector", "value": css}).values()))

    def _post(self, path: str, body: dict):
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(),
                                         {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()) from None
