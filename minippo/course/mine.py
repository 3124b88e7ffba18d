"""`my_ppo.py`, beside the notebooks: what a student has built, and minippo's until then.

It is ordinary Python. Whatever passes its check is added to it, with the source as written.
`MINIPPO_MINE=off` leaves it alone: `my_ppo` then holds minippo's functions only.
"""

import ast
import importlib
import inspect
import os
import re
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from minippo.checks.engine import result
from minippo.checks.engine.contract import IMPORTS
from minippo.grading.grade import grade

# The functions of which one PPO step consists.
FUNCTIONS = (
    "token_log_probs", "response_mask", "masked_mean", "probability_ratio", "first_ratio_error",
    "clipped_surrogate", "clip_is_active", "value_loss", "td_errors", "gae", "whiten", "entropy",
    "kl_k1", "kl_k3", "shape_rewards", "AdaptiveKL", "combined_loss",
)  # fmt: skip
FILE = "my_ppo.py"
SAYS = '"""Your PPO: what passes its check is added below. Whatever is missing is minippo\'s."""'
HEADER = f"{SAYS}\n\n{IMPORTS}"


def begin() -> str:
    """Make the file if it is missing and import it; return what the student should know."""
    if os.environ.get("MINIPPO_MINE") == "off":
        result.KEEP.clear()
        _without_a_file()
        return ""
    result.KEEP[:] = [keep]
    path = Path(FILE)
    if not path.exists():
        path.write_text(HEADER, encoding="utf-8")
    if (folder := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, folder)
    sys.modules.pop("my_ppo", None)
    importlib.invalidate_caches()
    try:
        importlib.import_module("my_ppo")
    except Exception as error:
        _without_a_file()
        return f"{FILE} cannot be imported ({type(error).__name__}: {error}): minippo's are used."
    return f"{FILE}: {whose()}"


def _without_a_file() -> None:
    module = ModuleType("my_ppo")
    exec(HEADER, vars(module))
    sys.modules["my_ppo"] = module


def keep(name: str, function: Callable[..., Any]) -> str:
    """Add a function to the file, if the file then still works in a process of its own."""
    try:
        source = textwrap.dedent(_source(function)).strip()
    except (OSError, TypeError):
        source = ""
    if not re.match(r"(@|def |class )", source):
        return f"not added to {FILE}: only a function or class written in a cell can be"
    before = Path(FILE).read_text(encoding="utf-8") if Path(FILE).exists() else HEADER
    after = _with(before, name, f"{source}\n\n\n{name} = {function.__name__}")
    with tempfile.TemporaryDirectory() as folder:
        trial = Path(folder) / FILE
        trial.write_text(after, encoding="utf-8")
        (verdict,) = grade(trial, tasks=[name]).results
    if not verdict.idea:
        said = " ".join([verdict.headline, *verdict.lines[:2]])  # with the line and its error
        return f"not added to {FILE}, where it has to work by itself: {said}"
    Path(FILE).write_text(after, encoding="utf-8")
    begin()
    return f"added to {FILE}"


def _source(function: Callable[..., Any]) -> str:
    """Return the source as written. inspect cannot find a class of a cell, but its methods."""
    methods = [m for m in vars(function).values() if inspect.isfunction(m)]
    if not (inspect.isclass(function) and methods):
        return inspect.getsource(function)
    cell = "".join(inspect.findsource(methods[0])[0])
    found = [n for n in ast.parse(cell).body if getattr(n, "name", "") == function.__name__]
    return ast.get_source_segment(cell, found[-1]) or "" if found else ""


def _with(text: str, name: str, source: str) -> str:
    """Put the source into the file's text, in the place of an earlier one of this name."""
    first, last = f"# ---- {name} ----", f"# ---- end of {name} ----"
    block = f"{first}\n{source}\n{last}\n"
    old = re.compile(rf"^{re.escape(first)}\n.*?^{re.escape(last)}\n", re.DOTALL | re.MULTILINE)
    if old.search(text):
        return old.sub(lambda _: block, text, count=1)
    return f"{text.rstrip()}\n\n\n{block}"


def whose(names: Sequence[str] = FUNCTIONS) -> str:
    """Say how many of these functions are the student's: "17 functions: 15 yours, 2 minippo's"."""
    module = importlib.import_module("my_ppo")
    theirs = [name for name in names if getattr(module, name).__module__ != "my_ppo"]
    said = f"{len(names)} functions: {len(names) - len(theirs)} yours, {len(theirs)} minippo's"
    return f"{said} ({', '.join(theirs)})" if 0 < len(theirs) < len(names) else said


@contextmanager
def minippos(namespace: dict[str, Any]) -> Iterator[None]:
    """In a notebook's `globals()`, make FUNCTIONS minippo's within a block, then yours again."""
    yours = {name: namespace[name] for name in FUNCTIONS if name in namespace}
    ours = dict[str, Any]()
    exec(HEADER, ours)
    namespace.update({name: ours[name] for name in yours})
    try:
        yield
    finally:
        namespace.update(yours)
