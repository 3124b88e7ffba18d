"""Run the bug zoo: PPO with one bug at a time, five seeds, and the curves that show it.

Each bug is the trainer itself with one method, one configuration or one loss replaced. A row holds
the statistics that the trainer logs; under "truth", what happened in the same rollouts, measured
with the correct mask and alignment and the KL to the *first* policy; and under "end", the
trained policy's responses to held-out prompts.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from studies.common import SEEDS, Row, curves, judged, make_rows
from torch import Tensor, nn, where

from minippo import kl_k1, token_log_probs, whiten
from minippo.checks.mistakes import CATALOGUE
from minippo.data import load_prompts
from minippo.models import PolicyWithValue, frozen_copy, load_policy
from minippo.ppo import Credit, PPOConfig, Stats, ppo_loss
from minippo.rollout import Responses, Rollout, evaluate, load_score, response_mask
from minippo.trainer import PPOTrainer

Loss = Callable[..., tuple[Tensor, dict[str, Tensor]]]
STEPS = 8
CONFIG = PPOConfig(lam=1.0, rollout_size=64, minibatch_size=32, epochs=2, warmup_steps=2)
LOGGED = (
    "score", "reward", "kl", "entropy", "clip_fraction", "first_ratio_error", "approx_kl",
    "grad_norm", "value_loss", "explained_variance", "response_length", "truncated", "ratio",
)  # fmt: skip


class Healthy(PPOTrainer):
    """The trainer, which also records what really happened."""

    def __init__(self, policy: PolicyWithValue, *args: Any, **kwargs: Any) -> None:
        super().__init__(policy, *args, **kwargs)
        self.first, self.truth = frozen_copy(policy), list[Stats]()
        self.measures_wrong = False  # if set, the truth costs two more forward passes
        self.loss_function: Loss = ppo_loss

    def collect(self, prompts: Any) -> Rollout:
        """Collect with the bug, and record the truth next to it."""
        rollout = super().collect(prompts)
        self.truth.append(self.true_stats(rollout))
        return self._flaw(rollout)

    def _flaw(self, rollout: Rollout) -> Rollout:
        """Change the rollout as the bug does."""
        return rollout

    def loss(self, batch: Rollout, credit: Credit, **counts: int) -> tuple[Tensor, Any]:
        """Compute the trainer's loss with the bug's function."""
        return self.loss_function(
            self.model,
            batch,
            credit.whitened,
            credit.returns,
            self.config,
            kl_loss_coef=self.kl_loss_coef,
            penalty_coef=self.penalty_controller.coef,
            reference=self.reference,
            **counts,
        )

    @torch.no_grad()
    def true_stats(self, rollout: Rollout) -> Stats:
        """Return score, KL to the first policy and length, independent of the trainer."""
        ids = rollout.responses.ids
        mask = response_mask(ids, self.tokenizer.eos_token_id)
        kl = rollout.kl
        if self.measures_wrong:
            responses = replace(rollout.responses, mask=mask)
            logits, first = (evaluate(m, responses)[0] for m in (self.policy, self.first))
            kl = kl_k1(token_log_probs(logits, ids), token_log_probs(first, ids))
        return {
            "score": float(rollout.total_scores.mean()),
            "kl": float(where(mask, kl, 0.0).sum(1).mean()),
            "response_length": float(mask.sum(1).float().mean()),
        }


@torch.no_grad()
def remeasured(trainer: Healthy, rollout: Rollout, responses: Responses) -> Rollout:
    """Return the rollout as the trainer would measure it at temperature 1."""
    (logits, values, _), (ref_logits, _, _) = (
        evaluate(m, responses) for m in (trainer.policy, trainer.reference)
    )
    log_probs, ref_log_probs = (
        where(responses.mask, token_log_probs(z, responses.ids), 0.0) for z in (logits, ref_logits)
    )
    return replace(
        rollout,
        responses=responses,
        log_probs=log_probs,
        ref_log_probs=ref_log_probs,
        values=where(responses.mask, values, 0.0),
        kl=kl_k1(log_probs, ref_log_probs),
    )


# ---- bugs of the update ------------------------------------------------------------------------


class OldLogProbsRemeasured(Healthy):
    """Measure the old log-probs again before every minibatch."""

    def accumulate(self, rollout: Rollout, credit: Credit, rows: Tensor) -> Stats:
        """Accumulate over a rollout that looks freshly sampled."""
        batch = rollout[rows]
        batch = replace(batch, log_probs=remeasured(self, batch, batch.responses).log_probs)
        part = Credit(*(x[rows] for x in credit))
        return super().accumulate(batch, part, torch.arange(len(rows)))


class HeadNotClipped(Healthy):
    """Measure and clip the gradient's norm without the value head."""

    def descend(self, stats: Stats) -> Stats:
        """Clip the language model alone."""
        limit = self.config.max_grad_norm or torch.inf
        norm = nn.utils.clip_grad_norm_(self.policy.language_model.parameters(), limit)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return stats | {"grad_norm": float(norm), "stopped": 0.0}


