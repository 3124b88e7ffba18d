"""Explorers: what a slider does, over its whole grid and from any thread."""

import gc
import html
import io
import itertools
import threading

import ipywidgets
import pytest
import torch
from matplotlib import pyplot
from PIL import Image

from minippo import plots, widgets
from minippo.widgets import EXPLORERS, Explorer, Question
from tests.soak import soak, until

each_explorer = pytest.mark.parametrize("name", EXPLORERS)


REWARDS = torch.tensor([-0.02, 0.01, -0.05, 1.0])
VALUES = torch.tensor([0.3, 0.2, 0.6, 0.7])


def a_run():
    """Twelve steps whose curves all move."""
    names = "score kl entropy clip_fraction value_loss explained_variance response_length".split()
    return [{"step": i + 1} | dict.fromkeys(names, 1.0 + 0.1 * i) for i in range(12)]


def some_records():
    """Two prompts at three steps, the last with a response of one token."""
    made = []
    for step, prompt in itertools.product((0, 2, 5), ("How was it?", "And the film?")):
        n = 1 if step == 5 else 12 + step
        numbers = [0.1 * i + step for i in range(n)]
        each = dict.fromkeys(("ratio", "advantage", "kl", "entropy"), numbers)
        made.append({"step": step, "prompt": prompt, "tokens": [" a"] * n, "score": 0.5} | each)
    return made


def some_rows():
    """Two healthy seeds, and two bugs: one ends high, one low and in numbers that are none."""
    made = []
    for n, bug in enumerate(("healthy", "high", "low")):
        for seed in range(2):
            end = {"healthy": 0.5, "high": 3.0, "low": -50.0}[bug] + 0.1 * seed
            curve = [0.1 * n, 0.2, 0.5 * end, end, end, end]
            names = plots.bugs.CURVES
            curves = {name: [x + 0.01 * i for x in curve] for i, name in enumerate(names)}
            if bug == "low":
                curves["entropy"][1] = None
            truth = {"score": curves["score"], "kl": [9.0 + seed] * 6}
            case, last = {"bug": bug, "seed": seed}, {"gold": end / 2}
            made.append({"case": case, "curves": curves, "truth": truth, "end": last})
    return made


# What explorers are given that need more than their settings.
INPUTS = {
    "baseline": (["good", "fine", "bad"], torch.tensor([0.2, 0.3, 0.5]), torch.tensor([2.0, 1, 0])),
    "training_run": (a_run(),),
    "token_microscope": (some_records(),),
    "over_optimisation": ([0.003, 2.0, 8.0, 20.0], [0.0, 1.0, 2.0, 3.0], [0.0, 0.75, 0.5, -0.5]),
    "guess_the_bug": (some_rows(), {"high": "It is high.", "low": "It is low."}),
    "frontier": ({"PPO": [[(1, 0.5), (3, 0.7)], [(6, 1), (8, 2)]], "DPO": [[(4, 0.9)]]},),
}


def make(name):
    """An explorer, with a small model's worth of logits where it needs some."""
    if name == "next_token":
        logits = torch.randn(4, 20, generator=torch.Generator().manual_seed(0))
        return widgets.next_token(logits, [f"w{i}" for i in range(20)])
    if name == "credit":
        return widgets.credit(["It", "was", "good", "."], REWARDS, VALUES)
    return EXPLORERS[name](*INPUTS.get(name, ()))


def grid(control):
    """Every place of a slider, ends included."""
    if isinstance(control, ipywidgets.IntSlider):
        return list(range(control.min, control.max + 1))
    if isinstance(control, ipywidgets.FloatSlider):
        n = round((control.max - control.min) / control.step)
        return [round(control.min + i * control.step, 6) for i in range(n + 1)]
    return list(control.options)


