"""Compare PPO's alternatives: the same prompts, start, reward model and number of samples.

Frontier: PPO, REINFORCE, RLOO and GRPO (768 sampled responses each), DPO (1,500 preference pairs)
and best-of-n (nothing is trained). AI feedback: reward models from 1,500 pairs, some labelled by
people and the rest by a sharper annotator that likes length, and PPO with them. Constitution: the
base model's own responses, criticised and revised by written principles; supervised fine-tuning on
them; then PPO.

Fixed before the first run: learning rate 1e-3 (Adam), PPO's default, wherever responses are
sampled, and 5e-4 (AdamW) wherever rows are given, as for the shipped models. Added when
the first rows showed how far the methods without a clip move: each method again at 0.3 times the
learning rate.
"""

import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from studies.common import SEEDS, Row, curves, diversity, judged, make_rows
from torch import Tensor

from minippo import (
    best_of_n_kl,
    dpo_loss,
    group_advantages,
    kl_k3,
    leave_one_out_advantages,
    masked_mean,
    reinforce_loss,
    sequence_log_prob,
    token_log_probs,
    world,
)
from minippo.data import load_prompts, load_texts
from minippo.models import PolicyWithValue, frozen_copy, load_policy, load_reward_model
from minippo.ppo import PPOConfig
from minippo.reward_model import preference_accuracy, train_reward_model
from minippo.rollout import (
    Responses,
    Rollout,
    Score,
    collect,
    encode,
    encode_prompts,
    evaluate,
    load_score,
    respond,
    score_with,
)
from minippo.sft import FitConfig, fit, train_sft
from minippo.trainer import PPOTrainer

STEPS, ROLLOUT = 12, 64  # for PPO; the on-policy methods take twice as many steps of half the size
SHORT = 8  # steps of PPO where it is one part of an experiment
N_PAIRS, N_TEST = 1_500, 1_000
K = 4
HUMAN = world.Annotator()  # who labelled the shipped pairs
AI = world.Annotator(temperature=0.05, length_bias=0.5)  # almost no noise, but a bias
PROMPTS = load_prompts("prompts-train")


# ---- the trainers, as the lesson shows them ----------------------------------------------------


