"""Exercises in the notebooks are what their contracts say."""

import copy

import execute
import nbformat
import pytest

from minippo.checks.engine.contract import contract
from tests.notebooks.test_notebooks import NOTEBOOKS


def draft(*cells: tuple[str, str]) -> list[dict]:
    return [{"cell_type": kind, "source": source} for kind, source in cells]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_exercises_of_a_notebook_are_what_their_contracts_say(path):
    cells = nbformat.read(path, as_version=4).cells
    filled = copy.deepcopy(cells)
    execute.fill(filled)
    assert [cell.source for cell in filled] == [cell.source for cell in cells]


def test_a_draft_is_filled_from_the_contract_of_its_check():
    mean = contract("masked_mean")
    line = "masked_mean = checks.masked_mean(my_masked_mean).use()"
    cells = draft(
        ("markdown", "## Exercise 3 (optional)"), ("code", "import torch"), ("code", line)
    )
    execute.fill(cells)
    title, code, stub = (cell["source"] for cell in cells)
    assert title.startswith(f"## Exercise 3 (optional): {mean.title}\n*Write · 5 minutes · ")
    assert code == "import torch"
    assert stub.startswith("def my_masked_mean(")
    assert stub.endswith(f"    ...\n\n\n{line}")
    before = copy.deepcopy(cells)
    execute.fill(cells)
    assert cells == before


def test_cells_without_a_contract_or_an_exercise_stay_as_they_are():
    cells = draft(
        ("markdown", "## Exercise 1: mine"),
        ("code", "def my_f():\n    ...\n\n\nf = checks.f(my_f).use()"),
        ("markdown", "masked_mean = checks.masked_mean(my_masked_mean).use()"),
        ("code", "checks.masked_mean(my_masked_mean)"),
    )
    before = copy.deepcopy(cells)
    execute.fill(cells)
    assert cells == before


def test_tags_and_folded_code_are_kept_and_nothing_else():
    tags = ["nbval-ignore-output"]
    hidden = {"jupyter": {"source_hidden": True}}
    noise = {"collapsed": False, "jupyter": {"outputs_hidden": True}}
    assert execute.kept({"tags": tags} | noise) == {"tags": tags}
    assert execute.kept(noise) == {}
    assert execute.kept(hidden) == {"tags": ["hide-input"]} | hidden
    both = {"tags": ["maintainers", "hide-input"]} | hidden
    assert execute.kept({"tags": ["maintainers"]}) == execute.kept(both) == both
