"""Other people's folders are data: nothing in them is run, neither a pickle nor their Python."""

import json
import os
import pickle
import re
import subprocess
from pathlib import Path

import pytest
from transformers import GPT2ForSequenceClassification

from minippo.data import load_prompts
from minippo.models import load_policy
from minippo.rollout import load_score
from tests import tiny

ROOT = Path(__file__).parents[2]


class Trap:
    """Unpickled, it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def language_model(folder):
    tiny.language_model().save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def reward_model(folder):
    GPT2ForSequenceClassification(tiny.config(num_labels=1)).save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


LOADERS = {"a policy": (language_model, load_policy), "a reward model": (reward_model, load_score)}


def test_unpickling_the_trap_springs_it(tmp_path):
    pickle.loads(pickle.dumps(Trap(tmp_path / "mark")))
    assert (tmp_path / "mark").exists()


@pytest.mark.parametrize(("make", "load"), LOADERS.values(), ids=LOADERS)
def test_a_folder_whose_weights_are_a_pickle_is_refused(tmp_path, make, load):
    folder = make(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(tmp_path / "mark")))
    with pytest.raises(ValueError, match="must be a folder with safetensors"):
        load(folder)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(("make", "load"), LOADERS.values(), ids=LOADERS)
def test_pickles_beside_the_weights_are_not_opened(tmp_path, make, load):
    folder = make(tmp_path / "model")
    names = "pytorch_model.bin adapter_model.bin optimizer.pt trainer.pkl training_args.bin"
    for name in names.split():
        (folder / name).write_bytes(pickle.dumps(Trap(tmp_path / "mark")))
    load(folder)
    assert not (tmp_path / "mark").exists()


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")  # asked by peft
def test_an_adapter_that_is_a_pickle_is_not_unpickled(tmp_path):
    peft = pytest.importorskip("peft")
    base, folder = language_model(tmp_path / "base"), tmp_path / "adapter"
    load_policy(base, lora={"r": 2})[0].language_model.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    assert peft.PeftConfig.from_pretrained(folder).base_model_name_or_path == str(base)
    (folder / "adapter_model.safetensors").rename(folder / "other.safetensors")
    (folder / "adapter_model.bin").write_bytes(pickle.dumps(Trap(tmp_path / "mark")))
    with pytest.raises(Exception, match=r"adapter|pickle|weights_only|safetensors"):
        load_policy(folder)
    assert not (tmp_path / "mark").exists()


CODE = """
import pathlib
pathlib.Path({mark!r}).mkdir()
from transformers import GPT2Config as Config, GPT2LMHeadModel as Model
from transformers import GPT2ForSequenceClassification as Judge
from transformers import PreTrainedTokenizerFast as Words
"""


@pytest.mark.parametrize("kind", ["gpt2", "its own"])
@pytest.mark.parametrize(("make", "load"), LOADERS.values(), ids=LOADERS)
def test_python_in_a_models_folder_is_not_run(tmp_path, monkeypatch, make, load, kind):
    # And nobody is asked on the terminal whether it may: that would hang, or be answered in haste.
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    folder = make(tmp_path / "model")
    (folder / "own.py").write_text(CODE.format(mark=str(tmp_path / "mark")), encoding="utf-8")
    autos = {"AutoConfig": "Config", "AutoModelForCausalLM": "Model"}
    autos |= {"AutoModelForSequenceClassification": "Judge", "AutoTokenizer": "Words"}
    for name in ("config.json", "tokenizer_config.json"):
        settings = json.loads((folder / name).read_text(encoding="utf-8"))
        settings["auto_map"] = {auto: f"own.{own}" for auto, own in autos.items()}
        settings["auto_map"]["AutoTokenizer"] = ["own.Words", "own.Words"]
        if kind == "its own" and name == "config.json":
            settings["model_type"] = "something-new"
        (folder / name).write_text(json.dumps(settings), encoding="utf-8")
    if kind == "gpt2":
        load(folder)  # by transformers' own code
    else:
        with pytest.raises(ValueError, match="trust_remote_code"):
            load(folder)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("name", ["prompts.pkl", "prompts.pt", "prompts.arrow", "prompts.py"])
def test_prompts_are_neither_pickles_nor_programs(tmp_path, name):
    (tmp_path / name).write_bytes(pickle.dumps(Trap(tmp_path / "mark")))
    with pytest.raises(ValueError, match="must end in"):
        load_prompts(tmp_path / name)
    assert not (tmp_path / "mark").exists()


def test_a_data_set_with_a_script_of_its_own_is_refused(tmp_path):
    folder = tmp_path / "words"
    folder.mkdir()
    (folder / "words.py").write_text(CODE.format(mark=str(tmp_path / "mark")), encoding="utf-8")
    with pytest.raises(ValueError, match="must be a table that datasets can read"):
        load_prompts(folder)
    assert not (tmp_path / "mark").exists()


def test_the_package_never_unpickles_and_never_trusts_remote_code():
    texts = {p.name: p.read_text(encoding="utf-8") for p in (ROOT / "minippo").rglob("*.py")}
    unpickles = re.compile(r"torch\.load|pickle\.load|joblib|np\.load|allow_pickle|cloudpickle")
    assert [name for name, text in texts.items() if unpickles.search(text)] == []
    trusts = re.compile(r"trust_remote_code\W+True")
    assert [name for name, text in texts.items() if trusts.search(text)] == []


# ---- JupyterLab runs whatever its visitors write


@pytest.fixture(scope="module")
def lab_command():
    """What `make lab` runs, printed and not run."""
    made = subprocess.run(
        ["make", "-n", "lab"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    (command,) = (line for line in made.stdout.splitlines() if "jupyter lab" in line)
    return command.split()


def test_make_lab_switches_neither_the_token_nor_loopback_off(lab_command):
    options = [word for word in lab_command if word.startswith("-") and word != "-m"]
    assert options == []  # an option here needs a reason, and a look at what it opens


def test_jupyters_defaults_are_loopback_and_a_token(monkeypatch):
    # What `make lab` relies on.
    serverapp = pytest.importorskip("jupyter_server.serverapp")
    from jupyter_server.auth.identity import PasswordIdentityProvider

    monkeypatch.delenv("JUPYTER_TOKEN", raising=False)
    assert serverapp.ServerApp().ip == "localhost"
    assert not serverapp.ServerApp().allow_remote_access
    provider = PasswordIdentityProvider()
    assert len(provider.token) >= 32
    assert provider.token_generated
