"""Scores: what is refused, ensembles, reward models and classifiers, by hand."""

import pytest
import torch
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordLevel
from torch import tensor
from torch.testing import assert_close
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2ForSequenceClassification,
    PreTrainedTokenizerFast,
)

from minippo.models import load_policy
from minippo.rollout import check_scores, encode, ensemble_score, load_score, score_with, text_score
from tests import tiny
from tests.shapes import refuses

EOS, INF, NAN = tiny.EOS, float("inf"), float("nan")


WRITTEN = (["a b", "c"], ["good", "so bad"])


def written():
    return encode(tiny.tokenizer(), *WRITTEN)  # ids [2, 3]


@pytest.mark.usefixtures("without_hook")
@pytest.mark.parametrize(
    ("scores", "came"),
    [
        ([1.0, 2.0], "list"),
        (tensor([1, 2]), "torch.int64"),
        (tensor([1.0]), "[1]"),
        (tensor([[1.0], [2.0]]), "[2, 1]"),
        (tensor([1.0, NAN]), "nan for tokens [10, 8, 0]"),
        (tensor([INF, 1.0]), "inf for tokens [7, 0]"),
        (tensor([[1.0, -INF, 0.0], [1.0, 1.0, 1.0]]), "tensor([1., -inf, 0.]) for tokens [7, 0]"),
    ],
)
def test_a_score_of_another_kind_is_refused(scores, came):
    policy = tiny.policy()
    rows = written()
    with pytest.raises(ValueError, match=r"^score: the (result|score of row \d) must ") as caught:
        check_scores(scores, rows)
    assert str(caught.value).endswith(f"got {came}.")
    with pytest.raises(ValueError, match=r"^score: the "):
        tiny.collected(policy, tiny.policy(7), lambda responses: scores)


def test_scores_are_detached_float32():
    scores = check_scores(torch.ones(2, dtype=torch.float64, requires_grad=True), written())
    assert (scores.dtype, scores.requires_grad) == (torch.float32, False)


def test_a_text_score_reads_prompts_and_responses():
    seen = []

    def rule(prompts, responses):
        seen.append((prompts, responses))
        return [len(text) for text in responses]

    scores = text_score(tiny.tokenizer(), rule)(written())
    assert seen == [WRITTEN]  # without special tokens
    assert_close(scores, tensor([4.0, 6.0]))


@pytest.mark.parametrize(
    ("scores", "must", "came"),
    [
        ([1.0], "fn's result", "1"),
        (None, "fn's result", "None"),
        (0.5, "fn's result", "0.5"),
        (True, "fn's result", "True"),
        (tensor(2.0), "fn's result", "tensor(2.)"),
        ([1.0, NAN], "a score", "nan for prompt 'c', response 'so bad'"),
        ([-INF, 1.0], "a score", "-inf for prompt 'a b', response 'good'"),
        (["high", 1.0], "a score", "'high' for prompt 'a b', response 'good'"),
        ([None, 1.0], "a score", "None for prompt 'a b', response 'good'"),
    ],
)
def test_a_bad_text_score_shows_prompt_and_response(scores, must, came):
    with refuses(f"text_score: {must}", came):
        text_score(tiny.tokenizer(), lambda prompts, responses: scores)(written())


def test_an_error_of_a_text_score_keeps_its_type_and_names_the_text():
    def rule(prompts, responses):
        return [1 / ("bad" not in text) for text in responses]

    with pytest.raises(ZeroDivisionError) as caught:
        text_score(tiny.tokenizer(), rule)(written())
    note = "raised by the score function on prompt 'c', response 'so bad'"
    assert caught.value.__notes__ == [note]


def test_an_error_on_all_responses_together_is_reported_as_such():
    def rule(prompts, responses):
        if len(responses) > 1:
            raise KeyError("only one, please")
        return [0.0]

    with pytest.raises(KeyError) as caught:
        text_score(tiny.tokenizer(), rule)(written())
    assert "on 2 responses together, though on none of them alone" in caught.value.__notes__[0]


@pytest.mark.parametrize(
    ("how", "coef", "expected"),
    [
        ("mean", 0.0, [2.0, 2.0]),
        ("min", 0.0, [1.0, 2.0]),
        # Scores 1, 2, 3 vary by 2/3; 2, 2, 2 by 0.
        ("mean_minus_variance", 0.0, [2.0, 2.0]),
        ("mean_minus_variance", 0.3, [1.8, 2.0]),
    ],
)
def test_ensembles_by_hand(how, coef, expected):
    members = [lambda r, s=s: tensor([s, 2.0]) for s in (1.0, 2.0, 3.0)]
    assert_close(ensemble_score(members, how=how, coef=coef)(written()), tensor(expected))


