"""The diagrams: what is computed from what, and what is lit."""

import itertools

import numpy as np
import pytest
from matplotlib.colors import to_rgb

from minippo import course, plots

# Written from the lessons, not from the code: what is computed from what.
FLOWS = {
    plots.Pipeline: """base sft, demonstrations sft, sft pairs, pairs reward-model, sft policy,
        reward-model score, prompts policy, policy responses, policy reference, responses score,
        responses kl, reference kl, responses update, score update, kl update, value update,
        update policy""",
    plots.PPOStep: """prompts generate, generate responses, responses values, responses score,
        responses reference, responses old, reference kl, old kl, kl controller, controller rewards,
        score rewards, rewards advantages, values advantages, advantages returns, values returns,
        returns value-loss, evaluate value-loss, advantages policy-loss, old ratio, evaluate ratio,
        ratio policy-loss, evaluate entropy, value-loss loss, policy-loss loss, entropy loss,
        evaluate loss, loss update, update evaluate, update generate""",
}
each_diagram = pytest.mark.parametrize("diagram", FLOWS)
WIDE, HIGH = 0.82, 0.56


def touches(box, x, y):
    return abs(x - box.x) <= WIDE / 2 + 1e-9 and abs(y - box.y) <= HIGH / 2 + 1e-9


def box_at(diagram, arrows, x, y):
    """The box at a point, or the box that an arrow through this point leads to."""
    for name, box in diagram.BOXES.items():
        if touches(box, x, y):
            return name
    (on,) = [
        arrow for arrow in arrows if arrow[-1] != (x, y) and any(
            min(x0, x1) <= x <= max(x0, x1) and min(y0, y1) <= y <= max(y0, y1)
            for (x0, y0), (x1, y1) in itertools.pairwise(arrow)
        )
    ]  # fmt: skip
    return box_at(diagram, arrows, *on[-1])


@each_diagram
def test_the_arrows_of_a_diagram_are_its_flow(diagram):
    ends = [
        tuple(box_at(diagram, diagram.ARROWS, *point) for point in (arrow[0], arrow[-1]))
        for arrow in diagram.ARROWS
    ]
    pairs = [pair.split() for pair in FLOWS[diagram].split(",")]
    wanted = [tuple(name.replace("-", " ") for name in pair) for pair in pairs]
    assert sorted(ends) == sorted(wanted)


@each_diagram
def test_arrows_run_along_rows_and_columns_and_through_no_box(diagram):
    for arrow in diagram.ARROWS:
        for (x0, y0), (x1, y1) in itertools.pairwise(arrow):
            assert x0 == x1 or y0 == y1
            points = [(x0 + t * (x1 - x0), y0 + t * (y1 - y0)) for t in np.linspace(0, 1, 101)]
            inside = [
                name
                for name, box in diagram.BOXES.items()
                for x, y in points
                if abs(x - box.x) < WIDE / 2 - 1e-6 and abs(y - box.y) < HIGH / 2 - 1e-6
            ]
            assert inside == []


@each_diagram
def test_each_box_is_in_one_band_and_its_words_fit_even_when_lit(diagram):
    assert sorted(diagram.lit(list(diagram.BANDS))) == sorted(diagram.BOXES)
    picture = diagram()
    picture.move(lit=list(diagram.BOXES))
    picture.png()
    renderer = picture.figure.canvas.get_renderer()
    patches, texts = (picture.figure.axes[0].patches, picture.figure.axes[0].texts)
    words = {text.get_text(): text.get_window_extent(renderer) for text in texts}
    places = [patch.get_window_extent(renderer) for patch in patches]
    for box in diagram.BOXES.values():
        extent = words[box.words]
        assert any(
            place.x0 + 3 < extent.x0 and extent.x1 < place.x1 - 3 and place.width < 200
            and place.y0 < extent.y0 and extent.y1 < place.y1
            for place in places
        )  # fmt: skip


@each_diagram
def test_a_lit_box_is_filled_bold_and_named(diagram):
    picture = diagram()
    for name, box in diagram.BOXES.items():
        assert picture.move(lit=name) == box.says
        assert box.says.endswith(".")
        bold = [t for t in picture.figure.axes[0].texts if t.get_weight() == "bold"]
        assert [t.get_text() for t in bold if t.get_fontsize() < 10] == [box.words]
        filled = [
            p
            for p in picture.figure.axes[0].patches
            if p.get_zorder() == 2 and to_rgb(p.get_facecolor()) != (1, 1, 1)
        ]
        assert len(filled) == 1
    with pytest.raises(ValueError, match="lit must be one or several of"):
        picture.move(lit="the reward of heaven")


def test_a_diagrams_alternative_text_names_the_lit_box():
    alt = plots.ppo_step_alt(["kl", "ratio"])
    assert alt.startswith("One PPO step in boxes and arrows; lit: kl, ratio. Old minus reference")


def test_boxes_that_a_student_has_are_filled_and_missing_ones_dashed():
    picture = plots.PPOStep()
    picture.move(have=["prompts", "ratio"])
    drawn = {name: patch for name, (patch, _) in picture._boxes.items()}
    filled = {name for name, patch in drawn.items() if to_rgb(patch.get_facecolor()) != (1, 1, 1)}
    assert filled == {"prompts", "ratio"}
    dashed = {name for name, patch in drawn.items() if patch.get_linestyle() == "--"}
    assert dashed == set(drawn) - {"ratio"}  # prompts are data
    picture.move(lit="ratio")
    assert drawn["kl"].get_linestyle() == "-"


def test_each_lesson_adds_its_boxes_until_nothing_is_missing():
    shown = {f"{n:02}": course.progress(f"{n:02}") for n in range(13)}
    assert shown["00"].caption.startswith("You have: prompts. Missing: policy generates, responses")
    assert shown["05"].caption == (
        "You have: prompts, policy generates, responses and mask, score, old log-probs, ratio, "
        "policy reads a minibatch. Missing: values V, reference log-probs, KL per token, price β, "
        "rewards r, advantages A, returns G, value loss, clipped loss, entropy, loss, "
        "gradient step."
    )
    assert "After lesson 05, 7 are filled and 12 are dashed." in shown["05"].alt
    assert shown["11"].caption.endswith("Missing: gradient step.")
    assert shown["12"].caption.endswith("gradient step. Missing: nothing.")
    assert shown["12"].png != shown["11"].png
    with pytest.raises(ValueError, match=r"lesson must be one of 00, 01, .* 12, got '13'"):
        course.progress("13")
