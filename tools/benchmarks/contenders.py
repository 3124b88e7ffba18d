"""Run one contender's PPO iterations, all on the same work; driven by `ppo_iteration.py`.

python contenders.py CONTENDER CASE

Each line "go" on standard input starts one iteration; the answer is one line of JSON. TRL 0.11.4
runs this file in its own environment, so only the parts for minippo and the floor import minippo.
"""

import bz2
import json
import os
import resource
import sys
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", TRL_EXPERIMENTAL_SILENCE="1")

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook
from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    GPT2Model,
    PreTrainedTokenizerFast,
)

DATA = Path(__file__).parents[2] / "data"
NO_DROPOUT = {f"{place}_pdrop": 0.0 for place in ("resid", "embd", "attn")}
# Two tokens that the shipped policy almost never samples: an EOS that never comes, TRL's padding.
NEVER, PAD = "Ġcabin", "Ġbed"


@dataclass
class Case:
    """The work given to every contender."""

    rows: int = 64
    prompt: int = 0  # tokens; 0: the shipped prompts
    time: int = 32
    ends: bool = True  # False: no response ends before its full length
    model: str = "shipped"
    epochs: int = 4
    minibatches: int = 2


CASES = {"a": Case(), "b": Case(ends=False), "c": Case(rows=8, prompt=16, ends=False, model="gpt2")}
SHAPES = {  # size of models with random weights
    "1M": {"n_embd": 128, "n_layer": 4, "n_head": 4, "vocab_size": 1024},
    "10M": {"n_embd": 320, "n_layer": 8, "n_head": 5, "vocab_size": 1024},
    "40M": {"n_embd": 512, "n_layer": 12, "n_head": 8, "vocab_size": 4096},
    "gpt2": {},
}


class Setup:
    """The models, tokenizer and prompts of a case."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.tokenizer = PreTrainedTokenizerFast(
            tokenizer_file=str(DATA / "tiny-gpt2-sft" / "tokenizer.json"),
            eos_token="<|endoftext|>" if case.ends else NEVER,
            pad_token=PAD,  # TRL recognises padding by its id; minippo ignores it
            padding_side="left",
        )
        self.eos = self.tokenizer.eos_token_id
        packed = (DATA / "prompts-train.jsonl.bz2").read_bytes()
        lines = bz2.decompress(packed).decode().splitlines()
        prompts = [json.loads(line)["prompt"] for line in lines]
        self.prompts = [prompts[i % len(prompts)] for i in range(case.rows)]
        if case.prompt:
            self.prompts = [" the" * case.prompt] * case.rows
        self.ids = [self.tokenizer(prompt)["input_ids"] for prompt in self.prompts]
        torch.manual_seed(0)
        self.policy, self.reference = (self.model(GPT2LMHeadModel) for _ in range(2))
        self.reference.load_state_dict(self.policy.state_dict())
        self.reference.requires_grad_(False)
        self.reward = self.model(GPT2ForSequenceClassification).requires_grad_(False)

    def model(self, kind: Any) -> Any:
        """Return the shipped policy or reward model, or a random one of the case's shape."""
        if self.case.model == "shipped":
            name = "tiny-gpt2-sft" if kind is GPT2LMHeadModel else "tiny-gpt2-reward"
            return kind.from_pretrained(DATA / name, **NO_DROPOUT).float().eval()
        ends = {"bos_token_id": self.eos, "eos_token_id": self.eos, "num_labels": 1}
        length = max(map(len, self.ids)) + self.case.time
        shape = {"n_positions": max(1024, length)} | SHAPES[self.case.model]
        return kind(GPT2Config(**shape, **ends, **NO_DROPOUT)).eval()


def answer(**numbers: object) -> None:
    """Print one line for the driver."""
    print("@" + json.dumps(numbers), flush=True)


