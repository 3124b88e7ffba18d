"""The units of c2, c3 and beta, and whose gradients the KLs have: exact, in the listed world."""

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from minippo import rollout as rollouts
from minippo.models import frozen_copy
from minippo.ppo import PPOConfig, assign_credit, ppo_loss
from minippo.responses import Responses
from minippo.rollout import collect, evaluate
from minippo.worlds import enumerable
from tests.shapes import double
from tests.tiny import BANDIT, SEQUENCE

PRICES = {"c2": {"entropy_coef": 1.0}, "c3": {"kl_loss_coef": 1.0}}
BARE = {"value_coef": 0.0, "kl_coef": 0.0}


@pytest.fixture
def listed(monkeypatch):
    """Policy, another policy as reference, and a rollout: all 2 * 40 responses, once each."""
    parts = [enumerable.responses(prompt).tensors for prompt in range(2)]
    every = Responses(**{name: torch.cat([part[name] for part in parts]) for name in parts[0]})
    monkeypatch.setattr(rollouts, "generate", lambda *_, **__: every)
    policy, reference = enumerable.policy(0), frozen_copy(enumerable.policy(1))
    limits = {"max_new_tokens": enumerable.TIME, "eos_token_id": enumerable.EOS}
    prompts = every.prompt_ids, every.prompt_mask
    return policy, reference, collect(policy, reference, enumerable.score, *prompts, **limits)


def gradient(policy, loss):
    weights = policy.language_model.parameters()
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, [*weights])])


def loss(listed, config, advantages, **options):
    policy, reference, batch = listed
    returns = torch.zeros_like(advantages)  # weight 0: what is told apart is the rest
    return ppo_loss(policy, batch, advantages, returns, config, reference=reference, **options)[0]


def expected(listed, probs, config, **coefs):
    """The gradient that sampling with these probabilities has in expectation; advantages are 0."""
    policy, reference, batch = listed
    alone, zero = {"n_tokens": 1, "n_responses": 1}, torch.zeros(1)
    rows = [(policy, reference, batch[i : i + 1]) for i in range(len(batch))]
    losses = [loss(row, config, zero, **alone, **coefs) for row in rows]
    return gradient(policy, probs @ torch.stack(losses))


def relative_error(got, wanted):
    return ((got - wanted).norm() / wanted.norm()).item()


def slopes(listed, price, advantages=None, **changes):
    """The gradients of the policy's part and of the priced part, entropy or KL, at a price of 1."""
    bare = PPOConfig(**(BARE | changes))
    if advantages is None:
        advantages = assign_credit(listed[2], bare, kl_coef=0.0).whitened
    c3 = {"kl_loss_coef": price.get("kl_loss_coef", 0.0)}  # a controller's, so not in the config
    free = gradient(listed[0], loss(listed, bare, advantages))
    paid = gradient(listed[0], loss(listed, replace(bare, **price), advantages, **c3))
    return free, paid - free


@pytest.mark.parametrize("price", PRICES.values(), ids=PRICES)
@pytest.mark.parametrize(("whitened", "factor"), [(True, 1.0), (False, 10.0)])
def test_whitened_a_price_in_the_loss_is_in_deviations_of_the_advantages(
    listed, price, whitened, factor
):
    # Ten times the scores outweigh the price ten times, unless whitening divides them by ten.
    policy, reference, batch = listed
    tenfold = policy, reference, replace(batch, scores=10 * batch.scores)
    once, paid = slopes(listed, price, whiten_advantages=whitened)
    more, paid_then = slopes(tenfold, price, whiten_advantages=whitened)
    assert_close(more, factor * once)
    assert_close(paid_then, paid)


@pytest.mark.parametrize("whitened", [True, False])
def test_whitening_leaves_the_price_in_the_reward_alone(listed, whitened):
    # At pi* = pi_ref exp(r / beta) / Z, r - beta log(pi* / pi_ref) is beta log Z, whatever the
    # response: with that value there is nothing left to learn, and at any other beta there is.
    batch, beta, scores = listed[2], 0.5, enumerable.SCORES.double()
    start = batch.ref_log_probs.double().sum(1).view(2, -1)
    gap = enumerable.optimum(start, scores, beta=beta) - start
    value = beta * (start + scores / beta).logsumexp(1, keepdim=True).expand_as(scores)
    on_first = double([[1.0, 0.0, 0.0]])
    kl, values = (x.reshape(-1, 1) * on_first for x in (gap, value))
    there = replace(batch, scores=scores.flatten(), kl=kl, values=values)
    config = PPOConfig(**SEQUENCE, whiten_advantages=whitened)
    assert_close(
        assign_credit(there, config, kl_coef=beta).whitened, torch.zeros_like(there.scores)
    )
    assert assign_credit(there, config, kl_coef=2 * beta).whitened.abs().max() > 0.5


@pytest.mark.parametrize("price", PRICES.values(), ids=PRICES)
@pytest.mark.parametrize("length", [1, 2, 3])
def test_with_one_ratio_per_response_a_price_in_the_loss_is_divided_by_its_length(
    listed, price, length
):
    policy, reference, batch = listed
    row = torch.arange(len(batch))[batch.mask.sum(1) == length][:1]
    one, advantage = (policy, reference, batch[row]), torch.ones(1)
    by_token, paid = slopes(one, price, advantage, **SEQUENCE)
    by_response, paid_then = slopes(one, price, advantage, **BANDIT)
    assert_close(by_response, length * by_token)
    assert_close(paid_then, paid)


def test_k2_in_the_loss_is_right_per_state_and_blind_to_later_states(listed):
    # Each token also decides which states come next, and their KL: k1 in the reward answers for
    # that, k2 in the loss does not. Gradients are expectations over the list.
    policy, reference, batch = listed
    probs = batch.log_probs.sum(1).exp()
    config = PPOConfig(**BARE, **SEQUENCE, whiten_advantages=False)
    in_loss = expected(listed, probs, config, kl_loss_coef=1.0)
    zero = torch.zeros_like
    unpaid = replace(batch, scores=zero(batch.scores), values=zero(batch.values))
    advantages = probs * assign_credit(unpaid, config, kl_coef=1.0).whitened
    in_reward = gradient(policy, loss(listed, config, advantages, n_tokens=1, n_responses=1))

    log_p = enumerable.log_probs(policy).flatten()
    response = gradient(policy, log_p.exp() @ (log_p - batch.ref_log_probs.sum(1)))
    new, ref = (evaluate(m, batch.responses)[0].log_softmax(-1) for m in (policy, reference))
    state = gradient(policy, probs @ ((new.exp() * (new - ref)).sum(-1) * batch.mask).sum(1))
    assert relative_error(in_loss, state) < 1e-5
    assert relative_error(in_reward, response) < 1e-5
    assert 0.25 < relative_error(in_loss, response) < 0.35


@pytest.mark.parametrize("level", [SEQUENCE, BANDIT], ids=["token", "sequence"])
def test_ppo_penaltys_kl_has_the_gradient_of_the_kl_from_old_to_new(listed, level):
    # Of the whole response's: under the old policy, which sampled, no state depends on the new.
    _, moved, batch = listed
    moved.requires_grad_(True)
    probs = batch.log_probs.sum(1).exp()
    config = PPOConfig(**BARE, **level, policy_loss="penalty")
    got = expected((moved, None, batch), probs, config, penalty_coef=1.0)
    log_p = enumerable.log_probs(moved).flatten()
    wanted = gradient(moved, probs @ (batch.log_probs.sum(1) - log_p))
    assert relative_error(got, wanted) < 1e-5
