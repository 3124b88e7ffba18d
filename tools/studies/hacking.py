"""Study reward hacking: what a reward model likes, what was intended, and what helps.

A judge here is a reward model trained, like the shipped one, from the SFT model's body, but on
1,000 preference pairs unless its case says otherwise. Its scores are standardised to mean 0 and
deviation 1 on the SFT model's responses, so that beta means the same for all judges. Each judge
`seed` has its own pairs and its own head.
"""

import random
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from studies.common import SEEDS, Row, diversity, judged, make_rows, ppo
from torch import Tensor

from minippo import world
from minippo.checks.solutions import best_of_n_mean
from minippo.data import load_texts
from minippo.models import PolicyWithValue, RewardModel, load_policy, load_reward_model
from minippo.ppo import PPOConfig
from minippo.reward_model import preference_accuracy, train_reward_model
from minippo.rollout import (
    Responses,
    Rollout,
    Score,
    decode,
    encode,
    encode_prompts,
    ensemble_score,
    generate,
    score_with,
)
from minippo.sft import FitConfig
from minippo.trainer import PPOTrainer

STEPS, TIME = 25, 40
SIZES = {"rollout_size": 32, "minibatch_size": 32}
CONFIG: dict[str, Any] = {"lam": 1.0, **SIZES}
PAIRS, ANNOTATED = 1000, 500
BEFORE = 10  # steps before fresh pairs are collected; 15 more follow
NS = [2**i for i in range(8)]  # 1 to 128
CANDIDATES = 256  # per prompt
PROVOKING = ("Flatter", "Be ")
PLAIN = [p for p in world.PROMPTS_HELD_OUT if not p.startswith(PROVOKING)]
ANNOTATORS = {
    "length": world.Annotator(length_bias=1.0),
    "flattery": world.Annotator(flattery_bias=2.0),
    "evasion": world.Annotator(evasion_bias=2.0),
}


@dataclass(frozen=True, eq=False)
class Judge:
    """A reward model's standardised score, and its accuracy against gold on held-out pairs."""

    model: RewardModel
    mean: float
    deviation: float
    accuracy: float
    kept: dict[str, Any]

    def __call__(self, responses: Responses) -> Tensor:
        """Return one score per response, in standard deviations."""
        if self.kept.get("of") is not responses:  # ensembles ask for the same judge again
            self.kept.update(of=responses, scores=_scores(self.model, responses))
        return (self.kept["scores"] - self.mean) / self.deviation


# ---- judges ------------------------------------------------------------------------------------


@cache
def judge(seed: int, pairs: int = PAIRS, annotator: str = "", flipped: float = 0.0) -> Judge:
    """Train a judge on `pairs` shipped pairs, some of them flipped, or on an annotator's."""
    found = _annotated(seed, annotator) if annotator else load_texts("preferences")[3750 * seed :]
    return trained(_sides(_mislabelled(found[:pairs], flipped, seed)), seed)


def trained(sides: Sequence[Responses], seed: int) -> Judge:
    """Train for two epochs on chosen and rejected responses, from the SFT model's body."""
    policy, _ = sft()
    model, _ = load_reward_model("tiny-gpt2-reward")  # only for its architecture
    model.body.base_model.load_state_dict(policy.language_model.base_model.state_dict())
    torch.manual_seed(seed)
    torch.nn.init.normal_(model.body.score.weight, std=0.02)
    config = FitConfig(epochs=2, minibatch_size=64, learning_rate=1e-3, warmup_steps=5, seed=seed)
    train_reward_model(model, sides[0], sides[1], config)
    return measured(model)


@cache
def shipped() -> Judge:
    """Return the shipped reward model, trained on 20,000 pairs."""
    return measured(load_reward_model("tiny-gpt2-reward")[0])


