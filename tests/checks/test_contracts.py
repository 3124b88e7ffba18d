"""Exercise, hints, check and solution agree, for every contract."""

import ast
import inspect
import math
import re
import subprocess
import sys

import pytest

from minippo import checks
from minippo.checks import CHECKS
from minippo.checks.definitions import leaves
from minippo.checks.engine.check import SEED
from minippo.checks.engine.contract import FOLDER, contract, read
from minippo.checks.engine.judge import close, failure
from minippo.checks.mistakes import CATALOGUE
from tests.repository.test_layers import code_lines

CONTRACTS = {path.stem: contract(path.stem) for path in sorted(FOLDER.glob("*.toml"))}
TASKS = [(name, i) for name, found in CONTRACTS.items() for i in range(len(found.task))]
SIZE = {"build": 20}  # lines of a solution's body; 8 for every other kind

# What a text may require -> whether a case, or else the check, then tests it.
REQUIREMENTS = {
    "half-?.?precision": lambda check, case: case.dtype == "bfloat16",
    "NaN": lambda check, case: any(math.isnan(x) for x in numbers(case)),
    "infty|infinite": lambda check, case: -math.inf in numbers(case),
    "1,?000": lambda check, case: "1000" in case.note or 1000 in map(abs, numbers(case)),
    "[Gg]radient (may |must )?(flow|reach)|nor its gradient|detach": (
        lambda check, case: check.slopes or check.no_slopes
    ),
}
EXPLAINS = ("NaN", "infty|infinite")  # a hint may say where they come from

pytestmark = pytest.mark.usefixtures("without_hook")
each_contract = pytest.mark.parametrize("name", CONTRACTS)


def numbers(case) -> list[float]:
    return [x for x in leaves([*case.inputs.values()]) if isinstance(x, float)]


def verdict(name: str, part: str):
    found = CONTRACTS[name]
    return CHECKS[name](found.run(getattr(found, part)))


def wrong(name: str, i: int):
    """An implementation that does not do what a sentence says."""
    sentence = CONTRACTS[name].task[i]
    if "broken_by" in sentence:
        return CATALOGUE[name].version([sentence["broken_by"]])
    return CONTRACTS[name].run(sentence["wrong"])


@each_contract
def test_the_solution_has_a_students_size_and_passes_when_pasted_over_the_stub(name):
    found = CONTRACTS[name]
    (function,) = ast.parse(found.solution).body
    assert not function.decorator_list
    assert code_lines(ast.unparse(ast.Module(function.body, []))) <= SIZE.get(found.kind, 8)
    assert name not in {node.id for node in ast.walk(function) if isinstance(node, ast.Name)}
    stub, line = found.cell().rsplit("\n\n\n", 1)
    assert stub == found.stub.strip()
    mine = found.run(found.solution)
    names = {"checks": checks, f"my_{name}": mine}
    exec(line, names)
    assert names[name] is mine
    assert verdict(name, "solution").passed


@each_contract
def test_the_stub_is_unfinished_and_is_called_like_the_solution(name):
    found, result = CONTRACTS[name], verdict(name, "stub")
    assert not result.passed
    assert not result.finished, result
    stub, solution = (inspect.signature(found.run(x)) for x in (found.stub, found.solution))
    assert stub == solution


@each_contract
@pytest.mark.parametrize("part", ["literal", "hint_1"])
def test_anyone_who_follows_the_text_or_the_first_hint_has_the_idea(name, part):
    result = verdict(name, part)
    assert result.idea, result


