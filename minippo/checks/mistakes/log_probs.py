"""Mistakes about log-probabilities and entropy."""

import torch
from torch import Tensor, where

from minippo.checks.mistakes import flawed

HALF = "stays in half precision"
CUT = "gradient cut"
EPSILON = "1e-8 added to p"


def _wide(x: Tensor, flags: frozenset[str]) -> Tensor:
    return x if HALF in flags else x.float() if x.dtype.itemsize < 4 else x


def _cut(x: Tensor, flags: frozenset[str]) -> Tensor:
    return x.detach() if CUT in flags else x


@flawed(
    "likeliest token", "probabilities not added up", "one token too early", "sorted first",
    "boundary to the token before", "beyond the last token",
)  # fmt: skip
def sample_tokens(flags: frozenset[str], probabilities: Tensor, darts: Tensor) -> Tensor:
    """Count the stretches that end at or before the dart."""
    p = probabilities.cpu().double()
    if "likeliest token" in flags:
        return p.argmax(-1)
    p = p.sort(-1, descending=True).values if "sorted first" in flags else p
    ends = p if "probabilities not added up" in flags else p.cumsum(-1)
    total = 1.0 if "beyond the last token" in flags else p.sum(-1, keepdim=True)
    darts = darts.unsqueeze(-1) * total
    passed = ends < darts if "boundary to the token before" in flags else ends <= darts
    return passed.sum(-1) - int("one token too early" in flags)


@flawed(
    "temperature forgotten", "temperature multiplies", "probability instead of its logarithm",
    "logit instead of log-probability", "shifted by one", "shifted twice",
    "shifted twice, padded in front", "shifted twice, padded at the end",
    "shifted twice, rolled", "shifted twice, rows rolled", "shifted back",
    "softmax over the wrong axis", "sign turned", "log of softmax", "probability clamped", HALF,
    CUT,
)  # fmt: skip
def token_log_probs(
    flags: frozenset[str], logits: Tensor, tokens: Tensor, *, temperature: float = 1.0
) -> Tensor:
    """Log-softmax over the vocabulary at the token."""
    z = _wide(logits, flags)
    if "temperature multiplies" in flags:
        z = z * temperature
    elif "temperature forgotten" not in flags:
        z = z / temperature
    dim = 1 if "softmax over the wrong axis" in flags else -1
    log_p = z.log_softmax(dim)
    if "log of softmax" in flags:
        log_p = z.softmax(dim).log()
    if "probability clamped" in flags:
        log_p = z.softmax(dim).clamp(min=1e-8).log()
    if "logit instead of log-probability" in flags:
        log_p = z
    if "shifted by one" in flags:
        tokens = torch.cat([tokens[:, 1:], tokens[:, -1:]], 1)
    found = log_p.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    if "probability instead of its logarithm" in flags:
        found = found.exp()
    if moved := [flag for flag in flags if flag.startswith(("shifted twice", "shifted back"))]:
        found = _moved(moved[0], log_p, tokens)
    return _cut(-found if "sign turned" in flags else found, flags)


def _moved(how: str, log_p: Tensor, tokens: Tensor) -> Tensor:
    """Pair each row with the token of another column, as if they did not come aligned."""
    step = -1 if how.startswith("shifted twice") else 1
    found = log_p.gather(-1, tokens.roll(step, 1).unsqueeze(-1)).squeeze(-1)
    if how.endswith("rolled"):
        return found.roll(1, 1) if "rows" in how else found
    found = found[:, :-1] if step < 0 else found[:, 1:]
    pad = {"front": (1, 0), "end": (0, 1)}.get(how.split()[-1], (0, 0))
    return torch.nn.functional.pad(found, pad)


@flawed("mean instead of sum", "padding counted", "mask multiplied", "EOS left out")
def sequence_log_prob(flags: frozenset[str], log_probs: Tensor, mask: Tensor) -> Tensor:
    """Sum over each row's real tokens."""
    if "EOS left out" in flags:
        last = mask.sum(1, keepdim=True) - 1
        mask = mask.scatter(1, last, False)
    if "padding counted" in flags:
        total = log_probs.sum(1)
    elif "mask multiplied" in flags:
        total = (log_probs * mask).sum(1)
    else:
        total = where(mask, log_probs, 0.0).sum(1)
    return total / mask.sum(1) if "mean instead of sum" in flags else total


@flawed(
    "sign turned", "p counted twice", "temperature forgotten", "mean over the vocabulary",
    "in bits", "0 log 0 is NaN", EPSILON, "no gradient", HALF,
)  # fmt: skip
def entropy(flags: frozenset[str], logits: Tensor, *, temperature: float = 1.0) -> Tensor:
    """-sum of p log p over the vocabulary."""
    z = _wide(logits, flags)
    z = z if "temperature forgotten" in flags else z / temperature
    log_p, p = z.log_softmax(-1), z.softmax(-1)
    if "0 log 0 is NaN" not in flags:
        log_p = where(p > 0, log_p, 0.0)
    log_p = (p + 1e-8).log() if EPSILON in flags else log_p
    p = p.detach() if "no gradient" in flags else p
    terms = -p * log_p * (p if "p counted twice" in flags else 1.0)
    total = terms.mean(-1) if "mean over the vocabulary" in flags else terms.sum(-1)
    total = total / torch.log(torch.tensor(2.0)) if "in bits" in flags else total
    return -total if "sign turned" in flags else total
