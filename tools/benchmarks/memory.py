"""Measure what saves memory, and its cost: one PPO step of GPT-2 small's shape per process.

python tools/benchmarks/memory.py [--rows 8] [--prompt 16] [--new 32] [--only NAME ...]

Random weights of GPT-2 small's shape (124 M parameters, 50,257 tokens): memory and time depend
only on shapes. A process takes two PPO steps (one epoch) on `rows` prompts. Time is the second
step's processor time, on one thread; memory is the process's peak, minus its peak before the model
was made.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

LORA = {"r": 8}
CASES: dict[str, dict[str, Any]] = {
    "default": {},
    "micro-batches of 2": {"micro_batch_size": 2},
    "gradient checkpointing": {"gradient_checkpointing": True},
    "bf16": {"mixed_precision": "bf16"},
    "LoRA, a copy as reference": {"lora": LORA, "copy": True},
    "LoRA, reference = adapter off": {"lora": LORA},
    "LoRA, micro-batches of 2": {"lora": LORA, "micro_batch_size": 2},
    "all of them": {
        "lora": LORA, "micro_batch_size": 2, "gradient_checkpointing": True,
        "mixed_precision": "bf16",
    },
}  # fmt: skip


def peak() -> float:
    """Return this process's peak memory, in MiB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def measure(
    rows: int,
    prompt: int,
    new: int,
    *,
    lora: dict[str, Any] | None = None,
    copy: bool = False,
    **changes: Any,
) -> dict[str, float]:
    """Take two steps; return the peak above the start and the second step's processor seconds."""
    import torch
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast
    from transformers.utils import logging

    from minippo.models import PolicyWithValue, frozen_copy
    from minippo.ppo import PPOConfig
    from minippo.trainer import PPOTrainer

    logging.set_verbosity_error()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    words = {f"w{i}": i for i in range(50256)} | {"<|endoftext|>": 50256}
    made = Tokenizer(WordLevel(words, unk_token="w0"))
    made.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|endoftext|>")
    prompts = [" ".join(f"w{i * prompt + j}" for j in range(prompt)) for i in range(rows)]
    if lora is not None:
        import peft
    before = peak()
    model: Any = GPT2LMHeadModel(GPT2Config())
    if lora is not None:
        model = peft.get_peft_model(model, peft.LoraConfig(task_type="CAUSAL_LM", **lora))
    policy = PolicyWithValue(model)
    config = PPOConfig(
        rollout_size=rows, minibatch_size=rows, epochs=1, max_new_tokens=new, learning_rate=1e-5,
        **changes,
    )  # fmt: skip
    reference = frozen_copy(policy) if lora is None or copy else None
    trainer = PPOTrainer(policy, reference, lambda r: r.mask.sum(1).float(), tokenizer, config)
    for _ in range(2):
        start = time.process_time()
        rollout = trainer.collect(prompts)
        middle = time.process_time()
        trainer.update(rollout)
    times = {"collect": middle - start, "update": time.process_time() - middle}
    return {"MiB": peak() - before, "learned": trainer.history[-1]["grad_norm"]} | times


def main() -> None:
    """Print a table in Markdown, each row as soon as it is measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in (("rows", 8), ("prompt", 16), ("new", 32)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--child", choices=CASES)
    options = parser.parse_args()
    sizes = (options.rows, options.prompt, options.new)
    if options.child:
        print(json.dumps(measure(*sizes, **CASES[options.child])))
        return
    print("| | peak memory, MiB | relative to the default | rollout, CPU s | update, CPU s |")
    print("|---|---|---|---|---|", flush=True)
    first = 0.0
    root = str(Path(__file__).parents[2])
    for name in options.only:
        # ru_maxrss is inherited from the parent, so the parent imports nothing large.
        command = [sys.executable, __file__, "--child", name]
        command += [f"--{k}={v}" for k, v in zip(("rows", "prompt", "new"), sizes, strict=True)]
        settings = os.environ | {"PYTHONPATH": root, "PYTHONWARNINGS": "ignore"}
        done = subprocess.run(command, env=settings, capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(done.stderr[-2000:])
        got = json.loads(done.stdout.splitlines()[-1])
        first = first or got["MiB"]
        numbers = f"{got['MiB']:,.0f} | {got['MiB'] / first:.0%} | {got['collect']:.1f}"
        print(f"| {name} | {numbers} | {got['update']:.1f} |", flush=True)


if __name__ == "__main__":
    main()
