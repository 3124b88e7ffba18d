"""A tiny policy and its tokenizer, made in milliseconds: what the trainer's tests run on."""

import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
)

from minippo.models import PolicyWithValue, RewardModel

WORDS = ["<|endoftext|>", "a", "b", "c", "d", "e", "f", "good", "bad", "fine", "so", "very"]
EOS = 0


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a word; EOS is also begin-of-text, and there is no padding token, as in GPT-2."""
    made = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="a"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token=WORDS[0], bos_token=WORDS[0])


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


def reward_model(seed: int = 1) -> RewardModel:
    torch.manual_seed(seed)
    return RewardModel(GPT2ForSequenceClassification(config(num_labels=1))).eval()


PROMPTS = ["a b", "c", "d e f", "b b b a", "f", "e d"]
