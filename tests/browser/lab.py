"""JupyterLab on loopback, with its own settings, kernels and files."""

import json
import os
import secrets
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

from tests.browser.chromium import Page, wait

ROOT = Path(__file__).parents[2]
SETTINGS = {
    # Else cells outside the viewport are not in the page.
    "notebook-extension/tracker": {"windowingMode": "none"},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}


class Lab:
    """A server for the notebooks in a folder."""

    def __init__(self, folder: Path) -> None:
        private = folder / ".private"
        for name, value in SETTINGS.items():
            file = private / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(value), encoding="utf-8")
        places = "CONFIG_DIR RUNTIME_DIR DATA_DIR".split()
        mine = {f"JUPYTER_{place}": str(private / place) for place in places}
        mine |= {
            "JUPYTERLAB_SETTINGS_DIR": str(private / "settings"),
            "JUPYTERLAB_WORKSPACES_DIR": str(private / "workspaces"),
            "IPYTHONDIR": str(private / "ipython"),
            "PYTHONPATH": str(ROOT),
        }
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.token, self.url = secrets.token_hex(16), f"http://127.0.0.1:{port}"
        options = [
            "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}",
            "--ServerApp.port_retries=0", f"--IdentityProvider.token={self.token}",
            f"--ServerApp.root_dir={folder}", "--LabApp.extension_manager=readonly",
            "--LabApp.news_url=", "--LabApp.expose_app_in_browser=True",
            "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
        ]  # fmt: skip
        self.log = (private / "lab.log").open("w", encoding="utf-8")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "jupyter", "lab", *options],
            env=os.environ | mine, stdout=self.log, stderr=subprocess.STDOUT,
        )  # fmt: skip
        wait(self._answers, "JupyterLab")

    def _answers(self) -> bool:
        try:
            return bool(self.ask("api/status"))
        except OSError:
            assert self._process.poll() is None, Path(self.log.name).read_text(encoding="utf-8")
            return False

    def ask(self, what: str) -> Any:
        """The server's answer to a question."""
        return json.load(urllib.request.urlopen(f"{self.url}/{what}?token={self.token}", timeout=5))

    def run_all(self, page: Page, notebook: str) -> None:
        """Open a notebook and run it to its end."""
        page.call("Page.navigate", url=f"{self.url}/lab/tree/{notebook}?token={self.token}")
        page.wait("!!document.querySelector('.jp-Notebook .jp-CodeCell')", "the notebook")
        # The page says "idle" before the kernel is there, and Run All then does nothing, silently:
        # ask the server instead, and try again if no cell begins.
        wait(self._connected, "a kernel")
        prompts = "[...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')]"
        for attempt in range(5):
            page.run("void window.jupyterapp.commands.execute('notebook:run-all-cells')")
            try:
                begun = f"{prompts}.some(e => /\\[(\\*|\\d+)\\]/.test(e.textContent))"
                page.wait(begun, "a first cell", 4)
                break
            except AssertionError:
                assert attempt < 4, "Run All did nothing, five times"
        page.wait(f"{prompts}.every(e => /\\[\\d+\\]/.test(e.textContent))", "all cells", 120)

    def _connected(self) -> bool:
        try:
            kernels = self.ask("api/kernels")
        except urllib.error.HTTPError:  # 500 between a kernel's entry in the list and its start
            return False
        return any(k["connections"] >= 1 and k["execution_state"] == "idle" for k in kernels)

    def close(self) -> None:
        """End the server and its kernels."""
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self.log.close()
