"""Random streams of seed, step and purpose; and a learning rate by the policy's size."""

import pytest
import torch
from torch import nn

from minippo.models import load_policy, rate_by_size
from minippo.ppo import scheduled_rate, stream
from minippo.sft import FitConfig, fit
from minippo.trainer import _batch
from tests import tiny
from tests.shapes import refuses
from tests.tiny import PROMPTS


@pytest.mark.parametrize("others", [PROMPTS, PROMPTS[:2]])
def test_an_extra_collect_changes_nothing_that_follows(others):
    plain, curious = (tiny.trainer(score=tiny.spread, **tiny.FAST) for _ in range(2))
    for _ in range(3):
        plain.step(PROMPTS)
        curious.collect(others)
        curious.update(curious.collect(PROMPTS))
        curious.collect(others)
    assert tiny.difference(plain, curious) == 0
    assert plain.history == curious.history


def test_until_the_next_update_the_same_prompts_get_the_same_answers():
    trainer = tiny.trainer(score=tiny.spread, learning_rate=0.0)
    one, two = trainer.collect(PROMPTS), trainer.collect(PROMPTS)
    assert torch.equal(one.responses.ids, two.responses.ids)
    trainer.update(one)  # at rate 0 the policy is the same, but the step is another one
    assert not torch.equal(one.responses.ids, trainer.collect(PROMPTS).responses.ids)


def test_an_update_on_other_rows_moves_no_later_stream():
    whole, part = (tiny.trainer(score=tiny.spread, learning_rate=0.0) for _ in range(2))
    whole.update(whole.collect(PROMPTS))
    part.update(part.collect(PROMPTS)[:3])
    one, two = whole.collect(PROMPTS), part.collect(PROMPTS)
    assert torch.equal(one.responses.ids, two.responses.ids)


def test_seed_step_and_purpose_each_make_another_stream():
    cases = [(0, 0, "sampling"), (1, 0, "sampling"), (0, 1, "sampling"), (0, 0, "minibatches")]
    drawn = [tuple(torch.rand(8, generator=stream(*case)).tolist()) for case in cases]
    assert len({*drawn}) == len(cases)
    assert drawn[0] == tuple(torch.rand(8, generator=stream(*cases[0])).tolist())


def test_each_seed_and_each_pass_has_prompts_in_an_order_of_its_own():
    # torch's generator on the CPU keeps only 32 bits of a seed: seed << 32 was 0 for every seed.
    prompts = [str(i) for i in range(48)]
    orders = [
        _batch(prompts, step, tiny.PPOConfig(rollout_size=48, minibatch_size=6, seed=seed))
        for seed in (0, 1, 2)
        for step in (0, 1)
    ]
    assert len({*map(tuple, orders)}) == 6
    assert all(sorted(order) == sorted(prompts) for order in orders)


# ---- the learning rate


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        (1_000, 3e-4),
        (1_000_000, 3e-4),
        (100_000_000, 3e-4 / 10**1.268),  # 100^-0.634 = 10^-1.268
        (124_439_808, 1.41e-5),  # GPT-2: TRL 0.11
        (7_000_000_000, 1.1e-6),  # OpenRLHF, verl: 1e-6
    ],
)
def test_the_learning_rate_falls_with_the_number_of_parameters(n, expected):
    model = nn.Module()
    model.weight = nn.Parameter(torch.empty(n, device="meta"))
    assert rate_by_size(model) == pytest.approx(expected, rel=0.01)
    assert rate_by_size(model, at_a_million=1e-3) == pytest.approx(expected / 0.3, rel=0.01)


def test_the_trainer_keeps_the_rate_that_it_found_and_one_that_it_was_given():
    found, given = tiny.trainer(score=tiny.spread), tiny.trainer(learning_rate=0.0)
    assert (found.config.learning_rate, given.config.learning_rate) == (3e-4, 0.0)
    found.step(PROMPTS)
    assert found.history[0]["learning_rate"] == found.learning_rate == 3e-4
    assert found.optimizer.param_groups[0]["lr"] == 3e-4
    assert tiny.trainer(**tiny.BANDIT).learning_rate == 1e-4


def test_a_schedule_without_a_number_is_refused_not_taken_as_zero():
    with refuses("scheduled_rate: learning_rate", "None"):
        scheduled_rate(0, tiny.PPOConfig())


def test_adapters_do_not_count_and_learn_ten_times_as_fast(tmp_path):
    pytest.importorskip("peft")
    folder = tiny.save(tmp_path / "model")
    plain, _ = load_policy(folder)
    adapted, _ = load_policy(folder, lora={"r": 8})
    n = sum(p.numel() for p in plain.language_model.parameters())
    assert sum(p.numel() for p in adapted.language_model.parameters()) > n
    for at in (1.0, (n / 1e6) ** 0.634):  # below a million parameters, and by size
        assert rate_by_size(adapted.language_model, at_a_million=at) == pytest.approx(
            10 * rate_by_size(plain.language_model, at_a_million=at)
        )


def test_fitting_takes_its_rate_from_the_size_too(monkeypatch):
    rates = []
    adam = torch.optim.AdamW

    def noting(*arguments, **options):
        rates.append(options["lr"])
        return adam(*arguments, **options)

    monkeypatch.setattr(torch.optim, "AdamW", noting)
    model = nn.Linear(2, 1)
    for config in (FitConfig(), FitConfig(learning_rate=0.5)):
        fit(model, 2, lambda model, rows: model(torch.ones(len(rows), 2)).sum(), config)
    assert rates == [1e-3, 0.5]
