"""Recorded runs: a trainer callback writes one, `load_run` reads it.

One JSON file per run: the statistics of each step and, for a few held-out prompts at chosen steps,
the response with what PPO sees at each token.
"""

from minippo.record.recorder import Recorder
from minippo.record.run import PER_TOKEN, Run, load_run

__all__ = ["PER_TOKEN", "Recorder", "Run", "load_run"]
