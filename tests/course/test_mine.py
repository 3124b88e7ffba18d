"""The student's file: what passes is added to it and is used from then on."""

import importlib
import linecache
import subprocess
import sys
from pathlib import Path

import pytest

import minippo
from minippo import checks, course
from minippo.checks.engine.contract import contract
from minippo.course import mine

RIGHT = """
def my_probability_ratio(log_probs, old_log_probs):
    return (log_probs.float() - old_log_probs.float().detach()).exp()
"""


pytestmark = pytest.mark.usefixtures("lesson_folder")


def written(source: str, **names):
    """A function as a notebook's cell defines it: its source can be read."""
    made = dict(names)
    name = f"<cell {hash(source)}>"
    linecache.cache[name] = (len(source), None, source.splitlines(keepends=True), name)
    exec(compile(source, name, "exec"), made)
    return next(made[key] for key in made if key.startswith("my_"))


def test_a_lesson_makes_the_file_and_its_functions_are_minippos():
    assert mine.begin() == "my_ppo.py: 17 functions: 0 yours, 17 minippo's"
    from my_ppo import gae, response_mask

    assert gae is minippo.gae
    assert response_mask is checks.CHECKS["response_mask"].reference


def test_a_function_that_passes_is_added_as_written_and_used_from_then_on(capsys):
    mine.begin()
    function = written(RIGHT)
    assert checks.probability_ratio(function).use() is function
    assert "added to my_ppo.py" in capsys.readouterr().out
    assert RIGHT.strip() in Path("my_ppo.py").read_text(encoding="utf-8")
    from my_ppo import probability_ratio

    assert probability_ratio.__module__ == "my_ppo"
    assert course.whose() == "17 functions: 1 yours, 16 minippo's " + (
        f"({', '.join(n for n in course.FUNCTIONS if n != 'probability_ratio')})"
    )


def test_a_class_is_kept_as_written_too(capsys):
    mine.begin()
    source = contract("AdaptiveKL").solution.strip()
    controller = written(f"RATE = 1\n\n{source}\n\n\nprint(RATE)\n", __name__="__main__")
    assert checks.AdaptiveKL(controller).use() is controller
    assert "added to my_ppo.py" in capsys.readouterr().out
    from my_ppo import AdaptiveKL

    assert AdaptiveKL.__module__ == "my_ppo"
    assert source in Path("my_ppo.py").read_text(encoding="utf-8")


def test_a_second_answer_replaces_the_first():
    mine.begin()
    checks.probability_ratio(written(RIGHT)).use()
    better = RIGHT.replace("log_probs.float() - ", "log_probs.to(torch.float32) - ")
    import torch

    checks.probability_ratio(written(better, torch=torch)).use()
    text = Path("my_ppo.py").read_text(encoding="utf-8")
    assert text.count("def my_probability_ratio") == 1
    assert "torch.float32" in text


def test_until_it_is_right_minippos_is_used_and_nothing_is_kept(capsys):
    mine.begin()
    wrong = written(RIGHT.replace("log_probs.float() - old", "old_log_probs.float() + old"))
    assert checks.probability_ratio(wrong).use() is minippo.probability_ratio
    assert "not yet" in capsys.readouterr().out
    assert Path("my_ppo.py").read_text(encoding="utf-8") == mine.HEADER


def test_a_function_that_needs_its_notebook_is_used_but_not_kept(capsys):
    mine.begin()
    source = RIGHT.replace("return (log", "return helper((log").replace(".exp()", ")")
    function = written(source, helper=lambda x: x.exp())
    assert checks.probability_ratio(function).use() is function
    assert "name 'helper' is not defined" in capsys.readouterr().out
    assert Path("my_ppo.py").read_text(encoding="utf-8") == mine.HEADER


def test_a_function_without_a_source_is_used_but_not_kept(capsys):
    mine.begin()
    checks.probability_ratio(lambda a, b: (a.float() - b.float().detach()).exp()).use()
    assert "only a function or class written in a cell can be" in capsys.readouterr().out


def test_switched_off_no_file_is_made_or_read(monkeypatch):
    Path("my_ppo.py").write_text("gae = 1", encoding="utf-8")
    monkeypatch.setenv("MINIPPO_MINE", "off")
    assert mine.begin() == ""
    assert importlib.import_module("my_ppo").gae is minippo.gae
    function = written(RIGHT)
    assert checks.probability_ratio(function).use() is function
    assert Path("my_ppo.py").read_text(encoding="utf-8") == "gae = 1"


def test_a_file_that_cannot_be_imported_is_left_alone_and_said():
    Path("my_ppo.py").write_text("def gae(:\n", encoding="utf-8")
    said = mine.begin()
    assert said.startswith("my_ppo.py cannot be imported (SyntaxError")
    assert importlib.import_module("my_ppo").gae is minippo.gae
    assert Path("my_ppo.py").read_text(encoding="utf-8") == "def gae(:\n"


def test_in_a_block_the_names_are_minippos_and_yours_again_afterwards():
    mine.begin()
    checks.probability_ratio(written(RIGHT)).use()
    from my_ppo import probability_ratio

    names = {"probability_ratio": probability_ratio, "gae": 1, "other": 2}
    with course.minippos(names):
        assert names["probability_ratio"] is minippo.probability_ratio
        assert (names["gae"], names["other"]) == (minippo.gae, 2)
    assert names == {"probability_ratio": probability_ratio, "gae": 1, "other": 2}


def test_the_file_is_graded_as_it_is():
    mine.begin()
    checks.probability_ratio(written(RIGHT)).use()
    command = [sys.executable, "-m", "minippo", "grade", "my_ppo.py"]
    where = {"PYTHONPATH": str(Path(minippo.__file__).parents[1])}
    done = subprocess.run(
        command, capture_output=True, text=True, env={**mine.os.environ, **where}, check=False
    )
    assert (done.returncode, "my_ppo.py: 1 of 1 points" in done.stdout) == (0, True), done.stdout


def test_a_lesson_begins_with_its_model_and_says_what_is_missing(monkeypatch, capsys):
    monkeypatch.setenv("MINIPPO_MINE", "off")
    assert course.start() == "tiny-gpt2-sft"
    monkeypatch.setenv("MINIPPO_MODEL", "gpt2")
    assert course.start() == "gpt2"
    assert "model gpt2" in capsys.readouterr().out
    start = importlib.import_module("minippo.course.start")
    monkeypatch.setattr(start, "NEEDED", ("transformers", "no_such_package"))
    with pytest.raises(SystemExit, match="no_such_package missing: pip install no_such_package"):
        course.start()
