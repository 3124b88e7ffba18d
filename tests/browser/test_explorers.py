"""In a real browser: JupyterLab shows every explorer, and a key moves it.

    make browser        # installs playwright; Debian's chromium (or Chrome) has to be there

Everything stays on 127.0.0.1; server, kernel and profile end with the test.
"""

import json
import os
import secrets
import shutil
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest

from minippo.widgets import EXPLORERS

ROOT = Path(__file__).parents[2]
BROWSER = next(filter(None, map(shutil.which, ("chromium", "google-chrome"))), None)
FLAGS = (
    "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    " --disable-component-update --disable-sync --disable-dev-shm-usage"
).split()
SETTINGS = {  # cells outside of the window stay in the page; no news is asked for
    "notebook-extension/tracker": {"windowingMode": "none"},
    "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}
BAD = ", ".join(
    f'.jp-OutputArea-output[data-mime-type="application/vnd.jupyter.{kind}"]'
    for kind in ("stderr", "error")
)
# From the key to the moment at which the new picture is decoded, on the page's own clock.
WATCH = """img => {
  window.pressed = window.drawn = null;
  window.addEventListener('keydown', () => { window.pressed ??= performance.now(); }, true);
  new MutationObserver(async () => {
    await img.decode();
    window.drawn ??= performance.now();
  }).observe(img, {attributes: true, attributeFilter: ['src']});
}"""

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome on the PATH"),
]


@pytest.fixture
def lab(tmp_path):
    """(address, token) of a JupyterLab whose folder holds a notebook with every explorer."""
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = nbformat.v4.new_notebook(metadata={"kernelspec": kernel})  # or the page asks for one
    first = f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom tests.test_widgets import make"
    sources = [first, *(f"make({name!r})" for name in EXPLORERS)]
    notebook.cells = [nbformat.v4.new_code_cell(source) for source in sources]
    root = tmp_path / "root"
    root.mkdir()
    nbformat.write(notebook, root / "explorers.ipynb")
    for name, values in SETTINGS.items():
        path = tmp_path / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(values))
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    token, folder = secrets.token_hex(16), str(tmp_path)
    options = [
        "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}",
        "--ServerApp.port_retries=0", f"--IdentityProvider.token={token}",
        f"--ServerApp.root_dir={root}", "--LabApp.news_url=",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    ]  # fmt: skip
    own = {
        "JUPYTERLAB_SETTINGS_DIR": f"{folder}/settings", "JUPYTER_RUNTIME_DIR": f"{folder}/run",
        "JUPYTERLAB_WORKSPACES_DIR": f"{folder}/workspaces", "IPYTHONDIR": f"{folder}/ipython",
        "JUPYTER_CONFIG_DIR": f"{folder}/config",
    }  # fmt: skip
    with open(tmp_path / "log", "w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyter", "lab", *options],
            env=os.environ | own, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    try:
        _wait(lambda: _asked(f"{address}/api/status?token={token}"), 60, tmp_path / "log")
        yield address, token
    finally:
        server.terminate()
        server.wait(20)


def test_a_key_moves_every_explorer(lab):
    sync_api = pytest.importorskip("playwright.sync_api", reason="make browser installs it")
    address, token = lab
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, headless=True, args=FLAGS)
        page, errors = browser.new_page(viewport={"width": 1280, "height": 1000}), []
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"{address}/lab/tree/explorers.ipynb?token={token}")
        page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=60_000)
        _run_all(page, address, token)
        print(f"{'explorer':20}{'key to picture, ms (median of 3)':>34}")
        for number, name in enumerate(EXPLORERS, start=1):
            print(f"{name:20}{_move(page, page.locator('.jp-CodeCell').nth(number)):>34.0f}")
        assert page.locator(BAD).all_text_contents() == []
        assert errors == []
        browser.close()


def _move(page, cell) -> float:
    """Move the first control of a cell's explorer by keyboard; milliseconds to the new picture."""
    control, image = cell.locator(".noUi-handle, select").first, cell.locator("img").first
    image.wait_for(timeout=60_000)
    control.scroll_into_view_if_needed()
    said, times = cell.locator("[role=status]").inner_text(), []
    for key in ("ArrowRight", "ArrowLeft", "ArrowRight") if _has_room(control) else (
        "ArrowLeft", "ArrowRight", "ArrowLeft",
    ):  # fmt: skip
        before = image.get_attribute("src")
        image.evaluate(WATCH)
        control.focus()
        page.keyboard.press(key)
        page.wait_for_function("() => window.drawn !== null", timeout=15_000)
        assert image.get_attribute("src") != before
        times.append(page.evaluate("() => window.drawn - window.pressed"))
    assert cell.locator("[role=status]").inner_text() != said  # it is said, too
    return statistics.median(times)


def _has_room(control) -> bool:
    """Whether a slider is not at its upper end; a list of choices begins at its top."""
    now, top = (control.get_attribute(f"aria-value{x}") for x in ("now", "max"))
    return now is None or float(now) < float(top)


def _run_all(page, address: str, token: str) -> None:
    """Run all cells. The page looks idle before its kernel is attached: ask the server."""

    def attached() -> bool:
        kernels = json.loads(_asked(f"{address}/api/kernels?token={token}"))
        return any(k["connections"] and k["execution_state"] == "idle" for k in kernels)

    _wait(attached, 60)
    prompts = (
        "[...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].map(e => e.textContent)"
    )
    for _ in range(5):  # a click that came too early does nothing, without a word
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        page.wait_for_timeout(3000)
        if page.evaluate(f"() => {prompts}.some(x => /[*0-9]/.test(x))"):
            break
    page.wait_for_function(f"() => {prompts}.every(x => /\\d/.test(x))", timeout=120_000)


def _asked(url: str) -> bytes:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return answer.read()


def _wait(done, seconds: float, log: Path | None = None) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if done():
                return
        except OSError:
            pass
        time.sleep(0.2)
    raise AssertionError(log.read_text()[-2000:] if log else f"not within {seconds} seconds")
