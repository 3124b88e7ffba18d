"""Every statement here about what another project does has its source in docs/sources.toml."""

import json
import re
import tomllib
from pathlib import Path

import pytest

from tests.repository.test_outgrow import rows

ROOT = Path(__file__).parents[2]
DATA = tomllib.loads((ROOT / "docs" / "sources.toml").read_text(encoding="utf-8"))
PINS, MENTIONS, PROJECTS = DATA["pin"], DATA["mention"], DATA["projects"]  # file -> phrase -> ...
NAMES = [name for project in PROJECTS.values() for name in project["names"]] + DATA["others"]
NAME = re.compile(rf"(?<![\w/-])(?:{'|'.join(map(re.escape, sorted(NAMES, key=len)[::-1]))})(?!\w)")
PLACES = "README.md docs/*.md minippo/**/*.py minippo/**/*.toml notebooks/**/*.md "
PLACES += "notebooks/**/*.ipynb"
TEXTS = [p for place in PLACES.split() for p in sorted(ROOT.glob(place))]


def prose(path: Path) -> str:
    """A file's text; of a notebook its markdown."""
    said = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = (cell for cell in json.loads(said)["cells"] if cell["cell_type"] == "markdown")
        said = "\n\n".join("".join(cell["source"]) for cell in cells)
    return said


def text(path: Path) -> str:
    """What a file says, on one line but for the rows of tables, without the addresses of links."""
    said = re.sub(r"\]\([^()\s]*\)", "]", prose(path))
    return re.sub(r"\s*\n(?!\s*\|)(?:\s*# )?\s*", " ", said)


def spans(phrase: str, said: str) -> list[tuple[int, int]]:
    """Where a phrase is; one that begins a row of a table is the whole row."""
    pattern = re.escape(phrase)
    if phrase.startswith("| "):
        pattern = rf"(?m:^){pattern}[^\n]*"
    return [match.span() for match in re.finditer(pattern, said)]


def unpinned(said: str, phrases: list[str]) -> list[str]:
    """Each name of a project that no phrase covers, with its neighbourhood."""
    covered = [span for phrase in phrases for span in spans(phrase, said)]
    return [
        said[max(0, match.start() - 40) : match.end() + 40]
        for match in NAME.finditer(said)
        if not any(a <= match.start() and match.end() <= b for a, b in covered)
    ]


def phrases_in(path: Path) -> list[str]:
    name = path.relative_to(ROOT).as_posix()
    return [*PINS.get(name, {}), *MENTIONS.get(name, {})]


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_project_that_is_named_has_a_source(path):
    if path.relative_to(ROOT).as_posix() not in DATA["measured"]:
        assert unpinned(text(path), phrases_in(path)) == []


@pytest.mark.parametrize("path", TEXTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_thread_that_is_linked_is_a_source(path):
    name = path.relative_to(ROOT).as_posix()
    known = {at for sources in PINS.get(name, {}).values() for at in sources}
    links = re.findall(r"github\.com/([\w.-]+/[\w.-]+)/(?:issues|pull)/(\d+)", prose(path))
    assert {f"{repository}#{number}" for repository, number in links} <= known


def test_a_name_without_a_source_is_found():
    said = (
        "TRL clips. verl clips, too: (trl #1), Stable-Baselines3.\n| row | OpenRLHF |\n| a | SB3 |"
    )
    assert len(unpinned(said, [])) == 6
    assert unpinned(said, ["verl clips, too", "| row |"])[0].startswith("TRL clips")
    assert len(unpinned(said, ["TRL clips. verl clips", "| row |", "Stable-Baselines3"])) == 2


@pytest.mark.parametrize("name", [*PINS, *MENTIONS])
def test_a_pinned_phrase_is_still_said(name):
    said = text(ROOT / name)
    assert [phrase for phrase in phrases_in(ROOT / name) if not spans(phrase, said)] == []


@pytest.mark.parametrize(
    "at", [at for pins in PINS.values() for sources in pins.values() for at in sources]
)
def test_a_source_names_project_version_file_and_line(at):
    if at == "run":
        return
    repositories = [project["repository"] for project in PROJECTS.values()]
    if thread := re.fullmatch(r"([\w.-]+/[\w.-]+)#[1-9]\d*", at):
        assert thread[1] in repositories
        return
    project, version, lines = re.fullmatch(r"(.+) (\S+) \S+\.\w+:([\d,-]+)", at).groups()
    assert version in PROJECTS[project]["read"]
    assert all(re.fullmatch(r"[1-9]\d*(-[1-9]\d*)?", each) for each in lines.split(","))


def test_every_pin_has_a_source():
    pins = [sources for found in PINS.values() for sources in found.values()]
    assert all(set(sources) - {"run"} for sources in pins)


def test_every_name_of_a_setting_has_a_source():
    engines = ["OpenRLHF", "verl", "NeMo RL", "TRL 1.12.0", "TRL 1.16.0"]
    for cells in rows("## Every field of PPOConfig"):
        at = PINS["docs/outgrow.md"].get(f"| {cells[0]} |", [])
        named = {engine for engine in engines if any(each.startswith(engine) for each in at)}
        told = zip(engines, cells[1:], strict=True)
        assert {engine for engine, cell in told if not cell.startswith("–")} <= named, cells[0]
