"""What holds for every picture: size, labels, pixels, speed."""

import base64
import io
import re

import numpy as np
import pytest
import torch
from matplotlib import pyplot
from matplotlib.colors import to_rgb
from matplotlib.text import Text
from PIL import Image

from minippo import plots
from tests.plots.examples import (
    FIRST,
    GOLD,
    KL,
    LOGITS,
    METHODS,
    PROXY,
    RECORDS,
    RESPONSE,
    REWARDS,
    VALUES,
    WORDS,
    a_record,
)
from tests.soak import soak
from tests.widgets.test_explorers import some_rows


def long_records():
    """The course's responses have 20 to 40 tokens."""
    draw = np.random.default_rng(0).normal(size=(2, 4, 30)).round(3).tolist()
    names = ("ratio", "advantage", "kl", "entropy")
    text = (
        "The waiter was help ful and the soup taste d fine . Our friends love d it , but the bill"
    )
    tokens = [*[f" {word}" for word in text.split() * 2][:29], "<|endoftext|>"]
    numbers = [dict(zip(names, rows, strict=True)) for rows in draw]
    return [a_record(i, "P?", tokens, **row) for i, row in enumerate(numbers)]


def a_long_response():
    """Words, rewards and values of 30 tokens, of which the last is paid a score."""
    values, rewards = torch.linspace(0.1, 0.9, 30), torch.full((30,), -0.01)
    rewards[-1] = 1.0
    return long_records()[0]["tokens"], rewards, values


def a_long_run(size=1.0):
    """Thirty steps of noise, as a run has."""
    noise = size * np.random.default_rng(0).normal(size=(30, len(FIRST))).round(3)
    return [
        {"step": i + 1}
        | {name: FIRST[name] + 0.1 * float(x) for name, x in zip(FIRST, row, strict=True)}
        for i, row in enumerate(noise)
    ]


def moved(picture):
    """Its figure, as an explorer first shows it."""
    picture.move()
    return picture.figure


FIGURES = {
    "Baseline": lambda: moved(plots.Baseline(WORDS[:3], torch.full((3,), 1 / 3), torch.eye(3)[0])),
    "clipping": plots.clipping,
    "clipping_panels": plots.clipping_panels,
    "token_ratios": lambda: plots.token_ratios(WORDS, torch.tensor([0.5, 1, 1.1, 3.0]), -1.0),
    "clip_or_penalty": plots.clip_or_penalty,
    "clip_or_penalty_panels": plots.clip_or_penalty_panels,
    "darts": lambda: plots.darts({"good": 0.5, "bland": 0.3, "hot": 0.2}, [0.6]),
    "next_token_panels": lambda: plots.next_token_panels(LOGITS, WORDS),
    "credit": lambda: plots.Credit(RESPONSE, REWARDS, VALUES).figure,
    "KLTwoWays": lambda: moved(plots.KLTwoWays()),
    "credit_panels": lambda: plots.credit_panels(RESPONSE, REWARDS, VALUES),
    "credit of a long response": lambda: plots.Credit(*a_long_response()).figure,
    "credit_panels of a long response": lambda: plots.credit_panels(*a_long_response()),
    "credit_rows": lambda: plots.credit_rows(RESPONSE, {"measured": REWARDS, "guessed": VALUES}),
    "surprises": lambda: plots.surprises(RESPONSE, VALUES, 1.0),
    "token_truth": lambda: plots.token_truth(RESPONSE, VALUES, VALUES / 9, 1.0, {"guess": REWARDS}),
    "combined_loss": plots.combined_loss,
    "combined_loss_panels": plots.combined_loss_panels,
    "KLController": lambda: moved(plots.KLController()),
    "kl_estimators": plots.kl_estimators,
    "token_microscope": lambda: plots.token_microscope(long_records()),
    "token_microscope_panels": lambda: plots.token_microscope_panels(long_records()),
    "training_run": lambda: plots.training_run(a_long_run(), title="a run"),
    "over_optimisation": lambda: plots.over_optimisation(KL, PROXY, GOLD),
    "over_optimisation_panels": lambda: plots.over_optimisation_panels(
        {"few pairs": (KL, PROXY, GOLD), "many": (KL, PROXY, PROXY)}
    ),
    "frontier": lambda: plots.frontier(METHODS),
    "pipeline": lambda: plots.pipeline("stage 3"),
    "ppo_step": lambda: plots.ppo_step("credit"),
    "bug_scores": lambda: plots.bug_scores(some_rows(), ["high", "low"]),
    "symptom_table": lambda: plots.symptom_table(some_rows(), ["high", "low"]),
    "logged_and_true_kl": lambda: plots.logged_and_true_kl(some_rows(), {"renewed": "high"}),
    "bug_curves_panels": lambda: plots.bug_curves_panels(some_rows(), ["high", "low"]),
}


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_900_wide_labelled_and_small(name):
    figure = FIGURES[name]()
    if figure.axes[0].axison:  # a diagram's boxes carry their own words
        named = figure.axes[-1].get_xlabel() or figure.axes[-1].get_xticklabels()
        assert named
        assert figure.axes[0].get_ylabel() or figure.axes[0].get_yticklabels()
    image = Image.open(io.BytesIO(plots.png(figure)))
    assert image.width == 900
    assert len(image.getcolors() or []) <= 16
    assert len(plots.png(figure)) < 20_000


