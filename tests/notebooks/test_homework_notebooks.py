"""The homework goes through nbgrader: released, submitted, graded, for each assignment."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from minippo import checks

ROOT = Path(__file__).parents[2]
HOMEWORK = ROOT / "notebooks" / "homework"
NAMES = sorted(path.name for path in (HOMEWORK / "source").iterdir() if path.is_dir())
SECRET = re.compile(r"### (BEGIN|END) (SOLUTION|HIDDEN TESTS)")

# What a student may do wrong in each: (in the solution, instead), and the points that are left.
WRONG = {
    "hw1": (
        {
            "return -log_p.gather": "return log_p.gather",
            "kept.sum(1) / mask.sum(1)": "x.sum(1) / mask.sum(1)",
        },
        9,
    ),
    "hw2": (
        {
            "torch.minimum(ratio": "torch.maximum(ratio",
            "error = (values - returns) ** 2": "error = (values - returns) ** 2 / 2",
            "(clipped - returns) ** 2": "(clipped - returns) ** 2 / 2",
        },
        9,
    ),
    "hw3": (
        {
            "error / self.horizon": "error * n_episodes / self.horizon",
            "return d.exp() - 1 - d": "return d.exp() - 1 + d",
        },
        13,
    ),
    "hw4": (
        {
            "returns = advantages + values\n    advantages = whiten(advantages, mask)": (
                "advantages = whiten(advantages, mask)\n    returns = advantages + values"
            ),
            "names = diagnosis.drawn(STUDENT)": "names = diagnosis.drawn(STUDENT)[::-1]",
        },
        6,
    ),
}
# What the checks then call it.
MISTAKES = {
    "hw1": ["token_log_probs: not yet: minippo's own", "masked_mean: not yet: padding in the sum"],
    "hw2": ["clipped_surrogate: not yet: maximum instead", "value_loss: not yet: minippo's own"],
    "hw3": ["AdaptiveKL: not yet: minippo's own convention", "kl_k3: not yet"],
    "hw4": ["ppo_update: not yet: returns from whitened advantages"],
}
TOTAL = {"hw1": 18, "hw2": 18, "hw3": 21, "hw4": 16}  # and 6 for hw4's write-up, given by hand


def load(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def sources(notebook: dict) -> list[str]:
    return ["".join(cell["source"]) for cell in notebook["cells"]]


def nbgrader(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "nbgrader", *arguments]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # nbgrader asks alembic
    settings = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, cwd=folder, env=settings, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stderr


@pytest.mark.parametrize("name", NAMES)
def test_the_homework_states_its_points_time_and_goals(name):
    text = "\n".join(sources(load(HOMEWORK / "source" / name / f"{name}.ipynb")))
    assert "**Goals.**" in text
    assert "**Time**" in text
    cells = load(HOMEWORK / "source" / name / f"{name}.ipynb")["cells"]
    graded = [
        c["metadata"]["nbgrader"] for c in cells if c["metadata"].get("nbgrader", {}).get("grade")
    ]
    assert sum(g["points"] for g in graded if g["cell_type"] == "code") == TOTAL[name]
    assert len({g["grade_id"] for g in graded}) == len(graded)


@pytest.mark.parametrize("name", NAMES)
def test_the_homeworks_first_cell_is_that_of_the_lessons(name):
    def first(path: Path) -> str:
        return next("".join(c["source"]) for c in load(path)["cells"] if c["cell_type"] == "code")

    lesson = ROOT / "notebooks" / "00_start_here.ipynb"
    assert first(HOMEWORK / "source" / name / f"{name}.ipynb") == first(lesson)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_homework_is_released_and_graded(name, tmp_path):
    pytest.importorskip(
        "nbgrader", reason='nbgrader is not installed: pip install -e ".[homework]"'
    )
    from nbgrader.api import Gradebook

    # A teacher's own release, submissions and gradebook may be beside the sources.
    shutil.copytree(HOMEWORK / "source", tmp_path / "source")
    shutil.copy(HOMEWORK / "nbgrader_config.py", tmp_path)
    nbgrader(tmp_path, "generate_assignment", name, "--create")
    source = load(tmp_path / "source" / name / f"{name}.ipynb")
    released = load(tmp_path / "release" / name / f"{name}.ipynb")
    assert SECRET.search("\n".join(sources(source)))
    assert not SECRET.search("\n".join(sources(released)))
    assert "require()" not in "\n".join(sources(released))

    def submit(student: str, change) -> None:
        folder = tmp_path / "submitted" / student / name
        folder.mkdir(parents=True)
        answered = load(tmp_path / "release" / name / f"{name}.ipynb")
        for cell, solved in zip(answered["cells"], source["cells"], strict=True):
            if cell["metadata"].get("nbgrader", {}).get("solution") and cell["cell_type"] == "code":
                text = SECRET.sub("#", "".join(solved["source"]))
                cell["source"] = change("".join(cell["source"]), text)
        (folder / f"{name}.ipynb").write_text(json.dumps(answered), encoding="utf-8")

    def wrongly(stub: str, text: str) -> str:
        for right, wrong in WRONG[name][0].items():
            text = text.replace(right, wrong)
        return text

    submit("right", lambda stub, text: text)
    submit("wrong", wrongly)
    submit("unfinished", lambda stub, text: stub)
    nbgrader(tmp_path, "autograde", name, "--create")
    with Gradebook(f"sqlite:///{tmp_path / 'gradebook.db'}") as book:
        scores = {s.student.id: s.code_score for s in book.assignment_submissions(name)}
    assert scores == {"right": TOTAL[name], "wrong": WRONG[name][1], "unfinished": 0}

    # What the student saw is what the grader says, and it names the mistakes.
    for student in scores:
        graded = load(tmp_path / "autograded" / student / name / f"{name}.ipynb")
        seen, given = local_verdicts(graded), hidden_verdicts(graded)
        assert seen.keys() <= given.keys()
        assert seen == {task: given[task] for task in seen}, student
        shown = "\n".join(texts(graded))
        for mistake in MISTAKES[name] if student == "wrong" else []:
            assert mistake in shown
        assert ("not finished yet" in shown) == (student == "unfinished")


def texts(notebook: dict) -> list[str]:
    return ["\n".join(map(text, c["outputs"])) for c in notebook["cells"] if "outputs" in c]


def text(output: dict) -> str:
    return "".join(output.get("data", {}).get("text/plain", output.get("text", "")))


def local_verdicts(notebook: dict) -> dict[str, bool]:
    """Function -> did its check, which the student sees, pass?"""
    found = [re.match(r"(\w+): (passed|not |right;)", shown) for shown in texts(notebook)]
    return {m[1]: m[2] == "passed" for m in found if m}


def hidden_verdicts(notebook: dict) -> dict[str, bool]:
    """Function -> did its hidden tests run through?"""
    cells = [c for c in notebook["cells"] if c["cell_type"] == "code"]
    graded = [c for c in cells if c["metadata"].get("nbgrader", {}).get("grade")]
    return {
        c["metadata"]["nbgrader"]["grade_id"].removeprefix("test-"): not any(
            o["output_type"] == "error" for o in c["outputs"]
        )
        for c in graded
    }


def test_the_homework_guide_names_only_what_exists():
    guide = (HOMEWORK / "README.md").read_text(encoding="utf-8")
    for name in NAMES:
        assert name in guide
    for task in re.findall(r"`checks\.(\w+)`", guide):
        assert hasattr(checks, task)
