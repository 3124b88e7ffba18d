"""The wheel, installed where there is no clone: everything but the notebooks' files works."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# What runs in the fresh environment, far from the clone. No address but the machine's own is open.
PROGRAM = """
import importlib.metadata, re, socket, sys
from pathlib import Path

def closed(self, address, *rest):
    raise OSError(f"the network was asked for {address}")

socket.socket.connect = closed
socket.getaddrinfo = closed

import minippo
from minippo import checks, cli, gae, plots, widgets
from minippo.checks.engine.contract import contract
from minippo.course import demo
from minippo.data import DATA, SHIPPED_MODELS, SHIPPED_RUNS, SHIPPED_TEXTS, load_texts, shipped
from minippo.grading.grade import grade
from minippo.models import load_policy, load_reward_model

home = Path(minippo.__file__).parent
assert home.is_relative_to(sys.prefix), home
assert DATA == home / "_data"
for name in (*SHIPPED_MODELS, *SHIPPED_TEXTS, *SHIPPED_RUNS):
    shipped(name)  # there, with the manifest's sha256
policy, tokenizer = load_policy("tiny-gpt2-sft")
assert sum(p.numel() for p in policy.parameters()) > 900_000
assert load_reward_model("tiny-gpt2-reward")[0] is not None

demo.STEPS = 2
assert cli.main(["demo", "--output", "demo"]) == 0
assert Path("demo/run.png").read_bytes().startswith(b"\\x89PNG")

assert checks.gae(gae).passed
assert "\\n    kept = " in contract("masked_mean").solution
Path("answers.py").write_text("def my_kl_k1(log_probs, ref_log_probs):\\n"
                              "    return log_probs - ref_log_probs\\n")
assert grade(Path("answers.py"), tasks=["kl_k1"]).passed

assert plots.png(plots.clipping_panels()).startswith(b"\\x89PNG")
explorer = widgets.replay("healthy")
assert explorer.sentence in repr(explorer)
assert not any(minippo.__file__ in str(p) for p in Path.cwd().rglob("*"))
print("all of it works, from", home)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", str(ROOT)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode and "hatchling" in done.stderr and "No matching" in done.stderr:
        pytest.skip("hatchling, which builds the wheel, cannot be fetched here")
    assert done.returncode == 0, done.stderr
    (made,) = folder.glob("minippo-*.whl")
    return made


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_the_data_and_is_small(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    data = {f.relative_to(ROOT / "data") for f in (ROOT / "data").rglob("*") if f.is_file()}
    data = {f for f in data if "__pycache__" not in f.parts}
    assert {f"minippo/_data/{f.as_posix()}" for f in data} <= names
    for kind in ("*.py", "*.toml"):  # modules; contracts, catalogues, questions and captions
        files = {f.relative_to(ROOT).as_posix() for f in (ROOT / "minippo").rglob(kind)}
        assert files <= names
    assert not [
        n for n in names if n.startswith(("tests", "tools", "notebooks")) or "__pycache__" in n
    ]
    assert [n for n in names if n.startswith("minippo/_data/") and n.endswith(".py")] == []
    assert "minippo/py.typed" in names  # or a user's mypy would take all of it for Any
    print(f"{len(names)} files, {wheel.stat().st_size / 1e6:.1f} MB")
    assert wheel.stat().st_size < 10_000_000


@pytest.mark.slow
def test_the_wheel_works_in_a_fresh_environment_from_another_folder_offline(wheel, tmp_path):
    """torch and the others are lent by this environment; minippo itself is not: its link to the
    clone is a .pth file of site-packages, and those of a lent folder are not read.
    """
    place = tmp_path / "fresh"
    venv.create(place, with_pip=False)
    python = place / ("Scripts" if os.name == "nt" else "bin") / "python"
    (site,) = [*place.glob("lib/python*/site-packages"), *place.glob("Lib/site-packages")]
    (site / "lent.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    pip = [sys.executable, "-m", "pip", "--python", str(python)]
    install = [*pip, "install", "--quiet", "--no-index", "--no-deps", "--force-reinstall"]
    subprocess.run([*install, str(wheel)], check=True)

    folder = tmp_path / "elsewhere"
    folder.mkdir()
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "HF_"))}
    quiet = {"HOME": str(tmp_path), "TQDM_DISABLE": "1", "OMP_NUM_THREADS": "1"}
    settings = {"cwd": folder, "env": kept | quiet, "capture_output": True, "text": True}
    done = subprocess.run([python, "-c", PROGRAM], timeout=300, check=False, **settings)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "all of it works" in done.stdout
    command = [python.with_name("minippo"), "--version"]
    said = subprocess.run(command, timeout=60, check=True, **settings).stdout
    assert said.startswith("minippo ")
    checked = subprocess.run([*pip, "check"], capture_output=True, text=True, check=False)
    assert "minippo" not in checked.stdout  # what it requires is there, in versions that it takes
