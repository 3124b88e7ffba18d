"""Lessons run on other models than the shipped one, and the table says on which."""

import json
import re
import subprocess

import pytest
import real_lessons

from tests.notebooks.test_notebooks import NOTEBOOKS, cells

ON_REAL_MODELS = [
    path for path in NOTEBOOKS if path.stem[:2].isdigit() and 1 <= int(path.stem[:2]) <= 12
]
OF_GPT2 = r"transformer\.h\b|\b(wte|wpe|ln_f|c_attn|c_proj|n_embd|n_head|n_layer|n_positions)\b"

each_lesson = pytest.mark.parametrize("path", ON_REAL_MODELS, ids=lambda path: path.stem[:2])


@each_lesson
def test_a_lesson_names_no_part_of_a_model_as_only_gpt2_calls_it(path):
    assert [c["source"] for c in cells(path) if re.search(OF_GPT2, c["source"])] == []


@each_lesson
def test_half_of_a_lessons_claims_or_more_hold_for_every_model(path):
    kept, number = real_lessons.claims(real_lessons.asserting(path))
    least = 1 / 4 if path.stem[:2] == "07" else 1 / 2  # 07 is about values that training gave
    assert len(kept) >= least * number, (len(kept), number)


def test_claims_that_ask_for_the_model_are_the_shipped_models_own():
    kept, number = real_lessons.claims(
        "assert a\ntiny = MODEL == 'tiny-gpt2-sft'\nassert not tiny or f\n"
        "if MODEL == 'tiny-gpt2-sft':\n    assert b\n    for x in y:\n        assert c\n"
        "else:\n    assert d\n"
        "if other:\n    assert e\n"
    )
    assert [claim.test.id for claim in kept] == ["a", "d", "e"]
    assert number == 6


def row(lesson, model, result, **more):
    made = dict.fromkeys(real_lessons.COLUMNS, "-")
    return made | {"lesson": lesson, "model": model, "result": result} | more


def results(page):
    """Lesson, model and result of each row of a page."""
    lines = [line for line in page.splitlines() if re.match(r"\| \d", line)]
    return [[field.strip() for field in re.split(r" \| ", line[2:])][:3] for line in lines]


def test_the_table_of_real_models_keeps_what_was_not_run_again():
    page = real_lessons.merged("", [row("05", "a", "passed"), row("06", "a", "passed")])
    page = real_lessons.merged(page, [row("06", "a", "died with 1"), row("01", "b", "passed")])
    assert results(page) == [
        ["05", "a", "passed"],
        ["06", "a", "died with 1"],
        ["01", "b", "passed"],
    ]
    assert real_lessons.merged(page, []) == page


def test_a_model_out_of_reach_has_one_row_until_it_was_run():
    away = row("01 to 12", "far", "not reachable")
    page = real_lessons.merged("", [away])
    assert results(page) == [["01 to 12", "far", "not reachable"]]
    page = real_lessons.merged(page, [row("05", "far", "passed")])
    assert results(page) == [["05", "far", "passed"]]
    assert real_lessons.merged(page, [away]) == page


def test_a_claim_with_a_bar_and_a_new_line_stays_one_field_of_the_table():
    page = real_lessons.merged("", [row("05", "a", "failed: `assert x | y\n  == 1`")])
    assert "| failed: `assert x \\| y == 1` |" in page
    assert real_lessons.merged(page, []) == page


def notebook(folder, *sources):
    made = [{"cell_type": "code", "source": [source]} for source in sources]
    path = folder / "05_short.ipynb"
    path.write_text(json.dumps({"cells": made}), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("first", "result"),
    [
        ("x = 1", "failed: `assert x == 2`; `assert nobody`"),
        ("x = 1 / 0", "stopped in cell 0: ZeroDivisionError: division by zero"),
    ],
)
def test_a_row_names_each_claim_that_failed_and_the_cell_that_stopped(
    first, result, tmp_path, monkeypatch
):
    monkeypatch.setattr(real_lessons, "ROOT", tmp_path)
    path = notebook(tmp_path, first, "assert x == 1\nassert x == 2\nassert nobody\nx = 3")
    made = real_lessons.measured(path, "some/model", 5, 1)
    assert set(made) == set(real_lessons.COLUMNS)
    assert (made["result"], made["model"], made["claims"]) == (result, "model", "3 of 3")


def test_a_lesson_that_takes_too_long_has_a_row_without_processor_time(tmp_path, monkeypatch):
    def never_ends(command, timeout, **_):
        assert timeout == 30 * 60
        raise subprocess.TimeoutExpired(command, timeout)

    monkeypatch.setattr(real_lessons, "ROOT", tmp_path)
    monkeypatch.setattr(subprocess, "run", never_ends)
    made = real_lessons.measured(notebook(tmp_path, "assert 1"), "some/model", 30, 1)
    assert made["result"] == "not finished in 30 minutes"
    assert "processor" not in made


def test_the_table_of_real_models_is_what_the_tool_writes():
    page = real_lessons.TABLE.read_text(encoding="utf-8")
    assert real_lessons.merged(page, []) == page
    assert results(page)
