"""The loss against the same thing as loops over Python floats.

The policy here is a table (tests/tiny.py): its logits and values are parameters, so that every
gradient can be had by finite differences or in closed form.
"""

import dataclasses
import math

import pytest
import torch
from torch import tensor
from torch.testing import assert_close

from minippo.checks import definitions as slow
from minippo.ppo import PPOConfig, ppo_loss
from minippo.rollout import Responses, Rollout
from tests.shapes import double
from tests.tiny import BANDIT, SEQUENCE, Table

NAN = float("nan")


# ---- ppo_loss as loops

LENGTHS, TIME, VOCAB = [4, 1, 3], 4, 5
MASK = slow.prefix_mask(LENGTHS, TIME)


def by_loops(logits, values, batch, config, kl_loss_coef=0.0, penalty_coef=0.0):
    """The loss and its parts from lists of floats, written from the papers and from DESIGN.md."""
    tokens, old, ref, old_values, advantages, returns, ref_logits = batch
    rows, temperature = range(len(tokens)), config.temperature
    low = config.clip_range
    high = low if config.clip_range_high is None else config.clip_range_high
    by_token = [(i, t) for i in rows for t in range(TIME) if MASK[i][t]]

    def over_tokens(f):
        return sum(f(i, t) for i, t in by_token) / len(by_token)

    def over_responses(f):
        return sum(f(i) for i in rows) / len(tokens)

    def log_p(i, t):
        return slow.log_softmax(logits[i][t], temperature)[tokens[i][t]]

    def total(i, f):
        return sum(f(i, t) for t in range(TIME) if MASK[i][t])

    def advantage(i, t):
        return advantages[i] if config.advantage_level == "sequence" else advantages[i][t]

    base = old if config.ratio_to == "old" else ref

    def moved(i, t):
        return slow.kl_k3(old[i][t], log_p(i, t))

    def surrogate(ratio, a, kl):
        if config.policy_loss == "penalty":
            return penalty_coef * kl - ratio * a
        return slow.clipped_surrogate(ratio, a, low, high)

    def is_clipped(ratio, a):
        if config.policy_loss == "penalty":
            return 0.0
        return float((a > 0 and ratio > 1 + high) or (a < 0 and ratio < 1 - low))

    if config.ratio_level == "token":
        ratios = {(i, t): math.exp(log_p(i, t) - base[i][t]) for i, t in by_token}
        policy = over_tokens(lambda i, t: surrogate(ratios[i, t], advantage(i, t), moved(i, t)))
        clipped = over_tokens(lambda i, t: is_clipped(ratios[i, t], advantage(i, t)))
    else:
        sums = [total(i, log_p) - total(i, lambda i, t: base[i][t]) for i in rows]
        ratios = {i: math.exp(sums[i]) for i in rows}
        policy = over_responses(lambda i: surrogate(ratios[i], advantages[i], total(i, moved)))
        clipped = over_responses(lambda i: is_clipped(ratios[i], advantages[i]))

    clip = config.value_clip_range
    if config.advantage_level == "token":
        value = over_tokens(
            lambda i, t: slow.value_loss(values[i][t], returns[i][t], old_values[i][t], clip)
        )
    else:
        value = over_responses(
            lambda i: slow.value_loss(values[i][0], returns[i], old_values[i][0], clip)
        )

    def to_reference(i, t):
        if config.kl_loss_estimator == "exact":
            return slow.exact_kl(logits[i][t], ref_logits[i][t], temperature)
        return {"k2": slow.kl_k2, "k3": slow.kl_k3}[config.kl_loss_estimator](
            log_p(i, t), ref[i][t]
        )

    parts = {
        "policy_loss": policy,
        "value_loss": value,
        "entropy": over_tokens(lambda i, t: slow.entropy(logits[i][t], temperature)),
        "kl_loss": over_tokens(to_reference),
    }
    loss = policy + config.value_coef * value - config.entropy_coef * parts["entropy"]
    return parts | {
        "loss": loss + kl_loss_coef * parts["kl_loss"],
        "approx_kl": over_tokens(moved),
        "clip_fraction": clipped,
        "ratio": sum(ratios.values()) / len(ratios),
        "ratio_error": max(abs(r - 1) for r in ratios.values()),
    }


