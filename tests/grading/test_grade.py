"""Grading: right files pass, wrong ones are told why, and no file can hurt the run."""

import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from minippo.cli import main
from minippo.grading import grade

pytestmark = pytest.mark.usefixtures("without_hook")

RIGHT = """
def kl_k1(p, q): return p - q
def my_kl_k2(p, q): return (p - q).square() / 2
class AdaptiveKL:
    def __init__(self, coef, *, target, horizon):
        self.coef, self.target, self.horizon = coef, target, horizon
    def update(self, kl, n_episodes):
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        self.coef *= 1 + error * n_episodes / self.horizon
"""
# Every function does another kind of harm; the last two are honest and must not suffer.
HOSTILE = """
import os, sys, threading, time
import minippo, torch
print("x" * 1_000_000)
print('{"name": "kl_k3", "left_out": [], "seen": []}')
threading.Thread(target=lambda: time.sleep(1000)).start()
def entropy(logits, *, temperature=1.0):
    while True: pass
def masked_mean(x, mask): os._exit(0)
def whiten(x, mask, *, keep_mean=False): sys.exit(0)
def gae(rewards, values, mask, *, gamma, lam): return minippo.gae(rewards, values, mask)
def td_errors(rewards, values, mask, *, gamma):
    from minippo.checks.definitions import td_errors
    return td_errors(rewards, values, mask, gamma)
def value_loss(values, returns):
    import minippo.checks.engine.judge as judge
    judge.close = lambda *_: True
    return 0 * values
def reinforce_loss(log_probs, advantages): return torch.zeros(10**12)
def kl_k3(p, q): return q - p
def kl_k1(p, q): return q - p
def kl_k2(p, q): return (p - q).square() / 2
"""


def written(folder: Path, name: str, text: str) -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def test_a_right_file_gets_all_points_and_exit_code_0(tmp_path, capsys):
    path = written(tmp_path, "right.py", RIGHT)
    files = {"json": tmp_path / "r.json", "junit": tmp_path / "r.xml"}
    options = [f"--{kind}={file}" for kind, file in files.items()]
    assert main(["grade", str(path), *options]) == 0
    assert "right.py: 3 of 3 points" in capsys.readouterr().out
    found = json.loads(files["json"].read_text(encoding="utf-8"))
    assert found["score"] == 3
    assert [t["name"] for t in found["tests"]] == ["kl_k1", "kl_k2", "AdaptiveKL"]
    assert {t["status"] for t in found["tests"]} == {"passed"}
    suite = ElementTree.parse(files["junit"]).getroot()[0]
    assert (suite.get("tests"), suite.get("failures")) == ("3", "0")


@pytest.mark.slow
def test_a_hostile_file_costs_its_own_points_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(grade, "EACH", 6.0)
    got = grade.grade(written(tmp_path, "hostile.py", HOSTILE))
    said = {r.name: str(r) for r in got.results}
    assert {r.name for r in got.results if r.passed} == {"kl_k2"}
    assert "did not end" in said["entropy"]
    assert "ended the process" in said["masked_mean"]
    assert "SystemExit" in said["whiten"]
    assert "minippo.gae: this is the function you were asked to write" in said["gae"]
    assert "not available while grading" in said["td_errors"]
    assert "not available while grading" in said["value_loss"]
    assert "RuntimeError" in said["reinforce_loss"] or "MemoryError" in said["reinforce_loss"]
    assert {r.name: r.mistake for r in got.results if r.mistake}["kl_k1"] == "sign turned"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("def kl_k1(:", "SyntaxError"),
        ("x = " + "-" * 100_000 + "1", "cannot be read"),
        ("x = 3", "holds none of token_log_probs"),
        ("import nothing_here\ndef kl_k1(p, q): return p - q", "No module named 'nothing_here'"),
        ("import sys\nsys.exit(0)\ndef kl_k1(p, q): return p - q", "SystemExit"),
        ("import os\nos._exit(0)\ndef kl_k1(p, q): return p - q", "ended the process"),
    ],
)
def test_a_file_that_cannot_be_imported_fails_with_the_reason(tmp_path, text, says):
    got = grade.grade(written(tmp_path, "broken.py", text))
    assert not got.passed
    assert says in "\n".join(map(str, got.results))


