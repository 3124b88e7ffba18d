"""The capstone's solution, which loads transformers. It is checked like a student's."""

import torch
from torch import nn

from minippo import gae, shape_rewards, whiten
from minippo.ppo import PPOConfig, ppo_loss
from minippo.responses import Rollout


def ppo_update(
    policy: nn.Module, optimizer: torch.optim.Optimizer, rollout: Rollout, config: PPOConfig
) -> None:
    """One PPO update at the token level, each epoch with the whole rollout as its minibatch.

    The rollout's measurements are fixed: rewards, advantages and returns are computed once.
    """
    mask, values = rollout.mask, rollout.values
    rewards = shape_rewards(rollout.scores, rollout.kl, mask, kl_coef=config.kl_coef)
    advantages = gae(rewards, values, mask, gamma=config.gamma, lam=config.lam)
    returns = advantages + values  # not whitened: whitening comes next
    advantages = whiten(advantages, mask)
    for _ in range(config.epochs):
        loss, _ = ppo_loss(policy, rollout, advantages, returns, config)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(policy.parameters(), config.max_grad_norm or float("inf"))
        optimizer.step()
