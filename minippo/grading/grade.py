"""Grade files of functions: `python -m minippo grade my_ppo.py`, or a folder of them.

The file runs in a separate process with limits on time, memory and file size; it gets inputs and
returns numbers. The seed of the inputs and the verdict stay here: whatever a file does to its own
process costs only its own points.

What this does not protect against: the process has your rights. A file can read, change and delete
whatever you can, use the network, kill your other processes, and start new ones that outlive it.
And minippo is the answer key: anyone who looks will find it on the disk (`homework` draws different
conventions). Grade files from people you do not trust as another user, in a container without a
network.
"""

import argparse
import ast
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from minippo._validate import fail
from minippo.checks import CHECKS, Check, Result
from minippo.checks.engine.cases import Case
from minippo.checks.engine.observe import Observation
from minippo.checks.engine.variant import variant

START = 60.0  # seconds to import a file
EACH = 20.0  # seconds per function
MOST = 2**24  # characters a file may send back; an honest one sends a fortieth of that
SEED = "grading"


@dataclass(frozen=True)
class Grade:
    """One file's results.

    Attributes:
        file: The student's file.
        results: One result per requested function, in order.
        seconds: Grading time.
    """

    file: Path
    results: tuple[Result, ...]
    seconds: float

    @property
    def score(self) -> int:
        """One point per function that passes."""
        return sum(result.passed for result in self.results)

    @property
    def passed(self) -> bool:
        """True if at least one function was requested and all requested functions are right."""
        return bool(self.results) and self.score == len(self.results)

    def __str__(self) -> str:
        width = max((len(result.name) for result in self.results), default=8)
        lines = [f"{self.file.name}: {self.score} of {len(self.results)} points"]
        for result in self.results:
            said = result.headline.split("\n")[0]
            lines.append(f"  {int(result.passed)}  {result.name:{width}}  {said}")
        return "\n".join(lines)

    def details(self) -> str:
        """The full message for each function that did not pass."""
        more = [r for r in self.results if r.mistakes or r.lines or "\n" in r.headline]
        return "\n\n".join(str(r) for r in more if not r.passed)


def find_functions(path: Path) -> list[str]:
    """Names of the checks whose function the file defines, such as `gae` or `my_gae`.

    The file is not run: assigned and imported names count, but not those that are minippo's.
    """
    body = _parsed(path)
    todo: list[ast.AST] = [] if isinstance(body, str) else [*body]
    names = set[str]()
    while todo:
        node = todo.pop()
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.ImportFrom):
            ours = (node.module or "").split(".")[0] == "minippo"
            names |= {alias.asname or alias.name for alias in node.names if not ours}
        else:  # also what is inside if, try, with or a tuple
            todo += ast.iter_child_nodes(node)
    return [name for name in CHECKS if {name, f"my_{name}"} & names]


def grade(
    path: Path, *, seed: str = SEED, key: Mapping[str, Any] | None = None, tasks: Sequence[str] = ()
) -> Grade:
    """Grade one file.

    Tasks come from `tasks` or a key (see `homework`); each missing one costs its point. Without
    either, every known function in the file is graded.
    """
    start = time.monotonic()
    if unknown := [name for name in tasks if name not in CHECKS]:
        fail("grade", "tasks", f"be among {', '.join(CHECKS)}", ", ".join(unknown))
    asked = list(tasks or (key["tasks"] if key else find_functions(path)))
    body = _parsed(path)
    if not asked:
        problem = body if isinstance(body, str) else f"holds none of {', '.join(CHECKS)}"
        return Grade(path, (Result("file", False, problem),), time.monotonic() - start)
    checks = {name: _check(name, key) for name in asked}
    cases = {name: list(checks[name].generate(seed)) for name in asked}
    if isinstance(body, str):
        unread = tuple(Result(name, False, body, finished=False) for name in asked)
        return Grade(path, unread, time.monotonic() - start)
    results = {
        answer["name"]: _verdict(checks[answer["name"]], cases[answer["name"]], answer)
        for answer in _answers(path, asked, cases)
    }
    return Grade(path, tuple(results[name] for name in asked), time.monotonic() - start)


