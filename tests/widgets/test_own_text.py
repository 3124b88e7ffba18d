"""The student's own text: tokens and expectations are the model's, whatever is typed."""

import html
import threading

import pytest
import torch
from matplotlib import pyplot

from minippo import widgets
from tests import tiny
from tests.soak import soak
from tests.widgets.test_explorers import leaves_nothing


@pytest.fixture
def own():
    policy = tiny.policy()
    return policy, widgets.own_text(policy, tiny.tokenizer(), text="a good fine")


def likeliest(policy, words, position, temperature):
    """Of the model itself: word and probability."""
    ids = torch.tensor([[tiny.WORDS.index(word) for word in words]])
    with torch.no_grad():
        z = policy.language_model(input_ids=ids).logits[0, position].double()
    p = (z / temperature).softmax(-1)
    return tiny.WORDS[int(p.argmax())], float(p.max())


def test_every_position_in_a_text_says_what_the_model_expects(own):
    policy, explorer = own
    slider = explorer.controls["position"]
    assert (slider.value, slider.min, slider.max) == (2, 0, 2)
    for text in ("a good fine", "b", "so very bad d e"):
        words = text.split()
        explorer.move(text=text)
        assert slider.max == len(words) - 1
        for position in range(len(words)):
            for temperature in (0.1, 1.0, 3.0):
                sentence = explorer.move(position=position, temperature=temperature)
                word, p = likeliest(policy, words, position, temperature)
                assert sentence.startswith(
                    f"After {words[position]!r} (token {position} of 0 to {len(words) - 1})."
                )
                assert sentence.endswith(f"{word!r} is likeliest with {p:.2f}.")
                assert sentence in html.unescape(explorer.text.value)


def test_the_tokens_are_shown_and_the_chosen_one_is_marked(own):
    _, explorer = own
    row = explorer.box.children[-3]
    assert [word for word in ("good", "fine", "bad") if f">{word}</code>" in row.value] == [
        "good",
        "fine",
    ]
    explorer.move(text="bad a b", position=1)
    assert "good" not in row.value
    assert row.value.split("aria-current")[1].split(">")[1] == "a</code"


def test_a_shorter_text_moves_the_position_to_its_end(own):
    _, explorer = own
    explorer.controls["text"].value = "bad"
    assert explorer.settings["position"] == 0
    assert explorer.sentence.startswith("After 'bad' (token 0 of 0 to 0).")
    late = explorer.picture.move(text="bad", position=2)  # from a thread that read it before
    assert late.startswith("After 'bad' (token 0 of 0 to 0).")


def test_the_position_stays_at_the_end_while_the_text_grows(own):
    _, explorer = own
    explorer.controls["text"].value = "a good fine so very bad"
    assert explorer.sentence.startswith("After 'bad' (token 5 of 0 to 5).")
    explorer.move(position=2)
    explorer.controls["text"].value = "a good fine so"
    assert explorer.sentence.startswith("After 'fine' (token 2 of 0 to 3).")


def test_an_empty_and_a_too_long_text_can_be_typed(own):
    policy, explorer = own
    explorer.move(text="")  # this tokenizer puts nothing in front: the end-of-text token stands in
    assert explorer.sentence.startswith("After '<|endoftext|>' (token 0 of 0 to 0).")
    explorer.move(text="a " * 200)
    assert explorer.controls["position"].max == policy.context_length - 1
    explorer.move(position=policy.context_length - 1)
    explorer.move(text="<b>é🙂$ $")  # the tokenizer's own business
    assert explorer.sentence.endswith(".")


def test_signs_that_the_font_lacks_or_that_mean_mathematics_are_drawn():
    words = ["<|endoftext|>", "a", "$x$", "字", "\x01"]
    policy = tiny.policy(vocab_size=len(words))
    explorer = widgets.own_text(policy, tiny.tokenizer(words), text="a 字")
    shown = [name.get_text() for name in explorer.picture._picture._names[:5]]
    assert sorted(shown) == sorted(["<|endoftext|>", "a", "$x$", "�", "�"])
    assert not any(name.get_parse_math() for name in explorer.picture._picture._names)


def test_many_texts_leave_no_memory_in_use(own):
    _, explorer = own
    texts = [" ".join(tiny.WORDS[i:]) for i in (1, 4, 7)]
    leaves_nothing(lambda text: explorer.move(text=text), texts, soak(25, 500))


def test_many_threads_may_type_at_once():
    policy = tiny.policy()
    explorer = widgets.own_text(policy, tiny.tokenizer(), text="a")
    texts = ["a", "b c d", "good", "fine so very bad a b", ""] * 4
    threads = [
        threading.Thread(target=explorer.move, kwargs={"text": x, "position": i % 3})
        for i, x in enumerate(texts)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    explorer.move(text="b c d", position=1)
    assert explorer.sentence == explorer.picture.move(**explorer.settings)
    assert explorer.sentence.startswith("After 'c' (token 1 of 0 to 2).")
    assert pyplot.get_fignums() == []


def test_the_model_is_asked_once_per_text(own, monkeypatch):
    policy, explorer = own
    asked = []
    monkeypatch.setattr(policy, "forward", lambda *a, f=policy.forward: asked.append(1) or f(*a))
    for temperature in (0.5, 1.5, 2.5):
        explorer.move(temperature=temperature)
    assert asked == []
    explorer.move(text="good bad")
    assert len(asked) == 1


def test_own_text_has_labels_and_its_text_is_the_sentence(own):
    _, explorer = own
    assert all(control.description for control in explorer.controls.values())
    assert explorer._repr_mimebundle_()["text/plain"] == f"own_text: {explorer.sentence}"