@pytest.mark.usefixtures("without_hook")
def test_an_ensemble_of_nothing_or_of_another_kind_is_refused():
    with refuses("ensemble_score: fns", "none"):
        ensemble_score([])
    with refuses("ensemble_score: how", "'max'"):
        ensemble_score([tiny.spread], how="max")
    with refuses("ensemble_score: coef", "-1.0"):
        ensemble_score([tiny.spread], coef=-1.0)
    with pytest.raises(ValueError, match=r"^score: the result must have shape"):
        ensemble_score([lambda r: tensor([1.0])])(written())


def test_a_reward_model_in_memory_is_a_score():
    model = tiny.reward_model()
    rows = written()
    assert_close(score_with(model)(rows), scores_by_hand(model, [[1, 2, 7, 0], [3, 10, 8, 0]]))


def scores_by_hand(model, texts):
    """The head on the last hidden state of each text, nothing padded."""
    states = [model.body.base_model(tensor([text])).last_hidden_state[0, -1] for text in texts]
    return (torch.stack(states) @ model.body.score.weight[0]).detach()


def saved_reward_model(folder, tokenizer):
    model = tiny.reward_model()
    model.body.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def test_load_score_reads_the_tokens_where_the_tokenizer_is_the_same(tmp_path):
    model = saved_reward_model(tmp_path, tiny.tokenizer())
    expected = scores_by_hand(model, [[1, 2, 7, 0], [3, 10, 8, 0]])
    for tokenizer in (None, tiny.tokenizer()):
        for batch_size in (1, 64):
            score = load_score(tmp_path, tokenizer, batch_size=batch_size)
            assert_close(score(written()), expected, rtol=1e-4, atol=1e-6)


def other_tokenizer():
    """The same words under other numbers, and EOS on the fifth."""
    words = ["very", "bad", "so", "good", "c", "<end>", "b", "a"]
    made = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="a"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>")


@pytest.mark.parametrize("appends", [False, True])
def test_load_score_tokenizes_the_text_again_where_the_tokenizer_is_another(tmp_path, appends):
    own = other_tokenizer()
    if appends:  # an end of its own, which must not stand between prompt and response
        own.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="$A <end>", special_tokens=[("<end>", 5)]
        )
    model = saved_reward_model(tmp_path, own)
    score = load_score(tmp_path, tiny.tokenizer())
    # "a b good" and "c so bad", each with the reward model's own EOS ...
    expected = scores_by_hand(model, [[7, 6, 3, 5], [4, 2, 1, 5]])
    assert_close(score(written()), expected, rtol=1e-4, atol=1e-6)
    # ... and without it where the response was truncated.
    cut = encode(tiny.tokenizer(), *WRITTEN, ended=False)
    expected = scores_by_hand(model, [[7, 6, 3], [4, 2, 1]])
    assert_close(score(cut), expected, rtol=1e-4, atol=1e-6)


def test_load_score_refuses_a_text_beyond_the_reward_models_positions(tmp_path):
    saved_reward_model(tmp_path, tiny.tokenizer())
    long = encode(tiny.tokenizer(), ["a"], ["good " * 48])
    with refuses("load_score: the responses", "50"):
        load_score(tmp_path)(long)


# ---- a classifier with its own tokenizer and labels

FILMS = ["The film was", "I saw it and"], [" good .", " it was so very bad that I left ."]


def bert_tokenizer():
    """BERT's form: [CLS] text [SEP], its own padding and no end-of-text token."""
    words = "[UNK] [CLS] [SEP] [PAD] the film was i saw it and good so very bad that left .".split()
    made = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer, made.normalizer = pre_tokenizers.Whitespace(), normalizers.Lowercase()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", cls_token="[CLS]", model_max_length=16
    )


@pytest.fixture
def bert(tmp_path):
    """A folder with a classifier of three labels, and its logits for FILMS, one text at a time."""
    names = {0: "bad", 1: "so-so", 2: "GOOD"}
    model = BertForSequenceClassification(
        BertConfig(
            vocab_size=18, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=16, max_position_embeddings=20, id2label=names, initializer_range=0.5,
        )
    ).eval()  # fmt: skip
    model.save_pretrained(tmp_path)
    bert_tokenizer().save_pretrained(tmp_path)
    rows = [[1, 4, 5, 6, 11, 17, 2], [1, 7, 8, 9, 10, 9, 6, 12, 13, 14, 15, 7, 16, 17, 2]]
    return tmp_path, torch.cat([model(input_ids=tensor([row])).logits for row in rows]).detach()


