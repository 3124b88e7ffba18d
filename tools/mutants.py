"""Plant one-line mutants, one at a time, and report the share the tests kill.

`python tools/mutants.py` takes a seeded sample of 150 over the mathematics, responses, scores,
rollout, PPO, and the trainer with its checkpoints and processes, and runs each on the tests of its
module (TESTS) until the first failure. A child process reads the mutant in place of the module's
file; the checkout stays as it is.

A mutant's place in the sample is a hash of the seed, its function, its line and the change: code
that moves to another module keeps its mutants, so two versions can be compared.
Needs `fork`: Linux or macOS.
"""

import argparse
import ast
import builtins
import gc
import hashlib
import importlib
import multiprocessing
import os
import re
import signal
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from importlib.machinery import SourceFileLoader
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest

# Each module's tests, by patterns: what a module is split into needs its own line here.
TESTS = {
    **{
        f"minippo/{name}.py": [f"tests/test_{name}.py", "tests/whole/test_fuzz.py"]
        for name in ("advantages", "alternatives", "kl", "log_probs", "losses", "masking")
    },
    **{
        f"minippo/{name}.py": [f"tests/{test}.py" for test in tests.split()]
        for name, tests in {
            "responses": "test_responses test_rollout test_trainer*",
            "scores": "test_scores test_rollout test_trainer*",
            "rollout": "test_rollout test_responses whole/test_llama test_models whole/test_memory "
            "whole/test_shipped test_trainer*",
            "ppo": "test_ppo* test_trainer*",
            "trainer": "test_trainer* test_ppo test_checkpoint whole/test_faults whole/test_memory",
            "checkpoint": "test_checkpoint whole/test_faults",
            "processes": "test_processes test_trainer*",
        }.items()
    },
}
# Imported once for all children, except minippo, because conftest.py hooks into its import.
IMPORTS = (
    "torch accelerate accelerate.tracking beartype datasets hypothesis ipykernel jaxtyping "
    "matplotlib.figure nbval.plugin peft tokenizers tqdm.auto transformers.trainer "
    "transformers.models.gpt2.modeling_gpt2 transformers.models.llama.modeling_llama"
).split()
OPTIONS = "-x -q -p no:cacheprovider -W ignore::pytest.PytestAssertRewriteWarning".split()
SECONDS = 120  # processor time; a slower mutant hangs and counts as killed

OPERATORS = {
    **{ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "=="},
    **{ast.Is: "is not", ast.IsNot: "is", ast.In: "not in"},
    ast.NotIn: "in",  # codespell:ignore notin
    **{ast.And: "or", ast.Or: "and", ast.BitAnd: "|", ast.BitOr: "&", ast.LShift: ">>"},
    **{ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.FloorDiv: "*", ast.Mod: "*"},
    ast.Pow: "*",
}
PAIRS = (
    "min max, minimum maximum, any all, zeros_like ones_like, argmin argmax, no_grad enable_grad"
)
NAMES = {a: b for pair in PAIRS.split(", ") for a, b in (pair.split(), pair.split()[::-1])}
NAMES |= {"detach": "clone", "cumsum": "cumprod", "mean": "sum", "sum": "mean"}


class Mutant(NamedTuple):
    """One changed line of a function or class, and the module's whole new text."""

    scope: str
    line: int
    column: int
    before: str
    after: str
    text: str


def mutants(source: str) -> list[Mutant]:
    """Return all mutants of a module's functions and classes, in source order."""
    tree, lines, found = ast.parse(source), source.encode().splitlines(keepends=True), set()
    tops = [x for x in tree.body if isinstance(x, ast.FunctionDef | ast.ClassDef)]
    for scope, node in (pair for top in tops for pair in _walk(top.name, top)):
        for row, start, end, new in _changes(node, lines):
            line = lines[row]
            after = line[:start] + new.encode() + line[end:]
            text = b"".join([*lines[:row], after, *lines[row + 1 :]]).decode()
            with suppress(SyntaxError):
                if ast.dump(ast.parse(text)) != ast.dump(tree):
                    old, changed = line.decode().strip(), after.decode().strip()
                    found.add(Mutant(scope, row + 1, start, old, changed, text))
    return sorted(found, key=lambda m: (m.line, m.column, m.after))


