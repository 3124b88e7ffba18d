"""Read a recorded run."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minippo import __version__
from minippo._validate import fail
from minippo.data import SHIPPED_RUNS, read, shipped

FORMAT, VERSION = "minippo run", 1
PER_TOKEN = ("ratio", "advantage", "kl", "entropy")


@dataclass(frozen=True)
class Run:
    """A recorded run.

    Attributes:
        name: The file name without its suffix.
        config: The trainer's configuration as plain values, including "seed".
        history: The statistics of each step, as in `PPOTrainer.history`.
        records: Per recorded step and prompt: {"step", "prompt", "tokens": [str], "score"}, and
            per token "ratio", "advantage", "kl" and "entropy"; see `Recorder`.
    """

    name: str
    config: dict[str, Any]
    history: list[dict[str, float]]
    records: list[dict[str, Any]]

    @property
    def prompts(self) -> list[str]:
        """The held-out prompts, in order."""
        return list(dict.fromkeys(record["prompt"] for record in self.records))

    def response(self, prompt: str, step: int) -> dict[str, Any] | None:
        """Return a prompt's latest record up to a step; None if nothing was recorded yet."""
        found = [r for r in self.records if r["prompt"] == prompt and r["step"] <= step]
        return max(found, key=lambda record: record["step"], default=None)


def load_run(source: str | Path) -> Run:
    """Load a run shipped with the package ("healthy") or a file written by a `Recorder`.

    Non-finite numbers come back as NaN.

    Raises:
        ValueError: If the file is missing, is not a run, is incomplete or has a later version.

    >>> run = load_run("healthy")
    >>> run.history[0]["step"], run.records[0]["step"]
    (1.0, 0)
    """
    path = shipped(str(source)) if source in SHIPPED_RUNS else Path(source)
    if not path.is_file():
        known = f"be a file or one of {', '.join(SHIPPED_RUNS)}"
        fail("load_run", "source", known, str(source))
    try:
        run = json.loads(read(path))
    except ValueError as error:  # also raised if it is not UTF-8
        fail("load_run", path.name, "be the whole JSON of a run", f"{error}")
    if not isinstance(run, dict) or run.get("format") != FORMAT:
        fail("load_run", path.name, "be written by a Recorder", "other JSON")
    if run.get("version") != VERSION:
        must = f"be of version {VERSION}, which minippo {__version__} reads"
        fail("load_run", path.name, must, f"{run.get('version')} (minippo {run.get('minippo')})")
    try:
        return _parsed(Path(path.name.removesuffix(".bz2")).stem, run)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        fail("load_run", path.name, "hold every part of a run", f"{type(error).__name__} {error}")


def _parsed(name: str, run: dict[str, Any]) -> Run:
    columns = {key: _floats(column) for key, column in run["history"].items()}
    history = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    records = []
    for record in run["records"]:
        floats = {key: _floats(record[key]) for key in PER_TOKEN}
        if {len(record["tokens"])} != {len(x) for x in floats.values()}:
            raise ValueError("number of tokens in a record")
        kept = {key: record[key] for key in ("step", "prompt", "tokens")}
        records.append(kept | floats | {"score": _floats([record["score"]])[0]})
    return Run(name, dict(run["config"]), history, records)


def _floats(numbers: Sequence[float | None]) -> list[float]:
    return [math.nan if x is None else float(x) for x in numbers]
