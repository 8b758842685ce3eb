"""A real Chromium, driven over its debugging pipe: no driver binary, no port, no dependency."""

import base64
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

QUIET = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
DEADLINE_S = 60


def chromium() -> str | None:
    """Return the browser of this machine, if it has one."""
    return next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )


class Browser:
    """One tab."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to, self._from, self._buffer, self._last = to_browser, from_browser, b"", 0
        self._session = ""
        self.problems: list[str] = []
        """What scripts threw, and what the console said as an error or a warning."""
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")

    def open(self, page: Path, *, width: int = 1100, dark: bool = False) -> None:
        """Load a file, without any network."""
        offline = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
        self._call("Network.emulateNetworkConditions", **offline)
        feature = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", media="", features=[feature])
        self._call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1,
            mobile=width < 600,
        )  # fmt: skip
        self._call("Page.navigate", url=page.resolve().as_uri())
        self._wait("Page.loadEventFired")

    def run(self, script: str) -> Any:
        """Return the value of a JavaScript expression."""
        found = self._call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def screenshot(self, file: Path) -> None:
        """Write the whole page as PNG."""
        found = self._call("Page.captureScreenshot", captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(found["data"]))

    def print_as_screen(self) -> None:
        """Lay the page out as for paper, until the next one is opened."""
        self._call("Emulation.setEmulatedMedia", media="print", features=[])

    def pdf(self, file: Path) -> None:
        """Print the page."""
        options = {"printBackground": True, "preferCSSPageSize": True}
        file.write_bytes(base64.b64decode(self._call("Page.printToPDF", **options)["data"]))

    def _call(self, method: str, **params: Any) -> dict[str, Any]:
        self._last += 1
        message: dict[str, Any] = {"id": self._last, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        for answer in self._messages():
            if answer.get("id") == self._last:
                assert "error" not in answer, (method, answer)
                return dict(answer["result"])
        raise AssertionError(f"the browser ended before it answered {method}")

    def _wait(self, event: str) -> None:
        assert any(each.get("method") == event for each in self._messages()), "the browser ended"

    def _messages(self) -> Iterator[dict[str, Any]]:
        while True:
            while b"\0" not in self._buffer:
                chunk = os.read(self._from, 1 << 16)
                if not chunk:
                    return
                self._buffer += chunk
            text, _, self._buffer = self._buffer.partition(b"\0")
            message = json.loads(text)
            if message.get("method") == "Runtime.exceptionThrown":
                self.problems.append(str(message["params"]["exceptionDetails"]))
            if message.get("method") == "Log.entryAdded":
                self.problems.append(str(message["params"]["entry"]["text"]))
            yield message


@contextmanager
def open_browser(profile: Path) -> Iterator[Browser]:
    """Give a browser with a profile of its own, and end it."""
    program = chromium()
    assert program is not None
    ours_in, theirs_out = os.pipe()
    theirs_in, ours_out = os.pipe()

    def wire() -> None:  # the browser reads at 3 and writes at 4
        a, b = os.dup(theirs_in), os.dup(theirs_out)
        os.dup2(a, 3)
        os.dup2(b, 4)

    process = subprocess.Popen(
        [program, *QUIET, "--remote-debugging-pipe", f"--user-data-dir={profile}"],
        preexec_fn=wire, pass_fds=(3, 4, theirs_in, theirs_out), start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(theirs_in)
    os.close(theirs_out)
    try:
        yield Browser(ours_out, ours_in)
    finally:
        process.terminate()
        process.wait(DEADLINE_S)
        os.close(ours_out)
        os.close(ours_in)
