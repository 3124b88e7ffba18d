"""Two processes do what one does: the same texts, the same statistics, the same weights."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch.testing import assert_close

from tests import tiny

ROOT = Path(__file__).parents[1]
CASES = {
    "the defaults": {},
    "micro-batches, odd minibatches": {"minibatch_size": 5, "micro_batch_size": 2},
    "sequence ratios, a renewed reference": {
        "advantage_level": "sequence", "ratio_level": "sequence", "reference_update_every": 2,
        "kl_target": 0.2, "kl_horizon": 20, "target_kl_stop": 0.01,
    },
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
def test_two_processes_give_the_run_of_one(tmp_path, changes):
    changes = {"max_new_tokens": 8} | changes
    settings = os.environ | {
        "ACCELERATE_USE_CPU": "true",  # `--cpu` would silently run one process
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
    command += ["--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
    command += [
        "--dynamo_backend",
        "no",
        "--main_process_port",
        "0",
        str(ROOT / "tests/processes.py"),
    ]
    command += [str(tmp_path / "two"), json.dumps(changes)]
    done = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    two = json.loads((tmp_path / "two.json").read_text())
    assert two["processes"] == 2
    assert len(set(two["hashes"])) == 1  # both hold the same weights

    one = tiny.trainer(score=tiny.spread, **changes)
    one.train(tiny.PROMPTS, 3, progress=False)
    for ours, theirs in zip(one.history, two["history"], strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            assert_close(theirs[name], value, rtol=1e-4, atol=1e-5, equal_nan=True, msg=name)
    tensors = load_file(tmp_path / "two" / "trainer.safetensors")
    for name, p in one.policy.named_parameters():
        assert_close(tensors[f"parameter.{name}"], p.detach(), rtol=1e-5, atol=1e-6)
