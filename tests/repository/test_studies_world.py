"""Rows of a study that come from an earlier world say so where they are shown."""

import json
import re
from pathlib import Path

from minippo.data import DATA, SHIPPED_STUDIES, sha256

ROOT = Path(__file__).parents[2]


def test_a_lesson_that_shows_rows_of_an_earlier_world_says_so():
    worlds = json.loads((DATA / "manifest.json").read_text(encoding="utf-8"))["worlds of studies"]
    assert set(worlds) == set(SHIPPED_STUDIES)
    now, shown = sha256(DATA / "tiny-gpt2-sft" / "model.safetensors"), set()
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        text, code = (
            "".join("".join(c["source"]) for c in cells if c["cell_type"] == kind)
            for kind in ("markdown", "code")
        )
        for name in re.findall(r"load_study\(\"(\w+)\"", code):
            shown.add(name)
            assert worlds[name] == now or f"world {worlds[name][:8]}" in text, (path.name, name)
    assert shown == set(SHIPPED_STUDIES)
