"""The page for those who outgrow minippo names every setting, and its costs follow its formulas."""

import re
from dataclasses import fields
from math import ceil
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from minippo.models import PolicyWithValue
from minippo.ppo import PPOConfig

PAGE = (Path(__file__).parents[2] / "docs" / "outgrow.md").read_text(encoding="utf-8")


def rows(title: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its head."""
    text = PAGE.split(f"{title}\n", 1)[1]
    table = re.search(r"^\|.*?(?=\n\n)", text, re.DOTALL | re.MULTILINE)[0]
    cut = [re.split(r"(?<!\\)\|", line)[1:-1] for line in table.splitlines()]
    assert len({len(cells) for cells in cut}) == 1
    return [[cell.strip() for cell in cells] for cells in cut[2:]]


def test_every_setting_has_a_row_and_every_row_a_setting():
    table = rows("## Every field of PPOConfig")
    named = [re.match(r"`(\w+)`", cells[0])[1] for cells in table]
    assert set(named) == {f.name for f in fields(PPOConfig)}
    assert all(all(cell for cell in cells) and len(cells) == 6 for cells in table)


GPT2 = {"GPT-2": (12, 768), "GPT-2 medium": (24, 1024), "GPT-2 large": (36, 1280)}
GPT2 |= {"GPT-2 XL": (48, 1600)}
LLAMA = {  # layers, width, of the MLP, heads, key-value heads, vocabulary
    "Llama 2 7B": (32, 4096, 11008, 32, 32, 32000),
    "Llama 2 13B": (40, 5120, 13824, 40, 40, 32000),
    "Llama 3 70B": (80, 8192, 28672, 64, 8, 128256),
}


def weights(name: str) -> int:
    """Of the model as transformers builds it, without memory for them."""
    with torch.device("meta"):
        if name in GPT2:
            layers, width = GPT2[name]
            model = GPT2LMHeadModel(GPT2Config(n_layer=layers, n_embd=width, n_head=width // 64))
        else:
            layers, width, mlp, heads, kv, vocab = LLAMA[name]
            config = LlamaConfig(
                vocab_size=vocab, hidden_size=width, intermediate_size=mlp,
                num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=kv,
            )  # fmt: skip
            model = LlamaForCausalLM(config)
        return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("cells", rows("## What it costs"), ids=lambda cells: cells[0])
def test_the_costs_of_outgrowing_follow_from_the_formulas(cells):
    n = weights(cells[0])
    gigabytes = [f"{n * each / 1e9:.1f} GB" for each in (20, 2, 36)]
    cards = str(ceil(n * 36 / 80e9))
    assert cells[1:] == [f"{n / 1e6:,.0f} M", *gigabytes, cards, f"{18 * n:.1e}"]


def test_the_scale_of_a_step_of_7b():
    assert f"{18 * weights('Llama 2 7B') * 1024 * 512:.1e}" in PAGE


@pytest.mark.parametrize("layers", [1, 3])
def test_backward_keeps_113_bytes_per_layer_token_and_width(layers):
    b, s, width, vocab = 4, 30, 256, 50
    config = GPT2Config(
        vocab_size=vocab, n_layer=layers, n_embd=width, n_head=4,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    policy = PolicyWithValue(GPT2LMHeadModel(config))
    own = {p.untyped_storage().data_ptr() for p in policy.parameters()}
    kept: dict[int, int] = {}

    def keep(x):
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    everyone = torch.ones(b, s, dtype=torch.bool)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        logits, _ = policy(torch.zeros(b, s, dtype=torch.long), everyone)
    by_formula = 113 * layers * b * s * width
    # The embeddings and the last layer norm are not in the formula: two numbers of width d.
    assert sum(kept.values()) == pytest.approx(by_formula, abs=5 * 4 * b * s * width)
    assert logits.shape == (b, s, vocab)
