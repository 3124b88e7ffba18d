"""Scrub through a recorded run."""

from pathlib import Path

import ipywidgets

from minippo import plots
from minippo.record import Run, load_run
from minippo.widgets._explorer import Asked, Explorer


def replay(
    run: str | Path | Run, other: str | Path | Run | None = None, *, question: Asked = None
) -> Explorer:
    """Move through the steps of a recorded run, or play it; with `other`, two at once.

    A run is a shipped name ("healthy"), a `Recorder`'s file or the result of `load_run`. The
    prompts are those of the first run.
    """
    first = run if isinstance(run, Run) else load_run(run)
    second = other if isinstance(other, Run | None) else load_run(other)
    picture = plots.Replay(first, second)
    style = {"style": {"description_width": "9em"}, "layout": {"width": "44em"}}
    start = 0 if any(record["step"] == 0 for record in first.records) else 1
    step = ipywidgets.IntSlider(
        value=start, min=start, max=picture.n_steps, description="PPO step", **style
    )
    controls: dict[str, ipywidgets.Widget] = {"step": step}
    if first.prompts:
        options = [(text, number) for number, text in enumerate(first.prompts)]
        controls["prompt"] = ipywidgets.Dropdown(options=options, description="prompt", **style)
    explorer = Explorer("replay", picture, controls, question=question)
    play = ipywidgets.Play(
        value=start, min=start, max=picture.n_steps, interval=700, description="play"
    )
    ipywidgets.link((play, "value"), (step, "value"))
    explorer.box.children = (play, *explorer.box.children)
    return explorer
