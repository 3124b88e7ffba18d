"""A tiny policy and its tokenizer, made in milliseconds: what the trainer's tests run on."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

from minippo.models import PolicyWithValue, RewardModel, frozen_copy
from minippo.ppo import PPOConfig
from minippo.rollout import Responses, Rollout, Score, collect, encode_prompts
from minippo.trainer import Callback, PPOTrainer

WORDS = ["<|endoftext|>", "a", "b", "c", "d", "e", "f", "good", "bad", "fine", "so", "very"]
EOS = 0


def tokenizer(words: Sequence[str] = WORDS) -> PreTrainedTokenizerFast:
    """One token per word; EOS is also begin-of-text, and there is no padding token, as in GPT-2."""
    made = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="a"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token=words[0], bos_token=words[0])


def config(**changes: object) -> GPT2Config:
    sizes = {"vocab_size": len(WORDS), "n_positions": 48, "n_embd": 16, "n_layer": 2, "n_head": 2}
    return GPT2Config(**(sizes | {"bos_token_id": EOS, "eos_token_id": EOS} | changes))


def language_model(seed: int = 0, **changes: object) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    model = GPT2LMHeadModel(config(**changes)).eval()
    # Larger weights than the initial 0.02: the next token must depend on the text.
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 2:
                p.mul_(8)
    return model


def policy(seed: int = 0, **changes: object) -> PolicyWithValue:
    return PolicyWithValue(language_model(seed, **changes)).eval()


def save(folder: Path) -> Path:
    """A local folder with a tiny GPT-2 and its tokenizer."""
    language_model().save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def reward_model(seed: int = 1) -> RewardModel:
    torch.manual_seed(seed)
    return RewardModel(GPT2ForSequenceClassification(config(num_labels=1))).eval()


PROMPTS = ["a b", "c", "d e f", "b b b a", "f", "e d"]
GOOD = WORDS.index("good")


def good_count(responses: Responses) -> Tensor:
    """The score of the trainer's tests: how often a response says "good"."""
    return (responses.mask & (responses.ids == GOOD)).sum(1).float()


def shallow(seed: int = 0) -> PolicyWithValue:
    """One layer: the trainer's tests do not look inside, and half the time is enough for them."""
    return policy(seed, n_layer=1)


SMALL = {"rollout_size": 6, "minibatch_size": 6, "max_new_tokens": 6, "epochs": 2}


def trainer(
    *,
    policy: PolicyWithValue | None = None,
    reference: PolicyWithValue | None = None,
    score: Score = good_count,
    make: Callable[..., PPOConfig] = PPOConfig,
    kind: type[PPOTrainer] = PPOTrainer,
    callbacks: Sequence[Callback] = (),
    log_with: str | None = None,
    log_dir: str | Path = "runs",
    **changes: object,
) -> PPOTrainer:
    """A trainer of a tiny policy whose reference is that policy; `changes` are the config's."""
    policy = shallow() if policy is None else policy
    return kind(
        policy,
        frozen_copy(policy) if reference is None else reference,
        score,
        tokenizer(),
        make(**(SMALL | changes)),
        callbacks=callbacks,
        log_with=log_with,
        log_dir=log_dir,
    )


SEQUENCE = {"advantage_level": "sequence"}
BANDIT = SEQUENCE | {"ratio_level": "sequence"}
FAST = {"learning_rate": 0.01, "minibatch_size": 3}  # far enough to see, two minibatches per epoch


def run(n_steps: int = 3, *, trainer: PPOTrainer | None = None, **changes: Any) -> PPOTrainer:
    """A trainer of `spread` after some steps."""
    made = globals()["trainer"](score=spread, **changes) if trainer is None else trainer
    made.train(PROMPTS, n_steps, progress=False)
    return made


def difference(one: PPOTrainer, other: PPOTrainer) -> float:
    """The largest difference between two trainers' weights."""
    pairs = zip(one.policy.parameters(), other.policy.parameters(), strict=True)
    return max((a - b).abs().max().item() for a, b in pairs)


def weights(module: nn.Module) -> dict[str, Tensor]:
    """A copy of the weights, to be compared with later ones."""
    return {name: x.detach().clone() for name, x in module.state_dict().items()}


# Where a test moves so far on purpose that a user would be warned.
too_fast = pytest.mark.filterwarnings("ignore:PPOTrainer. the first update")
# Where a test trains against another model on purpose.
another_reference = pytest.mark.filterwarnings("ignore:PPOTrainer. policy and reference differ")


def spread(responses: Responses) -> Tensor:
    """A score that differs from response to response: the mean of the token ids."""
    mask = responses.mask
    return torch.where(mask, responses.ids, 0).sum(1).float() / mask.sum(1)


def collected(
    policy: PolicyWithValue, reference: PolicyWithValue, score: Score = spread, **options: Any
) -> Rollout:
    """A rollout of twelve rows, each prompt twice."""
    ids, mask = encode_prompts(tokenizer(), PROMPTS * 2)
    defaults = {"max_new_tokens": 8, "eos_token_id": EOS, "uniforms": torch.rand(12, 8)}
    return collect(policy, reference, score, ids, mask, **(defaults | options))


class Table(nn.Module):
    """A policy without a network: its logits and values are its parameters.

    The last token of the prompt is the number of the row; logits[row, t] are those of the state
    before token t, so that what a loss does to them can be worked out by hand.
    """

    def __init__(self, logits: Tensor, values: Tensor) -> None:
        super().__init__()
        self.logits, self.values = nn.Parameter(logits), nn.Parameter(values)

    def forward(self, tokens: Tensor, attention_mask: Tensor, *, keep: int) -> tuple[Tensor, ...]:
        """Prompt and response of these rows, whose time is keep - 1."""
        rows = tokens[:, tokens.shape[1] - keep]
        return self.logits[rows, :keep], self.values[rows, :keep]
