"""Pictures: the data of their curves, their colours, and what they say."""

import base64
import importlib
import io
import itertools
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import pyplot
from matplotlib.colors import to_rgb
from PIL import Image

from minippo import plots
from minippo.checks import definitions
from tests.soak import soak
from tests.widgets.test_explorers import some_rows

# `plots.combined_loss` is the function of that name, and hides its module.
combined = importlib.import_module("minippo.plots.combined_loss")

EPSILONS = [0.0, 0.1, 0.2, 0.5]
ADVANTAGES = [-1.5, -1.0, 0.0, 0.25, 1.0]
RATIOS = [0.05, 0.8, 1.0, 1.2, 1.35, 2.0]


def by_hand(r, a, epsilon):
    """PPO-Clip's objective and slope from its six regions."""
    if a > 0 and r > 1 + epsilon:
        return (1 + epsilon) * a, 0.0
    if a < 0 and r < 1 - epsilon:
        return (1 - epsilon) * a, 0.0
    return r * a, a


def curve(axes):
    """The longest line of axes."""
    line = max(axes.lines, key=lambda x: len(x.get_xdata()))
    return np.array(line.get_xdata(), float), np.array(line.get_ydata(), float)


# ---- clipping --------------------------------------------------------------------------------


@pytest.mark.parametrize(("epsilon", "size"), list(itertools.product(EPSILONS, [0.25, 1.0, 1.5])))
def test_the_curves_of_the_clip_are_the_six_regions(epsilon, size):
    figure = plots.clipping(epsilon=epsilon, advantage=size)
    top_left, top_right, bottom_left, bottom_right = figure.axes
    for a, top, bottom in ((size, top_left, bottom_left), (-size, top_right, bottom_right)):
        x, y = curve(top)
        _, slope = curve(bottom)
        for r, got, got_slope in zip(x[::7], y[::7], slope[::7], strict=True):
            value, wanted = by_hand(r, a, epsilon)
            assert got == pytest.approx(value, abs=1e-9)
            if min(abs(r - 1 - epsilon), abs(r - 1 + epsilon)) > 1e-3:
                assert got_slope == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize("epsilon", EPSILONS)
def test_what_is_shaded_is_flat_and_what_is_labelled_learns(epsilon):
    figure = plots.clipping(epsilon=epsilon)
    for axes, (left, right) in zip(
        figure.axes[:2], [(1 + epsilon, 2.0), (0.0, 1 - epsilon)], strict=True
    ):
        shade = axes.patches[0]
        assert shade.get_x() == pytest.approx(left)
        assert shade.get_x() + shade.get_width() == pytest.approx(right)
        flat = [text for text in axes.texts if text.get_text() == "flat"]
        assert len(flat) == 1
        assert left <= flat[0].get_position()[0] <= right
        assert len([text for text in axes.texts if text.get_text() == "learns"]) == 2


@pytest.mark.parametrize(
    ("epsilon", "advantage", "ratio"), list(itertools.product(EPSILONS, ADVANTAGES, RATIOS))
)
def test_the_sentence_and_the_point_tell_the_truth(epsilon, advantage, ratio):
    picture = plots.Clipping()
    sentence = picture.move(epsilon=epsilon, advantage=advantage, ratio=ratio)
    value, slope = by_hand(ratio, advantage, epsilon)
    on_edge = min(abs(ratio - 1 - epsilon), abs(ratio - 1 + epsilon)) < 1e-6
    if not on_edge:
        assert sentence.endswith(f"slope {slope + 0.0:.2f}.")
        clipped = advantage != 0 and slope == 0
        word = "clipped" if clipped else "no advantage" if advantage == 0 else "not clipped"
        assert f": {word}, " in sentence
    assert sentence.startswith(f"Ratio {ratio:.2f}, A = {advantage:+.2f}, ")
    for column, shown in enumerate((advantage >= 0, advantage <= 0)):
        point = picture.figure.axes[column].lines[3]
        assert list(point.get_xdata()) == ([ratio] if shown else [])
        if shown:
            assert float(point.get_ydata()[0]) == pytest.approx(value, abs=1e-9)


def test_real_tokens_stand_on_the_curve_of_their_sign():
    ratio, advantages = torch.tensor([0.5, 1.5, 0.9]), torch.tensor([2.0, 1.0, -1.0])
    figure = plots.clipping(tokens=(ratio, advantages))
    ticks = [axes.lines[-1] for axes in figure.axes[:2]]
    assert ticks[0].get_xdata().tolist() == [0.5, 1.5]
    assert ticks[0].get_ydata().tolist() == pytest.approx([0.5, 1.2])
    assert ticks[1].get_ydata().tolist() == pytest.approx([-0.9])


