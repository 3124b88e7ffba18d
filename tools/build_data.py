"""Make everything in data/ from seeds: python tools/build_data.py world|runs|studies [NAME].

world: texts, tokenizer, the three tiny GPT-2s, the manifest (sizes, sha256, versions, figures) and
the data card's figures, which include the build time. runs: recorded PPO runs, one file per run;
delete a run's file to make it again. studies: the experiments of tools/studies, one row per run,
each on one thread; `studies NAME` continues one of them. Needs no network and no GPU.
"""

import argparse
import json
import os
import platform
import random
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from math import isfinite
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

import minippo
from minippo import sequence_log_prob, token_log_probs, world
from minippo.course.demo import DEMO, STEPS
from minippo.data import SHIPPED_STUDIES, load_prompts, sha256, write, write_jsonl
from minippo.models import PolicyWithValue, RewardModel, frozen_copy, load_policy, load_reward_model
from minippo.record import Recorder
from minippo.reward_model import preference_accuracy, train_reward_model
from minippo.rollout import Responses, encode, evaluate, load_score, respond, score_with
from minippo.sft import FitConfig, train_sft
from minippo.trainer import PPOTrainer

DATA = Path(__file__).parents[1] / "data"
EOS = "<|endoftext|>"
# gelu_pytorch_tanh is GPT-2's gelu_new in one kernel.
SIZES = {
    "n_layer": 4,
    "n_head": 4,
    "n_embd": 128,
    "n_positions": 128,
    "activation_function": "gelu_pytorch_tanh",
}
VOCABULARY = 1024
SEEDS = {"base": 1, "demonstrations": 2, "pairs": 3, "held out": 4, "models": 5}
N_BASE, N_HELD_OUT = 150_000, 2_000
N_DEMONSTRATIONS, DEMONSTRATION_EPOCHS = 4_000, 3
N_PAIRS, N_HELD_OUT_PAIRS = 24_000, 4_000
RECORDED_PROMPTS = world.PROMPTS_HELD_OUT[::8]
RUNS = {  # name -> configuration, steps, steps between recorded responses
    "healthy": (DEMO, STEPS, 2),
    "no-kl": (replace(DEMO, kl_coef=0.0, total_steps=None), 120, 6),
    "high-lr": (replace(DEMO, learning_rate=3e-3), STEPS, 2),
}
Figures = dict[str, Any]


