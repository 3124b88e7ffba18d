"""Guess the bug: recorded runs with a bug."""

from collections.abc import Mapping

import ipywidgets

from minippo import plots
from minippo.widgets._explorer import Asked, Explorer


def guess_the_bug(
    rows: plots.Rows, explains: Mapping[str, str], *, question: Asked = None
) -> Explorer:
    """Mystery runs with a bug, drawn against the range of healthy runs: which bug is it?

    `rows` of the study of bugs (`load_study("bugs")`); `explains`: bug to guess -> one sentence on
    what gives it away, shown after the right guess.
    """
    picture = plots.BugCurves(rows, explains)
    wide = {"style": {"description_width": "9em"}, "layout": {"width": "32em"}}
    controls = {
        "run": ipywidgets.SelectionSlider(options=list(picture.letters), description="run", **wide),
        "seed": ipywidgets.SelectionSlider(options=picture.seeds, description="seed", **wide),
        "guess": ipywidgets.Dropdown(
            options=[plots.UNDECIDED, *sorted(explains)], description="your guess", **wide
        ),
    }
    return Explorer("guess_the_bug", picture, controls, question=question)