def _walk(scope: str, node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Yield the nodes that decide what is computed: no types, texts or error messages."""
    yield scope, node
    if isinstance(node, ast.JoinedStr) or (isinstance(node, ast.keyword) and node.arg == "strict"):
        return
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "fail":
        return
    skipped = {"annotation", "returns", "bases", "exc"}
    if isinstance(node, ast.ClassDef):
        skipped.add("decorator_list")
    for field, value in ast.iter_fields(node):
        for x in value if isinstance(value, list) else [value]:
            if isinstance(x, ast.AST) and field not in skipped:
                inner = isinstance(x, ast.FunctionDef | ast.ClassDef)
                yield from _walk(f"{scope}.{x.name}" if inner else scope, x)


def _changes(node: Any, lines: list[bytes]) -> Iterator[tuple[int, int, int, str]]:
    """Yield this node's possible changes, without its parts: row, bytes removed, text inserted."""
    match node:
        case ast.BinOp():
            pairs = [(node.left, node.op, node.right)]
        case ast.AugAssign():
            pairs = [(node.target, node.op, node.value)]
        case ast.BoolOp():
            pairs = [(a, node.op, b) for a, b in pairwise(node.values)]
        case ast.Compare():
            operands = pairwise([node.left, *node.comparators])
            pairs = [(a, op, b) for (a, b), op in zip(operands, node.ops, strict=True)]
        case _:
            pairs = []
    for left, op, right in pairs:
        if type(op) not in OPERATORS:
            continue
        new = OPERATORS[type(op)] + "=" * isinstance(node, ast.AugAssign)
        for row in range(left.end_lineno - 1, right.lineno):
            start = left.end_col_offset if row == left.end_lineno - 1 else 0
            end = right.col_offset if row == right.lineno - 1 else None
            if sign := re.search(rb"[^\s()#]+( (not|in)\b)?", lines[row][start:end].split(b"#")[0]):
                yield row, start + sign.start(), start + sign.end(), new
    if not hasattr(node, "lineno"):
        return
    row, start, end = node.lineno - 1, node.col_offset, node.end_col_offset
    match node:
        case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=value)):
            yield row, start, end, f"-{value + 1}"  # the last axis becomes the one before it
        case ast.UnaryOp(op=ast.Not()):
            yield row, start, start + len("not"), ""
        case ast.UnaryOp(op=ast.USub()):
            yield row, start, start + len("-"), ""
        case ast.Constant(value=bool(value)):
            yield row, start, end, str(not value)
        case ast.Constant(value=int(value) | float(value)) if value < 10:
            yield row, start, end, str(1 - value if value in (0, 1) else value + 1)
        case ast.Name(id=name) if name in NAMES:
            if hasattr(builtins, NAMES[name]) or not hasattr(builtins, name):
                yield row, start, end, NAMES[name]
        case ast.Attribute(attr=name) if name in NAMES:
            yield node.end_lineno - 1, end - len(name), end, NAMES[name]
        case ast.keyword(arg="min" | "max" as name):
            yield row, start, start + len(name), NAMES[name]
        case ast.If(test=test) | ast.IfExp(test=test) | ast.While(test=test):
            if isinstance(test, ast.Name | ast.Attribute | ast.Call):
                yield test.lineno - 1, test.col_offset, test.col_offset, "not "
        case ast.Expr(value=ast.Call()) if node.end_lineno == node.lineno:
            yield row, start, end, "pass"


def order(mutant: Mutant, seed: int) -> bytes:
    """Return a mutant's place in the sample, which moving the code does not change."""
    name = mutant.scope.split(".")[-1]
    return hashlib.sha256(repr((seed, name, mutant.before, mutant.after)).encode()).digest()