# ---- clip or penalty -------------------------------------------------------------------------


@pytest.mark.parametrize(("coef", "a"), list(itertools.product([0.0, 1.0, 4.0], [-1.0, 0.0, 1.5])))
def test_the_penalised_objective_is_its_formula(coef, a):
    figure = plots.clip_or_penalty(coef=coef, advantage=a)
    left, right = figure.axes
    x, y = (np.array(v, float) for v in left.lines[2].get_data())
    slope = np.array(right.lines[2].get_ydata(), float)
    assert y == pytest.approx(a * x - coef * (x - 1 - np.log(x)), abs=1e-9)
    assert slope == pytest.approx(a - coef * (1 - 1 / x), abs=1e-9)


def test_the_best_ratio_of_the_penalty_is_where_the_docstring_says():
    x, y = (np.array(v, float) for v in plots.clip_or_penalty(coef=4.0).axes[0].lines[2].get_data())
    assert x[y.argmax()] == pytest.approx(4 / 3, abs=0.005)
    x, y = (np.array(v, float) for v in plots.clip_or_penalty(coef=1.0).axes[0].lines[2].get_data())
    assert y.argmax() == len(y) - 1  # none


@pytest.mark.parametrize(("epsilon", "a"), list(itertools.product(EPSILONS, ADVANTAGES)))
def test_the_sentence_compares_the_slopes(epsilon, a):
    sentence = plots.ClipOrPenalty().move(epsilon=epsilon, coef=2.0, advantage=a)
    penalty = a - 2.0 * (1 - 1 / 1.5)
    assert f"and {penalty:.2f} with the penalty." in sentence.replace("-0.00", "0.00")
    if epsilon != 0.5:
        assert f"is {by_hand(1.5, a, epsilon)[1] + 0.0:.2f} with the clip" in sentence


# ---- distributions ---------------------------------------------------------------------------

LOGITS = torch.tensor([[2.0, 1.0, 0.0, -1.0], [0.0, 0.0, 0.0, 0.0]])
WORDS = ["a", "b", "c", "d"]


@pytest.mark.parametrize(("position", "t"), list(itertools.product([0, 1], [0.1, 0.7, 1.0, 3.0])))
def test_the_bars_are_the_softmax_and_the_entropy_is_said(position, t):
    picture = plots.NextToken(LOGITS, WORDS)
    sentence = picture.move(position=position, temperature=t)
    p = [math.exp(x) for x in definitions.log_softmax(LOGITS[position].tolist(), t)]
    heights = [bar.get_height() for bar in picture.figure.axes[0].patches]
    assert heights[:4] == pytest.approx(sorted(p, reverse=True), abs=1e-9)
    assert heights[4:] == [0.0] * 8
    h = definitions.entropy(LOGITS[position].tolist(), t)
    assert f"entropy {h:.2f} of at most 1.39 nats" in sentence
    assert f"likeliest with {max(p):.2f}" in sentence
    if position == 0:
        assert "'a' is likeliest" in sentence


@pytest.mark.parametrize("shift", [0.0, 0.25, 1.5, 4.0])
def test_the_two_kls_and_the_estimators_are_those_of_the_definitions(shift):
    picture = plots.KLTwoWays()
    sentence = picture.move(shift=shift)
    ref = picture.Z.tolist()
    z = [a + shift * b for a, b in zip(ref, [1, 0, 0, 0, -0.5], strict=True)]
    forward, backward = definitions.exact_kl(z, ref), definitions.exact_kl(ref, z)
    assert f"KL(p || q) = {abs(forward):.2f} nats, KL(q || p) = {abs(backward):.2f}" in sentence
    log_p, log_q = definitions.log_softmax(z), definitions.log_softmax(ref)
    right = picture.figure.axes[1]
    for name, line in zip(("k1", "k2", "k3"), [x for x in right.lines if x.get_label()[0] == "k"],
                          strict=True):  # fmt: skip
        k = [getattr(definitions, f"kl_{name}")(a, b) for a, b in zip(log_p, log_q, strict=True)]
        mean = sum(math.exp(a) * x for a, x in zip(log_p, k, strict=True))
        assert line.get_ydata() == pytest.approx([mean] * 5, abs=1e-9)


