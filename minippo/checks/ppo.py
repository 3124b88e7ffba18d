"""Checks of the whole loss and the whole update. Loads transformers, unlike the other checks."""

from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn, where, zeros_like

from minippo.checks import definitions
from minippo.checks.definitions import leaves as flat
from minippo.checks.engine.cases import Case, Draw, Nested, settings
from minippo.checks.engine.check import Check
from minippo.checks.engine.describe import Region
from minippo.checks.engine.observe import is_a_stub
from minippo.checks.update import ppo_update as reference_update
from minippo.ppo import PPOConfig
from minippo.ppo import ppo_loss as reference_loss
from minippo.responses import Responses, Rollout
from minippo.responses import response_mask as reference_mask


def _mask_cases(draw: Draw) -> Iterator[Case]:
    eos = draw.vocab - 1
    for _ in range(2):
        yield draw.case(ids=draw.tokens(), eos_token_id=eos)
    padded = [
        [0 if real else eos for real in row[1:]] + [eos] for row in draw.mask
    ]  # pad == eos, as for GPT-2
    yield draw.case("padded with EOS", ids=padded, eos_token_id=eos)
    never = [[0] * draw.time for _ in range(draw.batch)]
    yield draw.case("without EOS", ids=never, eos_token_id=eos)


response_mask = Check(
    reference=reference_mask, definition=definitions.response_mask, cases=_mask_cases
)