def case(config, seed=0):
    """A policy, a reference, a rollout of both, advantages and returns: float64, ragged."""
    torch.manual_seed(seed)
    wide = torch.randn(3, 3, TIME + 1, VOCAB, dtype=torch.float64)
    policy, reference = (Table(z, torch.randn(3, TIME + 1).double()) for z in wide[:2])
    ids, mask = torch.randint(1, VOCAB, (3, TIME)), tensor(MASK)
    prompts = torch.arange(3).unsqueeze(1)

    def log_probs(logits):
        log_p = (logits[:, :-1] / config.temperature).log_softmax(-1)
        return log_p.gather(-1, ids.unsqueeze(-1)).squeeze(-1).detach()

    # The old policy is near the new one, so that some ratios are clipped and some are not.
    old = log_probs(wide[0] + 0.4 * wide[2])
    values = (policy.values[:, :-1] + 0.3 * torch.randn(3, TIME)).detach()
    shape = (3, TIME) if config.advantage_level == "token" else (3,)
    advantages, returns = torch.randn(2, *shape, dtype=torch.float64)
    rollout = Rollout(
        Responses(prompts, torch.ones_like(prompts).bool(), ids, mask),
        old,
        log_probs(reference.logits),
        values,
        torch.zeros(3),
        torch.zeros(3, TIME),
        torch.zeros(3).bool(),
        torch.zeros(3),
    )
    return policy, reference, rollout, advantages, returns


def as_lists(reference, rollout, advantages, returns):
    parts = (rollout.responses.ids, rollout.log_probs, rollout.ref_log_probs, rollout.values)
    return [x.tolist() for x in (*parts, advantages, returns, reference.logits)]


CASES = {
    "the defaults": {},
    "an asymmetric band": {"clip_range": 0.1, "clip_range_high": 0.4},
    "temperature .7": {"temperature": 0.7, "entropy_coef": 0.2},
    "no clipping of values": {"value_clip_range": None, "value_coef": 1.0},
    "narrow clipping of values": {"value_clip_range": 0.05, "value_coef": 1.0},
    "an entropy bonus": {"entropy_coef": 0.5},
    "sequence advantages on tokens": SEQUENCE,
    "sequence ratios": BANDIT,
    "sequence ratios and an entropy bonus": BANDIT | {"entropy_coef": 0.5},
    "penalty": {"policy_loss": "penalty"},
    "penalty, sequence advantages": SEQUENCE | {"policy_loss": "penalty"},
    "penalty, sequence ratios": BANDIT | {"policy_loss": "penalty"},
    "ratio to the reference": {"ratio_to": "reference"},
    "sequence ratio to the reference": BANDIT | {"ratio_to": "reference"},
    "penalty to the old, ratio to the reference": {
        "ratio_to": "reference",
        "policy_loss": "penalty",
    },
    "k2 in the loss": {"kl_loss_estimator": "k2", "kl_loss_coef": 0.7},
    "k3 in the loss": {"kl_loss_estimator": "k3", "kl_loss_coef": 0.7},
    "exact KL in the loss": {"kl_loss_estimator": "exact", "kl_loss_coef": 0.7},
    "exact KL at temperature .7": {
        "kl_loss_estimator": "exact",
        "kl_loss_coef": 0.7,
        "temperature": 0.7,
    },
    "exact KL, sequence ratios": BANDIT | {"kl_loss_estimator": "exact", "kl_loss_coef": 0.7},
    "the textbook sketch": dataclasses.asdict(PPOConfig.textbook(kl_loss_coef=0.7)),
}
every_case = pytest.mark.parametrize("changes", CASES.values(), ids=CASES)


@every_case
@pytest.mark.parametrize("seed", [0, 1])
def test_the_loss_and_its_parts_are_those_of_the_loops(changes, seed):
    config = PPOConfig(**changes)
    policy, reference, rollout, advantages, returns = case(config, seed)
    coefs = {"kl_loss_coef": config.kl_loss_coef, "penalty_coef": 1.3}
    loss, stats = ppo_loss(
        policy, rollout, advantages, returns, config, reference=reference, **coefs
    )
    expected = by_loops(
        policy.logits.tolist(),
        policy.values.tolist(),
        as_lists(reference, rollout, advantages, returns),
        config,
        **coefs,
    )
    assert_close(loss, double(expected["loss"]))
    assert set(stats) == set(expected) - ({"kl_loss"} if not config.kl_loss_coef else set())
    for name, part in stats.items():
        assert_close(part.double(), double(expected[name]), msg=f"{name}: {part}")
        assert not part.requires_grad


