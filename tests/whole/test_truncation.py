"""A reward that is replaced by a prediction must not pay for what is punished.

In the listed world a response of three tokens without an end is cut off. Ended ones score +1, cut
off ones -5. What the policy does is computed, not sampled.
"""

import pytest
import torch

from minippo import enumerable, gae
from minippo.models import frozen_copy
from minippo.ppo import PPOConfig
from minippo.trainer import PPOTrainer

CUT = torch.tensor([response[-1] != 0 for response in enumerable.RESPONSES])


def ended_or_not(responses):
    return torch.where((responses.ids == 0).any(1), 1.0, -5.0)


class Bootstrapped(PPOTrainer):
    """A cut off response gets the value after its last token in place of its score."""

    def credit(self, rollout):
        credit, mask = super().credit(rollout), rollout.mask
        unscored = credit.rewards - torch.where(rollout.truncated, rollout.scores, 0.0)[:, None] * (
            torch.arange(mask.shape[1]) == mask.sum(1, keepdim=True) - 1
        )
        advantages = gae(unscored, rollout.values, mask, bootstrap=rollout.bootstrap)
        returns = torch.where(mask, advantages + rollout.values, 0.0)
        return credit._replace(advantages=advantages, returns=returns, whitened=advantages)


def share_of_cut_off(kind, steps, **changes):
    """Before and after training: the probability of a response without an end."""
    policy = enumerable.policy(0)
    config = PPOConfig(
        max_new_tokens=3,
        rollout_size=128,
        minibatch_size=64,
        learning_rate=2e-3,
        value_coef=0.5,
        **changes,
    )
    trainer = kind(policy, frozen_copy(policy), ended_or_not, enumerable.tokenizer(), config)
    shares = []
    for n in (0, steps):
        trainer.train(list(enumerable.PROMPTS) * 64, n, progress=False)
        with torch.no_grad():
            shares.append((enumerable.log_probs(policy).exp() * CUT).sum(1).mean().item())
    return shares


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"missing_eos_penalty": 1.0},
        {"lam_critic": 1.0},
        {"lam_alpha": 1.0},
        {"critic_warmup": 5},
    ],
)
def test_no_option_raises_the_share_of_what_is_punished(changes):
    before, after = share_of_cut_off(PPOTrainer, 60, **changes)
    assert before > 0.5
    assert after < 0.05


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1])
def test_a_prediction_that_nothing_anchors_keeps_it_up(seed):
    # Why PPOConfig has no such option: the state after the cap is never a target. Seeds 0 to 4 went
    # from .62 to .56, .69, .73, .80 and .61.
    assert share_of_cut_off(Bootstrapped, 60, seed=seed)[1] > 0.4
