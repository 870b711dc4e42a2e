"""A headless Chromium for the tests, driven through chromedriver's own HTTP interface (W3C
WebDriver).
"""

import base64
import json
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any


# the key that the WebDriver standard gives to elements
TAB, ENTER, SPACE, DOWN = "\ue004", "\ue007", "\ue00d", "\ue015"
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"


def missing_programs() -> list[str]:
    """What of Chromium and chromedriver is not installed."""
    browsers = ("chromium", "chromium-browser", "google-chrome")
    missing = [] if any(map(shutil.which, browsers)) else ["chromium"]
    return missing + ([] if shutil.which("chromedriver") else ["chromedriver"])


class BrowserError(Exception):
    """What chromedriver says that went wrong."""


class Browser:
    """One window; a context manager."""

    def __enter__(self) -> "Browser":
        self.driver = subprocess.Popen(
            ["chromedriver", "--port=0"], stdout=subprocess.PIPE, text=True
        )
        for line in self.driver.stdout:
            if found := re.search(r"started successfully on port (\d+)", line):
                break
        self.url = f"http://127.0.0.1:{found[1]}"
        options = {
            "args": [
                "--headless=new",
                "--no-sandbox",
                "--disable-dev-shm-usage",
                "--window-size=1100,1500",
            ]
        }
        capabilities = {
            "alwaysMatch": {
                "browserName": "chrome",
                "goog:chromeOptions": options,
                "pageLoadStrategy": "none",
            }
        }
        session = self.call("POST", "/session", {"capabilities": capabilities})
        self.url += f"/session/{session['sessionId']}"
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.call("DELETE", "")
        self.driver.terminate()
        self.driver.wait(timeout=30)

    def call(self, method: str, path: str, body: dict | None = None) -> Any:
        data = json.dumps(body or {}).encode() if method == "POST" else None
        request = urllib.request.Request(
            self.url + path, data, {"Content-Type": "application/json"}, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=300) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise BrowserError(json.load(error)["value"]["message"]) from None

    def open(self, url: str) -> None:
        self.call("POST", "/url", {"url": url})

    def run(self, script: str, *arguments: Any) -> Any:
        return self.call("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def wait_for(self, script: str, *, seconds: float = 120) -> Any:
        """The first value of the JavaScript expression `script` that counts as true."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                if value := self.run(f"return {script}"):
                    return value
            except BrowserError as error:  # a busy machine: the renderer did not answer in time
                if "renderer" not in str(error):
                    raise
            time.sleep(0.25)
        raise TimeoutError(
            f"{script} did not come true in {seconds} s; the page says: {self.text()[:2000]}"
        )

    def text(self) -> str:
        return self.run("return document.body.innerText")

    def upload(self, selector: str, path: Path) -> None:
        element = self.call("POST", "/element", {"using": "css selector", "value": selector})[
            ELEMENT
        ]
        self.call("POST", f"/element/{element}/value", {"text": str(path)})

    def device(self, width: int, height: int, *, is_phone: bool = False) -> None:
        """Show pages as a screen of that many CSS pixels does; windows have a least width."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": is_phone}
        command = {"cmd": "Emulation.setDeviceMetricsOverride", "params": metrics}
        self.call("POST", "/goog/cdp/execute", command)

    def press(self, *keys: str) -> None:
        """Keys one after another, to whatever has the focus."""
        presses = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        actions = [{"type": "key", "id": "keyboard", "actions": presses}]
        self.call("POST", "/actions", {"actions": actions})

    def screenshot(self, path: Path) -> None:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(base64.b64decode(self.call("GET", "/screenshot")))
