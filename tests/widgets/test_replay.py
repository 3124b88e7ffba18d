"""Scrubbing through recorded runs: where the marks are, and what is said."""

import io
import itertools
import math
import random

import pytest
from PIL import Image

from minippo import plots, widgets
from minippo.record import Run
from tests.soak import soak
from tests.widgets.test_explorers import leaves_nothing

PROMPTS = ("first", "second")


def made(name, n_steps, *, every=1, start=0, prompts=PROMPTS):
    """A run whose numbers tell where they come from."""
    history = [
        {"step": s, "score": s / 10, "kl": 2.0 * s, "entropy": 3 - s / 10, "clip_fraction": s / 100}
        for s in range(1, n_steps + 1)
    ]
    records = [
        {"step": s, "prompt": p, "tokens": [f" {p}", f"{name}{s}"], "score": float(s)}
        for s in range(start, n_steps + 1, every) for p in prompts
    ]  # fmt: skip
    return Run(name, {}, history, records)


@pytest.mark.parametrize("other", [None, "B"])
def test_every_position_of_a_replay_is_right_and_described(other):
    explorer = widgets.replay(made("A", 4), other and made("B", 6, every=2))
    step, prompt = explorer.controls["step"], explorer.controls["prompt"]
    assert (step.min, step.max) == (0, 6 if other else 4)
    for now in range(step.max + 1):
        for number in range(2):
            sentence = explorer.move(step=now, prompt=number)
            mine = min(now, 4)
            assert sentence.startswith(f"Step {now}: A, ")
            assert f"“{PROMPTS[number]}A{mine}” (score {mine}.00)" in sentence
            if mine:
                assert f"score {mine / 10:.2f}, KL {2 * mine:.1f} nats, " in sentence
            else:
                assert "A, before training;" in sentence
            if other:  # its records are of even steps: the latest is shown
                assert f"“{PROMPTS[number]}B{now // 2 * 2}”" in sentence
            dots = explorer.picture._dots[0]
            expected = (
                [[mine / 10], [2.0 * mine], [3 - mine / 10], [mine / 100]] if mine else [[]] * 4
            )
            assert [list(dot.get_ydata()) for dot in dots] == expected
            assert all(c.get_xdata() == [now, now] for c in explorer.picture._cursors)
    assert prompt.options == (("first", 0), ("second", 1))


def test_playing_a_replay_moves_its_slider():
    explorer = widgets.replay(made("A", 4))
    play = explorer.box.children[0]
    assert (play.min, play.max) == (0, 4)
    play.value = 3
    assert explorer.controls["step"].value == 3
    assert explorer.sentence.startswith("Step 3: A, score 0.30")
    explorer.move(step=1)
    assert play.value == 1


def test_a_run_without_answers_begins_at_its_first_step():
    explorer = widgets.replay(made("A", 3, prompts=()))
    assert list(explorer.controls) == ["step"]
    assert explorer.controls["step"].min == 1
    assert "no answer recorded" in explorer.sentence


def test_the_places_of_the_shipped_runs_can_be_seen():
    explorer = widgets.replay("healthy", "no-kl")
    control = explorer.controls["step"]
    between = range(control.min + 1, control.max)
    drawn = random.Random(0).sample(between, soak(6, len(between)))
    said = set()
    for step in (control.min, *drawn, control.max):
        said.add(explorer.move(step=step))
        assert explorer.sentence in explorer._repr_mimebundle_()["text/plain"]
    for prompt in range(6):
        said.add(explorer.move(prompt=prompt))
    assert len(said) == len(drawn) + 2 + 5
    image = Image.open(io.BytesIO(explorer.image.value))
    assert (image.width, image.height) == (int(explorer.image.width), int(explorer.image.height))
    places = [control.min, drawn[0], control.max]
    leaves_nothing(lambda step: explorer.move(step=step), places, soak(12, 500))


def test_text_is_not_read_as_mathematics_and_gaps_are_left_out():
    run = made("A", 3, prompts=("$x\x01字",))
    run.history[1]["kl"] = math.nan
    explorer = widgets.replay(run)
    assert "KL nan" in explorer.move(step=2)  # said as it is
    assert "“$x\x01字A3”" in explorer.move(step=3)
    assert "“$x��A3”" in explorer.picture._texts[1].get_text()


def test_text_of_a_replay_stays_inside_the_picture():
    explorer = widgets.replay("high-lr", "no-kl")
    for step in range(19):
        explorer.move(step=step)
        figure = explorer.picture.figure
        renderer = figure.canvas.get_renderer()
        boxes = [text.get_window_extent(renderer) for text in explorer.picture._texts]
        for upper, lower in itertools.pairwise(boxes):
            assert upper.y0 >= lower.y1 - 1  # pixels: none covers the next
        assert all(box.x1 <= 900 and box.y0 >= 0 for box in boxes)


def test_the_panels_mark_the_steps_and_show_their_answers():
    figure = plots.replay_panels(made("A", 6), steps=[0, 4])
    texts = [text.get_text() for text in figure.texts]
    assert texts == [
        "Prompt: first",
        "step 0: “firstA0” (score 0.00)",
        "step 4: “firstA4” (score 4.00)",
    ]
    for axes in figure.axes:
        assert [line.get_xdata()[0] for line in axes.lines[1:]] == [0, 4]
    assert len(plots.replay_panels(made("A", 6)).texts) == 4


def test_a_page_gets_one_picture_of_a_replay():
    figure = plots.replay(made("A", 6), made("B", 6), step=5, prompt=1)
    assert "secondA5" in figure.texts[1].get_text()
    assert "secondB5" in figure.texts[2].get_text()