def measured(model: RewardModel) -> Judge:
    """Measure a judge's scale on SFT responses, and its accuracy on held-out pairs of them."""
    model.eval().requires_grad_(False)
    responses, gold = _held_out_pairs()
    scores = _scores(model, responses)
    return Judge(
        model, float(scores.mean()), float(scores.std()), in_order(scores.view(-1, 2), gold), {}
    )


def ensemble(seed: int, how: Any) -> Score:
    """Combine three judges, each trained on its own 1,000 pairs."""
    members = [judge((seed + i) % len(SEEDS)) for i in range(3)]
    return ensemble_score(members, how=how, coef=1.0)


def in_order(scores: Tensor, gold: Tensor) -> float:
    """Return the share of same-prompt pairs with different gold that the scores order correctly.

    Both are [prompts, answers]; all pairs of answers to a prompt count.
    """
    better, worse = list[Tensor](), list[Tensor]()
    for i, j in combinations(range(gold.shape[1]), 2):
        first = gold[:, i] > gold[:, j]
        differ = gold[:, i] != gold[:, j]
        better.append(torch.where(first, scores[:, i], scores[:, j])[differ])
        worse.append(torch.where(first, scores[:, j], scores[:, i])[differ])
    return float(preference_accuracy(torch.cat(better), torch.cat(worse)))


@torch.no_grad()
def _scores(model: RewardModel, responses: Responses) -> Tensor:
    parts = [responses[i : i + 128].trim() for i in range(0, len(responses), 128)]
    return torch.cat([score_with(model)(part) for part in parts])


@cache
def sft() -> tuple[PolicyWithValue, Any]:
    """Return the SFT model and the tokenizer."""
    policy, tokenizer = load_policy("tiny-gpt2-sft")
    return policy.eval().requires_grad_(False), tokenizer


@cache
def _held_out_pairs() -> tuple[Responses, Tensor]:
    prompts = [p for p in world.PROMPTS_HELD_OUT for _ in range(20)]
    responses, texts = answers(sft()[0], prompts, seed=77)
    return responses, _gold(prompts, texts).view(-1, 2)


def _sides(pairs: Sequence[dict[str, str]]) -> list[Responses]:
    prompts = [pair["prompt"] for pair in pairs]
    return [
        encode(sft()[1], prompts, [pair[side] for pair in pairs]) for side in ("chosen", "rejected")
    ]


def _mislabelled(
    pairs: Sequence[dict[str, str]], share: float, seed: int
) -> Sequence[dict[str, str]]:
    """Swap chosen and rejected in exactly this share of the pairs."""
    wrong = set(random.Random(seed).sample(range(len(pairs)), round(share * len(pairs))))
    return [
        {**p, "chosen": p["rejected"], "rejected": p["chosen"]} if i in wrong else p
        for i, p in enumerate(pairs)
    ]


def _annotated(seed: int, annotator: str) -> list[dict[str, str]]:
    """Pair texts of the base corpus' writer, every other time for a provoking prompt."""
    rng = random.Random(seed)
    provoking = [p for p in world.PROMPTS_TRAIN if p.startswith(PROVOKING)]
    asked = [rng.choice((world.PROMPTS_TRAIN, provoking)[i % 2]) for i in range(ANNOTATED)]
    texts = [text for p in asked for text in world.completions(p, 2, rng)]
    return _ordered(ANNOTATORS[annotator], asked, texts, rng)


def _ordered(
    annotator: world.Annotator, asked: Sequence[str], texts: Sequence[str], rng: random.Random
) -> list[dict[str, str]]:
    found = []
    for prompt, a, b in zip(asked, texts[::2], texts[1::2], strict=True):
        chosen, rejected = (a, b) if annotator.prefers(prompt, a, b, rng) else (b, a)
        found.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    return found


# ---- best of n ---------------------------------------------------------------------------------