def main() -> None:
    """Parse the command line and build."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["world", "runs", "studies"])
    parser.add_argument("names", nargs="*", choices=[[], *SHIPPED_STUDIES], help="name of a study")
    parser.add_argument("--out", type=Path, default=DATA, help="the folder to write to")
    options = parser.parse_args()
    os.environ["ACCELERATE_USE_CPU"] = "1"  # shipped numbers come from the CPU on every machine
    if options.what == "studies":
        return build_studies(options.out, options.names or SHIPPED_STUDIES)
    options.out.mkdir(parents=True, exist_ok=True)
    {"world": build_world, "runs": build_runs}[options.what](options.out)


def build_world(out: Path) -> None:
    """Build texts, tokenizer, base and SFT model, pairs and reward model, and measure them."""
    started, figures = time.time(), Figures()

    def say(text: str) -> None:
        print(f"[{time.time() - started:5.0f} s] {text}", flush=True)

    say("texts")
    write_jsonl(out / "prompts-train.jsonl.bz2", [{"prompt": p} for p in world.PROMPTS_TRAIN])
    write_jsonl(out / "prompts-held-out.jsonl.bz2", [{"prompt": p} for p in world.PROMPTS_HELD_OUT])
    rng = random.Random(SEEDS["held out"])
    held_out = {world.sample(rng) for _ in range(N_HELD_OUT)}
    rng = random.Random(SEEDS["base"])
    corpus = [t for t in (world.sample(rng) for _ in range(N_BASE)) if t not in held_out]
    figures["world"] = measure_world(sorted(held_out), corpus)
    tokenizer = train_tokenizer(corpus[:50_000])

    say(f"base model on {len(corpus):,} texts")
    torch.manual_seed(SEEDS["models"])
    base = GPT2LMHeadModel(model_config(tokenizer))
    config = FitConfig(minibatch_size=128, learning_rate=3e-3, warmup_steps=200, weight_decay=0.0)
    train_sft(
        PolicyWithValue(base),
        encode(tokenizer, [""] * len(corpus), corpus),
        config,
        name="base model",
    )
    save(base, tokenizer, out / "tiny-gpt2-base")
    policy, _ = load_policy(out / "tiny-gpt2-base")
    figures["base"] = measure_base(policy, tokenizer, sorted(held_out))
    say(json.dumps(figures["base"]))

    say("supervised fine-tuning")
    rng = random.Random(SEEDS["demonstrations"])
    prompts = [rng.choice(world.PROMPTS_TRAIN) for _ in range(N_DEMONSTRATIONS)]
    responses = [world.demonstration(prompt, rng) for prompt in prompts]
    rows = [{"prompt": p, "response": r} for p, r in zip(prompts, responses, strict=True)]
    write_jsonl(out / "demonstrations.jsonl.bz2", rows)
    config = FitConfig(epochs=DEMONSTRATION_EPOCHS, minibatch_size=64, learning_rate=5e-4)
    sft = GPT2LMHeadModel.from_pretrained(out / "tiny-gpt2-base", dtype=torch.float32)
    train_sft(PolicyWithValue(sft), encode(tokenizer, prompts, responses), config)
    save(sft, tokenizer, out / "tiny-gpt2-sft")
    policy_sft, _ = load_policy(out / "tiny-gpt2-sft")
    figures["sft"] = {
        "base": measure_responses(policy, tokenizer),
        "sft": measure_responses(policy_sft, tokenizer),
        "demonstrations": len(rows),
    }
    say(json.dumps(figures["sft"]))

    say(f"{N_PAIRS + N_HELD_OUT_PAIRS:,} preference pairs")
    annotator = world.Annotator()
    train = make_pairs(
        policy_sft, tokenizer, world.PROMPTS_TRAIN, N_PAIRS, annotator, SEEDS["pairs"]
    )
    test = make_pairs(
        policy_sft,
        tokenizer,
        world.PROMPTS_HELD_OUT,
        N_HELD_OUT_PAIRS,
        annotator,
        SEEDS["pairs"] + 1,
    )
    write_jsonl(out / "preferences.jsonl.bz2", train)

    say("reward model")
    torch.manual_seed(SEEDS["models"])
    body = GPT2ForSequenceClassification(model_config(tokenizer, num_labels=1))
    body.transformer.load_state_dict(policy_sft.language_model.transformer.state_dict())
    model = RewardModel(body)
    config = FitConfig(minibatch_size=64, learning_rate=5e-4, warmup_steps=50)
    train_reward_model(model, *encode_pairs(tokenizer, train), config)
    save(body, tokenizer, out / "tiny-gpt2-reward")
    reward, _ = load_reward_model(out / "tiny-gpt2-reward")
    figures["reward model"] = measure_reward_model(reward, tokenizer, train, test, annotator)
    say(json.dumps(figures["reward model"]))

    figures["best"] = best_gold()
    figures["minutes"] = round((time.time() - started) / 60, 1)
    say(json.dumps(figures["best"]))
    write_manifest(out, figures)
    if out == DATA:
        write_card(figures)
    say("done")


def build_runs(out: Path) -> None:
    """Record the missing runs, then list them in the manifest."""
    for name in RUNS:
        if not (out / "runs" / f"{name}.json.bz2").exists():
            record_run(name, out / "runs" / f"{name}.json.bz2")
    update_manifest(out)


def build_studies(out: Path, names: Sequence[str]) -> None:
    """Make the missing rows of some studies, then list their files in the manifest."""
    torch.set_num_threads(1)  # the same numbers, however many run at once
    for name in names:
        import_module(f"studies.{name}").main(out / "studies" / f"{name}.jsonl.bz2")
        update_manifest(out, {name: sha256(DATA / "tiny-gpt2-sft" / "model.safetensors")})


def record_run(name: str, path: Path) -> None:
    """Record PPO on the shipped world with a configuration from `RUNS`."""
    config, n_steps, every = RUNS[name]
    policy, tokenizer = load_policy("tiny-gpt2-sft")
    score = load_score("tiny-gpt2-reward", tokenizer)
    unfinished = path.with_suffix(".part")
    recorder = Recorder(unfinished, RECORDED_PROMPTS, every=every)
    trainer = PPOTrainer(
        policy, frozen_copy(policy), score, tokenizer, config, callbacks=[recorder]
    )
    recorder.record(trainer)
    trainer.train(load_prompts("prompts-train"), n_steps)
    write(path, unfinished.read_bytes())
    unfinished.unlink()
    print(name, f"{path.stat().st_size:,} bytes", flush=True)


# ---- making ------------------------------------------------------------------------------------


def train_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE like GPT-2's that also puts its end-of-text token before a prompt."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=[EOS],
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{EOS} $A", special_tokens=[(EOS, bpe.token_to_id(EOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe, bos_token=EOS, eos_token=EOS, model_max_length=SIZES["n_positions"]
    )


def model_config(tokenizer: PreTrainedTokenizerBase, **changes: Any) -> GPT2Config:
    """Return the configuration of a small GPT-2 with GPT-2's token conventions."""
    end = tokenizer.eos_token_id
    return GPT2Config(
        vocab_size=len(tokenizer), bos_token_id=end, eos_token_id=end, **SIZES, **changes
    )


