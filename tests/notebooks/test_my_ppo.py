"""Lesson 12 on the file of a student who has pasted every contract's solution."""

from pathlib import Path

import pytest

from minippo import course
from minippo.checks.engine.contract import contract
from minippo.course import mine
from tests.notebooks.test_notebooks import NOTEBOOKS, cells

LESSON = next(path for path in NOTEBOOKS if path.stem[:2] == "12")


pytestmark = pytest.mark.usefixtures("lesson_folder")


def test_every_function_of_the_loop_is_an_exercise_of_some_lesson():
    assert [name for name in course.FUNCTIONS if contract(name) is None] == []


@pytest.mark.slow
def test_lesson_12_is_trained_by_the_students_functions_as_well_as_by_minippos(capsys):
    text, solved = mine.HEADER, [name for name in course.FUNCTIONS if contract(name)]
    for name in solved:
        source = contract(name).solution.strip()
        text = mine._with(text, name, f"{source}\n\n\n{name} = my_{name}")
    Path("my_ppo.py").write_text(text, encoding="utf-8")
    sources = [cell["source"] for cell in cells(LESSON)]
    (last,) = [i for i, source in enumerate(sources) if "course.minippos(" in source]
    names = {}
    for source in sources[: last + 1]:  # two rollouts instead of ten and three
        for many in ("course.fewer(10, policy)", "course.fewer(3, policy, least=1)"):
            source = source.replace(many, "2")
        exec(source, names)
    n = len(solved)
    assert course.whose().startswith(f"17 functions: {n} yours, {17 - n} minippo's")
    assert f"my_ppo.py: 17 functions: {n} yours" in capsys.readouterr().out
    gap, mine_, theirs = names["gap"], names["policy"], names["page"]
    assert gap(mine_, theirs) < 1e-5 < 1e-3 < gap(mine_, names["first"])
    assert gap(theirs, names["library"]) < 1e-5
    assert names["token_log_probs"].__module__ == "my_ppo"  # and minippo's in the block alone