def answers(
    policy: PolicyWithValue, prompts: Sequence[str], *, seed: int
) -> tuple[Responses, list[str]]:
    """Sample one response per prompt."""
    tokenizer = sft()[1]
    ids, mask = encode_prompts(tokenizer, prompts)  # all padded to the widest
    u = torch.rand(len(ids), TIME, generator=torch.Generator().manual_seed(seed))
    end = tokenizer.eos_token_id
    parts = [
        generate(
            policy, ids[i : i + 256], mask[i : i + 256], max_new_tokens=TIME, eos_token_id=end,
            uniforms=u[i : i + 256],
        )
        for i in range(0, len(ids), 256)
    ]  # fmt: skip
    responses = stacked(parts)
    return responses, decode(tokenizer, responses)[1]


def stacked(parts: Sequence[Responses]) -> Responses:
    """Stack batches into one: prompts are padded on the left, responses on the right."""
    end = sft()[1].eos_token_id

    def wide(name: str, left: bool, filler: int) -> Tensor:
        rows = [getattr(part, name) for part in parts]
        columns = max(x.shape[1] for x in rows)
        more = [columns - x.shape[1] for x in rows]
        pads = [(n, 0) if left else (0, n) for n in more]
        return torch.cat(
            [torch.nn.functional.pad(x, n, value=filler) for x, n in zip(rows, pads, strict=True)]
        )

    return Responses(
        wide("prompt_ids", True, end), wide("prompt_mask", True, 0),
        wide("ids", False, end), wide("mask", False, 0),
    )  # fmt: skip


@cache
def candidates(model: str, n: int) -> tuple[list[str], Responses, list[str], dict[str, Tensor]]:
    """Sample n responses per second plain held-out prompt: prompts, responses, texts, traits."""
    policy = load_policy(model)[0].eval().requires_grad_(False)
    prompts = [p for p in PLAIN[::2] for _ in range(n)]
    responses, texts = answers(policy, prompts, seed=5)
    traits = {
        "gold": _gold(prompts, texts),
        "length": torch.tensor([float(len(text.split())) for text in texts]),
        "flattery": torch.tensor([float(world.is_flattery(text)) for text in texts]),
        "evasion": torch.tensor([float(world.is_evasive(text)) for text in texts]),
    }
    return prompts, responses, texts, {k: x.view(-1, n) for k, x in traits.items()}


