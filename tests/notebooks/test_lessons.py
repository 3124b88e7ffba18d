"""A lesson has the form that readers can rely on: contract, exercises, questions, summary."""

import ast
import json
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

# In the form of the second edition: the student builds it.
REBUILT = [path for path in NOTEBOOKS if path.stem[:2] <= "12"]
IGNORE = "nbval-ignore-output"

each_rebuilt = pytest.mark.parametrize("path", REBUILT, ids=lambda path: path.stem[:2])
each_lesson = pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem[:2])
each_taught = pytest.mark.parametrize("path", TAUGHT, ids=lambda path: path.stem[:2])


def words_of(path) -> str:
    return "\n\n".join(cell["source"] for cell in cells(path, "markdown"))


def load(path) -> list[dict]:
    return json.loads(path.read_text(encoding="utf-8"))["cells"]


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
def test_a_lesson_is_no_longer_than_an_evening_allows(path):
    text, code = re.sub(r"\[Open in Colab\]\(.*\)", "", words_of(path)), cells(path)
    assert len(code) + len(cells(path, "markdown")) <= 70
    assert len(re.findall(r"\w+", text)) <= (2500 if path in REBUILT else 2600)
    shown = "\n".join(cell["source"] for cell in code)
    assert shown.count("plots.show(") + shown.count("course.show(") <= 8
    lengths = [code_lines(cell["source"]) for cell in code[1:] if "maintainers" not in tags(cell)]
    assert statistics.median(lengths) <= (6 if path in REBUILT else 7)
    assert max(lengths) <= 25


@each_taught
def test_each_exercise_of_a_lesson_has_a_card_three_hints_a_check_and_a_solution(path):
    text, code = words_of(path), [cell["source"].rstrip() for cell in cells(path)]
    titles = re.findall(r"^## Exercise \d( \(optional\))?: .*\n(.*)$", text, re.MULTILINE)
    card = r"\*(\w+ · )?\d+ minutes · difficulty [●○]{3} · importance [●○]{3}\*"
    assert all(re.fullmatch(card, line) for _, line in titles)
    assert len(titles) <= 4
    used = re.compile(r"^(\w+) = checks\.\1\(my_\1\)\.use\(\)\Z", re.MULTILINE)
    checked = [found[1] for c in code if (found := used.search(c))]
    solved = [m.group(1) for c in code if (m := re.fullmatch(r'checks\.solution\("(\w+)"\)', c))]
    assert len(checked) == len(titles)
    assert checked == solved
    hints = [summary for summary in DETAILS.findall(text) if summary.startswith("Hint ")]
    assert hints == ["Hint 1", "Hint 2", "Hint 3"] * len(titles)


def tags(cell: dict) -> list[str]:
    return cell["metadata"].get("tags", [])


def page(cell: dict) -> str:
    """What is seen of a cell's outputs without a kernel."""
    data = [o.get("data", {"text/plain": o.get("text", "")}) for o in cell["outputs"]]
    return "".join("".join(each.get("text/html") or each.get("text/plain", "")) for each in data)


@each_rebuilt
def test_nothing_gives_an_answer_away_before_it_is_asked_for(path):
    """Answers and captions come by key; what follows a question is folded."""
    everything = [c | {"source": "".join(c["source"])} for c in load(path)]
    asked = False
    for cell in everything[:-1]:
        source = cell["source"]
        if cell["cell_type"] == "markdown":
            asked = asked or "**What would you expect?**" in DETAILS.sub("", source)
            continue
        assert not re.search(r"\b(right|explains|alt|caption)=", source)
        if cell["outputs"] and asked and "widgets." not in source:
            assert "<details" in page(cell), source
            asked = False
        asked = asked or "widgets.ask(" in source or "question=" in source


@each_rebuilt
def test_asserts_and_plumbing_are_out_of_sight(path):
    *before, last = cells(path)
    assert last["source"].startswith("# For maintainers: what this lesson claims, asserted.")
    assert "maintainers" in tags(last)
    assert last["metadata"]["jupyter"]["source_hidden"]
    assert last["source"].count("assert ") >= 3
    for cell in before:
        assert "assert " not in cell["source"]
        assert "NBVAL" not in cell["source"]
        assert "matplotlib" not in cell["source"]


