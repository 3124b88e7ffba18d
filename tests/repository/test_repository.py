"""The files around the package keep their promises to each other."""

import ast
import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from minippo import __version__
from minippo.checks import CHECKS
from minippo.data import DATA

ROOT = Path(__file__).parents[2]
FOLDERS = "minippo tests data notebooks tools docs".split()
EIGHT = "torch transformers datasets matplotlib jupyterlab ipywidgets pytest nbval".split()


def pins(text: str) -> dict[str, str]:
    return dict(re.findall(r"^[\s-]*([A-Za-z0-9_-]+)==([\w.]+)\s*$", text, flags=re.MULTILINE))


def test_environment_yml_pins_the_eight_packages_as_requirements_txt_does():
    conda = (ROOT / "environment.yml").read_text(encoding="utf-8")
    required = pins((ROOT / "requirements.txt").read_text(encoding="utf-8"))
    assert list(pins(conda)) == EIGHT
    assert pins(conda) == {name: required[name] for name in EIGHT}
    assert conda.rstrip().endswith("- -r requirements.txt")


def test_requirements_end_with_the_package_and_pin_every_dependency_of_pyproject():
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    assert text.rstrip().endswith("\n-e .")
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    needed = project[project.index("dependencies = [") : project.index("[project.scripts]")]
    names = set(re.findall(r'"([a-z0-9-]+)[>=]=', needed))
    assert len(names) > 15
    # `make slow`, `make site` and `make bench` (a peer to be measured against) add them.
    later = {"furo", "myst-nb", "nbgrader", "sphinx", "trl"}
    assert names - later <= set(pins(text))


def test_the_citation_and_the_package_have_one_version():
    assert f"version: {__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")


def test_the_readme_is_short_and_its_links_lead_somewhere():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 145
    links = re.findall(r"\]\(([^)#]+)\)", text)
    assert len(links) >= 2
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []


def test_ci_calls_the_readmes_test_command():
    assert "\nstep make test\n" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "\nmake test " in (ROOT / "README.md").read_text(encoding="utf-8")


def test_nothing_shipped_is_a_pickle_and_nothing_names_a_machine():
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.split()
    if not tracked:
        pytest.skip("not a git checkout")
    assert [f for f in tracked if Path(f).suffix in {".bin", ".pt", ".pth", ".pkl"}] == []
    host = re.compile("pypi" + r"\.org|python" + "hosted|registry" + r"\.npmjs|/wo" + "rk/")
    texts = [
        f for f in tracked if Path(f).suffix in {".py", ".md", ".txt", ".toml", ".yml", ".ipynb"}
    ]
    assert [f for f in texts if host.search((ROOT / f).read_text(encoding="utf-8"))] == []


def test_pre_commit_and_make_lint_run_the_same_commands():
    recipe = re.search(
        r"^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M
    )
    lint = [line.replace("$(RUN)", "python").strip() for line in recipe[1].splitlines()]
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    hooks = [hook for repository in config["repos"] for hook in repository["hooks"]]
    assert [hook["entry"] for hook in hooks] == lint
    assert all(hook["always_run"] and not hook["pass_filenames"] for hook in hooks)


