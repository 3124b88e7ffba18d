"""The cell that every notebook begins with: in a clone, on Colab, with something missing."""

import builtins
import runpy
from pathlib import Path

import pytest
from IPython.core.inputtransformer2 import TransformerManager

from minippo import course
from tests.notebooks.test_notebooks import NOTEBOOKS, cells

TOOL = runpy.run_path(str(Path(__file__).parents[2] / "tools" / "address.py"))
FIRST = cells(NOTEBOOKS[0])[0]["source"]


def run(monkeypatch, source, *, missing=0, calls=None):
    """Execute the cell as Jupyter does; the first `missing` imports of minippo fail."""
    left, find = [missing], builtins.__import__

    def fake_import(name, *rest, **more):
        if name == "minippo" and left[0]:
            left[0] -= 1
            raise ModuleNotFoundError("No module named 'minippo'")
        return find(name, *rest, **more)

    class Shell:
        def run_line_magic(self, *command):
            calls.append(command)

    monkeypatch.setattr(course, "start", lambda: "tiny-gpt2-sft")
    monkeypatch.setattr(builtins, "__import__", fake_import)
    made = {"get_ipython": Shell}
    exec(TransformerManager().transform_cell(source), made)
    return made


def with_address(address):
    text = "\n    ".join(['    "source": [', TOOL["stored"](f"{FIRST}\n") + "\n]"])
    changed = TOOL["notebook"](text, address, "link")
    return "".join(eval(changed.split(":", 1)[1].strip()))


def test_the_first_cell_is_short_and_gives_the_models_name(monkeypatch):
    assert len(FIRST.splitlines()) <= 6
    assert run(monkeypatch, FIRST)["MODEL"] == "tiny-gpt2-sft"


def test_without_an_address_it_says_what_is_missing_and_what_to_do(monkeypatch):
    """Nothing is fetched by its bare name, which may be somebody else's."""
    with pytest.raises(SystemExit, match=r"No module named 'minippo'\. In a clone: pip install -r"):
        run(monkeypatch, FIRST, missing=1)


def test_with_an_address_it_installs_minippo_and_changes_nothing_else(monkeypatch):
    source, calls = with_address("https://github.com/ann/ppo"), []
    assert len(source.splitlines()) <= 6
    assert run(monkeypatch, source, missing=1, calls=calls)["MODEL"] == "tiny-gpt2-sft"
    (magic, arguments), *others = calls
    assert (magic, others) == ("pip", [])
    assert arguments.split()[:3] == ["install", "-q", "--no-deps"]
    assert '"minippo @ git+https://github.com/ann/ppo"' in arguments
    # What minippo needs and Colab lacks; wadler-lindig is jaxtyping's only requirement.
    assert arguments.split()[-2:] == ["jaxtyping", "wadler-lindig"]


def test_an_address_is_taken_out_again():
    assert with_address("") == f"{FIRST}\n"