def passes(root: Path, tests: list[str], path: Path | None = None, text: str = "") -> bool:
    """Return whether the tests pass in a child process that reads `text` instead of the file."""
    if child := os.fork():
        _, status = os.waitpid(child, 0)
        with suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)  # processes it may have started
        return status == 0
    code = 1
    try:
        os.setsid()
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        signal.alarm(5 * SECONDS)  # stops one that waits
        nowhere = 2 if path is None else os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        if path is not None:
            _plant(path, text)
        os.chdir(root)
        sys.path.insert(0, str(root))
        code = pytest.main([*OPTIONS, *tests])
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def _plant(path: Path, text: str) -> None:
    stats, data = SourceFileLoader.path_stats, SourceFileLoader.get_data

    def path_stats(loader: SourceFileLoader, name: str) -> Mapping[str, Any]:
        if Path(name) == path:
            raise OSError  # no compiled file is read or written
        return stats(loader, name)

    def get_data(loader: SourceFileLoader, name: str) -> bytes:
        return text.encode() if Path(name) == path else data(loader, name)

    SourceFileLoader.path_stats, SourceFileLoader.get_data = path_stats, get_data


def _survives(job: tuple[Path, list[str], Path, str]) -> bool:
    return passes(*job)


def main(root: Path, seed: int, n: int) -> None:
    """Print the survivors and the share killed, per file and in total."""
    tests, found = dict[str, list[str]](), list[tuple[str, Mutant]]()
    for pattern, its_tests in TESTS.items():
        files = [str(x.relative_to(root)) for x in sorted(root.glob(pattern))]
        test_files = [sorted(map(str, root.glob(x))) for x in its_tests]
        for name, hits in zip([pattern, *its_tests], [files, *test_files], strict=True):
            if not hits:
                sys.exit(f"mutants: TESTS names {name}, and {root} has no such file.")
        for file in files:
            tests[file] = [*chain(*test_files), file]  # the module's doctests last
            source = (root / file).read_text(encoding="utf-8")
            found += [(file, mutant) for mutant in mutants(source)]
    sample = sorted(found, key=lambda x: order(x[1], seed))[:n]
    sample.sort(key=lambda x: (x[0], x[1].line))
    for name in IMPORTS:
        importlib.import_module(name)
    gc.freeze()  # otherwise each child would scan all of it again
    with multiprocessing.get_context("fork").Pool(2) as pool:
        clean = pool.imap(_survives, [(root, x) for x in tests.values()], 1)
        for file, passed in zip(tests, clean, strict=True):
            if not passed:
                sys.exit(f"mutants: the tests of {file} fail without a mutant.")
        jobs = [(root, tests[file], root / file, mutant.text) for file, mutant in sample]
        survived = Counter[str]()
        for (file, m), survives in zip(sample, pool.imap(_survives, jobs, 1), strict=True):
            survived[file] += survives
            if survives:
                print(f"{file}:{m.line} {m.scope}: {m.before}  ->  {m.after}", flush=True)
    total = Counter(file for file, _ in sample)
    for file in total:
        print(f"{file}: {total[file] - survived[file]} of {total[file]} killed")
    killed = len(sample) - survived.total()
    print(f"{killed} of {len(sample)} killed ({killed / len(sample):.1%}), seed {seed}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--n", type=int, default=150)
    parser.add_argument("--package-root", type=Path, default=Path(__file__).parents[1])
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        # Nothing is written into the checkout: no compiled files, none from hypothesis.
        sys.pycache_prefix = tempfile.tempdir = scratch
        sys.path[0] = str(arguments.package_root.resolve())
        os.environ |= {"HYPOTHESIS_STORAGE_DIRECTORY": scratch, "OMP_NUM_THREADS": "1"}
        os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        main(arguments.package_root.resolve(), arguments.seed, arguments.n)
