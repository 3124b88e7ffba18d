"""The practitioner's notebook: its real part on stand-ins made here, its two processes for real."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import (
    BertTokenizerFast,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
)

from minippo.models import load_policy
from tests.notebooks.test_notebooks import NOTEBOOKS, cells

ROOT = Path(__file__).parents[2]
(NOTEBOOK,) = (path for path in NOTEBOOKS if path.stem.startswith("17"))
SOURCES = [cell["source"] for cell in cells(NOTEBOOK)]
TEXT = "This film was a long and quiet story about two sisters and I liked the music , number {} ."

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory):
    """A GPT-2, a classifier with two labels and its own tokenizer, a folder of reviews."""
    folder = tmp_path_factory.mktemp("hub")
    tokenizer = load_policy("tiny-gpt2-sft")[1]
    end = tokenizer.eos_token_id
    shape = {"vocab_size": len(tokenizer), "n_layer": 2, "n_embd": 64, "n_head": 2}
    GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=end, eos_token_id=end)).save_pretrained(
        folder / "policy"
    )
    tokenizer.save_pretrained(folder / "policy")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(set(TEXT.lower().split()))]
    (folder / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder / "judge")
    config = DistilBertConfig(
        vocab_size=len(words), dim=32, n_layers=1, n_heads=2, hidden_dim=64,
        id2label={0: "NEGATIVE", 1: "POSITIVE"}, label2id={"NEGATIVE": 0, "POSITIVE": 1},
    )  # fmt: skip
    DistilBertForSequenceClassification(config).save_pretrained(folder / "judge")
    (folder / "reviews").mkdir()
    rows = [json.dumps({"text": TEXT.format(i), "label": i % 2}) + "\n" for i in range(60)]
    (folder / "reviews" / "train.jsonl").write_text("".join(rows), encoding="utf-8")
    return folder


def test_the_online_part_runs_on_models_of_the_real_kinds(stand_ins, tmp_path):
    """Every cell with MINIPPO_ONLINE=1. What a random reward model cannot promise is left out."""
    source = "\n\n".join(SOURCES)
    places = {
        '"lvwerra/gpt2-imdb"': repr(str(stand_ins / "policy")),
        '"lvwerra/distilbert-imdb#POSITIVE"': repr(f"{stand_ins / 'judge'}#POSITIVE"),
        '"stanfordnlp/imdb:text"': repr(f"{stand_ins / 'reviews' / 'train.jsonl'}:text"),
        "(published, 194)": "(published, 4)",
        "assert after.scores.mean() > before.scores.mean() + 0.3": "",
        'assert all(history[-1][name] > history[0][name] for name in ("score", "kl"))': "",
        'assert abs(second["kl"]) > 1e-3': "",  # at 1e-4 two steps of a tiny adapter move little
        "subprocess.run(launch, check=True)": "raise AssertionError('here it would need two GPUs')",
    }
    for real, ours in places.items():
        assert source.count(real) == 1, real
        source = source.replace(real, ours)
    (tmp_path / "run.py").write_text(source, encoding="utf-8")
    settings = {"MINIPPO_ONLINE": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, str(tmp_path / "run.py")]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | settings, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "before  mean" in done.stdout
    assert "after   mean" in done.stdout
    assert "2 curves of 4 steps" in done.stdout


def test_the_launch_configuration_runs_two_processes_which_do_what_one_does(tmp_path):
    (source,) = (s for s in SOURCES if "CONFIGURATION" in s)
    names = {"policy": "tiny-gpt2-sft", "judge": "tiny-gpt2-reward", "prompts": "prompts-train"}
    made = {"names": names, "tempfile": __import__("tempfile")}
    exec(source, made)
    launch, yaml = made["launch"], made["folder"] / "accelerate.yaml"
    assert yaml.read_text(encoding="utf-8") == made["CONFIGURATION"]
    settings = os.environ | {
        "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
    }  # fmt: skip
    options = {"env": settings, "capture_output": True, "text": True, "timeout": 300}
    report = "import torch.distributed as d, runpy, sys, atexit\n"
    report += "from pathlib import Path; told = Path(__file__).parent / 'told'\n"
    report += "tell = lambda: (told / str(d.get_rank())).write_text(str(d.get_world_size()))\n"
    report += "atexit.register(tell)\n"
    report += "sys.argv[0] = 'minippo'; runpy.run_module('minippo', run_name='__main__')\n"
    (tmp_path / "counted.py").write_text(report, encoding="utf-8")
    (tmp_path / "told").mkdir()  # one file each: what two processes print can be interleaved
    start = launch.index("-m", launch.index("--config_file"))
    counted = [*launch[:start], str(tmp_path / "counted.py"), *launch[start + 2 :]]
    two = subprocess.run(counted, check=False, **options)
    assert two.returncode == 0, two.stderr[-3000:]
    told = {p.name: p.read_text(encoding="utf-8") for p in (tmp_path / "told").iterdir()}
    assert told == {"0": "2", "1": "2"}  # two processes, and each knows of both

    alone = [sys.executable, *launch[start:]]
    alone[alone.index("--output") + 1] = str(tmp_path / "one")
    one = subprocess.run(alone, check=False, **options)
    assert one.returncode == 0, one.stderr[-3000:]
    files = [place / "trainer.safetensors" for place in (made["folder"] / "run", tmp_path / "one")]
    first, second = map(load_file, files)
    names = [name for name in first if name.startswith("parameter.")]
    assert len(names) > 20
    for name in names:
        assert_close(first[name], second[name], rtol=0, atol=1e-6, msg=name)