def _check(name: str, key: Mapping[str, Any] | None) -> Check:
    drawn = key["tasks"].get(name) if key else []
    if not key or not drawn:
        return CHECKS[name]
    others = {label: tasks.get(name, []) for label, tasks in key["previous"].items()}
    return variant(CHECKS[name], drawn, others)


def _parsed(path: Path) -> list[ast.stmt] | str:
    """Return the file's statements without running it, or why it cannot be read."""
    try:
        return ast.parse(path.read_bytes(), filename=path.name).body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        return f"cannot be read: {type(error).__name__}: {error}"


def _verdict(check: Check, cases: Sequence[Case], answer: Mapping[str, Any]) -> Result:
    """Judge what the worker observed. It may have been tampered with: trust no shape."""
    if "problem" in answer:
        problem = str(answer["problem"])[:2000]
        return Result(check.name, False, problem, finished=problem != "not in the file.")
    try:
        left_out = [name for name in check.optional if name in answer["left_out"]]
        asked = [c for c in cases if not any(name in c.inputs for name in left_out)]
        seen = [Observation(**one) for one in answer["seen"]]
        if len(seen) != len(asked):
            raise ValueError("another number of cases")
        return check.judge(asked, seen, left_out)
    except Exception as error:
        return Result(check.name, False, f"not yet. What came back cannot be read: {error!r:.200}.")


# ---- the worker process ----------------------------------------------------------------------


def _answers(
    path: Path, asked: Sequence[str], cases: Mapping[str, Sequence[Case]]
) -> Iterator[dict[str, Any]]:
    """Yield one answer per function; a process that dies or hangs is replaced for the rest."""
    left = list(asked)
    while left:
        now = ""
        for message in _run(path, left, cases):
            if "error" in message:
                said = f"The file cannot be imported.\n{message['error']}"
                yield from ({"name": name, "problem": said} for name in left)
                return
            if "starting" in message:
                now = str(message["starting"])
            elif message.get("name") == now and now in left:
                left.remove(now)
                yield message
                now = ""
        if left:  # it ended early: blame the function that was running, or the file
            blamed = [now] if now in left else list(left)
            for name in blamed:
                left.remove(name)
                yield {"name": name, "problem": "not yet. It did not end, or it ended the process."}


def _run(
    path: Path, functions: Sequence[str], cases: Mapping[str, Sequence[Case]]
) -> Iterator[dict[str, Any]]:
    """Start a worker and read its messages until it ends or is too slow."""
    seconds = START + EACH * len(functions)
    work = {
        "file": str(path.resolve()),
        "functions": list(functions),
        "cases": {name: [asdict(case) for case in cases[name]] for name in functions},
        "seconds": int(seconds),
    }
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [sys.executable, "-m", "minippo.grading.worker"], cwd=folder, env=_environment(),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            text=True, errors="replace", start_new_session=True,
        )  # fmt: skip
        lines: queue.Queue[str] = queue.Queue()
        threads = [
            threading.Thread(target=_feed, args=(process, json.dumps(work)), daemon=True),
            threading.Thread(target=_read, args=(process, lines), daemon=True),
        ]
        for thread in threads:
            thread.start()
        try:
            yield from _messages(lines, seconds)
        finally:
            _kill(process)
            for thread in threads:
                thread.join(5.0)


def _messages(lines: "queue.Queue[str]", seconds: float) -> Iterator[dict[str, Any]]:
    start = time.monotonic()
    end, until = start + seconds, start + START
    while True:
        try:
            line = lines.get(timeout=max(0.0, min(end, until) - time.monotonic()))
        except queue.Empty:
            return
        if not line:
            return
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            return  # only the worker writes to this pipe: it was tampered with
        if not isinstance(message, dict):
            return
        yield message
        until = time.monotonic() + EACH


def _feed(process: "subprocess.Popen[str]", work: str) -> None:
    assert process.stdin is not None
    try:
        with process.stdin as pipe:
            pipe.write(work)
    except OSError:
        pass  # it ended before reading everything


def _read(process: "subprocess.Popen[str]", lines: "queue.Queue[str]") -> None:
    assert process.stdout is not None
    left = MOST
    with process.stdout as pipe:
        while left > 0 and (line := pipe.readline(left)):
            left -= len(line)
            lines.put(line)
    lines.put("")