@every_case
def test_the_gradient_is_that_of_the_loops(changes):
    config = PPOConfig(**changes)
    policy, reference, rollout, advantages, returns = case(config)
    coefs = {"kl_loss_coef": config.kl_loss_coef, "penalty_coef": 1.3}
    loss, _ = ppo_loss(policy, rollout, advantages, returns, config, reference=reference, **coefs)
    loss.backward()
    batch = as_lists(reference, rollout, advantages, returns)
    z, v = policy.logits.tolist(), policy.values.tolist()
    by_logits = slow.gradient(lambda z: by_loops(z, v, batch, config, **coefs)["loss"], z)
    by_values = slow.gradient(lambda v: by_loops(z, v, batch, config, **coefs)["loss"], v)
    assert_close(policy.logits.grad, double(by_logits), **slow.DIFFERENCES)
    assert_close(policy.values.grad, double(by_values), **slow.DIFFERENCES)
    assert reference.logits.grad is None


@pytest.mark.parametrize("changes", [{}, BANDIT])
def test_the_cases_of_the_loss_clip_some_ratios_and_not_others(changes):
    config = PPOConfig(**changes)
    fractions = []
    for seed in (0, 1):
        policy, _, rollout, advantages, returns = case(config, seed)
        fractions.append(ppo_loss(policy, rollout, advantages, returns, config)[1]["clip_fraction"])
    assert 0 < sum(fractions) < 2


@every_case
def test_junk_in_the_padding_changes_neither_ppo_loss_nor_its_gradient(changes):
    config = PPOConfig(**changes)
    results = []
    for junk in (False, True):
        policy, reference, rollout, advantages, returns = case(config)
        if junk:
            padding = ~rollout.mask
            for x in (rollout.log_probs, rollout.ref_log_probs, rollout.values, rollout.kl):
                x[padding] = NAN
            rollout.responses.ids[padding] = 0
            if advantages.dim() == 2:
                advantages[padding] = NAN
                returns[padding] = NAN
        loss, _ = ppo_loss(
            policy, rollout, advantages, returns, config, reference=reference, penalty_coef=1.3,
            kl_loss_coef=config.kl_loss_coef,
        )  # fmt: skip
        loss.backward()
        results.append((loss.detach(), policy.logits.grad, policy.values.grad))
    assert_close(results[1], results[0], rtol=0, atol=0)


def cut(x, rows, time):
    """Rows of a tensor, without the columns that only longer rows have."""
    return x[rows][:, :time] if x.dim() == 2 else x[rows]


@every_case
@pytest.mark.parametrize("parts", [[[0], [1], [2]], [[2, 0], [1]]])
def test_the_parts_of_a_minibatch_add_up_to_the_whole(changes, parts):
    config = PPOConfig(**changes)
    policy, reference, rollout, advantages, returns = case(config)
    options = {"reference": reference, "penalty_coef": 1.3, "kl_loss_coef": config.kl_loss_coef}
    whole, expected = ppo_loss(policy, rollout, advantages, returns, config, **options)
    whole.backward()
    gradient, policy.logits.grad = policy.logits.grad, None
    total, naive, sums = 0.0, 0.0, dict.fromkeys(expected, 0.0)
    for rows in map(tensor, parts):
        batch = rollout[rows].trim()
        own = [cut(x, rows, batch.mask.shape[1]) for x in (advantages, returns)]
        loss, stats = ppo_loss(
            policy, batch, *own, config, n_tokens=sum(LENGTHS), n_responses=3, **options
        )
        loss.backward()
        total += loss.detach()
        sums = {name: sums[name] + part for name, part in stats.items()}
        naive += ppo_loss(policy, batch, *own, config, **options)[0].detach() / len(parts)
    assert_close(total, whole.detach())
    assert_close(policy.logits.grad, gradient)
    for name in expected.keys() - {"ratio_error"}:
        assert_close(sums[name], expected[name])
    # The mean of each part's own mean is another loss: the rows are ragged.
    if parts == [[2, 0], [1]]:
        assert (naive - whole).abs() > 1e-3


# ---- ppo_loss in closed form