class GradientsPileUp(Healthy):
    """Never set the gradients to zero."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.optimizer.zero_grad = lambda *_, **__: None  # type: ignore[method-assign]


class DropoutOn(Healthy):
    """Leave GPT-2's dropout of 0.1 on, in training mode."""

    def __init__(self, policy: PolicyWithValue, *args: Any, **kwargs: Any) -> None:
        super().__init__(policy, *args, **kwargs)
        for module in policy.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.1


class WhitenedReturns(Healthy):
    """Compute returns as whitened advantages + values."""

    def credit(self, rollout: Rollout) -> Credit:
        """Whiten first."""
        credit = super().credit(rollout)
        returns = where(rollout.mask, credit.whitened + rollout.values, 0.0)
        return credit._replace(returns=returns)


# ---- bugs of the rollout -----------------------------------------------------------------------


class MaskIgnored(Healthy):
    """Count every slot as a token: in log-probs, KL, values, advantages and all means."""

    def _flaw(self, rollout: Rollout) -> Rollout:
        full = replace(rollout.responses, mask=torch.ones_like(rollout.mask))
        return remeasured(self, rollout, full)


class PadForEOS(Healthy):
    """Use mask = ids != pad where pad is EOS, so a response's EOS is not part of it."""

    def _flaw(self, rollout: Rollout) -> Rollout:
        mask = rollout.mask & (rollout.responses.ids != self.tokenizer.eos_token_id)
        mask[:, 0] = True
        return remeasured(self, rollout, replace(rollout.responses, mask=mask))


class TemperatureForgotten(Healthy):
    """Sample at 0.7, but compute every log-prob at 1."""

    def collect(self, prompts: Any) -> Rollout:
        """Sample at a temperature other than the configuration's."""
        own, self.config = self.config, replace(self.config, temperature=0.7)
        try:
            return super().collect(prompts)
        finally:
            self.config = own

    def _flaw(self, rollout: Rollout) -> Rollout:
        return remeasured(self, rollout, rollout.responses)


class KLRewarded(Healthy):
    """Give the KL in the reward the wrong sign."""

    def _flaw(self, rollout: Rollout) -> Rollout:
        return replace(rollout, kl=-rollout.kl)


class ScoreOnPadding(Healthy):
    """Put the score in the last column, where only the longest responses have a token."""

    def _flaw(self, rollout: Rollout) -> Rollout:
        scores = torch.zeros(rollout.mask.shape)
        scores[:, -1] = rollout.scores
        return replace(rollout, scores=scores)


class ScoreOnEveryToken(Healthy):
    """Pay each token the whole score."""

    def _flaw(self, rollout: Rollout) -> Rollout:
        return replace(rollout, scores=rollout.scores.unsqueeze(1).expand(rollout.mask.shape))


# ---- bugs of the loss --------------------------------------------------------------------------


def mistaken(mistake: str) -> Loss:
    """Use a version from the catalogue of mistakes, with the correct statistics."""
    flawed = CATALOGUE["ppo_loss"].version([mistake])

    def loss(*args: Any, kl_loss_coef: float, **kwargs: Any) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            _, stats = ppo_loss(*args, kl_loss_coef=kl_loss_coef, **kwargs)
        return flawed(*args, kl_loss_coef=kl_loss_coef), stats

    return loss


def broadcast(
    policy: Any, batch: Rollout, a: Tensor, r: Tensor, config: PPOConfig, **kwargs: Any
) -> tuple[Tensor, dict[str, Tensor]]:
    """Multiply ratio [batch, time] by advantages [batch], which runs if batch == time.

    Token t of every response gets the advantage of response t.
    """
    by_column = a[torch.arange(batch.mask.shape[1]) % len(a)].expand_as(batch.mask)
    tokens = replace(config, advantage_level="token", value_coef=0.0)
    loss, stats = ppo_loss(policy, batch, by_column, by_column, tokens, **kwargs)
    values = evaluate(policy, batch.responses)[1][:, 0]
    value_loss = 0.5 * ((values - r) ** 2).mean()
    return loss + config.value_coef * value_loss, stats | {"value_loss": value_loss.detach()}


