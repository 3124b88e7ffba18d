"""Several processes: split the rows, add up the statistics, gather the rollouts."""

from typing import Any

import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import gather, gather_object, pad_across_processes
from torch import Tensor

from minippo._validate import fail
from minippo.ppo import Stats
from minippo.responses import Responses, Rollout


def share(accelerator: Accelerator, n: int) -> slice:
    """The rows of a batch of `n` that this process answers."""
    rank, world = accelerator.process_index, accelerator.num_processes
    if n % world:
        fail("PPOTrainer.collect", "prompts", f"divide among {world} processes", n)
    return slice(rank * n // world, (rank + 1) * n // world)


def gather_rollout(rollout: Rollout) -> Rollout:
    """Gather the whole rollout on every process, rows in the order of the prompts."""

    def whole(x: Tensor) -> Tensor:
        sent = x.float() if x.dtype == torch.bool else x  # padding would turn a bool into integers
        if x.dim() == 2:
            sent = pad_across_processes(sent, dim=1)
        return gather(sent).to(x.dtype)

    columns = {name: gather_object(list(x)) for name, x in rollout.responses.columns.items()}
    tensors = {name: whole(x) for name, x in rollout.responses.tensors.items()}
    responses = Responses(**tensors, columns=columns)
    return Rollout(responses, *map(whole, rollout.tensors.values()))


def add_up(parts: list[Stats], accelerator: Accelerator) -> Stats:
    """Sum micro-batch statistics, which are shares of the minibatch's; `ratio_error`: maximum."""
    if accelerator.num_processes > 1:
        parts = gather_object(parts)
    return {
        name: (max if name == "ratio_error" else sum)(part[name] for part in parts)
        for name in parts[0]
    }


def any_process(flag: bool) -> bool:
    """True on every process if it is True on one."""
    return any(gather_object([flag]))


def tracker(name: str | None) -> Any:
    """Check the name of a tracker, which accelerate must know; None is allowed."""
    if name is not None and name not in (known := [str(t) for t in get_available_trackers()]):
        must = f"be installed and known to accelerate (here: {', '.join(known) or 'none'})"
        fail("PPOTrainer", "log_with", must, name)
    return name