@pytest.mark.parametrize("name", FIGURES)
def test_words_of_a_figure_have_nine_points_and_its_lines_differ_by_more_than_hue(name):
    figure = FIGURES[name]()
    words = [text for text in figure.findobj(Text) if text.get_text().strip()]
    assert [text for text in words if text.get_fontsize() < 9] == []
    for axes in figure.axes:
        looks: dict = {}
        for line in axes.lines:
            if line.get_marker() not in ("|", "_"):  # the ends of an error bar
                look = looks.setdefault((line.get_linestyle(), line.get_marker()), set())
                look.update({line.get_color()} & set(plots.COLOURS.values()))
        assert {look: hues for look, hues in looks.items() if len(hues) > 1} == {}


def test_panels_show_four_settings():
    assert [a.get_title() for a in plots.clipping_panels().axes] == [
        f"epsilon = {e}" for e in ("0", "0.1", "0.2", "0.4")
    ]
    assert len(plots.clip_or_penalty_panels().axes) == 4


def test_a_stored_picture_keeps_its_symbols_colours():
    """Sixteen colours are those of the figure itself, not sixteen that come near."""
    image = Image.open(io.BytesIO(plots.png(plots.ppo_step()))).convert("RGB")
    kept = {colour for _, colour in image.getcolors()}
    wanted = {tuple(round(255 * x) for x in to_rgb(c)) for c in plots.COLOURS.values()}
    assert wanted | {(255, 255, 255)} <= kept


def test_a_notebook_stores_the_same_pixels_in_fewer_bytes():
    shown = plots.show(plots.ppo_step(), alt="a", caption="b")
    page = shown._repr_mimebundle_()["text/html"]
    (stored,) = re.findall(r'src="data:image/webp;base64,([^"]+)"', page)
    content = base64.b64decode(stored)
    assert len(content) < 0.8 * len(shown.png)
    assert Image.open(io.BytesIO(content)).mode == "RGB"  # a white card, also on a dark page
    pixels = [Image.open(io.BytesIO(x)).convert("RGB").tobytes() for x in (content, shown.png)]
    assert pixels[0] == pixels[1]


def test_no_figure_is_left_open_in_pyplot():
    picture = plots.Clipping()
    for i in range(soak(12, 500)):
        picture.move(ratio=0.05 + i / 300)
        picture.png()
    assert pyplot.get_fignums() == []


@pytest.mark.parametrize(
    ("make", "first", "then"),
    [
        (plots.Clipping, {"epsilon": 0.4, "ratio": 0.5}, {"advantage": -1.0, "ratio": 1.7}),
        (lambda: plots.TrainingRun(a_long_run()), {"step": 30}, {"step": 2}),
        (lambda: plots.TokenMicroscope(RECORDS), {"step": 4}, {"step": 0, "quantity": "kl"}),
        (lambda: plots.OverOptimisation(KL, PROXY, GOLD), {"kl": 20.0}, {"kl": 1.0}),
        (lambda: plots.Frontier(METHODS), {"budget": 2.0}, {"budget": 6.0}),
        (plots.Pipeline, {"lit": "stage 3"}, {"lit": "sft"}),
        (plots.PPOStep, {"lit": "learn"}, {"lit": ["kl", "ratio"]}),
    ],
)
def test_the_quick_redraw_of_a_figure_is_the_slow_one(make, first, then):
    picture = make()
    picture.move(**first)
    picture.png()
    picture.move(**then)
    quick = np.asarray(Image.open(io.BytesIO(picture.png())), int)
    fresh = make()
    fresh.move(**then)
    slow = io.BytesIO()
    fresh.figure.savefig(slow, format="png", dpi=100)
    whole = np.asarray(Image.open(slow).convert("RGB"), int)
    assert quick.shape == whole.shape
    assert (abs(quick - whole).max(axis=2) > 40).mean() < 0.01  # order of the grid lines apart
