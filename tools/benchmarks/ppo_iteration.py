"""Time one PPO iteration of minippo, of TRL and of the tensor work alone: `make bench`.

python tools/benchmarks/ppo_iteration.py [a b c d] [--legacy PYTHON] [--before FOLDER] [--write]

Each contender is a separate process (`contenders.py`); they take turns, so that a machine whose
speed drifts is fair to all. Medians with their range; ratios are medians of the ratios within a
turn. `--legacy` names the Python of an environment with trl==0.11.4 and transformers==4.46.3.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from contenders import CASES, Case

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
RESULTS = ROOT / "docs" / "benchmarks.md"
TITLES = {
    "a": "shipped model (1 M), 64 prompts, up to 32 new tokens, real lengths",
    "b": "the same, every response at full length",
    "c": "GPT-2 small's shape (124 M), 8 prompts of 16, 32 new tokens",
}
SCALING = {  # one axis at a time, from 64 rows of 32 tokens and 1 M parameters
    "batch": {f"{n} rows": Case(rows=n, ends=False) for n in (8, 16, 32, 64, 128, 256)},
    "length": {
        f"{n} tokens": Case(rows=16, prompt=12, time=n, ends=False, model="1M")
        for n in (16, 32, 64, 128, 256)
    },
    "model": {
        name: Case(rows=16, prompt=16, ends=False, model=name, epochs=1)
        for name in ("1M", "10M", "40M", "gpt2")
    },
}


class Contender:
    """A process that makes one iteration on request."""

    def __init__(self, who: str, case: Case, threads: int, python: str, root: Path) -> None:
        kind = who.removesuffix(" before")
        command = [python, str(HERE / "contenders.py"), kind, json.dumps(asdict(case))]
        environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": str(threads)}
        self.who, self.turns, self.peak_mb = who, list[dict[str, Any]](), 0.0
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, env=environment,
        )  # fmt: skip
        self._read()

    def _read(self) -> dict[str, Any]:
        for line in self.process.stdout:
            if line.startswith("@"):
                return json.loads(line[1:])
        raise RuntimeError(f"{self.who} ended: {self.process.stderr.read()[-3000:]}")

    def _say(self, word: str) -> dict[str, Any]:
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        return self._read()

    def go(self, clock: str) -> None:
        """Make one iteration."""
        turn = self._say("go")
        self.turns.append(turn | {"seconds": turn[clock]})

    def end(self) -> None:
        """End the process and drop the first turn, which is a warm-up."""
        self.peak_mb = self._say("end")["peak_mb"]
        self.process.wait()
        self.turns = self.turns[1:]


def compare(
    case: Case, seconds: float, threads: int, who: dict[str, tuple[str, Path]], clock: str
) -> list[Contender]:
    """Run all contenders in turn, as often as the time allows, at least twice."""
    contenders = [Contender(name, case, threads, *place) for name, place in who.items()]
    start = time.perf_counter()
    while len(contenders[0].turns) < 2 or time.perf_counter() - start < seconds:
        for contender in contenders:
            contender.go(clock)
    for contender in contenders:
        contender.end()
    return contenders


def table(name: str, case: Case, contenders: list[Contender]) -> list[str]:
    """Return the rows of a case, in Markdown."""
    ours = [turn["seconds"] for turn in contenders[0].turns]
    lines = [
        f"### ({name}) {TITLES[name]}",
        "",
        f"Turns: {len(ours)}; {case.epochs} epochs of {case.minibatches} minibatches. Passes and "
        "positions through the trunks: learning / forward only / decoding.",
        "",
        "| | seconds: median (range) | samples per second | time, minippo = 1 | optimizer steps "
        "| passes | positions | peak memory, MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for contender in contenders:
        times, count = [t["seconds"] for t in contender.turns], contender.turns[-1]["count"]
        median = statistics.median(times)
        ratio = statistics.median(x / y for x, y in zip(times, ours, strict=True))
        kinds = ("learning", "other", "decode")
        passes, positions = (
            " / ".join(f"{count.get(f'{kind} {what}', 0):,}" for kind in kinds)
            for what in ("passes", "positions")
        )
        lines.append(
            f"| {contender.who} | {median:.3g} ({min(times):.3g} to {max(times):.3g}) "
            f"| {case.rows / median:.3g} | {ratio:.2f} | {count.get('steps', 0)} | {passes} "
            f"| {positions} | {contender.peak_mb:,.0f} |"
        )
    return [*lines, ""]


def scaling(seconds: float, threads: int, clock: str) -> list[str]:
    """Measure minippo's cost per real token as batch, length or model grow."""
    lines = ["### (d) minippo alone, one axis at a time", ""]
    for axis, cases in SCALING.items():
        lines += [f"| {axis} | seconds | ms per response token |", "|---|---|---|"]
        for label, case in cases.items():
            (it,) = compare(case, seconds, threads, {"minippo": (sys.executable, ROOT)}, clock)
            median = statistics.median(t["seconds"] for t in it.turns)
            cost = statistics.median(1000 * t["seconds"] / t["tokens"] for t in it.turns)
            lines.append(f"| {label} | {median:.3g} | {cost:.3g} |")
            print(lines[-1], file=sys.stderr)
        lines.append("")
    return lines


def main() -> None:
    """Measure and print, and write with `--write`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", default=["a", "b", "c", "d"])
    parser.add_argument("--seconds", type=float, default=120, help="seconds of turns per case")
    parser.add_argument(
        "--clock", choices=["wall", "processor"], default="wall",
        help="processor: processor seconds, for a shared machine",
    )  # fmt: skip
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--legacy", help="the Python of the environment with TRL 0.11.4")
    parser.add_argument("--before", type=Path, help="another checkout of minippo to measure")
    parser.add_argument("--without", nargs="*", default=[], help="contenders to leave out")
    parser.add_argument("--write", action="store_true", help=f"write into {RESULTS.name}")
    o = parser.parse_args()
    here = (sys.executable, ROOT)
    who = dict.fromkeys(["minippo", "minippo, two trunks", "TRL 1.12.0", "floor"], here)
    if o.legacy:
        who["TRL 0.11.4"] = (o.legacy, ROOT)
    if o.before:
        who["minippo before"] = (sys.executable, o.before)
    who = {name: place for name, place in who.items() if name not in o.without}
    for name in o.cases:
        if name == "d":
            lines = scaling(o.seconds / 60, o.threads, o.clock)
        else:
            case = CASES[name]
            lines = table(name, case, compare(case, o.seconds, o.threads, who, o.clock))
        cpu = next((x.split(":")[1].strip() for x in _cpuinfo() if "model name" in x), "?")
        lines.insert(
            2,
            f"{platform.machine()}, {cpu}, threads: {o.threads}, {o.clock} seconds; "
            f"torch {version('torch')}, transformers {version('transformers')}.\n",
        )
        print("\n".join(lines), flush=True)
        if o.write:
            write(name, "\n".join(lines))


def _cpuinfo() -> list[str]:
    file = Path("/proc/cpuinfo")
    return file.read_text(encoding="utf-8").splitlines() if file.exists() else []


def write(name: str, text: str) -> None:
    """Write a case's table between its two markers."""
    page, start, end = (
        RESULTS.read_text(encoding="utf-8"),
        f"<!-- {name} -->\n",
        f"<!-- end {name} -->",
    )
    before, rest = page.split(start)
    RESULTS.write_text(before + start + text + "\n" + end + rest.split(end)[1], encoding="utf-8")


if __name__ == "__main__":
    main()
