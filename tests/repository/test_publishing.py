"""What publishes the course: workflows that say what they should, a site with every module."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = {
    p.stem: p.read_text(encoding="utf-8") for p in (ROOT / ".github" / "workflows").glob("*.yml")
}


@pytest.mark.parametrize("name", ["tests", "site"])
def test_a_workflow_is_valid_and_calls_commands_that_exist(name):
    made = yaml.safe_load(WORKFLOWS[name])
    assert made["name"] == name
    assert {"push", "workflow_dispatch"} <= set(made[True])  # YAML 1.1 reads `on` as True
    targets = re.findall(
        r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE
    )
    for job in made["jobs"].values():
        assert job["runs-on"] in ("ubuntu-latest", "${{ matrix.system }}")
        for step in job["steps"]:
            assert len({"uses", "run"} & set(step)) == 1
            for command in re.findall(r"^make (\w+)", step.get("run", ""), re.MULTILINE):
                assert command in targets
            if action := step.get("uses"):
                assert re.fullmatch(r"actions/[\w-]+@v\d+", action)


def test_the_tests_run_on_every_python_that_is_promised_and_on_other_torches():
    jobs = yaml.safe_load(WORKFLOWS["tests"])["jobs"]
    assert jobs["pinned"]["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13"]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["requires-python"] == ">=3.11"
    (least,) = (d for d in project["dependencies"] if d.startswith("torch"))
    tried = [entry["torch"] for entry in jobs["torch"]["strategy"]["matrix"]["include"]]
    assert tried[0] == least.replace(">=", "==") + ".*"  # the oldest that is promised
    assert tried[-1] == "torch"  # and the newest there is


def test_linux_windows_and_macos_run_the_quick_tests_and_the_demo_without_make():
    job = yaml.safe_load(WORKFLOWS["tests"])["jobs"]["everywhere"]
    systems = job["strategy"]["matrix"]["system"]
    assert systems == ["ubuntu-latest", "windows-latest", "macos-latest"]
    commands = [step["run"] for step in job["steps"] if "run" in step]
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert [command.split()[0] for command in commands] == ["python"] * 3
    for command in ("-m pip install -r requirements.txt", "-m minippo demo", "-m pytest --quick"):
        assert f"python {command}" in commands
        assert command.removesuffix(" --quick") in readme


def test_the_reference_has_every_public_module():
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    shown = set(re.findall(r"automodule:: minippo\.(\w+)", text))
    found = {p.stem for p in (ROOT / "minippo").glob("[a-z]*.py")}
    found |= {p.parent.name for p in (ROOT / "minippo").glob("[a-z]*/__init__.py")}
    assert found - shown <= {"cli", "practice", "course"}
    assert shown <= found


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_without_the_network(tmp_path):
    pytest.importorskip("myst_nb", reason="the extra `docs` is not installed: make site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html"]
    command += ["-c", "docs", ".", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    for path in sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb")):
        page = (tmp_path / "notebooks" / f"{path.stem}.html").read_text(encoding="utf-8")
        assert page.count("<figcaption>") == path.read_text(encoding="utf-8").count("<figcaption>")
    assert "clipped_surrogate" in (tmp_path / "docs" / "api.html").read_text(encoding="utf-8")