@pytest.mark.parametrize(
    ("text", "times"),
    [
        (b"x", 1_000_000),
        (b"x\n", 100_000),
        (b"\xff\xfe\n", 1000),
        (b"[", 1_000_000),
        (b"[" * 5000 + b"\n", 10),
        (b'{"starting": "kl_k1"}\n', 1000),
        (b'{"name": "kl_k1", "left_out": [], "seen": [{"kind": "value"}]}\n', 1),
    ],
)
def test_a_file_that_floods_the_pipe_ends_and_fails(tmp_path, monkeypatch, text, times):
    monkeypatch.setattr(grade, "EACH", 1.5)
    monkeypatch.setattr(grade, "MOST", 2**20)  # every one of them sends more
    program = """
import os
def kl_k1(p, q):
    while True:
        for fd in range(3, 30):
            try: os.write(fd, TEXT)
            except OSError: pass
"""
    path = written(tmp_path, "flood.py", program.replace("TEXT", f"{text!r} * {times}"))
    assert not grade.grade(path).passed


@pytest.mark.parametrize(
    ("patch", "function"),
    [
        ("torch.equal = torch.allclose = torch.isclose = lambda *a, **k: True", "0 * p"),
        ("torch.Tensor.tolist = lambda x: []", "p - q"),
        ("torch.tensor = None", "p - q"),
        ("torch.autograd.grad = lambda *a, **k: [None]", "p - q"),
        ("import builtins, json; json.dumps = lambda x: '{'", "p - q"),
        ("import sys; sys.modules['minippo.checks'] = None", "q - p"),
    ],
)
def test_a_file_that_patches_its_own_process_fails_and_harms_nothing_else(
    tmp_path, monkeypatch, patch, function
):
    monkeypatch.setattr(grade, "EACH", 4.0)
    text = f"import torch\n{patch}\ndef kl_k1(p, q): return {function}"
    assert not grade.grade(written(tmp_path, "patch.py", text)).passed


def test_an_answer_of_the_worker_may_have_any_shape():
    check = grade.CHECKS["kl_k1"]
    cases = list(check.generate("a"))
    deep: list = []
    for _ in range(5000):
        deep = [deep]
    for value in (deep, 10**400, "x", {"a": 1}, [[None]], [[10**400]], [["1"]], [[float("nan")]]):
        seen = [{"kind": "value", "value": value, "dtype": "float32"}] * len(cases)
        answer = {"name": "kl_k1", "left_out": [], "seen": seen}
        assert not grade._verdict(check, cases, answer).passed


def test_a_folder_counts_the_named_mistakes(tmp_path, capsys):
    written(tmp_path, "a.py", "def kl_k1(p, q): return q - p")
    written(tmp_path, "b.py", "def kl_k1(p, q): return -(p - q)")
    written(tmp_path, "c.py", "def kl_k1(p, q): return p - q")
    assert main(["grade", str(tmp_path), "--summary"]) == 1
    out = capsys.readouterr().out
    assert "2 of 3: kl_k1: sign turned" in out
    assert "c.py                     1 of 1" in out


def test_two_students_whose_files_have_one_name_are_told_apart(tmp_path, capsys):
    for student, sign in (("ada", ""), ("bob", "-")):
        (tmp_path / student).mkdir()
        written(tmp_path / student, "my_ppo.py", f"def kl_k1(p, q): return {sign}(p - q)")
    (tmp_path / "folder.py").mkdir()
    options = ["--summary", f"--json={tmp_path / 'r.json'}", f"--junit={tmp_path / 'r.xml'}"]
    assert main(["grade", str(tmp_path), *options]) == 1
    out = capsys.readouterr().out
    assert "ada/my_ppo.py            1 of 1" in out
    assert "bob/my_ppo.py            0 of 1" in out
    tests = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))["tests"]
    assert [t["name"] for t in tests] == ["ada/my_ppo.py: kl_k1", "bob/my_ppo.py: kl_k1"]
    suites = ElementTree.parse(tmp_path / "r.xml").getroot()
    assert [s.get("name") for s in suites] == ["ada/my_ppo.py", "bob/my_ppo.py"]