def test_far_away_k3_spreads_more_than_k1_and_near_by_less():
    def spread(shift):
        picture = plots.KLTwoWays()
        picture.move(shift=shift)
        lines = {x.get_label(): i for i, x in enumerate(picture.figure.axes[1].lines)}
        bars = picture.figure.axes[1].lines
        return {n: np.ptp(bars[lines[n] + 1].get_ydata()) for n in ("k1", "k3")}

    near, far = spread(0.5), spread(2.5)
    assert near["k1"] > near["k3"]
    assert far["k3"] > far["k1"]


@pytest.mark.parametrize(("target", "horizon"), [(4.0, 1000), (1.0, 100), (10.0, 10000)])
def test_the_controllers_curves_are_its_definition(target, horizon):
    picture = plots.KLController()
    sentence = picture.move(target=target, horizon=horizon)
    left, right = picture.figure.axes
    kls = list(left.lines[0].get_ydata())
    coefs = definitions.adaptive_kl(0.05, target, horizon, kls, 128)
    assert list(right.lines[0].get_ydata()) == pytest.approx(coefs)
    assert f"the KL is {kls[-1]:.1f} (highest {max(kls):.1f})" in sentence
    before = [0.0, *kls[:-1]]
    was = [0.05, *coefs[:-1]]
    moved = [k + 0.2 * (12 / (1 + 10 * c) - k) for k, c in zip(before, was, strict=True)]
    assert kls == pytest.approx(moved)


# ---- credit and the combined loss ------------------------------------------------------------

RESPONSE = ["It", "was", "good", "."]
REWARDS = torch.tensor([-0.02, 0.01, -0.05, 1.0])
VALUES = torch.tensor([0.3, 0.2, 0.6, 0.7])


@pytest.mark.parametrize(("gamma", "lam"), list(itertools.product([0.5, 1.0], [0.0, 0.95, 1.0])))
def test_the_strip_holds_what_the_definitions_say(gamma, lam):
    figure = plots.credit(RESPONSE, REWARDS, VALUES, gamma=gamma, lam=lam)
    shown = np.concatenate([np.asarray(x.get_array()) for x in figure.axes[0].images])
    r, v, mask = [REWARDS.double().tolist()], [VALUES.double().tolist()], [[True] * 4]
    rows = [
        r[0],
        v[0],
        definitions.td_errors(r, v, mask, gamma)[0],
        definitions.gae(r, v, mask, gamma, lam)[0],
        definitions.monte_carlo_returns(r, mask, gamma)[0],
    ]
    assert shown == pytest.approx(np.array(rows), abs=1e-6)
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == [f"{x + 0.0:.2f}" for x in shown.flatten()]


def test_a_response_of_one_token_has_its_surprise_as_advantage():
    picture = plots.Credit(["."], torch.tensor([1.0]), torch.tensor([0.25]))
    for lam in (0.0, 1.0):
        sentence = picture.move(lam=lam)
        assert "advantage +0.75 at the first token, +0.75 at the last" in sentence
        assert "counts 1.00 at the first token" in sentence


@pytest.mark.parametrize("a", [-1.5, 0.0, 1.0])
def test_alone_the_policy_term_is_the_policy_gradient(a):
    picture = plots.CombinedLoss()
    picture.move(advantage=a, c2=0.0, c3=0.0)
    (line,) = [x for x in picture.figure.axes[0].lines if x.get_label() == "sum"]
    z = combined.Z.tolist()
    p = [math.exp(x) for x in definitions.log_softmax(z)]
    wanted = [a * ((i == combined.CHOSEN) - p[i]) for i in range(5)]
    assert list(line.get_ydata()) == pytest.approx(wanted, abs=1e-9)


def test_bonus_and_kl_push_as_their_formulas_say():
    z, ref = combined.Z.tolist(), combined.REFERENCE.tolist()
    bonus = definitions.gradient(definitions.entropy, z)
    log_p = definitions.log_softmax(z)
    gap = log_p[0] - definitions.log_softmax(ref)[0]
    kl = [-gap * ((i == 0) - math.exp(x)) for i, x in enumerate(log_p)]
    table = combined.pushes(0.0, 0.5, 0.25)
    assert table[0].abs().max() == 0
    assert table[1].tolist() == pytest.approx([0.5 * x for x in bonus], abs=1e-7)
    assert table[2].tolist() == pytest.approx([0.25 * x for x in kl], abs=1e-9)
    assert gap > 0 > table[2][0]  # the policy likes it more than the reference does


