"""The symbols' colours: seen on light and dark pages, and told apart by everybody."""

import importlib
import itertools
import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from minippo import plots
from minippo.plots import _base
from tests.notebooks.test_notebooks import cells

ROOT = Path(__file__).parents[2]
WHITE, DARK = "#FFFFFF", ("#111111", "#131416")  # pages: all light ones; JupyterLab's, the site's
FORMULA = re.compile(r"\\color\{(.*?)\}")

# Machado, Oliveira and Fernandes 2009, severity 1.0, for linear RGB.
BLIND = {
    "nobody": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
         [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
         [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopia": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
         [0.004733, 0.691367, 0.303900]]
    ),
}  # fmt: skip


def linear(colour: str) -> np.ndarray:
    """Linear RGB."""
    rgb = np.array(to_rgb(colour))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def contrast(a: str, b: str) -> float:
    """WCAG 2's ratio of two colours' luminances, 1 to 21."""
    low, high = sorted(float(linear(c) @ [0.2126, 0.7152, 0.0722]) for c in (a, b))
    return (high + 0.05) / (low + 0.05)


def lab(colour: str, eyes: np.ndarray) -> np.ndarray:
    """CIE Lab (D65) of a colour as these eyes see it."""
    seen = np.clip(eyes @ linear(colour), 0, 1)
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    x, y, z = (
        t ** (1 / 3) if t > (6 / 29) ** 3 else t / (3 * (6 / 29) ** 2) + 4 / 29
        for t in to_xyz @ seen / np.array([0.95047, 1.0, 1.08883])
    )
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def formulas(folder: Path) -> set[str]:
    """Every colour in the texts of notebooks."""
    texts = [c["source"] for path in folder.rglob("*.ipynb") for c in cells(path, "markdown")]
    return {found for text in texts for found in FORMULA.findall(text)}


def test_lab_of_white_and_red_by_the_book():
    assert lab("#FFFFFF", BLIND["nobody"]) == pytest.approx([100, 0, 0], abs=0.05)
    assert lab("#FF0000", BLIND["nobody"]) == pytest.approx([53.24, 80.09, 67.20], abs=0.05)


def test_contrast_of_black_grey_and_blue_by_the_book():
    """As in WCAG's own examples: #777 just fails 4.5 on white, #767676 just passes."""
    assert contrast("#000000", WHITE) == pytest.approx(21)
    assert contrast("#777777", WHITE) == pytest.approx(4.48, abs=0.005)
    assert contrast(WHITE, "#767676") == pytest.approx(4.54, abs=0.005)
    assert contrast("#0000FF", WHITE) == pytest.approx(8.59, abs=0.005)


@pytest.mark.parametrize("symbol", plots.COLOURS)
def test_a_symbol_stands_out_from_light_pages_dark_pages_and_bands(symbol):
    seen = {page: contrast(plots.COLOURS[symbol], page) for page in (WHITE, *DARK, _base.BAND)}
    assert min(seen.values()) >= 3, seen


@pytest.mark.parametrize("eyes", BLIND)
def test_no_two_symbols_look_alike(eyes):
    """A difference of 10 in Lab is plain to see."""
    seen = {name: lab(colour, BLIND[eyes]) for name, colour in plots.COLOURS.items()}
    near = {(a, b): math.dist(seen[a], seen[b]) for a, b in itertools.combinations(seen, 2)}
    assert min(near.values()) > 11, min(near.items(), key=lambda item: item[1])


def test_every_colour_that_the_package_writes_stands_out():
    for path in (ROOT / "minippo").rglob("*.py"):
        on_cards = path.parent.name == "plots"
        for colour in re.findall(r"#[0-9a-fA-F]{6}\b", path.read_text(encoding="utf-8")):
            if colour != _base.BAND:
                for page in [WHITE] if on_cards else [WHITE, *DARK]:
                    assert contrast(colour, page) >= 3, (path.name, colour, page)


def test_numbers_on_a_heat_map_are_read_in_every_cell():
    credit = importlib.import_module("minippo.plots.credit")  # `plots.credit` is its function
    for share in np.linspace(-1, 1, 200):
        assert contrast(credit.ink(share), credit.HEAT((share + 1) / 2)) >= 4.5, share


@pytest.mark.parametrize("diagram", [plots.Pipeline, plots.PPOStep])
def test_words_of_a_diagram_are_read_lit_and_unlit(diagram):
    picture = diagram()
    for lit in ((), *diagram.BOXES, list(diagram.BOXES)):
        picture.move(lit=lit)
        for patch, words in picture._boxes.values():
            assert contrast(words.get_color(), patch.get_facecolor()) >= 4.5


def test_every_formula_in_a_notebook_has_a_symbols_colour():
    assert formulas(ROOT / "notebooks") <= set(plots.COLOURS.values())


def test_every_colour_that_a_notebooks_code_writes_stands_out_on_its_white_card():
    for path in (ROOT / "notebooks").rglob("*.ipynb"):
        found = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = "".join(line for c in found if c["cell_type"] == "code" for line in c["source"])
        for colour in set(re.findall(r"#[0-9a-fA-F]{6}\b", code)) - {_base.BAND}:
            assert contrast(colour, WHITE) >= 3, (path.name, colour)