@each_contract
def test_the_worked_example_gives_what_it_says_and_is_the_checks_first_case(name):
    found, check = CONTRACTS[name], CHECKS[name]
    first = next(check.generate(SEED))
    assert first == found.case()
    gives, right = found.example["gives"], check.expected(first)
    assert close(gives, right.value, 1e-4), right.value  # the text has four digits at most
    assert failure(first, right, check.observe(found.run(found.solution), first)) is None
    said = [float(x) for x in re.findall(r"-?\d+(?:\.\d+)?", found.worked.replace("$", ""))]
    missing = [  # a log-prob may be said as a probability
        x for x in leaves(gives)
        if not any(abs(y - number) < 1e-3 for y in (x, math.exp(min(x, 50))) for number in said)
    ]  # fmt: skip
    whole = found.kind == "build"  # a result of many numbers, which a text would not list
    assert len(missing) < len(leaves(gives)) if whole else not {*missing} - {0.0, 1.0}, missing


@pytest.mark.parametrize(("name", "i"), TASKS)
def test_each_sentence_has_a_wrong_implementation_that_fails_by_it(name, i):
    result = CHECKS[name](wrong(name, i))
    assert not result.passed
    assert result.finished
    assert "raised an error" not in str(result)


@each_contract
def test_each_sentence_is_broken_in_another_way(name):
    task = CONTRACTS[name].task
    ways = {sentence.get("broken_by") or sentence["wrong"] for sentence in task}
    assert len(ways) == len(task)


@each_contract
@pytest.mark.parametrize("words", REQUIREMENTS)
def test_requirements_of_a_text_are_tested_and_no_hint_requires_more(name, words):
    found, check = CONTRACTS[name], CHECKS[name]
    required = any(re.search(words, sentence["says"]) for sentence in found.task)
    assert not required or any(REQUIREMENTS[words](check, case) for case in check.generate(SEED))
    assert required or words in EXPLAINS or not any(re.search(words, hint) for hint in found.hints)


def test_stubs_and_answers_are_formatted_as_notebooks_are():
    """Then the cells that they are pasted into are, too."""
    for name, found in CONTRACTS.items():
        for text in (found.cell(), found.literal, found.hint_1, found.solution):
            done = subprocess.run(
                [sys.executable, "-m", "ruff", "format", "--diff", "-"],
                input=text.strip() + "\n", capture_output=True, text=True, check=False,
            )  # fmt: skip
            assert done.returncode == 0, f"{name}: {done.stdout}{done.stderr}"


def test_homework_asks_the_worked_example_with_its_own_right_answer():
    """A value loss without the half gives twice the example's 0.125."""
    right = checks.variant("value_loss", "half forgotten")
    (first, *_) = right.generate("homework")
    assert first == CONTRACTS["value_loss"].case()
    assert close(right.expected(first).value, [0.25])


def test_an_example_with_a_keyword_that_a_function_leaves_out_is_not_asked():
    notes = {case.note for case in CHECKS["value_loss"].generate(SEED, ["old_values"])}
    assert "the worked example" not in notes


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("kind =", "sort =", "kind must be there"),
        ("minutes =", "extra = 1\nminutes =", "extra must be one of"),
        ('kind = "write"', 'kind = "guess"', "kind must be one of write, build"),
        ("difficulty = 1", "difficulty = 4", "difficulty must be one of 1, 2, 3"),
        ("minutes = 4", "minutes = 0", "minutes must be one of 1, 2"),
        ('title = "the log-prob of each response"', 'title = " "', "title must be a text"),
        ("hints = [", 'hints = [\n"a",', "hints must be three"),
        ("gives =", "given =", "example.given must be one of gives, inputs"),
        ("broken_by =", "broken =", "task 1: broken must be one of"),
        ("says =", "say =", "task 1: say must be one of"),
        ("title =", "title", "the file must be TOML"),
    ],
)
def test_a_contract_that_breaks_the_format_is_refused_with_its_file_and_key(
    tmp_path, old, new, says
):
    text = (FOLDER / "sequence_log_prob.toml").read_text(encoding="utf-8")
    assert old in text
    path = tmp_path / "sequence_log_prob.toml"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(f"sequence_log_prob.toml: {says}")):
        read(path)


def test_a_function_without_a_contract_has_none():
    assert contract("kl_k2") is None
