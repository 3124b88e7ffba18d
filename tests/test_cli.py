"""The command line: versions, help and exit codes."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from minippo import cli


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ("--version", 0),
        ("--help", 0),
        ("", 2),
        ("trane", 2),
        ("train --no", 2),
        ("grade x --no", 2),
    ],
)
def test_usage_has_the_usual_exit_codes(arguments, code, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments.split())
    assert stop.value.code == code


LIGHT = ["", "--version", "--help", "demo --help", "grade --help", "homework --help", "trane"]
HEAVY = ["torch", "transformers", "accelerate", "datasets", "matplotlib", "PIL", "numpy"]


def test_version_and_help_load_nothing_that_takes_seconds():
    program = f"""
import runpy, sys
for arguments in {LIGHT}:
    sys.argv[1:] = arguments.split()
    try:
        runpy.run_module("minippo", run_name="__main__")
    except SystemExit as stop:
        print("exit code", stop.code, [name for name in {HEAVY} if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    told = [line for line in done.stdout.splitlines() if line.startswith("exit code")]
    assert told == [f"exit code {code} []" for code in (2, 0, 0, 0, 0, 0, 2)]


def test_help_has_a_line_for_each_command_and_no_command_shows_it(capsys):
    with pytest.raises(SystemExit):
        cli.main([])
    lines = capsys.readouterr().err.splitlines()
    for command in ("demo", "train", "fetch", "grade", "homework"):
        assert any(re.match(rf"    {command}  +\w+", line) for line in lines)
