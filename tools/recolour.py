r"""Give the formulas in notebooks' texts the symbols' present colours: `python tools/recolour.py`.

Only text cells have `\color`; stored outputs stay, so execute the notebooks afterwards.
"""

from pathlib import Path

from minippo.plots import COLOURS

FORMER = {  # colours that symbols have had
    "#999999": "reference",
    "#56B4E9": "old",
    "#CC79A7": "advantage",
    "#E69F00": "kl",
    "#B07700": "kl",
    "#000000": "entropy",
}


def recolour(folder: Path) -> None:
    """Rewrite the notebooks in a folder and below it."""
    for path in folder.rglob("*.ipynb"):
        text = path.read_text(encoding="utf-8")
        for former, symbol in FORMER.items():
            text = text.replace(f"color{{{former}}}", f"color{{{COLOURS[symbol]}}}")
        path.write_text(text, encoding="utf-8", newline="\n")


if __name__ == "__main__":
    recolour(Path(__file__).parents[1] / "notebooks")
