"""What tests/test_processes.py starts twice: three steps of PPO; rank 0 writes what came out."""

import json
import os
import signal
import sys

import torch
from accelerate.utils import gather_object

from minippo.trainer import weights_hash
from tests import tiny


def watched(trainer):
    """The advantages of every update of this process, as they were whitened here."""
    seen, credit = [], trainer.credit

    def spy(rollout):
        result = credit(rollout)
        seen.append(result.whitened.tolist())
        return result

    trainer.credit = spy
    return seen


def failing(trainer, how):
    """Let the last process alone fail in its second step, or be interrupted in its first."""
    if trainer.accelerator.process_index != trainer.accelerator.num_processes - 1:
        return
    score_before, calls = trainer.score, []

    def score(responses):
        calls.append(1)
        if how == "raises" and len(calls) == 2:
            raise ZeroDivisionError("this rank's own error")
        if how == "dies" and len(calls) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return score_before(responses)

    trainer.score = score
    if how == "stops":  # one process gets the Ctrl-C before the end of a step, the other after
        trainer.callbacks.append(lambda trainer, stats: stats["step"] == 1)


def main(output: str, changes: str, how: str = "") -> None:
    torch.set_num_threads(1)
    # With a tracker: to finish it must not end the group of processes, which saving needs.
    logs = {"log_with": "tensorboard", "log_dir": f"{output}.logs"}
    trainer = tiny.trainer(score=tiny.spread, **logs, **json.loads(changes))
    advantages = watched(trainer)
    failing(trainer, how)
    trainer.train(tiny.PROMPTS, 3, progress=False)
    ranks = gather_object(
        [
            {
                "history": trainer.history,
                "weights": weights_hash(trainer.policy),
                "advantages": advantages,
                "coef": trainer.kl_controller.coef,
            }
        ]
    )
    trainer.save(output)
    if trainer.accelerator.is_main_process:
        with open(f"{output}.json", "w", encoding="utf-8") as file:
            json.dump(ranks, file)
    # End without Python's clean-up. One of gloo's threads may still hold the last collective's
    # tensor and ask for the GIL: at exit Python then ends that thread inside C++ ("terminate called
    # without an active exception", 1 of 24 runs of a bare torch 2.13 script), and to destroy the
    # group first can wait for ever (the thread for the GIL, its holder for the thread).
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