def attached(
    policy: Any, batch: Rollout, _: Tensor, r: Tensor, config: PPOConfig, **kwargs: Any
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute advantages from values that are not detached."""
    values = evaluate(policy, batch.responses)[1]
    advantages = whiten(where(batch.mask, r - values, 0.0), batch.mask)
    return ppo_loss(policy, batch, advantages, r, config, **kwargs)


def mean_of_means(
    policy: Any, batch: Rollout, a: Tensor, r: Tensor, config: PPOConfig, **kwargs: Any
) -> tuple[Tensor, dict[str, Tensor]]:
    """Take each micro-batch's mean, then the mean of those."""
    share = len(batch) / kwargs["n_responses"]
    loss, stats = ppo_loss(
        policy, batch, a, r, config, **(kwargs | {"n_tokens": None, "n_responses": None})
    )
    errors = {"ratio_error": stats["ratio_error"]}
    return loss * share, {name: x * share for name, x in stats.items()} | errors


class ReadsAhead(nn.Module):
    """Read token t's log-prob where the model has already seen token t."""

    def __init__(self, policy: nn.Module, responses: Responses) -> None:
        super().__init__()
        self.policy, self.responses = policy, responses

    def forward(self, tokens: Tensor, mask: Tensor, *, keep: int) -> tuple[Tensor, Tensor]:
        """Run the policy, with logits from one position later."""
        r = self.responses
        logits, values = self.policy(r.tokens, r.attention_mask, keep=r.ids.shape[1] + 1)
        return logits[:, 1:], values[:, :-1]


def shifted(
    policy: Any, batch: Rollout, *args: Any, **kwargs: Any
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the loss from log-probs that are off by one."""
    return ppo_loss(ReadsAhead(policy, batch.responses), batch, *args, **kwargs)


class OffByOne(Healthy):
    """Read every log-prob one position too late, in rollout and update."""

    @torch.no_grad()
    def _flaw(self, rollout: Rollout) -> Rollout:
        r = rollout.responses
        logits = (
            evaluate(ReadsAhead(m, r), r, end_value=False)[0] for m in (self.policy, self.reference)
        )
        log_probs, ref_log_probs = (where(r.mask, token_log_probs(z, r.ids), 0.0) for z in logits)
        kl = kl_k1(log_probs, ref_log_probs)
        return replace(rollout, log_probs=log_probs, ref_log_probs=ref_log_probs, kl=kl)


# ---- the zoo -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bug:
    """A trainer with one part replaced."""

    kind: type[Healthy] = Healthy
    config: dict[str, Any] = field(default_factory=dict)
    loss: Loss = ppo_loss
    measures_wrong: bool = False


RESPONSES = {"advantage_level": "sequence", "value_clip_range": None}
BONUS, IN_LOSS = {"entropy_coef": 0.01}, {"kl_coef": 0.0, "kl_loss_coef": 0.05}
CASES = {
    "healthy": Bug(),
    "log-probs once": Bug(loss=mistaken("ratio detached")),
    "old log-probs anew": Bug(OldLogProbsRemeasured),  # codespell:ignore anew
    "values once": Bug(loss=mistaken("values of the rollout")),
    "ratio to reference": Bug(config={"ratio_to": "reference"}),
    "KL rewarded": Bug(KLRewarded),
    "mask ignored": Bug(MaskIgnored),
    "pad for EOS": Bug(PadForEOS),
    "dropout on": Bug(DropoutOn),
    "off by one": Bug(OffByOne, loss=shifted),
    "reference renewed 1": Bug(config={"reference_update_every": 1}, measures_wrong=True),
    "reference renewed 4": Bug(config={"reference_update_every": 4}, measures_wrong=True),
    "score on padding": Bug(ScoreOnPadding),
    "entropy summed": Bug(config=BONUS, loss=mistaken("entropy summed")),
    "score on every token": Bug(ScoreOnEveryToken),
    "whitened returns": Bug(WhitenedReturns),
    "gradients pile up": Bug(GradientsPileUp),
    "head not clipped": Bug(HeadNotClipped),
    "temperature forgotten": Bug(TemperatureForgotten, measures_wrong=True),
    "temperature 0.7": Bug(config={"temperature": 0.7}, measures_wrong=True),
    "KL of the sketch": Bug(config=IN_LOSS, loss=mistaken("the printed sketch's KL")),
    "KL in loss": Bug(config=IN_LOSS),
    "broadcast": Bug(config=RESPONSES, loss=broadcast),
    "response advantages": Bug(config=RESPONSES),
    "entropy of sampled": Bug(config=BONUS, loss=mistaken("entropy of the sampled tokens")),
    "mean of means": Bug(config={"micro_batch_size": 4}, loss=mean_of_means),
    "advantages attached": Bug(loss=attached),
    "entropy bonus": Bug(config=BONUS),
}


def run(bug: str, seed: int) -> Row:
    """Train with a bug; return its curves, the truth and the trained policy's responses."""
    made = CASES[bug]
    config = replace(CONFIG, **(made.config | {"seed": seed}))
    policy, tokenizer = load_policy("tiny-gpt2-sft")
    score, stopped = load_score("tiny-gpt2-reward", tokenizer), None
    trainer = made.kind(policy, frozen_copy(policy), score, tokenizer, config)
    trainer.measures_wrong, trainer.loss_function = made.measures_wrong, made.loss
    torch.manual_seed(seed)  # for dropout
    try:
        trainer.train(load_prompts("prompts-train"), STEPS, progress=False)
    except FloatingPointError:
        stopped = len(trainer.history) + 1
    end = judged(policy, trainer.first, tokenizer, score, samples=2)
    kept = ("gold", "proxy", "kl", "length", "ended", "distinct", "repeated")
    return {
        "curves": curves(trainer, *LOGGED),
        "truth": {name: [stats[name] for stats in trainer.truth] for name in trainer.truth[0]},
        "end": {name: end[name] for name in kept},
        "stopped": stopped,
    }


def main(path: Path) -> None:
    """Run five seeds of each, the first cases first."""
    make_rows(path, ({"bug": bug, "seed": seed} for bug in CASES for seed in SEEDS), run)
