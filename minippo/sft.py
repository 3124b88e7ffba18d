"""Stage 1: supervised fine-tuning, and a loop that trains any model on rows of data."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm.auto import tqdm

from minippo._validate import bounded, check_fields, fail
from minippo.losses import sft_loss
from minippo.models import PolicyWithValue, rate_by_size
from minippo.responses import Responses
from minippo.rollout import evaluate


@dataclass(frozen=True)
class FitConfig:
    """Settings for training on fixed rows. Learning rate: warm-up, then linear to zero."""

    epochs: int = bounded(1, low=1)
    """Passes over the rows."""
    minibatch_size: int = bounded(64, low=1)
    """Rows per step."""
    learning_rate: float | None = bounded(None, above=True)
    """The peak. None: by the model's size (`models.rate_by_size`), 1e-3 for the shipped 1 M models,
    4.7e-5 for 124 M (lm-human-preferences: 5e-5 for the 124 M reward model)."""
    warmup_steps: int = bounded(20)
    """Steps from 0 to the peak."""
    max_grad_norm: float = bounded(1.0, above=True)
    """The gradient is scaled down to this norm."""
    weight_decay: float = bounded(0.01)
    """AdamW's weight decay."""
    mixed_precision: Literal["no", "bf16"] = "no"
    """"bf16" computes the forward pass in bfloat16."""
    seed: int = bounded(0)
    """Seed of the order of rows."""

    def __post_init__(self) -> None:
        check_fields(self)


def make_accelerator(**options: Any) -> Accelerator:
    """Make an Accelerator that leaves precision to `autocast`.

    accelerate keeps the precision in a global, so a second trainer would get the first one's.
    """
    return Accelerator(mixed_precision="no", **options)


def autocast(device: torch.device, mixed_precision: str) -> torch.autocast:
    """Run forward passes in bfloat16 with "bf16"; change nothing with "no"."""
    return torch.autocast(device.type, torch.bfloat16, enabled=mixed_precision == "bf16")


def learning_weights(caller: str, model: nn.Module) -> list[nn.Parameter]:
    """The weights that learn; in half precision they would not hear a learning rate of 1e-5."""
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    for name, p in learning.items():
        if p.itemsize < 4:
            must = "learn in float32 (for speed: mixed_precision)"
            fail(caller, "the model", must, f"{p.dtype} for {name}")
    return [*learning.values()]


def progress_bar(*, silent: bool = False, **options: Any) -> tqdm:
    """Draw a bar. TQDM_DISABLE=1 also silences it in notebooks, where tqdm ignores it."""
    return tqdm(disable=silent or bool(os.environ.get("TQDM_DISABLE")), **options)


def fit(
    model: nn.Module,
    n_rows: int,
    loss: Callable[[nn.Module, Tensor], Tensor],
    config: FitConfig,
    *,
    name: str = "training",
) -> list[float]:
    """Minimise `loss(model, rows)` over random minibatches of row indices; return the losses."""
    if n_rows < 1:
        fail("fit", "n_rows", "be 1 or more", n_rows)
    accelerator = make_accelerator()
    rate = config.learning_rate or rate_by_size(model, at_a_million=1e-3)
    learning, decay = learning_weights("fit", model), config.weight_decay
    optimizer = torch.optim.AdamW(learning, lr=rate, weight_decay=decay)
    n_steps = config.epochs * -(-n_rows // config.minibatch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min((step + 1) / (config.warmup_steps + 1), 1) * (1 - step / n_steps),
    )
    prepared, optimizer = accelerator.prepare(model.train(), optimizer)
    generator = torch.Generator().manual_seed(config.seed)
    history: list[float] = []
    with progress_bar(total=n_steps, desc=name) as bar:
        for _ in range(config.epochs):
            for rows in torch.randperm(n_rows, generator=generator).split(config.minibatch_size):
                with autocast(accelerator.device, config.mixed_precision):
                    step_loss = loss(prepared, rows)
                accelerator.backward(step_loss)
                accelerator.clip_grad_norm_(prepared.parameters(), config.max_grad_norm)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
                history.append(step_loss.item())
                if not torch.isfinite(step_loss):
                    raise FloatingPointError(f"{name}: loss {history[-1]} at step {len(history)}")
                bar.set_postfix(loss=f"{history[-1]:.3f}", refresh=False)
                bar.update()
    accelerator.unwrap_model(prepared).eval()
    return history


def train_sft(
    policy: PolicyWithValue,
    responses: Responses,
    config: FitConfig,
    *,
    name: str = "supervised fine-tuning",
) -> list[float]:
    """Train a policy to write these responses; return the loss of each step, in nats per token.

    Only the responses' tokens are targets. If the prompts hold only the beginning of the
    text, this is ordinary language modelling.
    """

    def loss(model: nn.Module, rows: Tensor) -> Tensor:
        batch = responses[rows].trim().to(next(model.parameters()).device)
        return sft_loss(evaluate(model, batch)[0], batch.ids, batch.mask)

    return fit(policy, len(responses), loss, config, name=name)
