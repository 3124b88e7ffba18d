"""Stopping and going on: number for number, never half a checkpoint, and nothing pickled."""

import json
import os
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import tensor
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, pipeline

from minippo.models import load_policy
from minippo.ppo import PPOConfig
from minippo.trainer import PPOTrainer, weights_hash
from tests import tiny
from tests.shapes import refuses
from tests.tiny import PROMPTS

pytestmark = tiny.too_fast
RUNS = {
    "plain": {},
    "several minibatches": {"rollout_size": 4, "minibatch_size": 3},
    "a renewed reference": {"reference_update_every": 2},
    "the textbook sketch": {"make": PPOConfig.textbook},
    "an adaptive KL": {"kl_target": 0.2, "kl_horizon": 20},
    "an adaptive c3": {"kl_coef": 0.0, "kl_loss_coef": 0.1, "kl_target": 0.2, "kl_horizon": 20},
    "penalty": {"policy_loss": "penalty"},
    "warm-up and decay": {"warmup_steps": 3, "total_steps": 5},
    "a head ahead of its trunk": {"critic_warmup": 2},
}


def make(**changes):
    return tiny.trainer(score=tiny.spread, **({"learning_rate": 0.01} | changes))


def train(trainer, n_steps):
    trainer.train(PROMPTS, n_steps, progress=False)
    return trainer


@pytest.fixture
def saved(tmp_path):
    """A checkpoint after two steps, with the one after one step before it."""
    trainer = train(make(), 1)
    trainer.save(tmp_path / "run")
    train(trainer, 2).save(tmp_path / "run")
    return tmp_path / "run"


def steps(folder):
    """How many steps a checkpoint has taken: found by resuming from it."""
    trainer = make()
    trainer.resume(folder)
    return len(trainer.history)


# ---- going on


@pytest.mark.parametrize("changes", RUNS.values(), ids=RUNS)
def test_a_resumed_run_equals_the_uninterrupted_one_number_for_number(tmp_path, changes):
    whole = train(make(**changes), 4)
    first = train(make(**changes), 2)
    first.save(tmp_path / "run")
    second = make(**changes)
    torch.manual_seed(99)  # whatever else went on in between
    second.resume(tmp_path / "run")
    train(second, 4)
    assert json.dumps(second.history) == json.dumps(whole.history)  # NaN equals NaN here
    for name, x in whole.policy.state_dict().items():
        assert torch.equal(second.policy.state_dict()[name], x), name
    assert weights_hash(second.reference) == weights_hash(whole.reference)
    assert weights_hash(whole.policy) != weights_hash(first.policy)
    assert second.kl_controller.coef == whole.kl_controller.coef
    assert second.penalty_controller.coef == whole.penalty_controller.coef


def test_saving_does_not_disturb_the_run(tmp_path):
    whole = train(make(), 3)
    other = train(make(), 1)
    other.save(tmp_path / "run")
    assert train(other, 3).history == whole.history


def test_a_run_saved_before_its_first_step_can_be_resumed(tmp_path):
    make().save(tmp_path / "run")
    trainer = make()
    trainer.resume(tmp_path / "run")
    assert train(trainer, 2).history == train(make(), 2).history


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")
def test_a_run_with_lora_can_be_resumed(tmp_path):
    pytest.importorskip("peft")
    tiny.language_model().save_pretrained(tmp_path / "base")
    tiny.tokenizer().save_pretrained(tmp_path / "base")

    def adapted():
        torch.manual_seed(5)  # of the adapter's first weights
        policy, tokenizer = load_policy(tmp_path / "base", lora={"r": 2})
        config = PPOConfig(**tiny.SMALL, learning_rate=0.01)
        return PPOTrainer(policy, None, tiny.spread, tokenizer, config)

    whole, first = train(adapted(), 3), train(adapted(), 1)
    first.save(tmp_path / "run")
    second = adapted()
    second.resume(tmp_path / "run")
    assert train(second, 3).history == whole.history
    assert weights_hash(second.policy) == weights_hash(whole.policy)


