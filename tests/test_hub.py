"""Finding what the hub may have: one question, no pickles, no network for a local folder."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from minippo import data
from minippo.models import load_policy, load_reward_model
from tests import tiny
from tests.shapes import refuses


def test_a_model_folder_without_safetensors_is_not_unpickled(tmp_path):
    # The file would be opened only by a library that unpickles: its content is no pickle.
    tiny.config().save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"not to be opened")
    with refuses("load_policy: name", str(tmp_path)):
        load_policy(tmp_path)


def test_a_model_folder_with_other_safetensors_is_not_unpickled(tmp_path):
    tiny.config().save_pretrained(tmp_path)
    tiny.tokenizer().save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"not to be opened")
    (tmp_path / "adapter.safetensors").write_bytes(b"of something else")
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        load_policy(tmp_path)


def test_an_unknown_model_offline_names_the_shipped_ones():
    with pytest.raises(ValueError, match=r"^load_policy: name must be a shipped model") as caught:
        load_policy("no-such-organisation/no-such-model")
    for part in (*data.SHIPPED_MODELS, "offline", "pass its folder", "'no-such-organisation/"):
        assert part in str(caught.value)
    with pytest.raises(ValueError, match=r"^load_reward_model: name must be a shipped model"):
        load_reward_model("/no/such/folder")


# A hub that takes connections and never answers, and one process that loads three models.
SILENT_HUB = """
import json, os, socket, sys, threading
server, calls = socket.create_server(("127.0.0.1", 0)), []
def listen():
    while True:
        calls.append(server.accept()[0])
threading.Thread(target=listen, daemon=True).start()
os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{server.getsockname()[1]}"
import peft
from minippo.models import load_policy
for name in sys.argv[1:]:
    calls.clear()
    try:
        said = type(load_policy(name)[0]).__name__
    except ValueError as error:
        said = str(error)
    print(json.dumps([name, said, len(calls)]))
"""


@pytest.fixture(scope="module")
def with_a_silent_hub(tmp_path_factory):
    """What loading says, and how often it asked the hub: a folder, cached, unknown."""
    pytest.importorskip("peft")
    home = tmp_path_factory.mktemp("home")
    cached = home / "hub" / "models--someone--cached"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text("0" * 40, encoding="utf-8")
    for place in (home / "folder", cached / "snapshots" / ("0" * 40)):
        tiny.save(place)
    settings = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "TRANSFORMERS_"))}
    settings = {k: v for k, v in settings.items() if not k.lower().endswith("_proxy")}
    settings |= {"HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1"}
    settings["PYTHONPATH"] = str(Path(data.__file__).parents[1])
    names = [str(home / "folder"), "someone/cached", "someone/unknown"]
    command = [sys.executable, "-c", SILENT_HUB, *names]
    done = subprocess.run(command, env=settings, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    return {Path(name).name: row for name, *row in rows}


@pytest.mark.parametrize("name", ["folder", "cached"])
def test_a_local_model_never_asks_the_network_even_with_peft_installed(with_a_silent_hub, name):
    said, calls = with_a_silent_hub[name]
    assert (said, calls) == ("PolicyWithValue", 0)


def test_an_unknown_model_is_asked_for_once_and_soon_given_up(with_a_silent_hub):
    said, calls = with_a_silent_hub["unknown"]
    assert said.startswith("load_policy: name must be a shipped model (tiny-gpt2-base")
    assert calls == 1  # no retries, which take the libraries 23 to 46 seconds: one wait of three
