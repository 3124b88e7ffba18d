"""What tests/test_processes.py starts twice: three steps of PPO; rank 0 writes what came out."""

import json
import sys

import torch

from minippo.trainer import weights_hash
from tests import tiny


def main(output: str, changes: str) -> None:
    torch.set_num_threads(1)
    # With a tracker: to finish it must not end the group of processes, which saving needs.
    logs = {"log_with": "tensorboard", "log_dir": f"{output}.logs"}
    trainer = tiny.trainer(score=tiny.spread, **logs, **json.loads(changes))
    trainer.train(tiny.PROMPTS, 3, progress=False)
    processes = trainer.accelerator.num_processes
    hashes = trainer.accelerator.gather(
        torch.tensor([int(weights_hash(trainer.policy)[:12], 16)])
    ).tolist()
    trainer.save(output)
    if trainer.accelerator.is_main_process:
        with open(f"{output}.json", "w") as file:
            json.dump({"processes": processes, "history": trainer.history, "hashes": hashes}, file)
    # No end_training(): destroying the process group while gloo's thread still drops the last
    # barrier's tensor makes the two wait for each other (torch 2.13: the thread for the GIL, the
    # holder of the GIL for the thread). At exit the group goes by itself.


if __name__ == "__main__":
    main(*sys.argv[1:])
