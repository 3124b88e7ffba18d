"""Load texts: from the shipped folder, whose files are verified, or from your own files."""

import bz2
import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from minippo._validate import fail
from minippo.hub import ask_for_dataset

_PACKAGE = Path(__file__).parent
# The wheel carries the folder inside the package; in a checkout it is next to it.
DATA = next((p for p in (_PACKAGE / "_data", _PACKAGE.parent / "data") if p.is_dir()), _PACKAGE)
SHIPPED_MODELS = ("tiny-gpt2-base", "tiny-gpt2-sft", "tiny-gpt2-reward")
SHIPPED_TEXTS = ("prompts-train", "prompts-held-out", "demonstrations", "preferences")
SHIPPED_RUNS = ("healthy", "no-kl", "high-lr")
SHIPPED_STUDIES = ("bugs", "hacking", "limits", "alternatives")


def read(path: Path) -> bytes:
    """Read a file's content; a .bz2 is unpacked."""
    content = path.read_bytes()
    try:
        return bz2.decompress(content) if path.suffix == ".bz2" else content
    except (OSError, ValueError):
        return content  # damaged, so its sha256 will not match


def write(path: Path, content: bytes) -> None:
    """Write a file, packed if its name ends in .bz2."""
    packed = path.suffix == ".bz2"
    path.write_bytes(bz2.compress(content) if packed else content)


def sha256(path: Path) -> str:
    """The SHA-256 of a file's content in hexadecimal, independent of how it was packed."""
    return hashlib.sha256(read(path)).hexdigest()


def shipped(name: str) -> Path:
    """The path of a shipped model folder, text, run or study, after checking each file's sha256.

    Raises:
        ValueError: the name is not shipped, or a file is missing or differs from the manifest.
    """
    places = {n: n for n in (*SHIPPED_MODELS, *SHIPPED_TEXTS)}
    places |= {run: f"runs/{run}" for run in SHIPPED_RUNS}
    places |= {study: f"studies/{study}" for study in SHIPPED_STUDIES}
    if name not in places:
        fail("shipped", "name", f"be one of {', '.join(places)}", name)
    place = places[name]
    recorded = json.loads((DATA / "manifest.json").read_text(encoding="utf-8"))["files"]
    files = {f: r for f, r in recorded.items() if f.startswith((f"{place}/", f"{place}."))}
    for file, record in files.items():
        if not (DATA / file).is_file() or sha256(DATA / file) != record["sha256"]:
            came = "different content" if (DATA / file).is_file() else "no file"
            fail("shipped", f"data/{file}", "be the file that the manifest describes", came)
    if not files:
        fail("shipped", f"data/{name}", "exist and be in data/manifest.json", "neither")
    return DATA / (place if name in SHIPPED_MODELS else next(iter(files)))


def read_jsonl(path: Path) -> list[dict[str, Any]]:
    """Read one JSON object per line; a .bz2 is unpacked."""
    return [json.loads(line) for line in read(path).splitlines()]


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object per line in readable UTF-8; packed if the name ends in .bz2."""
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    write(path, "".join(lines).encode("utf-8"))


def load_texts(name: str) -> list[dict[str, Any]]:
    """The rows of a shipped text file: {"prompt"}, {"prompt", "response"} or a preference pair.

    >>> sorted(load_texts("preferences")[0])
    ['chosen', 'prompt', 'rejected']
    """
    return read_jsonl(shipped(name))


def load_study(name: str) -> list[dict[str, Any]]:
    """The rows of a recorded study, one per run: {"case": the variation and the seed, results...}.

    "bugs", "hacking", "limits" or "alternatives"; `tools/studies` holds the code that made them.
    Non-finite numbers are stored as None.
    """
    return read_jsonl(shipped(name))


def load_prompts(source: str | Path) -> list[str]:
    """Load prompts from a shipped name, your own file or folder, or a hub data set.

    Files: JSON Lines, CSV, Parquet, or plain text with one prompt per non-blank line; packed or
    not (.jsonl.gz, .jsonl.bz2). Folders and hub data sets: their split "train" as `datasets` loads
    it. Tables need a column "prompt"; name any other: "reviews.csv:text", "stanfordnlp/imdb:text".

    Raises:
        ValueError: no such file or data set, or the hub cannot be reached (reported in under 5 s);
            an unknown kind of file, no such column, or no prompt.
    """
    if source in SHIPPED_TEXTS:
        return [row["prompt"] for row in load_texts(str(source))]
    place, column = str(source), "prompt"
    if not Path(source).exists() and (named := re.fullmatch(r"(.+):(\w+)", place)):
        place, column = named.groups()
    path = Path(place)
    name = path.name
    table = _load_table(place)
    if _kind(path) == "text":
        column = "text"
    if column not in table.column_names:
        came = ", ".join(table.column_names)
        fail("load_prompts", name, f'have a column "{column}"', f"columns {came}")
    prompts = list(table[column])
    if _kind(path) == "text":
        prompts = [line for line in prompts if line.strip()]
    for number, prompt in enumerate(prompts, start=1):
        if not isinstance(prompt, str) or not prompt:
            fail("load_prompts", f"row {number}", f"hold a text under '{column}'", repr(prompt))
    if not prompts:
        fail("load_prompts", name, "hold at least one prompt", "none")
    return prompts


def _kind(path: Path) -> str | None:
    """The format in which `datasets` (which unpacks by itself) reads a file, by its ending."""
    kinds = {".jsonl": "json", ".json": "json", ".txt": "text", ".csv": "csv"}
    name = path.stem if path.suffix in (".bz2", ".gz", ".xz") else path.name
    return (kinds | {".parquet": "parquet"}).get(Path(name).suffix)


def _load_table(place: str) -> Any:
    """Load a file, a folder or a hub data set as a `datasets` table."""
    kind = _kind(path := Path(place))
    if not path.exists() and (kind or not re.fullmatch(r"\w[\w.-]*/[\w.-]+", place)):
        must = "be an existing file or folder, a hub data set (owner/name), or "
        fail("load_prompts", "source", f"{must}one of prompts-train, prompts-held-out", place)
    if path.is_file() and kind is None:
        must = "end in .jsonl, .json, .csv, .parquet or .txt (or one of these and .bz2, .gz or .xz)"
        fail("load_prompts", "source", must, path.name)
    if path.is_file() and not path.stat().st_size:
        fail("load_prompts", path.name, "hold at least one prompt", "an empty file")
    if not path.exists():
        ask_for_dataset(place)
    import datasets  # imported lazily: takes a second and is rarely needed

    options = {"data_files": place} if path.is_file() else {}
    try:
        return datasets.load_dataset(kind if path.is_file() else place, split="train", **options)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split())[:300]
        fail("load_prompts", "source", "be a table that datasets can read", f"{place} ({reason})")
