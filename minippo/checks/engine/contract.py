"""An exercise's contract: its text, hints, stub, answers and worked example, from one file.

`checks/contracts/NAME.toml` holds them. Every sentence of the text comes with a wrong
implementation that fails by it, so that text and check cannot disagree.
"""

import functools
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from minippo._validate import fail
from minippo.checks.engine.cases import Case

FOLDER = Path(__file__).parents[1] / "contracts"
KINDS = ("write", "build", "fix", "derive", "read")
IMPORTS = """import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minippo import *
from minippo.checks.solutions import *
from minippo.rollout import evaluate, generate
"""  # what a snippet, and a student's file, may use


@dataclass(frozen=True)
class Contract:
    """What one exercise asks for. Fields are the keys of its file.

    Attributes:
        name: Name of the function.
        literal: The answer of someone who reads only the text.
        hint_1: The answer of someone who also follows the first hint word for word.
        solution: An answer of a student's size, for pasting over the stub.
        example: The worked example: `inputs`, which the check's first case has, and `gives`.
        task: Sentences (`says`), each with what fails by it: a catalogued mistake (`broken_by`)
            or code (`wrong`).
    """

    name: str
    title: str
    kind: str
    minutes: int
    difficulty: int
    importance: int
    worked: str
    hints: list[str]
    stub: str
    literal: str
    hint_1: str
    solution: str
    example: dict[str, Any]
    task: list[dict[str, str]]

    def markdown(self, number: int | str) -> str:
        """The exercise's markdown cell; the number may be "3 (optional)"."""
        difficulty, importance = (
            "●" * n + "○" * (3 - n) for n in (self.difficulty, self.importance)
        )
        card = f"{self.kind.capitalize()} · {self.minutes} minutes"
        card += f" · difficulty {difficulty} · importance {importance}"
        parts = [
            f"## Exercise {number}: {self.title}\n*{card}*",
            " ".join(sentence["says"] for sentence in self.task).replace("\n ", "\n").strip(),
            self.worked.strip(),
        ]
        for i, hint in enumerate(self.hints, 1):
            summary = f"<details><summary>Hint {i}</summary>"
            parts.append(f"{summary}\n\n{hint.strip()}\n\n</details>")
        return "\n\n".join(parts)

    def cell(self) -> str:
        """The exercise's code cell: the stub, and the check that gives back a function."""
        return f"{self.stub.strip()}\n\n\n{self.name} = checks.{self.name}(my_{self.name}).use()"

    def run(self, code: str) -> Callable[..., Any]:
        """Execute a snippet as if in a student's file and return the function it defines."""
        names: dict[str, Any] = {}
        exec(IMPORTS + code, names)
        return names[f"my_{self.name}"]

    def case(self) -> Case:
        """The worked example as a case of the check."""
        return Case(self.example["inputs"], "the worked example")


@functools.cache
def contract(name: str) -> Contract | None:
    """Return a function's contract; None if it has none."""
    path = FOLDER / f"{name}.toml"
    return read(path) if path.is_file() else None


def read(path: Path) -> Contract:
    """Read and validate a contract's file."""
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        fail(path.name, "the file", "be TOML", error)
    _keys(path, "", set(found), {field.name for field in fields(Contract)} - {"name"})
    _keys(path, "example.", set(found["example"]), {"inputs", "gives"})
    for i, sentence in enumerate(found["task"], 1):
        how = "broken_by" if "broken_by" in sentence else "wrong"
        _keys(path, f"task {i}: ", set(sentence), {"says", how})
    for key, field in Contract.__dataclass_fields__.items():
        if field.type is str and key != "name" and not str(found[key]).strip():
            fail(path.name, key, "be a text", repr(found[key]))
    bounds = {"minutes": range(1, 91), "difficulty": range(1, 4), "importance": range(1, 4)}
    for key, allowed in (bounds | {"kind": KINDS}).items():
        if found[key] not in allowed:
            fail(path.name, key, f"be one of {', '.join(map(str, allowed))}", found[key])
    if len(set(found["hints"])) != 3:
        fail(path.name, "hints", "be three, all different", len(found["hints"]))
    return Contract(path.stem, **found)


def _keys(path: Path, where: str, found: set[str], wanted: set[str]) -> None:
    for key in sorted(found ^ wanted):
        must = "be there" if key in wanted else f"be one of {', '.join(sorted(wanted))}"
        fail(path.name, where + key, must, "nothing" if key in wanted else "this key")
