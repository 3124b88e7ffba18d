"""Draw homework: `python -m minippo homework --seed 2027A --out DIR`.

minippo's functions are public, so homework asks for the same functions with a different
convention, drawn from the catalogue. The drawn convention is the specification; the package's own
version and last year's answer are mistakes that the grader knows by name.
"""

import argparse
import inspect
import json
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from minippo._validate import fail
from minippo.checks import CHECKS
from minippo.checks.mistakes import CATALOGUE

README = """# Homework {seed}

Write the functions in `my_ppo.py`. They are the course's, but where a docstring says **Here**,
use that convention instead of minippo's.

Inputs and shapes are those of the lessons; True in a mask is a real token; half precision is
converted to float32; junk (including NaN) under a mask changes nothing; no gradient flows to what
is data (old log-probs, advantages, returns, old values). You may use all of minippo except the
functions you are asked to write.
"""


def draw(seed: str, tasks: Sequence[str], previous: Sequence[str] = ()) -> dict[str, list[str]]:
    """Map each task to its required flags: one convention, or none if the task has none.

    A convention from an earlier draw is reused only if no other is left.
    """
    if unknown := [name for name in tasks if name not in CHECKS]:
        fail("homework", "tasks", f"be among {', '.join(CHECKS)}", ", ".join(unknown))
    drawn = {}
    for name in tasks:
        used = {flag for label in previous for flag in draw(label, [name])[name]}
        conventions = [m.name for m in CATALOGUE[name].mistakes if m.convention]
        fresh = [flag for flag in conventions if flag not in used] or conventions
        drawn[name] = [random.Random(f"{seed} {name}").choice(fresh)] if fresh else []
    return drawn


def write(folder: Path, seed: str, tasks: Sequence[str], previous: Sequence[str] = ()) -> None:
    """Write my_ppo.py and README.md for students and key.json for the instructor."""
    key = {
        "seed": seed,
        "tasks": draw(seed, tasks, previous),
        "previous": {label: draw(label, tasks) for label in previous},
    }
    folder.mkdir(parents=True, exist_ok=True)
    if existing := [n for n in ("my_ppo.py", "README.md", "key.json") if (folder / n).exists()]:
        fail("homework", "--out", "be a folder without a homework", f"{existing[0]} in {folder}")
    stubs = [stub(name, key["tasks"][name]) for name in tasks]  # type: ignore[index]
    head = f'"""Homework {seed}."""\n\nimport torch\n\n\n'
    (folder / "my_ppo.py").write_text(head + "\n\n\n".join(stubs) + "\n", encoding="utf-8")
    (folder / "README.md").write_text(README.format(seed=seed), encoding="utf-8")
    (folder / "key.json").write_text(json.dumps(key, indent=1) + "\n", encoding="utf-8")


def stub(name: str, flags: Sequence[str]) -> str:
    """Return a function to fill in: its signature, argument shapes and required convention."""
    reference: Callable[..., Any] = CHECKS[name].reference
    first = (inspect.getdoc(reference) or "").split("\n\n")[0]
    asked = [CATALOGUE[name][flag].convention for flag in flags]
    parameters = inspect.signature(reference).parameters
    shapes = {p.name: getattr(p.annotation, "dim_str", "").strip() for p in parameters.values()}
    paragraphs = [
        [first],
        [f"{p}: [{shape}]" for p, shape in shapes.items() if shape],
        [f"Here: {sentence}" for sentence in asked],
    ]
    text = "\n\n    ".join("\n    ".join(lines) for lines in paragraphs if lines)
    if inspect.isclass(reference):
        return _class_stub(name, text, parameters)
    return f'def {name}({_plain(parameters)}):\n    """{text}\n    """\n    ...'


def _plain(parameters: Mapping[str, inspect.Parameter]) -> str:
    """Return the signature without annotations."""
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in parameters.values()]
    return str(inspect.Signature(bare))[1:-1]


def _class_stub(name: str, text: str, parameters: Mapping[str, inspect.Parameter]) -> str:
    return (
        f'class {name}:\n    """{text}\n    """\n\n'
        f"    def __init__(self, {_plain(parameters)}):\n        self.coef = coef\n\n"
        "    def update(self, kl, n_episodes):\n        raise NotImplementedError"
    )


def main(options: argparse.Namespace) -> int:
    """Run `minippo homework`; `minippo.cli` defines its options."""
    write(options.out, options.seed, options.tasks or list(CHECKS), options.previous)
    print(f"{options.out}: my_ppo.py and README.md for students, key.json for you")
    return 0
