"""Checkpoints that survive a kill at any moment: safetensors and JSON, nothing pickled.

A checkpoint is written under another name and then renamed; what was there before becomes
`<folder>.previous`. Every file's SHA-256 is in its state, so that a damaged file is found.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from minippo._validate import fail
from minippo.data import sha256

STATE = "trainer.json"  # its presence makes a folder a checkpoint of ours
TENSORS = "trainer.safetensors"
MOMENTS = ("exp_avg", "exp_avg_sq")  # Adam's
State = dict[str, Any]


def previous(folder: Path) -> Path:
    """Where the checkpoint before the one in `folder` is kept."""
    return folder.with_name(f"{folder.name}.previous")


def is_checkpoint(folder: Path) -> bool:
    """True if one is here, or the one before it is."""
    return (folder / STATE).exists() or (previous(folder) / STATE).exists()


def write_checkpoint(
    folder: Path, write_model: Callable[[Path], None], tensors: Mapping[str, Tensor], state: State
) -> None:
    """Write model, tensors and state; a kill leaves this checkpoint or the one before it whole.

    Raises:
        ValueError: the folder exists and is not a checkpoint.
        OSError: it cannot be written; what was there before is still there.
    """
    if folder.exists() and not (folder / STATE).exists() and any(folder.iterdir()):
        fail("PPOTrainer.save", "folder", "be new, empty or a checkpoint", str(folder))
    made = folder.with_name(f"{folder.name}.unfinished")
    shutil.rmtree(made, ignore_errors=True)  # what a kill left
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
    except SafetensorError as error:  # a full disk among others
        raise OSError(f"PPOTrainer.save: {folder} cannot be written: {error}") from error
    finally:
        shutil.rmtree(made, ignore_errors=True)


def read_checkpoint(folder: Path) -> tuple[State, dict[str, Tensor]]:
    """State and tensors as they were written.

    Raises:
        ValueError: no checkpoint is there, or a file was altered or cut off.
    """
    before = previous(folder)
    if not folder.exists() and (before / STATE).exists():
        folder = before  # killed between the two renames of `write_checkpoint`
    if not (folder / STATE).is_file():
        fail("PPOTrainer.resume", "folder", f"be a checkpoint (it has no {STATE})", str(folder))
    hint = f"; the checkpoint before it is {before}" if (before / STATE).exists() else ""
    try:
        state: State = json.loads((folder / STATE).read_text(encoding="utf-8"))
        recorded, own = state["sha256"], state.pop("own_sha256")
        if own != _digest(state):
            raise ValueError("another content")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"PPOTrainer.resume: {folder / STATE} is damaged{hint}.") from error
    for name, digest in recorded.items():
        if not (folder / name).is_file() or sha256(folder / name) != digest:
            raise ValueError(f"PPOTrainer.resume: {folder / name} is damaged or missing{hint}.")
    return state, load_file(folder / TENSORS)


def pack(parameters: Mapping[str, Tensor], optimizer: Any) -> tuple[dict[str, Tensor], int]:
    """Parameters and Adam's moments by name, and the number of steps that Adam has taken."""
    tensors, steps = {}, 0
    for name, p in parameters.items():
        tensors[f"parameter.{name}"] = p
        if state := optimizer.state.get(p):
            steps = int(state["step"])
            tensors |= {f"{key}.{name}": state[key] for key in MOMENTS}
    return tensors, steps


@torch.no_grad()
def unpack(
    tensors: Mapping[str, Tensor], steps: int, parameters: Mapping[str, Tensor], optimizer: Any
) -> None:
    """The opposite of `pack`, in place."""
    for name, p in parameters.items():
        p.copy_(tensors[f"parameter.{name}"])
        if f"exp_avg.{name}" in tensors:
            moments = {key: tensors[f"{key}.{name}"].to(p.device) for key in MOMENTS}
            step = torch.tensor(float(steps), device=p.device)
            optimizer.state[p] = {"step": step, **moments}


def weights_hash(module: nn.Module) -> str:
    """SHA-256 over names and values of a module's weights: equal hashes, equal models."""
    return tensors_hash(module.state_dict())


def tensors_hash(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names and values."""
    digest = hashlib.sha256()
    for name, x in tensors.items():
        digest.update(name.encode())
        digest.update(x.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _digest(state: State) -> str:
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()
