"""The process in which a student's file runs: `python -m minippo.grading.worker`.

It reads the work from stdin as JSON, calls the student's functions and writes their results as
plain numbers, one line per function. It knows neither the right answers nor the seed. minippo is
the answer key, so while a student's function runs, minippo's own version of it raises an error.
The others work, since a correct `ppo_update` may call minippo's `ppo_loss`. Of `minippo.checks`
only `solutions` is left, which `my_ppo.py` imports; `checks` itself is mute, and so is `course`.
"""

import importlib
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, TextIO

import minippo
from minippo.checks import CHECKS
from minippo.checks.engine.cases import Case
from minippo.checks.engine.check import Check
from minippo.checks.engine.observe import at_their_line

KEYS = ("minippo.checks.definitions", "minippo.checks.mistakes", "minippo.checks")
SOLUTIONS = "minippo.checks.solutions"
MEMORY = 8 * 2**30  # bytes of address space; torch alone takes about 3
LARGEST = 2**26  # bytes per file that it may write


def main() -> None:
    """Read the work, block the answers, import the file, call its functions."""
    work = json.load(sys.stdin)
    results = _private_stdout()
    _limit(work["seconds"])
    checks = {name: CHECKS[name] for name in work["functions"]}
    for name, check in checks.items():
        _take_out(name, check.reference)
    _block_keys()
    try:
        module = _load(Path(work["file"]))
    except BaseException as error:
        _say(results, {"error": at_their_line(error)})
        return
    for name in work["functions"]:
        cases = [Case(**case) for case in work["cases"][name]]
        _say(results, {"starting": name})
        _asked[:] = [name]
        _say(results, _seen(checks[name], _written(module, name), cases))


def _written(module: Any, name: str) -> Any:
    """Return the file's function; None if it holds none but minippo's."""
    found = [getattr(module, attribute, None) for attribute in (name, f"my_{name}")]
    written = [f for f in found if f is not None and not any(f is answer for answer in _taken)]
    return written[0] if written else None


def _seen(check: Check, function: Any, cases: Sequence[Case]) -> dict[str, Any]:
    """Run the function on each case that its signature accepts."""
    try:
        if function is None:
            return {"name": check.name, "problem": "not in the file."}
        if problem := check.signature_problem(function):
            return {"name": check.name, "problem": problem}
        left_out = check.left_out(function)
        asked = [c for c in cases if not any(name in c.inputs for name in left_out)]
        seen = [asdict(check.observe(function, case)) for case in asked]
        return {"name": check.name, "left_out": left_out, "seen": seen}
    except BaseException as error:  # SystemExit, or anything a patched torch raises
        return {"name": check.name, "problem": f"not yet. {at_their_line(error)}"}


def _private_stdout() -> TextIO:
    """Keep the pipe for results; discard whatever the student's code prints."""
    results = os.fdopen(os.dup(1), "w", encoding="utf-8")
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nowhere, number)
    return results


def _say(results: TextIO, message: dict[str, Any]) -> None:
    results.write(json.dumps(message) + "\n")
    results.flush()


def _limit(seconds: int) -> None:
    try:
        import resource
    except ImportError:  # not on Windows; the parent's timeout still applies
        return
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_FSIZE, (LARGEST, LARGEST))


_asked: list[str] = []  # the function being called
_taken: list[Callable[..., Any]] = []  # what minippo's answers were replaced by


def _take_out(name: str, answer: Callable[..., Any]) -> None:
    def asked_for(*args: Any, **keywords: Any) -> Any:
        if name in _asked:
            raise RuntimeError(f"minippo.{name}: this is the function you were asked to write.")
        return answer(*args, **keywords)

    _taken.append(asked_for)
    for module in [m for n, m in sys.modules.items() if n.split(".")[0] == "minippo"]:
        for key, value in list(vars(module).items()):
            if value is answer:
                setattr(module, key, asked_for)


class _NoKeys:
    """An importer that refuses the modules that hold the answers."""

    def find_spec(self, name: str, *_: object) -> None:
        if name.startswith(KEYS):
            raise ImportError(f"{name} is not available while grading")


class _Mute:
    """`checks`, and all that it gives: it knows nothing, and `use()` gives what was checked."""

    __path__: ClassVar[list[str]] = []  # a package, whose modules `_NoKeys` refuses
    __spec__ = None

    def __init__(self, function: Any = None) -> None:
        self._function = function

    def __call__(self, function: Any = None, *_: Any, **__: Any) -> "_Mute":
        return _Mute(function)

    def __getitem__(self, name: str) -> "_Mute":
        return _Mute()

    def __getattr__(self, name: str) -> "_Mute":
        if name.startswith("__"):  # Python's own questions, not a student's
            raise AttributeError(name)
        return _Mute()

    def use(self) -> Any:
        return self._function

    def __repr__(self) -> str:
        return "not shown while grading"


def _block_keys() -> None:
    left: dict[str, Any] = {name: _Mute() for name in ("minippo.checks", "minippo.course")}
    left[SOLUTIONS] = importlib.import_module(SOLUTIONS)
    for name in [n for n in sys.modules if n.startswith(KEYS)]:
        parent, _, child = name.rpartition(".")
        vars(sys.modules.get(parent, sys)).pop(child, None)
        del sys.modules[name]
    sys.modules.update(left)
    minippo.checks = left["minippo.checks"]
    sys.meta_path.insert(0, _NoKeys())


def _load(path: Path) -> Any:
    sys.path.insert(0, str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


if __name__ == "__main__":
    main()
