"""What a run takes for granted, measured once: before step 1, on the first rollout and update.

If one of these were false, training would silently do something else. With several processes, all
measure the same rows of the gathered rollout, so that all of them stop, or none.
"""

import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from math import inf
from typing import Any

import torch
from torch import Tensor

from minippo._validate import fail
from minippo.models import PolicyWithValue
from minippo.ppo import Stats
from minippo.responses import Rollout
from minippo.rollout import _inverse_cdf, evaluate, own_model
from minippo.texts import Prompt, prompt_rows

ROWS = 8  # of the first rollout, from the shortest prompt to the longest


def check_adapter(policy: PolicyWithValue) -> None:
    """If the reference is the policy without its adapter, only the adapter may learn."""
    model: Any = policy.language_model
    adapter_off = getattr(model, "disable_adapter", nullcontext)
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with warnings.catch_warnings(action="ignore"), adapter_off():  # peft warns of a bias
        left = [name for name, p in learning.items() if p.requires_grad]
    if left:
        must = "have an adapter and learn nothing else where the reference is None (bias='none')"
        fail("PPOTrainer", "policy", must, left[0])


def check_run(trainer: Any, prompts: Sequence[Prompt], n_steps: int) -> None:
    """Before step 1: every prompt leaves room for a response, and the schedule covers the run."""
    config, limit = trainer.config, trainer.policy.context_length
    if config.total_steps is not None and n_steps > config.total_steps:
        must = f"be at most total_steps={config.total_steps} (the learning rate is 0 from there on)"
        fail("PPOTrainer.train", "n_steps", must, n_steps)
    for number, row in enumerate(prompt_rows(trainer.tokenizer, prompts)):
        if limit is not None and len(row) + config.max_new_tokens > limit:
            must = f"leave room for max_new_tokens={config.max_new_tokens} in {limit} positions"
            came = f"{len(row)} tokens, {trainer.tokenizer.decode(row)[:60]!r}"
            fail("PPOTrainer.train", f"prompt {number}", must, came)


def check_kl(trainer: Any, rollout: Rollout) -> None:
    """Where the KL has a price, it is finite: a reference may rule out what the policy says."""
    if (trainer.kl_coef or trainer.kl_loss_coef) and (bad := ~rollout.kl.isfinite()).any():
        row, t = bad.nonzero()[0].tolist()
        p, kl = (float(x[row, t]) for x in (rollout.ref_log_probs, rollout.kl))
        raise FloatingPointError(
            f"PPOTrainer.collect: the KL of row {row} is {kl} at token {t}, whose log-prob under "
            f"the reference is {p:.4g} (-inf: it gives this token probability 0)"
        )


@torch.no_grad()
def check_first_rollout(trainer: Any, rollout: Rollout, uniforms: Tensor) -> None:
    """Left padding, causality, the sampler against `evaluate`; tokens' texts; the reference."""
    policy, responses = trainer.policy, rollout.responses
    kind = f"a {type(own_model(policy.language_model)).__name__}"
    weights = [p for m in (policy, trainer.reference or policy) for p in m.parameters()]
    exact = all(p.device.type == "cpu" and p.itemsize >= 4 for p in weights)  # GPUs round to TF32
    exact = exact and trainer.config.mixed_precision == "no"
    few = 0 if exact else 0.1  # rounding may send a token to another expert
    order = responses.prompt_mask.sum(1).argsort(stable=True).tolist()
    padded = responses[order[0] : order[0] + 1]  # the shortest prompt
    alone, n = padded.trim(), int(padded.mask.sum())
    logits = evaluate(policy, alone)[0]
    off = (1e-3 if exact else 0.3) * float(logits[logits.isfinite()].std() + 1e-3)
    for other, must in (
        (evaluate(policy, padded)[0][:, :n], "give the same logits with and without left padding"),
        (evaluate(policy, alone, end_value=False)[0], "be causal: no later token moves a logit"),
    ):
        if (~torch.isclose(logits, other, rtol=0, atol=off).all(-1)).float().mean() > few:
            fail("PPOTrainer.collect", kind, must, f"a difference above {off:.2g}")
    wrong, off = torch.zeros(0, dtype=torch.bool), 1e-3 if exact else 0.1
    for row in order[:: -(-len(order) // ROWS)]:
        one, n = responses[row : row + 1], int(responses.mask[row].sum())
        logits = evaluate(policy, one)[0][0, :n].float().cpu() / trainer.config.temperature
        ids, u = one.ids[0, :n].cpu(), uniforms[row, :n]
        low, high = (_inverse_cdf(logits, (u + x).clamp(0, 1 - 2**-24)) for x in (-off, off))
        wrong = torch.cat([wrong, (ids < low) | (ids > high)])
    if wrong.float().mean() > few:
        must = "sample what `evaluate` measures (does a cache of keys and values suit it?)"
        fail("PPOTrainer.collect", kind, must, f"{int(wrong.sum())} others of {len(wrong)} tokens")
    known = torch.tensor([*trainer.tokenizer.get_vocab().values()])
    share = float((~torch.isin(responses.ids[rollout.mask].cpu(), known)).float().mean())
    if share > 0.1:
        must = "have texts (the model has more ids than the tokenizer)"
        fail("PPOTrainer.collect", "the sampled tokens", must, f"none for {share:.0%} of them")
    if share:
        warnings.warn(f"PPOTrainer: {share:.2%} of the sampled tokens have no text", stacklevel=3)
    gap = (rollout.log_probs - rollout.ref_log_probs).abs()
    if gap.max() > (0.01 if exact else 0.1):
        nats = f"policy and reference differ by {gap.sum(1).mean():.2g} nats per response at step 0"
        why = "one was trained, or is another model, or the adapter does not begin at 0 (PiSSA)"
        warnings.warn(f"PPOTrainer: {nats}: {why}", stacklevel=3)


def check_first_update(trainer: Any, rollout: Rollout, stats: Stats) -> None:
    """Warn, once, of a first update that moved the policy too far, or did not begin at it."""
    config, nats, clipped = trainer.config, trainer.moved(rollout), stats["clip_fraction"]
    error, exact = stats["first_ratio_error"], config.mixed_precision == "no"
    # A response's ratio is a product: in bfloat16 it has no bound from which a bug would stand out.
    bound = 0.01 if exact else 0.5 if config.ratio_level == "token" else inf
    slower = f"lower learning_rate ({trainer.learning_rate:.2g}) or epochs ({config.epochs})"
    where = "look at dropout, temperature, modes, and changes between collect and update"
    for wrong, what in (
        (not nats <= 0.5, f"moved the policy by {nats:.2g} nats per token (usual: .001 to .05): "
         f"{slower}, or set target_kl_stop"),
        (clipped > 0.5, f"clipped {clipped:.0%} of its ratios (usual: below 20 %): {slower}"),
        (error > bound and config.ratio_to == "old", f"began with a ratio {error:.2g} away from 1 "
         f"(usual: below {1e-4 if exact else 0.2:g}): {where}"),
    ):  # fmt: skip
        if wrong:
            warnings.warn(f"PPOTrainer: the first update {what}", stacklevel=4)
