"""Two processes do what one does: the same texts, the same statistics, the same weights."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file
from torch import tensor
from torch.testing import assert_close

from minippo.processes import gather_rollout
from tests import tiny
from tests.processes import watched

ROOT = Path(__file__).parents[1]
CASES = {
    "the defaults": {},
    "micro-batches, odd minibatches": {"minibatch_size": 5, "micro_batch_size": 2},
    "sequence ratios, a renewed reference": {
        "advantage_level": "sequence", "ratio_level": "sequence", "reference_update_every": 2,
        "kl_target": 0.2, "kl_horizon": 20, "target_kl_stop": 0.01,
    },
    "whitening, an adaptive KL, an early stop": {
        "kl_target": 0.05, "kl_horizon": 20, "learning_rate": 0.02, "epochs": 6,
        "minibatch_size": 3, "target_kl_stop": 0.02,
    },
}  # fmt: skip


def launch(output, changes, how=""):
    """Run tests/processes.py in two processes, as `accelerate launch` does it."""
    settings = os.environ | {
        "ACCELERATE_USE_CPU": "true",  # `--cpu` would silently run one process
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"]
    command += ["--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no"]
    command += ["--dynamo_backend", "no", "--main_process_port", "0"]
    command += [str(ROOT / "tests/processes.py"), str(output), json.dumps(changes), how]
    return subprocess.run(command, env=settings, capture_output=True, text=True, timeout=180)


@pytest.mark.slow
@pytest.mark.parametrize("changes", CASES.values(), ids=CASES)
def test_two_processes_give_the_run_of_one(tmp_path, changes):
    changes = {"max_new_tokens": 8} | changes
    done = launch(tmp_path / "two", changes)
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = json.loads((tmp_path / "two.json").read_text(encoding="utf-8"))
    assert len(ranks) == 2
    # Statistics (early stops among them), whitened advantages, controller, weights: bit for bit.
    assert json.dumps(ranks[0]) == json.dumps(ranks[1])  # NaN equals NaN here

    one = tiny.trainer(score=tiny.spread, **changes)
    advantages = watched(one)
    one.train(tiny.PROMPTS, 3, progress=False)
    for ours, theirs in zip(one.history, ranks[0]["history"], strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            assert_close(theirs[name], value, rtol=1e-4, atol=1e-5, equal_nan=True, msg=name)
    for ours, theirs in zip(advantages, ranks[0]["advantages"], strict=True):
        time = tensor(ours).shape[-1]
        assert_close(tensor(theirs)[..., :time], tensor(ours), rtol=1e-4, atol=1e-5)
    assert_close(ranks[0]["coef"], one.kl_controller.coef, rtol=1e-5, atol=1e-7)
    if "kl_target" in changes:
        assert one.kl_controller.coef != one.config.kl_coef
    if "target_kl_stop" in changes and "advantage_level" not in changes:
        steps = [stats["optimizer_steps"] for stats in one.history]
        assert min(steps) < 12  # of 6 epochs of 2 minibatches: it did stop early
    tensors, gaps = load_file(tmp_path / "two" / "trainer.safetensors"), []
    # Adam divides by the size of a gradient, so that where the true one is 0 (softmax does not see
    # a key's bias) rounding alone moves a weight; an error in a gradient moves many by whole steps.
    step = one.config.learning_rate
    for name, p in one.policy.named_parameters():
        assert_close(tensors[f"parameter.{name}"], p.detach(), rtol=1e-5, atol=step / 100)
        gaps.append(float((tensors[f"parameter.{name}"] - p.detach()).abs().max()))
    print(f"largest difference of a weight: {max(gaps) / step:.1e} of Adam's step")


@pytest.mark.slow
@pytest.mark.parametrize(("how", "says"), [("raises", "this rank's own error"), ("dies", "-9")])
def test_a_rank_that_fails_ends_the_run_with_its_own_error(tmp_path, how, says):
    # The other rank waits in a gather meanwhile: it must be ended, too, or `launch` gives up.
    done = launch(tmp_path / "two", {"max_new_tokens": 8}, how)
    assert done.returncode != 0
    assert says in done.stderr
    assert not (tmp_path / "two").exists()


@pytest.mark.slow
def test_a_rank_that_is_asked_to_stop_stops_both_after_the_same_step(tmp_path):
    done = launch(tmp_path / "two", {"max_new_tokens": 8}, "stops")
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = json.loads((tmp_path / "two.json").read_text(encoding="utf-8"))
    assert [len(rank["history"]) for rank in ranks] == [1, 1]


def test_a_rollout_gathered_from_one_process_is_that_rollout():
    rows = [{"prompt": p, "number": i} for i, p in enumerate(tiny.PROMPTS)]
    rollout = tiny.trainer(score=tiny.spread).collect(rows)
    gathered = gather_rollout(rollout)
    assert gathered.responses.columns == {"number": [0, 1, 2, 3, 4, 5]}
    for record, other in ((gathered.responses, rollout.responses), (gathered, rollout)):
        for name, x in other.tensors.items():
            assert record.tensors[name].dtype == x.dtype
            assert record.tensors[name].equal(x), name
