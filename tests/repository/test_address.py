"""One command sets the repository's address everywhere, changes it, and takes it out again."""

import json
import re
import runpy
import shutil
import tomllib
from pathlib import Path

import pytest
import yaml
from IPython.core.inputtransformer2 import TransformerManager

ROOT = Path(__file__).parents[2]
set_address = runpy.run_path(str(ROOT / "tools" / "address.py"))["set_address"]
FILES = [ROOT / name for name in ("README.md", "CITATION.cff", "pyproject.toml")]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
HOMEWORK = sorted((ROOT / "notebooks" / "homework" / "source").glob("*/*.ipynb"))
FIRST, SECOND = "https://github.com/Ann-Lee/minippo", "https://github.com/bob/ppo.course"


@pytest.fixture
def copy(tmp_path):
    for path in FILES + NOTEBOOKS + HOMEWORK:
        (tmp_path / path.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / path.relative_to(ROOT))
    set_address(tmp_path, "")
    return tmp_path


def texts(folder):
    return {
        p.relative_to(folder): p.read_text(encoding="utf-8")
        for p in folder.rglob("*")
        if p.is_file()
    }


def test_every_file_has_the_new_address_and_is_otherwise_unchanged(copy):
    before = texts(copy)
    assert len(set_address(copy, FIRST)) == len(before)
    for path in sorted((copy / "notebooks" / "homework").rglob("*.ipynb")):
        assert json.loads(path.read_text(encoding="utf-8"))["nbformat"] == 4
    for path in sorted((copy / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        title, code = "".join(cells[0]["source"]), "".join(cells[1]["source"])
        assert f'    %pip install -q --no-deps "minippo @ git+{FIRST}" jaxtyping' in code
        compile(TransformerManager().transform_cell(code), path.name, "exec")
        link = "https://colab.research.google.com/github/Ann-Lee/minippo/blob/main/notebooks/"
        assert title.splitlines()[:4] == [
            title.splitlines()[0], "", f"[Open in Colab]({link}{path.name})", "",
        ]  # fmt: skip
        assert "![" not in title  # no picture is fetched
    urls = tomllib.loads((copy / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]
    assert urls == {"Repository": FIRST, "Documentation": "https://ann-lee.github.io/minippo/"}
    cited = yaml.safe_load((copy / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["repository-code"] == FIRST
    assert cited["url"] == "https://ann-lee.github.io/minippo/"
    readme = (copy / "README.md").read_text(encoding="utf-8")
    assert readme.startswith(
        f"# minippo\n[![tests]({FIRST}/actions/workflows/tests.yml/badge.svg)]"
    )


def test_setting_an_address_twice_is_once_and_another_leaves_nothing_of_the_first(copy):
    before = texts(copy)
    set_address(copy, FIRST)
    assert set_address(copy, FIRST + ".git") == []
    set_address(copy, SECOND + "/")
    after = texts(copy)
    assert not [name for name, text in after.items() if re.search("ann-lee", text, re.IGNORECASE)]
    assert all("bob" in text for text in after.values())
    set_address(copy, "")
    assert texts(copy) == before


@pytest.mark.parametrize("wrong", ["minippo", "http://github.com/a/b", "https://github.com/a"])
def test_a_text_that_is_no_address_is_refused_and_changes_nothing(copy, wrong):
    before = texts(copy)
    with pytest.raises(ValueError, match=r"must be https://github.com/OWNER/NAME"):
        set_address(copy, wrong)
    assert texts(copy) == before