def _environment() -> dict[str, str]:
    """Path to minippo, offline mode, and one thread so that files can be graded in parallel."""
    root = str(Path(__file__).parents[2])
    found = {k: v for k, v in os.environ.items() if k in ("PATH", "HOME", "SYSTEMROOT", "LANG")}
    return found | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


def _kill(process: "subprocess.Popen[str]") -> None:
    """Kill the worker and everything it started."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (AttributeError, ProcessLookupError, PermissionError):
        process.kill()
    process.wait()


# ---- reports ---------------------------------------------------------------------------------


def _names(grades: Sequence[Grade]) -> list[str]:
    """File names relative to their common folder: two students' files may share a name."""
    if not grades:
        return []
    root = os.path.commonpath([g.file.resolve().parent for g in grades])
    return [g.file.resolve().relative_to(root).as_posix() for g in grades]


def gradescope(grades: Sequence[Grade]) -> dict[str, Any]:
    """Return the fields Gradescope reads from results.json; several files pool their tests."""
    names = _names(grades)
    return {
        "score": sum(g.score for g in grades),
        "execution_time": round(sum(g.seconds for g in grades), 3),
        "output": "\n".join(
            f"{name}: {g.score} of {len(g.results)}" for name, g in zip(names, grades, strict=True)
        ),
        "visibility": "visible",
        "tests": [
            {
                "name": f"{name}: {r.name}" if len(grades) > 1 else r.name,
                "score": int(r.passed),
                "max_score": 1,
                "status": "passed" if r.passed else "failed",
                "output": str(r),
                "visibility": "visible",
            }
            for name, g in zip(names, grades, strict=True)
            for r in g.results
        ],
    }


def junit(grades: Sequence[Grade]) -> str:
    """Return the results as JUnit XML, one suite per file."""
    root = ElementTree.Element("testsuites")
    for name, g in zip(_names(grades), grades, strict=True):
        suite = ElementTree.SubElement(
            root, "testsuite", name=name, tests=str(len(g.results)),
            failures=str(len(g.results) - g.score), time=f"{g.seconds:.3f}",
        )  # fmt: skip
        for r in g.results:
            case = ElementTree.SubElement(suite, "testcase", name=r.name, classname=g.file.stem)
            if not r.passed:
                ElementTree.SubElement(case, "failure", message=r.headline).text = str(r)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True)


def summary(grades: Sequence[Grade]) -> str:
    """Count how often each mistake was made."""
    counts = Counter(f"{r.name}: {r.mistake}" for g in grades for r in g.results if r.mistake)
    lines = [
        f"{name:24} {g.score} of {len(g.results)}"
        for name, g in zip(_names(grades), grades, strict=True)
    ]
    lines += [f"{n} of {len(grades)}: {text}" for text, n in sorted(counts.items(), key=_often)]
    return "\n".join(lines)


def _often(item: tuple[str, int]) -> tuple[int, str]:
    return -item[1], item[0]


def main(options: argparse.Namespace) -> int:
    """Run `minippo grade` (options in `minippo.cli`); return 0 only if everything passes."""
    if not options.path.exists():
        fail("grade", "path", "be a file or a folder", options.path)
    folder = options.path.is_dir()
    found = sorted(options.path.rglob("*.py")) if folder else [options.path]
    files = [path for path in found if path.is_file()]
    if not files:
        fail("grade", "path", "hold a .py file", options.path)
    key = json.loads(options.key.read_text(encoding="utf-8")) if options.key else None

    def graded(path: Path) -> Grade:
        return grade(path, seed=options.seed or SEED, key=key, tasks=options.tasks)

    with ThreadPoolExecutor(max_workers=2) as pool:
        grades = list(pool.map(graded, files))
    for g in grades if not options.summary else []:
        print(g, g.details(), sep="\n\n" if g.details() else "")
    if options.summary:
        print(summary(grades))
    if options.json:
        options.json.write_text(json.dumps(gradescope(grades), indent=1), encoding="utf-8")
    if options.junit:
        options.junit.write_text(junit(grades), encoding="utf-8")
    return 0 if all(g.passed for g in grades) else 1
