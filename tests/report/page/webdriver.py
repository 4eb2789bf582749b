"""A browser for tests: headless Chromium by chromedriver's own protocol, without a package."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
_ARGUMENTS = (
    "headless",
    "no-sandbox",
    "disable-gpu",
    "disable-quic",
    "no-first-run",
    "disable-background-networking",
    "disable-component-update",
    "disable-sync",
)


class Browser:
    """A session at the address of a driver."""

    def __init__(self, address: str, profile: Path) -> None:
        options = {
            "binary": str(CHROMIUM),
            "args": [f"--{name}" for name in (*_ARGUMENTS, f"user-data-dir={profile}")],
        }
        wanted = {
            "browserName": "chrome",
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL"},
        }
        self._address = f"{address}/session"
        self._address += f"/{self._call('', {'capabilities': {'alwaysMatch': wanted}})['sessionId']}"

    def _call(self, path: str, body: dict[str, Any] | None, method: str = "POST") -> Any:
        content = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self._address + path, content, {"Content-Type": "application/json"}, method=method
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)["value"]

    def open(self, page: Path) -> None:
        self._call("/url", {"url": page.resolve().as_uri()})

    def back(self) -> None:
        """As the button does."""
        self._call("/back", {})

    def run(self, script: str) -> Any:
        """What a function body in JavaScript returns."""
        return self._call("/execute/sync", {"script": script, "args": []})

    def call(self, command: str, **parameters: Any) -> Any:
        """Of the developer tools' protocol."""
        return self._call("/goog/cdp/execute", {"cmd": command, "params": parameters})

    def resize(self, width: int, height: int) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )

    def messages(self) -> list[str]:
        """What the console has printed since the last call."""
        return [entry["message"] for entry in self._call("/se/log", {"type": "browser"})]

    def close(self) -> None:
        self._call("", None, "DELETE")


@contextlib.contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """A browser with a new profile, closed at the end."""
    driver = subprocess.Popen([str(DRIVER), "--port=0"], stdout=subprocess.PIPE, text=True)
    try:
        assert driver.stdout is not None
        port = next(
            found[1]
            for line in driver.stdout
            if (found := re.search(r"started successfully on port (\d+)", line))
        )
        session = Browser(f"http://127.0.0.1:{port}", profile)
        try:
            yield session
        finally:
            session.close()
    finally:
        driver.terminate()
        driver.wait()
