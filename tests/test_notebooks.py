"""The stored notebooks are complete, small and honest; nbval itself compares their outputs."""

import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
IGNORED = re.compile(r"^# NBVAL_(IGNORE_OUTPUT|SKIP)$", re.MULTILINE)

pytestmark = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem[:2])


def cells(path: Path, kind: str = "code") -> list[dict]:
    made = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return [c | {"source": "".join(c["source"])} for c in made if c["cell_type"] == kind]


def text_of(output: dict) -> str:
    found = output.get("text") or output.get("data", {}).get("text/plain") or ""
    return "".join(found)


def compared(path: Path) -> list[dict]:
    return [c for c in cells(path) if c["outputs"] and not IGNORED.search(c["source"])]


def test_every_cell_was_executed_in_order_and_without_error(path):
    assert [c["execution_count"] for c in cells(path)] == list(range(1, len(cells(path)) + 1))
    outputs = [o for c in cells(path) for o in c["outputs"]]
    assert [o for o in outputs if o["output_type"] == "error" or o.get("name") == "stderr"] == []


def test_three_quarters_of_the_outputs_are_compared_and_say_something(path):
    with_output = [c for c in cells(path) if c["outputs"]]
    telling = [c for c in compared(path) if len("".join(map(text_of, c["outputs"]))) > 10]
    assert len(telling) >= 0.75 * len(with_output)


def test_every_ignored_output_has_its_reason_on_the_next_line(path):
    for cell in cells(path):
        assert not re.search(r"\S.*# *NBVAL_", cell["source"])  # nbval wants the line to itself
        for found in IGNORED.finditer(cell["source"]):
            assert cell["source"][found.end() :].startswith("\n# Reason: ")


def test_the_file_is_small_and_stores_neither_widgets_nor_bars(path):
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


def test_the_first_cell_is_the_same_everywhere(path):
    assert cells(path)[0]["source"] == cells(NOTEBOOKS[0])[0]["source"]


def test_links_inside_the_repository_lead_somewhere(path):
    text = "\n".join(c["source"] for c in cells(path, "markdown"))
    links = [link for link in re.findall(r"\]\(([^)#\s]+)\)", text) if "://" not in link]
    assert [link for link in links if not (path.parent / link).exists()] == []
    assert "http://" not in text  # and no picture is fetched from anywhere
    assert not re.search(r"!\[[^]]*\]\(http", text)


@pytest.mark.slow
def test_a_changed_number_in_any_compared_output_is_noticed(path, tmp_path):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    rng, tampered = random.Random(0), 0
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] != "code" or not cell["outputs"] or IGNORED.search(source):
            continue
        output = rng.choice([o for o in cell["outputs"] if text_of(o)])
        text = text_of(output)
        places = [m.start() for m in re.finditer(r"\d", text)] or [0]
        at = rng.choice(places)
        new = str((int(text[at]) + 1) % 10) if text[at].isdigit() else "#"
        changed = text[:at] + new + text[at + 1 :]
        if "text" in output:
            output["text"] = changed
        else:
            output["data"]["text/plain"] = changed
        tampered += 1
    (tmp_path / path.name).write_text(json.dumps(notebook), encoding="utf-8")
    options = "-m pytest --nbval --nbval-current-env -q -p no:cacheprovider -c".split()
    sanitize = f"--nbval-sanitize-with={ROOT / 'tests' / 'nbval_sanitize.cfg'}"
    places = [os.devnull, f"--rootdir={tmp_path}", sanitize, path.name]
    command = [sys.executable, *options, *places]
    settings = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=tmp_path, env=settings, capture_output=True, text=True, check=False
    )
    assert f"{tampered} failed, {len(cells(path)) - tampered} passed" in done.stdout
