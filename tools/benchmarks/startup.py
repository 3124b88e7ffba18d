"""Time what a student waits for: imports, a kernel's first forward pass, notebooks, the tests.

python tools/benchmarks/startup.py [--runs 5] [--notebooks] [--tests]

Wall and processor seconds of fresh processes and all their children: medians of `runs` runs for
the imports and the kernel, one run of each notebook and of the tests. The kernel is a Jupyter
kernel that loads the shipped model and runs one prompt through it.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
FORWARD = """
import torch
from minippo.models import load_policy
policy, tokenizer = load_policy()
tokens = torch.tensor([tokenizer("How was the film?")["input_ids"]])
policy(tokens, torch.ones_like(tokens).bool())
"""
KERNEL = f"""
from jupyter_client.manager import start_new_kernel
manager, client = start_new_kernel()
reply = client.execute_interactive({FORWARD!r})
assert reply["content"]["status"] == "ok", reply
manager.shutdown_kernel()
"""
PROGRAMS = {
    "python alone": "pass",
    "import torch": "import torch",
    "import minippo": "import minippo",
    "from minippo.trainer import PPOTrainer": "from minippo.trainer import PPOTrainer",
    "model loaded, first forward pass": FORWARD,
    "the same in a new Jupyter kernel": KERNEL,
}


def run(*arguments: str) -> tuple[float, float]:
    """Return wall and processor seconds of this Python with these arguments."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    start, before = time.perf_counter(), os.times()
    subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT, env=environment, check=True, capture_output=True,
    )  # fmt: skip
    wall, after = time.perf_counter() - start, os.times()
    spent = after.children_user + after.children_system
    return wall, spent - before.children_user - before.children_system


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--notebooks", action="store_true")
    parser.add_argument("--tests", action="store_true", help="also time what `make test` runs")
    o = parser.parse_args()
    print("| | wall, s | processor, s |\n|---|---|---|")
    for name, program in PROGRAMS.items():
        times = zip(*(run("-c", program) for _ in range(o.runs)), strict=True)
        print("| {} | {:.2f} | {:.2f} |".format(name, *map(statistics.median, times)), flush=True)
    paths = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")) if o.notebooks else []
    suites = {path.stem: [str(path)] for path in paths} | ({"the tests": []} if o.tests else {})
    for name, arguments in suites.items():
        wall, processor = run("-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments)
        print(f"| {name} | {wall:.0f} | {processor:.0f} |", flush=True)


if __name__ == "__main__":
    main()
