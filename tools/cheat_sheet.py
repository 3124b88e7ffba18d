"""Build cheat_sheet.md and glossary.md from the lessons: `python tools/cheat_sheet.py`.

The sheet is one printed page: loss, loop, what to watch, starting values. Its rows are picked from
the tables that the lessons end in, its loop and its numbers to watch are lesson 12's, and its
starting values are the package's. The glossary holds every lesson's words and tables.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import torch

from minippo.models import rate_by_size
from minippo.ppo import PPOConfig

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
HEAD = "| formula | in code | range | healthy | what goes wrong |"
WORD = re.compile(
    r"^- \*\*(?P<word>.+?)\*\*: (?P<means>.+?)(?=\n- |\n\n|\Z)", re.MULTILINE | re.DOTALL
)
# The rows of the sheet: lesson, and what its second column begins with.
ROWS = [
    ("10", "`shape_rewards"), ("08", "`gae`"), ("08", "`gae(...) + values"), ("08", "`whiten"),
    ("05", "`probability_ratio(log"), ("06", "`-clipped_surrogate"), ("07", "`value_loss"),
    ("09", "`masked_mean(entropy"), ("11", "`ppo_loss"),
]  # fmt: skip
SIZES = {"1 M": 1e6, "124 M": 124e6, "1 B": 1e9, "7 B": 7e9}
START = ("rollout_size", "minibatch_size", "epochs", "clip_range", "value_coef", "entropy_coef",
         "kl_coef", "kl_loss_coef", "gamma", "lam", "temperature", "max_grad_norm")  # fmt: skip


def text_of(path: Path) -> str:
    """Return the words of a lesson."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")


def section(text: str, title: str) -> str:
    """Return what stands between a heading and the next of its level, "" if there is none."""
    found = re.search(rf"^## {title}.*?(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    return found.group() if found else ""


def lessons() -> Iterator[tuple[Path, str, str]]:
    """Yield path, title and summary of each lesson that ends in a table."""
    for path in sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb")):
        text = text_of(path)
        if HEAD in (end := section(text, "Summary")):
            yield path, text.splitlines()[0].removeprefix("# "), end


def table(text: str, head: str) -> list[str]:
    """Return the lines of the table with this head."""
    return text[text.index(head) :].split("\n\n")[0].splitlines()


def columns(line: str) -> list[str]:
    """Return a table row's columns; a bar in code or after a backslash parts nothing."""
    return [c.strip() for c in re.split(r"(?<!\\)\|", line.strip().strip("|"))]


def row(ends: dict[str, str], lesson: str, code: str) -> str:
    """Return a row of the sheet: formula, code, healthy, what goes wrong, lesson."""
    for line in table(ends[lesson], HEAD)[2:]:
        formula, called, _, healthy, wrong = columns(line)
        if called.startswith(code):
            return f"| {formula} | {called} | {healthy} | {wrong} | {lesson} |"
    raise SystemExit(f"the summary of lesson {lesson} has no row whose code begins with {code}")


def start_values() -> list[str]:
    """Return the table of starting values, by size where they depend on it."""
    rates, bytes_of = [], []
    for size in SIZES.values():
        with torch.device("meta"):
            model = torch.nn.Linear(int(size), 1, bias=False)
        rates.append(f"{rate_by_size(model):.2g}")
        gib = 20 * size / 2**30
        bytes_of.append(f"{gib:.2g} GiB" if gib < 100 else f"{gib:.0f} GiB")
    default = {f.name: f.default for f in fields(PPOConfig)}
    same = ", ".join(f"`{name}` {default[name]:g}" for name in START)
    return [
        f"| weights | {' | '.join(SIZES)} |", "|---" * (1 + len(SIZES)) + "|",
        f"| `learning_rate` | {' | '.join(rates)} |",
        f"| weights, gradients, Adam, reference in float32 | {' | '.join(bytes_of)} |",
        "", f"At every size: {same}.",
    ]  # fmt: skip


def sheet() -> str:
    """Return the page to print."""
    ends = {path.stem[:2]: end for path, _, end in lessons()}
    loop = text_of(next(NOTEBOOKS.glob("12_*.ipynb")))
    steps = re.findall(r"^\d+\. .*$", section(loop, "Eleven steps"), re.MULTILINE)
    return "\n".join([
        "# PPO for language models, on one page", "",
        "Made from the lessons by `make notebooks`. Every word is in the [glossary](glossary.md).",
        "", "## From scores to the loss", "",
        "| formula | in code | healthy | what goes wrong | lesson |", "|---|---|---|---|---|",
        *(row(ends, *each) for each in ROWS),
        "", "## The loop", "", *steps,
        "", "## What to watch", "", *table(section(loop, "What to watch"), "| number |"),
        "", "## Starting values", "", *start_values(),
    ]) + "\n"  # fmt: skip


def glossary() -> str:
    """Return the page of all words, and of all formulas by lesson."""
    tables, words = [], dict[str, str]()
    for path, title, end in lessons():
        tables += [f"### [{title}]({path.name})", "", *table(end, HEAD), ""]
        for found in WORD.finditer(end):
            means = " ".join(found["means"].split())
            link = f"[{path.stem[:2]}]({path.name})"
            words.setdefault(found["word"], f"- **{found['word']}**: {means} ({link})")
    return "\n".join([
        "# Glossary", "",
        "The words and the formulas that the lessons end in, made by `make notebooks`; the number "
        "after a word is its lesson's.", "",
        *(words[word] for word in sorted(words, key=str.lower)),
        "", "## Formulas, lesson by lesson", "", *tables[:-1],
    ]) + "\n"  # fmt: skip


if __name__ == "__main__":
    for name, build in {"cheat_sheet": sheet, "glossary": glossary}.items():
        (NOTEBOOKS / f"{name}.md").write_text(build(), encoding="utf-8")
