"""Run notebooks and store what they print: `python tools/execute.py [FILE ...]`, default all.

Only outputs and execution counts are stored: no times, no progress bars and no widget state (one
position of the sliders, dead without a kernel), so that a file changes only when its content does.
Each keeps the text that tests compare. Exercises are first filled in from their contracts.
"""

import os
import re
import sys
import time
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

from minippo.checks.engine.contract import contract

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
QUIET = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "TQDM_DISABLE": "1"}
QUIET["MINIPPO_MINE"] = "off"  # no stored output depends on a student's file
WIDGET = "application/vnd.jupyter.widget-view+json"
# An exercise ends its cell; what comes before it in the cell stays.
HEADING = re.compile(r"^## Exercise (\d+(?: \(optional\))?).*\Z", re.MULTILINE | re.DOTALL)
CHECKED = re.compile(r"^(\w+) = checks\.\1\(my_\1\)\.use\(\)\Z", re.MULTILINE)


def fill(cells: list[Any]) -> None:
    """Write the exercises that have a contract: the stub's cell, and the text before it."""
    heading = None
    for cell in cells:
        if cell["cell_type"] == "markdown" and HEADING.search(cell["source"]):
            heading = cell
        checked = CHECKED.search(cell["source"].rstrip())
        if cell["cell_type"] != "code" or not checked or not (found := contract(checked[1])):
            continue
        cell["source"] = found.cell()
        if heading is not None:
            heading["source"] = HEADING.sub(lambda m: found.markdown(m[1]), heading["source"])
            heading = None


def kept(metadata: dict[str, Any]) -> dict[str, Any]:
    """What a reader's Jupyter needs: tags, and that a cell's code is folded."""
    tags, jupyter = list(metadata.get("tags", [])), metadata.get("jupyter", {})
    hidden = jupyter.get("source_hidden") or "maintainers" in tags
    if hidden and "hide-input" not in tags:
        tags.append("hide-input")  # for the site
    found: dict[str, Any] = {"tags": tags} if tags else {}
    if hidden:
        found["jupyter"] = {"source_hidden": True}
    return found


def execute(path: Path) -> None:
    """Run one notebook from its folder, and write it back."""
    notebook = nbformat.read(path, as_version=4)
    fill(notebook.cells)
    start = time.perf_counter()
    client = NotebookClient(
        notebook, timeout=600, resources={"metadata": {"path": str(path.parent)}},
        store_widget_state=False, record_timing=False, coalesce_streams=True,
    )  # fmt: skip
    client.execute()
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number:02d}", kept(cell.metadata)
        for output in cell.get("outputs", []):
            output.get("data", {}).pop(WIDGET, None)
    nbformat.write(notebook, path)
    print(f"{path.name}: {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    os.environ.update(QUIET)
    for name in sys.argv[1:] or sorted(map(str, NOTEBOOKS.glob("*.ipynb"))):
        execute(Path(name).resolve())
