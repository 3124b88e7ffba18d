"""From a model's scores (logits) to log-probabilities and entropy, in nats."""

from jaxtyping import Bool, Float, Int
from torch import Tensor, where

from minippo._validate import check_number, check_response_mask, check_tokens, checked


@checked
def token_log_probs(
    logits: Float[Tensor, "batch time vocab"],
    tokens: Int[Tensor, "batch time"],
    *,
    temperature: float = 1.0,
) -> Float[Tensor, "batch time"]:
    """log p(token) = z[token] - logsumexp(z), with z = logits / temperature.

    Logits and tokens are already aligned: `logits[:, t]` predicts `tokens[:, t]`; the shift by
    one position happened before (`rollout.evaluate`). Pass the sampling temperature: several
    libraries sample at one temperature and take log-probs at 1, and so train a different policy
    from the one that acted. In nats, never above 0. Half precision is upcast to float32.

    >>> import torch
    >>> logits = torch.log(torch.tensor([[[0.2, 0.3, 0.5]]]))
    >>> token_log_probs(logits, torch.tensor([[2]])).exp()
    tensor([[0.5000]])
    """
    check_number("token_log_probs", 0, above=True, temperature=temperature)
    check_tokens("token_log_probs", tokens, logits.shape[-1])
    log_p = _tempered(logits, temperature).log_softmax(-1)
    return log_p.gather(-1, tokens.long().unsqueeze(-1)).squeeze(-1)


@checked
def sequence_log_prob(
    log_probs: Float[Tensor, "batch time"], mask: Bool[Tensor, "batch time"]
) -> Float[Tensor, " batch"]:
    """log p(response | prompt): the sum over a response's real tokens, in nats.

    >>> import torch
    >>> log_probs = torch.tensor([[-1.0, -2.0, -9.0]])
    >>> sequence_log_prob(log_probs, torch.tensor([[True, True, False]]))
    tensor([-3.])
    """
    check_response_mask("sequence_log_prob", mask)
    return where(mask, log_probs, 0.0).sum(1)


@checked
def entropy(
    logits: Float[Tensor, "*shape vocab"], *, temperature: float = 1.0
) -> Float[Tensor, "*shape"]:
    """H = -sum over the vocabulary of p log p, in nats: 0 (certain) to log(vocab) (uniform).

    Taken over the whole vocabulary: -p log p summed over *sampled* tokens, as often printed, is a
    different quantity (0.346 for the 1.030 below), and -mean(log p) of sampled tokens has the right
    mean but a gradient of zero mean. Correct, in value and gradient, where a logit is -inf.

    >>> import torch
    >>> entropy(torch.log(torch.tensor([0.2, 0.3, 0.5])))
    tensor(1.0297)
    """
    check_number("entropy", 0, above=True, temperature=temperature)
    log_p = _tempered(logits, temperature).log_softmax(-1)
    # 0 log 0 = 0: a token that was ruled out has log p = -inf, and 0 * -inf would be NaN. Below
    # -1,000 exp is 0 even in float64, so the bound changes no number.
    return -(log_p.exp() * log_p.clamp_min(-1000.0)).sum(-1)


def _tempered(logits: Tensor, temperature: float) -> Tensor:
    """logits / temperature; at 1 the logits themselves, because copying them is expensive."""
    return logits if temperature == 1 else logits / temperature
