"""Checkpoints that survive a kill at any moment: safetensors and JSON, nothing pickled.

A checkpoint is written under a temporary name and then renamed; the one it replaces becomes
`<folder>.previous`. The state holds every file's SHA-256, so that damage is detected.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from minippo._validate import fail
from minippo.data import sha256
from minippo.hub import no_progress_bars

STATE = "trainer.json"  # marks a folder as one of our checkpoints
TENSORS = "trainer.safetensors"
MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # Adam's
REFERENCE = "reference."  # prefix of its tensors' names
ELSEWHERE = ("base_model_name_or_path", "revision", "inference_mode", "peft_version")  # peft's
State = dict[str, Any]


def previous(folder: Path) -> Path:
    """The folder of the checkpoint that `folder` replaced."""
    return folder.with_name(f"{folder.name}.previous")


def is_checkpoint(folder: Path) -> bool:
    """True if `folder` is a checkpoint, or the one that it replaced is still there."""
    return (folder / STATE).exists() or (previous(folder) / STATE).exists()


def write_checkpoint(
    folder: Path, write_model: Callable[[Path], None], tensors: Mapping[str, Tensor], state: State
) -> None:
    """Write model, tensors and state; a kill leaves this checkpoint or the previous one intact.

    Raises:
        ValueError: the folder exists and is not a checkpoint.
        OSError: the folder cannot be written; its previous content is kept.
    """
    if folder.exists() and not (folder / STATE).exists() and any(folder.iterdir()):
        fail("PPOTrainer.save", "folder", "be new, empty or a checkpoint", str(folder))
    made = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(made, ignore_errors=True)  # left over from a kill
    made.mkdir(parents=True)
    try:
        write_model(made)
        # safetensors refuses tensors that share memory, such as tied embeddings.
        kept = {
            name: x.detach().cpu().clone(memory_format=torch.contiguous_format)
            for name, x in tensors.items()
        }
        save_file(kept, made / TENSORS)
        state = state | {"sha256": {file.name: sha256(file) for file in sorted(made.iterdir())}}
        text = json.dumps(state | {"own_sha256": _digest(state)})
        (made / STATE).write_text(text, encoding="utf-8")
        if folder.exists():
            shutil.rmtree(previous(folder), ignore_errors=True)
            folder.rename(previous(folder))
        made.rename(folder)
    except SafetensorError as error:  # for example a full disk
        raise OSError(f"PPOTrainer.save: {folder} cannot be written: {error}") from error
    finally:
        shutil.rmtree(made, ignore_errors=True)


def read_checkpoint(folder: Path) -> tuple[State, dict[str, Tensor]]:
    """Read state and tensors back.

    Raises:
        ValueError: there is no checkpoint, or a file was altered or truncated.
    """
    before = previous(folder)
    if not folder.exists() and (before / STATE).exists():
        folder = before  # killed between the two renames of `write_checkpoint`
    if not (folder / STATE).is_file():
        fail("PPOTrainer.resume", "folder", f"be a checkpoint (it has no {STATE})", str(folder))
    hint = f"; the previous checkpoint is {before}" if (before / STATE).exists() else ""
    try:
        state: State = json.loads((folder / STATE).read_text(encoding="utf-8"))
        recorded, own = state["sha256"], state.pop("own_sha256")
        if own != _digest(state):
            raise ValueError("different content")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"PPOTrainer.resume: {folder / STATE} is damaged{hint}.") from error
    for name, digest in recorded.items():
        if not (folder / name).is_file() or sha256(folder / name) != digest:
            raise ValueError(f"PPOTrainer.resume: {folder / name} is damaged or missing{hint}.")
    return state, load_file(folder / TENSORS)


def save(trainer: Any, folder: Path) -> None:
    """Write what `PPOTrainer.save` keeps: trainable parameters, Adam's moments and the state."""
    tensors = dict[str, Tensor]()
    for name, p in _learning(trainer).items():
        tensors[f"parameter.{name}"] = p
        if moments := trainer.optimizer.state.get(p):
            tensors |= {f"{key}.{name}": moments[key] for key in MOMENTS}
    renewed = bool(trainer.config.reference_update_every)
    if renewed and trainer.reference is not None:
        tensors |= {f"{REFERENCE}{k}": x for k, x in trainer.reference.state_dict().items()}
    state = {
        "config": _config(trainer),
        "reference": None if renewed else trainer.reference_hash,
        "history": trainer.history,
        "kl_controller": trainer.kl_controller.coef,
        "penalty_controller": trainer.penalty_controller.coef,
    }

    def write_model(made: Path) -> None:
        with no_progress_bars():
            trainer.policy.language_model.save_pretrained(made)
        trainer.tokenizer.save_pretrained(made)

    write_checkpoint(folder, write_model, tensors, state)


@torch.no_grad()
def resume(trainer: Any, folder: Path) -> None:
    """Restore into a trainer what `save` wrote."""
    state, tensors = read_checkpoint(folder)
    then, now = state["config"], _config(trainer)
    if changed := [name for name in now if name in then and then[name] != now[name]]:
        must = f"be the checkpoint's ({', '.join(f'{name}={then[name]}' for name in changed)})"
        fail("PPOTrainer.resume", "config", must, "another one")
    if state["reference"] not in (None, trainer.reference_hash):
        fail("PPOTrainer.resume", "reference", "be the one that the run began with", "another one")
    learning = _learning(trainer)
    sizes = {f"parameter.{name}": p.shape for name, p in learning.items()}
    saved = {name: x.shape for name, x in tensors.items() if name.startswith("parameter.")}
    if differing := sizes.items() ^ saved.items():
        fail("PPOTrainer.resume", "policy", "learn the checkpoint's weights", min(differing)[0])
    for name, p in learning.items():
        p.copy_(tensors[f"parameter.{name}"])
        if f"exp_avg.{name}" in tensors:
            moments = {key: tensors[f"{key}.{name}"].to(p.device) for key in MOMENTS}
            trainer.optimizer.state[p] = moments
    if state["reference"] is None and trainer.reference is not None:
        own = {k.removeprefix(REFERENCE): x for k, x in tensors.items() if k.startswith(REFERENCE)}
        trainer.reference.load_state_dict(own)
    trainer.history, trainer.within_step = state["history"], False
    trainer.kl_controller.coef = state["kl_controller"]
    trainer.penalty_controller.coef = state["penalty_controller"]


def reference_hash(trainer: Any) -> str:
    """Hash of the reference; if it is None, of the frozen weights under the adapter."""
    if trainer.reference is not None:
        return weights_hash(trainer.reference)
    parameters = trainer.policy.named_parameters()
    return tensors_hash({name: p for name, p in parameters if not p.requires_grad})


def _config(trainer: Any) -> State:
    """The configuration, with that of adapters but for where they lie and who wrote them."""
    config = asdict(trainer.config)
    for name, adapter in getattr(trainer.policy.language_model, "peft_config", {}).items():
        config |= {f"{name}.{k}": x for k, x in adapter.to_dict().items() if k not in ELSEWHERE}
    return json.loads(json.dumps(config, default=lambda x: sorted(x) if type(x) is set else str(x)))


def _learning(trainer: Any) -> dict[str, nn.Parameter]:
    return {name: p for name, p in trainer.policy.named_parameters() if p.requires_grad}


def weights_hash(module: nn.Module) -> str:
    """SHA-256 of the names and values of a module's weights: equal hashes mean equal models."""
    return tensors_hash(module.state_dict())


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names and values."""
    digest = hashlib.sha256()
    for name, x in tensors.items():
        digest.update(name.encode())
        digest.update(x.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _digest(state: State) -> str:
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()