class Turns:
    """Wait for "go", time the work until the next call, and count passes and steps."""

    def __init__(self) -> None:
        self.start, self.processor, self.count = 0.0, 0.0, Counter[str]()
        plain, count = GPT2Model.forward, self.count

        def forward(model: GPT2Model, input_ids: Any = None, *args: Any, **kwargs: Any) -> Any:
            learning = "learning" if torch.is_grad_enabled() else "other"
            name = "decode" if input_ids.shape[1] == 1 else learning
            count[f"{name} passes"] += 1
            count[f"{name} positions"] += input_ids.numel()
            return plain(model, input_ids, *args, **kwargs)

        GPT2Model.forward = forward
        register_optimizer_step_post_hook(lambda *_: count.update(steps=1))

    def next(self, tokens: int = 0) -> None:
        """End a turn of this many real response tokens, and wait for the next."""
        wall, processor = time.perf_counter() - self.start, time.process_time() - self.processor
        if self.start:
            answer(wall=wall, processor=processor, tokens=tokens, count=dict(self.count))
        else:
            answer(ready=True)
        if sys.stdin.readline() != "go\n":
            answer(peak_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
            sys.stdout.flush()
            os._exit(0)
        self.count.clear()
        self.start, self.processor = time.perf_counter(), time.process_time()


# ---- minippo -----------------------------------------------------------------------------------


def minippo(setup: Setup, turns: Turns, *, separate: bool = False) -> None:
    """Run PPOTrainer.step; `separate` gives the value function its own network, as in TRL."""
    from minippo.models import PolicyWithValue, RewardModel
    from minippo.ppo import PPOConfig
    from minippo.rollout import score_with
    from minippo.trainer import PPOTrainer

    class TwoTrunks(PolicyWithValue):
        def __init__(self) -> None:
            super().__init__(setup.policy)
            self.critic = RewardModel(setup.model(GPT2ForSequenceClassification)).body.base_model

        def forward(self, tokens: Any, attention_mask: Any, *, keep: int) -> Any:
            logits, _ = super().forward(tokens, attention_mask, keep=keep)
            positions = (attention_mask.long().cumsum(1) - 1).clamp_min(0)
            hidden = self.critic(
                input_ids=tokens, attention_mask=attention_mask.long(), position_ids=positions
            ).last_hidden_state
            return logits, self.value_head(hidden[:, -keep:]).squeeze(-1)

    case = setup.case
    trainer = PPOTrainer(
        TwoTrunks() if separate else PolicyWithValue(setup.policy),
        PolicyWithValue(setup.reference).requires_grad_(False),
        score_with(RewardModel(setup.reward)),
        setup.tokenizer,
        PPOConfig(
            rollout_size=case.rows,
            minibatch_size=case.rows // case.minibatches,
            epochs=case.epochs,
            max_new_tokens=case.time,
            learning_rate=1e-6,
        ),
    )
    turns.next()
    while True:
        stats = trainer.step(setup.prompts)
        turns.next(round(stats["response_length"] * case.rows))


# ---- TRL ---------------------------------------------------------------------------------------


def trl(setup: Setup, turns: Turns) -> None:
    """Run TRL 1.12.0's trl.experimental.ppo, whose loop asks for the next turn in a callback."""
    from datasets import Dataset
    from transformers import PrinterCallback, TrainerCallback
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    case, size = setup.case, setup.case.rows // setup.case.minibatches

    class Turn(TrainerCallback):
        def on_train_begin(self, *_: Any, **__: Any) -> None:
            # TRL would accumulate all minibatches into one step: step after each, as minippo does.
            trainer.accelerator.gradient_accumulation_steps = 1
            turns.next()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            turns.next(case.rows * case.time)

    trainer = PPOTrainer(
        args=PPOConfig(
            output_dir="/tmp/trl",
            per_device_train_batch_size=size,
            gradient_accumulation_steps=case.minibatches,
            num_mini_batches=case.minibatches,
            total_episodes=case.rows * 1000,
            num_ppo_epochs=case.epochs,
            response_length=case.time,
            local_rollout_forward_batch_size=case.rows,
            learning_rate=1e-6,
            stop_token="eos",
            temperature=1.0,
            num_sample_generations=0,
            save_strategy="no",
            report_to="none",
            use_cpu=True,
            bf16=False,
            disable_tqdm=True,
        ),
        processing_class=setup.tokenizer,
        model=setup.policy,
        ref_model=setup.reference,
        reward_model=setup.reward,
        value_model=setup.model(GPT2ForSequenceClassification),
        train_dataset=Dataset.from_list([{"input_ids": row} for row in setup.ids]),
        callbacks=[Turn()],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()


def legacy(setup: Setup, turns: Turns) -> None:
    """Run TRL 0.11.4's `step`, which most tutorials still show; its value head is on the trunk."""
    from trl import AutoModelForCausalLMWithValueHead, PPOConfig, PPOTrainer

    case, size = setup.case, setup.case.rows // setup.case.minibatches
    pad = setup.tokenizer.pad_token_id
    wrapped = AutoModelForCausalLMWithValueHead.from_pretrained
    model, reference = (
        wrapped(x, summary_dropout_prob=0.0) for x in (setup.policy, setup.reference)
    )
    config = PPOConfig(
        batch_size=case.rows, mini_batch_size=size, ppo_epochs=case.epochs, learning_rate=1e-6
    )
    trainer = PPOTrainer(config, model, reference, setup.tokenizer)
    queries = [torch.tensor(row) for row in setup.ids]
    options = {"max_new_tokens": case.time, "eos_token_id": setup.eos, "pad_token_id": pad}
    turns.next()
    while True:
        responses = trainer.generate(
            queries, batch_size=case.rows, return_prompt=False, do_sample=True, top_k=0, top_p=1.0,
            **options,
        )  # fmt: skip
        rows = [torch.cat(pair) for pair in zip(queries, responses, strict=True)]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
        lengths = torch.tensor([len(row) for row in rows])
        mask = torch.arange(ids.shape[1]) < lengths.unsqueeze(1)
        with torch.no_grad():
            hidden = setup.reward.transformer(ids, attention_mask=mask.long()).last_hidden_state
            scores = setup.reward.score(hidden[torch.arange(len(ids)), lengths - 1])
        trainer.step(queries, list(responses), list(scores.squeeze(-1)))
        turns.next(sum(map(len, responses)))


# ---- the floor ---------------------------------------------------------------------------------


def floor(setup: Setup, turns: Turns) -> None:
    """Run only the unavoidable tensor work, on one fixed rollout, with the same modules.

    The decode steps that the lengths require, one forward pass each of reference and reward model,
    and the forward and backward passes of each epoch; no sampling, old log-probs, values,
    optimizer, statistics or checks. Rows of similar length are batched, and padding is trimmed.
    """
    from transformers import DynamicCache

    from minippo.models import PolicyWithValue, position_ids
    from minippo.rollout import Responses, _cache_name, encode_prompts, generate

    case, model = setup.case, setup.policy
    ids, mask = encode_prompts(setup.tokenizer, setup.prompts)
    uniforms = torch.rand(case.rows, case.time)
    whole: Responses = generate(
        PolicyWithValue(model).eval(), ids, mask, max_new_tokens=case.time,
        eos_token_id=setup.eos, uniforms=uniforms,
    )  # fmt: skip
    whole = whole[whole.mask.sum(1).argsort(descending=True)]
    lengths = whole.mask.sum(1)

    def forward(language_model: Any, r: Responses) -> torch.Tensor:
        attention, positions = r.attention_mask, position_ids(r.attention_mask)
        return language_model(
            input_ids=r.tokens[:, :-1], attention_mask=attention[:, :-1].long(),
            position_ids=positions[:, :-1], use_cache=False, logits_to_keep=r.ids.shape[1],
        ).logits  # fmt: skip

    def decode() -> None:
        cache, tokens = DynamicCache(config=model.config), whole.prompt_ids
        attention, positions = whole.prompt_mask, position_ids(whole.prompt_mask)
        for t in range(int(lengths[0])):
            model(
                input_ids=tokens, attention_mask=attention.long(), position_ids=positions,
                use_cache=True, logits_to_keep=1, **{_cache_name(model): cache},
            )  # fmt: skip
            left = int((lengths > t + 1).sum())
            if left < len(tokens):
                cache.batch_select_indices(slice(0, left))
            tokens, positions = whole.ids[:left, t : t + 1], positions[:left, -1:] + 1
            attention = torch.nn.functional.pad(attention[:left], (0, 1), value=True)

    size, ragged = case.rows // case.minibatches, bool(lengths[0] > lengths[-1])
    turns.next()
    while True:
        with torch.inference_mode():
            decode()
            for part in torch.arange(case.rows).split(size):
                r = whole[part].trim()
                forward(setup.reference, r)
                setup.reward.transformer(
                    r.tokens, attention_mask=r.attention_mask.long(),
                    position_ids=position_ids(r.attention_mask), use_cache=False,
                )  # fmt: skip
        model.train()
        for _ in range(case.epochs):
            for rows in torch.randperm(case.rows).split(size):
                for part in rows.sort().values.split(size // 2 if ragged else size):
                    r = whole[part].trim()
                    nats = torch.nn.functional.cross_entropy(
                        forward(model, r).flatten(0, 1), r.ids.flatten(), reduction="none"
                    )
                    nats[r.mask.flatten()].sum().backward()
                model.zero_grad()
        model.eval()
        turns.next(int(lengths.sum()))


CONTENDERS = {
    "minippo": minippo,
    "minippo, two trunks": lambda setup, turns: minippo(setup, turns, separate=True),
    "TRL 1.12.0": trl,
    "TRL 0.11.4": legacy,
    "floor": floor,
}

if __name__ == "__main__":
    CONTENDERS[sys.argv[1]](Setup(Case(**json.loads(sys.argv[2]))), Turns())