def test_a_requested_function_that_is_missing_costs_its_point(tmp_path, capsys):
    path = written(tmp_path, "right.py", RIGHT)
    assert main(["grade", str(path), "--tasks", "kl_k1", "kl_k3"]) == 1
    out = capsys.readouterr().out
    assert "right.py: 1 of 2 points" in out
    assert "0  kl_k3  not in the file." in out
    assert main(["grade", str(path), "--tasks", "kl_k9"]) == 1
    assert "tasks must be among token_log_probs" in capsys.readouterr().err
    broken = grade.grade(written(tmp_path, "broken.py", "def kl_k1(:"), tasks=["kl_k1"])
    assert "cannot be read: SyntaxError" in str(broken)


def test_a_function_may_be_assigned(tmp_path):
    text = "import torch\nkl_k1 = torch.sub\nmy_kl_k2 = lambda p, q: (p - q).square() / 2"
    assert grade.grade(written(tmp_path, "short.py", text)).score == 2


def test_other_functions_of_minippo_work_while_one_is_graded(tmp_path):
    """Right functions may call minippo's, also those that the file holds a version of."""
    text = """
import minippo
def entropy(logits, *, temperature=1.0): return minippo.entropy(logits, temperature=temperature)
def masked_mean(x, mask): return x
def entropy_bonus(logits, mask): return minippo.masked_mean(minippo.entropy(logits), mask)
"""
    got = grade.grade(written(tmp_path, "whole.py", text))
    assert [r.name for r in got.results if r.passed] == ["entropy_bonus"]
    assert "minippo.entropy: this is the function" in str(got.results[0])


def test_the_worker_is_told_neither_the_seed_nor_what_is_right(tmp_path):
    program = """
import os, sys, gc, json
def kl_k1(p, q):
    text = " ".join([*sys.argv, *os.environ, *os.environ.values()])
    assert "hidden-seed" not in text
    frame = sys._getframe()
    while frame:
        assert "hidden-seed" not in repr(frame.f_locals)
        frame = frame.f_back
    return p - q
"""
    assert grade.grade(written(tmp_path, "spy.py", program), seed="hidden-seed").passed


def test_grading_with_another_seed_asks_other_questions():
    check = grade.CHECKS["kl_k1"]
    first, second = ([c.inputs for c in check.generate(seed)] for seed in ("a", "b"))
    assert first != second
    assert first == [c.inputs for c in check.generate("a")]


def test_an_answer_in_another_form_is_no_pass():
    check = grade.CHECKS["kl_k1"]
    cases = list(check.generate("a"))
    for answer in (
        {"left_out": [], "seen": []},
        {"left_out": [], "seen": [{"kind": "value"}] * len(cases)},
        {"seen": 3},
        {"left_out": ["mask"], "seen": [{"x": 1}]},
    ):
        assert not grade._verdict(check, cases, {"name": "kl_k1", **answer}).passed


def test_grading_works_as_a_command(tmp_path):
    path = written(tmp_path, "wrong.py", "def kl_k1(p, q): return q - p")
    command = [sys.executable, "-m", "minippo", "grade", str(path)]
    settings = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        command, cwd=tmp_path, env=settings, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "0  kl_k1  not yet: sign turned." in done.stdout


def test_a_path_with_nothing_to_grade_is_reported(tmp_path, capsys):
    assert main(["grade", str(tmp_path / "none.py")]) == 1
    assert "grade: path must be a file or a folder" in capsys.readouterr().err
    assert main(["grade", str(tmp_path)]) == 1
    assert "must hold a .py file" in capsys.readouterr().err