def films():
    return encode(tokenizer := load_policy("tiny-gpt2-sft")[1], *FILMS), tokenizer


@pytest.mark.parametrize(("label", "column"), [("2", 2), ("GOOD", 2), ("bad", 0)])
def test_load_score_pays_the_logit_of_a_classifiers_label(bert, label, column):
    folder, logits = bert
    responses, tokenizer = films()
    for batch_size in (1, 64):
        got = load_score(f"{folder}#{label}", tokenizer, batch_size=batch_size)(responses)
        assert_close(got, logits[:, column], rtol=1e-4, atol=1e-5)
    assert (logits[:, 0] - logits[:, 2]).abs().min() > 0.01


@pytest.mark.parametrize("asked", ["", "#", "#good", "#3", "#-1"])
def test_load_score_names_the_labels_there_are(bert, asked):
    with pytest.raises(ValueError, match=r"one of bad, so-so, GOOD, 0, 1, 2, got "):
        load_score(f"{bert[0]}{asked}")


def test_a_text_that_the_classifier_cannot_hold_is_refused(bert):
    tokenizer = films()[1]
    long = encode(tokenizer, ["the film"], [" was so very very bad that i saw it and left it so ."])
    with refuses("load_score: the texts", "18"):
        load_score(f"{bert[0]}#0", tokenizer)(long)


def test_a_gpt2_with_two_labels_reads_its_last_token_as_transformers_does(tmp_path):
    # Its tokenizer has no padding, as GPT-2's has not, and the shorter text must not be read at it.
    tokenizer = load_policy("tiny-gpt2-sft")[1]
    settings = tiny.config(vocab_size=len(tokenizer), num_labels=2, initializer_range=0.5)
    model = GPT2ForSequenceClassification(settings).eval()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    texts = [tensor([tokenizer(p + r)["input_ids"]]) for p, r in zip(*FILMS, strict=True)]
    last = torch.cat([model.transformer(t).last_hidden_state[:, -1] for t in texts])
    got = load_score(f"{tmp_path}#1", tokenizer)(films()[0])
    assert_close(got, (last @ model.score.weight[1]).detach(), rtol=1e-4, atol=1e-5)


def test_the_only_label_of_a_reward_model_may_be_left_out(tmp_path):
    saved_reward_model(tmp_path / "a#b", tiny.tokenizer())  # a folder's own # is no label's
    plain = load_score(tmp_path / "a#b")(written())
    (tmp_path / "a#b").rename(tmp_path / "model")
    for name in ("model", "model#0", "model#LABEL_0"):
        assert torch.equal(load_score(tmp_path / name)(written()), plain)


# ---- normalized scores


# ---- columns

ROWS = [
    {"prompt": "a b", "answer": "good", "weight": 2},
    {"prompt": "c", "answer": "", "weight": 3},
]


def test_a_text_score_gets_the_columns_that_it_asks_for():
    seen = []

    def by_name(prompts, responses, weight):
        seen.append(weight)
        return weight

    def by_keyword(prompts, responses, *, answer="none"):
        return [float(r == a) for r, a in zip(responses, answer, strict=True)]

    def every_one(prompts, responses, **columns):
        seen.append(columns)
        return [0.0] * len(prompts)

    def neither(prompts, responses):
        return [7.0] * len(prompts)

    responses = encode(tiny.tokenizer(), ROWS, WRITTEN[1])
    paid = [text_score(tiny.tokenizer(), fn)(responses).tolist() for fn in (by_name, by_keyword)]
    assert paid == [[2.0, 3.0], [1.0, 0.0]]
    text_score(tiny.tokenizer(), every_one)(responses)
    assert seen == [[2, 3], {"answer": ["good", ""], "weight": [2, 3]}]
    assert text_score(tiny.tokenizer(), neither)(responses).tolist() == [7.0, 7.0]


def test_an_error_of_a_text_score_names_the_row_whose_columns_caused_it():
    def rule(prompts, responses, weight):
        return [1 / (w - 3) for w in weight]

    with pytest.raises(ZeroDivisionError) as caught:
        text_score(tiny.tokenizer(), rule)(encode(tiny.tokenizer(), ROWS, WRITTEN[1]))
    assert caught.value.__notes__ == [
        "raised by the score function on prompt 'c', response 'so bad'"
    ]
