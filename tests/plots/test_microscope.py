"""The token microscope: cells, colours and records."""

import math

import numpy as np
import pytest

from minippo import plots
from tests.plots.examples import RECORDS, a_record


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


def test_a_microscope_of_ratios_alone_invents_neither_score_nor_advantage():
    records = [{"step": 1, "prompt": "P?", "tokens": [" a"], "ratio": [1.5]}]
    picture = plots.TokenMicroscope(records)
    assert picture.quantities == ["ratio"]
    assert "score" not in picture.move()
    with pytest.raises(ValueError, match="quantity must be one of ratio, got advantage"):
        picture.move(quantity="advantage")
    (axes,) = plots.token_microscope_panels(records, steps=(1,)).axes
    assert cells(axes)[0] == [("a", "1.50")]
    assert axes.get_title(loc="left") == "step 1, ratio, after 'P?'"


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
