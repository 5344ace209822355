"""A headless Chromium, driven by its DevTools protocol: pages as a person sees them."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

NAMES = ("chromium", "chromium-browser", "google-chrome")
PATIENCE = 60.0
"""Seconds for which a page may take to show what it is asked for."""
_PAUSE = 0.05


def chromium() -> str | None:
    """Where a Chromium is on this machine."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """One tab, open as long as its browser.

    Args:
        connection: To the browser.
        session: Of the tab.
    """

    def __init__(self, connection: ClientConnection, session: str) -> None:
        self._connection = connection
        self._session = session
        self._numbers = count(1_000)

    def open(self, url: str) -> None:
        """Go to a page. It may not show anything yet."""
        self._send("Page.navigate", url=url)

    def evaluate(self, script: str) -> Any:
        """What an expression in JavaScript amounts to, as JSON has it.

        Raises:
            RuntimeError: It raised something.
        """
        found = self._send(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in found:
            raise RuntimeError(f"{script!r} in the page: {found['exceptionDetails']}")
        return found["result"].get("value")

    @property
    def text(self) -> str:
        """All that the page shows, as text."""
        return str(self.evaluate("document.body ? document.body.innerText : ''"))

    def wait_for(self, script: str) -> Any:
        """What an expression amounts to once that is true.

        Raises:
            TimeoutError: It did not become true; with what the page shows.
        """
        deadline = time.monotonic() + PATIENCE
        while not (found := self.evaluate(script)):
            if time.monotonic() > deadline:
                raise TimeoutError(f"The page did not come to {script!r}. It shows:\n{self.text}")
            time.sleep(_PAUSE)
        return found

    def wait_for_text(self, *texts: str) -> str:
        """The page's text once it has all of some texts.

        Raises:
            TimeoutError: It has not.
        """
        for text in texts:
            self.wait_for(f"document.body && document.body.innerText.includes({json.dumps(text)})")
        return self.text

    def click(self, selector: str, text: str = "") -> None:
        """Click at the middle of the first visible element that has a text.

        Raises:
            TimeoutError: There is none.
        """
        place = self.wait_for(_PLACE % (json.dumps(selector), json.dumps(text)))
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            button = "none" if kind == "mouseMoved" else "left"
            self._send("Input.dispatchMouseEvent", type=kind, button=button, clickCount=1, **place)

    def type(self, text: str) -> None:
        """Type into what has the focus."""
        self._send("Input.insertText", text=text)

    def screenshot(self, path: Path) -> None:
        """Keep what is visible as a PNG."""
        shot = self._send("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(shot["data"]))

    def size(self, width: int, height: int) -> None:
        """Make the page as wide and high, in pixels."""
        self._send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def _send(self, method: str, **parameters: Any) -> dict[str, Any]:
        return call(self._connection, next(self._numbers), method, parameters, self._session)


_PLACE = """(() => {
  const found = [...document.querySelectorAll(%s)].find(
    e => e.getClientRects().length && e.innerText.trim().includes(%s));
  if (!found) return null;
  found.scrollIntoView({block: 'center'});
  const box = found.getBoundingClientRect();
  return {x: box.x + box.width / 2, y: box.y + box.height / 2};
})()"""


def call(
    connection: ClientConnection,
    number: int,
    method: str,
    parameters: dict[str, Any],
    session: str | None = None,
) -> dict[str, Any]:
    """What the browser answers to one command.

    Raises:
        RuntimeError: It refused it.
    """
    message = {"id": number, "method": method, "params": parameters}
    if session is not None:
        message["sessionId"] = session
    connection.send(json.dumps(message))
    while True:
        answer = json.loads(connection.recv(timeout=PATIENCE))
        if answer.get("id") != number:  # an event, of which none was asked for
            continue
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        result: dict[str, Any] = answer["result"]
        return result


@contextmanager
def open_page(width: int = 1600, height: int = 1000) -> Iterator[Page]:
    """A new tab of a browser of its own, which ends with the block and leaves nothing.

    Raises:
        RuntimeError: There is no Chromium, or it ended at once.
    """
    path = chromium()
    if path is None:
        raise RuntimeError("There is no Chromium here: apt-get install chromium.")
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [path, *_OPTIONS, f"--user-data-dir={profile}", "about:blank"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            with connect(_address(process, Path(profile)), max_size=None) as connection:
                target = call(connection, 1, "Target.createTarget", {"url": "about:blank"})
                attached = call(connection, 2, "Target.attachToTarget", {**target, "flatten": True})
                page = Page(connection, attached["sessionId"])
                page.size(width, height)
                yield page
                call(connection, 3, "Browser.close", {})
        finally:
            process.terminate()
            process.wait()


_OPTIONS = (
    "--headless=new",
    "--no-sandbox",  # as root, in a container
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
)


def _address(process: subprocess.Popen[bytes], profile: Path) -> str:
    """Where a browser listens, which it writes into its profile."""
    told = profile / "DevToolsActivePort"
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        lines = told.read_text().split() if told.exists() else []
        if len(lines) == 2:
            return f"ws://127.0.0.1:{lines[0]}{lines[1]}"
        time.sleep(_PAUSE)
    raise RuntimeError(f"Chromium did not start, exit code {process.poll()}.")