class TablePolicy(nn.Module):
    """A policy with one row per prompt: prompt i has the logits and values of row i.

    It is called like `PolicyWithValue`, and its gradients can be inspected number by number.
    """

    def __init__(self, logits: Tensor, values: Tensor, *, learn: bool = False) -> None:
        super().__init__()
        wrap: Callable[[Tensor], Tensor] = nn.Parameter if learn else (lambda x: x)
        self.logits, self.values = wrap(logits), wrap(values)

    def forward(
        self, tokens: Tensor, attention_mask: Tensor | None, *, keep: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Logits and values of the last `keep` tokens; the prompt is one token."""
        rows, given = tokens[:, 0], tokens.shape[1]
        start = 0 if keep is None else given - keep
        logits, values = self.logits[rows], self.values[rows]
        return (
            torch.cat([logits, zeros_like(logits[:, :1])], 1)[:, start:given],
            torch.cat([values, zeros_like(values[:, :1])], 1)[:, start:given],
        )


CONFIG = ("clip_range", "value_coef", "value_clip_range", "entropy_coef", "temperature")
UPDATE = ("kl_coef", "gamma", "lam", "epochs", "max_grad_norm")


def _rollout(inputs: dict[str, Any], **more: Tensor) -> Rollout:
    mask, ids = inputs["mask"], inputs["tokens"]
    prompts = torch.arange(len(ids)).unsqueeze(1)
    zeros = torch.zeros(mask.shape)
    fields = {
        "log_probs": inputs["log_probs"],
        "ref_log_probs": inputs.get("ref_log_probs", zeros),
        "values": inputs.get("old_values", zeros),
        "scores": zeros[:, 0],
        "kl": zeros,
        "truncated": zeros[:, 0].bool(),
        "bootstrap": zeros[:, 0],
    }
    responses = Responses(prompts, torch.ones_like(prompts).bool(), ids, mask)
    return Rollout(responses, **(fields | more))


def _call_loss(function: Callable[..., Any], inputs: dict[str, Any]) -> Any:
    """Build policy, batch and configuration from a case's numbers and call the function."""
    config = PPOConfig(**{name: inputs[name] for name in CONFIG if name in inputs})
    loss = function(
        TablePolicy(inputs["logits"], inputs["values"]),
        _rollout(inputs), inputs["advantages"], inputs["returns"], config,
        kl_loss_coef=inputs["kl_loss_coef"],
    )  # fmt: skip
    return loss[0] if isinstance(loss, tuple) else loss


def _numbers(draw: Draw) -> dict[str, Nested]:
    """A policy and what it wrote a few steps ago. Rollout fields are zero on padding."""
    logits, tokens = draw.logits(), draw.tokens()
    now = definitions.token_log_probs(logits, tokens)
    plain = Draw(repr(draw.number()), (draw.batch, draw.time, draw.vocab), padding="zeros")
    plain.mask = draw.mask

    def near(x: Nested, reach: float) -> Nested:
        moved = [[y + plain.number(-reach, reach) for y in row] for row in x]
        return plain.tokens_of(moved)

    values = draw.floats(draw.batch, draw.time)
    return {
        "logits": logits, "values": values, "tokens": tokens, "mask": draw.mask,
        "log_probs": near(now, 0.6), "ref_log_probs": near(now, 0.6),
        "old_values": near(values, 0.5),
        "advantages": plain.token_floats(), "returns": plain.token_floats(),
    }  # fmt: skip


def _loss_cases(draw: Draw) -> Iterator[Case]:
    if draw.padding != "numbers":  # what a rollout holds there is 0
        return
    plain: dict[str, Any] = {
        "clip_range": 0.2, "value_coef": 0.5, "value_clip_range": 0.3, "entropy_coef": 0.1,
        "temperature": 1.0, "kl_loss_coef": 0.1,
    }  # fmt: skip
    parts = {"value loss": "value_coef", "entropy": "entropy_coef", "KL": "kl_loss_coef"}
    alone = plain | dict.fromkeys(parts.values(), 0.0)
    yield draw.case("the policy loss alone", **(_numbers(draw) | alone))
    still = {"advantages": [[0.0] * draw.time] * draw.batch}
    for name, coef in parts.items():
        numbers = _numbers(draw) | still | alone | {coef: plain[coef]}
        yield draw.case(f"the {name} alone", **numbers)
    for keywords in settings(
        plain, clip_range=0.1, value_coef=0.25, value_clip_range=None, entropy_coef=0.5,
        temperature=0.5, kl_loss_coef=0.5,
    ):  # fmt: skip
        yield draw.case(**_numbers(draw), **keywords)


@wraps(reference_loss)
def _loss_alone(*args: Any, **keywords: Any) -> Tensor:
    """minippo's loss without its statistics: what the exercise asks for."""
    return reference_loss(*args, **keywords)[0]


ppo_loss = Check(
    reference=_loss_alone,
    definition=definitions.ppo_loss,
    cases=_loss_cases,
    slopes=("logits", "values"),
    call=_call_loss,
)


def _call_update(function: Callable[..., Any], inputs: dict[str, Any]) -> Any:
    """Return all policy weights after the update, using plain gradient descent."""
    policy = TablePolicy(inputs["logits"].clone(), inputs["values"].clone(), learn=True)
    numbers = {name: inputs[name] for name in UPDATE}
    n = len(inputs["tokens"])
    config = PPOConfig(rollout_size=n, minibatch_size=n, value_coef=0.5, **numbers)
    before = where(inputs["mask"], inputs["values"], 0.0)
    rollout = _rollout(inputs | {"old_values": before}, scores=inputs["scores"], kl=inputs["kl"])
    optimizer = torch.optim.SGD(policy.parameters(), lr=inputs["learning_rate"])
    with torch.enable_grad():
        if function(policy, optimizer, rollout, config) is ... or is_a_stub(function):
            return ...
    return torch.cat([p.detach().reshape(-1) for p in policy.parameters()])


def _weights(*, values: bool) -> Region:
    """The updated weights of the logits, or those of the values; clipping mixes both."""

    def region(inputs: dict[str, Nested]) -> Nested:
        if inputs["max_grad_norm"] < 100:
            raise KeyError
        n = [len(flat(inputs[name])) for name in ("logits", "values")]
        return [not values] * n[0] + [values] * n[1]

    return region


def _update_cases(draw: Draw) -> Iterator[Case]:
    if draw.padding != "numbers" or draw.batch * draw.time * draw.vocab > 40 or draw.batch == 1:
        return
    plain = {"kl_coef": 0.3, "gamma": 1.0, "lam": 0.95, "epochs": 1, "max_grad_norm": 100.0}
    for keywords in settings(plain, kl_coef=0.1, gamma=0.9, lam=0.5, epochs=3, max_grad_norm=0.25):
        numbers = _numbers(draw)
        now = definitions.token_log_probs(numbers["logits"], numbers["tokens"])
        numbers["log_probs"] = [
            [x if m else 0.0 for x, m in zip(*pair, strict=True)]
            for pair in zip(now, draw.mask, strict=True)
        ]
        inputs = {
            name: numbers[name] for name in ("logits", "values", "tokens", "mask", "log_probs")
        }
        inputs |= {"kl": numbers["advantages"], "scores": draw.floats(draw.batch)}
        yield draw.case(**inputs, **keywords, learning_rate=0.5)


ppo_update = Check(
    reference=reference_update,
    definition=definitions.ppo_update,
    cases=_update_cases,
    call=_call_update,
    regions={
        "in the logits: look at the policy's loss": _weights(values=False),
        "in the values: look at the value loss": _weights(values=True),
    },
)