# ---- diagrams --------------------------------------------------------------------------------

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
        loss update, update evaluate, update generate""",
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
def test_the_arrows_are_the_flow(diagram):
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
def test_what_is_lit_is_filled_bold_and_said(diagram):
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


def test_the_alternative_text_names_what_is_lit():
    alt = plots.ppo_step_alt(["kl", "ratio"])
    assert alt.startswith("One PPO step in boxes and arrows; lit: kl, ratio. Old minus reference")
    assert plots.pipeline_alt("stage 2").count(". ") == 2
    assert "lit" not in plots.pipeline_alt()
    assert plots.pipeline_alt().count(". ") == len(plots.Pipeline.BOXES)


# ---- token microscope ------------------------------------------------------------------------


def a_record(step, prompt, tokens, **numbers):
    zeros = dict.fromkeys(("ratio", "advantage", "kl", "entropy"), [0.0] * len(tokens))
    return {"step": step, "prompt": prompt, "tokens": tokens, "score": step / 4} | zeros | numbers


RECORDS = [
    a_record(4, "P?", [" so", " good", "<|endoftext|>"], ratio=[1.0, 1.5, 0.5], kl=[1, -0.001, 2]),
    a_record(0, "P?", ["\n"], kl=[-0.25], entropy=[0.5], ratio=[1.0]),
    a_record(4, "Q?", [" t"] * 11, advantage=[0.1 * i - 0.5 for i in range(11)], ratio=[1.0] * 11),
]


def cells(axes):
    """(word, number) of each cell that is not empty, and the mesh's values."""
    texts = [text.get_text() for text in axes.texts]
    n = len(texts) // 2
    pairs = [(w, x) for w, x in zip(texts[:n], texts[n:], strict=True) if w or x]
    return pairs, np.ma.filled(axes.collections[0].get_array(), np.nan).flatten()


@pytest.mark.parametrize("quantity", ["ratio", "advantage", "kl", "entropy"])
@pytest.mark.parametrize("record", RECORDS, ids=str)
def test_a_cell_holds_its_token_its_number_and_its_colour(record, quantity):
    picture = plots.TokenMicroscope(RECORDS)
    sentence = picture.move(prompt=record["prompt"], step=record["step"], quantity=quantity)
    pairs, heat = cells(picture.figure.axes[0])
    written = {"<|endoftext|>": "EOS", "\n": "\\n"}
    sign = "+" if quantity in ("advantage", "kl") else ""
    shown = [format(x, f"{sign}.2f").replace("-0.00", "+0.00") for x in record[quantity]]
    words = [written.get(token, token.strip()) for token in record["tokens"]]
    assert pairs == list(zip(words, shown, strict=True))
    neutral = 1.0 if quantity == "ratio" else 0.0
    n = len(words)
    far = np.array(record[quantity]) - neutral
    assert np.sign(heat[:n]).tolist() == np.sign(far).tolist()
    if np.abs(far).max() > 0:
        assert heat[:n] / np.abs(heat[:n]).max() == pytest.approx(far / np.abs(far).max())
    assert np.isnan(heat[n:]).all()
    name = {"kl": "KL in nats", "entropy": "entropy in nats"}.get(quantity, quantity)
    assert f"Step {record['step']}, {name}, {n} tokens: mean" in sentence
    low = record[quantity].index(min(record[quantity]))
    assert f"from {shown[low]} at token {low + 1} ({words[low]})" in sentence
    assert f"to {max(record[quantity]):{sign}.2f} at token" in sentence
    assert f"score {record['step'] / 4:.2f}; prompt: '{record['prompt']}'." in sentence


@pytest.mark.parametrize(("asked", "shown"), [(None, 4), (9, 4), (4, 4), (3, 0), (0, 0), (-1, 0)])
def test_between_two_records_the_earlier_is_shown(asked, shown):
    assert f"Step {shown}," in plots.TokenMicroscope(RECORDS).move(step=asked)


def test_one_colour_scale_serves_all_steps():
    records = [a_record(i, "P?", [" a"], entropy=[x]) for i, x in enumerate((1.0, 4.0))]
    picture, heat = plots.TokenMicroscope(records), []
    for step in (0, 1):
        picture.move(step=step, quantity="entropy")
        heat.append(cells(picture.figure.axes[0])[1][0])
    assert heat[1] == pytest.approx(4 * heat[0])