@each_rebuilt
def test_a_tenth_of_the_code_or_less_draws(path):
    code = [c["source"] for c in cells(path)[1:-1]]
    draws = re.compile(r"plots\.|course\.(show|progress)\(")
    sources = "\n".join(code)
    drawing = sum(code_lines(ast.get_source_segment(source, node) or "")
                  for source in code for node in ast.parse(source).body
                  if draws.search(ast.get_source_segment(source, node) or "")
                  and not isinstance(node, ast.FunctionDef | ast.For))  # fmt: skip
    assert drawing <= 0.1 * code_lines(sources), (drawing, code_lines(sources))


@each_rebuilt
def test_each_output_that_is_not_compared_is_asserted(path):
    """A value of an ignored cell is a name that the last cell asserts about."""
    *before, last = cells(path)
    asserted = {n.id for n in ast.walk(ast.parse(last["source"])) if isinstance(n, ast.Name)}
    ignored = [c for c in before if IGNORE in tags(c) and c["outputs"]]
    for cell in ignored:
        names = {n.id for n in ast.walk(ast.parse(cell["source"])) if isinstance(n, ast.Name)}
        assert names & asserted - {"course", "plots"}, cell["source"]


@each_rebuilt
def test_a_lesson_ends_on_the_drawing_that_fills_up_and_marks_what_goes_deeper(path):
    assert sum("course.progress(" in cell["source"] for cell in cells(path)) == 1
    number = path.stem[:2]
    assert number == "00" or "\n## Going deeper" in words_of(path)


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
    texts = ["".join(cell["source"]) for path in LESSONS for cell in load(path)]
    alternatives = {"best_of_n_kl", "dpo_loss", "group_advantages", "leave_one_out_advantages"}
    alternatives |= {"length_adaptive_lambda", "response_mean"}  # GRPO's and VAPO's choices
    missing = [
        name
        for name in sorted(set(minippo.__all__) - alternatives)
        if not any(re.search(rf"\b{name}\b", text) for text in texts)
    ]
    assert missing == [] or len(LESSONS) < 12


def test_sheet_and_glossary_are_what_the_lessons_end_in():
    folder = NOTEBOOKS[0].parent
    built = cheat_sheet.glossary()
    assert (folder / "cheat_sheet.md").read_text(encoding="utf-8") == cheat_sheet.sheet()
    assert (folder / "glossary.md").read_text(encoding="utf-8") == built
    for path in LESSONS:  # every table is there whole, and every word
        end = section(path, "Summary")
        assert all(row in built for row in re.findall(r"^\|.*\|$", end, re.MULTILINE))
        words = re.findall(r"^- \*\*(.+?)\*\*: ", end, re.MULTILINE)
        assert all(f"- **{word}**: " in built for word in words)


def test_the_glossary_explains_each_word_once_and_the_methods_by_name():
    words = re.findall(r"^- \*\*(.+?)\*\*: ", cheat_sheet.glossary(), re.MULTILINE)
    folded = [word.lower() for word in words]
    assert sorted(folded) == sorted(set(folded))
    assert {"ppo", "dpo", "grpo", "rloo", "rlhf", "sft", "gae", "kl"} <= {
        short for word in folded for short in re.findall(r"[a-z]+", word)
    }


def test_the_sheet_gives_the_package_s_starting_values():
    page = cheat_sheet.sheet()
    assert "| `learning_rate` | 0.0003 | 1.4e-05 |" in page  # TRL 0.11 at 124 M: 1.41e-5
    assert "| 0.019 GiB | 2.3 GiB |" in page  # 20 bytes each: 124e6 * 20 / 2^30 = 2.31
    assert "`clip_range` 0.2, `value_coef` 0.1" in page
    assert len(re.findall(r"^\d+\. ", page, re.MULTILINE)) == 11
