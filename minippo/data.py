"""From files to texts: the shipped folder, whose files are verified, and files of your own."""

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from minippo._validate import fail

_PACKAGE = Path(__file__).parent
# The wheel carries the folder inside the package; in a checkout it stands beside it.
DATA = next((p for p in (_PACKAGE / "_data", _PACKAGE.parent / "data") if p.is_dir()), _PACKAGE)
SHIPPED_MODELS = ("tiny-gpt2-base", "tiny-gpt2-sft", "tiny-gpt2-reward")
SHIPPED_TEXTS = ("prompts-train", "prompts-held-out", "demonstrations", "preferences")
SHIPPED_RUNS = ("healthy", "no-kl", "high-lr")
SHIPPED_STUDIES = ("bugs", "hacking", "limits", "alternatives")


def sha256(path: Path) -> str:
    """The file's SHA-256 in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def shipped(name: str) -> Path:
    """The path of a shipped model folder, text, run or study, after checking each file's sha256.

    Raises:
        ValueError: the name is not shipped, or a file is missing or differs from the manifest.
    """
    places = {model: DATA / model for model in SHIPPED_MODELS}
    places |= {text: DATA / f"{text}.jsonl" for text in SHIPPED_TEXTS}
    places |= {run: DATA / "runs" / f"{run}.json" for run in SHIPPED_RUNS}
    places |= {study: DATA / "studies" / f"{study}.jsonl" for study in SHIPPED_STUDIES}
    if name not in places:
        fail("shipped", "name", f"be one of {', '.join(places)}", name)
    path = places[name]
    recorded = json.loads((DATA / "manifest.json").read_text())["files"]
    files = {f: r for f, r in recorded.items() if (DATA / f).is_relative_to(path)}
    for file, record in files.items():
        if not (DATA / file).is_file() or sha256(DATA / file) != record["sha256"]:
            came = "another content" if (DATA / file).is_file() else "no file"
            fail("shipped", f"data/{file}", "be the file that the manifest describes", came)
    if not files:
        fail("shipped", f"data/{name}", "be there and in data/manifest.json", "neither")
    return path


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """One JSON object a line."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """One JSON object a line, UTF-8, readable."""
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")


def load_texts(name: str) -> list[dict[str, Any]]:
    """The rows of a shipped text file: {"prompt"}, {"prompt", "response"} or a preference pair.

    >>> sorted(load_texts("preferences")[0])
    ['chosen', 'prompt', 'rejected']
    """
    return read_jsonl(shipped(name))


def load_study(name: str) -> list[dict[str, Any]]:
    """The rows of a recorded study, one a run: {"case": what was varied and the seed, results...}.

    "bugs", "hacking", "limits" or "alternatives"; `data/studies` holds the code that made them.
    What was not finite is None.
    """
    return read_jsonl(shipped(name))


def load_prompts(source: str | Path) -> list[str]:
    """Prompts from a shipped name or a file of yours: JSON Lines, CSV, Parquet or plain text.

    Tables need a column "prompt"; in a plain text each line that is not blank is a prompt.

    Raises:
        ValueError: no such file, an unknown kind of file, no column "prompt", or no prompt.
    """
    if source in SHIPPED_TEXTS:
        return [row["prompt"] for row in load_texts(str(source))]
    path, kinds = Path(source), {".jsonl": "json", ".json": "json", ".txt": "text"}
    kind = (kinds | {".csv": "csv", ".parquet": "parquet"}).get(path.suffix)
    if not path.is_file():
        known = "prompts-train, prompts-held-out"
        fail("load_prompts", "source", f"be a file, or one of {known}", str(source))
    if kind is None:
        fail("load_prompts", "source", "end in .jsonl, .json, .csv, .parquet or .txt", path.name)
    if not path.stat().st_size:
        fail("load_prompts", path.name, "hold at least one prompt", "an empty file")
    from datasets import load_dataset  # here: it costs a second, and few need it

    table = load_dataset(kind, data_files=str(path), split="train")
    column = "text" if kind == "text" else "prompt"
    if column not in table.column_names:
        came = ", ".join(table.column_names)
        fail("load_prompts", f"{path.name}", 'have a column "prompt"', f"columns {came}")
    prompts = list(table[column])
    if kind == "text":
        prompts = [line for line in prompts if line.strip()]
    for number, prompt in enumerate(prompts, start=1):
        if not isinstance(prompt, str) or not prompt:
            fail("load_prompts", f"row {number}", "hold a text under 'prompt'", repr(prompt))
    if not prompts:
        fail("load_prompts", path.name, "hold at least one prompt", "none")
    return prompts
