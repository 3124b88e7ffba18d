"""A lesson has the form that readers can rely on: contract, exercises, questions, summary."""

import re
import statistics

import cheat_sheet
import pytest

import minippo
from tests.notebooks.test_notebooks import NOTEBOOKS, cells

LESSONS = [path for path in NOTEBOOKS if path.stem[:2] != "00" and path.stem[:2].isdigit()]
DETAILS = re.compile(r"<details><summary>(.*?)</summary>\n\n.*?</details>", re.DOTALL)

# What a practitioner runs on a GPU has no formula to derive, and so no explorer and no exercise.
TAUGHT = [path for path in LESSONS if path.stem[:2] != "17"]

each_lesson = pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem[:2])
each_taught = pytest.mark.parametrize("path", TAUGHT, ids=lambda path: path.stem[:2])


def words_of(path) -> str:
    return "\n\n".join(cell["source"] for cell in cells(path, "markdown"))


def section(path, title: str) -> str:
    """The text from a heading to the next of its level."""
    found = re.search(rf"^## {title}.*?(?=^## |\Z)", words_of(path), re.DOTALL | re.MULTILINE)
    return found.group() if found else ""


def code_lines(source: str) -> int:
    return len([x for x in source.splitlines() if x.strip() and not x.strip().startswith("#")])


@each_lesson
def test_a_lesson_begins_with_its_contract(path):
    first = cells(path, "markdown")[0]["source"]
    assert first.startswith(f"# {path.stem[:2]} · ")
    for promise in ("**After this notebook you can**", "**You need**", "**Time**"):
        assert promise in first


@each_taught
def test_a_lesson_has_the_size_of_a_lesson(path):
    text, code = re.sub(r"\[Open in Colab\]\(.*\)", "", words_of(path)), cells(path)
    assert 40 <= len(code) + len(cells(path, "markdown")) <= 70
    assert 1500 <= len(re.findall(r"\w+", text)) <= 2600
    lengths = [code_lines(cell["source"]) for cell in code[1:]]  # the first is the common one
    assert statistics.median(lengths) <= 6
    assert max(lengths) <= 25


@each_taught
def test_a_lesson_has_pictures_an_explorer_and_its_twin(path):
    code = "\n".join(cell["source"] for cell in cells(path))
    assert 5 <= code.count("plots.show(") <= 8
    assert "widgets." in code
    assert "_panels(" in code or path.stem[:2] == "03"  # there the explorer is the reader's own


@each_lesson
def test_a_lesson_asks_before_it_shows(path):
    assert words_of(path).count("**What would you expect?**") >= 2


@each_taught
def test_each_exercise_of_a_lesson_has_a_card_three_hints_a_check_and_a_solution(path):
    text, code = words_of(path), [cell["source"].rstrip() for cell in cells(path)]
    titles = re.findall(r"^## Exercise \d( \(optional\))?: .*\n(.*)$", text, re.MULTILINE)
    card = r"\*\d+ minutes · difficulty [●○]{3} · importance [●○]{3}\*"
    assert all(re.fullmatch(card, line) for _, line in titles)
    core = [optional for optional, _ in titles if not optional]
    assert len(core) == 2
    assert len(titles) <= 4
    checked = [m.group(1) for c in code if (m := re.search(r"^checks\.(\w+)\(my_\w+\)$", c, re.M))]
    solved = [m.group(1) for c in code if (m := re.fullmatch(r'checks\.solution\("(\w+)"\)', c))]
    assert len(checked) == len(titles)
    assert checked == solved
    hints = [summary for summary in DETAILS.findall(text) if summary.startswith("Hint ")]
    assert hints == ["Hint 1", "Hint 2", "Hint 3"] * len(titles)


@each_lesson
def test_a_lesson_has_four_questions_with_explained_answers(path):
    assert [q[:2] for q in DETAILS.findall(section(path, "Questions"))] == ["1.", "2.", "3.", "4."]


@each_lesson
def test_a_lesson_answers_what_people_ask(path):
    assert len(re.findall(r"^\*\*.*\?\*\*", section(path, "What people ask"), re.MULTILINE)) >= 2


@each_lesson
def test_a_lesson_ends_in_a_summary_with_words_and_sources(path):
    end = section(path, "Summary")
    assert "| formula | in code | range | healthy | what goes wrong |" in end
    assert len(re.findall(r"^- \*\*.+?\*\*: ", end, re.MULTILINE)) >= 4
    assert len(re.findall(r"arXiv:\d{4}\.\d{4,5}", end)) >= 3


def test_every_function_of_the_mathematics_is_built_in_some_lesson():
    texts = ["\n".join(cell["source"] for cell in cells(path)) for path in LESSONS]
    alternatives = {"best_of_n_kl", "dpo_loss", "group_advantages", "leave_one_out_advantages"}
    alternatives |= {"length_adaptive_lambda", "response_mean"}  # GRPO's and VAPO's choices
    missing = [
        name
        for name in sorted(set(minippo.__all__) - alternatives)
        if not any(re.search(rf"\b{name}\b", text) for text in texts)
    ]
    assert missing == [] or len(LESSONS) < 12


def test_the_cheat_sheet_is_what_the_lessons_end_in():
    folder = NOTEBOOKS[0].parent
    built = cheat_sheet.build()
    assert (folder / "cheat_sheet.md").read_text(encoding="utf-8") == built
    for path in LESSONS:  # every table is there whole, and every word
        end = section(path, "Summary")
        assert all(row in built for row in re.findall(r"^\|.*\|$", end, re.MULTILINE))
        assert all(
            f"**{w}**" in built for w in re.findall(r"^- \*\*(.+?)\*\*: ", end, re.MULTILINE)
        )
