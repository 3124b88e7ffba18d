"""A headless Chromium over its own protocol: as much as one page and a keyboard need."""

import json
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

import websocket

FLAGS = [
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--remote-debugging-port=0", "--window-size=1280,1000",
]  # fmt: skip
KEYS = {  # name -> virtual key code, text
    "ArrowLeft": (37, ""), "ArrowRight": (39, ""),
    "Enter": (13, "\r"), " ": (32, " "),
}  # fmt: skip


def program() -> str | None:
    """Where Chromium is, if it is installed."""
    return shutil.which("chromium") or shutil.which("google-chrome")


class Page:
    """One tab. `errors` are the exceptions that its scripts did not catch."""

    def __init__(self, profile: Path) -> None:
        command = [program() or "chromium", *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        self._process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        port = profile / "DevToolsActivePort"
        wait(lambda: port.exists() and port.read_text(encoding="utf-8").strip(), "Chromium")
        number = port.read_text(encoding="utf-8").split()[0]
        tabs = f"http://127.0.0.1:{number}/json/list"

        def tab() -> str | None:
            found = json.load(urllib.request.urlopen(tabs, timeout=5))
            return next((t["webSocketDebuggerUrl"] for t in found if t["type"] == "page"), None)

        self._socket = websocket.create_connection(
            wait(tab, "a page"), suppress_origin=True, timeout=60
        )
        self._number, self.errors = 0, list[str]()
        self.call("Runtime.enable")
        self.call("Page.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """A command of the protocol; its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        self._socket.send(json.dumps(message))
        while True:
            answer = json.loads(self._socket.recv())
            if answer.get("method") == "Runtime.exceptionThrown":
                thrown = answer["params"]["exceptionDetails"]
                self.errors.append(str(thrown.get("exception", thrown).get("description", thrown)))
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression; a promise is waited for."""
        done = self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in done, (script, done["exceptionDetails"])
        return done["result"].get("value")

    def wait(self, script: str, what: str, seconds: float = 60) -> Any:
        """Wait until a JavaScript expression is true; its value."""
        return wait(lambda: self.run(script), what, seconds)

    def press(self, key: str) -> None:
        """A key down and up, where the focus is."""
        code, text = KEYS[key]
        event = {"key": key, "code": "Space" if key == " " else key}
        event |= {"windowsVirtualKeyCode": code}
        down = "keyDown" if text else "rawKeyDown"
        self.call("Input.dispatchKeyEvent", type=down, text=text, **event)
        self.call("Input.dispatchKeyEvent", type="keyUp", **event)

    def write(self, text: str) -> None:
        """Text, where the focus is."""
        self.call("Input.insertText", text=text)

    def close(self) -> None:
        """End the browser."""
        self._socket.close()
        self._process.terminate()
        self._process.wait(20)


def wait(condition: Any, what: str, seconds: float = 60) -> Any:
    """Poll until a condition gives something true, and return that."""
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"waited {seconds} s in vain for {what}"
        time.sleep(0.05)
    return found
