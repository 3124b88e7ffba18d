"""Averages over real tokens: the only place that reduces over a mask.

`where(mask, x, 0)` and never `x * mask`: NaN times 0 is NaN, so junk in the padding would leak.
"""

from jaxtyping import Bool, Float
from torch import Tensor, inf, where

from minippo._validate import check_mask, check_response_mask, checked, varies


@checked
def masked_mean(x: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """sum(x over real tokens) / number of real tokens.

    Every real token has the same weight. The mean over responses of each response's mean is a
    different number: for [[1, 1, 1, 1], [3]] it is 2.0, not 1.4.

    >>> import torch
    >>> x = torch.tensor([[1.0, 1.0, 1.0, 1.0], [3.0, 9.0, 9.0, 9.0]])
    >>> masked_mean(x, torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0]]).bool())
    tensor(1.4000)
    """
    check_mask("masked_mean", mask)
    return where(mask, x, 0.0).sum() / mask.sum()


@checked
def response_mean(
    x: Float[Tensor, "batch time"], mask: Bool[Tensor, "batch time"]
) -> Float[Tensor, " batch"]:
    """The mean over each response's real tokens: every response has the same weight.

    As a loss, the mean of these is the policy gradient of another reward, A / length.

    >>> import torch
    >>> x = torch.tensor([[1.0, 1.0, 1.0, 1.0], [3.0, 9.0, 9.0, 9.0]])
    >>> response_mean(x, torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0]]).bool())
    tensor([1., 3.])
    """
    check_response_mask("response_mean", mask)
    return where(mask, x, 0.0).sum(1) / mask.sum(1)


@checked
def masked_var(x: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"]) -> Float[Tensor, ""]:
    """Population variance over the real tokens: divided by n, not by n - 1 (Bessel's correction).

    >>> import torch
    >>> masked_var(torch.tensor([1.0, 3.0, 99.0]), torch.tensor([True, True, False]))
    tensor(1.)
    """
    check_mask("masked_var", mask)
    x = where(mask, x, 0.0)  # before the arithmetic: NaN would come back as a gradient
    return masked_mean((x - masked_mean(x, mask)) ** 2, mask)


@checked
def whiten(
    x: Float[Tensor, "*shape"], mask: Bool[Tensor, "*shape"], *, keep_mean: bool = False
) -> Float[Tensor, "*shape"]:
    """(x - mean) / sqrt(variance + 1e-8) over the real tokens; zero on padding.

    `keep_mean=True` adds the mean back, so that only the scale changes. Population variance, as
    in lm-human-preferences; TRL and verl divide by n - 1. Their `shift_mean` removes the mean,
    torchtune's adds it back. Equal numbers (up to rounding) have no scale: they give 0, or their
    mean. A single number is left as it is. Whiten a whole rollout once, not each minibatch.

    >>> import torch
    >>> x = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 0.0]])
    >>> whiten(x, torch.tensor([[True, True, True], [True, True, False]]))
    tensor([[-1.4142, -0.7071,  0.0000],
            [ 0.7071,  1.4142,  0.0000]])
    """
    check_mask("whiten", mask)
    x = where(mask, x, 0.0)
    mean, scale = masked_mean(x, mask), (masked_var(x, mask) + 1e-8).rsqrt()
    scale = scale * varies(where(mask, x, inf).min(), where(mask, x, -inf).max())
    white = (x - mean) * scale + (mean if keep_mean else 0.0)
    return where(mask, where(mask.sum() == 1, x, white), 0.0)
