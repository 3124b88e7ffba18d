"""A student's own file is graded as the course makes it, and as notebooks are exported."""

import pytest

from minippo.checks.engine.contract import FOLDER, contract
from minippo.cli import main
from minippo.course import mine
from minippo.grading import grade

pytestmark = pytest.mark.usefixtures("without_hook")

EXPORTED = """
from minippo import course
MODEL = course.start()
from minippo import *
from minippo import checks
from minippo.checks.solutions import *

def my_kl_k1(log_probs, ref_log_probs): return log_probs - ref_log_probs
kl_k1 = checks.kl_k1(my_kl_k1).use()
assert kl_k1 is my_kl_k1
said = repr(checks.solution("kl_k1")) + repr(checks.variant("gae", "whitened")(gae))
assert said == "not shown while grading" * 2
def my_first_ratio_error(log_probs, old_log_probs, mask):  # a helper of the course is there
    return (sequence_ratio(log_probs, old_log_probs, mask) - 1).abs().max()
def my_sequence_ratio(log_probs, old_log_probs, mask):
    return sequence_ratio(log_probs, old_log_probs, mask)
def my_entropy(logits, *, temperature=1.0):
    return checks.CHECKS["entropy"].reference(logits)
def my_whiten(x, mask, *, keep_mean=False):
    import minippo.checks.definitions
def my_combined_loss(policy_loss, value_loss, entropy, kl, *, c1, c2, c3):
    return policy_loss + c1 * value_loss - c2 * entropy + c3 * kl
"""
BOUND = """\ufeff# -*- coding: utf-8 -*-
from typing import Callable
from helper import kl_k2
kl_k1: Callable = lambda p, q: p - q
if True:
    def mean(x, mask): return x.float().where(mask, 0.0).sum() / mask.sum()
my_masked_mean, x = mean, 2
def my_masked_var(x, mask): ...
def reinforce_loss(log_probs, advantages): return -log_probs * advantages.detach()
def my_reinforce_loss(log_probs, advantages): ...
"""


def written(folder, name, text):
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def test_the_file_that_the_course_makes_of_the_solutions_gets_all_points(tmp_path, capsys):
    text = mine.HEADER
    names = [path.stem for path in FOLDER.glob("*.toml")]
    for name in names:
        source = contract(name).solution.strip()
        text = mine._with(text, name, f"{source}\n\n\n{name} = my_{name}")
    assert main(["grade", str(written(tmp_path, "my_ppo.py", text))]) == 0
    assert f"my_ppo.py: {len(names)} of {len(names)} points" in capsys.readouterr().out


def test_checks_is_mute_while_grading_and_gives_no_answer_away(tmp_path):
    got = grade.grade(written(tmp_path, "exported.py", EXPORTED))
    assert {r.name for r in got.results if r.passed} == {"kl_k1", "combined_loss"}
    said = {r.name: str(r) for r in got.results}
    assert "value is wrong" in said["first_ratio_error"]
    assert "sequence_ratio: this is the function you were asked to write" in said["sequence_ratio"]
    assert "in my_sequence_ratio: return sequence_ratio(" in said["sequence_ratio"]
    assert "It must return a tensor" in said["entropy"]
    assert "definitions is not available while grading" in said["whiten"]


def test_a_function_counts_however_it_is_bound_and_the_plain_name_comes_first(tmp_path):
    written(tmp_path, "helper.py", "def kl_k2(p, q): return (p - q).square() / 2")
    path = written(tmp_path, "bound.py", BOUND)
    found = grade.find_functions(path)
    assert found == ["masked_mean", "reinforce_loss", "kl_k1", "kl_k2"]
    assert grade.grade(path).score == 4


def test_functions_of_minippo_or_within_a_function_are_not_found(tmp_path):
    text = "from minippo import gae\nfrom minippo.kl import *\ndef f():\n    kl_k1 = 3\n"
    path = written(tmp_path, "imports.py", text)
    assert grade.find_functions(path) == []
    (result,) = grade.grade(path, tasks=["gae"]).results
    assert (result.headline, result.finished) == ("not in the file.", False)
