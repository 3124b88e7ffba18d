"""The stored notebooks are complete, small and honest; nbval itself compares their outputs."""

import copy
import json
import random
import re
from pathlib import Path

import nbformat
import pytest
from nbval.plugin import IPyNbFile, NbCellError

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
IGNORED = re.compile(r"^# NBVAL_(IGNORE_OUTPUT|SKIP)$", re.MULTILINE)

pytestmark = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem[:2])


def cells(path: Path, kind: str = "code") -> list[dict]:
    made = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [c | {"source": "".join(c["source"])} for c in made if c["cell_type"] == kind]


def text_of(output: dict) -> str:
    found = output.get("text") or output.get("data", {}).get("text/plain") or ""
    return "".join(found)


def ignored(cell: dict) -> bool:
    """By a tag, or by the comment that lessons not yet rebuilt have."""
    tagged = "nbval-ignore-output" in cell["metadata"].get("tags", [])
    return tagged or bool(IGNORED.search(cell["source"]))


def compared(path: Path) -> list[dict]:
    return [c for c in cells(path) if c["outputs"] and not ignored(c)]


def test_every_cell_of_a_notebook_was_executed_in_order_and_without_error(path):
    assert [c["execution_count"] for c in cells(path)] == list(range(1, len(cells(path)) + 1))
    outputs = [o for c in cells(path) for o in c["outputs"]]
    assert [o for o in outputs if o["output_type"] == "error" or o.get("name") == "stderr"] == []


def test_seven_tenths_of_the_outputs_are_compared_and_say_something(path):
    with_output = [c for c in cells(path) if c["outputs"]]
    telling = [c for c in compared(path) if len("".join(map(text_of, c["outputs"]))) > 10]
    assert len(telling) >= 0.7 * len(with_output)


def test_every_ignored_output_has_its_reason_on_the_next_line(path):
    for cell in cells(path):
        assert not re.search(r"\S.*# *NBVAL_", cell["source"])  # nbval wants the line to itself
        for found in IGNORED.finditer(cell["source"]):
            assert cell["source"][found.end() :].startswith("\n# Reason: ")


def test_a_notebooks_file_is_small_and_stores_neither_widgets_nor_bars(path):
    assert path.stat().st_size <= 200_000
    text = path.read_text(encoding="utf-8")
    assert "widgets" not in json.loads(text)["metadata"]
    assert "widget-view" not in text
    assert "it/s" not in text
    assert not any(c["source"].rstrip().endswith(";") for c in cells(path))


def test_every_picture_has_a_text_for_those_who_cannot_see_it(path):
    for cell in cells(path):
        pages = ["".join(o.get("data", {}).get("text/html", "")) for o in cell["outputs"]]
        for page in pages:
            for alt in re.findall(r'<img alt="([^"]*)"', page):
                assert len(alt) >= 40
            assert "data:image/png" not in page  # a third larger than what plots.show stores
            assert page.count("<img") == page.count("<img alt=") == page.count("<figcaption>")
        kinds = {kind for o in cell["outputs"] for kind in o.get("data", {})}
        assert not kinds & {"image/png", "image/svg+xml"}  # pictures come from plots.show


def test_the_first_cell_of_every_notebook_is_the_same(path):
    assert cells(path)[0]["source"] == cells(NOTEBOOKS[0])[0]["source"]


def test_links_inside_the_repository_lead_somewhere(path):
    text = "\n".join(c["source"] for c in cells(path, "markdown"))
    links = [link for link in re.findall(r"\]\(([^)#\s]+)\)", text) if "://" not in link]
    assert [link for link in links if not (path.parent / link).exists()] == []
    assert "http://" not in text  # and no picture is fetched from anywhere
    assert not re.search(r"!\[[^]]*\]\(http", text)


class Replay:
    """Instead of a kernel: each cell, once executed, gives what `cells` hold."""

    def __init__(self, cells: list[dict]):
        self.outputs = iter([c["outputs"] for c in cells])

    def is_alive(self) -> bool:
        return True

    def execute_cell_input(self, source: str, allow_stdin: bool) -> str:
        idle = {"output_type": "status", "execution_state": "idle"}
        self.messages = iter([*next(self.outputs), idle])
        return "id"

    def await_reply(self, message: str, timeout: float) -> None: ...

    def get_message(self, stream: str, timeout: float) -> dict:
        out = next(self.messages)
        return {"msg_type": out["output_type"], "content": out, "parent_header": {"msg_id": "id"}}


def found_to_differ(path: Path, came: list[dict], session: pytest.Session) -> list[int]:
    """The cells that nbval, with the options of `session`, fails when `came` comes out."""
    file = IPyNbFile.from_parent(session, path=path)
    file.setup_sanitize_files()
    file.kernel = Replay(came)
    failed = []
    for number, cell in enumerate(file.collect()):
        try:
            cell.runtest()
        except NbCellError as error:
            assert error.args == ("Cell outputs differ",)  # noqa: PT017
            failed.append(number)
    return failed


def change_a_digit(output: dict, rng: random.Random) -> None:
    holder, key = (output, "text") if "text" in output else (output["data"], "text/plain")
    text = holder[key]
    at = rng.choice([m.start() for m in re.finditer(r"\d", text)] or [0])
    new = str((int(text[at]) + 1) % 10) if text[at].isdigit() else "#"
    holder[key] = text[:at] + new + text[at + 1 :]


def test_a_changed_number_in_any_compared_output_is_noticed(path, request):
    assert request.config.option.nbval
    notebook = nbformat.read(path, as_version=4)
    stored = [c for c in notebook.cells if c.cell_type == "code"]
    assert found_to_differ(path, stored, request.session) == []
    rng = random.Random(0)
    for place in range(max(len(c.outputs) for c in stored)):
        came, changed = copy.deepcopy(stored), []
        for number, cell in enumerate(came):
            outputs = cell.outputs[place : place + 1]
            if outputs and text_of(outputs[0]) and not ignored(cell):
                change_a_digit(outputs[0], rng)
                changed.append(number)
        assert found_to_differ(path, came, request.session) == changed
