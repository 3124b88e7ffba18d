"""Stage 2: from preference pairs to a reward model."""

from jaxtyping import Float
from torch import Tensor, nn

from minippo._validate import checked, fail
from minippo.losses import bradley_terry_loss
from minippo.models import RewardModel
from minippo.responses import Responses
from minippo.sft import FitConfig, fit


def train_reward_model(
    model: RewardModel, chosen: Responses, rejected: Responses, config: FitConfig
) -> list[float]:
    """Train each pair's chosen response to score higher; return the loss of each step.

    Row i of `chosen` and row i of `rejected` answer the same prompt.
    """
    if len(chosen) != len(rejected):
        must = f"match the number of chosen responses ({len(chosen)})"
        fail("train_reward_model", "rejected", must, len(rejected))

    def loss(model: nn.Module, rows: Tensor) -> Tensor:
        device = next(model.parameters()).device
        pair = [side[rows].trim().to(device) for side in (chosen, rejected)]
        return bradley_terry_loss(*(model(r.tokens, r.attention_mask) for r in pair)).mean()

    return fit(model, len(chosen), loss, config, name="reward model")


@checked
def preference_accuracy(
    chosen: Float[Tensor, " pairs"], rejected: Float[Tensor, " pairs"]
) -> Float[Tensor, ""]:
    """The share of pairs whose chosen response scores higher; a tie counts one half.

    >>> import torch
    >>> preference_accuracy(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 2.0]))
    tensor(0.7500)
    """
    return (chosen > rejected).float().mean() + 0.5 * (chosen == rejected).float().mean()
