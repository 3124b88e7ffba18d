"""Be the annotator: what is shown, what is kept hidden, and what comes out."""

import html
import threading

import pytest

from minippo import widgets
from minippo.widgets import Share

PAIRS = [{"prompt": f"p{i}", "rejected": f"bad{i}", "chosen": f"good{i}"} for i in range(8)]
OLD_AND_NEW = [{"prompt": f"p{i}", "before": f"old{i}", "after": f"new{i}"} for i in range(8)]


def shown(game):
    return [card.value.split("</b> ")[1].removesuffix("</p>") for card in game._cards]


def choose(game, word):
    """Answer with the side whose text begins with a word."""
    return game.answer([text.startswith(word) for text in shown(game)].index(True))


# Newcombe 1998 (Statistics in Medicine 17: 857), table I, method 3.
@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_the_interval_is_wilsons(k, n, low, high):
    assert Share(k, n).interval == pytest.approx((low, high), abs=5e-5)
    mirrored = 1 - high, 1 - low
    assert Share(n - k, n).interval == pytest.approx(mirrored, abs=5e-5)


def test_the_interval_of_no_answers_is_everything():
    assert Share(0, 0).interval == (0, 1)
    assert str(Share(0, 0)) == "none yet"
    assert Share(0, 0).value != Share(0, 0).value  # NaN


def test_both_texts_of_each_pair_are_shown_and_sides_change():
    game = widgets.compare(PAIRS)
    left = []
    for i in range(8):
        assert f"p{i}" in game._prompt.value
        assert sorted(shown(game)) == [f"bad{i}", f"good{i}"]
        left.append(shown(game)[0][:3])
        game.answer(0)
    assert {"bad", "goo"} == set(left)
    other = widgets.compare(PAIRS, seed=1)
    assert widgets.compare(PAIRS)._shown == game._shown != other._shown


def test_labels_of_a_comparison_name_the_chosen_texts():
    game = widgets.compare(PAIRS[:3])
    assert game.labels == [None, None, None]
    choose(game, "good")
    game.answer(None)
    choose(game, "bad")
    assert game.labels == ["chosen", "same", "rejected"]
    assert game.preferences() == [
        {"prompt": "p0", "chosen": "good0", "rejected": "bad0"},
        {"prompt": "p2", "chosen": "bad2", "rejected": "good2"},
    ]


def test_a_comparison_reveals_nothing_before_the_end():
    game = widgets.compare(OLD_AND_NEW, names=("before", "after"))
    for _ in range(7):
        game.answer(0)
        page = " ".join([game._prompt.value, game._text.value, *(c.value for c in game._cards)])
        assert "before" not in page
        assert "after" not in page
    assert "after over before" in game.answer(0)


def test_win_rate_and_agreement_are_counted_without_ties():
    judges = {
        "longer": lambda prompts, responses: [len(r) for r in responses],  # good is longer than bad
        "indifferent": lambda prompts, responses: [0.0 for _ in prompts],
    }
    game = widgets.compare(PAIRS[:5], judges=judges)
    for word in ("good", "good", "good", "bad"):
        choose(game, word)
    sentence = game.answer(None)
    assert game.results() == {
        "chosen over rejected": Share(3, 4),
        "agreement with longer": Share(3, 4),
        "agreement with indifferent": Share(0, 0),
    }
    assert "chosen over rejected in 3 of 4 (75 %, 95 % interval 30 to 95 %)" in sentence
    assert sentence.endswith("; no difference in 1.")
    assert sentence in html.unescape(game._text.value)


def test_an_answer_can_be_taken_back():
    game = widgets.compare(PAIRS[:2])
    assert game.buttons[-1].disabled
    game.answer(0)
    assert game.back() == "Pair 1 of 2: 0 answered."
    assert game.back() == "Pair 1 of 2: 0 answered."
    game.answer(1)
    game.answer(1)
    assert all(button.disabled for button in game.buttons[:3])
    assert game.back() == "Pair 2 of 2: 1 answered."  # also from the end


def test_buttons_answer_as_calls_do():
    game = widgets.compare(PAIRS[:3])
    sides = list(game._shown)
    for button in game.buttons[:3]:
        assert button.description
        button.click()
    assert game.labels == [sides[0][0], sides[1][1], "same"]
    assert game._prompt.value == ""
    game._clicked(0)  # a click on its way while the last answer came
    game.buttons[3].click()
    assert game.labels == [sides[0][0], sides[1][1], None]


def test_clicks_from_many_threads_answer_each_pair_once():
    game = widgets.compare(PAIRS)
    threads = [threading.Thread(target=game._clicked, args=(0,)) for _ in range(20)]
    with game._lock:  # one is being answered: all wait
        for thread in threads:
            thread.start()
        assert game.labels == [None] * 8
    for thread in threads:
        thread.join()
    assert game.labels == [side[0] for side in game._shown]


def test_texts_of_a_comparison_are_escaped_and_its_text_is_the_sentence():
    game = widgets.compare([{"prompt": "<i>", "rejected": "<b>1", "chosen": "a & b"}])
    assert "&lt;i&gt;" in game._prompt.value
    assert sorted(shown(game)) == ["&lt;b&gt;1", "a &amp; b"]
    bundle = game._repr_mimebundle_()
    assert bundle["text/plain"] == "compare: Pair 1 of 1: 0 answered."
    assert "application/vnd.jupyter.widget-view+json" in bundle


def test_the_table_shows_the_same_sides_and_hides_the_key():
    judges = {"longer": lambda prompts, responses: [len(r) for r in responses]}
    table = widgets.compare_panels(PAIRS[:2], judges=judges)
    game = widgets.compare(PAIRS[:2])
    prompt, a, b, key = table.rows[0]
    assert [a, b] == shown(game)
    letter = "AB"[[a, b].index("good0")]
    assert key == f"B is {'chosen' if letter == 'B' else 'rejected'}, longer: {letter}"
    page = table._repr_html_()
    assert page.count("<details>") == 2
    assert prompt in page
    assert f"A: {a}\n" in repr(table)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: widgets.compare([]), "compare: pairs must hold at least one pair, got none."),
        (
            lambda: widgets.compare([{"prompt": "x", "chosen": "y"}]),
            "compare: pair 0 must hold a text under rejected, got prompt, chosen.",
        ),
        (lambda: widgets.compare(PAIRS, names=("a", "a")), "compare: names must be two different"),
        (
            lambda: widgets.compare(PAIRS, judges={"one": lambda p, r: [1.0]}),
            "compare: one must give 8 scores, got 1.",
        ),
        (lambda: widgets.compare(PAIRS).answer(2), "answer: choice must be 0 (A), 1 (B) or None"),
    ],
)
def test_wrong_arguments_of_a_comparison_are_named(call, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        call()
    assert str(error.value).startswith(message)


def test_an_answer_after_the_last_is_an_error():
    game = widgets.compare(PAIRS[:1])
    game.answer(0)
    with pytest.raises(ValueError, match="be given while a pair is left"):
        game.answer(0)
