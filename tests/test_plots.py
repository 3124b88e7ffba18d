"""Pictures: the data of their curves, their colours, and what they say."""

import importlib
import io
import itertools
import math

import numpy as np
import pytest
import torch
from matplotlib import pyplot
from matplotlib.colors import to_rgb
from PIL import Image

from minippo import definitions, plots

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
    "pipeline": lambda: plots.pipeline("stage 3"),
    "ppo_step": lambda: plots.ppo_step("credit"),
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


def test_nothing_is_left_open_in_pyplot():
    picture = plots.Clipping()
    for i in range(500):
        picture.move(ratio=0.05 + i / 300)
        picture.png()
    assert pyplot.get_fignums() == []


def test_the_quick_redraw_is_the_slow_one():
    picture = plots.Clipping()
    picture.move(epsilon=0.4, ratio=0.5)
    picture.png()
    picture.move(epsilon=0.1, advantage=-1.0, ratio=1.7)
    quick = np.asarray(Image.open(io.BytesIO(picture.png())), int)
    fresh = plots.Clipping()
    fresh.move(epsilon=0.1, advantage=-1.0, ratio=1.7)
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