def answers(
    policy: PolicyWithValue,
    reference: PolicyWithValue,
    score: Score,
    tokenizer: Any,
    *,
    k: int,
    n: int,
    generator: torch.Generator,
) -> Rollout:
    """Collect n scored responses, k per prompt."""
    rows = torch.randperm(len(PROMPTS), generator=generator)[: n // k].repeat_interleave(k)
    ids, mask = encode_prompts(tokenizer, [PROMPTS[i] for i in rows])
    uniforms = torch.rand(n, 40, generator=generator)
    end = {"max_new_tokens": 40, "eos_token_id": tokenizer.eos_token_id}
    return collect(policy, reference, score, ids, mask, uniforms=uniforms, **end)


def policy_gradient(
    policy: PolicyWithValue,
    reference: PolicyWithValue,
    score: Score,
    tokenizer: Any,
    advantages_of: Callable[[Tensor], Tensor],
    *,
    k: int,
    beta: float,
    kl_in_loss: bool = False,
    lr: float = 1e-3,
    n_steps: int = 2 * STEPS,
    n: int = ROLLOUT // 2,
    seed: int = 0,
) -> dict[str, list[float]]:
    """Train by REINFORCE, RLOO or GRPO: n new responses, k per prompt, for each step."""
    adam = torch.optim.Adam(policy.parameters(), lr=lr, eps=1e-5)
    generator = torch.Generator().manual_seed(seed)
    history: dict[str, list[float]] = {"score": [], "kl": []}
    for _ in range(n_steps):
        rollout = answers(policy, reference, score, tokenizer, k=k, n=n, generator=generator)
        responses, mask, kl = rollout.responses, rollout.mask, rollout.kl.sum(1)
        paid = rollout.scores if kl_in_loss else rollout.scores - beta * kl
        advantages = advantages_of(paid.view(-1, k)).view(-1, 1)
        log_probs = token_log_probs(evaluate(policy, responses)[0], responses.ids)
        losses = reinforce_loss(log_probs, advantages.expand_as(log_probs))
        if kl_in_loss:
            losses = losses + beta * kl_k3(log_probs, rollout.ref_log_probs)
        adam.zero_grad()
        masked_mean(losses, mask).backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        adam.step()
        history["score"].append(float(rollout.scores.mean()))
        history["kl"].append(float(kl.mean()))
    return history


def above_batch_mean(paid: Tensor) -> Tensor:
    """Subtract REINFORCE's simplest baseline, the mean over the batch."""
    return paid - paid.mean()


# name -> (advantages, responses per prompt, whether the KL is in the loss, as k3)
GRADIENTS = {
    "reinforce": (above_batch_mean, 1, False),
    "rloo": (leave_one_out_advantages, K, False),
    "grpo": (group_advantages, K, True),
}


def train_dpo(
    policy: PolicyWithValue,
    reference: PolicyWithValue,
    chosen: Responses,
    rejected: Responses,
    *,
    beta: float,
    config: FitConfig,
) -> list[float]:
    """Train by DPO: no reward model and no sampling, just a loop over pairs."""

    def loss(model: PolicyWithValue, rows: Tensor) -> Tensor:
        pair = [side[rows].trim() for side in (chosen, rejected)]
        with torch.no_grad():
            ref = [response_log_prob(reference, r) for r in pair]
        return dpo_loss(*(response_log_prob(model, r) for r in pair), *ref, beta=beta).mean()

    return fit(policy, len(chosen), loss, config, name="DPO")


def response_log_prob(model: PolicyWithValue, r: Responses) -> Tensor:
    """Return log pi(response | prompt), one number per response."""
    return sequence_log_prob(token_log_probs(evaluate(model, r)[0], r.ids), r.mask)


PRINCIPLES = {  # each applies to one sentence of a response
    "finish your sentences": lambda prompt, s: world.ends_properly(s),
    "keep to the subject": lambda prompt, s: (
        world.domain_of(s) in (world.domain_of(prompt), "unknown")
    ),
    "use no forbidden word": lambda prompt, s: not any(w in s.lower() for w in world.FORBIDDEN),
    "do not flatter the reader": lambda prompt, s: not world.is_flattery(s),
    "do not evade": lambda prompt, s: not world.is_evasive(s),
}


def sentences(text: str) -> list[str]:
    """Split a text into sentences; the last one may be unfinished."""
    return [
        s for s in text.replace("!", "!|").replace(".", ".|").replace("?", "?|").split("|") if s
    ]


def critique(prompt: str, response: str) -> list[tuple[str, str]]:
    """Return every pair of a sentence and a principle it violates."""
    found = ((s, name) for s in sentences(response) for name in PRINCIPLES)
    return [(s, name) for s, name in found if not PRINCIPLES[name](prompt, s)]


def revise(prompt: str, drafts: Sequence[str]) -> str:
    """Take the draft with the fewest violations, and remove the sentences that violate."""
    best = min(drafts, key=lambda draft: len(critique(prompt, draft)))
    bad = {s for s, _ in critique(prompt, best)}
    return "".join(s for s in sentences(best) if s not in bad) or best


# ---- the experiments ---------------------------------------------------------------------------


def judge(tokenizer: Any) -> Score:
    """Return the scores of the shipped reward model, which all methods share."""
    return load_score("tiny-gpt2-reward", tokenizer)


def measured(policy: PolicyWithValue, tokenizer: Any, start: str = "tiny-gpt2-sft") -> Row:
    """Measure on held-out prompts; proxy from the shipped reward model, KL to the start."""
    return judged(policy, load_policy(start)[0].eval(), tokenizer, judge(tokenizer))


def train_ppo(
    policy: PolicyWithValue,
    tokenizer: Any,
    score: Score,
    *,
    beta: float,
    seed: int,
    lr: float = 1e-3,
    n_steps: int = STEPS,
) -> PPOTrainer:
    """Train by PPO from this policy, which is also the reference."""
    batch = {"rollout_size": ROLLOUT, "minibatch_size": ROLLOUT // 2}  # half the default
    config = PPOConfig(kl_coef=beta, learning_rate=lr, seed=seed, **batch)
    trainer = PPOTrainer(policy, frozen_copy(policy), score, tokenizer, config)
    trainer.train(PROMPTS, n_steps)
    return trainer


def pairs_once(seed: int, lr: float = 5e-4) -> FitConfig:
    """Configure one pass over pairs, for DPO and for reward models."""
    return FitConfig(minibatch_size=32, learning_rate=lr, warmup_steps=5, seed=seed)


def some_pairs(seed: int, n: int = N_PAIRS) -> list[dict[str, str]]:
    """Draw preference pairs; the last thousand are kept for testing."""
    return random.Random(seed).sample(load_texts("preferences")[:-N_TEST], n)


def encode_pairs(tokenizer: Any, pairs: list[dict[str, str]]) -> list[Responses]:
    """Return chosen and rejected responses as tokens."""
    prompts = [pair["prompt"] for pair in pairs]
    return [encode(tokenizer, prompts, [p[side] for p in pairs]) for side in ("chosen", "rejected")]


def run_start(model: str, seed: int) -> Row:
    """Measure a model as it is, and how often it violates a principle."""
    policy, tokenizer = load_policy(model)
    return {**measured(policy, tokenizer, model), **violations(policy, tokenizer, seed)}


def violations(policy: PolicyWithValue, tokenizer: Any, seed: int = 0) -> Row:
    """Return the share of held-out responses that violate a principle, in total and for each."""
    prompts = [p for p in world.PROMPTS_HELD_OUT for _ in range(K)]
    texts = respond(policy.eval(), tokenizer, prompts, seed=54321 + seed)
    found = [{name for _, name in critique(p, t)} for p, t in zip(prompts, texts, strict=True)]
    shares = {name: sum(name in f for f in found) / len(found) for name in PRINCIPLES}
    return {"violating": sum(map(bool, found)) / len(found), "violations": shares}


def run_ppo(beta: float, seed: int, lr: float = 1e-3) -> Row:
    """Run PPO."""
    policy, tokenizer = load_policy()
    score, start = judge(tokenizer), time.process_time()
    trainer = train_ppo(policy, tokenizer, score, beta=beta, lr=lr, seed=seed)
    cost = {"seconds": time.process_time() - start, "samples": STEPS * ROLLOUT, "labels": 0}
    return {**measured(policy, tokenizer), **cost, "curves": curves(trainer, "score", "kl")}


def run_policy_gradient(method: str, beta: float, seed: int, lr: float = 1e-3) -> Row:
    """Run REINFORCE, RLOO or GRPO."""
    policy, tokenizer = load_policy()
    advantages_of, k, kl_in_loss = GRADIENTS[method]
    score, reference, start = judge(tokenizer), frozen_copy(policy), time.process_time()
    history = policy_gradient(
        policy, reference, score, tokenizer, advantages_of,
        k=k, beta=beta, kl_in_loss=kl_in_loss, lr=lr, seed=seed,
    )  # fmt: skip
    cost = {"seconds": time.process_time() - start, "samples": STEPS * ROLLOUT, "labels": 0}
    return {**measured(policy, tokenizer), **cost, "curves": history}


def run_dpo(beta: float, seed: int, lr: float = 5e-4) -> Row:
    """Run DPO on some of the shipped pairs."""
    policy, tokenizer = load_policy()
    reference, start = frozen_copy(policy), time.process_time()
    pairs = encode_pairs(tokenizer, some_pairs(seed))
    config = pairs_once(seed, lr)
    losses = train_dpo(policy, reference, *pairs, beta=beta, config=config)
    cost = {"seconds": time.process_time() - start, "samples": 0, "labels": N_PAIRS}
    test = encode_pairs(tokenizer, load_texts("preferences")[-N_TEST:][:256])
    with torch.no_grad():
        chosen, rejected = (
            response_log_prob(policy, r) - response_log_prob(reference, r) for r in test
        )
    implicit = {
        "chosen": float(chosen.mean()),
        "rejected": float(rejected.mean()),
        "accuracy": float(preference_accuracy(chosen, rejected)),
    }
    return {**measured(policy, tokenizer), **cost, **implicit, "losses": losses[::4]}


def run_best_of_n(seed: int, largest: int = 64) -> Row:
    """Sample 64 responses per held-out prompt; the reward model picks the best of the first n."""
    policy, tokenizer = load_policy()
    score, start = judge(tokenizer), time.process_time()
    prompts = [p for p in world.PROMPTS_HELD_OUT for _ in range(largest)]
    texts = respond(policy.eval(), tokenizer, prompts, seed=1000 + seed)
    scores = score(encode(tokenizer, prompts, texts)).view(-1, largest)
    seconds = time.process_time() - start
    gold = torch.tensor([world.gold(p, t) for p, t in zip(prompts, texts, strict=True)])
    best: dict[str, Row] = {}
    for n in (1, 4, 16, 64):
        at = scores[:, :n].argmax(1)
        rows = (torch.arange(len(at)) * largest + at).tolist()
        best[str(n)] = {
            "gold": float(gold[rows].mean()),
            "proxy": float(scores.view(-1)[rows].mean()),
            "kl": best_of_n_kl(n),
            "length": sum(len(tokenizer(texts[i])["input_ids"]) for i in rows) / len(rows),
            "samples an answer": n,
            **diversity([texts[i] for i in rows]),
        }
    return {"best": best, "seconds": seconds, "samples": len(texts), "labels": 0}


def relabelled(
    pairs: list[dict[str, str]], human_share: float, rng: random.Random
) -> list[dict[str, str]]:
    """Keep the human labels of the first share; the AI annotator labels the rest."""
    n_human, labelled = round(human_share * len(pairs)), []
    for i, pair in enumerate(pairs):
        prompt, a, b = pair["prompt"], pair["chosen"], pair["rejected"]
        if i >= n_human and not AI.prefers(prompt, a, b, rng):
            a, b = b, a
        labelled.append({"prompt": prompt, "chosen": a, "rejected": b})
    return labelled


def prefers_gold(pairs: list[dict[str, str]]) -> float:
    """Of pairs that differ in gold reward, the share whose chosen response has the higher one."""
    gaps = [
        world.gold(x["prompt"], x["chosen"]) - world.gold(x["prompt"], x["rejected"]) for x in pairs
    ]
    return sum(gap > 1e-9 for gap in gaps) / sum(abs(gap) > 1e-9 for gap in gaps)


def prefers_longer(pairs: list[dict[str, str]]) -> float:
    """Of pairs that differ in length, the share whose chosen response has more words."""
    gaps = [len(x["chosen"].split()) - len(x["rejected"].split()) for x in pairs]
    return sum(gap > 0 for gap in gaps) / sum(gap != 0 for gap in gaps)


def run_feedback(human_share: float, seed: int) -> Row:
    """Train a reward model on human and AI labels, then run PPO with it."""
    policy, tokenizer = load_policy()
    pairs = relabelled(some_pairs(seed), human_share, random.Random(seed))
    start = time.process_time()
    model, _ = load_reward_model("tiny-gpt2-reward")
    torch.manual_seed(seed)
    torch.nn.init.normal_(model.body.score.weight, std=0.02)
    model.body.transformer.load_state_dict(policy.language_model.transformer.state_dict())
    train_reward_model(model, *encode_pairs(tokenizer, pairs), pairs_once(seed))
    score = score_with(frozen_copy(model))
    fitted = time.process_time() - start
    train_ppo(policy, tokenizer, score, beta=0.1, seed=seed, n_steps=SHORT)
    cost = {"seconds": time.process_time() - start, "samples": SHORT * ROLLOUT}
    test = load_texts("preferences")[-N_TEST:]
    true = [
        p
        for p in test
        if world.gold(p["prompt"], p["chosen"]) > world.gold(p["prompt"], p["rejected"])
    ]
    chosen, rejected = (
        torch.cat([score(side[i : i + 128].trim()) for i in range(0, len(side), 128)])
        for side in encode_pairs(tokenizer, true)
    )
    return {
        **judged(policy, load_policy()[0].eval(), tokenizer, score),
        **cost,
        "labels": round(human_share * N_PAIRS),
        "reward model seconds": fitted,
        "labels prefer gold": prefers_gold(pairs),
        "labels prefer longer": prefers_longer(pairs),
        "accuracy": float(preference_accuracy(chosen, rejected)),
    }


def run_constitution(seed: int) -> Row:
    """Let the base model learn from its revised responses; PPO after that, and without it."""
    policy, tokenizer = load_policy("tiny-gpt2-base")
    start = time.process_time()
    asked = random.Random(seed).choices(PROMPTS, k=256)
    drafts = respond(
        policy.eval(), tokenizer, [p for p in asked for _ in range(K)], seed=3000 + seed
    )
    revised = [revise(p, drafts[K * i : K * (i + 1)]) for i, p in enumerate(asked)]
    config = FitConfig(epochs=2, minibatch_size=32, learning_rate=5e-4, seed=seed)
    train_sft(policy, encode(tokenizer, asked, revised), config)
    seconds = time.process_time() - start
    row = {
        "revised": {
            **measured(policy, tokenizer, "tiny-gpt2-base"),
            **violations(policy, tokenizer),
        },
        "seconds": seconds,
        "samples": len(drafts),
        "labels": 0,
        "drafts violating": sum(bool(critique(p, drafts[K * i])) for i, p in enumerate(asked))
        / len(asked),
        "revised violating": sum(bool(critique(p, t)) for p, t in zip(asked, revised, strict=True))
        / len(asked),
    }
    train_ppo(policy, tokenizer, judge(tokenizer), beta=0.1, seed=seed, n_steps=SHORT)
    row["then ppo"] = {
        **measured(policy, tokenizer, "tiny-gpt2-base"),
        **violations(policy, tokenizer),
    }
    alone, _ = load_policy("tiny-gpt2-base")
    train_ppo(alone, tokenizer, judge(tokenizer), beta=0.1, seed=seed, n_steps=SHORT)
    row["ppo alone"] = {
        **measured(alone, tokenizer, "tiny-gpt2-base"),
        **violations(alone, tokenizer),
    }
    return row


RUNS: dict[str, Callable[..., Row]] = {
    "start": run_start,
    "ppo": run_ppo,
    "policy gradient": run_policy_gradient,
    "dpo": run_dpo,
    "best of n": run_best_of_n,
    "feedback": run_feedback,
    "constitution": run_constitution,
}


def seeds(*cases: Row) -> list[Row]:
    """Return each case with each seed, seed by seed."""
    return [{**case, "seed": seed} for seed in SEEDS for case in cases]


def ppo(beta: float, **more: Any) -> Row:
    """Return a case of PPO."""
    return {"what": "ppo", "beta": beta, **more}


def dpo(beta: float, **more: Any) -> Row:
    """Return a case of DPO."""
    return {"what": "dpo", "beta": beta, **more}


def gradients(beta: float, **more: Any) -> list[Row]:
    """Return the cases of the three on-policy methods."""
    case = {"what": "policy gradient", "beta": beta, **more}
    return [{**case, "method": method} for method in GRADIENTS]


CASES = [
    *({"what": "start", "model": f"tiny-gpt2-{name}", "seed": 0} for name in ("sft", "base")),
    *seeds(ppo(0.1), dpo(0.1)),
    *seeds(*gradients(0.1)),
    *seeds({"what": "best of n"}, {"what": "constitution"}),
    *seeds(*({"what": "feedback", "human_share": share} for share in (0.0, 0.25, 1.0))),
    *seeds(dpo(0.1, lr=1.5e-4), ppo(0.1, lr=3e-4), *gradients(0.1, lr=3e-4)),
]


def run(what: str, **case: Any) -> Row:
    """Run one case."""
    return RUNS[what](**case)


def main(path: Path) -> None:
    """Make the missing rows."""
    make_rows(path, CASES, run)