def test_the_panels_show_the_first_and_the_last_response_of_the_prompt():
    first, last = plots.token_microscope_panels(RECORDS).axes
    assert cells(first)[0] == [("\\n", "1.00")]
    assert [word for word, _ in cells(last)[0]] == ["so", "good", "EOS"]
    titles = [a.get_title(loc="left") for a in (first, last)]
    assert [title.split(",")[0] for title in titles] == ["step 0", "step 4"]


@pytest.mark.parametrize(
    ("records", "settings", "says"),
    [
        ([], {}, "records must hold at least one record"),
        ([{"step": 1}], {}, r"records\[0\] must hold step, .* got no prompt, tokens"),
        ([a_record(0, "P?", [])], {}, "at least one token"),
        ([a_record(0, "P?", [" a"], kl=[])], {}, r"records\[0\]\['kl'\] must be 1 finite numbers"),
        ([a_record(0, "P?", [" a"], kl=[math.nan])], {}, "finite"),
        (RECORDS, {"quantity": "reward"}, "quantity must be one of ratio, advantage, kl, entropy"),
        (RECORDS, {"prompt": "X"}, r"prompt must be one of \['P\?', 'Q\?'\], got 'X'"),
    ],
)
def test_records_that_cannot_be_drawn_are_refused(records, settings, says):
    with pytest.raises(ValueError, match=says):
        plots.token_microscope(records, **settings)


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


# ---- whole runs ------------------------------------------------------------------------------

FIRST = {"score": 0.5, "kl": 0.0, "entropy": 1.2, "clip_fraction": 0.1, "value_loss": 0.7,
         "explained_variance": 0.0, "response_length": 26.0}  # fmt: skip
# The lowest and the highest healthy value for a run that begins like this, worked by hand.
BANDS = {"score": (0.5, math.inf), "kl": (-0.5, 25), "entropy": (0.4, 1.8),
         "clip_fraction": (0, 0.3), "value_loss": (0, 1.4), "explained_variance": (-0.1, 1),
         "response_length": (13, 39)}  # fmt: skip


def a_run(**last):
    """Ten steps that stay where they began, but for what the last three are."""
    steps = [{"step": float(i + 1)} | FIRST for i in range(10)]
    return [stats | (last if i >= 7 else {}) for i, stats in enumerate(steps)]


def test_a_run_is_drawn_as_it_was_on_its_bands():
    history = [stats | {"score": 0.5 + i} for i, stats in enumerate(a_run())]
    axes = [a for a in plots.training_run(history).axes if a.axison]
    assert len(axes) == len(BANDS)
    for name, panel in zip(BANDS, axes, strict=True):
        x, y = panel.lines[0].get_data()
        assert list(x) == list(range(1, 11))
        assert list(y) == [stats[name] for stats in history]
        band, (low, high) = panel.patches[0], BANDS[name]
        assert band.get_y() == pytest.approx(low)
        above = band.get_y() + band.get_height()
        top = panel.get_ylim()[1]
        assert above == pytest.approx(high) if math.isfinite(high) else above >= top


def test_a_run_whose_returns_were_constant_at_first_is_drawn():
    history = a_run()
    history[0]["explained_variance"] = math.nan  # nothing to explain
    limits = [a.get_ylim() for a in plots.training_run(history).axes if a.axison]
    assert all(math.isfinite(x) for pair in limits for x in pair)


@pytest.mark.parametrize("name", BANDS)
@pytest.mark.parametrize("side", [0, 1])
def test_a_curve_that_leaves_its_band_is_named_with_the_edge(name, side):
    edge = BANDS[name][side]
    if name == "score" and side == 1:
        return  # no score is too high by itself
    for beyond in (False, True):
        outwards = 0.02 if beyond == (side == 1) else -0.02
        sentence = plots.health(a_run(**{name: edge + outwards}))
        if beyond:
            word = ("below", "above")[side]
            assert f"{edge + outwards:.2f} is {word} {edge:.2f} (" in sentence
            assert "; " not in sentence  # and no other curve
        else:
            assert sentence == "Step 10, mean of 3 steps: all 7 curves are in their healthy bands."


def test_every_way_out_of_a_band_that_can_happen_has_its_meaning():
    curves = importlib.import_module("minippo.plots.runs").CURVES
    assert list(curves) == list(BANDS)
    impossible = {("clip_fraction", 0), ("value_loss", 0), ("explained_variance", 1), ("score", 1)}
    for name, curve in curves.items():
        for side, says in enumerate((curve.below, curve.above)):
            assert bool(says) == ((name, side) not in impossible)


