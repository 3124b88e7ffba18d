"""Stage 1: the loss goes down, only the responses are learned, and the schedule is as written."""

import itertools
import math

import pytest
import torch
from torch import nn, tensor
from torch.testing import assert_close

from minippo.checks import definitions as slow
from minippo.rollout import encode, encode_prompts, evaluate, generate
from minippo.sft import FitConfig, autocast, fit, make_accelerator, train_sft
from tests import tiny
from tests.shapes import refuses

TEXTS = (["a", "b c", "d"], ["good", "so very bad", "fine fine"])


def demonstrations(repeat=1):
    return encode(tiny.tokenizer(), TEXTS[0] * repeat, TEXTS[1] * repeat)


def test_the_first_sft_loss_is_the_mean_surprise_of_the_responses_tokens():
    policy, rows = tiny.policy(), demonstrations()
    logits = evaluate(policy, rows)[0].tolist()
    expected = slow.sft_loss(logits, rows.ids.tolist(), rows.mask.tolist())
    losses = train_sft(policy, rows, FitConfig(minibatch_size=3))
    assert_close(losses[0], expected, rtol=1e-5, atol=1e-6)


def test_sft_learns_the_responses_by_heart():
    policy = tiny.policy()
    config = FitConfig(epochs=60, minibatch_size=3, learning_rate=0.02, warmup_steps=5)
    losses = train_sft(policy, demonstrations(), config)
    assert len(losses) == 60
    assert losses[0] > 2 > 0.1 > losses[-1]
    ids, mask = encode_prompts(tiny.tokenizer(), TEXTS[0])
    answers = generate(policy, ids, mask, max_new_tokens=6, eos_token_id=tiny.EOS)
    assert torch.equal(answers.ids, demonstrations().ids)  # EOS too


def test_after_sft_the_policy_is_in_eval_mode_and_its_value_head_untouched():
    policy = tiny.policy()
    train_sft(policy, demonstrations(), FitConfig(weight_decay=0.0))
    assert not policy.training
    assert not policy.value_head.weight.any()


def test_the_same_seed_gives_the_same_sft_losses_and_another_seed_others():
    def losses(seed):
        return train_sft(tiny.policy(), demonstrations(3), FitConfig(minibatch_size=2, seed=seed))

    assert losses(0) == losses(0) != losses(1)


class Scale(nn.Module):
    """One number; its loss is that number, its gradient 1."""

    def __init__(self):
        super().__init__()
        self.x = nn.Parameter(tensor([0.0]))


def test_each_sft_epoch_goes_through_all_rows_once_and_the_last_minibatch_is_shorter():
    seen = []

    def loss(model, rows):
        seen.append(rows.tolist())
        return model.x.sum()

    fit(Scale(), 7, loss, FitConfig(epochs=2, minibatch_size=3))
    assert [len(rows) for rows in seen] == [3, 3, 1] * 2
    for epoch in (seen[:3], seen[3:]):
        assert sorted(itertools.chain(*epoch)) == list(range(7))
    assert seen[:3] != seen[3:]


def test_the_sft_learning_rate_warms_up_and_then_falls_linearly_to_zero():
    # Adam's step on a constant gradient is the learning rate, whatever the gradient's size:
    # so the number's way is the sum of min((k + 1) / 3, 1) * (1 - k / 6) * lr for k = 0 to 5.
    path = []

    def loss(model, rows):
        path.append(model.x.item())
        return model.x.sum()

    model = Scale()
    config = FitConfig(epochs=6, learning_rate=0.1, warmup_steps=2, weight_decay=0.0)
    fit(model, 1, loss, config)
    path.append(model.x.item())
    steps = [a - b for a, b in itertools.pairwise(path)]
    expected = [0.1 * min((k + 1) / 3, 1) * (1 - k / 6) for k in range(6)]
    assert_close(steps, expected, rtol=1e-4, atol=1e-6)


def test_an_sft_loss_that_is_not_finite_stops_the_training():
    with pytest.raises(FloatingPointError, match=r"^shaky: loss nan at step 1$"):
        fit(Scale(), 1, lambda model, rows: model.x.sum() * math.nan, FitConfig(), name="shaky")


def test_fit_needs_rows():
    with refuses("fit: n_rows", "0"):
        fit(Scale(), 0, lambda model, rows: model.x.sum(), FitConfig())


@pytest.mark.usefixtures("without_hook")
@pytest.mark.parametrize(
    ("name", "value", "came"),
    [
        ("epochs", 0, "0"),
        ("minibatch_size", 0, "0"),
        ("learning_rate", 0.0, "0.0"),
        ("learning_rate", math.inf, "inf"),
        ("warmup_steps", -1, "-1"),
        ("max_grad_norm", 0.0, "0.0"),
        ("weight_decay", -0.1, "-0.1"),
    ],
)
def test_an_argument_of_fit_out_of_range_is_refused(name, value, came):
    with refuses(f"FitConfig: {name}", came):
        FitConfig(**{name: value})


def test_one_process_may_use_two_precisions_in_turn(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")  # as `accelerate launch` may set it
    assert make_accelerator().mixed_precision == "no"  # precision is each trainer's own
    a, b = torch.ones(2, 2), torch.ones(2, 2)
    for precision, dtype in [("bf16", torch.bfloat16), ("no", torch.float32)] * 2:
        with autocast(a.device, precision):
            assert (a @ b).dtype == dtype


def test_sft_in_bf16_learns():
    config = FitConfig(epochs=20, learning_rate=0.02, warmup_steps=2, mixed_precision="bf16")
    policy = tiny.policy()
    losses = train_sft(policy, demonstrations(), config)
    assert losses[-1] < losses[0] / 2
    assert {p.dtype for p in policy.parameters()} == {torch.float32}