# ---- what is in a checkpoint


def test_transformers_opens_a_checkpoint(saved):
    policy = train(make(), 2).policy
    model = AutoModelForCausalLM.from_pretrained(saved)
    tokens = tensor([[1, 2, 3]])
    logits = policy(tokens, torch.ones_like(tokens).bool())[0]
    assert_close(model(input_ids=tokens).logits, logits)
    loaded, tokenizer = load_policy(saved)
    assert weights_hash(loaded.language_model) == weights_hash(policy.language_model)
    assert tokenizer.get_vocab() == tiny.tokenizer().get_vocab()


def test_a_pipeline_opens_a_checkpoint(saved):
    writer = pipeline("text-generation", model=str(saved))
    (answer,) = writer("a b", max_new_tokens=4, do_sample=False, pad_token_id=tiny.EOS)
    assert answer["generated_text"].startswith("a b")


def test_nothing_in_a_checkpoint_is_a_pickle(saved):
    for file in saved.iterdir():
        assert file.suffix in (".json", ".safetensors", ".jinja", ".txt"), file.name
        assert not zipfile.is_zipfile(file)  # torch.save
        assert not file.read_bytes().startswith(b"\x80")  # pickle's first byte since protocol 2


def test_value_head_and_moments_are_saved_beside_the_weights(saved):
    tensors = load_file(saved / "trainer.safetensors")
    policy = train(make(), 2).policy
    assert torch.equal(tensors["parameter.value_head.weight"], policy.value_head.weight)
    assert tensors["exp_avg_sq.value_head.weight"].any()


# ---- never half a checkpoint


def test_the_previous_checkpoint_is_kept(saved):
    assert sorted(p.name for p in saved.parent.iterdir()) == ["run", "run.previous"]
    assert steps(saved) == 2
    assert steps(saved.with_name("run.previous")) == 1


@pytest.mark.parametrize("failing", ["save_file", "shutil.rmtree", "Path.rename", "json.dumps"])
def test_a_save_that_fails_leaves_the_previous_checkpoint_and_no_litter(
    saved, monkeypatch, failing
):
    def full(*args, **options):
        if failing != "shutil.rmtree" or "previous" in str(args[0]):
            raise OSError(28, "No space left on device")
        return rmtree(*args, **options)

    rmtree, trainer = shutil.rmtree, train(make(), 3)
    with monkeypatch.context() as patch:
        patch.setattr(f"minippo.checkpoint.{failing}", full)
        with pytest.raises(OSError, match="No space left"):
            trainer.save(saved)
    assert steps(saved) == 2
    assert sorted(p.name for p in saved.parent.iterdir()) in (["run", "run.previous"], ["run"])
    trainer.save(saved)  # and later it works
    assert steps(saved) == 3


def test_after_a_kill_between_the_two_renames_the_previous_checkpoint_is_found(saved, monkeypatch):
    rename, trainer = Path.rename, train(make(), 3)

    def killed(self, target):
        if Path(target) == saved:
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed)
        with pytest.raises(KeyboardInterrupt):
            trainer.save(saved)
    assert not saved.exists()
    assert steps(saved) == 2  # from run.previous
    trainer.save(saved)
    assert steps(saved) == 3


KILLED = """
import os, signal, sys
import torch
from tests.test_checkpoint import make, train
from minippo import checkpoint
trainer = train(make(), 3)
def die(*args): os.kill(os.getpid(), signal.SIGKILL)
checkpoint.save_file = die
trainer.save(sys.argv[1])
"""


@pytest.mark.slow
def test_a_process_killed_while_saving_leaves_the_previous_checkpoint(saved):
    settings = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", KILLED, str(saved)]
    done = subprocess.run(command, env=settings, capture_output=True, timeout=200)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert steps(saved) == 2
    assert steps(saved.with_name("run.previous")) == 1
    train(make(), 3).save(saved)
    assert steps(saved) == 3