def test_health_is_judged_by_three_steps_up_to_the_one_asked_for():
    history = a_run(kl=90.0)
    assert "7 curves" in plots.health(history, step=7)
    assert "KL to reference 30.00 is above" in plots.health(history, step=8)
    assert "KL to reference 90.00 is above" in plots.health(history, step=10)
    assert plots.health(history, step=1).startswith("Step 1, mean of 1 step: all")
    assert plots.health(history, step=2).startswith("Step 2, mean of 2 steps: all")


@pytest.mark.parametrize("step", range(1, 11))
def test_the_cursor_stands_on_the_curves_and_says_their_values(step):
    history = [stats | {"score": 0.5 + i} for i, stats in enumerate(a_run(kl=90.0))]
    picture = plots.TrainingRun(history)
    sentence = picture.move(step=step)
    for name, panel in zip(BANDS, [a for a in picture.figure.axes if a.axison], strict=True):
        assert list(panel.lines[1].get_xdata()) == [step, step]
        assert [list(x) for x in panel.lines[2].get_data()] == [[step], [history[step - 1][name]]]
    assert sentence.startswith(f"score {step - 0.5:.2f}, KL to reference {90 * (step > 7):.2f}, ")
    assert sentence.endswith(plots.health(history, step=step))


def a_long_run(size=1.0):
    """Thirty steps of noise, as a run has."""
    noise = size * np.random.default_rng(0).normal(size=(30, len(FIRST))).round(3)
    return [
        {"step": i + 1}
        | {name: FIRST[name] + 0.1 * float(x) for name, x in zip(FIRST, row, strict=True)}
        for i, row in enumerate(noise)
    ]


def test_panels_of_runs_share_their_axes():
    figure = plots.training_run_panels({"good": a_run(), "bad": a_run(kl=90.0)})
    assert len(figure.axes) == 2 * len(BANDS)
    assert [a.get_title() for a in figure.axes[:2]] == ["good", "bad"]
    good, bad = figure.axes[2:4]
    assert good.get_ylim() == bad.get_ylim()
    assert list(bad.lines[0].get_ydata()) == [0.0] * 7 + [90.0] * 3
    assert good.get_ylim()[1] > 90


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: plots.training_run([]), "history must hold at least one step"),
        (lambda: plots.training_run([{"step": 1, "score": 0.0}]), "a step without kl, entropy"),
        (lambda: plots.health(a_run(), step=11), "step must be a step of the run, 1 to 10, got 11"),
        (lambda: plots.training_run_panels({}), "runs must hold at least one run"),
        (lambda: plots.training_run_panels({"a": []}), "run 'a': history must"),
    ],
)
def test_a_run_that_cannot_be_drawn_is_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call()


def test_the_trainers_statistics_are_those_that_are_drawn():
    """Every curve is a name that the trainer writes."""
    source = (Path(plots.__file__).parents[1] / "trainer.py").read_text(encoding="utf-8")
    source += (Path(plots.__file__).parents[1] / "ppo.py").read_text(encoding="utf-8")
    assert [name for name in BANDS if f'"{name}": ' not in source] == []


# ---- over-optimisation and the frontier ------------------------------------------------------

KL, PROXY, GOLD = [8.0, 0.0, 2.0, 20.0], [2.0, 0.0, 1.0, 3.0], [0.5, 0.0, 0.75, -0.5]


@pytest.mark.parametrize(
    ("kl", "proxy", "gold"),
    [(0, 0, 0), (1, 0.5, 0.375), (2, 1, 0.75), (5, 1.5, 0.625), (14, 2.5, 0.0), (20, 3, -0.5)],
)
def test_the_cursor_reads_both_rewards_and_their_gap(kl, proxy, gold):
    picture = plots.OverOptimisation(KL, PROXY, GOLD)
    sentence = picture.move(kl=float(kl))
    assert sentence == (
        f"At {kl:.1f} nats: proxy {proxy:.2f}, gold {gold:.2f}, gap {proxy - gold:+.2f}; gold is "
        "highest, 0.75, at 2.0 nats."
    )
    curves = {line.get_label(): line.get_data() for line in picture.figure.axes[0].lines}
    x, y = curves["proxy (what is paid)"]
    assert (list(x), list(y)) == ([0, 2, 8, 20], [0, 1, 2, 3])
    assert list(curves["gold (what is meant)"][1]) == [0, 0.75, 0.5, -0.5]
    gap, dot, square = picture.figure.axes[0].lines[2:]
    assert gap.get_ydata() == pytest.approx([gold, proxy])
    assert [*dot.get_xdata(), *dot.get_ydata()] == pytest.approx([kl, proxy])
    assert [*square.get_xdata(), *square.get_ydata()] == pytest.approx([kl, gold])


