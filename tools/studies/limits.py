"""Run lesson 15's study: one setting changed at a time, five seeds each, and one default.

Every run takes 6 rollouts of 64 responses (or as many responses in rollouts of another size) from
the shipped SFT model (from the base model if a misbehaviour is to be unlearned) and is evaluated on
held-out prompts at the end.
"""

import random
from collections.abc import Callable, Sequence
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import torch
from studies.common import SEEDS, Row, curves, judged, make_rows

from minippo import masked_mean, token_log_probs, world
from minippo.data import load_prompts
from minippo.models import PolicyWithValue, frozen_copy, load_policy
from minippo.ppo import PPOConfig
from minippo.rollout import Responses, Score, encode, load_score, respond, text_score
from minippo.trainer import PPOTrainer, Stats

STEPS = 6
STEPS_OF = {"values first": 4, "noise, 32 responses": 12, "32 responses": 12, "128 responses": 3}
SIZE = {"rollout_size": 64, "minibatch_size": 32}
RATES, RANGES = (3e-4, 1e-3, 3e-3), (0.2, 0.4)  # in one map
EPSILONS, EPOCHS = (0.05, 0.1, 0.2, 0.4), (1, 2, 4, 8)  # in the other
NOISE = 2.0  # standard deviation; that of the scores over a rollout is about 1.2
CURVES = (
    "score", "kl", "entropy", "response_length", "grad_norm", "clip_fraction", "value_loss",
    "explained_variance", "kl_coef",
)  # fmt: skip

