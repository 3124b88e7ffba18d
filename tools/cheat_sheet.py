"""Build cheat_sheet.md from the lessons' summaries: `python tools/cheat_sheet.py`.

Every lesson ends in one table (formula, code, range, healthy value, what goes wrong) and a list of
words. This page collects them for printing; nothing is written twice.
"""

import json
import re
from pathlib import Path

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"
HEAD = "| formula | in code | range | healthy | what goes wrong |"
WORD = re.compile(
    r"^- \*\*(?P<word>.+?)\*\*: (?P<means>.+?)(?=\n- |\n\n|\Z)", re.MULTILINE | re.DOTALL
)


def summary(path: Path) -> tuple[str, str]:
    """Return a lesson's title and the text of its summary, "" if it has none."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    text = "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    found = re.search(r"^## Summary.*?(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    return text.splitlines()[0].removeprefix("# "), found.group() if found else ""


def build() -> str:
    """Return the whole page."""
    tables, words = [], dict[str, tuple[str, str]]()
    for path in sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb")):
        title, text = summary(path)
        if HEAD not in text:
            continue
        table = text[text.index(HEAD) :].split("\n\n")[0]
        tables.append(f"## [{title}]({path.name})\n\n{table}\n")
        for found in WORD.finditer(text):
            means = " ".join(found["means"].split())
            words.setdefault(found["word"], (means, path.stem[:2]))
    glossary = [
        f"- **{word}**: {means} ({lesson})"
        for word, (means, lesson) in sorted(words.items(), key=lambda item: item[0].lower())
    ]
    intro = (
        "# Cheat sheet\n\nThe tables that the lessons end in, and their words. Made by "
        "`make notebooks` from the lessons; the number behind a word is the lesson's.\n"
    )
    return "\n".join([intro, *tables, "## Words\n", *glossary]) + "\n"


if __name__ == "__main__":
    (NOTEBOOKS / "cheat_sheet.md").write_text(build(), encoding="utf-8")
