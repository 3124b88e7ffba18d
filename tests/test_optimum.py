"""On a world small enough to list, PPO arrives at the optimum that is known in closed form.

Maximising E[r] - beta * KL(pi || pi_ref) has one solution: pi* proportional to
pi_ref * exp(r / beta). With four tokens and at most three of them a response is one of 40.
"""

import itertools

import pytest
import torch
from torch import tensor
from torch.testing import assert_close

from minippo.models import frozen_copy
from minippo.ppo import PPOConfig
from minippo.trainer import PPOTrainer
from tests import tiny

slow = pytest.mark.slow
EOS, TIME, BETA = 0, 3, 1.0
PROMPTS = ["a", "b"]  # tokens 1 and 2
# Every response: cut off after three tokens, or ended by EOS before.
RESPONSES = [
    (*text, *end)
    for n in range(TIME + 1)
    for text in itertools.product((1, 2, 3), repeat=n)
    for end in ([()] if n == TIME else [(EOS,)])
]
# What each is worth: any numbers will do, on the scale of a nat or two.
SCORES = torch.randn(2, len(RESPONSES), generator=torch.Generator().manual_seed(0))
NUMBER = {response: i for i, response in enumerate(RESPONSES)}


def score(responses):
    """The table's entry for each prompt and response."""
    rows = []
    for prompt, ids, mask in zip(
        responses.prompt_ids[:, -1].tolist(), responses.ids, responses.mask, strict=True
    ):
        rows.append(SCORES[prompt - 1, NUMBER[tuple(ids[mask].tolist())]])
    return torch.stack(rows)


def distribution(policy):
    """log pi(response | prompt) for all 2 * 40, by transformers alone: [prompt, response]."""
    rows = []
    for prompt in (1, 2):
        tokens = tensor([[prompt, *r, *[EOS] * (TIME - len(r))] for r in RESPONSES])
        with torch.no_grad():
            log_p = policy.language_model(input_ids=tokens).logits[:, :-1].log_softmax(-1)
        chosen = log_p.gather(-1, tokens[:, 1:].unsqueeze(-1)).squeeze(-1)
        real = torch.arange(TIME) < tensor([[len(r)] for r in RESPONSES])
        rows.append(torch.where(real, chosen, 0.0).sum(1))
    return torch.stack(rows)


def total_variation(log_p, log_q):
    """Half the sum of |p - q|; of the two prompts the larger."""
    return (0.5 * (log_p.exp() - log_q.exp()).abs().sum(1)).max().item()


def train(estimator, n_steps, seed=0):
    """Total variation to the optimum before and after so many steps of PPO."""
    policy = tiny.policy(vocab_size=4, n_layer=1, n_positions=8)
    reference = frozen_copy(policy)
    start = distribution(reference)
    optimum = (start + SCORES / BETA).log_softmax(1)
    config = PPOConfig(
        kl_coef=BETA, kl_estimator=estimator, max_new_tokens=TIME, rollout_size=512,
        minibatch_size=256, epochs=2, learning_rate=0.01, total_steps=n_steps, lam=1.0,
        value_clip_range=None, value_coef=0.5, seed=seed,
    )  # fmt: skip
    trainer = PPOTrainer(policy, reference, score, tiny.tokenizer(tiny.WORDS[:4]), config)
    trainer.train(PROMPTS, n_steps, progress=False)
    return total_variation(start, optimum), total_variation(distribution(policy), optimum)


def test_the_list_of_responses_is_complete():
    policy = tiny.policy(vocab_size=4, n_layer=1, n_positions=8)
    assert len(set(RESPONSES)) == 40
    assert_close(distribution(policy).exp().sum(1), torch.ones(2))


def seeds(*others):
    """Seed 0 always, the others where minutes are allowed: the claim is about all of them."""
    return pytest.mark.parametrize("seed", [0, *(pytest.param(s, marks=slow) for s in others)])


@seeds(1, 2, 3, 4)
def test_ppo_arrives_at_the_reference_times_the_exponential_of_the_reward(seed):
    # Measured for seeds 0 to 4: .016 to .028 after 100 steps; 60 steps are not enough (.031 to .070
    # for seeds 0 to 2).
    before, after = train("k1", 100, seed)
    assert before > 0.4
    assert after < 0.05


@pytest.mark.parametrize(
    "estimator", ["exact", pytest.param("k2", marks=slow), pytest.param("k3", marks=slow)]
)
@seeds(1, 2)
def test_another_estimator_in_the_reward_leads_away_from_the_optimum(estimator, seed):
    # The exact KL of a state is the same number whatever token is chosen: a baseline, and no price
    # for the choice itself. k2 and k3 are no multiples of log p / q either. Measured after 25 steps
    # for seeds 0 to 2: .69 to .86, from .45; k1 has come to .11 to .16 by then.
    before, after = train(estimator, 25, seed)
    assert after > before + 0.1