def test_over_optimisation_stands_by_itself_where_gold_is_highest():
    figure = plots.over_optimisation(KL, PROXY, GOLD)
    assert list(figure.axes[0].lines[-1].get_xdata()) == [2.0]
    panels = plots.over_optimisation_panels({"a": (KL, PROXY, GOLD), "b": (KL, PROXY, PROXY)})
    assert [a.get_title() for a in panels.axes] == ["a", "b"]
    assert [a.lines[-1].get_xdata()[0] for a in panels.axes] == [2.0, 20.0]


METHODS = {
    "PPO": [[(6.0, 1.0), (8.0, 2.0)], [(1.0, 0.5), (3.0, 0.7)]],  # settings in any order
    "DPO": [[(4.0, 0.9)]],
}


def test_seeds_that_agree_have_no_range_below_zero():
    assert plots.frontier({"a": [[(0.1, 0.1)] * 3]}).axes


def test_the_frontier_shows_means_and_ranges_over_seeds():
    axes = plots.frontier(METHODS).axes[0]
    ppo = axes.containers[0]
    assert [x.tolist() for x in ppo.lines[0].get_data()] == [[2.0, 7.0], pytest.approx([0.6, 1.5])]
    across, up = (bars.get_segments() for bars in ppo.lines[2])
    assert np.array(across)[:, :, 0].tolist() == [[1, 3], [6, 8]]
    assert np.array(up)[:, :, 1] == pytest.approx(np.array([[0.5, 0.7], [1, 2]]))
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["PPO", "DPO"]


@pytest.mark.parametrize(
    ("budget", "says", "ringed"),
    [
        (1.0, "Within 1.0 nats: PPO has nothing; DPO has nothing.", []),
        (2.0, "Within 2.0 nats: PPO reaches 0.60 (0.50 to 0.70, 2 seeds); DPO has nothing.", [2]),
        (
            4.0,
            "Within 4.0 nats: DPO reaches 0.90 (0.90 to 0.90, 1 seed); PPO reaches 0.60 (0.50 to "
            "0.70, 2 seeds).",
            [2, 4],
        ),
        (
            None,
            "With any KL: PPO reaches 1.50 (1.00 to 2.00, 2 seeds); DPO reaches 0.90 (0.90 to "
            "0.90, 1 seed).",
            [7, 4],
        ),
    ],
)
def test_within_a_budget_of_kl_the_best_setting_of_each_is_ringed(budget, says, ringed):
    picture = plots.Frontier(METHODS)
    assert picture.move(budget=budget) == says
    budget_line, rings = picture._moving
    assert list(rings.get_xdata()) == ringed
    assert budget_line.get_visible() == (budget is not None)
    assert picture.span == (2.0, 7.0)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda: plots.over_optimisation([1.0], [1.0], [1.0]), "kl must be two or more finite"),
        (lambda: plots.over_optimisation(KL, PROXY, GOLD[1:]), "gold must be .* as many as kl"),
        (lambda: plots.over_optimisation(KL, [math.nan] * 4, GOLD), "proxy must be .* finite"),
        (lambda: plots.OverOptimisation(KL, PROXY, GOLD).move(kl=21.0), r"lie in \[0, 20\]"),
        (lambda: plots.over_optimisation_panels({}), "at least one run"),
        (lambda: plots.frontier({}), "methods must be 1 to 8 methods, got 0"),
        (lambda: plots.frontier({key: [[(1, 1)]] for key in "abcdefghi"}), "1 to 8 methods, got 9"),
        (lambda: plots.frontier({"a": []}), r"methods\['a'\] must hold at least one setting"),
        (lambda: plots.frontier({"a": [[]]}), "one for each seed"),
        (lambda: plots.frontier({"a": [[(1.0, math.inf)]]}), "one finite"),
    ],
)
def test_points_that_cannot_be_drawn_are_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call()


def test_no_two_methods_share_colour_marker_or_neighbouring_line():
    looks = importlib.import_module("minippo.plots.rewards").LOOKS
    assert len({colour for colour, _, _ in looks}) == len({m for _, m, _ in looks}) == 8
    assert all(a[2] != b[2] for a, b in itertools.pairwise(looks))


# ---- every picture ---------------------------------------------------------------------------