def at_the_old_policy(config):
    """A case in which nothing has moved yet: the old log-probs are the policy's."""
    policy, reference, rollout, advantages, returns = case(config)
    log_p = (policy.logits[:, :-1] / config.temperature).log_softmax(-1)
    old = log_p.gather(-1, rollout.responses.ids.unsqueeze(-1)).squeeze(-1).detach()
    rollout = dataclasses.replace(rollout, log_probs=old)
    return policy, reference, rollout, advantages, returns


def test_at_the_old_policy_the_gradient_is_the_policy_gradient():
    # d/dz of -A r / n at r = 1: -A (onehot - p) / n on real tokens, zero elsewhere.
    config = PPOConfig(value_coef=0.0)
    policy, _, rollout, advantages, returns = at_the_old_policy(config)
    loss, stats = ppo_loss(policy, rollout, advantages, returns, config)
    loss.backward()
    onehot = torch.nn.functional.one_hot(rollout.responses.ids, VOCAB)
    slope = advantages.unsqueeze(-1) * (onehot - policy.logits[:, :-1].detach().softmax(-1))
    expected = torch.zeros_like(policy.logits)
    expected[:, :-1] = torch.where(rollout.mask.unsqueeze(-1), -slope / sum(LENGTHS), 0.0)
    assert_close(policy.logits.grad, expected)
    assert not policy.values.grad.any()
    assert_close(stats["approx_kl"], double(0.0))
    assert stats["ratio_error"] < 1e-12


def test_at_the_old_policy_a_penalty_has_no_gradient():
    # The KL to oneself is least at oneself.
    gradients = []
    for coef in (0.0, 5.0):
        config = PPOConfig(policy_loss="penalty")
        policy, _, rollout, advantages, returns = at_the_old_policy(config)
        ppo_loss(policy, rollout, advantages, returns, config, penalty_coef=coef)[0].backward()
        gradients.append(policy.logits.grad)
    assert_close(*gradients)


def test_the_gradient_of_the_exact_kl_in_closed_form():
    # dKL/dz_v = p_v (log p_v - log q_v - KL) / T.
    config = PPOConfig(kl_loss_estimator="exact", value_coef=0.0, temperature=0.7)
    policy, reference, rollout, advantages, returns = case(config)
    loss, _ = ppo_loss(
        policy, rollout, 0 * advantages, returns, config, kl_loss_coef=1.0, reference=reference
    )
    loss.backward()
    log_p, log_q = ((m.logits.detach()[:, :-1] / 0.7).log_softmax(-1) for m in (policy, reference))
    gap = log_p - log_q
    kl = (log_p.exp() * gap).sum(-1, keepdim=True)
    slope = torch.where(rollout.mask.unsqueeze(-1), log_p.exp() * (gap - kl) / 0.7, 0.0)
    assert_close(policy.logits.grad[:, :-1], slope / sum(LENGTHS))
    assert_close(loss.detach(), kl.squeeze(-1)[rollout.mask].mean())


def test_without_a_bonus_no_gradient_flows_from_the_entropy():
    config = PPOConfig(value_coef=0.0)
    policy, _, rollout, advantages, returns = case(config)
    ppo_loss(policy, rollout, 0 * advantages, returns, config)[0].backward()
    assert not policy.logits.grad.any()


@pytest.mark.parametrize(("level", "wanted"), [("token", "[3, 4]"), ("sequence", "[3]")])
@pytest.mark.parametrize("name", ["advantages", "returns"])
def test_advantages_of_another_level_are_refused(level, wanted, name):
    config = PPOConfig(advantage_level=level)
    policy, _, rollout, advantages, returns = case(config)
    wrong = torch.zeros(3) if level == "token" else torch.zeros(3, TIME)
    given = {"advantages": advantages, "returns": returns, name: wrong}
    with pytest.raises(ValueError, match=rf"^ppo_loss: {name} must have shape ") as caught:
        ppo_loss(policy, rollout, given["advantages"], given["returns"], config)
    assert wanted in str(caught.value)
    assert str(list(wrong.shape)) in str(caught.value)


def test_the_exact_kl_needs_a_reference():
    config = PPOConfig(kl_loss_estimator="exact")
    policy, _, rollout, advantages, returns = case(config)
    policy.language_model = policy  # of which no adapter can be switched off
    with pytest.raises(ValueError, match=r"^reference_logits: reference must be a model, or None"):
        ppo_loss(policy, rollout, advantages, returns, config, kl_loss_coef=1.0)
