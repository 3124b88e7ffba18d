"""Mistakes about log-probabilities and entropy."""

import torch
from torch import Tensor, where

from minippo.misconceptions import Misconception, flawed

HALF = Misconception(
    "stays in half precision",
    "bfloat16 inputs were never turned into float32, so the result has 8 bits.",
    "Which dtype does a logarithm or a long sum need, and which one came in?",
    "Half-precision log-probs are off by up to a hundredth, so the ratio is not 1 where nothing "
    "has changed.",
    "transformers #31267, verl #6280",
)
CUT = Misconception(
    "gradient cut",
    "The result is detached from the graph: its value is right, its gradient is gone.",
    "Look for detach, no_grad, item, numpy or a new torch.tensor.",
    "Nothing is learned from it.",
    "ARENA 2.3 and 2.4: the course's tests let it through",
)


def _wide(x: Tensor, flags: frozenset[str]) -> Tensor:
    return x if HALF.name in flags else x.float() if x.dtype.itemsize < 4 else x


def _cut(x: Tensor, flags: frozenset[str]) -> Tensor:
    return x.detach() if CUT.name in flags else x


@flawed(
    Misconception(
        "temperature forgotten",
        "The logits were not divided by the temperature that sampled.",
        "Of which distribution was the token drawn?",
        "At temperature 0.7 another policy is optimised than the one that acted.",
        "ARENA, rlhf-book, minimind, trlX, legacy TRL",
        "Leave the temperature out: always take log-probs of the raw logits.",
    ),
    Misconception(
        "temperature multiplies",
        "The logits were multiplied by the temperature.",
        "Should a high temperature make the distribution flatter or sharper?",
    ),
    Misconception(
        "probability instead of its logarithm",
        "The probabilities of the tokens were returned.",
        "Log-probs are never above 0. Are yours?",
    ),
    Misconception(
        "logit instead of log-probability",
        "The raw logit of the token was returned, without the normalisation over the vocabulary.",
        "Logits plus a constant are the same distribution. Does your result change with it?",
    ),
    Misconception(
        "shifted by one",
        "Position t was scored with token t + 1, though logits and tokens are aligned already.",
        "Which column of the tokens do the logits of column t predict here?",
        source="trlx #509; everyone, once",
    ),
    Misconception(
        "softmax over the wrong axis",
        "The softmax runs over the time axis and not over the vocabulary.",
        "Which numbers must add up to 1?",
    ),
    Misconception(
        "sign turned",
        "The surprise -log p was returned.",
        "Is a log-probability above or below 0?",
        convention="Return the surprise, -log p, in nats, and not log p.",
    ),
    Misconception(
        "log of softmax",
        "softmax first and the logarithm afterwards: small probabilities become 0 and their log "
        "-inf.",
        "torch has one function for both steps, and it never leaves the log world.",
        "One token far from the others gives -inf, and the loss is NaN from then on.",
        "ARENA 2.4: the course's test lets it through",
    ),
    Misconception(
        "probability clamped",
        "The probability was clamped at 1e-8 before the logarithm, to avoid -inf.",
        "What is the log-prob of a token with probability 1e-20, and what is yours?",
        "Below the clamp the gradient is zero: what is very unlikely can never be mended.",
    ),
    HALF,
    CUT,
)
def token_log_probs(
    flags: frozenset[str], logits: Tensor, tokens: Tensor, *, temperature: float = 1.0
) -> Tensor:
    """The log-softmax over the vocabulary, read at the token."""
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
    return _cut(-found if "sign turned" in flags else found, flags)


@flawed(
    Misconception(
        "mean instead of sum",
        "The log-probs of a response were averaged over its tokens.",
        "The probability of a text is the product of its tokens' probabilities.",
        convention="Return the mean over the real tokens, not their sum (length-normalised).",
    ),
    Misconception(
        "padding counted",
        "The sum runs over the padding, too.",
        "What does the mask say?",
        "Short responses get the log-probs of tokens that nobody sampled.",
    ),
    Misconception(
        "mask multiplied",
        "x * mask was used: NaN times 0 is NaN.",
        "Is there a way to choose between two numbers without multiplying them?",
    ),
    Misconception(
        "EOS left out",
        "The last real token, EOS, was not counted.",
        "Did the model choose to stop?",
        source="masks built as tokens != pad where pad == eos: LLaMA-Factory #2382",
        convention="Leave the last real token (EOS) out of the sum.",
    ),
)
def sequence_log_prob(flags: frozenset[str], log_probs: Tensor, mask: Tensor) -> Tensor:
    """The sum over each row's real tokens."""
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
    Misconception(
        "sign turned",
        "The sum of p log p was returned, which is below 0.",
        "Is entropy positive or negative?",
        "The bonus punishes diversity: the policy collapses sooner.",
        "ARENA 2.4: the course's first test lets it through",
    ),
    Misconception(
        "p counted twice",
        "The terms p log p were weighted by p once more.",
        "p log p already holds the weight. Compare with log 2 for two equal logits.",
        "For (0.2, 0.3, 0.5) it gives 0.346 nats where the entropy is 1.030.",
        "the usual printed sketch: -sum(exp(logp) * logp) over sampled tokens",
    ),
    Misconception(
        "temperature forgotten",
        "The logits were not divided by the temperature.",
        "Whose entropy is asked for: the model's at temperature 1, or the sampling policy's?",
    ),
    Misconception(
        "mean over the vocabulary",
        "The terms were averaged over the vocabulary and not added up.",
        "What should the entropy of two equal logits be?",
    ),
    Misconception(
        "in bits",
        "The logarithm has base 2.",
        "minippo measures in nats.",
        convention="Measure the entropy in bits (base 2), not in nats.",
    ),
    Misconception(
        "0 log 0 is NaN",
        "A token that was ruled out has p = 0 and log p = -inf; their product is NaN.",
        "What is the limit of p log p as p goes to 0, and what does torch say?",
        "One forbidden token turns the whole loss into NaN.",
    ),
    Misconception(
        "no gradient",
        "The value is right and the gradient zero: the result is detached, or its weights p are.",
        "Which of the two factors of p log p depends on the logits?",
        "The bonus does nothing: the sum of p times the gradient of log p is 0.",
        "ARENA 2.4: the course's tests let it through",
    ),
    HALF,
)
def entropy(flags: frozenset[str], logits: Tensor, *, temperature: float = 1.0) -> Tensor:
    """-sum of p log p over the vocabulary."""
    z = _wide(logits, flags)
    z = z if "temperature forgotten" in flags else z / temperature
    log_p, p = z.log_softmax(-1), z.softmax(-1)
    if "0 log 0 is NaN" not in flags:
        log_p = where(p > 0, log_p, 0.0)
    p = p.detach() if "no gradient" in flags else p
    terms = -p * log_p * (p if "p counted twice" in flags else 1.0)
    total = terms.mean(-1) if "mean over the vocabulary" in flags else terms.sum(-1)
    total = total / torch.log(torch.tensor(2.0)) if "in bits" in flags else total
    return -total if "sign turned" in flags else total
