"""Ten submissions that attack `grade`: none gets a point, and none keeps the grader from its end.

What `grade` does not protect from (files, network, other processes, the key on the disk) is said
in its docstring, and not tried here.
"""

import os
import resource
from concurrent.futures import ThreadPoolExecutor

import pytest

from minippo.grading import grade

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("without_hook")]

SUBMISSIONS = {
    "forges answers in the pipe": """
import json, os
def kl_k1(p, q):
    seen = {"kind": "value", "value": [[0.0]], "dtype": "float32", "passed": True}
    line = json.dumps({"name": "kl_k1", "left_out": [], "seen": [seen] * 50, "score": 1}) + "\\n"
    for fd in range(3, 64):
        try: os.write(fd, line.encode())
        except OSError: pass
    os._exit(0)
""",
    "replaces the worker's functions": """
import __main__
__main__._seen = lambda check, function, cases: {
    "name": check.name, "left_out": [], "passed": True, "score": 1, "status": "passed",
    "seen": [{"kind": "value", "value": 0.0, "dtype": "float32"}] * len(cases)}
def kl_k1(p, q): return 0 * p
""",
    "never comes to an end of its import": """
def kl_k1(p, q): return p - q
while True: pass
""",
    "ignores every signal and starts threads": """
import signal, threading
for number in range(1, 32):
    try: signal.signal(number, signal.SIG_IGN)
    except (OSError, ValueError): pass
def forever():
    while True: pass
def kl_k1(p, q):
    for _ in range(4): threading.Thread(target=forever).start()
    forever()
""",
    "takes all memory": """
import torch
kept = []
def kl_k1(p, q):
    while True: kept.append(torch.ones(2**28))
""",
    "fills the disk": """
def kl_k1(p, q):
    with open("large", "wb") as file:
        for _ in range(4096): file.write(b"x" * 2**20)
    return p - q
""",
    "leaves children that hold the pipe": """
import subprocess, sys
def kl_k1(p, q):
    for new_session in (False, True):
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], close_fds=False,
                         start_new_session=new_session)
    import os; os._exit(0)
""",
    "gives back things that lie about themselves": """
import torch
class Liar(torch.Tensor):
    def __eq__(self, other): return torch.ones(self.shape).bool()
    def __sub__(self, other): return torch.zeros(self.shape)
    def abs(self): return torch.zeros(self.shape)
    def isfinite(self): return torch.ones(self.shape).bool()
def kl_k1(p, q): return (q - p).as_subclass(Liar)
""",
    "changes its arguments and torch": """
import torch
torch.manual_seed = torch.randn = torch.rand = lambda *a, **k: torch.zeros(1)
torch.testing.assert_close = lambda *a, **k: None
def kl_k1(p, q):
    with torch.no_grad():
        p.data.zero_(); q.data.zero_()
    return p - q
""",
    "overflows the stack": """
import sys
sys.setrecursionlimit(10**9)
def deeper(x): return deeper([x])
def kl_k1(p, q): return deeper(p)
""",
}


@pytest.mark.parametrize("text", SUBMISSIONS.values(), ids=SUBMISSIONS)
def test_a_hostile_submission_gets_nothing_and_the_grader_comes_to_its_end(
    tmp_path, monkeypatch, text
):
    monkeypatch.setattr(grade, "EACH", 3.0)
    if "end of its import" in next(name for name, t in SUBMISSIONS.items() if t == text):
        monkeypatch.setattr(grade, "START", 10.0)
    (tmp_path / "hostile.py").write_text(text, encoding="utf-8")
    limits = [resource.getrlimit(x) for x in (resource.RLIMIT_AS, resource.RLIMIT_FSIZE)]
    # Five minutes are no measurement: they fail the test where the grader does not end.
    got = ThreadPoolExecutor().submit(grade.grade, tmp_path / "hostile.py").result(timeout=300)
    assert [r.name for r in got.results] == ["kl_k1"]
    assert got.score == 0
    assert sorted(os.listdir(tmp_path)) in (["hostile.py"], ["__pycache__", "hostile.py"])
    assert [resource.getrlimit(x) for x in (resource.RLIMIT_AS, resource.RLIMIT_FSIZE)] == limits


def test_the_limits_of_grades_protection_are_stated():
    said = " ".join((grade.__doc__ or "").split())
    assert "What this does not protect against" in said
    for risk in ("your rights", "delete", "network", "outlive", "on the disk", "container"):
        assert risk in said


def test_an_honest_file_still_passes(tmp_path):
    # Guards the test above: the limits and the file's form are not what fails it.
    (tmp_path / "honest.py").write_text("def kl_k1(p, q): return p - q", encoding="utf-8")
    assert grade.grade(tmp_path / "honest.py").passed
