"""The start of a lesson: seed, threads, the model's name and the student's file."""

import importlib.util
import os

import torch

from minippo import __version__
from minippo.course import mine

NEEDED = ("transformers", "datasets", "matplotlib", "ipywidgets")


def start() -> str:
    """Prepare a lesson: fix seed and threads, make my_ppo.py; return the model's name.

    The environment may name another model, `MINIPPO_MODEL=gpt2` (124 M parameters, by network),
    and switch the student's file off, `MINIPPO_MINE=off`.

    Raises:
        SystemExit: If a package that every lesson needs is missing.
    """
    if absent := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise SystemExit(f"{', '.join(absent)} missing: pip install {' '.join(absent)}")
    model = os.environ.get("MINIPPO_MODEL", "tiny-gpt2-sft")
    torch.manual_seed(0)
    if model.startswith("tiny"):
        torch.set_num_threads(1)  # sums are added up in the same order on every machine
    print(f"minippo {__version__}, torch {torch.__version__.split('+')[0]}, model {model}")
    if said := mine.begin():
        print(said)
    return model
