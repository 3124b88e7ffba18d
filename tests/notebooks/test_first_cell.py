"""The cell that every notebook begins with: in a clone, on Colab, with something missing."""

import importlib.metadata
import importlib.util
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from tests.notebooks.test_notebooks import NOTEBOOKS, cells

# As it is before `tools/address.py` has set an address.
SOURCE = re.sub(r'SOURCE = ".*?"', 'SOURCE = ""', cells(NOTEBOOKS[0])[0]["source"])


def run(monkeypatch, folder, *, missing=(), colab=False, source=SOURCE):
    """Execute the cell in a folder; the pip commands it would run, with their constraints."""
    commands = []

    def fake_run(command, *, check):
        assert check
        held = command[command.index("--constraint") + 1]
        commands.append((command, Path(held).read_text(encoding="utf-8")))

    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n in missing else find(n))
    monkeypatch.setattr(subprocess, "run", fake_run)
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(folder)
    if colab:
        monkeypatch.setitem(sys.modules, "google.colab", types.ModuleType("google.colab"))
    made = {}
    exec(source, made)
    return made, commands


def test_in_a_clone_the_first_cell_finds_the_clone_and_installs_nothing(monkeypatch, capsys):
    made, commands = run(monkeypatch, NOTEBOOKS[0].parent)
    assert commands == []
    assert made["roots"][0] == NOTEBOOKS[0].parents[1]
    assert sys.path[0] == str(made["roots"][0])
    assert "model tiny-gpt2-sft" in capsys.readouterr().out


def test_the_environment_may_name_another_model_for_the_first_cell(monkeypatch, capsys):
    monkeypatch.setenv("MINIPPO_MODEL", "gpt2")
    assert run(monkeypatch, NOTEBOOKS[0].parent)[0]["MODEL"] == "gpt2"
    assert "model gpt2" in capsys.readouterr().out


def test_on_colab_the_first_cell_installs_the_clone_and_holds_every_version(monkeypatch):
    _, [(command, held)] = run(monkeypatch, NOTEBOOKS[0].parent, missing=["jaxtyping"], colab=True)
    assert command[-1] == str(NOTEBOOKS[0].parents[1])
    assert f"torch=={torch.__version__.split('+')[0]}" in held
    versions = held.splitlines()
    assert len(versions) == len(list(importlib.metadata.distributions()))
    assert all("==" in line for line in versions)


def test_on_colab_without_a_clone_the_first_cell_installs_the_published_package(
    monkeypatch, tmp_path
):
    source = SOURCE.replace('SOURCE = ""', 'SOURCE = "https://example.org/minippo"')
    assert source != SOURCE
    _, [(command, _)] = run(monkeypatch, tmp_path, missing=["minippo"], colab=True, source=source)
    assert command[-1] == "minippo @ git+https://example.org/minippo"


@pytest.mark.parametrize("colab", [True, False])
def test_elsewhere_the_first_cell_says_what_is_missing_and_what_to_do(monkeypatch, tmp_path, colab):
    """Without an address nothing is fetched by its bare name, which may be somebody else's."""
    with pytest.raises(SystemExit, match=r"minippo is missing\. In a clone: pip install -r"):
        run(monkeypatch, tmp_path, missing=["minippo"], colab=colab)