def save(model: Any, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a transformers folder in float16, loaded as float32, with a compact tokenizer.

    Weights are rounded to bfloat16 first: git packs them in three quarters of the size, and
    bfloat16 forward passes start from the same weights.
    """
    shutil.rmtree(folder, ignore_errors=True)
    model.bfloat16().half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    compact(folder / "tokenizer.json")


def compact(path: Path) -> None:
    """Rewrite JSON without indentation, at less than half the size."""
    content = json.loads(path.read_bytes())
    write(path, json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode("utf-8"))


def make_pairs(
    policy: PolicyWithValue,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    n: int,
    annotator: world.Annotator,
    seed: int,
) -> list[dict[str, str]]:
    """Pair the policy's responses per prompt; the annotator (for equals, a coin) chooses."""
    rng = random.Random(seed)
    asked = [rng.choice(prompts) for _ in range(n)]
    texts = respond(policy, tokenizer, [p for p in asked for _ in range(2)], seed=seed)
    pairs = []
    for prompt, a, b in zip(asked, texts[::2], texts[1::2], strict=True):
        first = annotator.prefers(prompt, a, b, rng)
        chosen, rejected = (a, b) if first else (b, a)
        pairs.append({"prompt": prompt, "chosen": chosen, "rejected": rejected})
    return pairs


def encode_pairs(
    tokenizer: PreTrainedTokenizerBase, pairs: list[dict[str, str]]
) -> tuple[Responses, Responses]:
    """Return (chosen, rejected) as tokens."""
    prompts = [pair["prompt"] for pair in pairs]
    chosen, rejected = (
        encode(tokenizer, prompts, [pair[side] for pair in pairs])
        for side in ("chosen", "rejected")
    )
    return chosen, rejected


# ---- measuring ---------------------------------------------------------------------------------


def in_parts(responses: Responses, fn: Callable[[Responses], torch.Tensor]) -> torch.Tensor:
    """Apply a function of responses to 256 rows at a time."""
    with torch.no_grad():
        return torch.cat([fn(responses[i : i + 256].trim()) for i in range(0, len(responses), 256)])


def measure_world(held_out: list[str], corpus: list[str]) -> Figures:
    """Measure how large the world is, and its surprise at its own texts."""
    words = [w for text in corpus[:30_000] for w in text.split()]
    surprise = torch.tensor([-world.log_prob(text) for text in held_out])
    return {
        "texts for training": len(corpus),
        "held-out texts": len(held_out),
        "held-out texts in training": len(set(held_out) & set(corpus)),
        "distinct among 30,000": len(set(corpus[:30_000])),
        "distinct words": len({w.strip(".,!?").lower() for w in words}),
        "prompts for training": len(world.PROMPTS_TRAIN),
        "held-out prompts": len(world.PROMPTS_HELD_OUT),
        "nats per review": round(surprise.mean().item(), 3),
        "nats per review, standard error": round(surprise.std().item() / len(held_out) ** 0.5, 3),
    }


def measure_base(
    policy: PolicyWithValue, tokenizer: PreTrainedTokenizerBase, texts: list[str]
) -> Figures:
    """Compare the model's surprise at held-out texts with the grammar's own, including EOS."""

    def log_prob(r: Responses) -> torch.Tensor:
        return sequence_log_prob(token_log_probs(evaluate(policy, r)[0], r.ids), r.mask)

    model = -in_parts(encode(tokenizer, [""] * len(texts), texts), log_prob).mean().item()
    limit = -sum(map(world.log_prob, texts)) / len(texts)
    return {
        "model": round(model, 3),
        "limit": round(limit, 3),
        "excess in %": round(100 * (model / limit - 1), 2),
        "parameters": sum(p.numel() for p in policy.language_model.parameters()),
    }


def measure_responses(policy: PolicyWithValue, tokenizer: PreTrainedTokenizerBase) -> Figures:
    """Measure the model's responses, 40 per held-out prompt.

    `world.log_prob` knows only the training prompts: their responses are looked up in the grammar.
    """
    prompts = [prompt for prompt in world.PROMPTS_HELD_OUT for _ in range(40)]
    pairs = list(zip(prompts, respond(policy, tokenizer, prompts), strict=True))
    gold = torch.tensor([world.gold(p, r) for p, r in pairs])
    known = [prompt for prompt in world.PROMPTS_TRAIN for _ in range(10)]
    texts = map(str.__add__, known, respond(policy, tokenizer, known))
    inside = [isfinite(world.log_prob(text)) for text in texts]
    return {
        "in the grammar, training prompts": round(sum(inside) / len(inside), 3),
        "responses": len(pairs),
        "on topic": round(sum(world.on_topic(p, r) for p, r in pairs) / len(pairs), 3),
        "ends properly": round(sum(world.ends_properly(r) for _, r in pairs) / len(pairs), 3),
        "gold": round(gold.mean().item(), 3),
        "gold, standard error": round(gold.std().item() / len(pairs) ** 0.5, 3),
    }


def measure_reward_model(
    model: RewardModel,
    tokenizer: PreTrainedTokenizerBase,
    train: list[dict[str, str]],
    test: list[dict[str, str]],
    annotator: world.Annotator,
) -> Figures:
    """Measure calibration, and accuracy next to the best possible under the annotator's noise."""
    chosen, rejected = (in_parts(side, score_with(model)) for side in encode_pairs(tokenizer, test))
    p = [annotator.probability(x["prompt"], x["chosen"], x["rejected"]) for x in test]
    best = sum(max(q, 1 - q) for q in p) / len(p)
    # Calibration: when the model is x % sure of a choice, is it right x % of the time?
    sure = (chosen - rejected).abs().sigmoid()
    bins = torch.bucketize(sure, torch.tensor([0.6, 0.7, 0.8, 0.9]))
    table = [
        [
            round(sure[bins == b].mean().item(), 3),
            round((chosen > rejected)[bins == b].float().mean().item(), 3),
            int((bins == b).sum()),
        ]
        for b in range(5)
        if (bins == b).any()
    ]
    accuracy = preference_accuracy(chosen, rejected).item()
    scores = torch.cat([chosen, rejected])
    gold = torch.tensor(
        [world.gold(x["prompt"], x[s]) for s in ("chosen", "rejected") for x in test]
    )
    return {
        "pairs for training": len(train),
        "held-out pairs": len(test),
        "accuracy": round(accuracy, 4),
        "best possible": round(best, 4),
        "accuracy / best possible": round(accuracy / best, 4),
        "correlation with gold": round(torch.corrcoef(torch.stack([scores, gold]))[0, 1].item(), 3),
        "calibration [sure, right, pairs]": table,
    }


def best_gold(n: int = 4096) -> Figures:
    """Return the mean over held-out prompts of the best gold of n grammar completions each."""
    rng, best = random.Random(0), []
    for prompt in world.PROMPTS_HELD_OUT:
        best.append(max(world.gold(prompt, r) for r in world.completions(prompt, n, rng)))
    return {"completions a prompt": n, "gold": round(sum(best) / len(best), 4)}


# ---- recording ---------------------------------------------------------------------------------


def write_manifest(out: Path, figures: Figures) -> None:
    """Write manifest.json: what each file must be, and what was measured when it was made."""
    manifest = {
        "files": list_files(out),
        "worlds of studies": worlds_of_studies(out),
        "seeds": SEEDS,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "minippo": minippo.__version__,
        },
        "figures": figures,
    }
    (out / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def worlds_of_studies(out: Path) -> dict[str, str]:
    """Return, for each study, the sha256 of the SFT model in whose world its rows were made."""
    file = out / "manifest.json"
    kept = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return dict(kept.get("worlds of studies", {}))


def update_manifest(out: Path, worlds: dict[str, str] | None = None) -> None:
    """Update files and worlds of new studies in manifest.json; keep the world's figures."""
    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    manifest["files"] = list_files(out)
    if worlds:
        manifest["worlds of studies"] = manifest.get("worlds of studies", {}) | worlds
    (out / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")


def list_files(out: Path) -> Figures:
    """Return each shipped file's size and the sha256 of its content."""
    parts = ("*.jsonl*", "tiny-gpt2-*/*", "runs/*.json.bz2", "studies/*.jsonl.bz2")
    files = sorted(f for part in parts for f in out.glob(part) if f.is_file())
    return {
        f.relative_to(out).as_posix(): {"bytes": f.stat().st_size, "sha256": sha256(f)}
        for f in files
    }


def write_card(figures: Figures) -> None:
    """Write the figures between the data card's two markers."""
    rows = ["| what | figure |", "|---|---|"]
    for group, values in figures.items():
        flat = values.items() if isinstance(values, dict) else [("", values)]
        for name, value in flat:
            pairs = value.items() if isinstance(value, dict) else [("", value)]
            for sub, x in pairs:
                shown = f"{x:,}" if isinstance(x, int | float) else str(x)
                rows.append(f"| {', '.join(s for s in (group, name, sub) if s)} | {shown} |")
    card = (DATA / "README.md").read_text(encoding="utf-8")
    begin, end = "<!-- figures -->\n", "<!-- end of figures -->"
    before, after = card.split(begin)[0], card.split(end)[1]
    (DATA / "README.md").write_text(
        before + begin + "\n".join(rows) + "\n" + end + after, encoding="utf-8"
    )


if __name__ == "__main__":
    main()