@pytest.mark.parametrize("content", ["a file", "another model"])
def test_saving_does_not_overwrite_a_folder_of_something_else(tmp_path, content):
    if content == "a file":
        (tmp_path / "thesis.txt").write_text("three years of work", encoding="utf-8")
    else:
        tiny.language_model().save_pretrained(tmp_path)
    before = sorted(p.name for p in tmp_path.iterdir())
    with refuses("PPOTrainer.save: folder", str(tmp_path)):
        make().save(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_a_checkpoint_goes_into_an_empty_folder_and_under_missing_parents(tmp_path):
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "a" / "b" / "run"):
        train(make(), 1).save(folder)
        assert steps(folder) == 1


# ---- what is not whole is refused


def damage(file, how):
    content = file.read_bytes()
    if how == "altered":
        middle = len(content) // 2
        file.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    elif how == "cut off":
        file.write_bytes(content[: len(content) // 2])
    else:
        file.unlink()


@pytest.mark.parametrize("how", ["altered", "cut off", "missing"])
@pytest.mark.parametrize(
    "name", ["model.safetensors", "trainer.safetensors", "config.json", "tokenizer.json"]
)
def test_a_damaged_file_is_named_and_so_is_the_previous_checkpoint(saved, how, name):
    damage(saved / name, how)
    before = weights_hash((trainer := make()).policy)
    with pytest.raises(ValueError, match=r"is damaged or missing") as caught:
        trainer.resume(saved)
    assert str(saved / name) in str(caught.value)
    assert f"the previous checkpoint is {saved}.previous" in str(caught.value)
    assert weights_hash(trainer.policy) == before
    trainer.resume(saved.with_name("run.previous"))
    assert len(trainer.history) == 1


@pytest.mark.parametrize("content", [b"", b'{"config": ', b"[]", b"3", b"{}", b"\xff\xfe\x00junk"])
def test_a_damaged_state_is_named_and_so_is_the_previous_checkpoint(saved, content):
    (saved / "trainer.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"^PPOTrainer.resume: .* is damaged") as caught:
        make().resume(saved)
    assert str(saved / "trainer.json") in str(caught.value)
    assert f"{saved}.previous" in str(caught.value)


def test_an_altered_number_in_a_checkpoints_state_is_noticed(saved):
    text = (saved / "trainer.json").read_text(encoding="utf-8")
    altered = text.replace('"step": 2,', '"step": 3,')
    assert altered != text
    (saved / "trainer.json").write_text(altered, encoding="utf-8")
    with pytest.raises(ValueError, match=r"trainer\.json is damaged; the previous checkpoint"):
        make().resume(saved)


def test_a_folder_without_a_checkpoint_is_refused(tmp_path):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with refuses("PPOTrainer.resume: folder", str(folder)):
            make().resume(folder)


def test_resuming_under_another_configuration_names_the_fields_that_differ(saved):
    trainer = make(learning_rate=0.02, gamma=0.5)
    with pytest.raises(ValueError, match=r"^PPOTrainer.resume: config must be the checkpoint's"):
        trainer.resume(saved)
    with pytest.raises(ValueError, match=r"\(gamma=1.0, learning_rate=0.01\), got another one\.$"):
        trainer.resume(saved)


def test_resuming_with_another_reference_is_refused(saved):
    with refuses("PPOTrainer.resume: reference", "another one"):
        make(reference=tiny.shallow(7)).resume(saved)


def test_resuming_overwrites_another_policy_of_the_same_shape(saved):
    trainer = make(policy=tiny.shallow(7), reference=tiny.shallow())
    trainer.resume(saved)
    assert weights_hash(trainer.policy) == weights_hash(train(make(), 2).policy)


def test_weights_hash_sees_values_and_names():
    a, b = torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 2, bias=False)
    b.load_state_dict(a.state_dict())
    assert weights_hash(a) == weights_hash(b)
    assert weights_hash(a) != weights_hash(torch.nn.Sequential(b))
    b.weight.data[1, 1] += 1e-6
    assert weights_hash(a) != weights_hash(b)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # asked by peft
def test_an_adapter_does_not_resume_on_another_base_model(tmp_path):
    pytest.importorskip("peft")

    def trainer(seed):
        folder = tmp_path / f"base{seed}"
        tiny.language_model(seed).save_pretrained(folder)
        tiny.tokenizer().save_pretrained(folder)
        policy = load_policy(folder, lora={"r": 2})[0]
        config = PPOConfig(rollout_size=4, minibatch_size=4, max_new_tokens=4)
        return PPOTrainer(policy, None, tiny.good_count, tiny.tokenizer(), config)

    first = trainer(0)
    first.train(tiny.PROMPTS, 1, progress=False)
    first.save(tmp_path / "run")
    trainer(0).resume(tmp_path / "run")
    with pytest.raises(ValueError, match="reference must be the one that the run began with"):
        trainer(1).resume(tmp_path / "run")


def test_a_policy_of_another_size_is_refused_before_anything_is_copied(saved):
    trainer = make(policy=tiny.policy(4), reference=tiny.shallow())  # two layers for one
    before = weights_hash(trainer.policy)
    with pytest.raises(ValueError, match=r"^PPOTrainer\.resume: policy must learn the .*\.h\.1\."):
        trainer.resume(saved)
    assert weights_hash(trainer.policy) == before


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # asked by peft
def test_an_adapter_with_other_settings_does_not_resume_and_keeps_its_weights(tmp_path):
    pytest.importorskip("peft")
    tiny.save(tmp_path / "base")

    def trainer(**lora):
        policy, tokenizer = load_policy(tmp_path / "base", lora={"r": 4, "lora_alpha": 8} | lora)
        return PPOTrainer(policy, None, tiny.spread, tokenizer, PPOConfig(**tiny.SMALL))

    targets = {"target_modules": ["c_fc", "c_attn", "c_proj"]}
    train(trainer(**targets), 1).save(tmp_path / "run")
    for changes, said in (
        ({"lora_alpha": 64}, "default.lora_alpha=8"),
        ({"use_rslora": True}, "default.use_rslora=False"),
        ({"r": 8}, "default.r=4"),
        ({"target_modules": ["c_fc"]}, r"default.target_modules=\['c_attn', 'c_fc', 'c_proj'\]"),
    ):
        other = trainer(**targets | changes)
        before = weights_hash(other.policy)
        with pytest.raises(ValueError, match=rf"resume: config must be .*\({said}\), got another"):
            other.resume(tmp_path / "run")
        assert weights_hash(other.policy) == before
    (tmp_path / "base").rename(tmp_path / "moved")  # where the base model lies is not asked
    tiny.save(tmp_path / "base")
    trainer(target_modules=targets["target_modules"][::-1]).resume(tmp_path / "run")


def test_a_folder_that_a_kill_left_unfinished_does_not_stop_a_save(saved):
    left = saved.with_name("run.unfinished")
    left.mkdir()
    (left / "half a file").write_text("{", encoding="utf-8")
    train(make(), 3).save(saved)
    assert steps(saved) == 3
    assert not left.exists()
    assert not (saved / "half a file").exists()


def test_a_run_stopped_between_two_renewals_gets_its_renewed_reference_back(tmp_path):
    # The reference is renewed after the third update, and not again before the sixth has ended.
    changes = {"reference_update_every": 3}
    whole, first, second = train(make(**changes), 5), train(make(**changes), 4), make(**changes)
    first.save(tmp_path / "run")
    begun = weights_hash(second.reference)
    second.resume(tmp_path / "run")
    assert weights_hash(second.reference) == weights_hash(first.reference) != begun
    assert weights_hash(second.reference) != weights_hash(second.policy)
    assert train(second, 5).history == whole.history
    assert whole.history[4]["kl"] != 0