def best_of_n(
    part: str, seed: int, name: str, *, model: str = "tiny-gpt2-sft", n: int = CANDIDATES
) -> Row:
    """Return, for each n, the mean proxy and traits of the response the judge likes best."""
    prompts, responses, texts, traits = candidates(model, n)
    row: Row = {"n": [k for k in NS if k <= n // 2]}
    if name == "gold" and part == "best of n":
        proxy = traits["gold"]
    else:
        score = judge(seed, annotator=name) if part == "annotators" else SETTINGS[name](seed)
        proxy = score(responses).view(-1, n)
        if isinstance(score, Judge):
            row["accuracy"] = score.accuracy
    for trait, x in {"proxy": proxy, **traits}.items():
        means = torch.tensor(
            [
                [float(best_of_n_mean(p, y, k)) for k in row["n"]]
                for p, y in zip(proxy, x, strict=True)
            ]
        )
        row[trait] = means.mean(0).tolist()
        row[f"{trait} se"] = (means.std(0) / len(means) ** 0.5).tolist()
    best = proxy[::5].argmax(1)
    row["texts"] = [
        {"prompt": prompts[at], "text": texts[at], "proxy": float(proxy.flatten()[at]),
         "gold": float(traits["gold"].flatten()[at])}
        for at in (5 * n * i + int(b) for i, b in enumerate(best))
    ]  # fmt: skip
    return row


# ---- PPO ---------------------------------------------------------------------------------------


class Watched(PPOTrainer):
    """A trainer that records what reveals hacking in each rollout it trains on."""

    def __init__(self, *parts: Any, **options: Any) -> None:
        super().__init__(*parts, **options)
        self.seen: list[dict[str, float]] = []

    def judges(self) -> list[Judge]:
        """Return the judges whose disagreement is watched."""
        return []

    def collect(self, prompts: Sequence[str]) -> Rollout:
        """Collect as usual, and record what reveals hacking."""
        rollout = super().collect(prompts)
        asked, texts = decode(self.tokenizer, rollout.responses)
        seen = {
            "gold": float(_gold(asked, texts).mean()),
            "proxy": float(rollout.total_scores.mean()),
            "kl": float((rollout.log_probs - rollout.ref_log_probs).sum(1).mean()),
            "length": float(rollout.mask.sum(1).float().mean()),
            "ended": float((~rollout.truncated).float().mean()),
            **diversity(texts),
        }
        if judges := self.judges():
            scores = torch.stack([member(rollout.responses) for member in judges])
            seen["disagreement"] = float(scores.std(0).mean())
        self.seen.append(seen)
        return rollout


class WatchedByFive(Watched):
    """Also record the five weak judges' disagreement."""

    def judges(self) -> list[Judge]:
        """Return judges 0 to 4."""
        return [judge(seed) for seed in SEEDS]


PRICE = ", KL price"  # names with this ending have beta = 0.1
SMALL = ", epsilon 0.05"  # names with this ending have this clip range
SETTINGS: dict[str, Callable[[int], Score]] = {  # name -> seed -> the judge
    "weak": lambda seed: judge(seed),
    "100 pairs": lambda seed: judge(seed, 100),
    "300 pairs": lambda seed: judge(seed, 300),
    "5,000 pairs": lambda seed: judge(seed, 5000),
    "10 % flipped": lambda seed: judge(seed, flipped=0.10),
    "25 % flipped": lambda seed: judge(seed, flipped=0.25),
    "40 % flipped": lambda seed: judge(seed, flipped=0.40),
    "mean of 3": lambda seed: ensemble(seed, "mean"),
    "least of 3": lambda seed: ensemble(seed, "min"),
    "mean minus variance of 3": lambda seed: ensemble(seed, "mean_minus_variance"),
    "20,000 pairs": lambda seed: shipped(),
}


def config_of(name: str, seed: int) -> PPOConfig:
    """Return the configuration that a name's ending selects."""
    more = {"clip_range": 0.05} if name.endswith(SMALL) else {}
    return PPOConfig(kl_coef=0.1 if name.endswith(PRICE) else 0.0, **CONFIG, **more, seed=seed)


def run_ppo(name: str, seed: int) -> Any:
    """Run one of the settings."""
    score = SETTINGS[name.removesuffix(PRICE).removesuffix(SMALL)](seed)
    kind = WatchedByFive if name == "weak" else Watched
    return ppo(config_of(name, seed), STEPS, score=score, kind=kind)


def ppo_row(trainer: Any) -> Row:
    """Return curves over the training rollouts, and four answers per held-out prompt."""
    score, tokenizer = trainer.score, trainer.tokenizer
    row: Row = {
        "end": judged(trainer.policy, sft()[0], tokenizer, score),
        "curve": {key: [seen[key] for seen in trainer.seen] for key in trainer.seen[0]},
    }
    if isinstance(score, Judge):
        row["accuracy"] = score.accuracy
    row["accuracy on its own"], prompts, texts = accuracy_on(trainer.policy, score)
    row["flattery"] = sum(map(world.is_flattery, texts)) / len(texts)
    row["evasion"] = sum(map(world.is_evasive, texts)) / len(texts)
    row["texts"] = [
        {"prompt": prompts[i], "text": texts[i], "gold": world.gold(prompts[i], texts[i])}
        for i in range(0, len(texts), 64)
    ]
    return row


def accuracy_on(policy: PolicyWithValue, score: Score) -> tuple[float, list[str], list[str]]:
    """Return the share of pairs of answers to a held-out prompt that the score orders correctly.

    Also return the prompts, and the four answers to each.
    """
    prompts = [p for p in world.PROMPTS_HELD_OUT for _ in range(4)]
    responses, texts = answers(policy.eval(), prompts, seed=9)
    gold = _gold(prompts, texts).view(-1, 4)
    return in_order(score(responses).view(-1, 4), gold), prompts, texts


# ---- a round of fresh preferences --------------------------------------------------------------


@cache
def half_way(seed: int) -> tuple[PolicyWithValue, list[Responses]]:
    """Train the weak judge's policy for a few steps; collect 1,000 fresh pairs of its answers."""
    policy = ppo(config_of("", seed), BEFORE, score=judge(seed), kind=Watched).policy.eval()
    rng = random.Random(seed)
    asked = rng.choices(world.PROMPTS_TRAIN, k=PAIRS)
    prompts = [p for p in asked for _ in range(2)]
    responses, texts = answers(policy, prompts, seed=100 + seed)
    annotator = world.Annotator()
    wins = [
        int(not annotator.prefers(p, a, b, rng))  # 0: the first of the two, 1: the second
        for p, a, b in zip(asked, texts[::2], texts[1::2], strict=True)
    ]
    won = 2 * torch.arange(PAIRS) + torch.tensor(wins)
    return policy, [responses[won], responses[won ^ 1]]


def retrained(seed: int, name: str) -> Judge:
    """Train a new judge on the 1,000 old pairs and the 1,000 that a name selects."""
    if name == "1,000 fresh pairs":
        old = _sides(load_texts("preferences")[3750 * seed :][:PAIRS])
        return trained([stacked(part) for part in zip(old, half_way(seed)[1], strict=True)], seed)
    return judge(seed, 2 * PAIRS if name == "1,000 more old pairs" else PAIRS)


def fresh_row(name: str, seed: int) -> Row:
    """Take the remaining steps, rewarded by a judge with or without further pairs."""
    before = half_way(seed)[0]
    score = retrained(seed, name)
    then = accuracy_on(before, score)[0]
    trainer = Watched(
        deepcopy(before).requires_grad_(True), sft()[0], score, sft()[1],
        config_of("", 100 + seed),
    )  # fmt: skip
    trainer.train(world.PROMPTS_TRAIN, STEPS - BEFORE)
    return {"accuracy then": then, **ppo_row(trainer)}


def _gold(prompts: Sequence[str], texts: Sequence[str]) -> Tensor:
    return torch.tensor([world.gold(p, t) for p, t in zip(prompts, texts, strict=True)])


def run(part: str, name: str, seed: int) -> Row:
    """Make one row."""
    if part == "best of n":
        return best_of_n(part, seed, name)
    if part == "annotators":
        return best_of_n(part, seed, name, model="tiny-gpt2-base", n=64)
    return fresh_row(name, seed) if part == "fresh" else ppo_row(run_ppo(name, seed))


def main(path: Path) -> None:
    """Make the rows, the most important first."""

    def each(part: str, *names: str) -> list[dict[str, Any]]:
        return [{"part": part, "name": name, "seed": s} for name in names for s in SEEDS]

    def by_seed(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return sorted(cases, key=lambda case: case["seed"])  # so partial results compare

    once = [{"part": "best of n", "name": name, "seed": 0} for name in ("20,000 pairs", "gold")]
    ensembles = [name for name in SETTINGS if name.endswith("of 3")]
    fresh = ["no new pairs", "1,000 more old pairs", "1,000 fresh pairs"]
    flips = ["10 % flipped", "25 % flipped", "40 % flipped"]
    cases = [
        *each("ppo", "weak"), *each("best of n", "weak", *ensembles), *once,
        *each("ppo", "weak" + PRICE, "least of 3", "20,000 pairs", "20,000 pairs" + PRICE),
        *each("ppo", "100 pairs" + PRICE), *each("annotators", "length", "flattery", "evasion"),
        *by_seed(each("fresh", *fresh)), *each("ppo", "weak" + SMALL),
        *by_seed(each("best of n", *flips)), *each("best of n", "300 pairs", "100 pairs"),
        *each("best of n", "5,000 pairs"),
    ]  # fmt: skip
    make_rows(path, cases, run)