# Cases that change only fields of PPOConfig; the cases that need code follow below.
CHANGES: dict[str, dict[str, Any]] = {
    "default": {},
    **{f"beta {beta:g}": {"kl_coef": beta} for beta in (0.0, 0.02, 0.5, 2.0)},
    **{
        f"adaptive from {beta:g}": {"kl_coef": beta, "kl_target": 6.0, "kl_horizon": 50}
        for beta in (0.02, 0.5)
    },
    **{f"lambda {lam:g}": {"lam": lam} for lam in (0.0, 1.0)},
    "shaped, lambda 0": {"lam": 0.0},
    **{f"entropy {c2:g}": {"entropy_coef": c2} for c2 in (0.001, 0.01, 0.03, 0.1)},
    **{
        f"{noise}{n} responses": {"rollout_size": n, "minibatch_size": n // 2}
        for noise, n in product(("noise, ", ""), (32, 64, 128))
        if (noise, n) != ("", 64)
    },
    **{
        f"rate {rate:g}, epsilon {epsilon:g}": {"learning_rate": rate, "clip_range": epsilon}
        for rate, epsilon in product(RATES, RANGES)
        if (rate, epsilon) != (1e-3, 0.2)
    },
    **{
        f"epsilon {epsilon:g}, epochs {epochs}": {"clip_range": epsilon, "epochs": epochs}
        for epsilon, epochs in product(EPSILONS, EPOCHS)
        if epochs != 2 or epsilon < 0.2  # with 2 epochs, 0.2 is the default, 0.4 in the other map
    },
    # Why does a penalty of 2 fail? Too long steps, or the values' gradients in the shared trunk?
    "beta 2, c1 0.005": {"kl_coef": 2.0, "value_coef": 0.005},
    "rate 0.0003, beta 2": {"learning_rate": 3e-4, "kl_coef": 2.0},
    "rate 0.003, warm-up": {"learning_rate": 3e-3, "warmup_steps": 3},
    "values first": {},
    "easy first": {},
    "one domain": {},
    "a third of each domain": {},
    "nine tenths of one domain": {},
    "broken prompts kept": {},
    "broken prompts filtered": {},
    "base": {},
    "base, safety term": {},
    "base, filtered responses": {},
}
GROUPS = (
    ("default", "beta 0", "beta 0.02", "beta 0.5", "beta 2"),
    ("adaptive from 0.02", "adaptive from 0.5"),
    ("lambda 0", "shaped, lambda 0", "entropy 0.1"),
    ("lambda 1", "base, safety term", "base, filtered responses", "base"),
    ("rate 0.0003, beta 2", "beta 2, c1 0.005", "rate 0.0003, epsilon 0.2"),
    ("rate 0.003, epsilon 0.2", "rate 0.003, warm-up"),
    ("noise, 64 responses",),
    ("one domain", "a third of each domain"),
    ("values first", "easy first"),
    ("noise, 128 responses",),
    tuple(f"rate {rate:g}, epsilon 0.4" for rate in RATES),
    ("entropy 0.001", "entropy 0.01", "entropy 0.03"),
    ("nine tenths of one domain", "broken prompts kept", "broken prompts filtered"),
    ("noise, 32 responses", "32 responses", "128 responses"),
    tuple(name for name in CHANGES if "epochs" in name),
)


def main(path: Path) -> None:
    """Make the missing rows, the most important comparisons first."""
    cases = [{"name": name, "seed": 0} for name in ("before", "before, base", "texts")]
    cases += [{"name": name, "seed": seed} for group in GROUPS for seed in SEEDS for name in group]
    cases += [{"name": f"judge, {kind}", "seed": seed} for seed in SEEDS for kind in KINDS]
    make_rows(path, cases, run)


def run(name: str, seed: int) -> Row:
    """Run one case and evaluate it at the end; with 128 responses, also halfway."""
    if name.startswith("judge, "):
        return judge_on(name.removeprefix("judge, "), seed)
    config = PPOConfig(**(SIZE | CHANGES.get(name, {})), seed=seed)
    policy, tokenizer = load_policy("tiny-gpt2-base" if "base" in name else "tiny-gpt2-sft")
    judge = load_score("tiny-gpt2-reward", tokenizer)
    reference = frozen_copy(policy)

    def measured(prompts: Sequence[str] = world.PROMPTS_HELD_OUT) -> Row:
        return judged(policy, reference, tokenizer, judge, prompts=prompts, samples=3)

    if name.startswith("before"):
        row = measured() | {"base_loss": base_loss(policy, tokenizer)}
        return row | red_team(policy, tokenizer) if "base" in name else row
    score, halfway = judge, Row()
    if name.startswith("noise"):
        score = noisy(judge, seed)
    elif name.startswith("shaped"):
        score = in_parts(judge, tokenizer)
    elif name == "base, safety term":
        score = with_safety(judge, tokenizer)
    if name == "values first":
        values_first(policy, reference, judge, tokenizer, config)
    kind = Filtered if name == "base, filtered responses" else PPOTrainer
    trainer = kind(policy, reference, score, tokenizer, config)
    steps = STEPS_OF.get(name, STEPS)
    if name == "easy first":
        trainer.train(easy_prompts(), steps // 2)
    if name == "noise, 128 responses":
        trainer.train(prompts_of(name, seed), steps // 2)
        halfway = {"halfway": measured()}
    trainer.train(prompts_of(name, seed), steps)
    if name == "texts":
        return {"pairs": before_and_after(reference, policy, tokenizer)}

    row = measured() | halfway | {"base_loss": base_loss(policy, tokenizer)}
    if name == "default" or "domain" in name:
        others = [p for p in world.PROMPTS_HELD_OUT if world.domain_of(p) != home(seed)]
        row["elsewhere"] = judged(policy, reference, tokenizer, judge, prompts=others, samples=3)[
            "gold"
        ]
    if "base" in name:
        row |= red_team(policy, tokenizer)
    return row | {"curves": curves(trainer, *CURVES)}


# ---- prompts -----------------------------------------------------------------------------------

PROVOKING = ("Be honest about", "Be diplomatic about", "Flatter your reader")


def home(seed: int) -> str:
    """Return the domain that a run with prompts of one domain trains on."""
    return world.DOMAINS[seed % len(world.DOMAINS)]


def prompts_of(name: str, seed: int) -> list[str]:
    """Return the prompts that a case trains on."""
    prompts, rng = load_prompts("prompts-train"), random.Random(seed)
    third = len(prompts) // len(world.DOMAINS)
    at_home = [p for p in prompts if world.domain_of(p) == home(seed)]
    if name == "one domain":
        return at_home
    if name == "a third of each domain":  # as many prompts as one domain has
        return rng.sample(prompts, third)
    if name == "nine tenths of one domain":
        elsewhere = [p for p in prompts if p not in at_home]
        n = round(0.9 * third)
        return rng.sample(at_home, n) + rng.sample(elsewhere, third - n)
    if name.startswith("broken prompts"):
        prompts = half_broken(prompts, seed)
        return prompts if name.endswith("kept") else [p for p in prompts if is_whole(p)]
    return prompts


IRRELEVANT = (
    "Two and two make four.", "My phone number has changed.", "Page not found.", "asdf jkl asdf.",
    "Click below to subscribe!", "Please reply by Monday.", "import os, sys.", "Are you a robot?",
)  # fmt: skip
KINDS = ("cut off", "irrelevant", "whole")


def half_broken(prompts: Sequence[str], seed: int) -> list[str]:
    """Truncate a quarter after three words, make a quarter irrelevant, keep half as they are."""
    rng = random.Random(seed)
    mixed, quarter = rng.sample(prompts, len(prompts)), len(prompts) // 4
    cut = [" ".join(prompt.split()[:3]) for prompt in mixed[:quarter]]
    irrelevant = [rng.choice(IRRELEVANT) for _ in range(quarter)]
    return cut + irrelevant + mixed[2 * quarter :]


def is_whole(prompt: str) -> bool:
    """Return whether a prompt is a whole sentence with a topic of this world: the filter."""
    return world.ends_properly(prompt) and world.domain_of(prompt) in world.DOMAINS


@cache
def easy_prompts() -> list[str]:
    """Return the half of the prompts whose answers by the untrained policy score highest."""
    policy, tokenizer = load_policy("tiny-gpt2-sft")
    judge, prompts = load_score("tiny-gpt2-reward", tokenizer), load_prompts("prompts-train")
    score = torch.zeros(len(prompts))
    for seed in range(4):
        texts = respond(policy.eval(), tokenizer, prompts, seed=seed)
        score += judge(encode(tokenizer, prompts, texts))
    return [prompts[i] for i in score.argsort(descending=True)[: len(prompts) // 2].tolist()]


# ---- score functions and updates ---------------------------------------------------------------


def noisy(judge: Score, seed: int) -> Score:
    """Add an independent normal error to each score."""
    generator = torch.Generator().manual_seed(seed)

    def score(responses: Responses) -> torch.Tensor:
        scores = judge(responses)
        return scores + NOISE * torch.randn(scores.shape, generator=generator)

    return score


def in_parts(judge: Score, tokenizer: Any) -> Score:
    """Pay the score in instalments: after each sentence, its change since the last one.

    The differences sum to the reward model's score of the whole response (Ng et al. 1999).
    """
    eos = tokenizer.eos_token_id
    stops = torch.tensor([eos, *tokenizer.convert_tokens_to_ids([*".!?"])])

    def score(responses: Responses) -> torch.Tensor:
        ids, mask = responses.ids, responses.mask
        total, end = judge(responses), mask.sum(1) - 1
        stands = torch.isin(ids, stops) & mask
        stands[torch.arange(len(ids)), end] = False  # the last token earns the total
        rows, columns = stands.nonzero(as_tuple=True)
        paid = torch.zeros(ids.shape)
        if len(rows):
            kept = torch.arange(ids.shape[1]) <= columns.unsqueeze(1)
            part = torch.where(kept, ids[rows], eos)
            one_more = torch.arange(ids.shape[1]) <= columns.unsqueeze(1) + 1  # the EOS
            prompts = responses.prompt_ids[rows], responses.prompt_mask[rows]
            paid[rows, columns] = judge(Responses(*prompts, part, one_more))
        paid[torch.arange(len(ids)), end] = total
        stands[torch.arange(len(ids)), end] = True
        for row, places in zip(paid, stands, strict=True):  # from running sums to differences
            row[places] = row[places].diff(prepend=torch.zeros(1))
        return paid

    return score


def with_safety(judge: Score, tokenizer: Any, price: float = 3.0) -> Score:
    """Subtract a penalty per forbidden word from the score."""
    words = text_score(tokenizer, lambda _, texts: [-price * forbidden(text) for text in texts])
    return lambda responses: judge(responses) + words(responses)


class Filtered(PPOTrainer):
    """Learn only from responses without a forbidden word."""

    def step(self, prompts: Sequence[str]) -> Stats:
        """Collect, reject, update."""
        rollout = self.collect(prompts)
        texts = self.tokenizer.batch_decode(rollout.responses.ids, skip_special_tokens=True)
        return self.update(rollout[torch.tensor([forbidden(text) == 0 for text in texts])])


def values_first(
    policy: PolicyWithValue, reference: PolicyWithValue, judge: Score, tokenizer: Any, config: Any
) -> None:
    """Train only the value head, for two rollouts."""
    policy.language_model.requires_grad_(False)
    trainer = PPOTrainer(policy, reference, judge, tokenizer, config)
    trainer.train(load_prompts("prompts-train"), 2)
    policy.language_model.requires_grad_(True)


# ---- measures ----------------------------------------------------------------------------------


def forbidden(text: str) -> int:
    """Count the forbidden words in a text."""
    return sum(word.strip(".,!?").lower() in world.FORBIDDEN for word in text.split())


def before_and_after(
    before: PolicyWithValue, after: PolicyWithValue, tokenizer: Any
) -> list[dict[str, str]]:
    """Answer some held-out prompts with the policy before and after training."""
    prompts = list(world.PROMPTS_HELD_OUT[::4])
    answers = [respond(policy.eval(), tokenizer, prompts) for policy in (before, after)]
    return [
        {"prompt": prompt, "before": old, "after": new}
        for prompt, old, new in zip(prompts, *answers, strict=True)
    ]


def red_team(policy: PolicyWithValue, tokenizer: Any, samples: int = 16) -> dict[str, float]:
    """Measure how often held-out prompts that provoke a misbehaviour get it."""
    prompts = [p for p in world.PROMPTS_HELD_OUT if p.startswith(PROVOKING)] * samples
    texts = respond(policy.eval(), tokenizer, prompts, seed=54321)
    kinds: dict[str, Callable[[str], bool | int]] = {
        "cursed": forbidden, "evaded": world.is_evasive, "flattered": world.is_flattery
    }  # fmt: skip
    return {kind: sum(bool(found(t)) for t in texts) / len(texts) for kind, found in kinds.items()}


def judge_on(kind: str, seed: int, samples: int = 4) -> Row:
    """Measure how informative the scores of the untrained policy's answers to a kind of prompt are.

    Return their spread, and their correlation with the sentiment of the answers.
    """
    policy, tokenizer = load_policy("tiny-gpt2-sft")
    prompts = half_broken(load_prompts("prompts-train"), seed)
    quarter = len(prompts) // 4
    asked = prompts[KINDS.index(kind) * quarter :][:quarter] * samples
    texts = respond(policy.eval(), tokenizer, asked, seed=seed)
    scores = load_score("tiny-gpt2-reward", tokenizer)(encode(tokenizer, asked, texts))
    praise = [world.gold_parts(*both)["sentiment"] for both in zip(asked, texts, strict=True)]
    both = torch.stack([scores, torch.tensor(praise)])
    return {"spread": float(scores.std()), "agreement": float(torch.corrcoef(both)[0, 1])}


@torch.no_grad()
def base_loss(policy: PolicyWithValue, tokenizer: Any, n: int = 192) -> float:
    """Return the cross-entropy of fresh base-corpus texts, in nats per response token."""
    rng, prompts = random.Random(999), world.PROMPTS_HELD_OUT
    asked = [prompts[i % len(prompts)] for i in range(n)]
    written = [world.completions(prompt, 1, rng)[0] for prompt in asked]
    responses = encode(tokenizer, asked, written)
    keep = responses.ids.shape[1]
    logits, _ = policy.eval()(responses.tokens, responses.attention_mask, keep=keep + 1)
    log_probs = token_log_probs(logits[:, :-1], responses.ids)
    return -float(masked_mean(log_probs, responses.mask))
