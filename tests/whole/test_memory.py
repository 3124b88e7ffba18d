"""What saves memory gives the same update within its precision, and really saves it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from minippo.models import frozen_copy, load_policy
from minippo.ppo import PPOConfig
from minippo.trainer import PPOTrainer
from tests import tiny
from tests.tiny import PROMPTS

ROOT = Path(__file__).parents[2]
# peft asks transformers by an old name; and the adapters here are no zeros.
asks = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
pytestmark = [asks, tiny.another_reference]


def gradients(trainer, rollout):
    """All that the optimizer was given in an update's first step, in one row."""
    seen, step = [], trainer.optimizer.step

    def spy(*args, **options):
        trained = [p for p in trainer.policy.parameters() if p.requires_grad]
        seen.append(torch.cat([p.grad.flatten().clone() for p in trained]))
        return step(*args, **options)

    trainer.optimizer.step = spy
    trainer.update(rollout)
    return seen[0]


def relative_error(got, expected):
    return ((got - expected).norm() / expected.norm()).item()


def test_bf16_gives_the_gradient_to_its_precision():
    # 8 bits of mantissa: a rounding is off by up to 0.4 %, and there are some in a row.
    rollout = tiny.trainer(score=tiny.spread).collect(PROMPTS)
    exact, rounded = (
        gradients(tiny.trainer(score=tiny.spread, mixed_precision=kind), rollout)
        for kind in ("no", "bf16")
    )
    assert 1e-4 < relative_error(rounded, exact) < 0.03


@pytest.fixture
def lora(tmp_path):
    """Makes trainers of one adapted policy: with a copy as reference, or the adapter off."""
    pytest.importorskip("peft")
    tiny.language_model().save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)

    def make(*, copy=False, **changes):
        torch.manual_seed(5)  # of the adapter's first weights
        policy, tokenizer = load_policy(tmp_path, lora={"r": 2})
        for name, p in policy.named_parameters():
            if "lora_" in name:  # not zero: the adapter must matter, and so must its being off
                torch.nn.init.normal_(p, std=0.3)
        reference = None
        if copy:
            reference = frozen_copy(policy)
            for name, p in reference.named_parameters():
                if "lora_" in name:
                    p.zero_()
        config = PPOConfig(**(tiny.SMALL | {"learning_rate": 0.01, "kl_coef": 0.5} | changes))
        return PPOTrainer(policy, reference, tiny.spread, tokenizer, config)

    return make


def test_the_adapter_switched_off_is_the_reference_that_a_copy_would_be(lora):
    off, copy = lora(), lora(copy=True)
    off.train(PROMPTS, 2, progress=False)
    copy.train(PROMPTS, 2, progress=False)
    assert off.history == copy.history
    assert off.history[0]["kl"] != 0
    for one, other in zip(off.policy.parameters(), copy.policy.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("changes", "precision"),
    [
        ({"gradient_checkpointing": True}, 1e-6),
        ({"micro_batch_size": 1}, 1e-5),
        ({"gradient_checkpointing": True, "micro_batch_size": 2}, 1e-5),
        ({"mixed_precision": "bf16"}, 0.05),
        ({"kl_loss_coef": 0.1, "kl_loss_estimator": "exact", "gradient_checkpointing": True}, None),
    ],
)
def test_an_adapter_gets_the_same_gradient_whatever_saves_memory(lora, changes, precision):
    # Under frozen weights a checkpoint of the older kind would give the adapter no gradient.
    rollout = lora().collect(PROMPTS)
    if precision is None:  # switched off for the reference in the middle of a checkpointed pass
        plain, precision = {k: v for k, v in changes.items() if k != "gradient_checkpointing"}, 1e-6
    else:
        plain = {}
    exact = gradients(lora(**plain), rollout)
    assert exact.norm() > 0.01
    assert relative_error(gradients(lora(**changes), rollout), exact) <= precision


def test_with_an_adapter_there_is_one_copy_of_the_weights(lora):
    trainer = lora()
    trainer.train(PROMPTS, 1, progress=False)
    trained = sum(p.numel() for p in trainer.policy.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in trainer.policy.parameters() if not p.requires_grad)
    assert frozen == sum(p.numel() for p in tiny.language_model().parameters())
    assert trained < frozen / 2
    assert trainer.reference is None
    held = [x for state in trainer.optimizer.state.values() for x in state.values()]
    assert sum(x.numel() for x in held if x.dim()) == 2 * trained  # Adam's two moments
    assert_close(trainer.history[0]["first_ratio_error"], 0.0, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_one_copy_of_the_weights_is_one_copy_of_memory_at_gpt2s_size():
    # 124 M numbers of 4 bytes are 475 MiB; a separate reference needs them again.
    pytest.importorskip("peft")
    names = ["LoRA, a copy as reference", "LoRA, reference = adapter off"]
    command = [sys.executable, "tools/benchmarks/memory.py", "--only", *names]
    command += ["--rows", "2", "--prompt", "4", "--new", "4"]
    settings = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=settings, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found = {}
    for name in names:
        (row,) = (line for line in done.stdout.splitlines() if f"| {name} |" in line)
        found[name] = int(re.split(r"\s*\|\s*", row)[2].replace(",", ""))
    copy, off = found.values()
    assert 475 < off < 900  # less than two copies
    assert copy > 2 * 475
    assert copy - off > 300  # not all of 475: the smaller peak is when the model is made