def unencoded(source: str) -> list[int]:
    """The lines that read or write text in whatever encoding the machine has."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or any(k.arg == "encoding" for k in node.keywords):
            continue
        called = ast.unparse(node.func)
        opened = called.split(".")[-1] in ("open", "fdopen") and called not in OTHER_OPEN
        binary = any(isinstance(a, ast.Constant) and a.value in BINARY for a in node.args)
        if (opened and not binary) or called.endswith((".read_text", ".write_text")):
            found.append(node.lineno)
    return found


OTHER_OPEN = {"Image.open", "os.open"}  # neither reads text
BINARY = {"rb", "wb", "ab"}


def test_text_access_without_an_encoding_is_found():
    wrong = "open(p)\np.open('w')\nos.fdopen(1, 'w')\np.read_text()\np.write_text('rb')\n"
    right = "open(p, 'rb')\np.open('wb')\nImage.open(p)\np.read_text(encoding='utf-8')\n"
    assert unencoded(right + wrong) == [5, 6, 7, 8, 9]


def test_text_is_read_and_written_as_utf_8_on_every_machine():
    paths = [p for d in FOLDERS for p in (ROOT / d).rglob("*.py")]
    lines = {str(p): unencoded(p.read_text(encoding="utf-8")) for p in paths}
    assert {path: found for path, found in lines.items() if found} == {}


def test_no_tensor_becomes_double_before_it_is_on_the_cpu():
    # Apple's GPU has no float64, and matplotlib reads the CPU alone. Sampling has its own tests.
    texts = {p: p.read_text(encoding="utf-8") for p in (ROOT / "minippo").rglob("*.py")}
    found = {p.stem: re.findall(r"(\S+)\.double\(\)", text) for p, text in texts.items()}
    elsewhere = {name: calls for name, calls in found.items() if name != "rollout" and calls}
    assert {"distributions", "credit", "clipping", "cases", "observe"} <= set(elsewhere)
    assert [c for calls in elsewhere.values() for c in calls if not c.endswith(".cpu()")] == []


# ---- the data card -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def figures():
    return json.loads((DATA / "manifest.json").read_text(encoding="utf-8"))["figures"]


def test_the_card_shows_the_figures_of_the_manifest(figures):
    card = (DATA / "README.md").read_text(encoding="utf-8")
    assert f"| base, excess in % | {figures['base']['excess in %']} |" in card
    assert f"| sft, sft, gold | {figures['sft']['sft']['gold']} |" in card
    ratio = figures["reward model"]["accuracy / best possible"]
    assert f"| reward model, accuracy / best possible | {ratio} |" in card


def test_the_shipped_world_is_as_good_as_promised(figures):
    assert figures["world"]["held-out texts in training"] == 0
    assert figures["world"]["distinct among 30,000"] >= 20_000
    assert figures["world"]["distinct words"] >= 300
    assert figures["base"]["excess in %"] <= 3
    assert figures["base"]["model"] > figures["base"]["limit"]  # no model beats the limit
    reward = figures["reward model"]
    assert 0.75 <= reward["best possible"] <= 0.88
    assert reward["accuracy / best possible"] >= 0.9
    assert all(
        abs(sure - right) < 0.05 for sure, right, _ in reward["calibration [sure, right, pairs]"]
    )
    before, after = figures["sft"]["base"], figures["sft"]["sft"]
    assert after["on topic"] > before["on topic"] + 0.1
    assert after["ends properly"] > before["ends properly"] + 0.1


def test_the_manifest_lists_every_shipped_file_with_its_size():
    files = json.loads((DATA / "manifest.json").read_text(encoding="utf-8"))["files"]
    there = {
        f.relative_to(DATA).as_posix(): f.stat().st_size
        for pattern in ("*.jsonl*", "tiny-gpt2-*/*", "runs/*", "studies/*.bz2")
        for f in DATA.glob(pattern)
    }
    assert {name: record["bytes"] for name, record in files.items()} == there
    assert sum(there.values()) < 7_000_000
    # A clone holds each byte twice, in .git and beside it: 18 MB of it in all, and this is most.
    recorded = [size for name, size in there.items() if name.startswith(("runs/", "studies/"))]
    assert sum(recorded) < 700_000


def test_the_readme_lists_every_notebook_with_the_minutes_of_its_contract():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        contract = "".join(json.loads(path.read_text(encoding="utf-8"))["cells"][0]["source"])
        minutes = re.search(r"\*\*Time\*\* (\d+) minutes(?: for the core, (\d+))?", contract)
        assert minutes, path.name
        said = " / ".join(filter(None, minutes.groups()))
        assert re.search(rf"\]\(notebooks/{path.name}\) \|.*\| {said} \|\n", text), path.name


def test_the_changelog_counts_the_checks_and_their_catalogue():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"`checks`: {len(CHECKS)} functions" in text
    assert f"{sum(len(check.flawed.mistakes) for check in CHECKS.values())} known" in text