def leaves_nothing(move, places, n):
    """n moves, 12 or more, over these places: no object and no figure stays for each of them."""
    gc.freeze()  # what is there already is not looked at again
    kept = []
    for moves in (2 * len(places), n):  # at first what is kept for good is made
        for place in itertools.islice(itertools.cycle(places), moves):
            move(place)
        gc.collect()
        kept.append(len(gc.get_objects()))
    gc.unfreeze()
    assert kept[1] < kept[0] + max(10, n // 10)  # less than one a move
    assert pyplot.get_fignums() == []


@each_explorer
def test_every_position_of_every_control_redraws_and_says_so(name):
    explorer = make(name)
    assert explorer.controls
    for control_name, control in explorer.controls.items():
        seen = set()
        for value in grid(control):
            sentence = explorer.move(**{control_name: value})
            assert sentence == explorer.picture.move(**explorer.settings)
            assert sentence in html.unescape(explorer.text.value)
            seen.add((sentence, explorer.image.value))
        assert len(seen) == len(grid(control))  # no dead place


@pytest.mark.parametrize("kl", [0.003, 1.0, 20.0])
def test_the_sliders_of_kl_reach_both_ends(kl):
    explorer = widgets.over_optimisation([0.0, kl], [0.0, 1.0], [0.0, 1.0])
    places = grid(explorer.controls["kl"])
    assert places == sorted(set(places))
    assert places[0] == 0
    assert abs(places[-1] - kl) < 0.01
    assert explorer.move(kl=places[-1]).startswith(f"At {places[-1]:.1f} nats: proxy 1.00, gold 1")
    budgets = grid(widgets.frontier(*INPUTS["frontier"]).controls["budget"])
    assert (budgets[0], budgets[-1], len(budgets)) == (2.0, 7.0, 41)


@each_explorer
def test_the_corners_of_the_grid_work(name):
    explorer = make(name)
    ends = [(grid(control)[0], grid(control)[-1]) for control in explorer.controls.values()]
    for corner in itertools.product(*ends):
        explorer.move(**dict(zip(explorer.controls, corner, strict=True)))
        assert explorer.sentence.endswith(".")
        assert "nan" not in explorer.sentence


@each_explorer
def test_an_explorers_picture_has_the_size_of_its_place(name):
    explorer = make(name)
    image = Image.open(io.BytesIO(explorer.image.value))
    assert (image.width, image.height) == (int(explorer.image.width), int(explorer.image.height))
    assert image.width == 900


@each_explorer
def test_an_explorers_controls_have_labels_and_no_output_widget_is_used(name):
    explorer = make(name)
    assert all(control.description for control in explorer.controls.values())
    kinds = {type(child).__name__ for child in explorer.box.children}
    assert "Output" not in kinds


@each_explorer
def test_an_explorers_text_is_the_sentence_and_has_no_address(name):
    explorer = make(name)
    assert repr(explorer) == f"{name}: {explorer.sentence}"
    bundle = explorer._repr_mimebundle_()
    assert bundle["text/plain"] == repr(explorer)
    assert "application/vnd.jupyter.widget-view+json" in bundle


@each_explorer
def test_many_moves_of_an_explorer_leave_no_memory_in_use(name):
    explorer = make(name)
    first, control = next(iter(explorer.controls.items()))
    places = grid(control)
    some = list(dict.fromkeys((places[0], places[len(places) // 2], places[-1])))
    leaves_nothing(lambda x: explorer.move(**{first: x}), some, soak(12, 500))


def test_many_threads_may_move_at_once_and_the_last_state_is_drawn():
    explorer = widgets.clipping()
    threads = [
        threading.Thread(target=explorer.move, kwargs={"ratio": 0.05 * i}) for i in range(1, 30)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    explorer.move(ratio=1.0)
    assert explorer.sentence == explorer.picture.move(**explorer.settings)
    Image.open(io.BytesIO(explorer.image.value)).load()


def test_moves_that_came_too_late_are_skipped(monkeypatch):
    explorer = widgets.clipping()
    drawn = []
    monkeypatch.setattr(explorer, "_draw", lambda: drawn.append(explorer.settings["ratio"]))
    with explorer._drawing:  # one is being drawn
        threads = [threading.Thread(target=explorer._moved, args=({},)) for _ in range(5)]
        for thread in threads:
            thread.start()
        until(lambda: explorer._asked == 5)
    for thread in threads:
        thread.join()
    assert len(drawn) == 1


def test_the_answer_comes_after_the_reader_has_committed():
    question = Question(
        "Which regions are flat?", ["two", "four"], 0, "A step back is learned from."
    )
    explorer = widgets.clipping(question=question)
    assert question.answer.value == ""
    assert "step back" not in str([getattr(c, "value", "") for c in explorer.box.children])
    question.choice.value = "four"
    assert "No: two. A step back is learned from." in question.answer.value
    assert question.choice.disabled
    explorer.move(ratio=0.5)  # and one may still move
    assert "Ratio 0.50" in explorer.sentence


def test_without_a_kernel_an_explorer_still_asks_its_question():
    question = Question("Which regions are flat?", ["two", "four"], 0, "A step back is learned.")
    page = widgets.clipping(question=question)._repr_mimebundle_()["text/html"]
    asked, answer = page.split("<details>")
    assert "Which regions are flat?" in asked
    assert "A step back is learned." in answer
    assert "text/html" not in widgets.clipping()._repr_mimebundle_()


def test_a_right_prediction_is_confirmed():
    question = Question("?", ["two", "four"], 0, "So it is.")
    question.choice.value = "two"
    assert "Yes. So it is." in question.answer.value


def test_an_explorers_sentence_is_escaped():
    class Odd(type(widgets.clipping().picture)):
        def move(self, **settings):
            super().move(**settings)
            return "<b>1 < 2</b>."

    explorer = Explorer("odd", Odd(), {"ratio": widgets.clipping().controls["ratio"]})
    assert "&lt;b&gt;1 &lt; 2" in explorer.text.value


def test_one_row_of_logits_has_no_position_to_choose():
    words = ["good", "bad"]
    assert "position" not in widgets.next_token(torch.zeros(1, 2), words).controls
    assert "position" in widgets.next_token(torch.zeros(3, 2), words).controls
