"""Answers to a fixed prompt while a policy is in training."""

import textwrap
from collections.abc import Callable

from tqdm.auto import tqdm

from minippo.rollout import respond
from minippo.trainer import PPOTrainer, Stats


def answer(trainer: PPOTrainer, prompt: str) -> str:
    """Return the policy's answer now, always with the same random numbers; training is the same."""
    config = trainer.config
    (text,) = respond(
        trainer.policy,
        trainer.tokenizer,
        [prompt],
        max_new_tokens=config.max_new_tokens,
        temperature=config.temperature,
    )
    return text.strip()


def sampler(trainer: PPOTrainer, prompt: str, every: int) -> Callable[[PPOTrainer, Stats], None]:
    """Print the prompt and its answer now; return the callback that does so every few steps."""

    def say(what: str, text: str) -> None:
        tqdm.write(f"{what}: {textwrap.shorten(text, 300, placeholder=' …')}")

    def sample(trainer: PPOTrainer, _: Stats) -> None:
        step = len(trainer.history)
        if trainer.accelerator.is_main_process and step % every == 0:
            say(f"  step {step}", answer(trainer, prompt))

    if trainer.accelerator.is_main_process:
        say("a prompt and its answers", prompt)
    sample(trainer, {})
    return sample