FIGURES = {
    "clipping": plots.clipping,
    "clipping_panels": plots.clipping_panels,
    "clip_or_penalty": plots.clip_or_penalty,
    "clip_or_penalty_panels": plots.clip_or_penalty_panels,
    "next_token": lambda: plots.next_token(LOGITS, WORDS),
    "next_token_panels": lambda: plots.next_token_panels(LOGITS, WORDS),
    "kl_two_ways": plots.kl_two_ways,
    "kl_two_ways_panels": plots.kl_two_ways_panels,
    "credit": lambda: plots.credit(RESPONSE, REWARDS, VALUES),
    "credit_panels": lambda: plots.credit_panels(RESPONSE, REWARDS, VALUES),
    "combined_loss": plots.combined_loss,
    "combined_loss_panels": plots.combined_loss_panels,
    "kl_controller": plots.kl_controller,
    "kl_controller_panels": plots.kl_controller_panels,
    "token_microscope": lambda: plots.token_microscope(long_records()),
    "token_microscope_panels": lambda: plots.token_microscope_panels(long_records()),
    "training_run": lambda: plots.training_run(a_long_run(), title="a run"),
    "training_run_panels": lambda: plots.training_run_panels(
        {"good": a_long_run(), "bad": a_long_run(20.0)}
    ),
    "over_optimisation": lambda: plots.over_optimisation(KL, PROXY, GOLD),
    "over_optimisation_panels": lambda: plots.over_optimisation_panels(
        {"few pairs": (KL, PROXY, GOLD), "many": (KL, PROXY, PROXY)}
    ),
    "frontier": lambda: plots.frontier(METHODS),
    "pipeline": lambda: plots.pipeline("stage 3"),
    "ppo_step": lambda: plots.ppo_step("credit"),
    "bug_curves": lambda: plots.bug_curves(some_rows(), "high"),
    "bug_scores": lambda: plots.bug_scores(some_rows(), ["high", "low"]),
    "symptom_table": lambda: plots.symptom_table(some_rows(), ["high", "low"]),
    "logged_and_true_kl": lambda: plots.logged_and_true_kl(some_rows(), {"renewed": "high"}),
    "bug_curves_panels": lambda: plots.bug_curves_panels(some_rows(), ["high", "low"]),
}


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_900_wide_labelled_and_small(name):
    figure = FIGURES[name]()
    if figure.axes[0].axison:  # a diagram's boxes carry their own words, and so do
        named = figure.axes[-1].get_xlabel() or figure.axes[-1].get_xticklabels()
        assert named or name == "next_token"  # its bars
        assert figure.axes[0].get_ylabel() or figure.axes[0].get_yticklabels()
    image = Image.open(io.BytesIO(plots.png(figure)))
    assert image.width == 900
    assert len(image.getcolors() or []) <= 16
    assert len(plots.png(figure)) < 20_000


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
    pixels = [Image.open(io.BytesIO(x)).convert("RGB").tobytes() for x in (content, shown.png)]
    assert pixels[0] == pixels[1]


def test_nothing_is_left_open_in_pyplot():
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
def test_the_quick_redraw_is_the_slow_one(make, first, then):
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


# ---- colours ---------------------------------------------------------------------------------

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


def lab(colour: str, eyes: np.ndarray) -> np.ndarray:
    """CIE Lab (D65) of a colour as these eyes see it."""
    rgb = np.array(to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(eyes @ linear, 0, 1)
    to_xyz = np.array(
        [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
    )
    x, y, z = (
        t ** (1 / 3) if t > (6 / 29) ** 3 else t / (3 * (6 / 29) ** 2) + 4 / 29
        for t in to_xyz @ seen / np.array([0.95047, 1.0, 1.08883])
    )
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_lab_of_white_and_red_by_the_book():
    assert lab("#FFFFFF", BLIND["nobody"]) == pytest.approx([100, 0, 0], abs=0.05)
    assert lab("#FF0000", BLIND["nobody"]) == pytest.approx([53.24, 80.09, 67.20], abs=0.05)


@pytest.mark.parametrize("eyes", BLIND)
def test_no_two_symbols_look_alike_in_colour_and_style(eyes):
    """A difference of 10 in Lab is plain to see; what comes nearer differs in its line style."""
    for (a, first), (b, second) in itertools.combinations(plots.COLOURS.items(), 2):
        distance = math.dist(lab(first, BLIND[eyes]), lab(second, BLIND[eyes]))
        assert distance > 10 or plots.STYLES[a] != plots.STYLES[b], (a, b, distance)
