"""A Windows clone, whose git writes CRLF where it may, holds the bytes that the manifest hashes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from minippo import data

ROOT = Path(__file__).parents[2]
PROGRAM = """
from pathlib import Path
from minippo import data, models, record

assert data.DATA == Path("data").resolve(), data.DATA
for name in data.SHIPPED_MODELS:
    load = models.load_reward_model if name.endswith("reward") else models.load_policy
    assert load(name)[0] is not None
print([len(data.load_texts(name)) for name in data.SHIPPED_TEXTS])
print([len(data.load_study(name)) > 0 for name in data.SHIPPED_STUDIES])
print([len(record.load_run(name).history) for name in data.SHIPPED_RUNS])
"""


def git(*arguments):
    command = ["git", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def windows(tmp_path):
    """What a clone of this checkout's last commit looks like there."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    settings = ["-c", "core.autocrlf=true", "-c", "core.eol=crlf"]
    done = git("clone", "--quiet", *settings, ROOT, tmp_path / "clone")
    assert done.returncode == 0, done.stderr
    return tmp_path / "clone"


@pytest.mark.slow
def test_models_texts_runs_and_studies_of_a_windows_clone_are_loaded(windows):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=windows, env=os.environ | {"PYTHONPATH": str(windows)},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    # Prompts, demonstrations and pairs; steps of the recorded runs: as the card has them.
    counts = ["[200, 50, 4000, 24000]", "[True, True, True, True]", "[48, 120, 48]"]
    assert done.stdout.splitlines() == counts


def test_a_windows_clone_holds_the_bytes_that_the_manifest_hashes(windows, monkeypatch):
    monkeypatch.setattr(data, "DATA", windows / "data")
    for kind in (data.SHIPPED_MODELS, data.SHIPPED_TEXTS, data.SHIPPED_RUNS, data.SHIPPED_STUDIES):
        assert all(data.shipped(name).is_relative_to(windows) for name in kind)


def test_no_text_of_a_windows_clone_has_crlf(windows):
    files = [windows / name for name in git("-C", windows, "ls-files").stdout.splitlines()]
    assert len(files) > 100
    kinds = {".py", ".md", ".json", ".jsonl", ".ipynb", ".yml", ".toml", ".txt", ""}
    texts = [path for path in files if path.suffix in kinds]
    assert [path.name for path in texts if b"\r\n" in path.read_bytes()] == []


def test_a_clone_without_history_is_18_mb_or_less(tmp_path):
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    done = git("clone", "--quiet", "--depth", "1", ROOT.as_uri(), tmp_path / "clone")
    assert done.returncode == 0, done.stderr
    assert sum(path.lstat().st_size for path in tmp_path.rglob("*")) <= 18_000_000  # du -sb
