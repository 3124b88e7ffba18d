"""Every statement that the course was asked for has its place, and the page finds it."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "coverage.md"
ROWS = [
    [cell.strip() for cell in line.strip("|\n ").split(" | ")]
    for line in PAGE.read_text(encoding="utf-8").splitlines()
    if line.startswith("| ") and not line.startswith("| statement |")
]
LINK = re.compile(r"\[[^\]]+\]\(([^)#]+(?:\([^)]*\)[^)#]*)?)(?:#((?:[^()]|\([^)]*\))+))?\)")
HEADING = re.compile(r"^#{1,4} (.+?)\s*$", re.MULTILINE)


def words(path: Path) -> str:
    """The text of a notebook or of a page."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return text
    cells = json.loads(text)["cells"]
    return "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")


def section(path: Path, anchor: str) -> str | None:
    """What follows a heading, up to the next; None if there is no such heading."""
    text = words(path)
    found = list(HEADING.finditer(text))
    for heading, after in zip(found, [*found[1:], None], strict=True):
        plain = re.sub(r"[^\w\- ]", "", heading[1]).lower()  # GitHub's, in pages
        if (heading[1] if path.suffix == ".ipynb" else plain).replace(" ", "-") == anchor:
            return text[heading.start() : after.start() if after else None]
    return None


def links(row: list[str]) -> list[tuple[Path, str]]:
    return [((PAGE.parent / path).resolve(), anchor) for path, anchor in LINK.findall(row[1])]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][:60])
def test_each_statement_links_to_a_section_that_exists(row):
    statement, _, verdict = row
    assert statement
    assert verdict
    assert links(row)
    for path, anchor in links(row):
        assert path.is_file(), path
        assert not anchor or section(path, anchor) is not None, anchor


# What is easily forgotten: a word of the statement, and one that a section it links to must have.
NAMED = {
    "Misleading though correct": "mislead",
    "adversarial examples": "adversarial",
    "float16": "float16",
    "Red-team": "red team",
    "Capability benchmarks": "ability",
    "Curriculum": "curriculum",
    "prompts of similar length": "similar lengths",
    "Reproducibility": "same seed",
}


@pytest.mark.parametrize("statement", NAMED)
def test_a_statement_easily_forgotten_is_where_the_page_says(statement):
    [row] = [row for row in ROWS if statement in row[0]]
    texts = [section(*link) or "" for link in links(row)]
    assert any(NAMED[statement] in text.lower() for text in texts)


def test_the_page_says_how_many_statements_it_holds():
    assert f"{len(ROWS)} statements" in PAGE.read_text(encoding="utf-8")
    assert len(ROWS) >= 120
